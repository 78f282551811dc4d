// The gate at its edges, beside what `approval.test.ts` says of it: what a forger may learn, what is kept for how long, what
// is said of an input that cannot be, and what is left behind when all is over.

import assert from 'node:assert/strict'
import { getEventListeners } from 'node:events'
import { existsSync, readlinkSync } from 'node:fs'
import { hostname } from 'node:os'
import { type TestContext, test } from 'node:test'
import { z } from 'zod'
import { cap, unverified } from '../src/approval.ts'
import { approve, approveAll, edit, type RunResult, reject, resume, run } from '../src/index.ts'
import { scripted } from '../src/providers/scripted.ts'
import { memoryStore, type Store } from '../src/store.ts'
import { desk, dropTool, idOf, type Json, outputs } from './desk.ts'
import { faultyStore } from './faulty-store.ts'

const start = Date.UTC(2027, 0, 15, 8)
const clock = (t: TestContext) => t.mock.timers.enable({ apis: ['Date'], now: start })
const nonceOf = (result: RunResult) => idOf(result).split('.')[0] as string
const day = 86_400_000

/** The times to live that were asked for, by the first word of the key. */
function watched(): { store: Store; ttls: Record<string, (number | undefined)[]> } {
  const store = memoryStore()
  const ttls: Record<string, (number | undefined)[]> = {}
  const swap = store.swap.bind(store)
  store.swap = (key, expected, value, ttl) => {
    const [kind = ''] = key.split(':')
    ttls[kind] = [...(ttls[kind] ?? []), ttl]
    return swap(key, expected, value, ttl)
  }
  return { store, ttls }
}

// ------------------------------------------------------------ ids that do not hold

test('a forged id of a call that ran learns nothing of what it did', async () => {
  const it = desk()
  const first = await it.propose()
  const forged = `${idOf(first).slice(0, -22)}${'A'.repeat(22)}`
  await it.decide(first, approveAll(first))
  for (const item of [approve(forged), reject(forged, 'no')]) {
    const stray = { ...item, name: 'drop', input: { table: 'a' } }
    const answer = await run(it.agent, { messages: 'x', decisions: [stray] }, it.options)
    const expected = item.approve ? unverified : 'Tool rejected: no'
    assert.deepEqual(outputs(answer), [expected])
  }
})

test('an item that names another tool than the call does not hold', async () => {
  const it = desk()
  const first = await it.propose()
  const other = await it.decide(first, [{ ...approve(idOf(first)), name: 'other' }])
  assert.deepEqual([outputs(other), it.ran, idOf(other)], [[unverified], [], idOf(first)])
})

test('an input that was only echoed is no edit in one step, though the tool is editable', async () => {
  const it = desk({ editable: true })
  const first = await it.propose()
  const echoed = { ...approve(idOf(first)), input: { table: 'b' } }
  const next = await it.decide(first, [echoed])
  assert.deepEqual([it.ran, next.pending[0]?.input], [[], { table: 'b' }])
  assert.notEqual(idOf(next), idOf(first))
})

test('what the thread and the item say of the input is compared, whoever knows the call', async () => {
  const it = desk()
  const first = await it.propose()
  const known = { name: 'drop', input: { table: 'a' } }
  const altered = { ...approve(idOf(first)), name: 'drop', input: { table: 'b' }, known }
  for (const paused of [first.state, undefined]) {
    const next = await run(it.agent, { messages: [], decisions: [altered], paused }, it.options)
    assert.deepEqual([it.ran, next.pending.map(({ input }) => input)], [[], [{ table: 'b' }]])
  }
})

test('a quorum counts nobody who has no name', async () => {
  const it = desk({ approver: 'anyone', quorum: 2 }, {}, { principal: 'ann' })
  const first = await it.propose()
  const next = await it.decide(first, approveAll(first), { principal: undefined })
  assert.deepEqual([outputs(next), next.pending[0]?.votes], [[unverified], undefined])
  assert.equal(await it.store.get(`votes:${nonceOf(first)}`), undefined)
})

// ------------------------------------------------------------ the very millisecond

test('an approval holds up to the last millisecond of its minute of grace', async (t) => {
  clock(t)
  for (const [late, runs] of [
    [0, 1],
    [1, 0],
  ] as const) {
    const it = desk()
    const first = await it.propose()
    t.mock.timers.tick(3_600_000 + 60_000 + late)
    await it.decide(first, approveAll(first))
    assert.equal(it.ran.length, runs)
    t.mock.timers.setTime(start)
  }
})

test('what another host began may be running up to a minute after its clock', async (t) => {
  clock(t)
  for (const [since, words] of [
    [start - 120_000, /^Already running since/],
    [start - 120_001, /^Outcome unknown/],
  ] as const) {
    const it = desk()
    const first = await it.propose()
    const entry = { state: 'running', owner: 'else:1:aa', run: 1, since, timeoutMs: 60_000 }
    await it.store.set(`call:${nonceOf(first)}`, JSON.stringify(entry))
    assert.match(outputs(await it.decide(first, approveAll(first)))[0] ?? '', words)
  }
})

// ------------------------------------------------------------ what is kept

test('the record of a late decision is kept a day beyond the whole life of an approval', async (t) => {
  clock(t)
  const { store, ttls } = watched()
  const it = desk({ approvalTtlMs: 100_000 }, {}, { store })
  const first = await it.propose()
  t.mock.timers.tick(60_000)
  await it.decide(first, approveAll(first))
  assert.deepEqual(ttls.call, [100_000 + day, 100_000 + day])
})

test('who asked, and who voted, are kept a day beyond the expiry; one approver needs no votes', async (t) => {
  clock(t)
  const { store, ttls } = watched()
  const other = desk({ approvalTtlMs: 100_000, approver: 'other' }, {}, { store, principal: 'ann' })
  await other.propose()
  assert.deepEqual(ttls.asked, [100_000 + day])
  const two = desk({ approvalTtlMs: 100_000, quorum: 2, approver: 'anyone' }, {}, { store })
  const first = await two.propose()
  t.mock.timers.tick(40_000)
  await two.decide(first, approveAll(first), { principal: 'ann' })
  assert.deepEqual(ttls.votes, [60_000 + day])
  const one = desk({}, {}, { store, principal: 'ann' })
  const paused = await one.propose()
  await one.decide(paused, approveAll(paused))
  assert.equal(ttls.votes?.length, 1)
})

test('a store that lost its epoch is left as it is: nothing is begun in it', async () => {
  const inner = memoryStore()
  const store = faultyStore(inner, async (method, key) => {
    if (method === 'get' && key.startsWith('call:')) await inner.delete('epoch')
  })
  const it = desk({}, {}, { store })
  const first = await it.propose()
  assert.deepEqual(outputs(await it.decide(first, approveAll(first))), [unverified])
  assert.equal(await inner.get(`call:${nonceOf(first)}`), undefined)
})

test('a claim of which nobody knows whether the store kept it is unknown afterwards, and runs nothing', async () => {
  const store = faultyStore(memoryStore(), (method, key, store) => {
    if (method === 'swap' && key.startsWith('call:'))
      store.fault = { kind: 'down', on: ['get'], keys: (key) => key === 'epoch', times: 1 }
  })
  const it = desk({}, {}, { store })
  const first = await it.propose()
  const down = await it.decide(first, approveAll(first))
  assert.deepEqual([down.error?.code, down.executed], ['store_unavailable', []])
  assert.match(outputs(await it.decide(first, approveAll(first)))[0] ?? '', /^Outcome unknown: the/)
  assert.deepEqual(it.ran, [])
})

for (const [claim, method] of [
  ['before', 'get'],
  ['while', 'swap'],
] as const)
  test(`where the store forgets ${claim} it begins, the model is told that it was refused, and nobody is asked again`, async () => {
    const inner = memoryStore()
    const store = faultyStore(inner, async (called, key) => {
      if (called === method && key.startsWith('call:')) await inner.delete('epoch')
    })
    const it = desk({}, {}, { store })
    const stray = { ...approve(idOf(await it.propose())), name: 'drop', input: { table: 'a' } }
    const next = await run(it.agent, { messages: 'x', decisions: [stray] }, it.options)
    assert.deepEqual([outputs(next), it.ran, next.pending], [[unverified], [], []])
    assert.ok(JSON.stringify(it.provider.requests.at(-1)).includes(unverified))
  })

test('a claim that another one won, and whose record is gone by now, may be decided again', async () => {
  const inner = memoryStore()
  let isTaken = true
  const store: Store = {
    get: (key) => inner.get(key),
    set: (key, value, ttl) => inner.set(key, value, ttl),
    delete: (key) => inner.delete(key),
    swap: async (key, was, value, ttl) =>
      (key.startsWith('call:') && isTaken ? false : undefined) ?? inner.swap(key, was, value, ttl),
  }
  const it = desk({}, {}, { store })
  const first = await it.propose()
  const busy = await it.decide(first, approveAll(first))
  const words = 'Not executed: another request is deciding this call.'
  assert.deepEqual([outputs(busy), it.ran, idOf(busy)], [[words], [], idOf(first)])
  isTaken = false
  assert.deepEqual(outputs(await it.decide(first, approveAll(first))), ['dropped a'])
})

test('an idempotent tool that outlived its time has failed, and that is on record at once', async () => {
  const going = Promise.withResolvers<string>()
  const it = desk({ idempotent: true, timeoutMs: 20, execute: () => going.promise })
  const first = await it.propose()
  const failed = 'Error executing drop: drop did not finish within 20 ms'
  assert.deepEqual(outputs(await it.decide(first, approveAll(first))), [failed])
  const record = async () => JSON.parse((await it.store.get(`call:${nonceOf(first)}`)) ?? '')
  const { state, outcome, output } = await record()
  assert.deepEqual([state, outcome, output], ['done', 'error', failed])
  going.resolve('in the end')
  await new Promise(setImmediate)
  assert.equal((await record()).output, failed)
})

test('a process of another user, and one of another host with a number that is free here, may be running', async (t) => {
  const kill = t.mock.method(process, 'kill', () => {
    throw Object.assign(new Error('not permitted'), { code: 'EPERM' })
  })
  for (const owner of [`${hostname()}:99999999:aa`, `elsewhere:99999999:aa`]) {
    const it = desk()
    const first = await it.propose()
    const entry = { state: 'running', owner, run: 1, since: Date.now(), timeoutMs: 60_000 }
    await it.store.set(`call:${nonceOf(first)}`, JSON.stringify(entry))
    const [output = ''] = outputs(await it.decide(first, approveAll(first)))
    assert.match(output, /^Already running since/)
    kill.mock.restore()
  }
})

test('what a process of another container began may be running, though both have one host name', async () => {
  const path = '/proc/self/ns/pid'
  const here = existsSync(path) ? `@${readlinkSync(path).match(/\d+/)}` : ''
  for (const [pid, where, words] of [
    [99_999_999, here, /^Outcome unknown/],
    [process.pid, here, /^Outcome unknown/],
    [99_999_999, '@1', /^Already running since/],
    [process.pid, '@1', /^Already running since/],
  ] as const) {
    const it = desk()
    const first = await it.propose()
    const owner = `${hostname()}:${pid}:aa${where}`
    const entry = { state: 'running', owner, run: 1, since: Date.now(), timeoutMs: 60_000 }
    await it.store.set(`call:${nonceOf(first)}`, JSON.stringify(entry))
    assert.match(outputs(await it.decide(first, approveAll(first)))[0] ?? '', words, owner)
    assert.deepEqual(it.ran, [])
  }
})

test('what began and has no tool any more is still told as what it is', async () => {
  const it = desk()
  const first = await it.propose()
  const entry = { state: 'running', owner: 'else:1:aa', run: 1, since: Date.now() }
  await it.store.set(`call:${nonceOf(first)}`, JSON.stringify(entry))
  const bare = { ...it.agent, tools: [] }
  const next = await resume(bare, first, approveAll(first), it.options)
  assert.match(outputs(next)[0] ?? '', /^Already running since/)
})

test('a call that a grant let run finishes though the client went away', async () => {
  const client = new AbortController()
  const grants = { use: async () => 'gr_1', add: async () => 'gr_1' }
  const it = desk(
    {
      grantable: true,
      async execute(_: unknown, { signal }: { signal: AbortSignal }) {
        client.abort()
        await new Promise(setImmediate)
        return `aborted: ${signal.aborted}`
      },
    },
    {},
    { grants, signal: client.signal },
  )
  await it.propose()
  const [executed] = it.of('ToolExecuted')
  assert.deepEqual([executed?.output, executed?.grant], ['aborted: false', 'gr_1'])
  const record = await it.store.get(`call:${executed?.callId}`)
  assert.equal(JSON.parse(record ?? '').output, 'aborted: false')
})

// ------------------------------------------------------------ inputs that cannot be

test('an edit that cannot be says why, and changes nothing', async () => {
  const never = { table: 7 }
  const hidden = { table: 'a\u202e' }
  for (const editable of [true, false])
    for (const [input, words] of [
      [never, /^Not executed: Invalid input for drop: .*table/],
      [hidden, /^Not executed: The field "table" of drop holds invisible/],
    ] as const) {
      const it = desk({ editable })
      const first = await it.propose()
      const next = await it.decide(first, [edit(idOf(first), input)])
      assert.match(outputs(next)[0] ?? '', words)
      assert.deepEqual([it.ran, idOf(next)], [[], idOf(first)])
    }
})

test('of an edit too what the person sees counts, whatever a schema makes of it', async () => {
  const seen = z.object({ table: z.string().transform((text) => text.replace('\u202e', '')) })
  const it = desk({ editable: true, input: seen })
  const first = await it.propose()
  const next = await it.decide(first, [edit(idOf(first), { table: 'b\u202e' })])
  assert.match(outputs(next)[0] ?? '', /holds invisible or control characters/)
  assert.deepEqual(it.ran, [])
})

test('a nested nothing hides nothing', async () => {
  const input = { table: 'a', more: { none: null, list: [null, 1, true] } }
  const provider = scripted((_, __, index) =>
    index === 0 ? { calls: [{ name: 'drop', input }] } : 'ok',
  )
  const it = desk({ input: { type: 'object', properties: {} } }, { provider })
  const first = await it.propose()
  await it.decide(first, approveAll(first))
  assert.deepEqual(it.ran, [input])
})

test('where nobody is known to have asked, whoever let the run go on has', async () => {
  const names = ['first', 'drop']
  const ran: unknown[] = []
  const it = desk(
    {},
    {
      tools: [
        dropTool(ran, { name: 'first', approver: 'anyone' }),
        dropTool(ran, { approver: 'other' }),
      ],
      provider: scripted((_, __, index) => {
        const name = names[index]
        return name ? { calls: [{ name, input: { table: name } }] } : 'ok'
      }),
    },
  )
  const first = await it.propose()
  const second = await it.decide(first, approveAll(first), { principal: 'ann' })
  const own = await it.decide(second, approveAll(second), { principal: 'ann' })
  assert.deepEqual(outputs(own), ['Not executed: someone other than who asked must approve drop.'])
  const other = await it.decide(second, approveAll(second), { principal: 'bob' })
  assert.deepEqual([outputs(other), ran.length], [['dropped drop'], 2])
})

test('a tool that anyone may approve alone needs nobody’s name', async () => {
  const it = desk({ approver: 'anyone' })
  const first = await it.propose()
  assert.deepEqual(outputs(await it.decide(first, approveAll(first))), ['dropped a'])
})

test('a vote on a call that only the thread remembers shows all that the next one votes on', async () => {
  const it = desk({ approver: 'anyone', quorum: 2, preview: () => 'three rows' })
  const first = await it.propose()
  const stray = { ...approve(idOf(first)), name: 'drop', input: { table: 'a' } }
  const options = { ...it.options, principal: 'ann' }
  const next = await run(it.agent, { messages: 'x', decisions: [stray] }, options)
  const [{ id, effectiveInput, preview, votes } = {} as Json] = next.pending
  assert.deepEqual(
    [id, effectiveInput, preview, votes],
    [idOf(first), { table: 'a', cascade: false }, 'three rows', 1],
  )
})

test('trusting the client says what is wrong with an input, and reaches to no quorum', async () => {
  const item = { id: 'toolu_1', approve: true, name: 'drop' }
  const trusting = { trustClient: 'unsafe', principal: 'ann' } as const
  const provider = scripted(() => 'ok')
  const it = desk({}, { provider })
  const never = { ...item, input: { table: 7 } }
  const wrong = await run(
    it.agent,
    { messages: 'x', decisions: [never] },
    { ...it.options, ...trusting },
  )
  assert.match(outputs(wrong)[0] ?? '', /^Not executed: Invalid input for drop: .*table/)
  const quorum = { ...dropTool(it.ran), quorum: 2 }
  const two = desk({}, { provider, tools: [quorum] })
  const right = { ...item, input: { table: 'a' } }
  const answer = await run(
    two.agent,
    { messages: 'x', decisions: [right] },
    { ...two.options, ...trusting },
  )
  assert.deepEqual([outputs(answer), it.ran], [[unverified], []])
})

test('what trust ran for one person it runs for another too', async () => {
  const it = desk({}, { provider: scripted(() => 'ok') })
  const item = { id: 'toolu_1', approve: true, name: 'drop', input: { table: 'a' } }
  for (const principal of ['ann', 'ben', 'ann'])
    await run(
      it.agent,
      { messages: 'x', decisions: [item] },
      { ...it.options, trustClient: 'unsafe', principal },
    )
  assert.equal(it.ran.length, 2)
})

test('what trust runs has a clock of its own, and a name', async () => {
  const going = Promise.withResolvers<string>()
  const it = desk(
    { timeoutMs: 20, execute: () => going.promise },
    { provider: scripted(() => 'ok') },
  )
  const item = { id: 'toolu_1', approve: true, name: 'drop', input: { table: 'a' } }
  const trusting = { ...it.options, trustClient: 'unsafe' } as const
  const late = await run(it.agent, { messages: 'x', decisions: [item] }, trusting)
  assert.match(outputs(late)[0] ?? '', /^Outcome unknown: drop did not finish within 20 ms\./)
  assert.deepEqual(
    it.of('ToolExecutionFailed').map(({ callId }) => callId),
    ['toolu_1'],
  )
  going.resolve('in the end')
  await new Promise(setImmediate)
  const again = await run(it.agent, { messages: 'x', decisions: [item] }, trusting)
  assert.deepEqual(outputs(again), ['in the end'])
})

// ------------------------------------------------------------ what a person is shown

test('a fresh call tells what was shown before only where drift changed it', async () => {
  let text = 'one row'
  let key = 'k'
  const preview = () => ({ text, key })
  const it = desk({ preview })
  const first = await it.propose()
  key = 'another'
  const same = await it.decide(first, approveAll(first))
  assert.deepEqual(same.pending[0]?.reasons, undefined)
  text = 'two rows'
  key = 'a third'
  const changed = await it.decide(same, approveAll(same))
  assert.deepEqual(changed.pending[0]?.reasons, ['It changed. Shown before: one row'])
  text = 'three rows'
  const edited = await it.decide(changed, [edit(idOf(changed), { table: 'b' })])
  assert.deepEqual(edited.pending[0]?.reasons, undefined)
})

test('a fresh call waits as any other does', async () => {
  const it = desk()
  const first = await it.propose()
  const next = await it.decide(first, [edit(idOf(first), { table: 'b' })])
  const call = next.state.calls.find(({ id }) => id === nonceOf(next)) as Json
  assert.deepEqual([call.status, call.requiresApproval], ['pending', true])
})

test('a policy, a preview and a tool are told of the same platform and signal, and a call has its own name', async () => {
  const ids: unknown[] = []
  const note = (answer: unknown) => (_: unknown, ctx: { callId: string }) => {
    ids.push(ctx.callId)
    return answer
  }
  const it = desk({ requiresApproval: note(true), preview: note('x'), execute: note('x') })
  const first = await it.propose()
  assert.deepEqual(ids.splice(0), ['', ''])
  await it.decide(first, approveAll(first))
  assert.deepEqual(ids, ['', '', nonceOf(first)])
})

test('a tool’s word and a preview end with the request, and a plain yes has no reason to show', async () => {
  const over = new AbortController()
  const signals: AbortSignal[] = []
  const note =
    (answer: unknown) =>
    (_: unknown, { signal }: { signal: AbortSignal }) => {
      signals.push(signal)
      return answer
    }
  const it = desk({ requiresApproval: note(true), preview: note('x') })
  const first = await it.propose({ signal: over.signal })
  assert.equal(first.pending[0]?.reasons, undefined)
  assert.deepEqual(
    signals.map((signal) => signal.aborted),
    [false, false],
  )
  over.abort()
  assert.deepEqual(
    signals.map((signal) => signal.aborted),
    [true, true],
  )
})

// ------------------------------------------------------------ what is left behind

test('no listener stays on a signal, and an aborted tool is told why', async () => {
  const hard = new AbortController()
  const reasons: unknown[] = []
  const it = desk(
    {
      timeoutMs: 20,
      execute: (_: unknown, { signal }: { signal: AbortSignal }) =>
        new Promise(() => signal.addEventListener('abort', () => reasons.push(signal.reason))),
    },
    {},
    { hardSignal: hard.signal },
  )
  const first = await it.propose()
  await it.decide(first, approveAll(first))
  assert.deepEqual(getEventListeners(hard.signal, 'abort'), [])
  const [reason] = reasons as { code: string; message: string }[]
  assert.deepEqual([reason?.code, reason?.message], ['aborted', 'drop did not finish within 20 ms'])
})

test('a cut leaves a replacement character alone that was there before, wherever it is', () => {
  const text = `${'\uFFFD'.repeat(2)}${'x'.repeat(100)}\uFFFD${'x'.repeat(1_000)}\uFFFD${'x'.repeat(40)}`
  const short = cap(text, 400)
  assert.equal(short.match(/\uFFFD/g)?.length, 4)
})
