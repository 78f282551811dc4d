// Random conversations against a model of forty lines that says what must become of every call; random orders of many
// identical submissions; random ids, inputs and histories. `npm run test:faults` tries thousands, a normal run hundreds,
// `DCAF_SCALE=5` five times as many. A failure prints its seed: `DCAF_SEED=...` tries that one.

import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import fc from 'fast-check'
import type { Decision } from '../src/approval.ts'
import { type Agent, type RunEvent, type RunOptions, type RunResult, run } from '../src/index.ts'
import { Authority, audience, type Bound, canonical, nonce, parseId } from '../src/proof.ts'
import type { ModelRequest } from '../src/providers/provider.ts'
import { scripted } from '../src/providers/scripted.ts'
import { seal, unseal } from '../src/seal.ts'
import { memoryStore, type Store } from '../src/store.ts'
import { tool } from '../src/tool.ts'
import { desk, idOf, type Json, testKey } from './desk.ts'
import { holds, times } from './faults/table.ts'
import { a, serve, u } from './harness.ts'

const scaled = (few: number, all: number) =>
  Math.max(1, Math.round(times(few, all) * Number(process.env.DCAF_SCALE ?? 1)))
const unverified =
  'Not executed: this approval could not be verified (altered, moved, or issued by another server).'

// ------------------------------------------------------------ the model

type Input = { n: number }
type Known = {
  tool: string
  input: Input
  expires: number
  end?: string
  moved?: string
  from?: Input
}
type Fate = { output: string; closed: boolean; fresh?: { of: string; input: Input } | string }

/** What must become of a call, whoever says what in which order. It knows nothing of ids but their names. */
class Reference {
  calls = new Map<string, Known>()
  effects: string[] = []

  private did(call: Known, input: Input): string {
    this.effects.push(`${call.tool} ${input.n}`)
    return call.tool === 'fails' ? `Error executing fails: bad ${input.n}` : `did ${input.n}`
  }
  private told(call: Known): string {
    return call.from ? `A person changed the input to ${JSON.stringify(call.input)}.\n` : ''
  }
  /** What the ledger says; `undefined` while nobody decided. */
  past(id: string, now: number): Fate | undefined {
    const call = this.calls.get(id) as Known
    if (call.end !== undefined) return { output: call.end, closed: true }
    if (call.moved === undefined) return undefined
    const next = this.calls.get(call.moved) as Known
    const later = this.past(call.moved, now) ?? this.expired(call.moved, now)
    if (!later?.closed) return later ?? { output: moved, closed: false, fresh: call.moved }
    return later.output.startsWith('A person changed')
      ? later
      : { ...later, output: this.told(next) + later.output }
  }
  expired(id: string, now: number): Fate | undefined {
    const { expires } = this.calls.get(id) as Known
    const at = `${new Date(expires).toISOString().slice(0, 19)}Z`
    return now > expires + 60_000
      ? { output: `Not executed: this approval expired at ${at}.`, closed: true }
      : undefined
  }
  decide(id: string, { approve, reason, editedInput }: Partial<Decision>, now: number): Fate {
    const call = this.calls.get(id) as Known
    const past = this.past(id, now)
    if (past) return past
    const end = (output: string): Fate => {
      call.end = output
      return { output, closed: true }
    }
    if (!approve) return end(`Tool rejected: ${reason ?? 'not approved'}`)
    const late = this.expired(id, now)
    if (late) return late
    const input = (editedInput ?? call.input) as Input
    if (input.n === call.input.n) return end(this.did(call, input))
    if (call.tool !== 'editable') return { output: moved, closed: false, fresh: { of: id, input } }
    return end(`A person changed the input to ${JSON.stringify(input)}.\n${this.did(call, input)}`)
  }
}
const moved = 'Not executed: the changed input needs an approval of its own.'

// ------------------------------------------------------------ scripts and commands

const kinds = ['look', 'gated', 'editable', 'fails', 'bad', 'unknown'] as const
const isGated = (kind: string) => ['gated', 'editable', 'fails'].includes(kind)
const script = fc.array(
  fc.oneof(
    { weight: 6, arbitrary: fc.array(fc.constantFrom(...kinds), { minLength: 1, maxLength: 4 }) },
    { weight: 1, arbitrary: fc.constant('text' as const) },
    { weight: 1, arbitrary: fc.constant('error' as const) },
  ),
  { maxLength: 5 },
)
/** What is said of one call: `which` counts through all that were ever shown, newest first. */
const word = fc.record({
  which: fc.nat(7),
  say: fc.constantFrom('approve', 'reject', 'edit', 'same', 'forge'),
  n: fc.nat(3),
})
const command = fc.record({
  words: fc.array(word, { maxLength: 3 }),
  text: fc.constantFrom('', '', 'No, do not', 'and now?'),
  /** Which of the results so far goes on, newest first: an old one is a client that lags. */
  state: fc.oneof({ weight: 4, arbitrary: fc.constant(0) }, { weight: 1, arbitrary: fc.nat(3) }),
  sealed: fc.boolean(),
  wait: fc.constantFrom(0, 0, 0, 0, 3_700_000),
})

const noun = (id: string) => id.split('.', 1)[0] as string
const grammar =
  /^(update )*(executed_tool_calls )?(executed_commands )?(executed_approvals )?((text|update|executed_tool_calls) )*((commands )?approvals (tool_calls )?)?(done|error) $/

/** A provider would take it: a user first, in turn, every call with its one result, nothing empty. */
function valid({ messages }: ModelRequest): void {
  assert.equal(messages[0]?.role, 'user')
  for (const [i, message] of messages.entries()) {
    assert.ok(message.parts.length > 0, 'an empty message')
    const before = messages[i - 1]
    if (message.role === 'user') {
      assert.notEqual(before?.role, 'user')
      continue
    }
    assert.ok(
      before?.role === 'user' || (before?.role === 'assistant' && before.results.length > 0),
    )
    const calls = message.parts.flatMap((p) => (p.type === 'tool_call' ? [p.id] : []))
    assert.deepEqual(
      message.results.map((r) => r.callId),
      calls,
    )
  }
}

/** What a stream said adds up to what the run returned. */
function addsUp(events: RunEvent[], result: RunResult): void {
  const types = events.map(({ type }) =>
    type === 'text_delta' ? 'text' : type === 'intermittent_update' ? 'update' : type,
  )
  assert.match(`${types.join(' ')} `, grammar)
  assert.equal(
    events.flatMap((e) => (e.type === 'text_delta' ? [e.text] : [])).join(''),
    result.text,
  )
  const executed = events.flatMap((e) =>
    e.type === 'executed_tool_calls' ? e.executedToolCalls : [],
  )
  assert.deepEqual(executed, result.executed)
  const pending = events.flatMap((e) => (e.type === 'approvals' ? e.approvals : []))
  if (result.stop === 'approval') assert.deepEqual(pending, result.pending)
  assert.equal(result.pending.length > 0, result.stop === 'approval')
}

test('random conversations end as the model says, whatever is decided, edited, replayed or dropped', async (t: TestContext) => {
  t.mock.timers.enable({ apis: ['Date'], now: 1_800_000_000_000 })
  const property = fc.asyncProperty(
    script,
    fc.array(command, { minLength: 1, maxLength: 6 }),
    async (replies, commands) => {
      const effects: string[] = []
      const reference = new Reference()
      let n = 100
      const make = (name: string, more = {}) =>
        tool({
          name,
          description: name,
          input: '{ n: number }',
          requiresApproval: name !== 'look',
          execute: (input) => {
            if (name !== 'look') effects.push(`${name} ${input.n}`)
            if (name === 'fails') throw new Error(`bad ${input.n}`)
            return `did ${input.n}`
          },
          ...more,
        })
      const provider = scripted((_, __, index) => {
        const reply = replies[index]
        if (reply === 'error') return new Error('boom')
        if (reply === undefined || reply === 'text') return `text ${index}`
        return {
          calls: reply.map((name) => ({ name, input: name === 'bad' ? 'no json' : { n: n++ } })),
        }
      })
      const tools = [
        make('look'),
        make('gated'),
        make('editable', { editable: true }),
        make('fails'),
        make('bad'),
      ]
      const agent: Agent = { name: 'model', provider, tools }
      const store = memoryStore()
      const options: RunOptions = { store, keys: [testKey] }
      const proofs: string[] = []
      const results: RunResult[] = []

      for (const { words, text, state, sealed, wait } of [
        { words: [], text: 'go', state: 0, sealed: false, wait: 0 },
        ...commands,
      ]) {
        t.mock.timers.tick(wait)
        const now = Date.now()
        const before = results[results.length - 1 - Math.min(state, results.length - 1)]
        const held = JSON.stringify(before?.state) // a call that only a thread could show is not in it
        const shown = before?.pending.map((p) => p.id) ?? []
        const waiting = shown.filter((id) => held.includes(noun(id)))
        const decisions = new Map<string, Decision>()
        for (const { which, say, n } of words) {
          const proof = proofs.at(-1 - (which % Math.max(1, proofs.length)))
          if (proof === undefined) continue
          const { tool: name, input } = reference.calls.get(noun(proof)) as Known
          const id = say === 'forge' ? proof.replace(/.$/, (c) => (c === 'A' ? 'B' : 'A')) : proof
          const decision: Decision = { id, approve: say !== 'reject', known: { name, input } }
          if (say === 'reject') decision.reason = `no ${n}`
          if (say === 'edit') decision.editedInput = { n }
          if (say === 'same') decision.editedInput = { ...input }
          decisions.set(id, decision)
        }

        // ---- what must happen
        const outputs = new Map<string, string>()
        const open = new Set<string>()
        const fresh: { of: string; input: Input }[] = []
        const meet = (id: string, fate: Fate, shown: boolean): void => {
          if (fate.closed) return
          if (typeof fate.fresh === 'string') open.add(fate.fresh)
          else if (fate.fresh) {
            fresh.push(fate.fresh)
            const known = reference.calls.get(id) as Known
            known.moved = `fresh of ${id}`
            reference.calls.set(known.moved, {
              ...known,
              moved: undefined as never,
              input: fate.fresh.input,
              from: known.input,
              expires: now,
            })
          } else if (shown) open.add(id)
        }
        const silent = text !== '' && decisions.size === 0
        for (const proof of waiting) {
          const id = noun(proof)
          const said = decisions.get(proof)
          if (said) {
            const fate = reference.decide(id, said, now)
            outputs.set(proof, fate.output)
            meet(id, fate, true)
            continue
          }
          const fate =
            reference.past(id, now) ??
            reference.expired(id, now) ??
            (silent ? reference.decide(id, { approve: false, reason: text }, now) : undefined)
          if (fate) meet(id, fate, true)
          else open.add(id)
        }
        for (const [proof, said] of decisions) {
          if (waiting.includes(proof)) continue
          if (!proofs.includes(proof))
            outputs.set(proof, said.approve ? unverified : `Tool rejected: ${said.reason}`)
          else {
            const fate = reference.decide(noun(proof), said, now)
            outputs.set(proof, fate.output)
            meet(noun(proof), fate, false)
          }
        }

        // ---- what happens
        const asked = provider.requests.length
        const events: RunEvent[] = []
        const paused = sealed && before?.paused ? before.paused : before?.state
        const input = { messages: text, decisions: [...decisions.values()], paused }
        const result = await run(agent, input, {
          ...options,
          emit: (event) => void events.push(event),
        })
        results.push(result)

        addsUp(events, result)
        for (const request of provider.requests.slice(asked)) valid(request)
        const lines = result.executed.filter((line) => line.lists)
        assert.deepEqual(new Map(lines.map((line) => [line.id, line.output])), outputs)
        assert.deepEqual(effects, reference.effects)
        for (const { of, input } of fresh) {
          const call = result.pending.find(
            (p) =>
              !proofs.includes(p.id) &&
              (p.input as Input).n === input.n &&
              p.name === reference.calls.get(of)?.tool,
          )
          assert.ok(call, 'the fresh call is shown')
          const known = reference.calls.get(of) as Known
          const made = reference.calls.get(known.moved as string) as Known
          reference.calls.delete(known.moved as string)
          open.delete(known.moved as string)
          known.moved = noun(call.id)
          reference.calls.set(known.moved, { ...made, expires: Date.parse(call.expiresAt) })
          proofs.push(call.id)
          open.add(known.moved)
        }
        if (open.size > 0) {
          assert.deepEqual(new Set(result.pending.map((p) => noun(p.id))), open)
          assert.equal(provider.requests.length, asked, 'the model is not asked while a call waits')
          continue
        }
        for (const { id, name, input, expiresAt } of result.pending) {
          assert.ok(isGated(name) && !proofs.includes(id))
          proofs.push(id)
          reference.calls.set(noun(id), {
            tool: name,
            input: input as Input,
            expires: Date.parse(expiresAt),
          })
        }
        const reply = replies[provider.requests.length - 1]
        if (provider.requests.length > asked && result.stop === 'approval')
          assert.deepEqual(
            result.pending.map((p) => p.name),
            Array.isArray(reply) ? reply.filter(isGated) : [],
          )
      }
    },
  )
  await holds(t, 'conversations against the model', scaled(300, 5000), property)
})

// ------------------------------------------------------------ at once

/** A store whose every answer comes when the scheduler says. */
function scheduled(scheduler: fc.Scheduler, inner: Store): Store {
  const later = <T>(work: () => Promise<T>) => scheduler.schedule(Promise.resolve()).then(work)
  return {
    get: (key) => later(() => inner.get(key)),
    set: (key, value, ttl) => later(() => inner.set(key, value, ttl)),
    swap: (key, was, value, ttl) => later(() => inner.swap(key, was, value, ttl)),
    delete: (key) => later(() => inner.delete(key)),
  }
}

for (const [claim, replicas] of [
  ['one process', false],
  ['as many replicas', true],
] as const)
  test(`however up to five identical submissions to ${claim} interleave, the call runs once at most`, async (t) => {
    let most = 0
    const property = fc.asyncProperty(
      fc.scheduler(),
      fc.array(fc.constantFrom('approve', 'approve', 'reject', 'edit'), {
        minLength: 2,
        maxLength: 5,
      }),
      fc.boolean(),
      async (scheduler, words, idempotent) => {
        const inner = memoryStore()
        const it = desk(
          { idempotent, execute: (input: Json) => void effects.push(input.table) },
          {},
          { store: inner },
        )
        const effects: string[] = []
        const first = await it.propose()
        const shared = scheduled(scheduler, inner)
        const all = words.map((word) => {
          const decision: Decision = { id: idOf(first), approve: word !== 'reject' }
          if (word === 'edit') decision.editedInput = { table: 'b' }
          return it.decide(first, [decision], {
            store: replicas ? scheduled(scheduler, inner) : shared,
          })
        })
        const results = await scheduler.waitFor(Promise.all(all))
        assert.ok(effects.length <= 1, `${effects.length} executions`)
        assert.equal(effects.includes('b'), false)
        most = Math.max(most, effects.length)
        const fresh = new Set(results.flatMap((r) => r.pending.map((p) => p.id)))
        fresh.delete(idOf(first))
        assert.ok(fresh.size <= 1, 'one fresh call at the most')
        const record = JSON.parse((await inner.get(`call:${noun(idOf(first))}`)) ?? '{}')
        assert.equal(record.state, 'done')
        if (words.every((word) => word === 'approve')) assert.equal(effects.length, 1)
      },
    )
    await holds(
      t,
      `submissions at once to ${claim}`,
      scaled(150, 2000),
      property,
      () => `at most ${most}`,
    )
    assert.equal(most, 1)
  })

test('however votes interleave, a quorum is of different people and runs once', async (t) => {
  const property = fc.asyncProperty(
    fc.scheduler(),
    fc.array(fc.constantFrom('ann', 'bob', 'cid', 'dan'), { minLength: 1, maxLength: 6 }),
    async (scheduler, people) => {
      const inner = memoryStore()
      const it = desk({ approver: 'anyone', quorum: 3 }, {}, { store: inner })
      const first = await it.propose({ principal: 'ann' })
      const all = people.map((principal) =>
        it.decide(first, [{ id: idOf(first), approve: true }], {
          principal,
          store: scheduled(scheduler, inner),
        }),
      )
      await scheduler.waitFor(Promise.all(all))
      assert.equal(it.ran.length, new Set(people).size >= 3 ? 1 : 0)
    },
  )
  await holds(t, 'votes at once', scaled(60, 1000), property)
})

// ------------------------------------------------------------ proofs

const json = fc.dictionary(fc.string({ maxLength: 8 }), fc.jsonValue({ maxDepth: 3 }), {
  maxKeys: 4,
})
const bound = fc.record({
  agent: fc.string(),
  path: fc.array(fc.string(), { maxLength: 2 }),
  name: fc.string(),
  input: json,
  who: fc.array(fc.jsonValue({ maxDepth: 1 }), { maxLength: 4 }),
})
const shuffled = (value: unknown): unknown => {
  if (Array.isArray(value)) return value.map(shuffled)
  if (typeof value !== 'object' || value === null) return value
  return Object.fromEntries(
    Object.entries(value)
      .reverse()
      .map(([k, v]) => [k, shuffled(v)]),
  )
}
const authority = new Authority(memoryStore(), [testKey])
const sign = (what: Bound) =>
  authority.sign({ nonce: nonce(), expires: 1_800_000_000_000, shown: 's'.repeat(16) }, what)

test('a proof survives JSON and the order of keys, and holds for nothing else', async (t) => {
  const property = fc.asyncProperty(bound, bound, async (one, other) => {
    const id = parseId(await sign(one))
    assert.ok(id)
    assert.ok(await authority.verify(id, shuffled(JSON.parse(JSON.stringify(one))) as Bound))
    for (const key of Object.keys(one) as (keyof Bound)[]) {
      if (canonical(one[key]) === canonical(other[key])) continue
      assert.equal(await authority.verify(id, { ...one, [key]: other[key] }), undefined, key)
    }
  })
  await holds(t, 'proofs kept and moved', scaled(400, 20_000), property)
})

test('canonical JSON is JSON, of the same value, and one text for it', (t) => {
  const property = fc.property(fc.jsonValue(), (value) => {
    const plain = JSON.parse(JSON.stringify(value))
    assert.deepEqual(JSON.parse(canonical(value)), plain)
    assert.equal(canonical(shuffled(plain)), canonical(value))
  })
  return holds(t, 'canonical JSON', scaled(500, 20_000), property)
})

test('any change of one character makes it no id, and never throws', async (t) => {
  const what: Bound = {
    agent: 'a',
    path: [],
    name: 'x',
    input: {},
    who: audience({ principal: 'p', threadId: 't', context: {}, bound: null }, 'requester'),
  }
  const id = await sign(what)
  const property = fc.asyncProperty(
    fc.nat(id.length),
    fc.constantFrom('put', 'replace', 'take'),
    fc.oneof(
      fc.constantFrom(...'0AzZ9-_.='),
      fc.string({ minLength: 1, maxLength: 1, unit: 'binary' }),
    ),
    async (at, act, char) => {
      const changed =
        id.slice(0, at) + (act === 'take' ? '' : char) + id.slice(act === 'put' ? at : at + 1)
      if (changed === id) return
      const parsed = parseId(changed)
      if (parsed) assert.equal(await authority.verify(parsed, what), undefined, changed)
    },
  )
  await holds(t, 'changed ids', scaled(1000, 40_000), property)
})

test('a text sealed, then changed by one byte, does not open', (t) => {
  const property = fc.property(
    fc.string(),
    fc.jsonValue(),
    fc.nat(),
    fc.integer({ min: 1, max: 255 }),
    (text, data, at, by) => {
      const sealed = seal(authority, text, data, 'epoch', 'run')
      assert.equal(unseal(authority, sealed, shuffled(data), 'epoch', 'run'), text.toWellFormed())
      const bytes = Buffer.from(sealed, 'base64url')
      const place = at % bytes.length
      bytes.writeUInt8(bytes.readUInt8(place) ^ by, place)
      assert.equal(unseal(authority, bytes.toString('base64url'), data, 'epoch', 'run'), undefined)
    },
  )
  return holds(t, 'sealed texts', scaled(300, 10_000), property)
})

test('whatever is sent as an id, an input or a name runs nothing and never throws', async (t) => {
  const it = desk()
  const first = await it.propose()
  const known = fc.record({
    name: fc.constantFrom('drop', 'nope', '__proto__'),
    input: fc.anything(),
  })
  const decision = fc.record(
    {
      id: fc.oneof(
        fc.anything(),
        fc.constant(idOf(first)).map((id) => `${id} `),
        fc.string(),
      ),
      approve: fc.constant(true),
      name: fc.oneof(fc.constant('drop'), fc.string()),
      input: json,
      known,
      path: fc.array(fc.constantFrom('drop', 'child', '__proto__'), { maxLength: 2 }),
    },
    { requiredKeys: ['id', 'approve'] },
  )
  const property = fc.asyncProperty(
    decision,
    fc.option(fc.oneof(fc.string(), fc.base64String()), { nil: undefined }),
    async (said, paused) => {
      const result = await run(
        it.agent,
        { messages: '', decisions: [said as Decision], paused },
        it.options,
      )
      assert.deepEqual([it.ran, result.executed.map((line) => line.output)], [[], [unverified]])
    },
  )
  await holds(t, 'anything as an id', scaled(300, 10_000), property)
  assert.equal(
    (await it.decide(first, [{ id: idOf(first), approve: true }])).executed[0]?.outcome,
    'ok',
  )
})

// ------------------------------------------------------------ histories

test('whatever thread a client sends, a provider gets turns it can take', async (t) => {
  const executed = fc.record({
    id: fc.string(),
    name: fc.string(),
    input: json,
    output: fc.oneof(fc.string(), json),
  })
  const data = fc.record(
    {
      executed_tool_calls: fc.array(executed, { maxLength: 2 }),
      executed_cmds: fc.array(fc.record({ command: fc.string(), output: fc.string() }), {
        maxLength: 2,
      }),
      tool_calls: fc.array(
        fc.record({
          id: fc.string(),
          name: fc.constantFrom('drop', 'x'),
          input: json,
          execute: fc.boolean(),
        }),
        { maxLength: 2 },
      ),
    },
    { requiredKeys: [] },
  )
  const content = fc.oneof(
    fc.constant(''),
    fc.constant(' '),
    fc.string(),
    fc.constant('```json\n[]\n```'),
  )
  const message = fc.tuple(fc.constantFrom('user', 'assistant', 'system', 'tool'), content, data)
  const it = desk({}, { provider: scripted(() => 'ok') })
  const { chat } = await serve(t, it.agent, { store: it.store, keys: [testKey] })
  const property = fc.asyncProperty(
    fc.array(message, { maxLength: 8 }),
    content,
    data,
    async (thread, last, more) => {
      const before = it.provider.requests.length
      const provider = it.agent.provider as typeof it.provider
      const asked = provider.requests.length
      const messages = thread.map(([role, text, d]) =>
        role === 'user' ? u(text, d as Json) : { ...a(text, d as Json), role },
      )
      const { status, text } = await chat({ messages: [...messages, u(last, more as Json)] })
      assert.ok(status === 200 || status === 422 || status === 400, text)
      for (const request of provider.requests.slice(asked)) valid(request)
      assert.deepEqual([it.ran, it.provider.requests.length], [[], before])
    },
  )
  await holds(t, 'threads of any kind', scaled(150, 10_000), property)
})
