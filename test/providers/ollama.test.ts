// Ollama's wire: the shared table, and what only this wire does. The official client reads the same bytes.

import { ollama } from '../../src/providers/ollama.ts'
import { conformance, type Read, type ReadTurn, type Said, type WireUnderTest } from './table.ts'

// biome-ignore lint/suspicious/noExplicitAny: the vendor's JSON
type Json = any

const about = { model: 'qwen3', created_at: '2026-01-02T03:04:05.678Z' }
const reasons = {
  stop: 'stop',
  length: 'length',
  tool_call: 'stop',
  content_filter: 'content_filter',
}

function line(message: Json, more: Json = {}): Json {
  return { ...about, message: { role: 'assistant', content: '', ...message }, done: false, ...more }
}

function done({ finish, usage }: Said): Json {
  const { inputTokens: prompt_eval_count, outputTokens: eval_count } = usage
  const done_reason = reasons[finish]
  return { done: true, done_reason, total_duration: 9, prompt_eval_count, eval_count }
}

function toMessages(part: Said['parts'][number]): Json[] {
  if ('text' in part) return part.text.map((content) => ({ content }))
  if ('opaque' in part) {
    const { thinking } = part.opaque as Json
    return [{ thinking: thinking.slice(0, 3) }, { thinking: thinking.slice(3) }]
  }
  const json = part.args.join('').trim()
  const called = { name: part.call, ...(json === '' ? {} : { arguments: JSON.parse(json) }) }
  return [{ tool_calls: [{ ...(part.id ? { id: part.id } : {}), function: called }] }]
}

const wire: WireUnderTest = {
  name: 'ollama',
  make: ({ url, key, ...options }) =>
    ollama({ model: 'qwen3', apiKey: key, host: url, ...options }),
  whole(said) {
    const message: Json = {}
    for (const { content = '', thinking = '', tool_calls = [] } of said.parts.flatMap(toMessages)) {
      message.content = (message.content ?? '') + content
      if (thinking) message.thinking = (message.thinking ?? '') + thinking
      if (tool_calls.length) message.tool_calls = [...(message.tool_calls ?? []), ...tool_calls]
    }
    return { type: 'application/json', body: JSON.stringify(line(message, done(said))) }
  },
  events(said) {
    const lines = [
      ...said.parts.flatMap(toMessages).map((message) => line(message)),
      line({}, done(said)),
    ]
    const events = lines.map((event) => Buffer.from(`${JSON.stringify(event)}\n`))
    // A complete last line needs no newline.
    const end = events.pop() as Buffer
    return {
      type: 'application/x-ndjson',
      events: [...events, end.subarray(0, -1), end.subarray(-1)],
    }
  },
  optionalTail: 1,
  read: (body) => read(body as Json),
  failure: (_, message) => ({ body: JSON.stringify({ error: message }) }),
  errorEvent: (message) => Buffer.from(`${JSON.stringify({ error: message })}\n`),
  ids: true,
  opaques: [{ thinking: 'Pods first. 🎉' }].map((data) => ({
    said: { opaque: data },
    part: { type: 'opaque', provider: 'ollama', data },
  })),
  marksErrors: false,
  media: ['image/png', 'image/jpeg'],
  halfCall: undefined,
  choosesTools: false,
  countsCache: false,
}

function read(body: Json): Read {
  const turns: ReadTurn[] = []
  for (const message of body.messages) {
    const { role, content, images = [], thinking, tool_calls = [] } = message
    if (role === 'system') continue
    const ours = role === 'assistant' ? 'assistant' : 'user'
    if (turns.at(-1)?.role !== ours) {
      turns.push({ role: ours, text: '', calls: [], results: [], opaque: [], files: 0 })
    }
    const turn = turns.at(-1) as ReadTurn
    if (role === 'tool') {
      const { tool_name: name, tool_call_id: id } = message
      turn.results.push({ id, name, content, isError: false })
      continue
    }
    turn.text += turn.text ? `\n${content}` : content
    turn.files += images.length
    if (thinking) turn.opaque.push({ thinking })
    for (const { id, function: called } of tool_calls) {
      turn.calls.push({ id, name: called.name, input: called.arguments })
    }
  }
  const [first] = body.messages
  return {
    system: first.role === 'system' ? first.content.replace('\n\n', '\n') : '',
    turns,
    tools: (body.tools ?? []).map(({ function: { name, description, parameters } }: Json) => ({
      name,
      description,
      input: parameters,
    })),
    maxTokens: body.options?.num_predict,
    temperature: body.options?.temperature,
  }
}

conformance(wire)
