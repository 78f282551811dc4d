// What listeners are told of decisions and tools: each kind of fact, with all that is in it, and none too many.

import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import { unverified } from '../src/approval.ts'
import {
  approve,
  approveAll,
  edit,
  type RunOptions,
  type RunResult,
  reject,
  run,
} from '../src/index.ts'
import { scripted } from '../src/providers/scripted.ts'
import { desk, dropTool, idOf, type Json } from './desk.ts'

type Desk = ReturnType<typeof desk>

/** Facts of decisions and tools since the last time, without time and run. */
function said(it: Desk): Json[] {
  const facts = it.facts.splice(0).filter(({ type }) => /^(Tool|Grant|Ledger)/.test(type))
  return facts.map(({ timestamp, runId, agent, durationMs, ...fact }) => {
    if (durationMs !== undefined) assert.ok(Number(durationMs) >= 0 && Number(durationMs) < 60_000)
    assert.equal(agent, 'db')
    return fact
  })
}
const callOf = (result: RunResult) => ({ callId: idOf(result).split('.')[0], name: 'drop' })
const filled = { table: 'a', cascade: false }
const ann: RunOptions = { principal: 'ann' }

function clock(t: TestContext) {
  t.mock.timers.enable({ apis: ['Date'], now: Date.UTC(2027, 0, 15, 8) })
}

test('an approval, and what the tool did', async () => {
  const it = desk({}, {}, ann)
  const first = await it.propose()
  assert.deepEqual(said(it), [])
  await it.decide(first, approveAll(first))
  const call = callOf(first)
  assert.deepEqual(said(it), [
    { type: 'ToolCallApproved', ...call, approvedBy: 'ann' },
    { type: 'ToolExecuted', ...call, input: filled, outcome: 'ok', output: 'dropped a' },
  ])
  await it.decide(first, approveAll(first))
  assert.deepEqual(said(it), [], 'a replay is no news')
})

test('an approval by nobody in particular, and a tool that failed', async () => {
  const it = desk({ execute: () => Promise.reject(new Error('kaput')) })
  const first = await it.propose()
  await it.decide(first, approveAll(first))
  const call = callOf(first)
  const error = 'Error executing drop: kaput'
  assert.deepEqual(said(it), [
    { type: 'ToolCallApproved', ...call, approvedBy: undefined },
    { type: 'ToolExecutionFailed', ...call, input: filled, outcome: 'error', error },
  ])
})

test('a tool that needs no approval is no approval', async () => {
  const it = desk({ requiresApproval: false })
  await it.propose()
  const [fact, ...more] = said(it)
  const call = { callId: fact?.callId, name: 'drop' }
  const done = { input: filled, outcome: 'ok', output: 'dropped a' }
  assert.deepEqual([fact, more], [{ type: 'ToolExecuted', ...call, ...done }, []])
})

test('a tool that outlives its time, and its late result', async () => {
  const going = Promise.withResolvers<string>()
  const it = desk({ timeoutMs: 20, execute: () => going.promise })
  const first = await it.propose()
  await it.decide(first, approveAll(first))
  going.resolve('in the end')
  await new Promise(setImmediate)
  const call = { ...callOf(first), input: filled }
  const [, unknown, late] = said(it)
  const error =
    'Outcome unknown: drop did not finish within 20 ms. It was NOT run again. Check the target before asking again.'
  assert.deepEqual(
    [unknown, late],
    [
      { type: 'ToolExecutionFailed', ...call, outcome: 'unknown', error },
      { type: 'ToolExecuted', ...call, outcome: 'ok', output: 'in the end', late: true },
    ],
  )
})

test('a rejection', async () => {
  const it = desk({}, {}, ann)
  const first = await it.propose()
  await it.decide(first, [reject(idOf(first), 'no')])
  const by = { rejectedBy: 'ann', reason: 'no' }
  assert.deepEqual(said(it), [{ type: 'ToolCallRejected', ...callOf(first), ...by }])
})

test('what does not hold is refused, with the reason', async () => {
  const forged = (id: string) => [approve(`${id.slice(0, -22)}${'A'.repeat(22)}`)]
  const changed = 'Not executed: the tool or what it would do changed since this was shown.'
  const own = 'Not executed: the changed input needs an approval of its own.'
  const frozen = 'Not executed: frozen: night'
  const rows: [Json, Json, (id: string) => ReturnType<typeof approve>[], string][] = [
    [{}, {}, forged, unverified],
    [{}, {}, (id) => [{ ...approve(id), name: 'other' }], unverified],
    [{}, { frozen: () => 'night' }, (id) => [approve(id)], frozen],
    [{ description: 'Another' }, {}, (id) => [approve(id)], changed],
    [{}, {}, (id) => [edit(id, { table: 'b' })], own],
  ]
  for (const [tool, agent, decisions, reason] of rows) {
    const it = desk({}, {}, ann)
    const first = await it.propose()
    const now = desk({}, { tools: [dropTool([], tool)], ...agent }, it.options)
    await now.decide(first, decisions(idOf(first)))
    assert.deepEqual(said(now), [{ type: 'ToolCallRefused', ...callOf(first), reason }])
  }
})

test('a decision that no state knows of is named as it names itself, or as the thread does', async () => {
  for (const more of [{ name: 'drop' }, { known: { name: 'drop', input: { table: 'a' } } }]) {
    const it = desk()
    const call = { id: `tc_${'x'.repeat(16)}`, approve: true, ...more }
    await run(it.agent, { messages: 'x', decisions: [call] }, it.options)
    const fact = { type: 'ToolCallRefused', callId: call.id, name: 'drop', reason: unverified }
    assert.deepEqual(said(it), [fact])
  }
})

test('a call that the tool takes no more', async () => {
  const it = desk()
  const first = await it.propose()
  const never = { type: 'object', properties: { other: { type: 'string' } }, required: ['other'] }
  const tools = [dropTool([], { input: never })]
  const now = desk({}, { tools, provider: scripted(() => 'ok') }, it.options)
  await now.decide(first, approveAll(first))
  const [fact, ...more] = said(now)
  const { reason, ...rest } = fact as Json
  assert.match(reason, /^Invalid input for drop: /)
  assert.deepEqual([rest, more], [{ type: 'ToolCallRefused', ...callOf(first) }, []])
})

test('what expired, decided or not', async (t) => {
  clock(t)
  const it = desk()
  const first = await it.propose()
  t.mock.timers.tick(3_600_000 + 60_000)
  await it.decide(first, [])
  assert.deepEqual(said(it), [], 'not before its minute of grace is over')
  t.mock.timers.tick(1_001)
  await it.decide(first, [])
  assert.deepEqual(said(it), [{ type: 'ToolCallExpired', ...callOf(first) }])
  await it.decide(first, approveAll(first))
  assert.deepEqual(said(it), [{ type: 'ToolCallExpired', ...callOf(first) }])
})

test('a vote, and the one that made the quorum', async () => {
  const it = desk({ approver: 'anyone', quorum: 2 }, {}, ann)
  const first = await it.propose()
  await it.decide(first, approveAll(first))
  const call = callOf(first)
  assert.deepEqual(said(it), [{ type: 'ToolCallApproved', ...call, approvedBy: 'ann', votes: 1 }])
  await it.decide(first, approveAll(first), { principal: 'ben' })
  assert.deepEqual(said(it), [
    { type: 'ToolCallApproved', ...call, approvedBy: 'ben' },
    { type: 'ToolExecuted', ...call, input: filled, outcome: 'ok', output: 'dropped a' },
  ])
})

test('a proposal that cannot be', async () => {
  const provider = (input: Json, name = 'drop') =>
    scripted((_, __, index) => (index === 0 ? { calls: [{ name, input }] } : 'ok'))
  const look = { name: 'look', execute: () => 'seen' }
  const rows: [Json, string][] = [
    [{ provider: provider({}, 'nope') }, 'Unknown tool: nope. There is: drop, look.'],
    [
      { provider: provider({ table: 'a\u202e' }) },
      'The field "table" of drop holds invisible or control characters, which whoever approves could not see. Write it without them.',
    ],
    [
      { provider: provider({ table: 'a' }, 'look'), frozen: () => 'night' },
      'Not executed: frozen: night',
    ],
  ]
  for (const [agent, reason] of rows) {
    const tools = [dropTool([]), dropTool([], { ...look, requiresApproval: false })]
    const it = desk({}, { tools, ...agent })
    const [call] = (await it.propose()).state.calls
    const fact = { type: 'ToolCallRefused', callId: call?.id, name: call?.name, reason }
    assert.deepEqual(said(it), [fact])
  }
})
