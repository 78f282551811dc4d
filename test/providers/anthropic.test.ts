// Anthropic's wire: the shared table, and what only this wire does. The official SDK reads the same bytes.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import Anthropic from '@anthropic-ai/sdk'
import type { MessageCreateParams } from '@anthropic-ai/sdk/resources/messages'
import { LLMock } from '@copilotkit/aimock'
import { anthropic } from '../../src/providers/anthropic.ts'
import type { Message, ModelReply, Part } from '../../src/providers/provider.ts'
import { approvalConversation } from './chat.ts'
import { type Answering, type FakeAnswer, type FakeVendor, fakeVendor } from './fake.ts'
import {
  conformance,
  instant,
  outcomeOf,
  type Read,
  type ReadTurn,
  request,
  type Said,
  user,
  type WireUnderTest,
} from './table.ts'

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

// ---- What only this wire does

function against(claim: string, answering: Answering, run: (vendor: FakeVendor) => Promise<void>) {
  test(`anthropic ${claim}`, async () => {
    const vendor = await fakeVendor(answering)
    try {
      await run(vendor)
    } finally {
      await vendor.close()
    }
  })
}

const made = (vendor: FakeVendor, options = {}) =>
  anthropic({ model: 'claude-test', apiKey: 'test-key', baseUrl: vendor.url, ...options })

function streamOf(...events: Json[]): FakeAnswer {
  return { headers: { 'content-type': 'text/event-stream' }, pieces: sse(...events) }
}

const start = {
  type: 'message_start',
  message: {
    id: 'msg_1',
    type: 'message',
    role: 'assistant',
    model: 'claude-test',
    content: [],
    stop_reason: null,
    stop_sequence: null,
    usage: { input_tokens: 2049, output_tokens: 1 },
  },
}
const stop = { type: 'message_stop' }
const block = (index: number, content_block: Json, ...deltas: Json[]): Json[] => [
  { type: 'content_block_start', index, content_block },
  ...deltas.map((delta) => ({ type: 'content_block_delta', index, delta })),
  { type: 'content_block_stop', index },
]
const ending = (
  stop_reason: string,
  more: Json = {},
  usage: Json = { output_tokens: 9 },
): Json => ({
  type: 'message_delta',
  delta: { stop_reason, stop_sequence: null, ...more },
  usage,
})
const said = (text: string) => [{ type: 'text_delta', text }]
const searching = { type: 'server_tool_use', id: 'srvtoolu_1', name: 'web_search', input: {} }
const found = {
  type: 'web_search_tool_result',
  tool_use_id: 'srvtoolu_1',
  content: [{ url: 'u', encrypted_content: 'E==' }],
}

/** Streams of shapes that real ones have, each with what is worth knowing about it. */
const recordings: Record<string, Json[]> = {
  'text in several blocks with citations between': [
    start,
    ...block(0, { type: 'text', text: '' }, ...said('The sky '), ...said('is ')),
    ...block(
      1,
      { type: 'text', text: '', citations: [] },
      { type: 'citations_delta', citation: { type: 'char_location', cited_text: 'blue' } },
      ...said('blue'),
    ),
    ...block(2, { type: 'text', text: '' }, ...said('.')),
    ending('end_turn'),
    stop,
  ],
  'a tool of the server, whose input streams like a call': [
    start,
    ...block(0, { type: 'text', text: '' }, ...said('I search. ')),
    ...block(
      1,
      searching,
      { type: 'input_json_delta', partial_json: '' },
      { type: 'input_json_delta', partial_json: '{"query"' },
      { type: 'input_json_delta', partial_json: ':"x"}' },
    ),
    { type: 'ping' },
    ...block(2, found),
    ...block(3, { type: 'text', text: '' }, ...said('Found.')),
    ending(
      'end_turn',
      {},
      {
        input_tokens: 13520,
        cache_read_input_tokens: 7,
        cache_creation_input_tokens: null,
        output_tokens: 40,
      },
    ),
    stop,
  ],
  'empty thinking with a signature, redacted thinking, and pings anywhere': [
    { type: 'ping' },
    start,
    {
      type: 'content_block_start',
      index: 0,
      content_block: { type: 'thinking', thinking: '', signature: '' },
    },
    { type: 'ping' },
    {
      type: 'content_block_delta',
      index: 0,
      delta: { type: 'signature_delta', signature: 'EqQB/+=' },
    },
    { type: 'content_block_stop', index: 0 },
    ...block(1, { type: 'redacted_thinking', data: 'EmwK' }),
    ...block(
      2,
      { type: 'tool_use', id: 'toolu_1', name: 'list_pods', input: {} },
      { type: 'input_json_delta', partial_json: '' },
    ),
    ...block(
      3,
      { type: 'tool_use', id: 'toolu_2', name: 'get_node', input: {} },
      { type: 'input_json_delta', partial_json: '' },
      { type: 'input_json_delta', partial_json: '{"name": "n' },
      { type: 'input_json_delta', partial_json: '1"}' },
    ),
    ending('tool_use'),
    stop,
  ],
  'nothing at all': [start, ending('end_turn'), stop],
  'a refusal without content': [
    start,
    ending('refusal', { stop_details: { type: 'refusal', category: 'cyber', explanation: 'No.' } }),
    stop,
  ],
  'a stop sequence': [
    start,
    ...block(0, { type: 'text', text: '' }, ...said('a')),
    ending('stop_sequence', { stop_sequence: 'END' }),
    stop,
  ],
  'a full context window': [
    start,
    ...block(0, { type: 'text', text: '' }, ...said('a')),
    ending('model_context_window_exceeded'),
    stop,
  ],
}

/** What the SDK put together, in our words. */
function inOurWords(
  message: Json,
): Pick<ModelReply, 'parts' | 'usage'> & { calls: Json[]; text: string; stop: string } {
  const { input_tokens, output_tokens, cache_read_input_tokens, cache_creation_input_tokens } =
    message.usage
  return {
    text: message.content
      .filter((b: Json) => b.type === 'text')
      .map((b: Json) => b.text)
      .join(''),
    calls: message.content
      .filter((b: Json) => b.type === 'tool_use')
      .map(({ id, name, input }: Json) => ({ id, name, input })),
    parts: message.content.filter((b: Json) => b.type !== 'text' && b.type !== 'tool_use'),
    stop: message.stop_reason,
    usage: {
      inputTokens:
        input_tokens + (cache_read_input_tokens ?? 0) + (cache_creation_input_tokens ?? 0),
      outputTokens: output_tokens,
      cacheReadTokens: cache_read_input_tokens ?? 0,
      cacheWriteTokens: cache_creation_input_tokens ?? 0,
    },
  }
}

function ourWords(reply: ModelReply): ReturnType<typeof inOurWords> {
  return {
    text: reply.parts.map((part) => (part.type === 'text' ? part.text : '')).join(''),
    calls: reply.parts.flatMap((part) =>
      part.type === 'tool_call' ? [{ id: part.id, name: part.name, input: part.input }] : [],
    ),
    parts: reply.parts.flatMap((part) => (part.type === 'opaque' ? [part.data as Part] : [])),
    stop: (reply.raw as Json).finishReason,
    usage: reply.usage,
  }
}

for (const [what, events] of Object.entries(recordings)) {
  against(`reads what the official SDK reads: ${what}`, streamOf(...events), async (vendor) => {
    const sdk = new Anthropic({ apiKey: 'test-key', baseURL: vendor.url, maxRetries: 0 })
    const params: MessageCreateParams = {
      model: 'claude-test',
      max_tokens: 9,
      messages: [{ role: 'user', content: 'go' }],
    }
    const streamed = await sdk.messages.stream(params).finalMessage()
    const { reply, text } = await outcomeOf(made(vendor))
    assert.ok(reply)
    assert.deepEqual(ourWords(reply), inOurWords(streamed))
    assert.equal(text, ourWords(reply).text)

    vendor.answer({
      headers: { 'content-type': 'application/json' },
      pieces: [JSON.stringify(streamed)],
    })
    const whole = await sdk.messages.create(params)
    const { reply: ours } = await outcomeOf(made(vendor), { stream: false })
    assert.deepEqual(ourWords(ours as ModelReply), inOurWords(whole))
  })
}

test('anthropic renders a body of the type that the official SDK asks for', () => {
  const provider = anthropic({
    model: 'claude-test',
    apiKey: 'test-key',
    extra: { thinking: { type: 'enabled', budget_tokens: 2048 } },
    serverTools: [{ type: 'web_search_20250305', name: 'web_search' }],
  })
  const schema = { type: 'object' as const, properties: { name: { type: 'string' } } }
  const body = provider.render(
    {
      system: [{ text: 'Static.', cache: true }, { text: '' }, { text: 'Dynamic.' }],
      tools: [{ name: 'get_node', description: 'Gets a node', input: schema }],
      toolChoice: { name: 'get_node' },
      cache: { ttl: '1h' },
      maxTokens: 4000,
      messages: [
        {
          role: 'user',
          parts: [
            { type: 'text', text: 'see' },
            { type: 'file', mediaType: 'image/png', data: 'aGk=' },
            { type: 'file', mediaType: 'application/pdf', data: 'aGk=', name: 'a.pdf' },
            { type: 'file', mediaType: 'text/csv', data: 'w7YsMQ==', name: 'a.csv' },
          ],
        },
        {
          role: 'assistant',
          parts: [
            {
              type: 'opaque',
              provider: 'anthropic',
              data: { type: 'thinking', thinking: 't', signature: 's' },
            },
            { type: 'text', text: ' \n' },
            {
              type: 'tool_call',
              id: 'tc_aaaaaaaaaaaaaaaa',
              name: 'get_node',
              input: { name: 'n' },
            },
          ],
          results: [
            { callId: 'tc_aaaaaaaaaaaaaaaa', outcome: 'unknown', content: 'Outcome unknown' },
          ],
        },
        user('well?'),
      ],
    },
    { stream: true },
  )
  const cache_control = { type: 'ephemeral', ttl: '1h' } as const
  const expected = {
    model: 'claude-test',
    max_tokens: 4000,
    thinking: { type: 'enabled', budget_tokens: 2048 },
    stream: true,
    tools: [
      { type: 'web_search_20250305', name: 'web_search' },
      { name: 'get_node', description: 'Gets a node', input_schema: schema, cache_control },
    ],
    tool_choice: { type: 'tool', name: 'get_node' },
    system: [
      { type: 'text', text: 'Static.', cache_control },
      { type: 'text', text: 'Dynamic.' },
    ],
    messages: [
      {
        role: 'user',
        content: [
          { type: 'text', text: 'see' },
          { type: 'image', source: { type: 'base64', media_type: 'image/png', data: 'aGk=' } },
          {
            type: 'document',
            source: { type: 'base64', media_type: 'application/pdf', data: 'aGk=' },
            title: 'a.pdf',
          },
          {
            type: 'document',
            source: { type: 'text', media_type: 'text/plain', data: 'ö,1' },
            title: 'a.csv',
          },
        ],
      },
      {
        role: 'assistant',
        content: [
          { type: 'thinking', thinking: 't', signature: 's' },
          { type: 'tool_use', id: 'tc_aaaaaaaaaaaaaaaa', name: 'get_node', input: { name: 'n' } },
        ],
      },
      {
        role: 'user',
        content: [
          {
            type: 'tool_result',
            tool_use_id: 'tc_aaaaaaaaaaaaaaaa',
            content: 'Outcome unknown',
            is_error: true,
          },
          { type: 'text', text: 'well?', cache_control },
        ],
      },
    ],
  } satisfies MessageCreateParams
  assert.deepEqual(body, expected)
})

test('anthropic sets at most four cache points, and none where none is asked for', () => {
  const provider = anthropic({ model: 'm', apiKey: 'test-key' })
  const points = (body: unknown) => JSON.stringify(body).split('"cache_control"').length - 1
  const static5 = Array.from({ length: 5 }, (_, i) => ({ text: `part ${i}`, cache: true }))
  assert.equal(points(provider.render(request({ system: static5, cache: true }))), 4)
  assert.equal(points(provider.render(request({ cache: true }))), 3)
  assert.equal(points(provider.render(request())), 0)
  const thought: Message = {
    role: 'assistant',
    parts: [
      {
        type: 'opaque',
        provider: 'anthropic',
        data: { type: 'thinking', thinking: 't', signature: 's' },
      },
    ],
    results: [],
  }
  const body = JSON.stringify(provider.render(request({ messages: [thought], cache: true })))
  assert.ok(!/thinking[^}]*cache_control/.test(body))
})

against(
  'sends a paused turn back until it ends, and gives one reply',
  (_, n) =>
    n === 0
      ? streamOf(
          start,
          ...block(0, { type: 'text', text: '' }, ...said('Look')),
          ...block(1, searching, { type: 'input_json_delta', partial_json: '{"query":"x"}' }),
          ending('pause_turn'),
          stop,
        )
      : streamOf(
          start,
          ...block(0, found),
          ...block(1, { type: 'text', text: '' }, ...said('ed.')),
          ending('end_turn'),
          stop,
        ),
  async (vendor) => {
    const { reply, text } = await outcomeOf(made(vendor))
    assert.equal(text, 'Looked.')
    assert.deepEqual(vendor.asked[1]?.body.messages[1], {
      role: 'assistant',
      content: [
        { type: 'text', text: 'Look' },
        { ...searching, input: { query: 'x' } },
      ],
    })
    assert.deepEqual(reply?.parts, [
      { type: 'text', text: 'Look' },
      { type: 'opaque', provider: 'anthropic', data: { ...searching, input: { query: 'x' } } },
      { type: 'opaque', provider: 'anthropic', data: found },
      { type: 'text', text: 'ed.' },
    ])
    assert.equal(reply?.usage.inputTokens, 2 * 2049)
    assert.equal(reply?.usage.outputTokens, 18)
  },
)

against(
  'hands a turn back that stays paused',
  streamOf(start, ending('pause_turn'), stop),
  async (vendor) => {
    const { reply } = await outcomeOf(made(vendor))
    assert.equal(reply?.finishReason, 'stop')
    assert.equal(vendor.asked.length, 11)
  },
)

against(
  'remembers who called a tool when that was code of the server',
  streamOf(
    start,
    ...block(0, {
      type: 'tool_use',
      id: 'toolu_1',
      name: 'get_node',
      input: {},
      caller: { type: 'code_execution_20250825', tool_id: 'srvtoolu_1' },
    }),
    ...block(1, {
      type: 'tool_use',
      id: 'toolu_2',
      name: 'get_node',
      input: {},
      caller: { type: 'direct' },
    }),
    ending('tool_use'),
    stop,
  ),
  async (vendor) => {
    const { reply } = await outcomeOf(made(vendor))
    const parts = (reply?.parts ?? []).map((part) =>
      part.type === 'tool_call' ? { ...part, id: 'tc_bbbbbbbbbbbbbbbb' } : part,
    )
    const messages: Message[] = [user('go'), { role: 'assistant', parts, results: [] }]
    assert.deepEqual((made(vendor).render(request({ messages })) as Json).messages[1].content, [
      {
        type: 'tool_use',
        id: 'tc_bbbbbbbbbbbbbbbb',
        name: 'get_node',
        input: {},
        caller: { type: 'code_execution_20250825', tool_id: 'srvtoolu_1' },
      },
      { type: 'tool_use', id: 'tc_bbbbbbbbbbbbbbbb', name: 'get_node', input: {} },
    ])
  },
)

against(
  'says why it was refused',
  streamOf(...(recordings['a refusal without content'] ?? [])),
  async (vendor) => {
    const { reply } = await outcomeOf(made(vendor))
    assert.equal(reply?.finishReason, 'content_filter')
    assert.equal((reply?.raw as Json)?.stop_details.explanation, 'No.')
  },
)

against(
  'gives a call no input when its block never ended',
  streamOf(
    start,
    {
      type: 'content_block_start',
      index: 0,
      content_block: { type: 'tool_use', id: 't', name: 'get_node', input: {} },
    },
    {
      type: 'content_block_delta',
      index: 0,
      delta: { type: 'input_json_delta', partial_json: '{"name":' },
    },
    ending('max_tokens'),
    stop,
  ),
  async (vendor) => {
    const { reply } = await outcomeOf(made(vendor))
    assert.deepEqual(reply?.parts, [
      { type: 'tool_call', id: 't', name: 'get_node', input: '{"name":' },
    ])
    assert.equal(reply?.finishReason, 'length')
  },
)

against(
  'takes an error for an error under any status',
  { pieces: ['{"error":{"type":"overloaded_error","message":"busy"}}'] },
  async (vendor) => {
    const { error } = await outcomeOf(made(vendor, { retries: 0 }), { stream: false })
    assert.equal(error?.code, 'provider_overloaded')
  },
)

against(
  'refuses a stream that begins twice instead of losing what came before',
  streamOf(
    start,
    ...block(0, { type: 'text', text: '' }, ...said('lost')),
    start,
    ending('end_turn'),
    stop,
  ),
  async (vendor) => {
    const { error, text } = await outcomeOf(made(vendor))
    assert.deepEqual([error?.code, text], ['provider_invalid', 'lost'])
  },
)

against(
  'counts no tokens where the usage is nonsense or missing',
  streamOf(
    { ...start, message: { ...start.message, usage: undefined } },
    ending('end_turn', {}, { output_tokens: '9', cache_read_input_tokens: -3 }),
    stop,
  ),
  async (vendor) => {
    const { reply } = await outcomeOf(made(vendor))
    assert.deepEqual(reply?.usage, {
      inputTokens: 0,
      outputTokens: 0,
      cacheReadTokens: 0,
      cacheWriteTokens: 0,
    })
  },
)

for (const [type, code, asked] of [
  ['overloaded_error', 'provider_overloaded', 3],
  ['rate_limit_error', 'provider_overloaded', 3],
  ['api_error', 'provider_error', 3],
  ['invalid_request_error', 'provider_error', 1],
  ['authentication_error', 'provider_auth', 1],
  ['billing_error', 'provider_config', 1],
] as const) {
  against(
    `knows ${type} in a stream`,
    streamOf({ type: 'error', error: { type, message: 'so it is' } }),
    async (vendor) => {
      const { error } = await outcomeOf(made(vendor, { clock: instant() }))
      assert.equal(error?.code, code)
      assert.match(error?.message ?? '', /so it is/)
      assert.equal(vendor.asked.length, asked)
    },
  )
}

against(
  'knows a prompt that is too long, and gives the id of the request',
  {
    status: 400,
    headers: { 'content-type': 'application/json', 'request-id': 'req_42' },
    pieces: [
      JSON.stringify({
        type: 'error',
        error: {
          type: 'invalid_request_error',
          message: 'prompt is too long: 210000 tokens > 200000 maximum',
        },
      }),
    ],
  },
  async (vendor) => {
    const { error } = await outcomeOf(made(vendor))
    assert.equal(error?.code, 'context_too_long')
    assert.equal(error?.requestId, 'req_42')
    assert.equal(vendor.asked.length, 1)
  },
)

against('sends key, version and betas in headers', { status: 401 }, async (vendor) => {
  const headers = { 'X-Api-Key': 'other-key', 'X-Team': 't' }
  await outcomeOf(made(vendor, { betas: ['a', 'b'], headers }))
  const [asked] = vendor.asked
  assert.equal(asked?.path, '/v1/messages')
  assert.equal(asked?.headers['anthropic-version'], '2023-06-01')
  assert.equal(asked?.headers['anthropic-beta'], 'a,b')
  assert.equal(asked?.headers['x-api-key'], 'other-key')
  assert.equal(asked?.headers['x-team'], 't')
})

test('anthropic reads its variables when it is called, not when it is imported', async () => {
  const before = { ...process.env }
  const vendor = await fakeVendor({ status: 401, pieces: ['{}'] })
  try {
    delete process.env.ANTHROPIC_BASE_URL
    delete process.env.ANTHROPIC_API_KEY
    assert.throws(() => anthropic({ model: 'm' }), /ANTHROPIC_API_KEY/)
    process.env.ANTHROPIC_API_KEY = 'test-key-from-env\n'
    process.env.ANTHROPIC_BASE_URL = `${vendor.url}/proxy/v1/`
    await outcomeOf(anthropic({ model: 'm' }))
    assert.equal(vendor.asked[0]?.path, '/proxy/v1/messages')
    assert.equal(vendor.asked[0]?.headers['x-api-key'], 'test-key-from-env')
  } finally {
    process.env = before
    await vendor.close()
  }
})

for (const stream of [false, true]) {
  test(`anthropic takes a whole conversation with tools through aimock, ${stream ? 'streamed' : 'whole'}`, async () => {
    const mock = new LLMock({ port: 0 })
    mock.on(
      { userMessage: /pods/, hasToolResult: false },
      {
        content: 'I look.',
        toolCalls: [
          { name: 'list_pods', arguments: '{"namespace":"prod"}', id: 'toolu_1' },
          { name: 'get_node', arguments: '{}', id: 'toolu_2' },
        ],
        reasoning: 'Pods first.',
        reasoningSignature: 'c2ln',
      },
    )
    mock.on({ userMessage: /pods/, hasToolResult: true }, { content: 'Three pods run.' })
    await mock.start()
    try {
      const provider = anthropic({
        model: 'claude-sonnet-4-5',
        apiKey: 'test-key',
        baseUrl: mock.url,
        extra: { thinking: { type: 'enabled', budget_tokens: 1024 } },
      })
      const messages: Message[] = [user('which pods?')]
      const ran: string[] = []
      let reply: ModelReply
      for (;;) {
        const outcome = await outcomeOf(provider, { stream, request: request({ messages }) })
        assert.ok(outcome.reply, String(outcome.error))
        reply = outcome.reply
        const calls = reply.parts.filter((part) => part.type === 'tool_call')
        const results = calls.map(({ id, name }) => ({
          callId: id,
          outcome: 'ok' as const,
          content: `${name} done`,
        }))
        ran.push(...calls.map(({ name, input }) => `${name} ${JSON.stringify(input)}`))
        messages.push({ role: 'assistant', parts: reply.parts, results })
        if (calls.length === 0) break
      }
      assert.deepEqual(ran, ['list_pods {"namespace":"prod"}', 'get_node {}'])
      assert.deepEqual(
        reply.parts.filter((part) => part.type === 'text'),
        [{ type: 'text', text: 'Three pods run.' }],
      )
      assert.equal(mock.getRequests().length, 2)
    } finally {
      await mock.stop()
    }
  })
}

test('an approval goes its whole way against an independent mock, and again from a cassette of it', async () => {
  await approvalConversation((baseUrl) =>
    anthropic({ model: 'claude-sonnet-4-5', apiKey: 'test-key', baseUrl }),
  )
})
