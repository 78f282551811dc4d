// The reference client of the wire, in Node: bytes to lines, events to a message, sessions, decisions, and what went wrong.

import assert from 'node:assert/strict'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { describe, it, type TestContext } from 'node:test'
import {
  approve,
  ChatError,
  edit,
  lines,
  reject,
  Thread,
  type WireEvent,
} from '../examples/ops-desk/public/client.js'
import { scripted } from '../src/providers/scripted.ts'
import { tool } from '../src/tool.ts'
import { serve } from './harness.ts'

function chunks(bytes: Uint8Array, size: number): ReadableStream<Uint8Array> {
  return new ReadableStream({
    start(controller) {
      for (let at = 0; at < bytes.length; at += size) controller.enqueue(bytes.slice(at, at + size))
      controller.close()
    },
  })
}

async function all<T>(items: AsyncIterable<T>): Promise<T[]> {
  const list: T[] = []
  for await (const item of items) list.push(item)
  return list
}

describe('lines', () => {
  const bytes = new TextEncoder().encode('{"a":"größer 😀"}\n\n{"b":"\u2028"}\nhalf a li')
  for (const size of [1, 2, 3, 5, 7, bytes.length])
    it(`are whole lines only, whatever cuts the bytes (${size} at a time)`, async () => {
      assert.deepEqual(await all(lines(chunks(bytes, size))), [
        '{"a":"größer 😀"}',
        '',
        '{"b":"\u2028"}',
      ])
    })

  it('are joined once, however many pieces a line comes in', async () => {
    const long = `${'x'.repeat(2 ** 20)}\n`
    const [line] = await all(lines(chunks(new TextEncoder().encode(long), 64)))
    assert.equal(line?.length, 2 ** 20)
  })

  it('close the stream when their reader stops', async () => {
    let canceled = false
    const endless = new ReadableStream({
      pull: (controller) => controller.enqueue(new TextEncoder().encode('{}\n')),
      cancel() {
        canceled = true
      },
    })
    for await (const line of lines(endless)) if (line) break
    assert.ok(canceled)
  })
})

/** A server whose answers are written by hand, and the bodies it was sent. */
async function wire(t: TestContext, ...answers: ((res: ServerResponse) => void)[]) {
  const bodies: string[] = []
  const server = createServer(async (req: IncomingMessage, res) => {
    bodies.push(Buffer.concat(await all(req)).toString())
    ;(answers.shift() ?? ((last) => last.destroy()))(res)
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  t.after(() => {
    server.closeAllConnections()
    return new Promise((resolve) => server.close(resolve))
  })
  const base = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  return { base, bodies, sent: () => bodies.map((body) => JSON.parse(body)) }
}

const stream =
  (...events: WireEvent[]) =>
  (res: ServerResponse) => {
    res.writeHead(200, { 'content-type': 'application/x-ndjson' })
    res.end(events.map((event) => `${JSON.stringify(event)}\n`).join(''))
  }
const delta = (text: string) => ({ type: 'text_delta', text })
const done = (session: object = {}) => ({
  type: 'done',
  stop_reason: 'end',
  meta_data: { session, usage: {}, run_id: 'r' },
})
const pending = {
  id: 'tc_1.x',
  type: 'tool_call',
  name: 'stop',
  input: { name: 'a' },
  execute: false,
  description: 'Stops',
}
const waits = (session: object = { $run: 'sealed', cart: [1] }) =>
  stream(
    delta('I will'),
    { type: 'approvals', approvals: [pending] },
    { type: 'tool_calls', tool_calls: [pending] },
    done(session),
  )

describe('a thread', () => {
  it('becomes what /api/chat would have answered', async (t) => {
    const agent = () => ({
      name: 'lab',
      provider: scripted([
        { text: 'Looking. ', calls: [{ name: 'look' }] },
        { text: 'And stop.', calls: [{ name: 'stop', input: { name: 'a' } }] },
      ]),
      tools: [
        tool({
          name: 'look',
          description: 'Looks',
          input: '{}',
          execute: (_, ctx) => {
            ctx.session.set('n', 1)
            return 'ok'
          },
        }),
        tool({
          name: 'stop',
          description: 'Stops',
          input: '{ name: string }',
          requiresApproval: true,
          execute: () => 'ok',
        }),
      ],
    })
    const [streamed, whole] = [await serve(t, agent()), await serve(t, agent())]
    const thread = new Thread({ base: streamed.url, id: 't' })
    const said = await thread.send('go')
    const { body } = await whole.chat({
      thread_id: 't',
      messages: [{ role: 'user', content: 'go' }],
    })
    assert.equal(said.content, body.content)
    const plain = (value: unknown) =>
      JSON.parse(JSON.stringify(value, (key, v) => (/^(id|\$run|expires_at)$/.test(key) ? key : v)))
    const lists = Object.fromEntries(
      Object.entries(body.data).filter(([, list]) => !Array.isArray(list) || list.length > 0),
    )
    assert.deepEqual(plain(said.data), plain(lists))
    assert.deepEqual(said.meta_data?.usage, body.meta_data.usage)
    assert.deepEqual([said.meta_data?.stop_reason, thread.session], ['approval', { n: 1 }])
  })

  it('sends itself whole, with the newest session and no older one', async (t) => {
    const server = await wire(
      t,
      stream(delta('one'), done({ n: 1 })),
      stream(delta('two'), done({ n: 2 })),
      stream(done()),
    )
    const thread = new Thread({ base: server.base, id: 'T', fields: { tenant_id: 'x' } })
    for (const text of ['a', 'b', 'c']) await thread.send(text)
    const [, , last] = server.sent()
    assert.deepEqual([last.thread_id, last.tenant_id], ['T', 'x'])
    assert.deepEqual(
      last.messages.map(
        ({
          role,
          content,
          data,
        }: {
          role: string
          content: string
          data: { session?: object }
        }) => [role, content, data.session],
      ),
      [
        ['user', 'a', undefined],
        ['assistant', 'one', undefined],
        ['user', 'b', undefined],
        ['assistant', 'two', { n: 2 }],
        ['user', 'c', undefined],
      ],
    )
  })

  it('sends decisions with their ids and echoes as they came, and the paused run', async (t) => {
    const server = await wire(t, waits(), stream(done()))
    const thread = new Thread({ base: server.base })
    await thread.send('stop a')
    assert.deepEqual(
      [thread.pending.map(({ id }) => id), thread.session],
      [['tc_1.x'], { cart: [1] }],
    )
    const [call] = thread.pending
    assert.ok(call)
    await thread.decide([approve(call)])
    const { messages } = server.sent()[1]
    const echo = { id: 'tc_1.x', type: 'tool_call', name: 'stop', input: { name: 'a' } }
    assert.deepEqual(messages[2].data.approvals, [{ ...echo, execute: true }])
    assert.deepEqual(messages[1].data.session, { $run: 'sealed', cart: [1] })
    assert.deepEqual(reject(call, ' why '), { ...echo, execute: false, rejection_reason: 'why' })
    assert.equal(reject(call).rejection_reason, 'not approved')
    assert.deepEqual(edit(call, { name: 'b' }), {
      ...echo,
      execute: true,
      edited_input: { name: 'b' },
    })
  })

  it('can replace the session of the tools, and never drops the paused run with it', async (t) => {
    const server = await wire(t, waits(), stream(done()))
    const thread = new Thread({ base: server.base })
    await thread.send('stop a')
    await thread.send('no', { session: { cart: [] } })
    assert.deepEqual(server.sent()[1].messages[2].data.session, { cart: [], $run: 'sealed' })
  })

  it('goes on from its JSON', async (t) => {
    const server = await wire(t, waits(), stream(done()))
    const first = new Thread({ base: server.base })
    await first.send('stop a')
    const second = new Thread({ base: server.base, ...JSON.parse(JSON.stringify(first)) })
    await second.decide(second.pending.map((call) => approve(call)))
    assert.equal(server.sent()[0].thread_id, server.sent()[1].thread_id)
    assert.equal(second.messages.length, 4)
  })

  it('sends the same bytes again after the connection was lost, and keeps what had come', async (t) => {
    const cut = (res: ServerResponse) => {
      res.writeHead(200, { 'content-type': 'application/x-ndjson' })
      res.write(`${JSON.stringify(delta('half '))}\n{"type":"tex`, () => res.destroy())
    }
    const server = await wire(t, cut, stream(delta('whole'), done()))
    const thread = new Thread({ base: server.base })
    await assert.rejects(thread.send('go'), { code: 'connection_lost', retryable: true })
    assert.deepEqual([thread.unanswered, thread.partial?.content], [true, 'half '])
    assert.equal((await thread.retry()).content, 'whole')
    assert.equal(server.bodies[0], server.bodies[1])
    assert.deepEqual([thread.unanswered, thread.partial], [false, null])
    assert.throws(() => thread.retry(), /nothing to send again/)
  })

  it('takes a stream that ends without its last event for a lost connection', async (t) => {
    const server = await wire(t, stream(delta('half')))
    await assert.rejects(new Thread({ base: server.base }).send('go'), { code: 'connection_lost' })
  })

  it('tells what the server says of a refusal', async (t) => {
    const server = await wire(t, (res) => {
      res.writeHead(503, { 'content-type': 'application/json', 'retry-after': '3' })
      res.end(
        '{"detail":"Busy.","code":"busy","retryable":true,"request_id":"q","errors":[{"path":"/a","message":"no"}]}',
      )
    })
    const failure = await new Thread({ base: server.base }).send('go').catch((error) => error)
    assert.ok(failure instanceof ChatError)
    assert.deepEqual(
      [failure.message, failure.code, failure.status, failure.retryAfterMs, failure.requestId],
      ['Busy. /a: no.', 'busy', 503, 3000, 'q'],
    )
  })

  it('tells an answer of something else from one of a help desk', async (t) => {
    const page = (status: number) => (res: ServerResponse) =>
      void res.writeHead(status, { 'content-type': 'text/html' }).end('<h1>Hello</h1>')
    const server = await wire(t, page(502), page(200))
    const thread = new Thread({ base: server.base })
    await assert.rejects(thread.send('go'), { code: 'http_502', retryable: true })
    await assert.rejects(thread.retry(), { code: 'not_ndjson', retryable: false })
  })

  it('keeps what ran before a failure, and the session that came with it', async (t) => {
    const ran = [{ id: 'tc_1.x', type: 'tool_call', name: 'stop', input: {}, output: 'stopped' }]
    const server = await wire(
      t,
      stream(
        { type: 'executed_approvals', executed_approvals: ran },
        {
          type: 'error',
          error: 'Overloaded.',
          code: 'provider_overloaded',
          retryable: true,
          request_id: 'q',
          meta_data: { session: { n: 1 } },
        },
      ),
      stream(done()),
    )
    const thread = new Thread({ base: server.base })
    const failure = { message: 'Overloaded.', code: 'provider_overloaded', requestId: 'q' }
    await assert.rejects(thread.send('go'), failure)
    assert.deepEqual(thread.partial?.data, { executed_approvals: ran, session: { n: 1 } })
    await thread.send('and now?')
    assert.deepEqual(
      server.sent()[1].messages.map(({ role }: { role: string }) => role),
      ['user', 'assistant', 'user'],
    )
  })

  it('can be stopped, and what was sent can be taken back', async (t) => {
    const server = await wire(t, (res) => {
      res.writeHead(200, { 'content-type': 'application/x-ndjson' })
      res.write(`${JSON.stringify(delta('slow'))}\n`)
    })
    const thread = new Thread({ base: server.base })
    const abort = new AbortController()
    const sending = thread.send('go', { signal: abort.signal, onEvent: () => abort.abort() })
    await assert.rejects(sending, { code: 'aborted' })
    assert.equal(thread.takeBack().content, 'go')
    assert.deepEqual(thread.messages, [])
    assert.throws(() => thread.takeBack(), /nothing to take back/)
  })

  it('knows how far the clock of the server is from its own', async (t) => {
    const server = await wire(t, (res) => {
      res.setHeader('date', new Date(Date.now() + 600_000).toUTCString())
      stream(done())(res)
    })
    const thread = new Thread({ base: server.base })
    await thread.send('go')
    assert.ok(Math.abs(thread.clockSkewMs - 600_000) < 5_000)
  })

  it('asks for its headers each time', async (t) => {
    const server = await serve(
      t,
      { name: 'lab', provider: scripted(['a', 'b']) },
      {
        authenticate: (req) => (req.headers.authorization === 'Bearer 2' ? 'ann' : undefined),
      },
    )
    let token = 0
    const thread = new Thread({
      base: server.url,
      headers: () => ({ authorization: `Bearer ${++token}` }),
    })
    await assert.rejects(thread.send('go'), { code: 'unauthenticated', status: 401 })
    assert.equal((await thread.retry()).content, 'a')
  })
})
