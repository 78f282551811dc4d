// Mixed traffic at a bounded rate against a desk in a process of its own, for `SOAK_MINUTES` (default 10) at `SOAK_RATE`
// requests a second (default 50): prints how heap, memory and handles move. Run it with `node test/faults/soak.ts`.

import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Pool } from 'undici'
import { type Json, u } from '../harness.ts'
import { raw } from '../raw.ts'
import { type Child, child } from './child.ts'
import { context } from './clean.ts'

const minutes = Number(process.env.SOAK_MINUTES ?? 10)
const rate = Number(process.env.SOAK_RATE ?? 50)
const asJson = { 'content-type': 'application/json' }
const body = (content: string, data?: Json) =>
  JSON.stringify({ messages: [u(content, data, { platform_context: context })], thread_id: 'soak' })

// What was decided is kept a day longer than it holds: in a file, for in memory that alone would be a slope.
const folder = mkdtempSync(join(tmpdir(), 'dcaf-soak-'))
const ends: Array<() => unknown> = [() => rmSync(folder, { recursive: true })]
const server: Child = await child(
  { after: (end: () => unknown) => ends.push(end) },
  { limits: { concurrent: 500 }, file: join(folder, 'ledger.db') },
)
const pool = new Pool(server.url, { connections: 50 })
const counts: Record<string, number> = {}
const count = (what: string) => {
  counts[what] = (counts[what] ?? 0) + 1
}

async function ask(path: string, text: string): Promise<{ status: number; text: string }> {
  const res = await pool.request({ path, method: 'POST', headers: asJson, body: text })
  return { status: res.statusCode, text: await res.body.text() }
}
async function decide(word: Json): Promise<void> {
  const first = await ask('/api/chat', body('drop a'))
  const [item] = JSON.parse(first.text).data.tool_calls
  const { status, text } = await ask('/api/chat', body('', { tool_calls: [{ ...item, ...word }] }))
  assert.equal(status, 200)
  assert.match(text, word.execute ? /dropped a/ : /Tool rejected/)
}
async function leave(prompt: string): Promise<void> {
  const text = body(prompt)
  const client = await raw(
    server.port,
    `POST /api/chat-stream HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: ${Buffer.byteLength(text)}\r\n\r\n${text}`,
  )
  client.socket.on('error', () => {})
  await client.until('text_delta')
  client.socket.destroy()
}

const traffic: Record<string, () => Promise<unknown>> = {
  chat: async () => assert.equal((await ask('/api/chat', body('hi'))).status, 200),
  tool: async () => assert.match((await ask('/api/chat', body('look'))).text, /"output":"seen/),
  stream: async () =>
    assert.match((await ask('/api/chat-stream', body('say 50'))).text, /"type":"done"/),
  slow: async () =>
    assert.match((await ask('/api/chat-stream', body('slow 20 50'))).text, /"type":"done"/),
  approve: () => decide({ execute: true }),
  reject: () => decide({ rejection_reason: 'no' }),
  leave: () => leave('hang'),
  'leave a flood': () => leave('flood 100'),
  'bad body': async () => assert.equal((await ask('/api/chat', '{"messages":[')).status, 400),
  'bad shape': async () => assert.equal((await ask('/api/chat', '{"messages":[{}]}')).status, 422),
  failure: async () => assert.equal((await ask('/api/chat', body('fail'))).status, 502),
}
const names = Object.keys(traffic)

const samples: { at: number; heap: number; rss: number; handles: number }[] = []
async function sample(started: number): Promise<void> {
  const { heap, rss, handles, active, connections, lateP99 } = await server.ask('gc')
  const at = (performance.now() - started) / 60_000
  samples.push({ at, heap, rss, handles })
  const mib = (bytes: number) => (bytes / 1_048_576).toFixed(1).padStart(7)
  console.log(
    `${at.toFixed(1).padStart(5)} min  heap ${mib(heap)} MiB  memory ${mib(rss)} MiB  handles ${handles}  connections ${connections}  active ${active}  loop late p99 ${lateP99.toFixed(0)} ms`,
  )
  await server.ask('reset')
}
/** Least squares over the later half: what comes before is warming up. */
function slope(of: 'heap' | 'rss' | 'handles'): number {
  const later = samples.slice(Math.floor(samples.length / 2), -1) // the last is without connections
  const mean = (values: number[]) => values.reduce((a, b) => a + b, 0) / values.length
  const [x, y] = [mean(later.map((s) => s.at)), mean(later.map((s) => s[of]))]
  const over = later.reduce((sum, s) => sum + (s.at - x) * (s[of] - y), 0)
  return over / later.reduce((sum, s) => sum + (s.at - x) ** 2, 1e-9)
}

const started = performance.now()
const end = started + minutes * 60_000
let failed = 0
let next = started
const running = new Set<Promise<unknown>>()
for (let i = 0; performance.now() < end; i++) {
  const name = names[i % names.length] as string
  const one = (traffic[name] as () => Promise<unknown>)().then(
    () => count(name),
    (error) => {
      failed++
      console.error(name, error instanceof Error ? error.message.slice(0, 300) : error)
    },
  )
  running.add(one)
  void one.finally(() => running.delete(one))
  if (samples.length === 0 || performance.now() - started > samples.length * minutes * 3_000)
    await sample(started)
  next += 1000 / rate
  await sleep(Math.max(0, next - performance.now()))
}
await Promise.all(running)
await pool.destroy()
await sleep(200)
await sample(started)
console.log(JSON.stringify(counts), `failed: ${failed}`)
const perTen = (bytes: number) => `${((bytes * 10) / 1024).toFixed(0)} KiB / 10 min`
console.log(
  `after warming up: heap ${perTen(slope('heap'))}, memory ${perTen(slope('rss'))}, handles ${(slope('handles') * 10).toFixed(1)} / 10 min`,
)
if (server.output() && !/the model failed/.test(server.output()))
  console.log(server.output().slice(0, 2_000))
server.process.kill('SIGTERM')
console.log('exit', await server.exit)
for (const close of ends.reverse()) await close()
process.exitCode = failed > 0 ? 1 : 0
