// A store that fails at each of its calls, in each way: what it cannot record does not run, what ran is told once, nothing
// runs twice, and chats that need no store never feel it.

import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import type { LogEntry } from '../../src/http.ts'
import { type Fault, faultyStore } from '../faulty-store.ts'
import { type Json, serve, u } from '../harness.ts'
import { context, keepClean, see } from './clean.ts'
import { desk } from './desk.ts'
import { quantile, row, times, tried } from './table.ts'

keepClean()

const key = Buffer.alloc(32, 5).toString('base64')

async function open(t: TestContext, options: Parameters<typeof serve>[2] = {}) {
  const it = desk({}, 5)
  const store = faultyStore()
  const log: LogEntry[] = []
  const served = await serve(t, it.agent, {
    store,
    keys: [key],
    limits: { requestMs: 300, toolMs: 100 },
    log: (entry) => log.push(see(entry)),
    onEvent: see,
    ...options,
  })
  const ask = async (message: Json) => {
    const got = await served.chat({
      messages: [{ ...message, platform_context: context }],
      thread_id: 't',
    })
    see(got.text)
    return got
  }
  const propose = async () => (await ask(u('drop a'))).body.data.tool_calls[0] as Json
  const approve = (item: Json) => ask(u('', { tool_calls: [{ ...item, execute: true }] }))
  const outputOf = ({ body }: { body: Json }) =>
    body.data?.executed_tool_calls[0]?.output as string | undefined
  return { ...it, ...served, store, log, ask, propose, approve, outputOf }
}

const kinds = ['down', 'lost', 'slow', 'hang'] as const

test('an approval over a store that fails at any of its calls runs at most once, and is told', async (t) => {
  const plain = await open(t)
  const item = await plain.propose()
  const before = plain.store.calls.length
  await plain.approve(item)
  const calls = plain.store.calls.length - before
  const spans = [1, 2, Number.POSITIVE_INFINITY]
  const ends: Record<string, number> = {}
  const cases = kinds.flatMap((kind) =>
    Array.from({ length: calls + 1 }, (_, after) =>
      spans.map((times) => ({ kind, after, times, ms: 30 }) satisfies Fault),
    ).flat(),
  )
  await tried(
    t,
    'an approval over a failing store',
    cases.length * times(1, 20),
    async (i) => {
      const fault = cases[i % cases.length] as Fault
      const it = await open(t)
      const item = await it.propose()
      it.store.fault = fault
      const from = it.store.calls.length
      const first = await it.approve(item)
      const begun = it.store.calls
        .slice(from, from + (fault.after ?? 0))
        .some(({ method, key }) => method === 'swap' && key.startsWith('call:'))
      const ran = it.counts.dropped.length
      const what = `${JSON.stringify(fault)} ${first.text}`
      assert.ok(ran <= 1, what)
      if (first.status === 200 && fault.kind !== 'hang')
        assert.equal(it.outputOf(first) === 'dropped a', ran === 1, what)
      else if (first.status !== 200) {
        assert.ok(['store_unavailable', 'deadline'].includes(first.body.code), what)
        if (fault.kind !== 'hang') assert.equal(ran, 0, what)
      }
      it.store.heal()
      const second = await it.approve(item)
      const output = it.outputOf(second) ?? ''
      const known = /^dropped a$|^Already running since|^Outcome unknown/.test(output)
      assert.ok(second.status === 200 && known, `${what} then ${second.text}`)
      assert.ok(it.counts.dropped.length <= 1, what)
      if (fault.kind === 'down' && ran === 0 && !begun)
        assert.equal(output, 'dropped a', `${what} then ${second.text}`)
      const end = `${ran ? 'ran' : 'held'}, then ${output.split(' ')[0]}`
      ends[end] = (ends[end] ?? 0) + 1
    },
    { atOnce: 8, more: () => JSON.stringify(ends) },
  )
})

test('an outcome that could not be recorded is told once, logged, and never made again', async (t) => {
  const it = await open(t)
  const item = await it.propose()
  let swaps = 0
  it.store.fault = {
    kind: 'down',
    on: ['swap'],
    keys: (name) => name.startsWith('call:') && ++swaps > 1,
  }
  const first = await it.approve(item)
  assert.deepEqual([first.status, it.outputOf(first)], [200, 'dropped a'])
  const entry = it.log.find((one) => one.event === 'LedgerFailed')
  assert.equal(entry?.level, 'error')
  assert.match(String(entry?.error), /faulty store/)
  it.store.heal()
  assert.match(it.outputOf(await it.approve(item)) ?? '', /^Outcome unknown/)
  assert.deepEqual(it.counts.dropped, ['a'])
  row(t, 'an outcome that could not be recorded', 1, 0)
})

test('a chat that needs no store is as quick as ever while the store hangs, and recovers with it', async (t) => {
  const it = await open(t, { limits: { requestMs: 30_000 } })
  const item = await it.propose()
  const timed = async (n: number, prompt: string) => {
    const took: number[] = []
    for (let i = 0; i < n; i++) {
      const started = performance.now()
      const { status, body } = await it.ask(u(prompt))
      took.push(performance.now() - started)
      assert.equal(status, 200, JSON.stringify(body))
    }
    return quantile(took, 0.99)
  }
  const count = times(100, 2_000)
  await timed(50, 'hi')
  const alone = await timed(count, 'hi')
  it.store.fault = { kind: 'hang' }
  const waiting = it.approve(item)
  const during = await timed(count, 'hi')
  await timed(10, 'look')
  it.store.heal()
  const { status } = await waiting
  assert.equal(status, 200)
  assert.deepEqual(it.counts.dropped, ['a'])
  row(
    t,
    'chats beside a store that hangs',
    count,
    0,
    `p99 ${during.toFixed(1)} ms, ${alone.toFixed(1)} ms without`,
  )
})

test('a proposal that cannot be signed is 503, and is made once the store is back', async (t) => {
  const it = await open(t)
  it.store.fault = { kind: 'down' }
  for (let i = 0; i < 3; i++) {
    const { status, body } = await it.ask(u('drop a'))
    assert.deepEqual([status, body.code], [503, 'store_unavailable'])
  }
  it.store.heal()
  assert.equal(it.outputOf(await it.approve(await it.propose())), 'dropped a')
  row(t, 'proposals over a store that is down', 4, 0)
})

test('a kept session over a failing store is whole or refused, never half', async (t) => {
  const it = await open(t, { session: 'server' })
  const cases = kinds.flatMap((kind) =>
    [0, 1, 2].map((after) => ({ kind, after, times: 1, ms: 20 }) satisfies Fault),
  )
  await tried(t, 'a kept session over a failing store', cases.length, async (i) => {
    it.store.fault = cases[i] as Fault
    const { status, body } = await it.ask(u('hi'))
    assert.ok(status === 200 || ['store_unavailable', 'deadline'].includes(body.code), body.code)
    it.store.heal()
    assert.equal((await it.ask(u('hi'))).status, 200)
  })
})
