import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import type { GrantRequest } from '../src/approval.ts'
import { type GrantBook, type GrantOptions, grantBook, grantScope } from '../src/grants.ts'
import {
  type Agent,
  approve,
  approveAll,
  edit,
  type RunOptions,
  type RunResult,
  reject,
} from '../src/index.ts'
import { scripted } from '../src/providers/scripted.ts'
import { memoryStore } from '../src/store.ts'
import type { Tool } from '../src/tool.ts'
import { desk, idOf, type Json, outputs, testKey, told } from './desk.ts'
import { faultyStore } from './faulty-store.ts'
import { serve, u } from './harness.ts'

/** A desk whose tool takes grants, and whose model asks for `inputs`, one a run. */
function granting(
  more: Json = {},
  agent: Partial<Agent> = {},
  options: RunOptions & { grant?: GrantOptions } = {},
) {
  const { grant: limits, ...rest } = options
  const store = rest.store ?? memoryStore()
  const grants = grantBook(store, limits)
  let input: Json = { table: 'a' }
  const provider = scripted((request) =>
    request.messages.at(-1)?.role === 'user' ? { calls: [{ name: 'drop', input }] } : 'ok',
  )
  const it = desk({ grantable: true, ...more }, { provider, ...agent }, { ...rest, store, grants })
  const tool = it.agent.tools?.[0] as Tool
  return {
    ...it,
    grants,
    tool,
    ask: (next: Json = { table: 'a' }, changed: RunOptions = {}) => {
      input = next
      return it.propose(changed)
    },
    give: (result: RunResult, grant: GrantRequest = {}, changed: RunOptions = {}) =>
      it.decide(result, [{ ...approve(idOf(result)), grant }], changed),
    scope: (who = {}) => grantScope('db', tool, who),
  }
}
const list = (it: { grants: GrantBook; scope: () => Parameters<GrantBook['list']>[0] }) =>
  it.grants.list(it.scope())

test('an approval that carries a grant covers the same input without asking, and is named', async () => {
  const it = granting()
  const first = await it.ask()
  assert.deepEqual(outputs(await it.give(first)), ['dropped a'])
  const [grant] = await list(it)
  const second = await it.ask()
  assert.deepEqual([second.pending, outputs(second), it.ran.length], [[], ['dropped a'], 2])
  const [added] = it.of('GrantAdded')
  assert.deepEqual(
    [added?.grant, added?.name, added?.callId, added?.grantedBy],
    [grant?.id, 'drop', idOf(first).split('.')[0], undefined],
  )
  const approved = it.of('ToolCallApproved').at(-1)
  assert.deepEqual([approved?.approvedBy, approved?.grant], [`grant:${grant?.id}`, grant?.id])
  assert.deepEqual(
    it.of('ToolExecuted').map((f) => f.grant),
    [undefined, grant?.id],
  )
  const [call] = second.executed
  const record = JSON.parse((await it.store.get(`call:${call?.id}`)) ?? '{}')
  assert.deepEqual([record.by, record.outcome], [`grant:${grant?.id}`, 'ok'])
})

test('without where it covers the filled input and no other', async () => {
  const it = granting()
  await it.give(await it.ask())
  assert.equal((await it.ask({ table: 'a', cascade: false })).pending.length, 0)
  for (const other of [{ table: 'b' }, { table: 'a', cascade: true }])
    assert.equal((await it.ask(other)).pending.length, 1)
  const [grant] = await list(it)
  assert.deepEqual(grant?.where, { table: 'a', cascade: false })
})

test('where deep-equals the keys it names, whatever the rest is', async () => {
  const it = granting({ input: { type: 'object' } })
  const where = { at: { ns: 'dev', tags: [1, 2] } }
  await it.give(await it.ask({ table: 'a', at: { tags: [1, 2], ns: 'dev' } }), { where })
  assert.equal((await it.ask({ table: 'z', at: { ns: 'dev', tags: [1, 2] } })).pending.length, 0)
  for (const at of [
    { ns: 'dev' },
    { ns: 'dev', tags: [2, 1] },
    { ns: 'dev', tags: [1, 2], x: 1 },
    null,
    'dev',
    undefined,
  ])
    assert.equal((await it.ask({ table: 'z', at })).pending.length, 1, JSON.stringify(at))
  assert.equal((await it.ask({ table: 'z' })).pending.length, 1)
})

test('a key that every object has is no key of an input', async () => {
  const it = granting({ input: { type: 'object' } })
  await it.give(await it.ask({ toString: 'x' }), { where: { toString: 'x' } })
  assert.equal((await it.ask({ table: 'z' })).pending.length, 1)
})

for (const [claim, grant, words] of [
  [
    'a where that does not hold for the call',
    { where: { table: 'b' } },
    /where must hold for the call/,
  ],
  ['an until that is no time', { until: 'soon' }, /until must be a time/],
  ['an until that is over', { until: '2001-01-01T00:00:00Z' }, /is over/],
  ['no uses', { max_uses: 0 }, /max_uses/],
  ['half a use', { max_uses: 1.5 }, /max_uses/],
] as [string, GrantRequest, RegExp][])
  test(`${claim} gives no grant, and the call that ran is told as it ended`, async () => {
    const it = granting()
    const next = await it.give(await it.ask(), grant)
    assert.deepEqual([outputs(next), next.stop, told(next)], [['dropped a'], 'end', ['dropped a']])
    assert.match(String(it.of('GrantRefused')[0]?.reason), words)
    assert.deepEqual([await list(it), (await it.ask()).pending.length], [[], 1])
  })

test('a store that is down when the grant is written leaves the call as it ended', async () => {
  const store = faultyStore()
  const it = granting({}, {}, { store })
  const first = await it.ask()
  store.fault = { kind: 'down', keys: (key) => key.startsWith('grants:') }
  const next = await it.give(first)
  assert.deepEqual(
    [outputs(next), next.error, it.of('GrantRefused').length],
    [['dropped a'], undefined, 1],
  )
  const down = await it.ask()
  assert.deepEqual([down.error?.code, down.executed, it.ran.length], ['store_unavailable', [], 1])
  store.heal()
  assert.equal((await it.ask()).pending.length, 1)
})

test('a store of any kind that fails is one that is not available', async () => {
  const fail = () => Promise.reject(new Error('ECONNREFUSED'))
  const book = grantBook({ get: fail, set: fail, swap: fail, delete: fail })
  const scope = { agent: 'a', name: 'b', audience: [] }
  await assert.rejects(book.list(scope), { code: 'store_unavailable' })
})

// ------------------------------------------------------------ for how long, how often

test('a grant lasts until its time, an hour at the most', async (t: TestContext) => {
  const now = 1_800_000_000_000
  t.mock.timers.enable({ apis: ['Date'], now })
  const until = (ms: number) => new Date(now + ms).toISOString()
  for (const [grant, options, lasts] of [
    [{}, {}, 3_600_000],
    [{ until: until(60_000) }, {}, 60_000],
    [{ until: until(7_200_000) }, {}, 3_600_000],
    [{}, { maxMs: 120_000 }, 120_000],
  ] as const) {
    t.mock.timers.setTime(now)
    const it = granting({}, {}, { grant: options })
    await it.give(await it.ask(), grant)
    assert.equal((await list(it))[0]?.until, until(lasts))
    t.mock.timers.tick(lasts - 1)
    assert.equal((await it.ask()).pending.length, 0)
    t.mock.timers.tick(1)
    assert.deepEqual([(await it.ask()).pending.length, await list(it)], [1, []])
  }
})

test('a grant that was given earlier and lasts longer is not cut by a later one', async (t: TestContext) => {
  const now = 1_800_000_000_000
  t.mock.timers.enable({ apis: ['Date'], now })
  const it = granting()
  await it.give(await it.ask())
  await it.give(await it.ask({ table: 'b' }), { until: new Date(now + 1000).toISOString() })
  t.mock.timers.tick(3_599_000)
  assert.equal((await it.ask()).pending.length, 0)
})

test('a grant is used as often as it says, ten times at the most', async () => {
  for (const [grant, options, uses] of [
    [{}, {}, 10],
    [{ max_uses: 2 }, {}, 2],
    [{ max_uses: 99 }, {}, 10],
    [{}, { maxUses: 3 }, 3],
  ] as const) {
    const it = granting({}, {}, { grant: options })
    await it.give(await it.ask(), grant)
    for (let i = 0; i < uses; i++) {
      assert.equal((await list(it))[0]?.uses, i)
      assert.equal((await it.ask()).pending.length, 0)
    }
    assert.deepEqual([(await it.ask()).pending.length, await list(it)], [1, []])
  }
})

test('uses that come at once are all counted', async () => {
  const it = granting()
  await it.give(await it.ask(), { max_uses: 3 })
  const all = await Promise.all(Array.from({ length: 8 }, () => it.ask()))
  assert.deepEqual([all.filter((r) => r.pending.length > 0).length, it.ran.length], [5, 4])
})

test('of several grants the first that covers is used, then the next', async () => {
  const it = granting({ input: { type: 'object' } })
  await it.give(await it.ask(), { where: { table: 'a' }, max_uses: 1 })
  const second = await it.ask({ table: 'a', n: 1 })
  assert.equal(second.pending.length, 0)
  await it.give(await it.ask({ table: 'a', n: 2 }), { where: { table: 'a' }, max_uses: 1 })
  await it.give(await it.ask({ table: 'b' }), { where: { table: 'b' } })
  assert.deepEqual(
    (await list(it)).map((g) => g.where),
    [{ table: 'a' }, { table: 'b' }],
  )
})

// ------------------------------------------------------------ what it does not answer

for (const [claim, more] of [
  ['a tool that does not say grantable', { grantable: false }],
  ['a tool with a quorum', { approver: 'anyone', quorum: 2 }],
  ['a tool that someone else must approve', { approver: 'other' }],
] as [string, Json][])
  test(`${claim} takes no grant and is asked each time`, async () => {
    const it = granting(more)
    const as = (principal: string) => ({ principal })
    const first = await it.ask({ table: 'a' }, as('ann'))
    for (const principal of ['ann', 'bob', 'cid']) await it.give(first, {}, as(principal))
    assert.deepEqual([it.ran.length, it.of('GrantAdded')], [1, []])
    assert.match(String(it.of('GrantRefused')[0]?.reason), /drop takes no grants/)
    await it.grants.add(
      { ...it.scope({ principal: 'ann' }), input: { table: 'a', cascade: false } },
      {},
      'bob',
    )
    assert.equal((await it.ask({ table: 'a' }, as('ann'))).pending.length, 1)
    assert.equal(it.ran.length, 1)
  })

test('a grant answers no denial, no freeze, and nothing that hides', async () => {
  let deny = false
  let frozen: string | false = false
  const it = granting({}, { policy: () => (deny ? 'deny' : 'ask'), frozen: () => frozen })
  await it.give(await it.ask(), { where: { table: 'a' } })
  deny = true
  assert.deepEqual(told(await it.ask()), ['Denied by policy: no reason given'])
  deny = false
  frozen = 'night'
  assert.equal((await it.ask()).pending.length, 1)
  frozen = false
  assert.match(told(await it.ask({ table: 'a\u202e' }))[0] ?? '', /invisible/)
  assert.deepEqual([it.ran.length, (await list(it))[0]?.uses], [1, 0])
  assert.equal((await it.ask()).pending.length, 0)
})

test('a grant answers no drift: the fresh call is asked', async () => {
  let rows = 1
  const it = granting({ preview: () => `${rows}` })
  const first = await it.ask()
  const waiting = await it.ask()
  await it.give(first, {})
  rows = 2
  const drift = await it.decide(waiting, approveAll(waiting))
  assert.deepEqual([drift.pending.length, it.ran.length], [1, 1])
})

test('what a person rejected is not answered by a grant in the same run', async () => {
  const it = granting()
  it.agent.provider = scripted((_, __, i) =>
    i < 4 ? { calls: [{ name: 'drop', input: { table: 'a' } }] } : 'ok',
  )
  const first = await it.propose()
  await it.grants.add({ ...it.scope(), input: { table: 'a', cascade: false } }, {}, 'ann')
  const last = await it.decide(first, [reject(idOf(first), 'no')])
  assert.deepEqual([last.stop, it.ran], ['limit', []])
  assert.equal((await list(it))[0]?.uses, 0)
})

test('a rejection gives no grant, nor does a call that failed, or was done before', async () => {
  const it = granting()
  const first = await it.ask()
  await it.decide(first, [{ ...reject(idOf(first), 'no'), grant: {} }])
  const fails = granting({ execute: () => Promise.reject(new Error('x')) })
  await fails.give(await fails.ask())
  assert.deepEqual([await list(it), await list(fails)], [[], []])
  const done = granting()
  const second = await done.ask()
  await done.give(second)
  await done.give(second)
  assert.equal((await list(done)).length, 1)
})

test('an edit’s grant covers the edited input', async () => {
  const it = granting({ editable: true })
  const first = await it.ask()
  await it.decide(first, [{ ...edit(idOf(first), { table: 'b' }), grant: {} }])
  assert.deepEqual(
    (await list(it)).map((g) => g.where),
    [{ table: 'b', cascade: false }],
  )
})

test('a grant holds for the agent, tool, thread, person and place it was given in', async () => {
  const base = { principal: 'ann', threadId: 't', context: { tenant_id: 'a', user_id: 'u' } }
  const it = granting({}, {}, base)
  await it.give(await it.ask())
  for (const changed of [
    { principal: 'bob' },
    { threadId: 'u' },
    { context: { ...base.context, tenant_id: 'b' } },
    { bindContext: () => 'x' },
  ] as RunOptions[])
    assert.equal((await it.ask({ table: 'a' }, changed)).pending.length, 1)
  assert.equal((await it.ask()).pending.length, 0)
  assert.equal((await it.grants.list(grantScope('db', it.tool, base))).length, 1)
  const thread = { principal: 'ann', context: { ...base.context, thread_id: 't' } }
  assert.equal((await it.grants.list(grantScope('db', it.tool, thread))).length, 1)
  for (const other of [
    grantScope('web', it.tool, base),
    grantScope('db', it.tool, {}),
    grantScope('db', it.tool, base, ['x']),
  ])
    assert.deepEqual(await it.grants.list(other), [])
})

test('a tool for anyone shares its grants among all of the thread', async () => {
  const it = granting({ approver: 'anyone' }, {}, { threadId: 't' })
  await it.give(await it.ask({ table: 'a' }, { principal: 'ann' }), {}, { principal: 'bob' })
  assert.equal((await it.ask({ table: 'a' }, { principal: 'cid' })).pending.length, 0)
  const [grant] = await it.grants.list(it.scope({ threadId: 't' }))
  assert.equal(grant?.by, 'bob')
})

// ------------------------------------------------------------ list and revoke

test('a grant is listed as it stands, and covers nothing once revoked', async () => {
  const it = granting({}, {}, { principal: 'ann' })
  await it.give(await it.ask(), { max_uses: 5 })
  await it.ask()
  const scope = it.scope({ principal: 'ann' })
  const [grant] = await it.grants.list(scope)
  const { id, until, ...rest } = grant as NonNullable<typeof grant>
  assert.match(id, /^gr_/)
  assert.ok(Date.parse(until) > Date.now())
  assert.deepEqual(rest, {
    agent: 'db',
    tool: 'drop',
    where: { table: 'a', cascade: false },
    whole: true,
    maxUses: 5,
    uses: 1,
    by: 'ann',
  })
  assert.equal(await it.grants.revoke(scope, 'gr_other'), false)
  assert.equal(await it.grants.revoke(scope, id), true)
  assert.equal(await it.grants.revoke(scope, id), false)
  assert.deepEqual([await it.grants.list(scope), (await it.ask()).pending.length], [[], 1])
})

test('no grants handed over: a grant is refused by name, and nothing runs unasked', async () => {
  const it = desk({ grantable: true })
  const first = await it.propose()
  const next = await it.decide(first, [{ ...approve(idOf(first)), grant: {} }])
  assert.deepEqual(outputs(next), ['dropped a'])
  assert.match(String(it.of('GrantRefused')[0]?.reason), /no grants were handed over/)
})

test('over the wire a decision carries its grant', async (t) => {
  const it = granting()
  const { chat } = await serve(t, it.agent, { store: it.store, keys: [testKey], grants: it.grants })
  const first = (await chat({ messages: [u('x')] })).body
  const [{ id }] = first.data.tool_calls
  const grant = { where: { table: 'a' }, max_uses: 1 }
  await chat({ messages: [u('x'), first, u('', { tool_calls: [{ id, execute: true, grant }] })] })
  const second = (await chat({ messages: [u('x')] })).body
  assert.deepEqual(
    second.data.executed_tool_calls.map((c: Json) => c.output),
    ['dropped a'],
  )
  assert.equal((await chat({ messages: [u('x')] })).body.data.tool_calls.length, 1)
})
