// Our words to the body of a Converse request, and Converse's answer, whole or streamed, to our words. Pure; loads
// nothing. https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html
// Reasoning, and tools that run at Bedrock's, travel as opaque parts, unchanged and in place.

import { createHash } from 'node:crypto'
import { Broken, Garbled, type StreamEvent } from './bedrock-handler.ts'
import type {
  FinishReason,
  Message,
  ModelReply,
  ModelRequest,
  Part,
  ToolResult,
} from './provider.ts'
import * as wire from './wire.ts'

export const provider = 'aws.bedrock'

// biome-ignore lint/suspicious/noExplicitAny: the vendor's JSON
type Block = Record<string, any>
type Turn = { role: 'user' | 'assistant'; content: Block[] }

/** Makes the body of a request as it is on the socket; the model is not in it but in the path. */
export function bodyMaker(model: string, extra: Block = {}): (request: ModelRequest) => Block {
  const { inferenceConfig, toolConfig, ...more } = extra
  const historyWith = {
    tools: wire.rememberingHistory((m) => toTurns(m, model, true), wire.alternating<Turn>),
    words: wire.rememberingHistory((m) => toTurns(m, model, false), wire.alternating<Turn>),
  }
  return (request) => {
    const { maxTokens, temperature, cache } = request
    const inference = {
      ...inferenceConfig,
      ...(maxTokens !== undefined && { maxTokens }),
      ...(temperature !== undefined && { temperature }),
    }
    const tools = toToolConfig(request, model, toolConfig)
    const system = toSystem(request)
    const turns = historyWith[tools ? 'tools' : 'words'](request.messages)
    return {
      ...more,
      ...(tools && { toolConfig: tools }),
      ...(system.length && { system }),
      messages: marked(withNames(turns), model, cache && cachePoint(request)),
      ...(Object.keys(inference).length && { inferenceConfig: inference }),
    }
  }
}

/** The wire has no word for `none`: then no tools are offered, and past calls are told in words. */
function toToolConfig(request: ModelRequest, model: string, given?: Block): Block | undefined {
  const { toolChoice = 'auto', cache } = request
  const tools = request.tools.map(({ name, description, input }): Block => {
    return { toolSpec: { name, description, inputSchema: { json: input } } }
  })
  tools.unshift(...(given?.tools ?? []))
  if (tools.length === 0 || toolChoice === 'none') return undefined
  if (cache && !isNova(model)) tools.push(cachePoint(request))
  return { ...given, tools, ...(toolChoice !== 'auto' && { toolChoice: { tool: toolChoice } }) }
}

/** Nova refuses a cache point after tools and beside results: https://github.com/danny-avila/LibreChat/issues/13838 */
function isNova(model: string): boolean {
  return model.includes('amazon.nova')
}

function cachePoint({ cache }: ModelRequest): Block {
  return { cachePoint: { type: 'default', ...(typeof cache === 'object' && { ttl: cache.ttl }) } }
}

/** At most four points are allowed: one is the tools', one the last message's, so two are left for `system`. */
function toSystem(request: ModelRequest): Block[] {
  const blocks = request.system.filter((block) => block.text.trim() !== '')
  const points = blocks.filter((block) => block.cache).slice(-2)
  if (request.cache && points.length === 0) points.push(...blocks.slice(-1))
  return blocks.flatMap((block) => {
    const text = { text: block.text }
    return points.includes(block) ? [text, cachePoint(request)] : [text]
  })
}

/** The turn and, as a user turn that is joined to the next, all results of its calls. Nothing blank: Bedrock refuses it. */
function toTurns(message: Message, model: string, hasTools: boolean): Turn[] {
  const { role } = message
  const content = message.parts.flatMap((part): Block[] => {
    if (part.type === 'text') return part.text.trim() ? [{ text: part.text }] : []
    if (part.type === 'file') return toFile(part, message)
    if (part.type === 'tool_call') return [toCall(part, hasTools)]
    return part.provider === provider ? fromOpaque(part.data as Block, model, hasTools) : []
  })
  // A turn that was cut in the middle of thinking holds nothing else, and models refuse it.
  const turns = content.every((block) => block.reasoningContent) ? [] : [{ role, content }]
  if (message.role === 'user' || message.results.length === 0) return turns
  const results = message.results.map((result) => toResult(result, hasTools))
  return [...turns, { role: 'user', content: results }]
}

function toCall(part: Part & { type: 'tool_call' }, hasTools: boolean): Block {
  const input = wire.inputObject(part.input)
  if (!hasTools) return { text: `[Called ${part.name} with ${JSON.stringify(input)}]` }
  const name = part.name.replace(/[^\w-]/g, '_').slice(0, 64)
  return { toolUse: { toolUseId: toId(part.id), name, input } }
}

function toResult({ callId, outcome, content }: ToolResult, hasTools: boolean): Block {
  const text = content.trim() ? content : '(no output)'
  if (!hasTools) return { text: `[It gave${outcome === 'ok' ? '' : ' an error'}: ${text}]` }
  const result = { toolUseId: toId(callId), content: [{ text }] }
  return { toolResult: outcome === 'ok' ? result : { ...result, status: 'error' } }
}

/** An id outside Bedrock's alphabet, another vendor's, is replaced in the same way each time. */
function toId(id: string): string {
  if (/^[\w-]{1,64}$/.test(id)) return id
  return `tc_${createHash('sha256').update(id).digest('base64url').slice(0, 32)}`
}

function fromOpaque(data: Block, model: string, hasTools: boolean): Block[] {
  const thought = data.reasoningContent
  if (!thought) return hasTools ? [data] : []
  // DeepSeek signs no thought and Bedrock refuses it: https://github.com/langchain-ai/langchain-aws/issues/401
  const isUnsigned = thought.reasoningText && !thought.reasoningText.signature
  return isUnsigned && model.includes('deepseek') ? [] : [data]
}

const documents: Record<string, string> = {
  'application/msword': 'doc',
  'application/pdf': 'pdf',
  'application/vnd.ms-excel': 'xls',
  'application/vnd.openxmlformats-officedocument.spreadsheetml.sheet': 'xlsx',
  'application/vnd.openxmlformats-officedocument.wordprocessingml.document': 'docx',
  'text/csv': 'csv',
  'text/html': 'html',
  'text/markdown': 'md',
  'text/plain': 'txt',
}

/** A document must not come without words of the same message. Bedrock has an alphabet for its name. */
function toFile(part: Part & { type: 'file' }, { role, parts }: Message): Block[] {
  const type = part.mediaType.replace(/;.*/, '').trim().toLowerCase()
  const image = /^image\/(png|jpeg|gif|webp)$/.exec(type)?.[1]
  const source = { bytes: part.data }
  if (role === 'user' && image) return [{ image: { format: image, source } }]
  if (role === 'user' && Object.hasOwn(documents, type)) {
    const bare = part.name?.replace(/\.\w{1,5}$/, '').replace(/[^A-Za-z0-9()[\]-]+/g, ' ')
    const name = bare?.trim().slice(0, 180).trim() || 'document'
    const hasWords = parts.some((other) => other.type === 'text' && other.text.trim())
    const words = hasWords ? [] : [{ text: 'See the attached document.' }]
    return [...words, { document: { format: documents[type], name, source } }]
  }
  const takes = `image/(png, jpeg, gif, webp), ${Object.keys(documents).join(', ')}`
  throw wire.unsupportedFile(provider, `${takes} in a user's message`, part)
}

/** No two documents of a request may have the same name; a turn that needs none other stays the object it is. */
function withNames(turns: Turn[]): Turn[] {
  const names = new Set<string>()
  return turns.map((turn) => {
    if (!turn.content.some((block) => block.document)) return turn
    const content = turn.content.map((block) => {
      if (!block.document) return block
      let { name } = block.document
      for (let n = 2; names.has(name.toLowerCase()); n++) name = `${block.document.name} (${n})`
      names.add(name.toLowerCase())
      return { document: { ...block.document, name } }
    })
    return { ...turn, content }
  })
}

function marked(turns: Turn[], model: string, point: Block | false | undefined): Turn[] {
  const last = turns.at(-1)
  if (!point || last?.role !== 'user') return turns
  if (isNova(model) && last.content.some((block) => block.toolResult)) return turns
  return turns.with(-1, { ...last, content: [...last.content, point] })
}

const reasons: Record<string, FinishReason> = {
  max_tokens: 'length',
  model_context_window_exceeded: 'length',
  guardrail_intervened: 'content_filter',
  content_filtered: 'content_filter',
  refusal: 'content_filter',
}

/** From Converse's output, or a stream put together to the same shape, with calls' input as text. */
export function toReply({ output, $metadata, ...rest }: Block): ModelReply {
  const content: Block[] | undefined = output?.message?.content
  if (!content || rest.stopReason === undefined) throw new Broken('ended its answer early')
  if (/^malformed_/.test(wire.string(rest.stopReason))) {
    const what = `${provider}: the model wrote what is no answer (${rest.stopReason})`
    throw new wire.ProviderError('provider_invalid', what, { provider, retryable: true })
  }
  const finish = reasons[rest.stopReason] ?? 'stop'
  const parts = content.flatMap((block, i, { length }) =>
    toParts(block, finish === 'length' && i === length - 1),
  )
  const { inputTokens, outputTokens, cacheReadInputTokens, cacheWriteInputTokens } =
    rest.usage ?? {}
  const usage = wire.toUsage(inputTokens, outputTokens, cacheReadInputTokens, cacheWriteInputTokens)
  const citations = content.flatMap((block) => block.citationsContent?.citations ?? [])
  return wire.toReply(parts, finish, usage, {
    finishReason: rest.stopReason,
    requestId: $metadata?.requestId,
    ...rest,
    ...(citations.length && { citations }),
  })
}

/** `cut`: the length ran out in this block. Kinds to come are left out: the SDK could not send them back. */
function toParts(block: Block, cut: boolean): Part[] {
  const { text, toolUse, reasoningContent, toolResult, citationsContent } = block
  if (text !== undefined) return [{ type: 'text', text: wire.string(text) }]
  // With citations the answer's words are in here, and nowhere else.
  if (citationsContent)
    return (citationsContent.content ?? []).flatMap((b: Block) => toParts(b, cut))
  if (toolUse) {
    const input = wire.toolInput(toPlain(toolUse.input), cut)
    if (toolUse.type === 'server_tool_use') return [toOpaque({ toolUse: { ...toolUse, input } })]
    return [{ type: 'tool_call', id: toolUse.toolUseId, name: wire.string(toolUse.name), input }]
  }
  if (toolResult) return [toOpaque({ toolResult })]
  if (!reasoningContent) return []
  const { redactedContent } = reasoningContent
  if (redactedContent === undefined) return [toOpaque({ reasoningContent })]
  const redacted = toBytes(redactedContent).toString('base64')
  return [toOpaque({ reasoningContent: { redactedContent: redacted } })]
}

function toOpaque(data: Block): Part {
  return { type: 'opaque', provider, data }
}

/** The SDK decodes binary members, our own reader of streams does not. */
function toBytes(value: string | Uint8Array): Buffer {
  return typeof value === 'string' ? Buffer.from(value, 'base64') : Buffer.from(value)
}

/** The SDK reads numbers that no double holds as objects of its own. JSON.parse rounds them, and so do we. */
function toPlain(value: unknown): unknown {
  if (typeof value !== 'object') return value
  const text = JSON.stringify(value, (_, item) => {
    if (typeof item === 'bigint') return Number(item)
    return item?.constructor?.name === 'NumericValue' ? Number(item.string) : item
  })
  return JSON.parse(text)
}

/** Puts a stream together to the output that Converse would have given. */
export class ConverseFold {
  readonly #content: Block[] = []
  /** By `contentBlockIndex`, until a block is said to be over. */
  readonly #open = new Map<unknown, Block>()
  #rest: Block = {}

  /** Stop reason and usage are both there: nothing is left to come, in whichever order they came. */
  get done(): boolean {
    return this.#rest.stopReason !== undefined && this.#rest.usage !== undefined
  }

  /** Returns text to hand on, if any. */
  event(event: StreamEvent): string | undefined {
    const { contentBlockStart, contentBlockDelta, contentBlockStop, ...last }: Block = event
    if (contentBlockDelta) return this.#extend(contentBlockDelta)
    if (contentBlockStart) this.#start(contentBlockStart)
    else if (contentBlockStop) this.#open.delete(contentBlockStop.contentBlockIndex)
    else this.#rest = { ...this.#rest, ...last.messageStop, ...last.metadata }
    return undefined
  }

  /** `$metadata` is the answer's. */
  reply($metadata: unknown): ModelReply {
    return toReply({ ...this.#rest, output: { message: { content: this.#content } }, $metadata })
  }

  #start({ start, contentBlockIndex }: Block): Block {
    const { toolUse, toolResult } = start ?? {}
    const block: Block = {
      ...(toolUse && { toolUse: { ...toolUse, input: '' } }),
      ...(toolResult && { toolResult: { ...toolResult, content: [] } }),
    }
    this.#content.push(block)
    this.#open.set(contentBlockIndex, block)
    return block
  }

  #extend({ delta, contentBlockIndex }: Block): string | undefined {
    const { text, toolUse, toolResult, reasoningContent, citation } = delta
    // Text comes without a start.
    const block = this.#open.get(contentBlockIndex) ?? this.#start({ contentBlockIndex })
    if (toolUse) block.toolUse.input = longer(block.toolUse.input, toolUse.input)
    if (toolResult) block.toolResult.content.push(...toolResult)
    if (reasoningContent) grow(block, reasoningContent)
    if (citation) {
      const before = block.citationsContent?.citations ?? []
      block.citationsContent = { citations: [...before, citation] }
    }
    if (text === undefined) return undefined
    if (block.toolUse) throw new TypeError('text in a tool call')
    block.text = (block.text ?? '') + wire.string(text)
    return text
  }
}

function longer(before: string, piece: unknown): string {
  const text = before + wire.string(piece)
  if (text.length > wire.caps.input) throw new Garbled('sent a tool call of more than 1 MiB')
  return text
}

function grow(block: Block, { text = '', signature = '', redactedContent }: Block): void {
  const before = block.reasoningContent ?? {}
  if (redactedContent !== undefined) {
    const pieces = [toBytes(before.redactedContent ?? ''), toBytes(redactedContent)]
    block.reasoningContent = { redactedContent: Buffer.concat(pieces) }
    return
  }
  const thought = (before.reasoningText?.text ?? '') + text
  const signed = (before.reasoningText?.signature ?? '') + signature
  block.reasoningContent = {
    reasoningText: { text: thought, ...(signed && { signature: signed }) },
  }
}
