// Our words to the body of a Converse request. Pure; loads nothing, sends nothing.
// https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html#API_runtime_Converse_RequestBody

import { createHash } from 'node:crypto'
import { unsupportedFile } from './errors.ts'
import { alternating, instructions, Memory } from './history.ts'
import type { Message, ModelRequest, Part, ToolResult } from './provider.ts'
import { inputObject } from './reply.ts'

export const provider = 'aws.bedrock'

// biome-ignore lint/suspicious/noExplicitAny: the vendor's JSON
export type Block = Record<string, any>
type Turn = { role: 'user' | 'assistant'; content: Block[] }

/** Makes the body of a request as it is on the socket; the model is not in it but in the path. */
export function bodyMaker(model: string, extra: Block = {}): (request: ModelRequest) => Block {
  const { inferenceConfig, toolConfig, ...more } = extra
  const historyWith = {
    tools: new Memory((m: Message) => toTurns(m, model, true), alternating<Turn>),
    words: new Memory((m: Message) => toTurns(m, model, false), alternating<Turn>),
  }
  return (request) => {
    const { maxTokens, temperature, cache } = request
    const inference = {
      ...inferenceConfig,
      ...(maxTokens !== undefined && { maxTokens }),
      ...(temperature !== undefined && { temperature }),
    }
    const tools = toToolConfig(request, model, toolConfig)
    const system = instructions(request).flatMap(({ text, isPoint }) => {
      return isPoint ? [{ text }, cachePoint(request)] : [{ text }]
    })
    const history = historyWith[tools ? 'tools' : 'words']
    const point = cache && cachePoint(request)
    return {
      ...more,
      ...(tools && { toolConfig: tools }),
      ...(system.length && { system }),
      messages: history.of(withNames(request.messages), (turn) => marked(turn, model, point)),
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
  const input = inputObject(part.input)
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

type File = Part & { type: 'file' }

function typeOf(file: File): string {
  return file.mediaType.replace(/;.*/, '').trim().toLowerCase()
}

/** A document must not come without words of the same message. */
function toFile(part: File, { role, parts }: Message): Block[] {
  const type = typeOf(part)
  const image = /^image\/(png|jpeg|gif|webp)$/.exec(type)?.[1]
  const source = { bytes: part.data }
  if (role === 'user' && image) return [{ image: { format: image, source } }]
  if (role === 'user' && Object.hasOwn(documents, type)) {
    const hasWords = parts.some((other) => other.type === 'text' && other.text.trim())
    const words = hasWords ? [] : [{ text: 'See the attached document.' }]
    return [...words, { document: { format: documents[type], name: nameOf(part), source } }]
  }
  const takes = `image/(png, jpeg, gif, webp), ${Object.keys(documents).join(', ')}`
  throw unsupportedFile(provider, `${takes} in a user's message`, part)
}

/** In Bedrock's alphabet for names of documents. */
function nameOf({ name = '' }: File): string {
  const bare = name.replace(/\.\w{1,5}$/, '').replace(/[^A-Za-z0-9()[\]-]+/g, ' ')
  return bare.trim().slice(0, 180).trim() || 'document'
}

/** No two documents of a request may have the same name; a message that needs none other stays the object it is. */
function withNames(messages: readonly Message[]): Message[] {
  const names = new Set<string>()
  const renamed = (part: Part): Part => {
    if (part.type !== 'file' || !Object.hasOwn(documents, typeOf(part))) return part
    const bare = nameOf(part)
    let name = bare
    for (let n = 2; names.has(name.toLowerCase()); n++) name = `${bare.slice(0, 170)} (${n})`
    names.add(name.toLowerCase())
    return name === bare ? part : { ...part, name }
  }
  return messages.map((message) => {
    const parts = message.parts.map(renamed)
    return parts.every((part, i) => part === message.parts[i]) ? message : { ...message, parts }
  })
}

function marked(last: Turn, model: string, point: Block | false | undefined): Turn {
  if (!point || last.role !== 'user') return last
  if (isNova(model) && last.content.some((block) => block.toolResult)) return last
  return { ...last, content: [...last.content, point] }
}

/** The same as the SDK's types have it: with bytes where the socket has base64. */
export function toInput(body: Block): Block {
  const bytes = (base64: string) => Buffer.from(base64, 'base64')
  const messages = body.messages.map(({ role, content }: Turn) => {
    return { role, content: content.map(toBinary) }
  })
  return { ...body, messages }

  function toBinary(block: Block): Block {
    const { image, document, reasoningContent } = block
    if (image) return { image: { ...image, source: { bytes: bytes(image.source.bytes) } } }
    if (document) {
      return { document: { ...document, source: { bytes: bytes(document.source.bytes) } } }
    }
    if (!reasoningContent?.redactedContent) return block
    return { reasoningContent: { redactedContent: bytes(reasoningContent.redactedContent) } }
  }
}
