// Converse's answer, whole or streamed, to our words. Pure; reads no bytes.
// https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html#API_runtime_Converse_ResponseSyntax
// Reasoning, and tools that run at Bedrock's, become opaque parts, to be sent back unchanged and in place.

import { Broken, Garbled } from './bedrock-handler.ts'
import { type Block, provider } from './bedrock-request.ts'
import { ProviderError } from './errors.ts'
import { caps } from './limits.ts'
import type { FinishReason, ModelReply, Part } from './provider.ts'
import { toReply as replyOf, string, toolInput, toUsage } from './reply.ts'

const reasons: Record<string, FinishReason> = {
  max_tokens: 'length',
  model_context_window_exceeded: 'length',
  guardrail_intervened: 'content_filter',
  content_filtered: 'content_filter',
  refusal: 'content_filter',
}

/** From Converse's output, or a stream put together to the same shape, with calls' input as text. */
export function toReply({ output, $metadata, p: _padding, ...rest }: Block): ModelReply {
  const content: Block[] | undefined = output?.message?.content
  if (!content || rest.stopReason === undefined) throw new Broken('ended its answer early')
  if (/^malformed_/.test(string(rest.stopReason))) {
    const what = `${provider}: the model wrote what is no answer (${rest.stopReason})`
    throw new ProviderError('provider_invalid', what, { provider, retryable: true })
  }
  const finishReason = reasons[rest.stopReason] ?? 'stop'
  const parts = content.flatMap((block, i, { length }) =>
    toParts(block, finishReason === 'length' && i === length - 1),
  )
  const { inputTokens, outputTokens, cacheReadInputTokens, cacheWriteInputTokens } =
    rest.usage ?? {}
  const usage = toUsage(inputTokens, outputTokens, cacheReadInputTokens, cacheWriteInputTokens)
  const citations = content.flatMap((block) => block.citationsContent?.citations ?? [])
  const raw = { finishReason: rest.stopReason, requestId: $metadata?.requestId, ...rest }
  const cited = citations.length ? { ...raw, citations } : raw
  return replyOf({ parts, finishReason, usage, raw: cited })
}

/** `cut`: the length ran out in this block. Kinds to come are left out: the SDK could not send them back. */
function toParts(block: Block, cut: boolean): Part[] {
  const { text, toolUse, reasoningContent, toolResult, citationsContent } = block
  if (text !== undefined) return [{ type: 'text', text: string(text) }]
  // With citations the answer's words are in here, and nowhere else.
  if (citationsContent)
    return (citationsContent.content ?? []).flatMap((b: Block) => toParts(b, cut))
  if (toolUse) {
    const input = toolInput(toPlain(toolUse.input), cut)
    if (toolUse.type === 'server_tool_use') return [toOpaque({ toolUse: { ...toolUse, input } })]
    return [{ type: 'tool_call', id: toolUse.toolUseId, name: string(toolUse.name), input }]
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

/**
 * The SDK reads numbers that no double holds as objects of its own, where JSON.parse, and so a stream, rounds them; and
 * it loses what is under `__proto__`, but not that the key is there, for which the input is not to be run.
 */
function toPlain(value: unknown): unknown {
  if (typeof value !== 'object') return value
  const text = JSON.stringify(value, (key, item) => {
    if (key === '__proto__') return item ?? null
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
  event(event: object): string | undefined {
    const { contentBlockStart, contentBlockDelta, contentBlockStop, ...last }: Block = event
    if (contentBlockDelta) return this.#extend(contentBlockDelta)
    if (contentBlockStart) this.#start(contentBlockStart)
    else if (contentBlockStop) this.#open.delete(contentBlockStop.contentBlockIndex)
    else this.#rest = { ...this.#rest, ...last.messageStop, ...last.metadata }
    return undefined
  }

  /** `framed` false: only the last events can say that the stream is over. `$metadata` is the answer's. */
  reply(framed: boolean | undefined, $metadata: unknown): ModelReply {
    if (framed === false && !this.done) throw new Broken('ended its answer early')
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
    block.text = (block.text ?? '') + string(text)
    return text
  }
}

function longer(before: string, piece: unknown): string {
  const text = before + string(piece)
  if (text.length > caps.input) throw new Garbled('sent a tool call of more than 1 MiB')
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
