// Ollama's wire: the shared table, and what only this wire does. The official client reads the same bytes.

import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { type ChatRequest, Ollama } from 'ollama'
import type { Dispatcher } from 'undici'
import { type OllamaOptions, ollama } from '../../src/providers/ollama.ts'
import type { Message, ModelReply, Part } from '../../src/providers/provider.ts'
import { approvalConversation } from './chat.ts'
import { type FakeAnswer, type FakeVendor, fakeVendor } from './fake.ts'
import {
  conformance,
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

// ---- What only this wire does

let vendor: FakeVendor
before(async () => {
  vendor = await fakeVendor()
})
after(() => vendor.close())

function make(options: Partial<OllamaOptions> = {}): ReturnType<typeof ollama> {
  return ollama({ model: 'qwen3', host: vendor.url, retries: 0, ...options })
}

function answer(...lines: Json[]): FakeAnswer {
  const pieces = lines.map((one) => `${JSON.stringify(one)}\n`)
  return { headers: { 'content-type': 'application/x-ndjson' }, pieces }
}

function json(body: Json, status = 200): FakeAnswer {
  const headers = { 'content-type': 'application/json; charset=utf-8' }
  return { status, headers, pieces: [JSON.stringify(body)], framing: 'length' }
}

const end = { done: true, done_reason: 'stop', prompt_eval_count: 12, eval_count: 5 }
const call = (name: string, args: Json, more: Json = {}) => ({
  tool_calls: [{ ...more, function: { name, arguments: args } }],
})

async function streamed(...lines: Json[]): Promise<{ reply: ModelReply; text: string }> {
  vendor.answer(answer(...lines))
  const { reply, error, text } = await outcomeOf(make())
  assert.equal(error, undefined)
  return { reply: reply as ModelReply, text }
}

test('a plain call says that it wants no stream, since the default is one', async () => {
  vendor.answer(json(line({ content: 'x' }, end)))
  await make().complete(request())
  assert.equal(vendor.asked.at(-1)?.body.stream, false)
  assert.equal(vendor.asked.at(-1)?.path, '/api/chat')
  await streamed(line({}, end))
  assert.equal(vendor.asked.at(-1)?.body.stream, true)
})

test('calls come before the end, one a line, with ids and without', async () => {
  const { reply } = await streamed(
    line(call('get', { n: 1 }, { id: 'call_1' })),
    line(call('get', { n: 2 })),
    line(call('get', { n: 3 }, { id: 'call_1', function: { index: 2 } })),
    line({}, end),
  )
  const calls = reply.parts.flatMap((part) => (part.type === 'tool_call' ? [part] : []))
  assert.deepEqual(
    calls.map(({ name, input }) => [name, input]),
    [1, 2, 3].map((n) => ['get', { n }]),
  )
  assert.equal(calls[0]?.id, 'call_1')
  assert.equal(new Set(calls.map(({ id }) => id)).size, 3)
  assert.equal(reply.finishReason, 'tool_call', 'although the reason is stop')
})

test('arguments are an object; the text of one is read, and anything else is left to be refused', async () => {
  for (const [args, input] of [
    [{ a: { b: [1] } }, { a: { b: [1] } }],
    ['{"a":1}', { a: 1 }],
    ['{"a":', '{"a":'],
    [[1], '[1]'],
    [null, {}],
  ] as [Json, Json][]) {
    const { reply } = await streamed(line(call('get', args)), line({}, end))
    assert.deepEqual(
      reply.parts.map((part) => part.type === 'tool_call' && part.input),
      [input],
    )
  }
})

test('thinking is opaque, in one piece, and goes back with its turn', async () => {
  const { reply, text } = await streamed(
    line({ thinking: 'The person' }),
    line({ thinking: ' wants 🎉.' }),
    line({ content: 'I look.' }),
    line(call('get', {}, { id: 'call_1' })),
    line({}, end),
  )
  assert.equal(text, 'I look.')
  const thinking = 'The person wants 🎉.'
  assert.deepEqual(reply.parts.slice(0, 2), [
    { type: 'opaque', provider: 'ollama', data: { thinking } },
    { type: 'text', text: 'I look.' },
  ])
  const parts: Part[] = JSON.parse(JSON.stringify(reply.parts))
  const results = [{ callId: 'call_1', outcome: 'ok' as const, content: 'done' }]
  const messages: Message[] = [user('go'), { role: 'assistant', parts, results }]
  const body = make().render(request({ system: [], messages })) as Json
  assert.deepEqual(body.messages.slice(1), [
    {
      role: 'assistant',
      content: 'I look.',
      thinking,
      tool_calls: [{ id: 'call_1', function: { index: 0, name: 'get', arguments: {} } }],
    },
    { role: 'tool', tool_name: 'get', tool_call_id: 'call_1', content: 'done' },
  ])
})

test('a prompt that was cached is not counted: nobody says how long it was', async () => {
  const { reply } = await streamed(
    line({ content: 'x' }, { done: true, done_reason: 'stop', eval_count: 3 }),
  )
  const { usage } = reply
  assert.deepEqual(usage, {
    inputTokens: 0,
    outputTokens: 3,
    cacheReadTokens: 0,
    cacheWriteTokens: 0,
  })
})

test('a reason that is unknown or absent is a stop, kept in raw', async () => {
  for (const done_reason of ['stop', 'unload', 'a_reason_to_come', undefined]) {
    const { reply } = await streamed(line({ content: 'x' }, { ...end, done_reason }))
    assert.equal(reply.finishReason, 'stop')
    assert.equal((reply.raw as Json).finishReason, done_reason)
  }
  const { reply } = await streamed(
    line(call('get', {})),
    line({}, { ...end, done_reason: 'length' }),
  )
  assert.equal(reply.finishReason, 'length')
})

test('text in the last record is text', async () => {
  const { reply, text } = await streamed(line({ content: 'a' }), line({ content: 'b' }, end))
  assert.equal(text, 'ab')
  assert.deepEqual(reply.parts, [{ type: 'text', text: 'ab' }])
})

test('an error is a bare string, with a status or in the middle of a stream', async () => {
  const words = 'model "qwen3" not found, try pulling it first'
  vendor.answer(json({ error: words }, 404))
  const { error } = await outcomeOf(make())
  assert.deepEqual([error?.code, error?.retryable], ['provider_config', false])
  assert.match(error?.message ?? '', /answered 404: model "qwen3" not found/)
  vendor.answer(answer(line({ content: 'par' }), { error: 'llama runner terminated' }))
  const broken = await outcomeOf(make({ retries: 2 }))
  assert.equal(broken.text, 'par')
  assert.equal(broken.error?.code, 'provider_error')
  assert.match(broken.error?.message ?? '', /broke off: llama runner terminated/)
})

test('tools are left out for the choice none, and all but one for a name: the wire has no tool choice', () => {
  const namesFor = (toolChoice: 'none' | 'auto' | { name: string }) =>
    (make().render(request({ toolChoice })) as Json).tools?.map((tool: Json) => tool.function.name)
  assert.equal(namesFor('none'), undefined)
  assert.deepEqual(namesFor({ name: 'get_node' }), ['get_node'])
  assert.deepEqual(namesFor('auto'), ['list_pods', 'get_node'])
})

test('results that are not ok say so in their text, in the order of the calls', () => {
  const outcomes = ['ok', 'error', 'rejected', 'unknown'] as const
  const parts = outcomes.map((name) => ({
    type: 'tool_call' as const,
    id: `id_${name}`,
    name,
    input: {},
  }))
  const results = outcomes
    .map((outcome) => ({ callId: `id_${outcome}`, outcome, content: 'x' }))
    .reverse()
  const messages: Message[] = [user('go'), { role: 'assistant', parts, results }]
  const { messages: sent } = make().render(request({ system: [], messages })) as Json
  assert.deepEqual(
    sent.slice(2).map((one: Json) => [one.role, one.tool_name, one.content]),
    [
      ['tool', 'ok', 'x'],
      ['tool', 'error', 'Error: x'],
      ['tool', 'rejected', 'Error (rejected): x'],
      ['tool', 'unknown', 'Error (unknown): x'],
    ],
  )
})

test('the body is a ChatRequest', () => {
  const expected = {
    model: 'qwen3',
    think: true,
    keep_alive: '10m',
    stream: false,
    tools: [
      {
        type: 'function',
        function: {
          name: 'get',
          description: 'Gets',
          parameters: { type: 'object', properties: { n: { type: 'number' } } },
        },
      },
    ],
    messages: [
      { role: 'system', content: 'Static.\n\nDynamic.' },
      { role: 'user', content: 'see\nthis', images: ['aGk='] },
      {
        role: 'assistant',
        content: '',
        tool_calls: [{ id: 'call_1', function: { index: 0, name: 'get', arguments: { n: 1 } } }],
      },
      { role: 'tool', tool_name: 'get', tool_call_id: 'call_1', content: 'done' },
      { role: 'user', content: 'and now?' },
    ],
    options: { num_ctx: 16384, num_predict: 9, temperature: 0 },
  }
  const typed: ChatRequest = expected
  const asked = request({
    system: [{ text: 'Static.', cache: true }, { text: '' }, { text: 'Dynamic.' }],
    tools: [
      {
        name: 'get',
        description: 'Gets',
        input: { type: 'object', properties: { n: { type: 'number' } } },
      },
    ],
    maxTokens: 9,
    temperature: 0,
    cache: true,
    messages: [
      {
        role: 'user',
        parts: [
          { type: 'text', text: 'see' },
          { type: 'file', mediaType: 'image/png', data: 'aGk=' },
          { type: 'text', text: 'this' },
        ],
      },
      {
        role: 'assistant',
        parts: [{ type: 'tool_call', id: 'call_1', name: 'get', input: { n: 1 } }],
        results: [{ callId: 'call_1', outcome: 'ok', content: 'done' }],
      },
      user('and now?'),
    ],
  })
  const extra = { think: true, keep_alive: '10m', options: { num_ctx: 16384 } }
  assert.deepEqual(make({ extra }).render(asked), typed)
})

test('a const in a schema is an enum of one: the server drops a const', () => {
  const input = (a: Json, b: Json) => ({
    type: 'object',
    properties: { unit: { anyOf: [a, b] }, const: { type: 'string' } },
  })
  const [c, f] = ['c', 'f'].map((only) => ({ type: 'string', const: only }))
  const [tool] = (
    make().render(
      request({ tools: [{ name: 'get', description: 'Gets', input: input(c, f) }] }),
    ) as Json
  ).tools
  const enums = ['c', 'f'].map((only) => ({ type: 'string', enum: [only] }))
  assert.deepEqual(tool.function.parameters, input(enums[0], enums[1]))
})

test('what is not set is not sent', () => {
  const sent = make().render(request({ system: [], tools: [] }))
  assert.deepEqual(sent, {
    model: 'qwen3',
    stream: false,
    messages: [{ role: 'user', content: 'go' }],
  })
})

test('a document has no place here, and the error says what has', async () => {
  const file: Part = { type: 'file', mediaType: 'application/pdf', data: 'aGk=' }
  const { error } = await outcomeOf(make(), {
    request: request({ messages: [{ role: 'user', parts: [file] }] }),
  })
  assert.equal(error?.code, 'unsupported_media_type')
  assert.match(error?.message ?? '', /ollama takes images; got application\/pdf/)
})

// ---- Where and as whom

async function whereTo(options: Partial<OllamaOptions>): Promise<string> {
  const seen: string[] = []
  const dispatch = (options: Dispatcher.DispatchOptions, handler: Dispatcher.DispatchHandler) => {
    const { authorization } = options.headers as Record<string, string>
    seen.push(`${options.origin}${options.path}${authorization ? ` ${authorization}` : ''}`)
    handler.onResponseError?.(
      undefined as unknown as Dispatcher.DispatchController,
      new Error('no'),
    )
    return true
  }
  const dispatcher = { dispatch } as unknown as Dispatcher
  await outcomeOf(ollama({ model: 'm', retries: 0, ...options, dispatcher }), { stream: false })
  return seen[0] ?? 'nowhere'
}

const hosts: [string, string][] = [
  ['10.0.0.7', 'http://10.0.0.7:11434'],
  ['gpu', 'http://gpu:11434'],
  ['gpu:8080', 'http://gpu:8080'],
  ['gpu:80', 'http://gpu'],
  [':8080', 'http://127.0.0.1:8080'],
  ['0.0.0.0', 'http://127.0.0.1:11434'],
  ['0.0.0.0:8080', 'http://127.0.0.1:8080'],
  ['http://0.0.0.0:8080', 'http://127.0.0.1:8080'],
  ['[::1]:8080', 'http://[::1]:8080'],
  ['[::]', 'http://127.0.0.1:11434'],
  ['http://gpu', 'http://gpu'],
  ['http://gpu:11434/', 'http://gpu:11434'],
  ['https://gpu.example', 'https://gpu.example'],
  ['https://gateway.example/ollama/', 'https://gateway.example/ollama'],
  ['gpu/ollama', 'http://gpu:11434/ollama'],
]
for (const [host, url] of hosts) {
  test(`the host ${host} is ${url}`, async () => {
    assert.equal(await whereTo({ host }), `${url}/api/chat`)
  })
}

test('a host that is none is refused without showing what may be a password', () => {
  for (const host of ['http://', 'ftp://gpu', 'http://me:secret@ho st']) {
    assert.throws(
      () => make({ host }),
      (error: Error & { code: string }) =>
        error.code === 'provider_config' && !error.message.includes('secret'),
      host,
    )
  }
})

test('OLLAMA_HOST and OLLAMA_API_KEY are read when called, and the key goes to ollama.com alone', async () => {
  const kept = { ...process.env }
  try {
    delete process.env.OLLAMA_HOST
    assert.equal(await whereTo({}), 'http://127.0.0.1:11434/api/chat')
    process.env.OLLAMA_HOST = 'gpu:8080'
    process.env.OLLAMA_API_KEY = 'test-key'
    assert.equal(await whereTo({}), 'http://gpu:8080/api/chat')
    assert.equal(await whereTo({ host: 'https://gpu' }), 'https://gpu/api/chat')
    assert.equal(await whereTo({ host: 'https://notollama.com' }), 'https://notollama.com/api/chat')
    assert.equal(await whereTo({ host: 'http://ollama.com' }), 'http://ollama.com/api/chat')
    process.env.OLLAMA_HOST = 'https://ollama.com'
    assert.equal(await whereTo({}), 'https://ollama.com/api/chat Bearer test-key')
  } finally {
    process.env = kept
  }
})

test('a key of one’s own goes where one says, but in clear only if one says that too', async () => {
  const apiKey = 'test-key'
  assert.equal(
    await whereTo({ host: 'https://gpu', apiKey }),
    'https://gpu/api/chat Bearer test-key',
  )
  assert.throws(() => make({ host: 'http://gpu', apiKey }), { code: 'provider_config' })
  const clear = await whereTo({ host: 'http://gpu:1', apiKey, allowHttp: true })
  assert.equal(clear, 'http://gpu:1/api/chat Bearer test-key')
  const basic = Buffer.from('me:p@ss').toString('base64')
  assert.equal(
    await whereTo({ host: 'https://me:p%40ss@gpu' }),
    `https://gpu/api/chat Basic ${basic}`,
  )
})

// ---- The official client over the same bytes

const recordings: Record<string, Json[]> = {
  'text in pieces': [line({ content: 'Zażółć' }), line({ content: ' gęślą 🎉' }), line({}, end)],
  'thinking, then text': [line({ thinking: 'hm' }), line({ content: 'Two pods.' }), line({}, end)],
  'parallel calls': [
    line(call('get', { n: 1 })),
    line(call('put', {}, { id: 'call_9' })),
    line({}, end),
  ],
  'a text cut by the limit': [line({ content: 'x' }), line({}, { ...end, done_reason: 'length' })],
  'an empty turn': [line({}, end)],
}

function common(parts: Json[]): Json {
  const last = parts.at(-1)
  return {
    text: parts.map((part) => part.message.content).join(''),
    calls: parts
      .flatMap((part) => part.message.tool_calls ?? [])
      .map((one) => [one.function.name, one.function.arguments]),
    finishReason: last.done_reason,
    usage: [last.prompt_eval_count ?? 0, last.eval_count ?? 0],
  }
}

function ours({ parts, usage, raw }: ModelReply): Json {
  return {
    text: parts.map((part) => (part.type === 'text' ? part.text : '')).join(''),
    calls: parts.flatMap((part) => (part.type === 'tool_call' ? [[part.name, part.input]] : [])),
    finishReason: (raw as Json).finishReason,
    usage: [usage.inputTokens, usage.outputTokens],
  }
}

for (const [name, lines] of Object.entries(recordings)) {
  test(`the official client reads the same from ${name}`, async () => {
    const client = new Ollama({ host: vendor.url })
    const asked = make().render(request(), { stream: true }) as ChatRequest
    vendor.answer(answer(...lines))
    const theirs: Json[] = []
    for await (const part of await client.chat({ ...asked, stream: true })) theirs.push(part)
    const { reply } = await outcomeOf(make())
    assert.deepEqual(ours(reply as ModelReply), common(theirs))

    const said = lines.map((one) => one.message)
    const content = said.map((message) => message.content).join('')
    const tool_calls = said.flatMap((message) => message.tool_calls ?? [])
    vendor.answer(json({ ...lines.at(-1), message: { role: 'assistant', content, tool_calls } }))
    const whole = await client.chat({ ...asked, stream: false })
    const { reply: ourWhole } = await outcomeOf(make(), { stream: false })
    assert.deepEqual(ours(ourWhole as ModelReply), common([whole]))
  })
}

test('what the official client sends for our body is our body', async () => {
  vendor.answer(json(line({ content: 'x' }, end)))
  const asked = request({ maxTokens: 5 })
  await make().complete(asked)
  await new Ollama({ host: vendor.url }).chat({
    ...(make().render(asked) as ChatRequest),
    stream: false,
  })
  const [mine, theirs] = vendor.asked.slice(-2)
  assert.deepEqual(mine?.body, theirs?.body)
  assert.equal(mine?.path, theirs?.path)
})

// ---- A whole conversation

test('an approval goes its whole way against an independent mock, and again from a cassette of it', async () => {
  await approvalConversation((host) => ollama({ model: 'qwen3', host }))
})
