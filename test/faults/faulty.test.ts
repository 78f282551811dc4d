// Faults at every step of a decision, one after another: each call to the store lost, refused or hanging, clients that go
// away at every point, models that fail after the effect, tools that throw or come late. Nothing runs twice, and whoever
// asks again is told the truth.

import assert from 'node:assert/strict'
import { describe, type TestContext, test } from 'node:test'
import type { Decision } from '../../src/approval.ts'
import {
  type Agent,
  approve,
  approveAll,
  edit,
  type RunOptions,
  type RunResult,
  reject,
  resume,
  run,
} from '../../src/index.ts'
import { DcafError } from '../../src/providers/provider.ts'
import { memoryStore, type Store } from '../../src/store.ts'
import { type Fault, faultyStore } from '../faulty-store.ts'
import { type Json, serve } from '../harness.ts'
import { raw } from '../raw.ts'
import { keepClean } from './clean.ts'
import { decide, decisionBody, fleetKey, isRunning, isUnknown, propose, styles } from './fleet.ts'
import { type Ops, opsAgent } from './ops.ts'
import { row, times, tried } from './table.ts'

keepClean()

// ------------------------------------------------------------ the store, at every call

/** What a person does with the call that waits, and how often the tool may run because of it. */
const flows: {
  name: string
  tool?: Json
  decisions: ((id: string) => [Decision, string])[]
  runs: 0 | 1
}[] = [
  { name: 'approve', decisions: [(id) => [approve(id), 'ann']], runs: 1 },
  { name: 'reject', decisions: [(id) => [reject(id, 'no'), 'ann']], runs: 0 },
  { name: 'edit', decisions: [(id) => [edit(id, { service: 'db' }), 'ann']], runs: 0 },
  {
    name: 'edit an editable tool',
    tool: { editable: true },
    decisions: [(id) => [edit(id, { service: 'db' }), 'ann']],
    runs: 1,
  },
  {
    name: 'approve as another',
    tool: { approver: 'other' },
    decisions: [(id) => [approve(id), 'ben']],
    runs: 1,
  },
  {
    name: 'two of a quorum',
    tool: { approver: 'anyone', quorum: 2 },
    decisions: [(id) => [approve(id), 'ann'], (id) => [approve(id), 'ben']],
    runs: 1,
  },
]
const faults: Fault[] = [
  { kind: 'down', times: 1 },
  { kind: 'lost', times: 1 },
  { kind: 'down' },
  { kind: 'lost' },
]

function sweepDesk(inner: Store, store: Store, tool: Json = {}) {
  const done: string[] = []
  const agent = opsAgent({ onEffect: (_, effect) => void done.push(effect) }, tool)
  const options = (principal: string): RunOptions => ({ store, keys: [fleetKey], principal })
  const healthy = (principal: string): RunOptions => ({ ...options(principal), store: inner })
  return { agent, done, options, healthy }
}

async function act(agent: Agent, paused: RunResult, decision: Decision, options: RunOptions) {
  const result = await resume(agent, paused, [decision], options)
  return { result, output: result.executed[0]?.output, code: result.error?.code }
}

describe('a store that fails at one call, or from one on', () => {
  for (const { name, tool, decisions, runs } of flows)
    test(`${name}: ran at most ${runs ? 'once' : 'never'}, and asked again it is the same to everybody`, async (t) => {
      let attempts = 0
      for (const fault of faults)
        for (let after = 0, isReached = true; isReached; after++) {
          const inner = memoryStore()
          const store = faultyStore(inner)
          const { agent, done, options, healthy } = sweepDesk(inner, store, tool)
          const paused = await run(agent, { messages: 'restart web' }, options('ann'))
          const id = paused.pending[0]?.id ?? ''
          store.fault = { ...fault, after }
          const before = store.calls.length
          const told: (string | undefined)[] = []
          for (const decision of decisions)
            told.push((await act(agent, paused, ...optionsOf(decision(id), options))).output)
          isReached = store.calls.length - before > after
          assert.ok(done.length <= runs, `${fault.kind} at ${after}: ran ${done.length} times`)
          const first = done[0]
          if (first) assert.ok(told.at(-1)?.endsWith(first), `not told: ${told}`)
          store.heal()
          // Everybody decides again, wherever they are, until nothing moves any more
          for (const where of [options, healthy, options])
            for (const decision of decisions)
              await act(agent, paused, ...optionsOf(decision(id), where))
          const settled = [options, healthy].map(async (where) => {
            const [decision, principal] = (decisions.at(-1) as (typeof decisions)[0])(id)
            return (await act(agent, paused, decision, where(principal))).output
          })
          const [one, two] = await Promise.all(settled)
          assert.equal(one, two)
          assert.ok(done.length <= runs, `${fault.kind} at ${after}: ran ${done.length} times`)
          if (first) assert.deepEqual(done, [first])
          if (done.length > 0) assert.ok(one?.endsWith(done[0] ?? '') || isUnknown.test(one ?? ''))
          attempts++
        }
      row(t, `store fails, ${name}`, attempts, 0)
    })

  function optionsOf(
    [decision, principal]: [Decision, string],
    options: (principal: string) => RunOptions,
  ): [Decision, RunOptions] {
    return [decision, options(principal)]
  }

  test('two calls approved at once: each that ran is told of, at once or when asked again', async (t) => {
    let attempts = 0
    for (const fault of faults)
      for (let after = 0, isReached = true; isReached; after++) {
        const inner = memoryStore()
        const store = faultyStore(inner)
        const { agent, done, options } = sweepDesk(inner, store)
        const paused = await run(agent, { messages: 'restart a and b' }, options('ann'))
        store.fault = { ...fault, after }
        const before = store.calls.length
        const both = approveAll(paused)
        const first = await resume(agent, paused, both, options('ann'))
        isReached = store.calls.length - before > after
        const ranFirst = [...done]
        for (const effect of ranFirst)
          assert.ok(first.executed.some(({ output }) => output === effect))
        store.heal()
        const again = await resume(agent, paused, both, options('ann'))
        assert.equal(new Set(done.map((effect) => effect.split(',')[0])).size, done.length)
        for (const { output } of again.executed)
          assert.ok(done.includes(output) || isUnknown.test(output), output)
        assert.equal(again.executed.length, 2)
        attempts++
      }
    row(t, 'store fails, two calls', attempts, 0)
  })

  test('while a call is proposed: it waits, or the run says why not, and nothing runs', async (t) => {
    let attempts = 0
    for (const tool of [{}, { approver: 'other' }])
      for (const fault of faults)
        for (let after = 0, isReached = true; isReached; after++) {
          const inner = memoryStore()
          const store = faultyStore(inner)
          const { agent, done, options } = sweepDesk(inner, store, tool)
          store.fault = { ...fault, after }
          const result = await run(agent, { messages: 'restart web' }, options('ann'))
          isReached = store.calls.length > after
          if (result.error) assert.equal(result.error.code, 'store_unavailable')
          else assert.equal(result.pending.length, 1)
          assert.deepEqual(done, [])
          attempts++
        }
    row(t, 'store fails, propose', attempts, 0)
  })
})

// ------------------------------------------------------------ clients that go away

const steps = 12

/** Fails rather than waiting for ever. */
async function until(what: string, isSo: () => boolean): Promise<void> {
  for (const began = performance.now(); !isSo(); await new Promise(setImmediate))
    assert.ok(performance.now() - began < 30_000, `waited for 30 s until ${what}`)
}

/** A server whose tool takes `steps` steps, each of them asked for. */
async function steppedDesk(
  t: TestContext,
  onStep: (step: number) => Promise<void>,
  onCall: (method: keyof Store, key: string) => Promise<void>,
) {
  const done: string[] = []
  const store = faultyStore(memoryStore(), onCall)
  const onEffect: Ops['onEffect'] = async (_, effect) => {
    for (let step = 0; step < steps; step++) await onStep(step)
    done.push(effect)
  }
  const it = await serve(t, opsAgent({ onEffect }), { store, keys: [fleetKey] })
  return { ...it, done }
}

test('a client that goes away at any point: an approved tool finishes, and who asks again gets its result', async (t) => {
  const cuts: { name: string; runs: boolean; at: string | number }[] = [
    { name: 'in the middle of the head', runs: false, at: 'head' },
    { name: 'in the middle of the body', runs: false, at: 'body' },
    { name: 'while the ledger is read', runs: false, at: 'get' },
    { name: 'while it begins', runs: true, at: 'begin' },
    ...Array.from({ length: steps }, (_, at) => ({ name: `at step ${at}`, runs: true, at })),
    { name: 'while it finishes', runs: true, at: 'finish' },
    { name: 'while the answer comes', runs: true, at: 'answer' },
  ]
  for (const { name, runs, at } of cuts)
    for (const style of styles)
      await tried(t, `gone ${name}, ${style}`, times(1, 5), async () => {
        let cut = async () => {}
        let claims = 0
        const it = await steppedDesk(
          t,
          async (step) => {
            if (step === at) await cut()
          },
          async (method, key) => {
            if (!key.startsWith('call:')) return
            if (method === 'get' && at === 'get') await cut()
            if (method === 'swap' && at === ['begin', 'finish'][claims++]) await cut()
          },
        )
        const call = await propose(it.url, 'web')
        let opened = 0
        let closed = 0
        it.server.on('connection', (socket) => {
          opened++
          socket.once('close', () => closed++)
        })
        const { port, host } = new URL(it.url)
        const client = await raw(Number(port))
        let isCut = false
        cut = async () => {
          isCut = true
          client.socket.destroy()
          await until('the server notices', () => opened === 1 && closed === 1)
        }
        const body = JSON.stringify(decisionBody(call, style))
        const path = style.endsWith('stream') ? '/api/chat-stream' : '/api/chat'
        const head = `POST ${path} HTTP/1.1\r\nhost: ${host}\r\ncontent-type: application/json\r\n`
        const whole = `${head}content-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`
        if (at === 'head') client.send(head)
        else client.send(at === 'body' ? whole.slice(0, -20) : whole)
        if (at === 'head' || at === 'body') {
          await until('the server accepts', () => opened === 1)
          await cut()
        }
        if (at === 'answer') {
          await client.until('HTTP/1.1 200')
          await cut()
        }
        const isOver = () => isCut && it.handler.active === 0 && (!runs || it.done.length > 0)
        await until('it is over', isOver)
        cut = async () => {}
        assert.deepEqual([isCut, it.done.length], [true, runs ? 1 : 0])
        const { output, replayed } = await decide(it.url, call, style)
        assert.deepEqual([output, replayed], [it.done[0], runs])
        assert.equal(it.done.length, 1)
      })
})

// ------------------------------------------------------------ what comes after the effect

async function served(t: TestContext, ops: Partial<Ops> = {}, tool: Json = {}) {
  const done: string[] = []
  const onEffect: Ops['onEffect'] = async (callId, effect, ctx) => {
    done.push(effect)
    await ops.onEffect?.(callId, effect, ctx)
  }
  const it = await serve(t, opsAgent({ ...ops, onEffect }, tool), { keys: [fleetKey] })
  return { ...it, done }
}

test('a model that fails after the effect: what ran is told with the error, and a retry runs nothing', (t) =>
  tried(t, 'model dead after the effect', times(4, 100), async (index) => {
    let isDead = true
    const it = await served(t, {
      onAnswer: () => (isDead ? new DcafError('provider_error', 'no answer') : 'ok'),
    })
    const call = await propose(it.url, 'web')
    const style = styles[index % 4]
    const first = await decide(it.url, call, style)
    assert.deepEqual([first.status, first.code, [first.output]], [200, 'provider_error', it.done])
    isDead = false
    const again = await decide(it.url, call, style)
    assert.deepEqual([again.status, again.code, again.output], [200, undefined, first.output])
    assert.deepEqual([again.replayed, it.done.length], [true, 1])
  }))

const throws: { name: string; instead: () => Promise<string>; words: string }[] = [
  {
    name: 'throws',
    instead: () => {
      throw new Error('no such service')
    },
    words: 'Error executing restart: no such service',
  },
  {
    name: 'rejects',
    instead: () => Promise.reject(new Error('no such service')),
    words: 'Error executing restart: no such service',
  },
  {
    name: 'throws what is no Error',
    instead: () => Promise.reject('just words'),
    words: 'Error executing restart: just words',
  },
  {
    name: 'throws nothing',
    instead: () => Promise.reject(undefined),
    words: 'Error executing restart: undefined',
  },
  {
    name: 'throws what cannot be printed',
    instead: () => Promise.reject(Object.create(null)),
    words: 'Error executing restart: an unprintable error',
  },
]
for (const { name, instead, words } of throws)
  test(`a tool that ${name}: told, recorded and not run again`, (t) =>
    tried(t, `tool ${name}`, times(1, 20), async () => {
      let runs = 0
      const it = await served(t, {
        instead: () => {
          runs++
          return instead()
        },
      })
      const call = await propose(it.url, 'web')
      for (const [index, style] of styles.entries()) {
        const { status, output, replayed } = await decide(it.url, call, style)
        assert.deepEqual([status, output, replayed], [200, words, index > 0])
      }
      assert.equal(runs, 1)
    }))

test('a tool that outlives its time: unknown, then running, then what it did, to every style of client', (t) =>
  tried(t, 'settled late', times(4, 40), async (index) => {
    const going = Promise.withResolvers<void>()
    const it = await served(t, { onEffect: () => going.promise }, { timeoutMs: 20 })
    const call = await propose(it.url, 'web')
    const style = styles[index % 4]
    const late = 'Outcome unknown: restart did not finish within 20 ms.'
    assert.ok((await decide(it.url, call, style)).output?.startsWith(late))
    assert.match((await decide(it.url, call, style)).output ?? '', isRunning)
    going.resolve()
    await new Promise(setImmediate)
    const after = await decide(it.url, call, style)
    assert.deepEqual([after.output, after.replayed, it.done.length], [it.done[0], true, 1])
  }))
