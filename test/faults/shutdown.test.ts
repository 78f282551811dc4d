// A process that is told to end: what runs is finished or told why not, what was approved is recorded, and it ends in time.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { request } from 'undici'
import { type Json, u } from '../harness.ts'
import { type Raw, raw } from '../raw.ts'
import { type Child, child } from './child.ts'
import { context, keepClean, see } from './clean.ts'
import { row, times } from './table.ts'

keepClean()

const body = (content: string, data?: Json) =>
  JSON.stringify({ messages: [u(content, data, { platform_context: context })] })
const head = (path: string, text: string) =>
  `POST ${path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: ${Buffer.byteLength(text)}\r\n\r\n${text}`

/** So many streams, each of which has begun. */
async function begin(server: Child, count: number, prompt: string): Promise<Raw[]> {
  const text = head('/api/chat-stream', body(prompt))
  const clients = await Promise.all(Array.from({ length: count }, () => raw(server.port, text)))
  await Promise.all(clients.map((client) => client.until('text_delta')))
  return clients
}
/** The events of a chunked answer; throws where it was cut. */
function eventsOf(answer: string): Json[] {
  assert.match(see(answer), /\r\n0\r\n\r\n$/, 'the answer was cut')
  return answer.split('\n').flatMap((line) => (line.startsWith('{') ? [JSON.parse(line)] : []))
}
const drained = (server: Child): Json => JSON.parse(/\{.*\}/.exec(server.output())?.[0] ?? 'null')

test('streams that need less than the grace all finish', async (t) => {
  const count = times(20, 100)
  const server = await child(t)
  const clients = await begin(server, count, 'slow 20 25')
  server.process.kill('SIGTERM')
  const answers = await Promise.all(clients.map((client) => client.closed))
  const lost = answers.filter((answer) => eventsOf(answer).at(-1)?.type !== 'done').length
  assert.equal(await server.exit, 0)
  row(t, 'SIGTERM, streams within the grace', count, lost)
  assert.equal(lost, 0)
  assert.deepEqual(drained(server), { aborted: 0, cut: 0, running: 0 })
})

test('streams that need more end with shutting_down, and the process soon after', async (t) => {
  const count = 20
  const graceMs = 300
  const server = await child(t, { drain: { graceMs, hardMs: 10_000 } })
  const clients = await begin(server, count, 'hang')
  const started = performance.now()
  server.process.kill('SIGTERM')
  const answers = await Promise.all(clients.map((client) => client.closed))
  const codes = answers.map((answer) => eventsOf(answer).at(-1)?.code)
  assert.equal(await server.exit, 0)
  const took = performance.now() - started
  row(
    t,
    'SIGTERM, streams beyond the grace',
    count,
    codes.filter((c) => c !== 'shutting_down').length,
    `ended ${(took - graceMs).toFixed(0)} ms after the grace`,
  )
  assert.deepEqual(new Set(codes), new Set(['shutting_down']))
  assert.deepEqual(drained(server), { aborted: count, cut: 0, running: 0 })
  assert.ok(took < 10_000)
})

test('a second signal ends it at once', async (t) => {
  const rounds = times(1, 5)
  for (let i = 0; i < rounds; i++) {
    const server = await child(t, { drain: { graceMs: 60_000, hardMs: 60_000 } })
    const clients = await begin(server, 20, 'hang')
    server.process.kill('SIGTERM')
    for (
      let open = true;
      open; // the first signal has arrived once nothing new is taken
    )
      open = await raw(server.port).then(
        ({ socket }) => socket.destroy() && true,
        () => false,
      )
    server.process.kill(i % 2 ? 'SIGTERM' : 'SIGINT')
    assert.equal(await server.exit, 1)
    for (const { socket } of clients) socket.destroy()
  }
  row(t, 'a second signal', rounds, 0)
})

const asJson = { 'content-type': 'application/json' }
async function approval(server: Child): Promise<string> {
  const res = await request(`${server.url}/api/chat`, {
    method: 'POST',
    headers: asJson,
    body: body('drop a'),
  })
  const { data } = (await res.body.json()) as Json
  return body('', { tool_calls: [{ ...data.tool_calls[0], execute: true }] })
}

test('an approved tool finishes before the end, and its client is told', async (t) => {
  const server = await child(t, { toolMs: 600, drain: { graceMs: 50, hardMs: 20_000 } })
  const client = await raw(server.port, head('/api/chat', await approval(server)))
  while ((await server.ask('stats')).active === 0) await sleep(5)
  await sleep(50)
  server.process.kill('SIGTERM')
  const answer = see(await client.closed)
  assert.equal(await server.exit, 0)
  assert.match(answer, /^HTTP\/1.1 200[\s\S]*"output":"dropped a"/)
  assert.match(answer, /"code":"shutting_down"/)
  row(t, 'SIGTERM during an approved tool', 1, 0)
})

test('an approved tool that outlives the hard limit is unknown to its client, and does not hold the end up', async (t) => {
  const server = await child(t, { toolMs: 60_000, drain: { graceMs: 50, hardMs: 200 } })
  const client = await raw(server.port, head('/api/chat', await approval(server)))
  while ((await server.ask('stats')).active === 0) await sleep(5)
  await sleep(50)
  server.process.kill('SIGTERM')
  const answer = see(await client.closed)
  assert.match(answer, /"output":"Outcome unknown: drop was stopped before it finished/)
  assert.equal(await server.exit, 0)
  row(t, 'SIGTERM, an approved tool beyond the hard limit', 1, 0)
})

test('idle, half-open and silent connections do not hold the end up', async (t) => {
  const server = await child(t, { drain: { graceMs: 5_000, hardMs: 8_000 } })
  const idle = await Promise.all(
    Array.from({ length: 50 }, () => raw(server.port, head('/api/chat', body('hi')))),
  )
  await Promise.all(idle.map((client) => client.until('timestamp')))
  const half = await Promise.all(
    Array.from({ length: 10 }, (_, i) =>
      raw(server.port, ['', 'GET / HT', 'POST /api/chat HTTP/1.1\r\nHost: a\r\n'][i % 3]),
    ),
  )
  const started = performance.now()
  server.process.kill('SIGTERM')
  assert.equal(await server.exit, 0)
  row(
    t,
    'SIGTERM, idle and half-open connections',
    60,
    0,
    `ended after ${(performance.now() - started).toFixed(0)} ms`,
  )
  await Promise.all([...idle, ...half].map((client) => client.closed))
})

test('a request on an open connection after the signal is 503 or refused, never half an answer', async (t) => {
  const count = 20
  const server = await child(t)
  const [running] = await begin(server, 1, 'slow 30 25')
  const kept = await Promise.all(
    Array.from({ length: count }, () => raw(server.port, head('/api/chat', body('hi')))),
  )
  await Promise.all(kept.map((client) => client.until('timestamp')))
  const before = kept.map((client) => client.text().length)
  server.process.kill('SIGTERM')
  const sending = kept.map(async (client, i) => {
    client.socket.on('error', () => {})
    await sleep(i * 10)
    if (!client.socket.destroyed) client.send(head('/api/chat', body('hi')))
  })
  await Promise.all(sending)
  const more = await Promise.all(
    kept.map(async (client, i) => (await client.closed).slice(before[i])),
  )
  const answered = more.filter((answer) => answer !== '')
  for (const answer of answered) {
    const [, status, length = ''] =
      /^HTTP\/1.1 (\d+)[\s\S]*?content-length: (\d+)/i.exec(answer) ?? []
    const text = answer.slice(answer.indexOf('\r\n\r\n') + 4)
    assert.equal(Buffer.byteLength(text), Number(length))
    assert.ok(status === '200' || (status === '503' && /connection: close/i.test(answer)), answer)
  }
  assert.equal(eventsOf((await running?.closed) ?? '').at(-1)?.type, 'done')
  assert.equal(await server.exit, 0)
  row(
    t,
    'requests on open connections after SIGTERM',
    count,
    0,
    `${answered.length} answered, ${count - answered.length} refused`,
  )
})
