// OpenAI's Chat Completions, and the many servers that speak it (vLLM, llama.cpp, LM Studio, OpenRouter, gateways): our
// words to a body. What comes back is read by chat-reply.ts; HTTP is wire.ts's. Caching is automatic there.
// https://platform.openai.com/docs/api-reference/chat

import { createHash } from 'node:crypto'
import { ChatFold, type Kept, whole } from './chat-reply.ts'
import { configError, errorWords, ProviderError, unsupportedFile } from './errors.ts'
import { Last, Memory } from './history.ts'
import type { Message, ModelRequest, Part, ToolResult, ToolSpec } from './provider.ts'
import { inputObject } from './reply.ts'
import * as wire from './wire.ts'

/** Where servers differ. The defaults are right for OpenAI and for most others. */
export interface ChatOptions {
  /**
   * Default: `max_completion_tokens` at OpenAI itself and for models named like its reasoning ones (they refuse the
   * old word), else `max_tokens` (which is all that most other servers know).
   */
  maxTokensField?: 'max_completion_tokens' | 'max_tokens'
  /** Default `system`, which OpenAI turns into `developer` where that is meant. `user`: for models that refuse both. */
  systemRole?: 'system' | 'developer' | 'user'
  /** Ask for token counts in streams (`stream_options`). Default true; false for servers that refuse the field. */
  includeUsage?: boolean
  /** Give reasoning back to the server it came from: DeepSeek, Kimi and OpenRouter want it. Default true. */
  sendReasoning?: boolean
  /** Call ids of nine letters and digits, as Mistral demands. Default: if host or model is named like one of theirs. */
  shortCallIds?: boolean
  /** Helps requests with the same beginning to reach the same cache. */
  promptCacheKey?: string
  /** Fields of the body as the API names them, e.g. `{ reasoning_effort: 'low' }`. */
  extra?: Record<string, unknown>
}

export interface OpenAIOptions extends wire.HttpOptions, ChatOptions {
  model: string
  /**
   * Default `OPENAI_API_KEY`, whatever the `baseUrl`; `''` sends none, which only api.openai.com refuses. A function
   * is asked for every request.
   */
  apiKey?: string | (() => string | Promise<string>)
  /** Up to `/v1`, as the SDKs take it. Default `OPENAI_BASE_URL`, else https://api.openai.com/v1. */
  baseUrl?: string
  /** OTel's `gen_ai.provider.name`, e.g. `deepseek`. Default `openai`. */
  name?: string
}

export function openai(options: OpenAIOptions): wire.HttpProvider {
  const { model, name = 'openai', apiKey = process.env.OPENAI_API_KEY?.trim() } = options
  const base = options.baseUrl || process.env.OPENAI_BASE_URL || 'https://api.openai.com/v1'
  const [path = '', query] = base.split(/(\?.*)/s)
  const root = path.replace(/\/+$/, '').replace(/\/chat\/completions$/, '')
  const url = `${root}/chat/completions${query ?? ''}`
  const host = URL.canParse(url) ? new URL(url).hostname : ''
  const isOfficial = /(^|\.)api\.openai\.com$/.test(host)
  if (!apiKey && isOfficial) throw configError(name, 'pass apiKey or set OPENAI_API_KEY')
  const maxTokensField =
    options.maxTokensField ?? (isOfficial ? 'max_completion_tokens' : tokensField(model))
  const isMistral = /mistral\.ai|(mis|mix|minis|devs|codes|magis|pix)tral/i.test(`${host} ${model}`)
  const shortCallIds = options.shortCallIds ?? isMistral
  const chat = { ...options, name, vendor: `${name}@${host}`, maxTokensField, shortCallIds }
  const isKey = typeof apiKey === 'string' && apiKey !== ''
  const fixed: Record<string, string> = isKey ? { authorization: `Bearer ${apiKey.trim()}` } : {}
  const headers = typeof apiKey === 'function' ? () => bearer(name, apiKey) : fixed
  return wire.httpProvider({ ...chatWire(chat), url: () => url, headers }, options)
}

/** A function that fails is a failure of the provider, as a refused key is. */
export async function bearer(
  provider: string,
  token: () => string | Promise<string>,
): Promise<{ authorization: string }> {
  try {
    return { authorization: `Bearer ${await token()}` }
  } catch (cause) {
    throw new ProviderError('provider_auth', `${provider}: got no token`, { provider, cause })
  }
}

/** `vendor` tags reasoning and signatures: only where they came from do they go back to. */
type Chat = ChatOptions & { name: string; model: string; vendor: string }

/** All of a `Wire` but where to post and as whom. */
export function chatWire(chat: Chat): Omit<wire.Wire, 'url' | 'headers'> {
  const { name, model, extra, promptCacheKey, includeUsage = true } = chat
  const history = new Memory((message: Message) => toMessages(message, chat))
  const offered = new Memory(toTool, undefined, 1)
  const said = new Last()
  const { systemRole: role = 'system' } = chat

  function withSystem(system: ModelRequest['system'], messages: Message[]) {
    let text = ''
    for (const block of system) text += text && block.text ? `\n\n${block.text}` : block.text
    if (text === '') return history.of(messages)
    if (role !== 'user' || messages[0]?.role !== 'user')
      return [said.of([{ role, content: text }]), ...history.of(messages)]
    // One message: the templates of models without this role want users and assistants to alternate.
    const [first, ...rest] = messages
    return history.of([{ role, parts: [{ type: 'text', text }, ...first.parts] }, ...rest])
  }

  return {
    name,
    model,
    format: 'sse',
    // What stays the same comes first.
    render(request, stream) {
      const { system, messages, tools, toolChoice = 'auto', maxTokens, temperature } = request
      const body: Partial<ChatBody> = { model, ...extra }
      if (tools.length) body.tools = offered.of(tools) as ReturnType<typeof toTool>
      body.messages = withSystem(system, messages) as ChatMessage[]
      if (tools.length && toolChoice !== 'auto') body.tool_choice = toToolChoice(toolChoice)
      if (maxTokens !== undefined) body[chat.maxTokensField ?? tokensField(model)] = maxTokens
      if (temperature !== undefined) body.temperature = temperature
      if (promptCacheKey) body.prompt_cache_key = promptCacheKey
      if (stream) body.stream = true
      if (stream && includeUsage) body.stream_options = { include_usage: true }
      return body
    },
    fold: (answer) => new ChatFold(answer, chat.vendor),
    forget: ({ messages }) => history.forget(messages),
    parse: (json, answer) => whole(json, answer, chat.vendor),
    // Azure's word for a prompt it refuses, which under status 200 would look like something passing.
    failure: (body) => (errorWords(body).code === 'content_filter' ? { retryable: false } : {}),
  }
}

/** OpenAI's reasoning models answer 400 to `max_tokens`, many other servers to `max_completion_tokens`. */
export function tokensField(model: string): 'max_completion_tokens' | 'max_tokens' {
  return /(^|\/)(o\d|gpt-([5-9]|\d\d))/.test(model) ? 'max_completion_tokens' : 'max_tokens'
}

// ---- What is sent ------------------------------------------------------------------------------------------------

/** The body, but for what `extra` adds. */
export type ChatBody = {
  model: string
  tools?: ReturnType<typeof toTool>
  messages: ChatMessage[]
  tool_choice?: ReturnType<typeof toToolChoice>
  max_completion_tokens?: number
  max_tokens?: number
  temperature?: number
  prompt_cache_key?: string
  stream?: true
  stream_options?: { include_usage: true }
}

type Text = { type: 'text'; text: string }
type UserContent =
  | Text
  | { type: 'image_url'; image_url: { url: string } }
  | { type: 'input_audio'; input_audio: { data: string; format: 'wav' | 'mp3' } }
  | { type: 'file'; file: { filename: string; file_data: string } }
type ChatCall = { id: string; type: 'function'; function: { name: string; arguments: string } }
type ChatMessage =
  | { role: 'system' | 'developer'; content: string }
  | { role: 'user'; content: string | UserContent[] }
  | { role: 'assistant'; content: string | null | Text[]; tool_calls?: ChatCall[] }
  | { role: 'tool'; tool_call_id: string; content: string }

function toTool({ name, description, input }: ToolSpec) {
  // OpenAI refuses an object schema without `properties`.
  const parameters = { properties: {}, ...input }
  return [{ type: 'function' as const, function: { name, description, parameters } }]
}

function toToolChoice(choice: 'none' | { name: string }) {
  return choice === 'none' ? choice : { type: 'function' as const, function: { name: choice.name } }
}

function toMessages(message: Message, chat: Chat): ChatMessage[] {
  if (message.role === 'user') {
    const [first, second] = message.parts
    if (first?.type === 'text' && !second) return [{ role: 'user', content: first.text }]
    const content = message.parts.flatMap((part) => toUserContent(part, chat.name))
    const texts = content.filter((piece) => piece.type === 'text')
    // Text alone goes as a string: many servers take no list.
    if (texts.length < content.length) return [{ role: 'user', content }]
    return [{ role: 'user', content: texts.map((piece) => piece.text).join('\n\n') }]
  }
  const toId = chat.shortCallIds ? shortId : undefined
  const calls: ChatCall[] = []
  let text = ''
  let kept: NonNullable<Kept['message']> = {}
  let beside: Kept['call'] = {}
  for (const part of message.parts) {
    if (part.type === 'text') text += part.text
    if (part.type === 'file') throw unsupportedFile(chat.name, 'text in an answer', part)
    if (part.type === 'opaque' && part.provider === chat.vendor) {
      const { message: fields, call = {} } = Object(part.data) as Kept
      if (chat.sendReasoning !== false) kept = { ...kept, ...fields }
      beside = call
    }
    if (part.type !== 'tool_call') continue
    // A name that a model made up must not make servers refuse the rest of the talk.
    const name = part.name.replace(/[^\w-]/g, '_').slice(0, 64) || 'unknown'
    const called = { name, arguments: JSON.stringify(inputObject(part.input)) }
    calls.push({ ...beside, id: toId?.(part.id) ?? part.id, type: 'function', function: called })
    beside = {}
  }
  const { content: thinking, ...fields } = kept
  const content = thinking
    ? [...thinking, ...(text ? [{ type: 'text', text }] : [])]
    : text || (calls.length ? null : '')
  const turn: ChatMessage = { ...fields, role: 'assistant', content }
  if (calls.length) turn.tool_calls = calls
  const turns: ChatMessage[] = [turn]
  for (const result of message.results) {
    turns.push(toResult(result, toId?.(result.callId) ?? result.callId))
  }
  return turns
}

/** This wire has no flag for a failure: the text says it. */
function toResult({ outcome, content }: ToolResult, id: string): ChatMessage {
  const mark = outcome === 'error' ? 'Error: ' : `Error (${outcome}): `
  return { role: 'tool', tool_call_id: id, content: outcome === 'ok' ? content : mark + content }
}

function toUserContent(part: Part, provider: string): UserContent[] {
  if (part.type === 'text') return [{ type: 'text', text: part.text }]
  if (part.type !== 'file') return []
  const { mediaType, data, name } = part
  const url = `data:${mediaType};base64,${data}`
  if (/^image\/(png|jpeg|gif|webp)$/.test(mediaType)) {
    return [{ type: 'image_url', image_url: { url } }]
  }
  if (mediaType === 'application/pdf') {
    return [{ type: 'file', file: { filename: name ?? 'document.pdf', file_data: url } }]
  }
  if (/^audio\/(x-)?(wav|mpeg|mp3)$/.test(mediaType)) {
    const format = mediaType.endsWith('wav') ? 'wav' : 'mp3'
    return [{ type: 'input_audio', input_audio: { data, format } }]
  }
  if (mediaType.startsWith('text/')) {
    const text = Buffer.from(data, 'base64').toString('utf8')
    return [{ type: 'text', text: name ? `${name}:\n${text}` : text }]
  }
  const takes = "PNG, JPEG, GIF, WebP, PDF, WAV, MP3 and text in a user's message"
  throw unsupportedFile(provider, takes, part)
}

/** The same nine characters for the same id, in the call and in its result. */
function shortId(id: string): string {
  return createHash('sha256').update(id).digest('base64').replace(/\W/g, '').slice(0, 9)
}
