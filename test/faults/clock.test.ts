// Clocks that jump: approvals go by the wall clock with a minute of skew, and everything that waits by a clock that cannot
// be set.

import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import { memoryStore } from '../../src/store.ts'
import { type Json, serve, u } from '../harness.ts'
import { context, keepClean, see } from './clean.ts'
import { desk } from './desk.ts'
import { row, tried } from './table.ts'

keepClean()

const hour = 3_600_000
const key = (n: number) => Buffer.alloc(32, n).toString('base64')

async function open(t: TestContext, options: Parameters<typeof serve>[2] = {}) {
  const it = desk()
  const served = await serve(t, it.agent, { log: see, onEvent: see, ...options })
  const ask = async (message: Json) => {
    const got = await served.chat({ messages: [{ ...message, platform_context: context }] })
    see(got.text)
    return got.body
  }
  const propose = async () => (await ask(u('drop a'))).data.tool_calls[0] as Json
  const approve = async (item: Json): Promise<string> => {
    const { data } = await ask(u('', { tool_calls: [{ ...item, execute: true }] }))
    return data.executed_tool_calls[0].output
  }
  return { ...it, ...served, ask, propose, approve }
}

test('an approval holds a minute longer than it says, and not a second more', async (t) => {
  t.mock.timers.enable({ apis: ['Date'], now: 1_800_000_000_500 })
  const cases: [number, string][] = [
    [-1_000, 'dropped a'],
    [0, 'dropped a'],
    [59_000, 'dropped a'],
    [60_000, 'dropped a'],
    [61_000, 'Not executed: this approval expired at '],
    [24 * hour, 'Not executed: this approval expired at '],
    [400 * 24 * hour, 'Not executed: this approval expired at '],
  ]
  await tried(t, 'approvals around their expiry', cases.length, async (i) => {
    const [late, expected] = cases[i] as [number, string]
    const it = await open(t)
    const item = await it.propose()
    t.mock.timers.setTime(Date.parse(item.expires_at) + late)
    const output = await it.approve(item)
    assert.ok(output.startsWith(expected), `${late}: ${output}`)
    assert.equal(it.counts.dropped.length, expected === 'dropped a' ? 1 : 0)
  })
})

test('a server whose clock is behind takes an approval of one that is ahead', async (t) => {
  t.mock.timers.enable({ apis: ['Date'], now: 1_800_000_000_000 })
  const shared = { keys: [key(1)], store: memoryStore() }
  const [one, two] = [await open(t, shared), await open(t, shared)]
  const item = await one.propose()
  t.mock.timers.setTime(1_800_000_000_000 - hour)
  assert.equal(await two.approve(item), 'dropped a')
  t.mock.timers.setTime(1_800_000_000_000 + hour)
  assert.equal(await one.approve(item), 'dropped a')
  assert.equal(one.counts.dropped.length + two.counts.dropped.length, 1)
  row(t, 'clocks of two replicas an hour apart', 2, 0)
})

for (const jump of [-hour, hour])
  test(`a clock that jumps by ${jump / hour} h changes no timeout`, async (t) => {
    t.mock.timers.enable({ apis: ['Date'], now: 1_800_000_000_000 })
    const it = await open(t, { limits: { requestMs: 400 } })
    const started = performance.now()
    const answer = it.chat({ messages: [u('hang')] })
    t.mock.timers.setTime(1_800_000_000_000 + jump)
    const { status, body } = await answer
    const took = performance.now() - started
    assert.deepEqual([status, body.code], [504, 'deadline'])
    assert.ok(took >= 399 && took < 10_000, `${took} ms`)
    row(t, `the wall clock jumps by ${jump / hour} h during a request`, 1, 0)
  })

test('a record outlives its approval by a day, and then the expiry refuses', async (t) => {
  t.mock.timers.enable({ apis: ['Date'], now: 1_800_000_000_000 })
  const store = memoryStore()
  const it = await open(t, { store, keys: [key(1)] })
  const item = await it.propose()
  assert.equal(await it.approve(item), 'dropped a')
  for (const late of [61_000, 23 * hour]) {
    t.mock.timers.setTime(Date.parse(item.expires_at) + late)
    assert.equal(await it.approve(item), 'dropped a')
  }
  t.mock.timers.setTime(Date.parse(item.expires_at) + 25 * hour)
  await store.delete(`call:${item.id.split('.')[0]}`) // as it is now: a store forgets by a clock of its own
  assert.match(await it.approve(item), /^Not executed: this approval expired at/)
  assert.deepEqual(it.counts.dropped, ['a'])
  row(t, 'replays before and after the record is gone', 4, 0)
})

test('a key that was taken out verifies nothing any more', async (t) => {
  const store = memoryStore()
  const old = await open(t, { keys: [key(1)], store })
  const items = [await old.propose(), await old.propose()]
  const both = await open(t, { keys: [key(2), key(1)], store })
  assert.equal(await both.approve(items[0] as Json), 'dropped a')
  const fresh = await open(t, { keys: [key(2)], store })
  assert.match(await fresh.approve(items[1] as Json), /could not be verified/)
  assert.equal(await fresh.approve(await both.propose()), 'dropped a')
  assert.equal(fresh.counts.dropped.length, 1)
  row(t, 'approvals across a rotation of keys', 3, 0)
})
