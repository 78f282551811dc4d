// Anthropic's wire: the shared table, and what only this wire does. The official SDK reads the same bytes.

import { anthropic } from '../../src/providers/anthropic.ts'
import { conformance, type Read, type ReadTurn, type Said, type WireUnderTest } from './table.ts'

// biome-ignore lint/suspicious/noExplicitAny: the vendor's JSON
type Json = any

export function sse(...events: Json[]): Buffer[] {
  return events.map((event) =>
    Buffer.from(`event: ${event.type}\ndata: ${JSON.stringify(event)}\n\n`),
  )
}

const reasons = {
  stop: 'end_turn',
  length: 'max_tokens',
  tool_call: 'tool_use',
  content_filter: 'refusal',
}

function usageOf({ usage }: Said): Json {
  return {
    input_tokens: usage.inputTokens - usage.cacheReadTokens - usage.cacheWriteTokens,
    cache_read_input_tokens: usage.cacheReadTokens,
    cache_creation_input_tokens: usage.cacheWriteTokens,
    output_tokens: usage.outputTokens,
  }
}

function messageOf(said: Said, content: Json[]): Json {
  return {
    id: 'msg_1',
    type: 'message',
    role: 'assistant',
    model: 'claude-test',
    content,
    stop_reason: reasons[said.finish],
    stop_sequence: null,
    usage: usageOf(said),
  }
}

function parsed(args: string[]): Json {
  try {
    return JSON.parse(args.join(''))
  } catch {
    return {} // a whole answer has an object for its input, whatever the model wrote
  }
}

export const wire: WireUnderTest = {
  name: 'anthropic',
  make: ({ url, key, ...options }) =>
    anthropic({ model: 'claude-test', apiKey: key, baseUrl: url, ...options }),
  whole(said) {
    const content = said.parts.map((part) => {
      if ('text' in part) return { type: 'text', text: part.text.join('') }
      if ('opaque' in part) return part.opaque
      return { type: 'tool_use', id: part.id, name: part.call, input: parsed(part.args) }
    })
    return { type: 'application/json', body: JSON.stringify(messageOf(said, content)) }
  },
  events(said) {
    const { stop_reason, stop_sequence, usage, ...start } = messageOf(said, [])
    const blocks = said.parts.flatMap((part, index) => {
      const block = (content_block: Json, deltas: Json[]) => [
        { type: 'content_block_start', index, content_block },
        ...deltas.map((delta) => ({ type: 'content_block_delta', index, delta })),
        { type: 'content_block_stop', index },
      ]
      if ('text' in part) {
        const deltas = part.text.map((text) => ({ type: 'text_delta', text }))
        return block({ type: 'text', text: '' }, deltas)
      }
      if ('opaque' in part) {
        const { type, thinking, signature, ...fixed } = part.opaque as Json
        if (type !== 'thinking') return block(part.opaque, [])
        return block({ type, thinking: '', signature: '', ...fixed }, [
          { type: 'thinking_delta', thinking: thinking.slice(0, 3) },
          { type: 'thinking_delta', thinking: thinking.slice(3) },
          { type: 'signature_delta', signature },
        ])
      }
      const deltas = part.args.map((partial_json) => ({ type: 'input_json_delta', partial_json }))
      return block({ type: 'tool_use', id: part.id, name: part.call, input: {} }, deltas)
    })
    return {
      type: 'text/event-stream; charset=utf-8',
      events: sse(
        {
          type: 'message_start',
          message: {
            ...start,
            stop_reason: null,
            stop_sequence,
            usage: { ...usage, output_tokens: 1 },
          },
        },
        { type: 'ping' },
        ...blocks,
        { type: 'message_delta', delta: { stop_reason, stop_sequence }, usage },
        { type: 'message_stop' },
      ),
    }
  },
  read: (body) => read(body as Json),
  failure: (_, message) => ({
    body: JSON.stringify({ type: 'error', error: { type: 'some_error', message } }),
    headers: { 'request-id': 'req_1' },
  }),
  errorEvent: (message) =>
    sse({ type: 'error', error: { type: 'overloaded_error', message } })[0] as Buffer,
  ids: true,
  opaques: [
    { type: 'thinking', thinking: 'Pods first. 🎉', signature: 'c2ln+/=' },
    { type: 'thinking', thinking: '', signature: 'only' },
    { type: 'redacted_thinking', data: 'ZW5j' },
    { type: 'kind_to_come', anything: [1, { a: null }] },
  ].map((data) => ({
    said: { opaque: data },
    part: { type: 'opaque', provider: 'anthropic', data },
  })),
  marksErrors: true,
  media: [
    'image/png',
    'image/jpeg',
    'image/gif',
    'image/webp',
    'application/pdf',
    'text/plain',
    'text/csv',
  ],
}

function read(body: Json): Read {
  const turns: ReadTurn[] = body.messages.map(({ role, content }: Json) => {
    const of = (type: string) => content.filter((block: Json) => block.type === type)
    const known = ['text', 'image', 'document', 'tool_use', 'tool_result']
    return {
      role,
      text: of('text')
        .map((block: Json) => block.text)
        .join('\n'),
      calls: of('tool_use').map(({ id, name, input }: Json) => ({ id, name, input })),
      results: of('tool_result').map((block: Json) => ({
        id: block.tool_use_id,
        content: block.content,
        isError: block.is_error === true,
      })),
      opaque: content.filter((block: Json) => !known.includes(block.type)),
      files: of('image').length + of('document').length,
    }
  })
  const { tool_choice: choice } = body
  return {
    system: (body.system ?? []).map((block: Json) => block.text).join('\n'),
    turns,
    tools: (body.tools ?? []).map(({ name, description, input_schema }: Json) => ({
      name,
      description,
      input: input_schema,
    })),
    ...(choice ? { toolChoice: choice.type === 'tool' ? { name: choice.name } : choice.type } : {}),
    maxTokens: body.max_tokens,
    temperature: body.temperature,
  }
}

conformance(wire)
