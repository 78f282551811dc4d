// What all HTTP providers stand on: reading, clocks, retries, rendering. The wire under test is as small as one can be;
// what a vendor's wire does on top of it is in test/providers/.

import assert from 'node:assert/strict'
import { EventEmitter, getEventListeners, once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { test } from 'node:test'
import { inspect } from 'node:util'
import fc from 'fast-check'
import { type Dispatcher, MockAgent } from 'undici'
import { ProviderError, retryAfterMs, truncated } from '../src/providers/errors.ts'
import { alternating, Memory, toJson } from '../src/providers/history.ts'
import { caps, checkedTimeouts } from '../src/providers/limits.ts'
import { EventReader } from '../src/providers/lines.ts'
import {
  DcafError,
  type Message,
  type ModelRequest,
  noUsage,
  type Part,
} from '../src/providers/provider.ts'
import { inputObject, toolInput, toReply } from '../src/providers/reply.ts'
import { retrying } from '../src/providers/retry.ts'
import { type HttpOptions, httpProvider, type Wire } from '../src/providers/wire.ts'
import { type Answering, type FakeVendor, fakeVendor } from './providers/fake.ts'
import { instant, outcomeOf, request, scale, user } from './providers/table.ts'

const reply = (parts: Part[]) => toReply({ parts, finishReason: 'stop', usage: { ...noUsage } })

/** Each event is a text; `"end"` is the last one. */
function plain(url: string, more: Partial<Wire> = {}): Wire {
  return {
    name: 'plain',
    model: 'm',
    url: () => url,
    headers: { authorization: 'Bearer test-key-123' },
    format: 'sse',
    render: ({ messages }, stream) => ({ messages, ...(stream && { stream }) }),
    parse: (json) => reply([{ type: 'text', text: json.text }]),
    fold(answer) {
      let text = ''
      return {
        done: false,
        event(json, name) {
          if (json === 'end' || json === '[DONE]') this.done = true
          else text += `${name}${json}`
          return this.done ? undefined : `${name}${json}`
        },
        end() {
          if (!this.done) throw truncated(answer)
          return reply([{ type: 'text', text }])
        },
      }
    },
    ...more,
  }
}

function against(claim: string, answering: Answering, run: (vendor: FakeVendor) => Promise<void>) {
  test(claim, async () => {
    const vendor = await fakeVendor(answering)
    try {
      await run(vendor)
    } finally {
      await vendor.close()
    }
  })
}

const make = (vendor: FakeVendor, options: HttpOptions = {}, more: Partial<Wire> = {}) =>
  httpProvider(plain(`${vendor.url}/v1`, more), options)
const events = { 'content-type': 'text/event-stream' }
const said = (...texts: string[]) => texts.map((text) => `data: ${JSON.stringify(text)}\n\n`)
const hello = { headers: events, pieces: said('hel', 'lo', 'end') }

// ---- Reading

function readAll(
  format: 'sse' | 'ndjson',
  text: string | Buffer,
  cuts: number[] = [],
): [string, string][] {
  const reader = new EventReader(format)
  const bytes = Buffer.from(text)
  const out: [string, string][] = []
  const take = () => {
    for (let data = reader.next(); data !== undefined; data = reader.next())
      out.push([reader.name, data])
  }
  let from = 0
  for (const cut of [...cuts, bytes.length]) {
    reader.push(bytes.subarray(from, cut))
    from = cut
    take()
  }
  reader.end()
  take()
  return out
}

const sse = (text: string | Buffer, cuts?: number[]) => readAll('sse', text, cuts)
const everyByte = (text: string) => Array.from(Buffer.from(text), (_, i) => i + 1)

test('reads events whatever ends their lines, comments and a byte order mark aside', () => {
  const text =
    '\ufeff\n\n: hi\nid: 1\nretry: 5\nevent: a\ndata: 1\n\n:\ndata:2\ndata:  3\n\ndata: ż🎉 \n\n'
  const expected = [
    ['a', '1'],
    ['', '2\n 3'],
    ['', 'ż🎉 '],
  ]
  for (const end of ['\n', '\r\n', '\r']) {
    const wired = text.replaceAll('\n', end)
    assert.deepEqual(sse(wired), expected, JSON.stringify(end))
    assert.deepEqual(sse(wired, everyByte(wired)), expected, `${JSON.stringify(end)} in bytes`)
  }
})

test('drops an event that the stream ends in, and one without data', () => {
  assert.deepEqual(sse('data: 1\n\ndata: 2\n'), [['', '1']])
  assert.deepEqual(sse('event: a\n\ndata: 1\n\n'), [['', '1']])
  assert.deepEqual(sse('data:\n\ndata: \n\n'), [])
})

test('reads any events the same in any pieces', () => {
  const text = fc
    .string({ unit: 'binary', maxLength: 12 })
    .map((t) => t.toWellFormed().replace(/[\r\n]/g, ''))
  const end = fc.constantFrom('\n', '\r\n', '\r')
  fc.assert(
    fc.property(fc.array(fc.tuple(text, text, end)), fc.array(fc.nat(400)), (list, cuts) => {
      let wired = ''
      for (const [name, data, eol] of list)
        wired += `event: ${name}x${eol}data: v${data}${eol}${eol}`
      const { length } = Buffer.from(wired)
      const at = [...new Set(cuts)].filter((cut) => cut < length).sort((a, b) => a - b)
      assert.deepEqual(
        sse(wired, at),
        list.map(([name, data]) => [`${name}x`.trim(), `v${data}`]),
      )
    }),
    { numRuns: 300 * scale },
  )
})

test('reads lines of JSON, the last one without an end too', () => {
  const lines = (text: string, cuts?: number[]) => readAll('ndjson', text, cuts)
  const text = '\ufeff{"a":"ż"}\r\n\n {"b":2}\n{"c":3}'
  const expected = [
    ['', '{"a":"ż"}'],
    ['', '{"b":2}'],
    ['', '{"c":3}'],
  ]
  assert.deepEqual(lines(text), expected)
  assert.deepEqual(lines(text, everyByte(text)), expected)
  const unread = new EventReader('ndjson')
  unread.push(Buffer.from('{"a":1}\n{"b":'))
  unread.push(Buffer.from('2}'))
  unread.end()
  assert.deepEqual([unread.next(), unread.next(), unread.next()], ['{"a":1}', '{"b":2}', undefined])
})

test('keeps a line of up to 1 MiB and refuses a longer one, in pieces of any size', () => {
  for (const size of [1, 1000, 70_000, caps.line * 2]) {
    const reader = new EventReader('sse')
    const piece = Buffer.alloc(Math.min(size, caps.line), 'x')
    reader.push(Buffer.from('data: '))
    for (let n = 6; n + piece.length <= caps.line; n += piece.length) reader.push(piece)
    assert.throws(() => {
      reader.push(piece)
      reader.push(piece)
    }, /more than 1 MiB/)
  }
  const many = new EventReader('sse')
  const line = Buffer.from(`data: ${'x'.repeat(1000)}\n`)
  assert.throws(() => {
    for (let i = 0; i < 1100; i++) {
      many.push(line)
      many.next()
    }
  }, /event of more than 1 MiB/)
})

// ---- One request

against(
  'refuses an endless line, an endless stream and an endless answer, and hangs up',
  {},
  async (vendor) => {
    const mega = 'x'.repeat(1024 * 1024)
    const answers: [Answering, boolean][] = [
      [{ headers: events, pieces: ['data: ', mega, mega], end: 'hang' }, true],
      [{ headers: events, pieces: Array(17).fill(`: ${mega.slice(8)}\n\n`), end: 'hang' }, true],
      [{ pieces: ['{"text":"', ...Array(17).fill(mega)], end: 'hang' }, false],
    ]
    for (const [answer, stream] of answers) {
      vendor.answer(answer)
      const { error } = await outcomeOf(make(vendor), { stream })
      assert.equal(error?.code, 'provider_invalid')
      assert.match(error?.message ?? '', /more than/)
    }
    assert.equal(vendor.asked.length, 3)
    await Promise.all(vendor.asked.map((asked) => asked.closed))
  },
)

// Two at the most: undici gives a connection back one turn of the event loop after its answer.
against('uses its connections again, one request after the other', hello, async (vendor) => {
  const provider = make(vendor)
  for (let i = 0; i < 10; i++) await outcomeOf(provider)
  assert.equal(vendor.asked.length, 10)
  assert.ok(new Set(vendor.asked.map((asked) => asked.closed)).size <= 2)
})

against(
  'gives the answer although the connection stays open after its last event',
  { ...hello, end: 'hang' },
  async (vendor) => {
    const { reply, text } = await outcomeOf(make(vendor))
    assert.deepEqual([text, reply?.parts], ['hello', [{ type: 'text', text: 'hello' }]])
    await vendor.asked[0]?.closed
  },
)

against(
  'ignores whatever comes after the last event',
  { headers: events, pieces: said('a', 'end', 'b') },
  async (vendor) => {
    const { reply, text } = await outcomeOf(make(vendor))
    assert.deepEqual([text, reply?.parts], ['a', [{ type: 'text', text: 'a' }]])
  },
)

against(
  'takes a whole answer from a gateway that does not stream',
  {
    headers: { 'content-type': 'application/json; charset=utf-8' },
    pieces: ['\n\n \ufeff{"text":"hi"}'.replace(' \ufeff', '')],
  },
  async (vendor) => {
    const { reply, text } = await outcomeOf(make(vendor))
    assert.deepEqual([text, reply?.parts], ['hi', [{ type: 'text', text: 'hi' }]])
  },
)

against(
  'reads JSON after a byte order mark',
  { pieces: ['\ufeff{"text":"hi"}'] },
  async (vendor) => {
    const { reply } = await outcomeOf(make(vendor), { stream: false })
    assert.deepEqual(reply?.parts, [{ type: 'text', text: 'hi' }])
  },
)

against(
  "knows a proxy's page from an answer",
  { headers: { 'content-type': 'text/html' }, pieces: ['<html>log in</html>'] },
  async (vendor) => {
    for (const stream of [true, false]) {
      const { error } = await outcomeOf(make(vendor), { stream })
      assert.equal(error?.code, 'provider_invalid')
      assert.match(error?.message ?? '', /answered 200 with what is no JSON \(text\/html\)$/)
    }
  },
)

against(
  'knows an `error` event by its name, JSON or not',
  { headers: events, pieces: ['event: error\ndata: out of order\n\n'] },
  async (vendor) => {
    const { error } = await outcomeOf(make(vendor, { clock: instant() }))
    assert.match(error?.message ?? '', /broke off: out of order$/)
    assert.equal(vendor.asked.length, 3)
  },
)

against('obeys x-should-retry', {}, async (vendor) => {
  for (const [status, should, calls] of [
    [400, 'true', 3],
    [500, 'false', 1],
  ] as const) {
    vendor.asked.length = 0
    vendor.answer({ status, headers: { 'x-should-retry': should }, pieces: ['{}'] })
    await outcomeOf(make(vendor, { clock: instant() }))
    assert.equal(vendor.asked.length, calls)
  }
})

against(
  'says that it follows no redirect',
  { status: 307, pieces: ['{"text":"x"}'] },
  async (vendor) => {
    for (const stream of [true, false]) {
      const { error } = await outcomeOf(make(vendor), { stream })
      assert.deepEqual([error?.code, error?.status], ['provider_config', 307])
      assert.match(error?.message ?? '', /answered 307: redirects are not followed$/)
    }
  },
)

against('tries as often as it is told', { status: 500 }, async (vendor) => {
  for (const retries of [0, 1, 4]) {
    vendor.asked.length = 0
    await outcomeOf(make(vendor, { clock: instant(), retries }))
    assert.equal(vendor.asked.length, retries + 1)
  }
})

against('reads the words of an error in every envelope', {}, async (vendor) => {
  const table: [string, string, string][] = [
    ['{"error":{"message":"no such"}}', 'no such', 'provider_error'],
    ['{"error":"no such"}', 'no such', 'provider_error'],
    ['{"message":"no such"}', 'no such', 'provider_error'],
    ['{"detail":"no such"}', 'no such', 'provider_error'],
    ['[{"error":{"message":"no such","status":"X"}}]', 'no such', 'provider_error'],
    ['{"detail":[{"msg":"no such"}]}', '[{"msg":"no such"}]', 'provider_error'],
    ['no such', 'no such', 'provider_error'],
    ['{"error":{"type":"strange"}}', 'strange', 'provider_error'],
    ['{"error":{"message":"x","code":"context_length_exceeded"}}', 'x', 'context_too_long'],
    ['{"error":{"message":"x","code":{"toString":1}}}', 'x', 'provider_error'],
    ['{"error":{"message":"x","code":"insufficient_quota"}}', 'x', 'provider_config'],
  ]
  for (const [body, words, code] of table) {
    vendor.answer({ status: 400, pieces: [body] })
    const { error } = await outcomeOf(make(vendor))
    assert.ok(error?.message.endsWith(`answered 400: ${words}`), error?.message)
    assert.equal(error?.code, code, body)
  }
  for (const body of ['', '<html>Bad gateway</html>', 'null', '{}', '[]', '7']) {
    vendor.answer({ status: 400, pieces: [body] })
    const { error } = await outcomeOf(make(vendor))
    assert.match(error?.message ?? '', /answered 400$/, body)
  }
})

against('gives no more than a line of what an error says', {}, async (vendor) => {
  vendor.answer({
    status: 400,
    pieces: [`a\r\nb\u001b[31m\u2028${'c'.repeat(70_000)}`],
    end: 'hang',
  })
  const { error } = await outcomeOf(make(vendor))
  assert.ok(
    /answered 400: a b\[31m ?c+…$/.test(error?.message ?? ''),
    inspect(error?.message.slice(0, 80)),
  )
  assert.ok((error?.message.length ?? 0) < 350)
})

against(
  'knows the status of an error whose body never ends',
  { status: 401, pieces: ['{"err'], end: 'hang' },
  async (vendor) => {
    const { error } = await outcomeOf(make(vendor, { timeouts: { idleMs: 50 } }))
    assert.deepEqual([error?.code, error?.status], ['provider_auth', 401])
  },
)

against(
  'leaves out what an error quotes of the request, whole or in part',
  { status: 400 },
  async (vendor) => {
    const secretly = 'the vault of the north tower opens at noon'
    const asked: ModelRequest = {
      system: [{ text: 'Never mention project Nightingale to anybody.' }],
      tools: [],
      messages: [
        user(secretly),
        {
          role: 'assistant',
          parts: [{ type: 'tool_call', id: 'a', name: 'x', input: { pin: 'pin-9876-5432-1098' } }],
          results: [{ callId: 'a', outcome: 'ok', content: 'RESULT-CANARY-0123456789' }],
        },
      ],
    }
    for (const quote of [
      secretly,
      secretly.slice(5, 30),
      'project Nightingale',
      'pin-9876-5432-1098',
      'RESULT-CANARY-0123456789',
      'test-key-123',
      'Bearer test-key-123',
    ]) {
      vendor.answer({ status: 400, pieces: [JSON.stringify({ message: `bad: "${quote}" at 3` })] })
      const { error } = await outcomeOf(make(vendor), { request: asked })
      assert.ok(!inspect(error).includes(quote), error?.message)
      assert.match(error?.message ?? '', /bad: .* at 3$/)
    }
  },
)

against('asks for headers every time, within its clocks', hello, async (vendor) => {
  let n = 0
  const headers = async () => ({ authorization: `Bearer token-${n++}` })
  const provider = make(vendor, {}, { headers })
  await outcomeOf(provider)
  await outcomeOf(provider)
  assert.deepEqual(
    vendor.asked.map((asked) => asked.headers.authorization),
    ['Bearer token-0', 'Bearer token-1'],
  )
  const broken = new Error('no token')
  const fails = () => {
    throw broken
  }
  for (const headers of [fails, () => Promise.reject(broken)]) {
    assert.equal((await outcomeOf(make(vendor, {}, { headers }))).error, broken)
  }
  const never = make(
    vendor,
    { timeouts: { firstEventMs: 30 }, retries: 0 },
    { headers: () => new Promise(() => {}) },
  )
  assert.equal((await outcomeOf(never)).error?.code, 'provider_timeout')
})

test('speaks through a dispatcher that is handed over', async () => {
  const agent = new MockAgent()
  agent.disableNetConnect()
  agent
    .get('https://example.test')
    .intercept({ path: '/v1', method: 'POST' })
    .reply(200, said('a', 'end').join(''), { headers: events })
  const { text } = await outcomeOf(
    httpProvider(plain('https://example.test/v1'), { dispatcher: agent }),
  )
  assert.equal(text, 'a')
  await agent.close()
})

test('keeps the order of a dispatcher that cannot pause, for a reader that is slow', async () => {
  const pieces = said('a', 'b', 'c', 'end').map((text) => Buffer.from(text))
  const pushing = Object.assign(new EventEmitter(), {
    // biome-ignore lint/suspicious/noExplicitAny: undici's handler
    dispatch(_: unknown, handler: any) {
      const controller = { abort() {}, pause() {}, resume() {} }
      handler.onRequestStart(controller)
      handler.onResponseStart(controller, 200, { ...events, 'transfer-encoding': 'chunked' })
      for (const piece of pieces) handler.onResponseData(controller, piece)
      handler.onResponseEnd(controller, {})
      return true
    },
  })
  const seen: string[] = []
  const dispatcher = pushing as unknown as NonNullable<HttpOptions['dispatcher']>
  const reply = await httpProvider(plain('https://example.test/v1'), { dispatcher }).complete(
    request(),
    {
      async onDelta({ text }) {
        await new Promise((resolve) => setTimeout(resolve, 3))
        seen.push(text)
      },
    },
  )
  assert.deepEqual([seen, reply.parts], [['a', 'b', 'c'], [{ type: 'text', text: 'abc' }]])
})

test('sends nothing over a connection that came after the abort', async () => {
  const started = Promise.withResolvers<Parameters<Dispatcher['dispatch']>[1]>()
  const connecting = {
    dispatch(_: unknown, handler: Parameters<Dispatcher['dispatch']>[1]) {
      started.resolve(handler)
      return true
    },
  }
  const dispatcher = connecting as unknown as Dispatcher
  const controller = new AbortController()
  const done = outcomeOf(httpProvider(plain('https://example.test/v1'), { dispatcher }), {
    signal: controller.signal,
  })
  const handler = await started.promise
  controller.abort(new Error('enough'))
  assert.equal((await done).error?.message, 'enough')
  let aborted = false
  const abort = () => {
    aborted = true
  }
  const late = { abort } as unknown as Dispatcher.DispatchController
  handler.onRequestStart?.(late, {})
  assert.ok(aborted)
})

test('a reader that stops stops the vendor, and no queue grows', async () => {
  let sent = 0
  const piece = `data: ${JSON.stringify('x'.repeat(1000))}\n\n`.repeat(64)
  const server = createServer(async (req, res) => {
    req.resume()
    res.writeHead(200, events)
    for (; sent < 180; sent++) if (!res.write(piece)) await once(res, 'drain')
    res.end(said('end').join(''))
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const provider = httpProvider(plain(`http://127.0.0.1:${(server.address() as AddressInfo).port}`))
  let release = () => {}
  const held = new Promise<void>((resolve) => {
    release = resolve
  })
  let deltas = 0
  const done = provider.complete(request(), { onDelta: () => (deltas++ === 0 ? held : undefined) })
  let before = -1
  while (sent !== before) {
    before = sent
    await new Promise((resolve) => setTimeout(resolve, 60))
  }
  assert.equal(deltas, 1)
  assert.ok(sent < 150, `the vendor could send ${sent} of 180 pieces to nobody`)
  release()
  await done
  assert.equal(deltas, 180 * 64)
  server.close()
  server.closeAllConnections()
})

against('leaves nothing behind on a signal that many calls share', hello, async (vendor) => {
  const warnings: Error[] = []
  const warn = (warning: Error) => warnings.push(warning)
  process.on('warning', warn)
  const controller = new AbortController()
  const provider = make(vendor)
  const all = Array.from({ length: 40 }, () => outcomeOf(provider, { signal: controller.signal }))
  for (const { error } of await Promise.all(all)) assert.equal(error, undefined)
  await new Promise(setImmediate)
  assert.equal(getEventListeners(controller.signal, 'abort').length, 0)
  assert.deepEqual(warnings, [])
  process.off('warning', warn)
})

against('ends with the abort even when its reader fails later', hello, async (vendor) => {
  const controller = new AbortController()
  const reason = new Error('enough')
  const done = make(vendor).complete(request(), {
    signal: controller.signal,
    async onDelta() {
      setTimeout(() => controller.abort(reason), 5)
      await new Promise((resolve) => setTimeout(resolve, 20))
      throw new Error('nobody hears this')
    },
  })
  await assert.rejects(done, (error) => error === reason)
  await new Promise((resolve) => setTimeout(resolve, 30))
})

// ---- Addresses and clocks

test('sends no key over plain http to another host, unless told to', () => {
  const to =
    (url: string, options: HttpOptions = {}) =>
    () =>
      httpProvider(plain(url), options)
  for (const url of [
    'http://example.com',
    'http://10.0.0.1',
    'http://localhost.example.com',
    'http://127.0.0.1.nip.io',
  ]) {
    assert.throws(
      to(url),
      (error) =>
        error instanceof ProviderError &&
        error.code === 'provider_config' &&
        /https/.test(error.message),
    )
    assert.doesNotThrow(to(url, { allowHttp: true }))
  }
  for (const url of [
    'http://localhost:1',
    'http://127.0.0.1',
    'http://[::1]:11434',
    'https://example.com',
  ]) {
    assert.doesNotThrow(to(url))
  }
  for (const url of ['example.com', 'ftp://example.com', 'https://', ''])
    assert.throws(to(url), /base URL/)
})

test('refuses a clock that is no time, and says which', () => {
  for (const ms of [0, -1, Number.NaN, '5' as unknown as number]) {
    assert.throws(() => checkedTimeouts({ idleMs: ms }), /timeouts\.idleMs/)
  }
  assert.deepEqual(checkedTimeouts({ stepMs: 5, idleMs: undefined as unknown as number }), {
    connectMs: 10_000,
    firstEventMs: 120_000,
    idleMs: 60_000,
    stepMs: 5,
  })
})

against('clocks of more than 31 bits never fire early', hello, async (vendor) => {
  for (const ms of [2 ** 31, 1e15, Number.POSITIVE_INFINITY]) {
    const timeouts = { connectMs: ms, firstEventMs: ms, idleMs: ms, stepMs: ms }
    const { reply } = await outcomeOf(make(vendor, { timeouts }))
    assert.equal(reply?.finishReason, 'stop')
  }
})

// ---- Retries without HTTP

function failure(
  more: Partial<ConstructorParameters<typeof ProviderError>[2]> = {},
): ProviderError {
  return new ProviderError('provider_overloaded', 'busy', {
    provider: 'p',
    retryable: true,
    ...more,
  })
}

test('retries a failure that may pass, and nothing else', async () => {
  let calls = 0
  const failing = (error: Error) => async () => {
    if (++calls < 3) throw error
    return 'done'
  }
  assert.equal(await retrying(failing(failure()), { clock: instant() }), 'done')
  for (const other of [new Error('strange'), failure({ retryable: false })]) {
    calls = 0
    await assert.rejects(retrying(failing(other), { clock: instant() }), (e) => e === other)
    assert.equal(calls, 1)
  }
})

test('doubles its pauses up to eight seconds, less up to a quarter', async () => {
  for (const random of [0, 1]) {
    const clock = { ...instant(), random: () => random }
    await assert.rejects(retrying(() => Promise.reject(failure()), { retries: 7, clock }))
    const factor = 1 - random / 4
    assert.deepEqual(
      clock.waits,
      [500, 1000, 2000, 4000, 8000, 8000, 8000].map((ms) => ms * factor),
    )
  }
})

test('begins no pause that would end after the deadline', async () => {
  let now = 0
  const sleep = async (ms: number) => {
    now += ms
  }
  const clock = { ...instant(), now: () => now, sleep }
  let calls = 0
  const attempt = () => {
    calls++
    return Promise.reject(failure({ retryAfterMs: 400 }))
  }
  const options = { clock, deadline: 1000, retries: 9 }
  await assert.rejects(
    retrying(attempt, options),
    (error) => (error as ProviderError).retryAfterMs === 400,
  )
  assert.deepEqual([calls, now], [3, 800])
})

test('tries nothing again once something was emitted, or when a failure allows fewer', async () => {
  let calls = 0
  const attempt = (error: ProviderError) => () => {
    calls++
    return Promise.reject(error)
  }
  await assert.rejects(retrying(attempt(failure()), { clock: instant(), emitted: () => true }))
  assert.equal(calls, 1)
  await assert.rejects(retrying(attempt(failure({ maxRetries: 1 })), { clock: instant() }))
  assert.equal(calls, 3)
})

test('an abort during an attempt is the abort, whatever the attempt says', async () => {
  const controller = new AbortController()
  const reason = new Error('enough')
  const attempt = async () => {
    controller.abort(reason)
    throw failure()
  }
  await assert.rejects(
    retrying(attempt, { signal: controller.signal }),
    (error) => error === reason,
  )
})

test('reads retry-after in every spelling', () => {
  const at = (ms: number) => new Date(Date.now() + ms).toUTCString()
  assert.equal(retryAfterMs({ 'retry-after': ['7', '9'] }), 7000)
  assert.equal(retryAfterMs({ 'retry-after': ' 7 ' }), 7000)
  assert.equal(retryAfterMs({ 'retry-after-ms': 'x', 'retry-after': '7' }), 7000)
  assert.ok((retryAfterMs({ 'retry-after': at(5000) }) ?? 0) > 3000)
  for (const text of [
    '',
    '0',
    '-5',
    'soon',
    'NaN',
    'Infinity',
    '1e999',
    at(-5000),
    '7 apples',
    'Mon',
  ]) {
    assert.equal(retryAfterMs({ 'retry-after': text }), undefined, text)
  }
  assert.equal(retryAfterMs({}), undefined)
})

// ---- Rendering

test('writes the JSON that JSON.stringify would', () => {
  fc.assert(
    fc.property(fc.dictionary(fc.string(), fc.jsonValue()), (body) => {
      assert.deepEqual(JSON.parse(toJson(body)), JSON.parse(JSON.stringify(body)))
    }),
    { numRuns: 300 * scale },
  )
  assert.equal(
    toJson({ a: undefined, b: [1, undefined, null, 'x'], c: [], d: { e: 1 } }),
    '{"b":[1,null,null,"x"],"c":[],"d":{"e":1}}',
  )
})

test('writes half a surrogate pair as a replacement, and a backslash before `ud` as it is', () => {
  const text = '\\ud800 \ud83c \\\udc00 🎉 \\\\ud83c'
  assert.deepEqual(JSON.parse(toJson({ a: text, b: [{ text }] })), {
    a: text.toWellFormed(),
    b: [{ text: text.toWellFormed() }],
  })
})

const call = (id: string, input: unknown, content: string): Message => ({
  role: 'assistant',
  parts: [{ type: 'tool_call', id, name: 'look', input }],
  results: [{ callId: id, outcome: 'ok', content }],
})

/** Turns as simple as can be, and the texts that were rendered to make them. */
function plainHistory(merge?: typeof alternating<{ role: string; content: unknown[] }>) {
  const rendered: string[] = []
  const history = new Memory((message: Message) => {
    rendered.push(JSON.stringify(message))
    const { role, parts } = message
    const said = { role: role as string, content: parts as unknown[] }
    if (message.role === 'user') return [said]
    return [said, { role: 'user', content: message.results as unknown[] }]
  }, merge)
  const text = (...given: Parameters<typeof history.of>) => toJson({ turns: history.of(...given) })
  return { text, rendered }
}

test('renders a message once, and again when it was changed, in place and however deep', () => {
  const { text, rendered } = plainHistory(alternating)
  const input = { path: { to: ['a'] } }
  const messages = [user('a'), call('1', input, 'x'), user('b')]
  text(messages)
  text([...messages, call('2', {}, 'y')])
  assert.equal(rendered.length, 4)
  text(messages) // an older request, and a newer one again
  text([...messages, call('2', {}, 'y')])
  assert.equal(rendered.length, 4)
  input.path.to.push('b')
  text([...messages, call('2', {}, 'y')])
  assert.deepEqual(rendered.slice(4), [
    JSON.stringify(messages[1]),
    JSON.stringify(user('b')),
    JSON.stringify(call('2', {}, 'y')),
  ])
})

test('writes the same as a history that remembers nothing, whatever was changed, added or taken', () => {
  const value = fc.letrec((tie) => ({
    any: fc.oneof(
      { depthSize: 'small' },
      fc.constantFrom(1, 'x', null),
      tie('list'),
      tie('object'),
    ),
    list: fc.array(tie('any'), { maxLength: 2 }),
    object: fc.dictionary(fc.constantFrom('a', 'b'), tie('any')),
  })).any
  const step = fc.record({ at: fc.nat(6), input: value, text: fc.constantFrom('', 'a', 'b') })
  fc.assert(
    fc.property(fc.array(step), fc.boolean(), fc.boolean(), (steps, merges, marks) => {
      const merge = merges ? alternating : undefined
      const finish = marks ? (last: object) => ({ ...last, mark: 1 }) : undefined
      const { text } = plainHistory(merge)
      const messages: Message[] = [user('go')]
      for (const { at, input, text: words } of steps) {
        const i = at % (messages.length + 1)
        const old = messages[i]
        if (!old) messages.push(words ? user(words) : call('1', input, words))
        else if (words === 'a') messages.length = Math.max(i, 1)
        else if (words === 'b') old.parts.push({ type: 'text', text: 'more' })
        else if (old.role === 'assistant') Object.assign(old.parts[0] ?? {}, { input })
        const given = [messages, finish] as Parameters<typeof text>
        const fresh = plainHistory(merge).text(...(structuredClone(messages) && given))
        assert.equal(text(...given), fresh)
      }
    }),
    { numRuns: 300 * scale },
  )
})

against('forgets a talk when it has come to an answer, and not before', {}, async (vendor) => {
  const call = { type: 'tool_call' as const, id: 'a', name: 'look', input: {} }
  const forgotten: ModelRequest[] = []
  const provider = make(
    vendor,
    {},
    {
      parse: (json) => reply(json.calls ? [call] : []),
      forget: (request) => forgotten.push(request),
    },
  )
  vendor.answer({ pieces: ['{"calls":true}'] })
  await provider.complete(request())
  assert.equal(forgotten.length, 0)
  vendor.answer({ pieces: ['{}'] })
  const last = request()
  await provider.complete(last)
  assert.deepEqual(forgotten, [last])
})

test('renders a talk anew that was forgotten', () => {
  const expanded: Message[] = []
  const history = new Memory((message: Message) => {
    expanded.push(message)
    return [message]
  })
  const messages = [user('a'), user('b'), user('c')]
  history.of(messages)
  history.of(messages)
  assert.equal(expanded.length, 3)
  history.forget(messages)
  history.of(messages)
  assert.equal(expanded.length, 6)
  history.of(messages.slice(0, 2)) // too short to be worth remembering
  history.of(messages.slice(0, 2))
  assert.equal(expanded.length, 10)
})

test('joins neighbours of one role, of which the last may be marked', () => {
  const { text } = plainHistory(alternating)
  const messages = [user('a'), call('1', {}, 'x'), user('b')]
  const turns = JSON.parse(text(messages, (last) => ({ ...last, mark: 1 }))).turns
  assert.deepEqual(
    turns.map(({ role, content, mark }: Record<string, unknown[]>) => [
      role,
      content?.length,
      mark,
    ]),
    [
      ['user', 1, undefined],
      ['assistant', 1, undefined],
      ['user', 2, 1],
    ],
  )
  assert.equal(JSON.parse(text(messages)).turns[2].mark, undefined)
})

test('lets nobody but `toJson` write what is remembered', () => {
  const history = new Memory((message: Message) => [message], undefined, 1)
  assert.throws(() => JSON.stringify({ deep: history.of([user('a')]) }), /top-level array/)
})

// ---- Calls

test('reads a call as an object, or leaves it as text that nothing will run', () => {
  const deep = (n: number) => `${'{"a":'.repeat(n)}1${'}'.repeat(n)}`
  for (const empty of [undefined, null, '', ' \n', '{}', {}]) assert.deepEqual(toolInput(empty), {})
  assert.deepEqual(toolInput('{"a":[{"b":null}]}'), { a: [{ b: null }] })
  assert.deepEqual(toolInput(deep(60)), JSON.parse(deep(60)))
  const texts = [
    '{"a":1',
    '{"a":1}{"a":2}',
    '[1]',
    '"x"',
    'null',
    '7',
    'x',
    '{"__proto__":{"admin":true}}',
    '{"a":[{"\\u005f_proto__":1}]}',
    '{"constructor":{"prototype":{"admin":true}}}',
    deep(10_000),
  ]
  for (const text of texts) assert.equal(toolInput(text), text)
  for (const text of texts.slice(7)) assert.equal(typeof toolInput(JSON.parse(text)), 'string')
  assert.deepEqual(toolInput('{"constructor":"Ford","toString":1}'), {
    constructor: 'Ford',
    toString: 1,
  })
})

test('reads nothing of a call that the length cut, unless it is a whole object', () => {
  for (const cut of ['', ' ', undefined, '{"a":', {}])
    assert.equal(typeof toolInput(cut, true), 'string')
  assert.deepEqual(toolInput('{"a":1}', true), { a: 1 })
})

test('renders what was no object as one', () => {
  assert.deepEqual(inputObject({ a: 1 }), { a: 1 })
  for (const input of ['{"a":', [1], null, 7])
    assert.deepEqual(inputObject(input), { malformed_input: input })
})

test('is an error of ours with a name, a code and a cause', () => {
  const cause = new Error('below')
  const error = failure({ status: 429, requestId: 'r', retryAfterMs: 5, cause })
  assert.ok(error instanceof DcafError)
  assert.deepEqual(
    [
      error.name,
      error.code,
      error.provider,
      error.status,
      error.requestId,
      error.retryable,
      error.retryAfterMs,
      error.cause,
    ],
    ['ProviderError', 'provider_overloaded', 'p', 429, 'r', true, 5, cause],
  )
})
