// Ollama over its own /api/chat: lines of JSON, arguments as objects, results under their tool's name. Knows the wire
// and nothing else. Caching is automatic and not reported; a tool cannot be forced, only left out.
// https://docs.ollama.com/api/chat  https://github.com/ollama/ollama/blob/main/api/types.go

import { configError, truncated, unsupportedFile } from './errors.ts'
import { Memory } from './history.ts'
import {
  type FinishReason,
  type Message,
  type ModelRequest,
  noUsage,
  type Part,
  type ToolSpec,
} from './provider.ts'
import { inputObject, string, toolInput, toReply } from './reply.ts'
import * as wire from './wire.ts'

export interface OllamaOptions extends wire.HttpOptions {
  /** As `ollama list` names it: `qwen3`, `gpt-oss:20b`. */
  model: string
  /** `host`, `host:port`, `:port` or a URL. Default: `OLLAMA_HOST`, else http://127.0.0.1:11434. */
  host?: string
  /** For a server that is guarded. Default: `OLLAMA_API_KEY`, read for every call, if the host is ollama.com. */
  apiKey?: string
  /**
   * Plain http to other hosts. Default true, as is normal for Ollama: what is asked travels in clear. Default false
   * with an `apiKey`.
   */
  allowHttp?: boolean
  /** Fields of the body as the API names them: `{ think: true, keep_alive: '10m', options: { num_ctx: 16384 } }`. */
  extra?: { options?: object; [field: string]: unknown }
}

export function ollama(options: OllamaOptions): wire.HttpProvider {
  const { model, extra } = options
  const server = address(options.host || process.env.OLLAMA_HOST || '127.0.0.1')
  const history = new Memory(toMessages)
  const described = new Memory(toTool, undefined, 1)

  const ollama: wire.Wire = {
    name: 'ollama',
    model,
    format: 'ndjson',
    url: () => `${server.origin}${server.pathname.replace(/\/+$/, '')}/api/chat`,
    headers: () => credentials(server, options.apiKey),
    render(request, stream) {
      const { system, messages, maxTokens, temperature } = request
      const instructions = system.flatMap(({ text }) => text || []).join('\n\n')
      const tools = offered(request)
      const settings = {
        ...extra?.options,
        ...(maxTokens === undefined ? {} : { num_predict: maxTokens }),
        ...(temperature === undefined ? {} : { temperature }),
      }
      return {
        model,
        ...extra,
        stream, // it is true where it is not said
        ...(tools.length ? { tools: described.of(tools) } : {}),
        messages: [
          ...(instructions ? [{ role: 'system', content: instructions }] : []),
          ...history.of(messages),
        ],
        ...(Object.keys(settings).length ? { options: settings } : {}),
      }
    },
    forget: ({ messages }) => history.forget(messages),
    fold: reading,
  }
  const allowHttp = options.allowHttp ?? options.apiKey === undefined
  return wire.httpProvider(ollama, { ...options, allowHttp })
}

/** Ollama's own reading of OLLAMA_HOST: port 11434 unless a scheme says otherwise; `0.0.0.0` is where a server listens. */
function address(host: string): URL {
  const named = host
    .replace(/^(?=:\d)/, '127.0.0.1')
    .replace(/(?<=^|\/)(0\.0\.0\.0|\[::\])/, '127.0.0.1')
  const hasScheme = named.includes('://')
  const text = hasScheme ? named : `http://${named}`
  if (!URL.canParse(text)) throw configError('ollama', 'host or OLLAMA_HOST is no address')
  const url = new URL(text)
  // URL takes port 80 for none: what was written decides.
  if (!hasScheme && !/:\d+(\/|$)/.test(named)) url.port = '11434'
  return url
}

function credentials(
  { protocol, hostname, username, password }: URL,
  apiKey: string | undefined,
): Record<string, string> {
  const isCloud = protocol === 'https:' && /^(.+\.)?ollama\.com$/.test(hostname)
  const key = apiKey ?? (isCloud ? process.env.OLLAMA_API_KEY : undefined)
  if (key) return { authorization: `Bearer ${key.trim()}` }
  if (!username) return {}
  const basic = `${decodeURIComponent(username)}:${decodeURIComponent(password)}`
  return { authorization: `Basic ${Buffer.from(basic).toString('base64')}` }
}

// ---- What is asked -----------------------------------------------------------------------------------------------

// biome-ignore lint/suspicious/noExplicitAny: the vendor's JSON
type Json = Record<string, any>

/** The wire has no tool choice: `none` offers none, a name that one alone. */
function offered({ tools, toolChoice }: ModelRequest): ToolSpec[] {
  if (typeof toolChoice === 'object') return tools.filter((tool) => tool.name === toolChoice.name)
  return toolChoice === 'none' ? [] : tools
}

function toTool({ name, description, input }: ToolSpec): Json[] {
  return [{ type: 'function', function: { name, description, parameters: kept(input) } }]
}

/** The server passes an `enum` on to the model and drops a `const`. */
function kept(schema: unknown): unknown {
  if (Array.isArray(schema)) return schema.map(kept)
  if (typeof schema !== 'object' || schema === null) return schema
  const entries = Object.entries(schema).map(([key, value]) => [key, kept(value)])
  const { const: only, ...out } = Object.fromEntries(entries)
  if (only === undefined) return out
  const isProperty = typeof only === 'object' && only !== null // one that is called `const`
  return isProperty ? { ...out, const: only } : { ...out, enum: [only] }
}

function toMessages(message: Message): Json[] {
  const { parts } = message
  const texts = parts.flatMap((part) => (part.type === 'text' ? part.text : []))
  if (message.role === 'user') {
    const images = parts.flatMap((part) => (part.type === 'file' ? toImage(part) : []))
    const said = { role: 'user', content: texts.join('\n'), ...(images.length ? { images } : {}) }
    return said.content || images.length ? [said] : []
  }
  const content = texts.join('')
  const thinking = parts.map(thinkingOf).join('')
  const calls = parts.filter((part) => part.type === 'tool_call')
  const tool_calls = calls.map(({ id, name, input }, index) => ({
    id,
    function: { index, name, arguments: inputObject(input) },
  }))
  const turn = {
    role: 'assistant',
    content,
    ...(thinking ? { thinking } : {}),
    ...(calls.length ? { tool_calls } : {}),
  }
  const results = calls.flatMap(({ id, name }): Json[] => {
    const result = message.results.find(({ callId }) => callId === id)
    if (!result) return []
    // This wire has no flag for a failure: the text says it.
    const { outcome } = result
    const mark = outcome === 'ok' ? '' : outcome === 'error' ? 'Error: ' : `Error (${outcome}): `
    return [{ role: 'tool', tool_name: name, tool_call_id: id, content: mark + result.content }]
  })
  return content || thinking || calls.length ? [turn, ...results] : []
}

function toImage(part: Part & { type: 'file' }): string {
  if (/^image\//.test(part.mediaType)) return part.data
  throw unsupportedFile('ollama', 'images', part)
}

function thinkingOf(part: Part): string {
  return part.type === 'opaque' && part.provider === 'ollama' ? (part.data as Json).thinking : ''
}

// ---- What is answered --------------------------------------------------------------------------------------------

const reasons: Record<string, FinishReason> = { length: 'length', content_filter: 'content_filter' }

function reading(answer: wire.Answer): wire.Fold {
  const parts: Part[] = []
  let last: Json = {}

  function think(piece: string): void {
    const before = parts.at(-1)
    const sofar = before && thinkingOf(before)
    if (sofar) parts.pop()
    parts.push({ type: 'opaque', provider: 'ollama', data: { thinking: (sofar ?? '') + piece } })
  }

  return {
    done: false,
    event(json) {
      if (json.error) throw answer.refuse(json)
      const { message = {}, ...about } = json
      const text = message.content ? string(message.content) : ''
      if (message.thinking) think(string(message.thinking))
      if (text) parts.push({ type: 'text', text })
      for (const { id = '', function: called } of message.tool_calls ?? []) {
        const input = toolInput(called.arguments)
        parts.push({ type: 'tool_call', id, name: string(called.name), input })
      }
      if (json.done) last = about
      this.done = json.done === true
      return text
    },
    end() {
      if (!this.done) throw truncated(answer)
      const { done_reason, prompt_eval_count, eval_count } = last
      // Absent where the prompt was cached: the wire does not say how long it was.
      const counted = { inputTokens: prompt_eval_count ?? 0, outputTokens: eval_count ?? 0 }
      const usage = { ...noUsage, ...counted }
      const finishReason = reasons[done_reason] ?? 'stop'
      return toReply({ parts, finishReason, usage, raw: { finishReason: done_reason, ...last } })
    },
  }
}
