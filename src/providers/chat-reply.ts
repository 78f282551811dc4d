// What a Chat Completions server answers, whole or streamed, as a reply of ours; shared by openai.ts and azure.ts. Takes
// what OpenAI documents and what the servers that imitate it really send. Knows no request and no HTTP (wire.ts).
// https://platform.openai.com/docs/api-reference/chat-streaming

import { truncated } from './errors.ts'
import type { FinishReason, ModelReply, Part, Usage } from './provider.ts'
import type { Place } from './repeats.ts'
import { append, string, toolInput, toReply } from './reply.ts'
import type { Answer, Fold } from './wire.ts'

/** What an opaque part of ours holds: fields of the message, or of the call that the next part is. */
export type Kept = { message?: Json; call?: Json }

/** A body of an answer that was not streamed. */
export function whole(json: Json, answer: Answer, vendor: string): ModelReply {
  if (!json.choices?.length) throw answer.refuse(json)
  const reader = new ChatFold(answer, vendor, true)
  reader.event(json, '')
  return reader.end(true)
}

// biome-ignore lint/suspicious/noExplicitAny: the vendor's JSON
type Json = Record<string, any>

/** `beside`: what has to go back with a call, as Gemini's signature at gateways to it. */
type Call = { index: unknown; id: string; name: string; args: string; beside: Json | undefined }

const reasons = new Map<unknown, FinishReason>([
  ['length', 'length'],
  ['max_tokens', 'length'],
  ['model_length', 'length'],
  ['content_filter', 'content_filter'],
])

/** Reasons that end no reply: the server gave up (DeepSeek; vLLM and SGLang; OpenRouter and Mistral). */
const gaveUp = /^(insufficient_system_resource|abort|error)$/

/**
 * Puts one choice together, from the chunks of a stream or from a body, which reads like one large chunk (`isWhole`).
 * `vendor`: what opaque parts are tagged with.
 */
export class ChatFold implements Fold {
  done = false
  readonly places = placesOf
  readonly #answer: Answer
  readonly #vendor: string
  readonly #isWhole: boolean
  readonly #calls: Call[] = []
  #kept: Json | undefined
  #text = ''
  #refusal = ''
  #reason: string | undefined
  #usage: Json = {}
  #last: Json = {}

  constructor(answer: Answer, vendor: string, isWhole = false) {
    this.#answer = answer
    this.#vendor = vendor
    this.#isWhole = isWhole
  }

  event(chunk: Json | '[DONE]', name: string): string | undefined {
    if (chunk === '[DONE]') {
      this.done = true
      return undefined
    }
    // With n > 1 choices interleave. Some servers leave the index out.
    const choice = chunk.choices?.find(isFirst)
    const isError = name === 'error' || chunk.object === 'error'
    const error = chunk.error || choice?.error || (isError && chunk)
    if (error) throw this.#answer.refuse({ error })
    // Each count is the sum so far: the last one stands. Groq and Kimi have places of their own for it.
    this.#usage = chunk.usage ?? chunk.x_groq?.usage ?? choice?.usage ?? this.#usage
    if (!choice) return undefined
    this.#last = chunk
    this.#reason = choice.finish_reason || this.#reason
    const delta = this.#isWhole ? choice.message : choice.delta
    return delta ? this.#take(delta) : ''
  }

  end(framed: boolean): ModelReply {
    // Some servers never send `[DONE]`: then HTTP must say that nothing is missing.
    const isOver = this.#isWhole || (this.#reason && (this.done || framed))
    if (!isOver) throw truncated(this.#answer)
    return this.#reply()
  }

  #take(delta: Json): string {
    const { content, refusal, reasoning_content, reasoning, tool_calls } = delta
    let said = refusal ? string(refusal) : ''
    this.#refusal += said
    if (!Array.isArray(content)) said += string(content ?? '')
    else {
      // Mistral's: thinking and text in one list
      const thinking = content.filter(({ type }) => type === 'thinking')
      if (thinking.length) this.#keep('content', thinking)
      for (const piece of content) if (piece.type === 'text') said += string(piece.text)
    }
    this.#text += said
    // An empty one counts: DeepSeek refuses a call that comes back without.
    if (typeof reasoning_content === 'string') this.#extend('reasoning_content', reasoning_content)
    if (typeof reasoning === 'string') this.#extend('reasoning', reasoning)
    if (delta.reasoning_details?.length) this.#keep('reasoning_details', delta.reasoning_details)
    if (delta.thinking_blocks?.length) this.#keep('thinking_blocks', delta.thinking_blocks)
    if (delta.extra_content) this.#kept = { ...this.#kept, extra_content: delta.extra_content }
    if (!tool_calls) return said
    for (const call of tool_calls) {
      const isNew = (call.index ?? undefined) === undefined && tool_calls.length > 1
      this.#takeCall(call, this.#isWhole || isNew)
    }
    return said
  }

  #extend(field: string, piece: string): void {
    this.#kept ??= {}
    this.#kept[field] = (this.#kept[field] ?? '') + piece
  }

  #keep(field: string, blocks: Json[]): void {
    this.#kept ??= {}
    this.#kept[field] = this.#isWhole ? blocks : joinBlocks(this.#kept[field], blocks)
  }

  #takeCall(delta: Json, isNew: boolean): void {
    const { name, arguments: piece } = delta.function ?? {}
    const next: Call = {
      index: delta.index ?? undefined,
      id: String(delta.id ?? ''),
      name: string(name ?? ''),
      args: typeof piece === 'string' ? piece : piece ? JSON.stringify(piece) : '',
      beside: undefined,
    }
    const { extra_content, provider_specific_fields } = delta
    if (extra_content) next.beside = { extra_content }
    if (provider_specific_fields) next.beside = { ...next.beside, provider_specific_fields }
    const before = this.#calls.findLast(
      ({ index }) => next.index === undefined || index === next.index,
    )
    if (!before || isNew || isAnother(before, next)) {
      next.args = append(this.#answer, '', next.args)
      this.#calls.push(next)
      return
    }
    before.id = next.id || before.id
    before.name = next.name || before.name
    before.args = append(this.#answer, before.args, next.args)
    if (next.beside) before.beside = { ...before.beside, ...next.beside }
  }

  #reply(): ModelReply {
    const answer = this.#answer
    const refusal = this.#refusal
    const finishReason = this.#reason
    if (finishReason && gaveUp.test(finishReason)) {
      throw answer.fail('provider_error', `gave up: ${finishReason}`, { retryable: true })
    }
    const finish = reasons.get(finishReason) ?? (refusal ? 'content_filter' : 'stop')
    const isCut = finish !== 'stop'
    const parts: Part[] = this.#kept ? [this.#opaque({ message: this.#kept })] : []
    if (this.#text) parts.push({ type: 'text', text: this.#text })
    for (const { id, name, args, beside } of this.#calls) {
      if (isCut && !name) continue
      if (!name) throw answer.fail('provider_invalid', 'sent a tool call without a name')
      if (beside) parts.push(this.#opaque({ call: beside }))
      parts.push({ type: 'tool_call', id, name, input: toolInput(args, isCut) })
    }
    const { id, model } = this.#last
    const { requestId } = answer
    const usage = this.#usage
    const raw = { finishReason, ...(refusal && { refusal }), requestId, id, model, usage }
    return toReply({ parts, finishReason: finish, usage: toUsage(usage), raw })
  }

  #opaque(data: Kept): Part {
    return { type: 'opaque', provider: this.#vendor, data }
  }
}

/** Text, or a piece of a call's arguments; beside it OpenAI's padding of varying length. */
function placesOf(chunk: Json): Place[] {
  const { choices, obfuscation } = chunk
  const delta = choices?.length === 1 ? choices[0].delta : undefined
  if (!delta || delta.reasoning_details || delta.thinking_blocks || delta.extra_content) return []
  const [call, another] = delta.tool_calls ?? []
  const isPiece = call && !another && !call.id && !delta.content
  const called = isPiece && !call.extra_content && !call.provider_specific_fields && call.function
  const places: Place[] = []
  if (typeof called?.arguments === 'string') places.push([called, 'arguments', true])
  else if (!call && typeof delta.content === 'string') places.push([delta, 'content'])
  if (places.length && typeof obfuscation === 'string') places.push([chunk, 'obfuscation'])
  return places
}

function isFirst({ index }: Json): boolean {
  return !index
}

/**
 * Whether `next` begins a call where index and id do not tell. In doubt it does not: what is joined by mistake is no
 * JSON, and never runs.
 */
function isAnother(call: Call, next: Call): boolean {
  if (!next.name || !call.name || (next.id && next.id === call.id)) return false
  // No index, or a second id at the same one: Gemini's gateway gives all calls the index 0.
  const isFree = next.index === undefined || (next.id && call.id)
  const isOther = next.name !== call.name
  if (isFree && isOther) return true
  const isWhole = call.args.trim() !== '' && typeof toolInput(call.args) === 'object'
  return Boolean((isFree || isOther) && next.args && isWhole)
}

/** Appends streamed blocks of reasoning; a piece of the last block goes into that, until that has its signature. */
function joinBlocks(list: Json[] = [], blocks: Json[]): Json[] {
  for (const block of blocks) {
    const last = list.at(-1)
    const isPiece = last?.type === block.type && last?.index === block.index
    if (!last || !isPiece || last.signature || block.data) {
      list.push({ ...block })
      continue
    }
    for (const [key, value] of Object.entries(block)) {
      if (Array.isArray(value)) last[key] = joinBlocks(last[key], value)
      else if (/^(text|summary|thinking)$/.test(key)) last[key] = (last[key] ?? '') + (value ?? '')
      else last[key] = value ?? last[key]
    }
  }
  return list
}

/** `prompt_tokens` holds what was read from the cache, for which DeepSeek and Kimi have words of their own. */
function toUsage(usage: Json): Usage {
  const { prompt_tokens, completion_tokens, total_tokens, prompt_tokens_details: cached } = usage
  const { reasoning_tokens = 0 } = usage.completion_tokens_details ?? {}
  // xAI leaves reasoning out of the completion; the total tells.
  const isApart = total_tokens === prompt_tokens + completion_tokens + reasoning_tokens
  const { prompt_cache_hit_tokens, cached_tokens } = usage
  return {
    inputTokens: prompt_tokens ?? 0,
    outputTokens: (completion_tokens ?? 0) + (isApart ? reasoning_tokens : 0),
    cacheReadTokens: cached?.cached_tokens ?? prompt_cache_hit_tokens ?? cached_tokens ?? 0,
    cacheWriteTokens: cached?.cache_write_tokens ?? 0,
  }
}
