// What every provider must do, one table for all: `conformance(wire)` in a provider's test file registers the rows.
//
// A provider joins with one `WireUnderTest`, which translates three ways and asserts nothing:
//   whole(said)   what the vendor's model said -> bytes of a whole answer
//   events(said)  the same -> the stream's events, one Buffer each (terminal event last)
//   read(body)    a request body as it was seen on the socket -> neutral words
// The fake vendor (fake.ts) sends those bytes whole, cut anywhere, too early, too late or never.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { inspect } from 'node:util'
import { ProviderError } from '../../src/providers/errors.ts'
import type { Clock } from '../../src/providers/limits.ts'
import type {
  Message,
  ModelReply,
  ModelRequest,
  Part,
  Provider,
  Usage,
} from '../../src/providers/provider.ts'
import type { HttpOptions } from '../../src/providers/wire.ts'
import { type FakeAnswer, type FakeVendor, fakeVendor } from './fake.ts'

/** What the model says, in order. Text and arguments come in the pieces they are to be streamed in. */
export interface Said {
  parts: SaidPart[]
  /** Ours; the adapter picks the vendor's word. */
  finish: 'stop' | 'length' | 'tool_call' | 'content_filter'
  /** Ours (input with cache reads and writes, output with reasoning); the adapter does the vendor's arithmetic backwards. */
  usage: Usage
}

export type SaidPart =
  | { text: string[] }
  /** `args`: pieces of JSON text; [] and [''] mean that the vendor sends no arguments. A wire of objects parses them. */
  | { call: string; id?: string; args: string[] }
  /** One opaque block, as made by `opaque` below. */
  | { opaque: unknown }

/** A request in neutral words. */
export interface Read {
  /** All system text, in order, joined by '\n'. */
  system: string
  turns: ReadTurn[]
  tools: { name: string; description: string; input: unknown }[]
  toolChoice?: 'auto' | 'none' | { name: string }
  maxTokens?: number
  temperature?: number
}

/** Neighbouring messages of one role are one turn; tool results belong to a `user` turn. */
export interface ReadTurn {
  role: 'user' | 'assistant'
  text: string
  calls: { id?: string; name: string; input: unknown }[]
  results: { id?: string; name?: string; content: string; isError: boolean }[]
  /** Thinking, signatures: the vendor's own objects, as they were sent back. */
  opaque: unknown[]
  files: number
}

export interface WireUnderTest {
  /** As in `provider.name`. */
  name: string
  /** Makes the provider against the fake. `url` has no path; `key` is a secret that must show up nowhere but in the request's headers. */
  make(options: { url: string; key: string } & HttpOptions): Provider
  whole(said: Said): { type: string; body: string | Buffer }
  events(said: Said): { type: string; events: Buffer[] }
  read(body: unknown): Read
  /** An error answer of this vendor: its body and headers. */
  failure(status: number, message: string): { body: string; headers?: Record<string, string> }
  /** An error inside a stream that came with 200: overloaded, try again. */
  errorEvent(message: string): Buffer
  /** Whether the wire carries the vendor's ids of calls (Gemini and Ollama of old do not). */
  ids: boolean
  /** Opaque parts as the provider makes them and what the vendor sends for them; [] if the wire has none. */
  opaques: { said: SaidPart; part: Part }[]
  /** True where a request says that a result is an error by more than words. */
  marksErrors: boolean
  /** Media types that a user's file part may have; the table sends each, and expects any other to be refused. */
  media: string[]
  /** Number of events at the end of `events(said)` without which the answer is still complete. Default 0. */
  optionalTail?: number
  /** Broken events to put in the place of good ones. Default: broken SSE or NDJSON, whichever `events` says. */
  malformed?: Buffer[]
  /** Default `'{"a":1,"b":"x'`; `undefined` on a wire whose calls always come whole. */
  halfCall?: string | undefined
  /** False where the wire has no word for a tool choice: its own tests say what it does then. */
  choosesTools?: false
  /** False where the wire does not say what came from a cache. */
  countsCache?: false
}

const key = 'test-key-0123456789'
const prompt = 'CANARY what nobody may read in a log'
export const scale = Number(process.env.DCAF_TEST_SCALE ?? 1)

const usage: Usage = { inputTokens: 30, outputTokens: 7, cacheReadTokens: 0, cacheWriteTokens: 0 }
const hello: Said = { parts: [{ text: ['Zażółć', ' gęślą 🎉', ' 日本'] }], finish: 'stop', usage }
const calls: Said = {
  parts: [
    { text: ['I look', ' first.'] },
    { call: 'list_pods', id: 'call_1', args: ['{"name', 'space":"pr', 'öd 🎉","n":1}'] },
    { call: 'get_node', id: 'call_2', args: ['{"name":"n', '1"}'] },
  ],
  finish: 'tool_call',
  usage,
}
const tools = ['list_pods', 'get_node'].map((name) => ({
  name,
  description: `Does ${name}`,
  input: { type: 'object', properties: { name: { type: 'string' } } },
}))

export function user(text: string): Message {
  return { role: 'user', parts: [{ type: 'text', text }] }
}

export function request(more: Partial<ModelRequest> = {}): ModelRequest {
  return { system: [{ text: 'You operate.' }], messages: [user('go')], tools, ...more }
}

/** A clock whose pauses take no time and are kept. */
export function instant(): Clock & { waits: number[] } {
  const waits: number[] = []
  return {
    waits,
    now: () => performance.now(),
    random: () => 0.5,
    async sleep(ms) {
      waits.push(ms)
    },
  }
}

/** Runs `complete` to its end: what it gave, what it threw, and what it streamed. */
export async function outcomeOf(
  provider: Provider,
  options: { stream?: boolean; request?: ModelRequest; signal?: AbortSignal } = {},
): Promise<{ reply?: ModelReply; error?: ProviderError; text: string }> {
  let text = ''
  const onDelta = (delta: { text: string }) => {
    text += delta.text
  }
  try {
    const reply = await provider.complete(options.request ?? request(), {
      ...(options.stream === false ? {} : { onDelta }),
      ...(options.signal ? { signal: options.signal } : {}),
    })
    return { reply, text }
  } catch (error) {
    return { error: error as ProviderError, text }
  }
}

/** Ids differ from call to call where a wire has none. */
function withoutIds(reply: ModelReply | undefined): unknown {
  const parts = reply?.parts.map((part) => (part.type === 'tool_call' ? { ...part, id: '' } : part))
  return { ...reply, parts, raw: undefined }
}

export function conformance(wire: WireUnderTest): void {
  const named = (claim: string, run: (vendor: FakeVendor) => Promise<void>) =>
    test(`${wire.name} ${claim}`, async () => {
      const vendor = await fakeVendor()
      try {
        await run(vendor)
      } finally {
        await vendor.close()
      }
    })
  const make = (vendor: FakeVendor, options: HttpOptions = {}) =>
    wire.make({ url: vendor.url, key, ...options })
  const whole = (said: Said): FakeAnswer => {
    const { type, body } = wire.whole(said)
    return { headers: { 'content-type': type }, pieces: [body], framing: 'length' }
  }
  const streamed = (said: Said, more: FakeAnswer = {}): FakeAnswer => {
    const { type, events } = wire.events(said)
    return { headers: { 'content-type': type }, pieces: events, ...more }
  }
  const both = [
    { mode: 'whole', stream: false, answer: whole },
    { mode: 'streamed', stream: true, answer: streamed },
  ]

  // ---- What comes back

  for (const { mode, stream, answer } of both) {
    named(`reads text, ${mode}`, async (vendor) => {
      vendor.answer(answer(hello))
      const { reply, text } = await outcomeOf(make(vendor), { stream })
      assert.deepEqual(reply?.parts, [{ type: 'text', text: 'Zażółć gęślą 🎉 日本' }])
      assert.equal(reply?.finishReason, 'stop')
      assert.deepEqual(reply?.usage, usage)
      assert.equal(text, stream ? 'Zażółć gęślą 🎉 日本' : '')
    })

    named(`reads parallel calls beside text, ${mode}`, async (vendor) => {
      vendor.answer(answer(calls))
      const { reply } = await outcomeOf(make(vendor), { stream })
      assert.deepEqual(
        reply?.parts.map((part) => (part.type === 'tool_call' ? [part.name, part.input] : part)),
        [
          { type: 'text', text: 'I look first.' },
          ['list_pods', { namespace: 'pröd 🎉', n: 1 }],
          ['get_node', { name: 'n1' }],
        ],
      )
      assert.equal(reply?.finishReason, 'tool_call')
      if (wire.ids) assert.deepEqual(idsOf(reply), ['call_1', 'call_2'])
      assert.equal(new Set(idsOf(reply)).size, 2)
    })

    named(`gives calls with one id or none ids of their own, ${mode}`, async (vendor) => {
      const call = { call: 'get_node', id: 'same', args: ['{}'] }
      const { id: _, ...without } = call
      vendor.answer(answer({ parts: [call, call, without], finish: 'tool_call', usage }))
      const { reply } = await outcomeOf(make(vendor), { stream })
      assert.equal(new Set(idsOf(reply)).size, 3)
      assert.ok(idsOf(reply).every((id) => id.length > 0))
    })

    named(`reads no arguments, however they are spelled, as {}, ${mode}`, async (vendor) => {
      for (const args of [[], [''], ['{}'], ['{', '}'], [' ']]) {
        vendor.answer(
          answer({ parts: [{ call: 'list_pods', id: 'c', args }], finish: 'tool_call', usage }),
        )
        const { reply, error } = await outcomeOf(make(vendor), { stream })
        assert.equal(error, undefined)
        assert.deepEqual(inputsOf(reply), [{}], JSON.stringify(args))
      }
    })

    named(`decides by the calls, not by the reason, ${mode}`, async (vendor) => {
      vendor.answer(answer({ ...calls, finish: 'stop' }))
      const { reply } = await outcomeOf(make(vendor), { stream })
      assert.equal(reply?.finishReason, 'tool_call')
    })

    named(`keeps a call cut by the length from ever having an input, ${mode}`, async (vendor) => {
      const half = 'halfCall' in wire ? wire.halfCall : '{"a":1,"b":"x'
      if (half === undefined) return
      for (const args of [[half], ['']]) {
        vendor.answer(
          answer({ parts: [{ call: 'list_pods', id: 'c', args }], finish: 'length', usage }),
        )
        const { reply, error } = await outcomeOf(make(vendor), { stream })
        assert.equal(error, undefined)
        assert.equal(reply?.finishReason, 'length')
        for (const input of inputsOf(reply))
          assert.equal(typeof input, 'string', JSON.stringify(args))
      }
    })

    named(`maps the reasons, ${mode}`, async (vendor) => {
      for (const finish of ['stop', 'length', 'content_filter'] as const) {
        vendor.answer(answer({ ...hello, finish }))
        const { reply } = await outcomeOf(make(vendor), { stream })
        assert.equal(reply?.finishReason, finish)
        assert.ok((reply?.raw as { finishReason?: unknown } | undefined)?.finishReason)
      }
    })

    named(`accepts an empty turn, ${mode}`, async (vendor) => {
      vendor.answer(answer({ parts: [], finish: 'stop', usage }))
      const { reply, error } = await outcomeOf(make(vendor), { stream })
      assert.equal(error, undefined)
      assert.deepEqual(reply?.parts, [])
    })

    named(`counts cache reads and writes as input, ${mode}`, async (vendor) => {
      if (wire.countsCache === false) return
      const cached = { ...usage, cacheReadTokens: 20 }
      vendor.answer(answer({ ...hello, usage: cached }))
      const { reply } = await outcomeOf(make(vendor), { stream })
      assert.deepEqual(reply?.usage, cached)
    })

    for (const { said, part } of wire.opaques) {
      named(
        `carries opaque parts there and back, ${mode}: ${JSON.stringify(part).slice(0, 60)}`,
        async (vendor) => {
          vendor.answer(answer({ parts: [said, ...calls.parts], finish: 'tool_call', usage }))
          const { reply } = await outcomeOf(make(vendor), { stream })
          assert.deepEqual(reply?.parts[0], part)
          const results = idsOf(reply).map((callId) => ({
            callId,
            outcome: 'ok' as const,
            content: 'done',
          }))
          const turn: Message = { role: 'assistant', parts: reply?.parts ?? [], results }
          const stored = JSON.parse(JSON.stringify([user('go'), turn]))
          const read = wire.read(make(vendor).render(request({ messages: stored })))
          assert.deepEqual(read.turns[1]?.opaque, [(part as { data: unknown }).data])
        },
      )
    }
  }

  // ---- What is sent

  named('sends what `render` says, whole and streamed', async (vendor) => {
    vendor.answer((_, n) => (n === 0 ? whole(hello) : streamed(hello)))
    const provider = make(vendor)
    const asked = request({
      messages: conversation(),
      maxTokens: 99,
      temperature: 0.5,
      cache: true,
    })
    for (const stream of [false, true]) {
      const { error } = await outcomeOf(provider, { stream, request: asked })
      assert.equal(error, undefined)
    }
    const render = provider.render as (r: ModelRequest, o?: { stream: boolean }) => unknown
    assert.deepEqual(vendor.asked[0]?.body, render(asked))
    assert.deepEqual(vendor.asked[1]?.body, render(asked, { stream: true }))
  })

  named('sends system, tools, limits and tool choice', async (vendor) => {
    const provider = make(vendor)
    const choices = ['none', { name: 'get_node' }, 'auto'] as const
    for (const toolChoice of wire.choosesTools === false ? (['auto'] as const) : choices) {
      const asked = request({
        system: [{ text: 'A', cache: true }, { text: 'B' }],
        maxTokens: 77,
        temperature: 0.25,
        toolChoice,
      })
      const read = wire.read(provider.render(asked))
      assert.equal(read.system, 'A\nB')
      assert.deepEqual(read.tools, tools)
      assert.equal(read.maxTokens, 77)
      assert.equal(read.temperature, 0.25)
      assert.deepEqual(read.toolChoice ?? 'auto', toolChoice)
    }
    assert.deepEqual(wire.read(provider.render(request({ tools: [] }))).tools, [])
  })

  named('sends every result of a turn, errors as errors, before the next words', async (vendor) => {
    const read = wire.read(make(vendor).render(request({ messages: conversation() })))
    assert.deepEqual(
      read.turns.map((turn) => turn.role),
      ['user', 'assistant', 'user'],
    )
    const [, asked, told] = read.turns
    assert.equal(asked?.text, 'I look.')
    assert.deepEqual(
      asked?.calls.map((call) => [call.name, call.input]),
      [
        ['list_pods', { namespace: 'prod' }],
        ['get_node', {}],
      ],
    )
    assert.equal(told?.results.length, 2)
    assert.match(told?.results[0]?.content ?? '', /3 pods/)
    assert.match(told?.results[1]?.content ?? '', /no such node/)
    assert.equal(told?.text, 'and now?')
    if (wire.marksErrors)
      assert.deepEqual(
        told?.results.map((r) => r.isError),
        [false, true],
      )
    if (wire.ids) {
      assert.deepEqual(
        asked?.calls.map((c) => c.id),
        ['tc_aaaaaaaaaaaaaaaa', 'tc_bbbbbbbbbbbbbbbb'],
      )
      assert.deepEqual(
        told?.results.map((r) => r.id),
        ['tc_aaaaaaaaaaaaaaaa', 'tc_bbbbbbbbbbbbbbbb'],
      )
    }
  })

  named('marks rejected, expired and unknown results as errors too', async (vendor) => {
    if (!wire.marksErrors) return
    for (const outcome of ['rejected', 'expired', 'unknown'] as const) {
      const messages = conversation()
      const turn = messages[1] as Message & { role: 'assistant' }
      turn.results = turn.results.map((result) => ({ ...result, outcome }))
      const read = wire.read(make(vendor).render(request({ messages })))
      assert.deepEqual(
        read.turns[2]?.results.map((r) => r.isError),
        [true, true],
        outcome,
      )
    }
  })

  named('renders a call whose input was never JSON', async (vendor) => {
    const messages = conversation()
    const call = messages[1]?.parts[1] as Part & { type: 'tool_call' }
    call.input = '{"half":'
    const read = wire.read(make(vendor).render(request({ messages })))
    assert.ok(JSON.stringify(read.turns[1]?.calls[0]?.input).includes('half'))
  })

  named('skips what another vendor thought, and turns with nothing in them', async (vendor) => {
    const messages: Message[] = [
      user('go'),
      {
        role: 'assistant',
        parts: [{ type: 'opaque', provider: 'other', data: { x: 'FOREIGN' } }],
        results: [],
      },
      user('on'),
    ]
    const body = make(vendor).render(request({ messages }))
    assert.ok(!JSON.stringify(body).includes('FOREIGN'))
    assert.equal(
      wire
        .read(body)
        .turns.map((turn) => turn.text)
        .join(' ')
        .replace(/\s+/g, ' ')
        .trim(),
      'go on',
    )
  })

  named('never sends half a surrogate pair', async (vendor) => {
    vendor.answer(whole(hello))
    const messages = [user('cut \ud83c here')]
    await outcomeOf(make(vendor), { stream: false, request: request({ messages }) })
    assert.ok(!/\\ud[89a-f]/i.test(vendor.asked[0]?.text ?? 'nothing sent'), vendor.asked[0]?.text)
    assert.ok(vendor.asked[0]?.text.includes('cut'))
  })

  named(
    'sends files it has a place for and refuses others before anything is sent',
    async (vendor) => {
      const withFile = (mediaType: string) =>
        request({
          messages: [
            {
              role: 'user',
              parts: [
                { type: 'text', text: 'see' },
                { type: 'file', mediaType, data: 'aGk=', name: 'a' },
              ],
            },
          ],
        })
      for (const mediaType of wire.media) {
        const read = wire.read(make(vendor).render(withFile(mediaType)))
        assert.equal(read.turns[0]?.files, 1, mediaType)
      }
      const { error } = await outcomeOf(make(vendor), {
        request: withFile('application/x-nonsense'),
      })
      assert.ok(error instanceof ProviderError)
      assert.match(error.message, /application\/x-nonsense/)
      assert.equal(vendor.asked.length, 0)
    },
  )

  named('repeats the static prefix and the old turns byte for byte', async (vendor) => {
    vendor.answer(whole(hello))
    const provider = make(vendor)
    const first = conversation()
    const reply: Message = {
      role: 'assistant',
      parts: [{ type: 'text', text: 'SECOND' }],
      results: [],
    }
    await outcomeOf(provider, { stream: false, request: request({ messages: first }) })
    await outcomeOf(provider, {
      stream: false,
      request: request({ messages: [...first, reply, user('THIRD')] }),
    })
    await outcomeOf(make(vendor), {
      stream: false,
      request: request({ messages: [...conversation(), reply, user('THIRD')] }),
    })
    const [a = '', b = '', c = ''] = vendor.asked.map((asked) => asked.text)
    assert.equal(b, c)
    assert.ok(
      a.startsWith(b.slice(0, b.indexOf('and now?'))),
      'the older request is a prefix of the newer',
    )
  })

  named('renders anew what was changed in place', async (vendor) => {
    const provider = make(vendor)
    const part = { type: 'text' as const, text: 'OLD' }
    const messages: Message[] = [{ role: 'user', parts: [part] }, ...conversation()]
    provider.render(request({ messages }))
    part.text = 'NEW'
    const text = JSON.stringify(provider.render(request({ messages })))
    assert.ok(text.includes('NEW') && !text.includes('OLD'))
  })

  named('renders anew a call whose input took another shape of the same words', async (vendor) => {
    const shapes: [before: unknown, after: unknown][] = [
      [{ x: [] }, { x: 0 }],
      [{ x: ['a', 5] }, { x: 2, a: 5 }],
      [
        { a: { b: 'c' }, d: 'e' },
        { a: 'b', c: {}, d: 'e' },
      ],
    ]
    for (const [before, after] of shapes) {
      const call = { type: 'tool_call' as const, id: 'call_1', name: 'list_pods', input: before }
      const results = [{ callId: 'call_1', outcome: 'ok' as const, content: 'none' }]
      const turn: Message = { role: 'assistant', parts: [call], results }
      const messages = [user('FIRST'), turn, user('SECOND')]
      const provider = make(vendor)
      provider.render(request({ messages }))
      call.input = after
      const anew = make(vendor).render(request({ messages }))
      assert.deepEqual(provider.render(request({ messages })), anew)
    }
  })

  named('reads a long stream as it reads the same answer whole', async (vendor) => {
    const pieces = [
      ' w1',
      '"',
      '\\',
      '\n',
      '"}',
      '","',
      '🎉',
      'text',
      '{"content":"x"}',
      '\u2603',
      ' w2',
    ]
    const text = Array.from({ length: 90 }, (_, i) => pieces[(i * 7) % pieces.length] ?? '')
    const args = JSON.stringify({ name: 'a"b\\c\n'.repeat(30) }).match(/.{1,3}/gs) ?? []
    const parts = [{ text }, { call: 'list_pods', id: 'call_1', args: [...args] }]
    const said: Said = { parts, finish: 'tool_call', usage }
    const provider = make(vendor)
    vendor.answer(streamed(said))
    const long = await outcomeOf(provider)
    vendor.answer(whole(said))
    const short = await outcomeOf(provider, { stream: false })
    assert.equal(long.text, text.join(''))
    assert.deepEqual(withoutIds(long.reply), withoutIds(short.reply))
  })

  // ---- The wire cut, split and broken

  named(
    'reads a stream cut in two at any byte, and into single bytes, as if it were whole',
    async (vendor) => {
      const { type, events } = wire.events(calls)
      const all = Buffer.concat(events)
      const provider = make(vendor)
      vendor.answer(streamed(calls))
      const expected = withoutIds((await outcomeOf(provider)).reply)
      const check = async (pieces: Buffer[], what: string) => {
        vendor.answer({ headers: { 'content-type': type }, pieces })
        const { reply, error, text } = await outcomeOf(provider)
        assert.equal(error, undefined, what)
        assert.deepEqual(withoutIds(reply), expected, what)
        assert.equal(text, 'I look first.', what)
      }
      for (let at = 1; at < all.length; at++) {
        await check([all.subarray(0, at), all.subarray(at)], `cut at ${at}`)
      }
      await check(
        [...all].map((byte) => Buffer.from([byte])),
        'bytes',
      )
      for (let i = 0; i < 20 * scale; i++) {
        const pieces: Buffer[] = []
        for (let at = 0; at < all.length; ) {
          const next = at + 1 + Math.floor(Math.random() * 40)
          pieces.push(all.subarray(at, next))
          at = next
        }
        await check(pieces, `pieces of ${pieces.map((p) => p.length)}`)
      }
    },
  )

  named(
    'calls an answer that ends early truncated, wherever and however it ends',
    async (vendor) => {
      const { type, events } = wire.events(calls)
      const needed = bytesOf(events.slice(0, events.length - (wire.optionalTail ?? 0)))
      const all = Buffer.concat(events)
      const provider = make(vendor, { retries: 0 })
      const borders = new Set(
        events.flatMap((_, i) => [-1, 0, 1].map((d) => bytesOf(events.slice(0, i)) + d)),
      )
      const stride = Math.max(1, Math.floor(needed / (25 * scale)))
      const ways: FakeAnswer[] = [
        { framing: 'chunked', end: 'fin' },
        { framing: 'chunked', end: 'reset' },
        { framing: 'close' },
        { framing: 'chunked', end: 'end' },
        { framing: 'length', missing: 5, end: 'fin' },
      ]
      for (let at = 0; at < needed; at++) {
        if (at % stride !== 0 && !borders.has(at) && at < needed - 3) continue
        for (const way of ways) {
          vendor.answer({
            headers: { 'content-type': type },
            pieces: [all.subarray(0, at)],
            ...way,
          })
          const { reply, error } = await outcomeOf(provider)
          const what = `${at} of ${needed} bytes, ${JSON.stringify(way)}`
          assert.equal(reply, undefined, what)
          assert.equal(error?.code, 'provider_truncated', `${what}: ${error?.message}`)
        }
      }
    },
  )

  named('calls a whole answer that is cut truncated', async (vendor) => {
    const { type, body } = wire.whole(calls)
    const all = Buffer.from(body)
    const provider = make(vendor, { retries: 0 })
    for (let at = 0; at < all.length; at += Math.max(1, Math.floor(all.length / (20 * scale)))) {
      for (const way of [
        { framing: 'close' },
        { framing: 'chunked', end: 'fin' },
      ] as FakeAnswer[]) {
        vendor.answer({ headers: { 'content-type': type }, pieces: [all.subarray(0, at)], ...way })
        const { error } = await outcomeOf(provider, { stream: false })
        assert.equal(
          error?.code,
          'provider_truncated',
          `${at} ${JSON.stringify(way)}: ${error?.message}`,
        )
      }
    }
  })

  named('tries an answer again that ended before a word of it was handed on', async (vendor) => {
    const { type, events } = wire.events(hello)
    const cut = {
      headers: { 'content-type': type },
      pieces: events.slice(0, 1),
      end: 'fin' as const,
    }
    vendor.answer((_, n) => (n === 0 ? { ...cut, pieces: [] } : streamed(hello)))
    const { reply } = await outcomeOf(make(vendor, { clock: instant() }))
    assert.equal(vendor.asked.length, 2)
    assert.equal(reply?.finishReason, 'stop')
  })

  named('survives any broken event in any place', async (vendor) => {
    const { type, events } = wire.events(calls)
    const broken =
      wire.malformed ??
      ['{bad', '[]', 'null', '42', '"x"', '{}', '', '{"type":"kind_to_come","x":[{}]}'].map(
        (text) => Buffer.from(type.includes('event-stream') ? `data: ${text}\n\n` : `${text}\n`),
      )
    const provider = make(vendor, { retries: 0 })
    for (let i = 0; i < events.length; i++) {
      for (const bad of [...broken, events[i] as Buffer]) {
        // in its place, and for the last one (the event itself) twice over
        const pieces = bad === events[i] ? events.toSpliced(i, 0, bad) : events.with(i, bad)
        vendor.answer({ headers: { 'content-type': type }, pieces })
        const { error } = await outcomeOf(provider)
        if (error) assert.ok(error instanceof ProviderError, `${i} ${bad}: ${inspect(error)}`)
      }
    }
  })

  named('refuses arguments of more than 1 MiB', async (vendor) => {
    const args = ['{"x":"', ...Array(12).fill('y'.repeat(100_000)), '"}']
    vendor.answer(
      streamed({ parts: [{ call: 'get_node', id: 'c', args }], finish: 'tool_call', usage }),
    )
    const { reply, error } = await outcomeOf(make(vendor, { retries: 0 }))
    assert.equal(reply, undefined)
    assert.equal(error?.code, 'provider_invalid')
  })

  // ---- Failures

  named('tries an error that comes as the first event again', async (vendor) => {
    const { type } = wire.events(hello)
    const failing = { headers: { 'content-type': type }, pieces: [wire.errorEvent('try later')] }
    vendor.answer((_, n) => (n < 2 ? failing : streamed(hello)))
    const clock = instant()
    const { reply, error, text } = await outcomeOf(make(vendor, { clock }))
    assert.equal(error, undefined)
    assert.equal(reply?.finishReason, 'stop')
    assert.equal(text, 'Zażółć gęślą 🎉 日本')
    assert.deepEqual(clock.waits, [437.5, 875])
    vendor.answer(failing)
    const { error: last } = await outcomeOf(make(vendor, { clock }))
    assert.ok(last instanceof ProviderError && last.retryable)
    assert.match(last.message, /try later/)
    assert.equal(vendor.asked.length, 6)
  })

  named('tries nothing again once text has been handed on', async (vendor) => {
    const { type, events } = wire.events({ ...hello, parts: [{ text: ['kept', 'x', 'y'] }] })
    const upToText = events.slice(0, 1 + events.findIndex((event) => event.includes('kept')))
    const headers = { 'content-type': type }
    const ends: [FakeAnswer, string][] = [
      [{ headers, pieces: [...upToText, wire.errorEvent('too late')] }, ''],
      [{ headers, pieces: upToText, end: 'reset' }, 'provider_truncated'],
      [{ headers, pieces: upToText, end: 'fin' }, 'provider_truncated'],
      [{ headers, pieces: upToText, framing: 'close' }, 'provider_truncated'],
      [{ headers, pieces: upToText, end: 'hang' }, 'provider_timeout'],
    ]
    for (const [answer, code] of ends) {
      const before = vendor.asked.length
      vendor.answer(answer)
      const provider = make(vendor, { clock: instant(), timeouts: { idleMs: 150 } })
      const { error, text } = await outcomeOf(provider)
      assert.equal(vendor.asked.length - before, 1, inspect(answer))
      assert.ok(error instanceof ProviderError)
      if (code) assert.equal(error.code, code)
      assert.equal(text, 'kept')
    }
  })

  for (const { mode, stream, answer } of both) {
    named(`tries what may pass again, twice, with growing pauses, ${mode}`, async (vendor) => {
      for (const status of [408, 409, 429, 500, 502, 503, 504, 529]) {
        const clock = instant()
        const before = vendor.asked.length
        vendor.answer(failing(status))
        const { error } = await outcomeOf(make(vendor, { clock }), { stream })
        assert.equal(vendor.asked.length - before, 3, `${status}`)
        assert.deepEqual(clock.waits, [437.5, 875], `${status}`)
        assert.equal(error?.status, status)
        assert.equal(error?.retryable, true)
        const code =
          status === 408 || status === 504
            ? 'provider_timeout'
            : [429, 503, 529].includes(status)
              ? 'provider_overloaded'
              : 'provider_error'
        assert.equal(error?.code, code, `${status}`)
        let left = 2
        vendor.answer(() => (left-- > 0 ? failing(status) : answer(hello)))
        const { reply } = await outcomeOf(make(vendor, { clock }), { stream })
        assert.equal(reply?.finishReason, 'stop')
      }
    })

    named(`tries what will not pass once, ${mode}`, async (vendor) => {
      for (const [status, code] of [
        [400, 'provider_error'],
        [401, 'provider_auth'],
        [403, 'provider_auth'],
        [404, 'provider_config'],
        [413, 'context_too_long'],
        [422, 'provider_error'],
      ] as const) {
        const clock = instant()
        const before = vendor.asked.length
        vendor.answer(failing(status))
        const { error } = await outcomeOf(make(vendor, { clock }), { stream })
        assert.equal(vendor.asked.length - before, 1, `${status}`)
        assert.deepEqual(clock.waits, [])
        assert.deepEqual(
          [error?.code, error?.status, error?.retryable],
          [code, status, false],
          `${status}`,
        )
        assert.match(error?.message ?? '', /^127\.0\.0\.1:\d+ answered \d+: no, sorry$/)
        assert.equal(error?.provider, wire.name)
      }
    })
  }

  named('waits as long as the vendor asks, up to a minute', async (vendor) => {
    const inTen = new Date(Date.now() + 10_000).toUTCString()
    const table: [Record<string, string>, (wait: number) => boolean][] = [
      [{ 'retry-after': '3' }, (wait) => wait === 3000],
      [{ 'retry-after': '0.5' }, (wait) => wait === 500],
      [{ 'retry-after': inTen }, (wait) => wait > 8000 && wait <= 10_000],
      [{ 'retry-after-ms': '120', 'retry-after': '9' }, (wait) => wait === 120],
      [{ 'retry-after-ms': '0', 'retry-after': '1' }, (wait) => wait === 1000],
      [{ 'retry-after': '0' }, (wait) => wait === 437.5],
      [{ 'retry-after': '-1' }, (wait) => wait === 437.5],
      [{ 'retry-after': 'soon' }, (wait) => wait === 437.5],
      [{ 'retry-after': '60' }, (wait) => wait === 60_000],
    ]
    for (const [headers, fits] of table) {
      const clock = instant()
      let n = 0
      vendor.answer(() => (n++ === 0 ? failing(429, headers) : whole(hello)))
      const { reply } = await outcomeOf(make(vendor, { clock }), { stream: false })
      assert.ok(reply, inspect(headers))
      assert.equal(clock.waits.length, 1)
      assert.ok(fits(clock.waits[0] as number), `${inspect(headers)} ${clock.waits}`)
    }
  })

  named('passes on a pause that is longer than a minute instead of waiting', async (vendor) => {
    for (const [after, ms] of [
      ['61', 61_000],
      ['1000000000000', 1e15],
    ] as const) {
      const clock = instant()
      const before = vendor.asked.length
      vendor.answer(failing(429, { 'retry-after': after }))
      const { error } = await outcomeOf(make(vendor, { clock }), { stream: false })
      assert.equal(vendor.asked.length - before, 1)
      assert.deepEqual(clock.waits, [])
      assert.equal(error?.retryAfterMs, ms)
      assert.equal(error?.code, 'provider_overloaded')
    }
  })

  named('tries a connection that nobody accepts again, and names the host', async (vendor) => {
    const clock = instant()
    const provider = make(vendor, { clock })
    await vendor.close()
    const { error } = await outcomeOf(provider)
    assert.equal(clock.waits.length, 2)
    assert.equal(error?.code, 'provider_error')
    assert.match(error?.message ?? '', /^127\.0\.0\.1:\d+ cannot be reached \(ECONNREFUSED\)$/)
  })

  named('follows no redirect and shows the key to nobody', async (vendor) => {
    const other = await fakeVendor(whole(hello))
    try {
      for (const status of [301, 302, 307, 308]) {
        const before = vendor.asked.length
        vendor.answer({ status, headers: { location: `${other.url}/v1` }, pieces: ['x'] })
        const { error } = await outcomeOf(make(vendor, { clock: instant() }))
        assert.ok(error instanceof ProviderError, inspect(error))
        assert.equal(vendor.asked.length - before, 1)
      }
      assert.equal(other.asked.length, 0)
    } finally {
      await other.close()
    }
  })

  named(
    'keeps key and prompt out of its errors, even when the vendor quotes them',
    async (vendor) => {
      const asked = request({ messages: [user(prompt)] })
      const words = `bad key ${key} for "${prompt}"`
      for (const status of [400, 401, 500]) {
        vendor.answer({ ...failing(status, {}, words) })
        const { error } = await outcomeOf(make(vendor, { retries: 0 }), { request: asked })
        assert.ok(error instanceof ProviderError)
        const shown = inspect(error, { depth: 9, showHidden: true }) + JSON.stringify(error)
        assert.ok(!shown.includes(key), shown)
        assert.ok(!shown.includes(prompt), shown)
        assert.match(error.message, /bad key/)
      }
      vendor.answer({
        headers: { 'content-type': wire.events(hello).type },
        pieces: [wire.errorEvent(words)],
      })
      const { error } = await outcomeOf(make(vendor, { retries: 0 }), { request: asked })
      const shown = inspect(error, { depth: 9, showHidden: true })
      assert.ok(!shown.includes(key) && !shown.includes(prompt), shown)
    },
  )

  // ---- Clocks, abort, a slow reader

  named('names the clock that ran out and closes the connection', async (vendor) => {
    const { type, events } = wire.events({ ...hello, parts: [{ text: ['kept', 'x'] }] })
    const headers = { 'content-type': type }
    const drip = [...Buffer.concat(events)].map((byte) => Buffer.from([byte]))
    const table: [keyof NonNullable<HttpOptions['timeouts']>, FakeAnswer, number][] = [
      ['firstEventMs', { end: 'mute' }, 2],
      ['firstEventMs', { headers, end: 'hang' }, 2],
      ['idleMs', { headers, pieces: drip.slice(0, 3), end: 'hang' }, 2],
      ['stepMs', { headers, pieces: drip, gapMs: 10 }, 1],
    ]
    for (const [option, answer, calls] of table) {
      const before = vendor.asked.length
      vendor.answer(answer)
      const provider = make(vendor, { clock: instant(), timeouts: { [option]: 150 } })
      const { error } = await outcomeOf(provider)
      assert.equal(error?.code, 'provider_timeout', inspect(error))
      assert.match(error?.message ?? '', new RegExp(`timeouts\\.${option}`))
      assert.equal(vendor.asked.length - before, calls, option)
      await Promise.all(vendor.asked.slice(before).map((asked) => asked.closed))
    }
  })

  named(
    'aborts at any time with the reason of the signal, and closes the connection',
    async (vendor) => {
      const { type, events } = wire.events({ ...hello, parts: [{ text: ['kept', 'x'] }] })
      const headers = { 'content-type': type }
      const upToText = events.slice(0, 1 + events.findIndex((event) => event.includes('kept')))
      for (const answer of [
        { end: 'mute' },
        { headers, end: 'hang' },
        { headers, pieces: upToText, end: 'hang' },
      ] as FakeAnswer[]) {
        const controller = new AbortController()
        const reason = new Error('enough')
        const before = vendor.asked.length
        vendor.answer(() => {
          setTimeout(() => controller.abort(reason), 20)
          return answer
        })
        const { error } = await outcomeOf(make(vendor), { signal: controller.signal })
        assert.equal(error, reason)
        assert.equal(vendor.asked.length - before, 1)
        await vendor.asked[before]?.closed
      }
      const aborted = AbortSignal.abort(new Error('before'))
      const before = vendor.asked.length
      const { error } = await outcomeOf(make(vendor), { signal: aborted })
      assert.equal(error, aborted.reason)
      assert.equal(vendor.asked.length, before)
    },
  )

  named('aborts while it waits to try again', async (vendor) => {
    const controller = new AbortController()
    vendor.answer(() => {
      setTimeout(() => controller.abort(new Error('enough')), 20)
      return failing(429, { 'retry-after': '30' })
    })
    const { error } = await outcomeOf(make(vendor), { signal: controller.signal })
    assert.equal(error?.message, 'enough')
    assert.equal(vendor.asked.length, 1)
  })

  named('hands on one piece at a time to a reader that takes its time', async (vendor) => {
    const pieces = Array.from({ length: 30 }, (_, i) => `<${i}>`)
    vendor.answer(streamed({ ...hello, parts: [{ text: pieces }] }))
    const seen: string[] = []
    let inside = 0
    const reply = await make(vendor, { timeouts: { idleMs: 150 } }).complete(request(), {
      async onDelta({ text }) {
        assert.equal(++inside, 1)
        await new Promise((resolve) => setTimeout(resolve, seen.length === 3 ? 250 : 1))
        seen.push(text)
        inside--
      },
    })
    assert.deepEqual(seen.join(''), pieces.join(''))
    assert.deepEqual(reply.parts, [{ type: 'text', text: pieces.join('') }])
  })

  named('ends with what its reader threw, and tries nothing again', async (vendor) => {
    vendor.answer(streamed(hello))
    const broken = new Error('reader gone')
    const throws = [
      () => {
        throw broken
      },
      () => Promise.reject(broken),
    ]
    for (const onDelta of throws) {
      const before = vendor.asked.length
      await assert.rejects(
        make(vendor).complete(request(), { onDelta }),
        (error) => error === broken,
      )
      assert.equal(vendor.asked.length - before, 1)
    }
  })

  named('keeps concurrent answers apart', async (vendor) => {
    vendor.answer((asked) => {
      const n = /question (\d+)/.exec(asked.text)?.[1] ?? ''
      return streamed({ ...hello, parts: [{ text: ['answer ', n] }] })
    })
    const provider = make(vendor)
    const texts = await Promise.all(
      Array.from({ length: 20 }, async (_, i) => {
        const { text } = await outcomeOf(provider, {
          request: request({ messages: [user(`question ${i}`)] }),
        })
        return text
      }),
    )
    assert.deepEqual(
      texts,
      Array.from({ length: 20 }, (_, i) => `answer ${i}`),
    )
  })

  function failing(
    status: number,
    headers: Record<string, string> = {},
    words = 'no, sorry',
  ): FakeAnswer {
    const { body, headers: own } = wire.failure(status, words)
    const type = { 'content-type': 'application/json' }
    return { status, headers: { ...type, ...own, ...headers }, pieces: [body], framing: 'length' }
  }
}

/** Two calls, one that failed, and the next words of the user. */
function conversation(): Message[] {
  return [
    user('go'),
    {
      role: 'assistant',
      parts: [
        { type: 'text', text: 'I look.' },
        {
          type: 'tool_call',
          id: 'tc_aaaaaaaaaaaaaaaa',
          name: 'list_pods',
          input: { namespace: 'prod' },
        },
        { type: 'tool_call', id: 'tc_bbbbbbbbbbbbbbbb', name: 'get_node', input: {} },
      ],
      results: [
        { callId: 'tc_aaaaaaaaaaaaaaaa', outcome: 'ok', content: '3 pods' },
        { callId: 'tc_bbbbbbbbbbbbbbbb', outcome: 'error', content: 'no such node' },
      ],
    },
    user('and now?'),
  ]
}

function idsOf(reply: ModelReply | undefined): string[] {
  return (reply?.parts ?? []).flatMap((part) => (part.type === 'tool_call' ? [part.id] : []))
}

function inputsOf(reply: ModelReply | undefined): unknown[] {
  return (reply?.parts ?? []).flatMap((part) => (part.type === 'tool_call' ? [part.input] : []))
}

function bytesOf(events: Buffer[]): number {
  return events.reduce((sum, event) => sum + event.length, 0)
}
