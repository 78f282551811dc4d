// Our messages and tools as Anthropic's blocks. Pure; loads nothing, sends nothing.
// https://docs.claude.com/en/api/messages

import { unsupportedFile } from './errors.ts'
import type { Message, Part, ToolSpec } from './provider.ts'
import { inputObject } from './reply.ts'

export const name = 'anthropic'

// biome-ignore lint/suspicious/noExplicitAny: the vendor's JSON
export type Block = Record<string, any>
export type Turn = { role: 'user' | 'assistant'; content: Block[] }

export function toTool({ name, description, input }: ToolSpec): Block[] {
  return [{ name, description, input_schema: input }]
}

/** The turn and, as a user turn that is joined to the next, all results of its calls. */
export function toTurns(message: Message): Turn[] {
  const content: Block[] = []
  let isEmpty = true
  let before: Part | undefined
  for (const part of message.parts) {
    const block = toBlock(part, message, before)
    before = part
    if (!block) continue
    content.push(block)
    // A turn that was cut in the middle of thinking holds nothing else, and the API refuses it.
    if (block.type !== 'thinking' && block.type !== 'redacted_thinking') isEmpty = false
  }
  const turns: Turn[] = isEmpty ? [] : [{ role: message.role, content }]
  if (message.role === 'user' || message.results.length === 0) return turns
  const results = message.results.map(({ callId, outcome, content }) => {
    const result = { type: 'tool_result', tool_use_id: callId, content }
    return outcome === 'ok' ? result : { ...result, is_error: true }
  })
  turns.push({ role: 'user', content: results })
  return turns
}

/** Nothing for what is not to be sent. */
function toBlock(part: Part, message: Message, before: Part | undefined): Block | undefined {
  // The API refuses blank texts.
  if (part.type === 'text') return part.text.trim() ? { type: 'text', text: part.text } : undefined
  if (part.type === 'file') return toFile(part, message)
  const isOurs = part.type === 'opaque' && part.provider === name && !callerOf(part)
  if (part.type === 'opaque') return isOurs ? (part.data as Block) : undefined
  const { id, name: called } = part
  const use: Block = { type: 'tool_use', id, name: called, input: inputObject(part.input) }
  const caller = callerOf(before)
  return caller ? { ...use, ...caller } : use
}

/** Who asked for a call, when it was code at Anthropic's: kept in an opaque part of its own before the call. */
function callerOf(part: Part | undefined): { caller: unknown } | undefined {
  if (part?.type !== 'opaque' || part.provider !== name) return undefined
  const { type, caller } = part.data as Block
  return type === undefined && caller ? { caller } : undefined
}

function toFile(part: Part & { type: 'file' }, { role }: Message): Block {
  const { mediaType, data } = part
  const source = { type: 'base64', media_type: mediaType, data }
  const title = part.name && { title: part.name }
  if (role === 'user') {
    if (/^image\/(png|jpeg|gif|webp)$/.test(mediaType)) return { type: 'image', source }
    if (mediaType === 'application/pdf') return { type: 'document', source, ...title }
    if (mediaType.startsWith('text/')) {
      const text = Buffer.from(data, 'base64').toString('utf8')
      const plain = { type: 'text', media_type: 'text/plain', data: text }
      return { type: 'document', source: plain, ...title }
    }
  }
  throw unsupportedFile(name, "PNG, JPEG, GIF, WebP, PDF and text in a user's message", part)
}

/** The point goes on the last block that may carry one: thinking may not. */
export function marked(blocks: Block[], point: Block | undefined): Block[] {
  const at = point ? blocks.findLastIndex(({ type }) => !/thinking$/.test(type)) : -1
  return at < 0 ? blocks : blocks.with(at, { ...blocks[at], ...point })
}
