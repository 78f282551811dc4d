// OpenAI's wire and its imitators': what the shared table does not know. Bytes over a real socket; the official SDK
// reads the same bytes as a second opinion.

import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import OpenAI from 'openai'
import { Agent, type Dispatcher } from 'undici'
import { type ChatBody, openai } from '../../src/providers/openai.ts'
import type { Message, ModelReply, ModelRequest, Part } from '../../src/providers/provider.ts'
import {
  approvalConversation,
  chatWire,
  delta,
  type Json,
  message,
  sse,
  stream,
  whole,
} from './chat.ts'
import { type FakeAnswer, type FakeVendor, fakeVendor } from './fake.ts'
import { conformance } from './table.ts'

const wire = chatWire(
  {
    name: 'openai',
    make: ({ url, key, ...options }) =>
      openai({ model: 'gpt-test', apiKey: key, baseUrl: `${url}/v1`, ...options }),
  },
  'openai@127.0.0.1',
)
conformance(wire)

let vendor: FakeVendor
before(async () => {
  vendor = await fakeVendor()
})
after(() => vendor.close())

type Options = Partial<Parameters<typeof openai>[0]>

const vendorTag = 'openai@127.0.0.1'
const ask: ModelRequest = { system: [], messages: [user('hi')], tools: [] }

function user(text: string): Message {
  return { role: 'user', parts: [{ type: 'text', text }] }
}

function make(options: Options = {}) {
  return openai({
    model: 'test-model',
    baseUrl: `${vendor.url}/v1`,
    apiKey: 'test-key',
    retries: 0,
    ...options,
  })
}

function callDelta(...calls: Json[]): Json {
  return delta({ tool_calls: calls })
}

async function streamed(
  answer: FakeAnswer,
  options: Options = {},
): Promise<{ reply: ModelReply; deltas: string[] }> {
  vendor.answer(answer)
  const deltas: string[] = []
  const reply = await make(options).complete(ask, { onDelta: ({ text }) => void deltas.push(text) })
  return { reply, deltas }
}

async function answered(answer: FakeAnswer, options: Options = {}): Promise<ModelReply> {
  vendor.answer(answer)
  return make(options).complete(ask)
}

function textOf({ parts }: ModelReply): string {
  return parts.map((part) => (part.type === 'text' ? part.text : '')).join('')
}

function callsOf({ parts }: ModelReply): [string, unknown][] {
  return parts.flatMap((p) =>
    p.type === 'tool_call' ? [[p.name, p.input] as [string, unknown]] : [],
  )
}

function opaquesOf({ parts }: ModelReply): unknown[] {
  return parts.flatMap((part) => (part.type === 'opaque' ? [part.data] : []))
}

/** The body of the next request after `reply`, with a result for every call. */
async function sentBack(reply: ModelReply, options: Options = {}): Promise<Json> {
  const calls = reply.parts.filter((part) => part.type === 'tool_call')
  const results = calls.map(({ id }) => ({ callId: id, outcome: 'ok' as const, content: 'done' }))
  const messages: Message[] = [user('hi'), { role: 'assistant', parts: reply.parts, results }]
  return make(options).render({ ...ask, messages })
}

describe('what is sent', () => {
  test('nothing but the documented fields, stable ones first', () => {
    const body = make().render({
      system: [{ text: 'Be brief.', cache: true }, { text: 'It is Monday.' }],
      messages: [user('hi')],
      tools: [{ name: 'get', description: 'Gets', input: { type: 'object' } }],
      maxTokens: 5,
      temperature: 0,
    })
    assert.equal(
      JSON.stringify(body),
      JSON.stringify({
        model: 'test-model',
        tools: [
          {
            type: 'function',
            function: {
              name: 'get',
              description: 'Gets',
              parameters: { properties: {}, type: 'object' },
            },
          },
        ],
        messages: [
          { role: 'system', content: 'Be brief.\n\nIt is Monday.' },
          { role: 'user', content: 'hi' },
        ],
        max_tokens: 5,
        temperature: 0,
      }),
    )
  })

  test('render(request, { stream }) is the body that complete sends, whole and streamed', async () => {
    const { asked } = vendor
    await answered(whole(message({ content: 'x' })))
    assert.deepEqual(asked.at(-1)?.body, make().render(ask))
    assert.equal(asked.at(-1)?.path, '/v1/chat/completions')
    await streamed(stream(sse([delta({ content: 'x' }, 'stop')])))
    assert.deepEqual(asked.at(-1)?.body, make().render(ask, { stream: true }))
    assert.deepEqual(asked.at(-1)?.body.stream_options, { include_usage: true })
  })

  test('the prefix up to the static system text is the same bytes between turns and requests', async () => {
    const tools = [{ name: 'get', description: 'Gets', input: { type: 'object', properties: {} } }]
    const texts: string[] = []
    for (const [day, text] of [
      ['Monday', 'one'],
      ['Tuesday', 'two'],
    ] as const) {
      vendor.answer(whole(message({ content: 'x' })))
      const system = [{ text: 'Static. '.repeat(100), cache: true }, { text: day }]
      await make().complete({ system, tools, messages: [user(text)] })
      texts.push(vendor.asked.at(-1)?.text ?? '')
    }
    const length = texts[0]?.indexOf('Monday') ?? 0
    assert.ok(length > 800)
    assert.equal(texts[0]?.slice(0, length), texts[1]?.slice(0, length))
  })

  test('results are one tool message each, in order, right after the turn that asked, failures in words', () => {
    const outcomes = ['ok', 'error', 'rejected', 'expired', 'unknown'] as const
    const parts: Part[] = outcomes.map((_, i) => ({
      type: 'tool_call',
      id: `c${i}`,
      name: 'get',
      input: { i },
    }))
    const results = outcomes.map((outcome, i) => ({
      callId: `c${i}`,
      outcome,
      content: `text ${i}`,
    }))
    const messages: Message[] = [user('hi'), { role: 'assistant', parts, results }, user('and?')]
    const body = make().render({ ...ask, messages }) as Json
    assert.deepEqual(body.messages.slice(1), [
      {
        role: 'assistant',
        content: null,
        tool_calls: outcomes.map((_, i) => ({
          id: `c${i}`,
          type: 'function',
          function: { name: 'get', arguments: `{"i":${i}}` },
        })),
      },
      { role: 'tool', tool_call_id: 'c0', content: 'text 0' },
      { role: 'tool', tool_call_id: 'c1', content: 'Error: text 1' },
      { role: 'tool', tool_call_id: 'c2', content: 'Error (rejected): text 2' },
      { role: 'tool', tool_call_id: 'c3', content: 'Error (expired): text 3' },
      { role: 'tool', tool_call_id: 'c4', content: 'Error (unknown): text 4' },
      { role: 'user', content: 'and?' },
    ])
  })

  test('input that was no JSON object, and a name no server takes, go back as something every server takes', () => {
    const parts: Part[] = [
      { type: 'tool_call', id: 'c', name: 'functions.get pods', input: '{"x":1' },
    ]
    const results = [{ callId: 'c', outcome: 'error' as const, content: 'no JSON' }]
    const messages: Message[] = [user('hi'), { role: 'assistant', parts, results }]
    const body = make().render({ ...ask, messages }) as Json
    assert.deepEqual(body.messages[1].tool_calls[0].function, {
      name: 'functions_get_pods',
      arguments: '{"malformed_input":"{\\"x\\":1"}',
    })
  })

  test('tool choice is said only when it is no default, and never without tools', () => {
    const tools = [{ name: 'get', description: 'Gets', input: { type: 'object' } }]
    const choice = (toolChoice: ModelRequest['toolChoice'], given = tools) =>
      (make().render({ ...ask, tools: given, ...(toolChoice && { toolChoice }) }) as Json)
        .tool_choice
    assert.equal(choice(undefined), undefined)
    assert.equal(choice('auto'), undefined)
    assert.equal(choice('none'), 'none')
    assert.deepEqual(choice({ name: 'get' }), { type: 'function', function: { name: 'get' } })
    assert.equal(choice('none', []), undefined)
    assert.equal('tools' in (make().render(ask) as Json), false)
  })

  test('files: images, PDF and audio in their parts, text as text, all else refused before anything is sent', async () => {
    const file = (mediaType: string, name?: string): Part => ({
      type: 'file',
      mediaType,
      data: 'aGk=',
      ...(name && { name }),
    })
    const content = (...parts: Part[]) =>
      (make().render({ ...ask, messages: [{ role: 'user', parts }] }) as Json).messages[0].content
    assert.deepEqual(
      content(
        { type: 'text', text: 'see' },
        file('image/png'),
        file('application/pdf', 'a.pdf'),
        file('application/pdf'),
        file('audio/mpeg'),
        file('text/csv', 'a.csv'),
      ),
      [
        { type: 'text', text: 'see' },
        { type: 'image_url', image_url: { url: 'data:image/png;base64,aGk=' } },
        {
          type: 'file',
          file: { filename: 'a.pdf', file_data: 'data:application/pdf;base64,aGk=' },
        },
        {
          type: 'file',
          file: { filename: 'document.pdf', file_data: 'data:application/pdf;base64,aGk=' },
        },
        { type: 'input_audio', input_audio: { data: 'aGk=', format: 'mp3' } },
        { type: 'text', text: 'a.csv:\nhi' },
      ],
    )
    assert.equal(content({ type: 'text', text: 'a' }, { type: 'text', text: 'b' }), 'a\n\nb')
    const before = vendor.asked.length
    for (const role of ['user', 'assistant'] as const) {
      const messages = [{ role, parts: [file('video/mp4')], results: [] } as Message]
      const error = { name: 'ProviderError', code: 'unsupported_media_type', message: /video\/mp4/ }
      await assert.rejects(make().complete({ ...ask, messages }), error)
    }
    assert.equal(vendor.asked.length, before)
  })

  test('maxTokens goes under the word that the server knows', () => {
    const field = (options: Options) => {
      const body = openai({ model: 'm', apiKey: 'k', ...options }).render({
        ...ask,
        maxTokens: 7,
      }) as Json
      return Object.keys(body).filter((key) => body[key] === 7)
    }
    const baseUrl = 'https://gateway.example/v1'
    assert.deepEqual(field({ baseUrl: 'https://api.openai.com/v1' }), ['max_completion_tokens'])
    assert.deepEqual(field({ baseUrl: 'https://eu.api.openai.com/v1' }), ['max_completion_tokens'])
    assert.deepEqual(field({ baseUrl }), ['max_tokens'])
    assert.deepEqual(field({ baseUrl, model: 'gpt-oss-120b' }), ['max_tokens'])
    assert.deepEqual(field({ baseUrl, model: 'o3-mini' }), ['max_completion_tokens'])
    assert.deepEqual(field({ baseUrl, model: 'openai/gpt-5.1' }), ['max_completion_tokens'])
    assert.deepEqual(field({ baseUrl, maxTokensField: 'max_completion_tokens' }), [
      'max_completion_tokens',
    ])
  })

  test('instructions go under the role that the model knows', () => {
    const messages = (options: Options, given: Message[]) =>
      (make(options).render({ ...ask, system: [{ text: 'S' }], messages: given }) as Json).messages
    assert.deepEqual(messages({ systemRole: 'developer' }, [user('hi')])[0], {
      role: 'developer',
      content: 'S',
    })
    assert.deepEqual(messages({ systemRole: 'user' }, [user('hi')]), [
      { role: 'user', content: 'S\n\nhi' },
    ])
    const image: Part = { type: 'file', mediaType: 'image/png', data: 'aGk=' }
    assert.deepEqual(messages({ systemRole: 'user' }, [{ role: 'user', parts: [image] }]), [
      {
        role: 'user',
        content: [
          { type: 'text', text: 'S' },
          { type: 'image_url', image_url: { url: 'data:image/png;base64,aGk=' } },
        ],
      },
    ])
  })

  test('options of the body: extra fields, cache key, no stream_options', () => {
    const options = { extra: { reasoning_effort: 'low' }, promptCacheKey: 'k', includeUsage: false }
    const body = make(options).render(ask, { stream: true }) as Json
    assert.equal(body.reasoning_effort, 'low')
    assert.equal(body.prompt_cache_key, 'k')
    assert.equal(body.stream, true)
    assert.equal('stream_options' in body, false)
  })

  test('call ids are nine letters and digits for Mistral, the same in call and result, and ours elsewhere', async () => {
    const reply: ModelReply = {
      parts: [
        { type: 'tool_call', id: 'tc_AAAAAAAAAAAAAAAA', name: 'get', input: {} },
        { type: 'tool_call', id: 'tc_BBBBBBBBBBBBBBBB', name: 'get', input: {} },
      ],
      finishReason: 'tool_call',
      usage: { inputTokens: 0, outputTokens: 0, cacheReadTokens: 0, cacheWriteTokens: 0 },
    }
    const ids = async (options: Options) => {
      const { messages } = await sentBack(reply, options)
      const asked = messages[1].tool_calls.map(({ id }: Json) => id)
      assert.deepEqual(
        messages.slice(2).map((m: Json) => m.tool_call_id),
        asked,
      )
      assert.equal(new Set(asked).size, 2)
      return asked
    }
    assert.equal((await ids({}))[0], 'tc_AAAAAAAAAAAAAAAA')
    for (const options of [{ model: 'mistralai/Mixtral-8x7B' }, { shortCallIds: true }]) {
      assert.match((await ids(options)).join(' '), /^[A-Za-z0-9]{9} [A-Za-z0-9]{9}$/)
    }
  })

  test('an assistant that said nothing is sent as a message every server takes', () => {
    const messages: Message[] = [
      user('hi'),
      { role: 'assistant', parts: [], results: [] },
      user('?'),
    ]
    const body = make().render({ ...ask, messages }) as Json
    assert.deepEqual(body.messages[1], { role: 'assistant', content: '' })
  })
})

describe('where and as whom', () => {
  const saved = { ...process.env }
  after(() => {
    process.env = saved
  })

  test('variables are read when called, options win, and a local server needs no key', async () => {
    process.env = { ...saved, OPENAI_API_KEY: 'env-key', OPENAI_BASE_URL: `${vendor.url}/env/` }
    vendor.answer(whole(message({ content: 'x' })))
    await openai({ model: 'm' }).complete(ask)
    assert.equal(vendor.asked.at(-1)?.path, '/env/chat/completions')
    assert.equal(vendor.asked.at(-1)?.headers.authorization, 'Bearer env-key')
    await make({
      baseUrl: `${vendor.url}/v1/chat/completions?v=1`,
      apiKey: async () => 'fresh',
    }).complete(ask)
    assert.equal(vendor.asked.at(-1)?.path, '/v1/chat/completions?v=1')
    assert.equal(vendor.asked.at(-1)?.headers.authorization, 'Bearer fresh')
    process.env = { ...saved, OPENAI_API_KEY: '', OPENAI_BASE_URL: '' }
    await openai({ model: 'm', baseUrl: vendor.url }).complete(ask)
    assert.equal(vendor.asked.at(-1)?.headers.authorization, undefined)
  })

  test('without a key the official address is refused, with the fix in the message', () => {
    process.env = { ...saved, OPENAI_API_KEY: '', OPENAI_BASE_URL: '' }
    const error = { code: 'provider_config', message: /pass apiKey or set OPENAI_API_KEY/ }
    assert.throws(() => openai({ model: 'm' }), error)
  })

  test('a key function that fails is a ProviderError without what it threw in its message', async () => {
    const apiKey = () => {
      throw new Error('vault at 10.0.0.1 is sealed')
    }
    const error = await make({ apiKey })
      .complete(ask)
      .catch((e) => e)
    assert.equal(error.code, 'provider_auth')
    assert.doesNotMatch(error.message, /vault/)
    assert.match(error.cause.message, /vault/)
  })
})

describe('what comes back, whole', () => {
  const usage = {
    prompt_tokens: 10,
    completion_tokens: 5,
    total_tokens: 15,
    prompt_tokens_details: { cached_tokens: 4, cache_write_tokens: 2 },
    completion_tokens_details: { reasoning_tokens: 3 },
  }

  test('text, with usage and the vendor words in raw', async () => {
    const reply = await answered(whole(message({ content: 'hi' }, 'stop', { usage })))
    assert.deepEqual(reply, {
      parts: [{ type: 'text', text: 'hi' }],
      finishReason: 'stop',
      usage: { inputTokens: 10, outputTokens: 5, cacheReadTokens: 4, cacheWriteTokens: 2 },
      raw: { finishReason: 'stop', requestId: 'req-1', id: 'chatcmpl-1', model: 'm-1', usage },
    })
  })

  for (const [spelling, content] of [
    ['null', null],
    ['no key', undefined],
    ['empty', ''],
  ] as const) {
    test(`calls beside content spelled as ${spelling}; the presence of calls decides over "stop"`, async () => {
      const tool_calls = [
        { id: 'a', type: 'function', function: { name: 'get', arguments: '{"x":1}' } },
        { id: 'b', function: { name: 'get', arguments: '' } },
        { id: 'b', function: { name: 'get', arguments: { y: 2 } } },
        { function: { name: 'get', arguments: null } },
      ]
      const reply = await answered(whole(message({ content, tool_calls })))
      assert.equal(reply.finishReason, 'tool_call')
      assert.deepEqual(callsOf(reply), [
        ['get', { x: 1 }],
        ['get', {}],
        ['get', { y: 2 }],
        ['get', {}],
      ])
      const ids = reply.parts.map((part) => (part.type === 'tool_call' ? part.id : ''))
      assert.deepEqual(ids.slice(0, 2), ['a', 'b'])
      assert.equal(new Set(ids).size, 4)
      assert.ok(ids.every(Boolean))
    })
  }

  test('tool_calls that are null or empty are none, and tool_calls as a reason needs calls', async () => {
    for (const tool_calls of [null, []]) {
      const reply = await answered(whole(message({ content: 'hi', tool_calls }, 'tool_calls')))
      assert.equal(reply.finishReason, 'stop')
      assert.deepEqual(callsOf(reply), [])
    }
  })

  test('a call cut by length keeps its raw text, and one with nothing yet is not an empty object', async () => {
    const tool_calls = [
      { id: 'a', function: { name: 'get', arguments: '{"x":17,"y":25' } },
      { id: 'b', function: { name: 'get', arguments: '' } },
    ]
    const reply = await answered(whole(message({ tool_calls }, 'length')))
    assert.equal(reply.finishReason, 'length')
    assert.deepEqual(callsOf(reply), [
      ['get', '{"x":17,"y":25'],
      ['get', ''],
    ])
  })

  test('a refusal is said, and is a content filter', async () => {
    const reply = await answered(whole(message({ content: null, refusal: 'I cannot.' })))
    assert.equal(textOf(reply), 'I cannot.')
    assert.equal(reply.finishReason, 'content_filter')
    assert.equal((reply.raw as Json).refusal, 'I cannot.')
  })

  test('of several choices the first is taken', async () => {
    const choices = [
      { index: 1, message: { content: 'two' }, finish_reason: 'stop' },
      { index: 0, message: { content: 'one' }, finish_reason: 'stop' },
    ]
    assert.equal(textOf(await answered(whole({ choices }))), 'one')
  })

  test('blank lines before the body, a missing finish_reason and no usage are taken', async () => {
    const reply = await answered(
      whole(`\n\n   \n${JSON.stringify(message({ content: 'hi' }, null))}`),
    )
    assert.equal(textOf(reply), 'hi')
    assert.equal(reply.finishReason, 'stop')
    assert.equal(reply.usage.inputTokens, 0)
  })

  test('usage where the vendor counts or names it otherwise', async () => {
    const usages: [Json, Partial<ModelReply['usage']>][] = [
      // DeepSeek
      [
        { prompt_tokens: 9, completion_tokens: 1, prompt_cache_hit_tokens: 8 },
        { cacheReadTokens: 8 },
      ],
      // Kimi
      [{ prompt_tokens: 9, completion_tokens: 1, cached_tokens: 7 }, { cacheReadTokens: 7 }],
      // xAI: reasoning beside the completion, in the total only
      [
        {
          prompt_tokens: 10,
          completion_tokens: 5,
          total_tokens: 18,
          completion_tokens_details: { reasoning_tokens: 3 },
        },
        { inputTokens: 10, outputTokens: 8 },
      ],
      [usage, { inputTokens: 10, outputTokens: 5 }],
    ]
    for (const [said, want] of usages) {
      const reply = await answered(whole(message({ content: 'x' }, 'stop', { usage: said })))
      assert.deepEqual({ ...reply.usage, ...want }, reply.usage)
    }
  })

  test('error envelopes of every kind give their words, under 200 as well', async () => {
    const bodies: Json[] = [
      { error: { message: 'too much' } },
      { error: 'too much' },
      { message: 'too much' },
      { detail: 'too much' },
      { object: 'error', message: 'too much', code: 400 },
      [{ error: { message: 'too much', status: 'INVALID_ARGUMENT' } }],
      { error: { message: 'too much' }, choices: [] },
    ]
    const inChoice = { error: { message: 'too much', code: 502 }, message: { content: '' } }
    await assert.rejects(answered(whole({ choices: [inChoice] })), { message: /too much/ })
    for (const body of bodies) {
      for (const status of [200, 400]) {
        await assert.rejects(answered(whole(body, status)), {
          name: 'ProviderError',
          message: /too much/,
        })
      }
    }
  })

  test('a body of another shape is provider_invalid or an error, never a reply', async () => {
    for (const body of [
      'null',
      '5',
      '"x"',
      '{}',
      '{"choices":[]}',
      '{"choices":[null]}',
      '{"choices":5}',
    ]) {
      await assert.rejects(answered(whole(body)), { name: 'ProviderError' })
    }
    for (const content of [5, {}, true]) {
      await assert.rejects(answered(whole(message({ content }))), { code: 'provider_invalid' })
    }
  })

  test('names from Object.prototype are no finish reasons', async () => {
    const reply = await answered(whole(message({ content: 'x' }, 'constructor')))
    assert.equal(reply.finishReason, 'stop')
  })
})

describe('what comes back, streamed', () => {
  test('usage comes in a last chunk without choices, and another chunk may follow it', async () => {
    const usage = { prompt_tokens: 3, completion_tokens: 2, total_tokens: 5 }
    const { reply, deltas } = await streamed(
      stream(
        sse([
          delta({ role: 'assistant', content: '' }, null, { usage: null, obfuscation: 'x' }),
          delta({ content: 'He' }, null, { usage: null }),
          delta({ content: 'llo' }, null, { usage: null }),
          delta({}, 'stop', { usage: null }),
          { id: 'chatcmpl-1', choices: [], usage },
          { id: 'chatcmpl-1', choices: [], usage: null, moderation: { input: {} } },
        ]),
      ),
    )
    assert.deepEqual(deltas, ['He', 'llo'])
    assert.equal(textOf(reply), 'Hello')
    assert.deepEqual(reply.usage, {
      inputTokens: 3,
      outputTokens: 2,
      cacheReadTokens: 0,
      cacheWriteTokens: 0,
    })
  })

  test('usage in every chunk is the sum so far: the last one stands', async () => {
    const count = (n: number) => ({ usage: { prompt_tokens: 3, completion_tokens: n } })
    const { reply } = await streamed(
      stream(
        sse([delta({ content: 'a' }, null, count(1)), delta({ content: 'b' }, 'stop', count(2))]),
      ),
    )
    assert.equal(reply.usage.outputTokens, 2)
    const places = [
      { x_groq: count(4) },
      { choices: [{ delta: {}, finish_reason: 'stop', ...count(4) }] },
    ]
    for (const place of places) {
      const { reply } = await streamed(stream(sse([{ ...delta({}, 'stop'), ...place }])))
      assert.equal(reply.usage.outputTokens, 4)
    }
  })

  test('without [DONE] a clean end after finish_reason is an end; a connection that just closes is not', async () => {
    const pieces = sse([delta({ content: 'hi' }), delta({}, 'stop')], '')
    assert.equal(textOf((await streamed(stream(pieces))).reply), 'hi')
    const error = { code: 'provider_truncated' }
    await assert.rejects(streamed(stream(pieces, { framing: 'close' })), error)
    await assert.rejects(streamed(stream(pieces, { end: 'fin' })), error)
  })

  test('an end without finish_reason is cut short, whatever else says that it is over', async () => {
    for (const end of ['data: [DONE]\n\n', '']) {
      await assert.rejects(streamed(stream(sse([delta({ content: 'hi' })], end))), {
        code: 'provider_truncated',
      })
    }
  })

  test('[DONE] with blanks, comments, CRLF, event names and blank lines are taken as they come', async () => {
    const text = [
      '\r\n\r\n: OPENROUTER PROCESSING\r\n\r\n',
      `event: message\r\ndata: ${JSON.stringify(delta({ content: 'hé' }))}\r\n\r\n`,
      ': OPENROUTER PROCESSING\r\n\r\n',
      `data:${JSON.stringify(delta({}, 'stop'))}\r\n\r\n`,
      'data: [DONE] \r\n\r\n',
    ].join('')
    const bytes = Buffer.from(text)
    for (const pieces of [[bytes], [...bytes].map((byte) => Buffer.from([byte]))]) {
      assert.equal(textOf((await streamed(stream(pieces))).reply), 'hé')
    }
  })

  test('arguments split anywhere, calls interleaved, nulls between', async () => {
    const { reply, deltas } = await streamed(
      stream(
        sse([
          delta({ role: 'assistant', content: null, tool_calls: null }),
          callDelta({
            index: 0,
            id: 'a',
            type: 'function',
            function: { name: 'get', arguments: '' },
          }),
          callDelta({ index: 0, function: { arguments: '{"x' } }),
          callDelta({ index: 1, id: 'b', function: { name: 'put', arguments: null } }),
          delta({ content: null, tool_calls: [] }),
          callDelta({ index: 0, id: '', function: { name: null, arguments: '":1}' } }),
          callDelta({ index: 1, function: { arguments: '{}' } }),
          delta({}, 'tool_calls'),
        ]),
      ),
    )
    assert.deepEqual(callsOf(reply), [
      ['get', { x: 1 }],
      ['put', {}],
    ])
    assert.deepEqual(deltas, [])
    assert.equal(reply.finishReason, 'tool_call')
  })

  const parallel: Record<string, Json[]> = {
    'all calls in one chunk with the finish reason': [
      delta(
        {
          content: '',
          tool_calls: [
            { index: 0, id: 'a', function: { name: 'get', arguments: '{"n":1}' } },
            { index: 1, id: 'b', function: { name: 'get', arguments: '{"n":2}' } },
          ],
        },
        'tool_calls',
      ),
    ],
    'one chunk, neither index nor id': [
      callDelta(
        { function: { name: 'get', arguments: '{"n":1}' } },
        { function: { name: 'get', arguments: '{"n":2}' } },
      ),
      delta({}, 'stop'),
    ],
    'a chunk each, neither index nor id': [
      callDelta({ function: { name: 'get', arguments: '{"n":1}' } }),
      callDelta({ function: { name: 'get', arguments: '{"n":2}' } }),
      delta({}, 'stop'),
    ],
    'no index, pieces': [
      callDelta({ id: 'a', function: { name: 'get', arguments: '' } }),
      callDelta({ function: { arguments: '{"n"' } }),
      callDelta({ function: { arguments: ':1}' } }),
      callDelta({ id: 'b', function: { name: 'get', arguments: '{"n"' } }),
      callDelta({ id: '', function: { arguments: ':2}' } }),
      delta({}, 'tool_calls'),
    ],
    'every call has the index 0': [
      callDelta({ index: 0, id: 'a', function: { name: 'get', arguments: '{"n":1}' } }),
      callDelta({ index: 0, id: 'b', function: { name: 'get', arguments: '{"n":2}' } }),
      delta({}, 'stop'),
    ],
    'id and name repeated in every delta': [
      callDelta({ index: 0, id: 'a', function: { name: 'get', arguments: '{"n"' } }),
      callDelta({ index: 0, id: 'a', function: { name: 'get', arguments: ':1}' } }),
      callDelta({ index: 1, id: 'b', function: { name: 'get', arguments: '{"n":2' } }),
      callDelta({ index: 1, id: 'b', function: { name: 'get', arguments: '}' } }),
      callDelta({ index: 1, id: 'b', function: { name: 'get', arguments: '' } }),
      delta({}, 'tool_calls'),
    ],
    'a new id in every delta': [
      callDelta({ index: 0, id: 'a1', function: { name: 'get', arguments: '{"n"' } }),
      callDelta({ index: 0, id: 'a2', function: { name: 'get', arguments: ':1}' } }),
      callDelta({ index: 0, id: 'a3', function: { name: 'get', arguments: '' } }),
      callDelta({ index: 1, id: 'b1', function: { name: 'get', arguments: '{"n":' } }),
      callDelta({ index: 1, id: 'b2', function: { arguments: '2}' } }),
      delta({}, 'tool_calls'),
    ],
    'repeated ids': [
      callDelta({ index: 0, id: 'a', function: { name: 'get', arguments: '{"n":1}' } }),
      callDelta({ index: 1, id: 'a', function: { name: 'get', arguments: '{"n":2}' } }),
      delta({}, 'tool_calls'),
    ],
    'arguments as objects': [
      callDelta({ index: 0, id: 'a', function: { name: 'get', arguments: { n: 1 } } }),
      callDelta({ index: 1, id: 'b', function: { name: 'get', arguments: { n: 2 } } }),
      delta({}, 'tool_calls'),
    ],
  }
  for (const [how, chunks] of Object.entries(parallel)) {
    test(`two parallel calls: ${how}`, async () => {
      const { reply } = await streamed(stream(sse(chunks)))
      assert.deepEqual(callsOf(reply), [
        ['get', { n: 1 }],
        ['get', { n: 2 }],
      ])
      const ids = reply.parts.map((part) => (part.type === 'tool_call' ? part.id : ''))
      assert.ok(new Set(ids).size === 2 && ids.every(Boolean))
      assert.equal(reply.finishReason, 'tool_call')
    })
  }

  test('calls that cannot be told apart become text that never runs, not a call that nobody made', async () => {
    const { reply } = await streamed(
      stream(
        sse([
          callDelta({ index: 0, function: { name: 'get', arguments: '{"n":1}' } }),
          callDelta({ index: 0, function: { name: 'get', arguments: '{"n":2}' } }),
          delta({}, 'tool_calls'),
        ]),
      ),
    )
    assert.deepEqual(callsOf(reply), [['get', '{"n":1}{"n":2}']])
  })

  test('a call without a name is an error, or nothing where the reply was cut', async () => {
    const nameless = callDelta({ index: 0, id: 'a', function: { arguments: '{}' } })
    await assert.rejects(streamed(stream(sse([nameless, delta({}, 'tool_calls')]))), {
      code: 'provider_invalid',
    })
    const { reply } = await streamed(stream(sse([nameless, delta({}, 'length')])))
    assert.deepEqual(callsOf(reply), [])
    assert.equal(reply.finishReason, 'length')
  })

  test('interleaved choices: the first alone is heard', async () => {
    const other = { choices: [{ index: 1, delta: { content: 'no' }, finish_reason: 'length' }] }
    const { reply, deltas } = await streamed(
      stream(sse([other, delta({ content: 'yes' }), other, delta({}, 'stop'), other])),
    )
    assert.deepEqual(deltas, ['yes'])
    assert.equal(reply.finishReason, 'stop')
  })

  test('two chunks with a finish reason, and text after the first, are all read', async () => {
    const { reply } = await streamed(
      stream(
        sse([
          delta({ content: 'a' }, 'stop'),
          delta({ content: 'b' }, 'stop'),
          delta({ content: '' }, 'stop'),
        ]),
      ),
    )
    assert.equal(textOf(reply), 'ab')
  })

  test('a refusal streams as text and is a content filter', async () => {
    const { reply, deltas } = await streamed(
      stream(sse([delta({ refusal: 'I ' }), delta({ refusal: 'cannot.' }), delta({}, 'stop')])),
    )
    assert.deepEqual(deltas, ['I ', 'cannot.'])
    assert.equal(textOf(reply), 'I cannot.')
    assert.equal(reply.finishReason, 'content_filter')
  })

  test('a server that answers a stream with a whole body is understood', async () => {
    const { reply, deltas } = await streamed(whole(message({ content: 'hi' })))
    assert.deepEqual(deltas, ['hi'])
    assert.equal(textOf(reply), 'hi')
  })

  const errors: Record<string, string> = {
    'an error chunk': `data: ${JSON.stringify({ error: { message: 'no more', code: 502 } })}\n\n`,
    'an error beside choices': `data: ${JSON.stringify({ ...delta({ content: '' }, 'error'), error: { message: 'no more', code: 502 } })}\n\n`,
    'an error event': `event: error\ndata: ${JSON.stringify({ message: 'no more' })}\n\n`,
    'an error object': `data: ${JSON.stringify({ object: 'error', message: 'no more', code: 500 })}\n\n`,
    'a finish reason that is an error': `data: ${JSON.stringify(delta({}, 'error'))}\n\n`,
  }
  for (const [what, bytes] of Object.entries(errors)) {
    test(`${what} is a failure: tried again as the first thing, not after text`, async () => {
      const before = vendor.asked.length
      const bad = stream(sse([bytes]))
      const good = stream(sse([delta({ content: 'hi' }, 'stop')]))
      vendor.answer((_, n) => (n === before ? bad : good))
      const clock = { now: () => 0, sleep: async () => {}, random: () => 0 }
      const options = { retries: 2, clock, timeouts: { stepMs: 1e6 } }
      const deltas: string[] = []
      const onDelta = ({ text }: { text: string }) => void deltas.push(text)
      assert.equal(textOf(await make(options).complete(ask, { onDelta })), 'hi')
      assert.equal(vendor.asked.length, before + 2)
      vendor.answer(stream(sse([delta({ content: 'par' }), bytes])))
      await assert.rejects(make(options).complete(ask, { onDelta }), { name: 'ProviderError' })
      assert.equal(vendor.asked.length, before + 3)
      assert.deepEqual(deltas, ['hi', 'par'])
    })
  }

  test('an exhausted quota is not tried again', async () => {
    const error = {
      message: 'You exceeded your quota',
      type: 'insufficient_quota',
      code: 'insufficient_quota',
    }
    const before = vendor.asked.length
    await assert.rejects(answered(whole({ error }, 429), { retries: 2 }), {
      code: 'provider_config',
    })
    assert.equal(vendor.asked.length, before + 1)
  })

  test('events of a wrong shape are an error or nothing, never a hang or a call', async () => {
    const bad = [
      'null',
      '{"choices":5}',
      '{"choices":[5]}',
      '[]',
      '5',
      '{"choices":[{"delta":{"content":5}}]}',
      '{"choices":[{"delta":{"tool_calls":5}}]}',
      '{"choices":[{"delta":{"tool_calls":[5]}}]}',
      '{"choices":[{"delta":{"tool_calls":[{"function":{"name":5}}]}}]}',
      '{',
      '',
      '{"type":"ping"}',
    ]
    for (const text of bad) {
      const chunks = [`data: ${text}\n\n`, delta({ content: 'hi' }, 'stop')]
      const outcome = await streamed(stream(sse(chunks))).then(
        ({ reply }) => JSON.stringify(reply.parts),
        (error) => error.code,
      )
      assert.ok(
        ['provider_invalid', '[{"type":"text","text":"hi"}]'].includes(outcome),
        `${text}: ${outcome}`,
      )
    }
  })
})

describe('reasoning', () => {
  for (const field of ['reasoning_content', 'reasoning']) {
    test(`${field} is no answer, and goes back byte for byte under its name`, async () => {
      const { reply, deltas } = await streamed(
        stream(
          sse([
            delta({ [field]: 'Let me ' }),
            delta({ content: null, [field]: 'think…' }),
            delta({ content: 'Hi', [field]: null }),
            callDelta({ index: 0, id: 'a', function: { name: 'get', arguments: '{}' } }),
            delta({}, 'tool_calls'),
          ]),
        ),
      )
      assert.deepEqual(deltas, ['Hi'])
      assert.equal(textOf(reply), 'Hi')
      const body = await sentBack(reply)
      assert.equal(body.messages[1][field], 'Let me think…')
      assert.equal(body.messages[1].content, 'Hi')
      const plain = await answered(whole(message({ content: 'Hi', [field]: 'Let me think…' })))
      assert.equal(textOf(plain), 'Hi')
      assert.deepEqual(opaquesOf(plain), opaquesOf(reply))
    })
  }

  test('an empty reasoning_content is kept: DeepSeek refuses a call that comes back without', async () => {
    const tool_calls = [{ id: 'a', function: { name: 'get', arguments: '{}' } }]
    const reply = await answered(whole(message({ content: '', reasoning_content: '', tool_calls })))
    assert.equal((await sentBack(reply)).messages[1].reasoning_content, '')
  })

  test('reasoning_details keep their order, and pieces of one block become that block', async () => {
    const details = [
      {
        type: 'reasoning.text',
        text: 'Let me think',
        signature: 'sig',
        format: 'anthropic',
        index: 0,
      },
      { type: 'reasoning.encrypted', data: 'AAAA', id: 'rs_1', index: 1 },
      { type: 'reasoning.summary', summary: 'S', index: 2 },
    ]
    const { reply } = await streamed(
      stream(
        sse([
          delta({
            reasoning: 'Let ',
            reasoning_details: [
              { type: 'reasoning.text', text: 'Let ', format: 'anthropic', index: 0 },
            ],
          }),
          delta({
            reasoning: 'me think',
            reasoning_details: [{ type: 'reasoning.text', text: 'me think', index: 0 }],
          }),
          delta({ reasoning_details: [{ type: 'reasoning.text', signature: 'sig', index: 0 }] }),
          delta({ reasoning_details: details.slice(1) }),
          delta({ content: 'Hi' }, 'stop'),
        ]),
      ),
    )
    assert.deepEqual((await sentBack(reply)).messages[1].reasoning_details, details)
    // Whole ones are not touched, even where pieces would be joined.
    const two = [
      { type: 'reasoning.text', text: 'a' },
      { type: 'reasoning.text', text: 'b' },
    ]
    const plain = await answered(whole(message({ content: 'Hi', reasoning_details: two })))
    assert.deepEqual((await sentBack(plain)).messages[1].reasoning_details, two)
  })

  test('thinking in a list of content is no answer, and goes back in a list', async () => {
    const thinking = { type: 'thinking', thinking: [{ type: 'text', text: 'Let me think' }] }
    const piece = (text: string) => ({ type: 'thinking', thinking: [{ type: 'text', text }] })
    const { reply, deltas } = await streamed(
      stream(
        sse([
          delta({ content: [piece('Let me ')] }),
          delta({ content: [piece('think')] }),
          delta({ content: [{ type: 'text', text: 'Hi' }] }),
          delta({ content: '!' }, 'stop'),
        ]),
      ),
    )
    assert.deepEqual(deltas, ['Hi', '!'])
    const body = await sentBack(reply)
    assert.deepEqual(body.messages[1].content, [thinking, { type: 'text', text: 'Hi!' }])
    const plain = await answered(
      whole(message({ content: [thinking, { type: 'text', text: 'Hi!' }] })),
    )
    assert.deepEqual(plain.parts, reply.parts)
  })

  test("a call's signature goes back with that call, whatever its id became", async () => {
    const signed = { extra_content: { google: { thought_signature: 'sig+/=' } } }
    const calls = [
      { index: 0, id: 'a', function: { name: 'get', arguments: '{}' }, ...signed },
      { index: 1, id: 'b', function: { name: 'put', arguments: '{}' } },
    ]
    const { reply } = await streamed(stream(sse([callDelta(...calls), delta({}, 'stop')])))
    const parts = reply.parts.map((part) =>
      part.type === 'tool_call' ? { ...part, id: `tc_${part.id}` } : part,
    )
    const [one, two] = (await sentBack({ ...reply, parts })).messages[1].tool_calls
    assert.deepEqual(one, {
      ...signed,
      id: 'tc_a',
      type: 'function',
      function: { name: 'get', arguments: '{}' },
    })
    assert.equal('extra_content' in two, false)
  })

  test('reasoning goes back to nobody but its sender, and not at all where that is unwanted', async () => {
    const reply = await answered(whole(message({ content: 'Hi', reasoning_content: 'hm' })))
    assert.deepEqual(reply.parts[0], {
      type: 'opaque',
      provider: vendorTag,
      data: { message: { reasoning_content: 'hm' } },
    })
    const other: Options = { baseUrl: 'https://api.openai.com/v1' }
    for (const options of [other, { name: 'deepseek' }, { sendReasoning: false }]) {
      const body = await sentBack(reply, options)
      assert.deepEqual(body.messages[1], { role: 'assistant', content: 'Hi' })
    }
  })
})

// That a `ChatBody` goes into its methods is the check that we send nothing its types do not know.
describe('the official SDK over the same bytes', () => {
  const sdk = () => new OpenAI({ apiKey: 'test-key', baseURL: `${vendor.url}/v1`, maxRetries: 0 })
  const usage = {
    prompt_tokens: 10,
    completion_tokens: 5,
    total_tokens: 15,
    prompt_tokens_details: { cached_tokens: 4 },
  }
  const get = (id: string, args: string) => ({
    id,
    type: 'function',
    function: { name: 'get', arguments: args },
  })
  const count = {
    id: 'chatcmpl-1',
    object: 'chat.completion.chunk',
    created: 1,
    model: 'm',
    choices: [],
    usage,
  }

  const cases: Record<string, { said: Json; finish: string; deltas: Json[] }> = {
    text: {
      said: { content: 'Grüße, 世界 👋' },
      finish: 'stop',
      deltas: [{ role: 'assistant', content: '' }, { content: 'Grüße, ' }, { content: '世界 👋' }],
    },
    'parallel calls': {
      said: { content: null, tool_calls: [get('a', '{"x":1}'), get('b', '{}')] },
      finish: 'tool_calls',
      deltas: [
        { role: 'assistant', content: null },
        { tool_calls: [{ index: 0, ...get('a', '') }] },
        { tool_calls: [{ index: 0, function: { arguments: '{"x":' } }] },
        { tool_calls: [{ index: 0, function: { arguments: '1}' } }] },
        { tool_calls: [{ index: 1, ...get('b', '{}') }] },
      ],
    },
    'text and a call': {
      said: { content: 'Looking.', tool_calls: [get('a', '{"x":1}')] },
      finish: 'tool_calls',
      deltas: [{ content: 'Looking.' }, { tool_calls: [{ index: 0, ...get('a', '{"x":1}') }] }],
    },
    length: { said: { content: 'cut' }, finish: 'length', deltas: [{ content: 'cut' }] },
    'content filter': { said: { content: '' }, finish: 'content_filter', deltas: [{}] },
  }

  const reasons = {
    stop: 'stop',
    length: 'length',
    tool_call: 'tool_calls',
    content_filter: 'content_filter',
  }
  const common = (completion: Json) => {
    const { message, finish_reason } = completion.choices[0]
    return {
      text: message.content ?? '',
      calls: (message.tool_calls ?? []).map(({ id, function: f }: Json) => [
        id,
        f.name,
        JSON.parse(f.arguments),
      ]),
      finish: finish_reason,
      usage: completion.usage && [
        completion.usage.prompt_tokens,
        completion.usage.completion_tokens,
      ],
    }
  }
  const ours = (reply: ModelReply) => ({
    text: textOf(reply),
    calls: reply.parts.flatMap((p) => (p.type === 'tool_call' ? [[p.id, p.name, p.input]] : [])),
    finish: reasons[reply.finishReason],
    usage: [reply.usage.inputTokens, reply.usage.outputTokens],
  })

  for (const [name, { said, finish, deltas }] of Object.entries(cases)) {
    test(`${name}: the same text, calls, finish reason and usage`, async () => {
      const body = make().render(ask) as ChatBody
      vendor.answer(whole(message({ refusal: null, ...said }, finish, { usage })))
      const theirs = await sdk().chat.completions.create({ ...body, stream: false })
      assert.deepEqual(ours(await make().complete(ask)), common(theirs))

      const chunks = [...deltas.map((fields) => delta(fields)), delta({}, finish), count]
      vendor.answer(stream(sse(chunks)))
      const streaming = make().render(ask, { stream: true }) as ChatBody
      const running = sdk().chat.completions.stream({ ...streaming, stream: true })
      // Its helper throws where a reply was cut or filtered; the chunks it read are there all the same.
      await running.done().catch(() => {})
      const snapshot = running.currentChatCompletionSnapshot as Json
      const { reply } = await streamed(stream(sse(chunks)))
      const { usage: _, ...theirStream } = common(snapshot ?? theirs)
      const { usage: counted, ...ourStream } = ours(reply)
      assert.deepEqual(ourStream, theirStream)
      assert.deepEqual(counted, [10, 5])
    })
  }

  test('what the SDK sends for our body is our body', async () => {
    vendor.answer(whole(message({ content: 'x' })))
    const request: ModelRequest = {
      system: [{ text: 'S' }],
      messages: [user('hi')],
      tools: [{ name: 'get', description: 'Gets', input: { type: 'object', properties: {} } }],
      toolChoice: { name: 'get' },
      maxTokens: 5,
    }
    await sdk().chat.completions.create({
      ...(make().render(request) as ChatBody),
      stream: false,
    })
    const { stream: _, ...theirs }: Json = vendor.asked.at(-1)?.body ?? {}
    await make().complete(request)
    assert.deepEqual(vendor.asked.at(-1)?.body, theirs)
    assert.equal(vendor.asked.at(-1)?.path, vendor.asked.at(-2)?.path)
    assert.equal(
      vendor.asked.at(-1)?.headers.authorization,
      vendor.asked.at(-2)?.headers.authorization,
    )
  })
})

test('openai: an approval goes its whole way against an independent mock, and again from a cassette', async () => {
  await approvalConversation((url) =>
    openai({ model: 'gpt-4o', baseUrl: `${url}/v1`, apiKey: 'test-key' }),
  )
})

test('a header that a dispatcher adds to one request is not in the next', async () => {
  const headers: (string | undefined)[] = []
  vendor.answer(({ headers: { 'x-tenant-token': token } }) => {
    headers.push(token)
    return whole(message({ content: 'hi' }))
  })
  let tenant: string | undefined = 'tenant-token-1'
  const adds =
    (dispatch: Dispatcher['dispatch']): Dispatcher['dispatch'] =>
    (options, handler) => {
      if (tenant) Object.assign(options.headers ?? {}, { 'x-tenant-token': tenant })
      return dispatch(options, handler)
    }
  const agent = new Agent()
  const provider = make({ dispatcher: agent.compose(adds) })
  await provider.complete(ask)
  tenant = undefined
  await provider.complete(ask)
  await agent.close()
  assert.deepEqual(headers, ['tenant-token-1', undefined])
})
