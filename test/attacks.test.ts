// What somebody hostile would try of the core: an approver, a requester, a model, a tool, a clock.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { cap } from '../src/approval.ts'
import { grantBook } from '../src/grants.ts'
import {
  type Agent,
  approve,
  approveAll,
  InterceptorError,
  type RunOptions,
  reject,
  resume,
  run,
} from '../src/index.ts'
import { audience } from '../src/proof.ts'
import { DcafError } from '../src/providers/provider.ts'
import { type ScriptFunction, scripted } from '../src/providers/scripted.ts'
import { memoryStore, type Store } from '../src/store.ts'
import { agentTool } from '../src/subagent.ts'
import { type Tool, tool } from '../src/tool.ts'
import { desk, dropTool, idOf, type Json, outputs, testKey, told } from './desk.ts'

/** One reply after another: calls by name and input, or words. */
const script = (...replies: ([string, unknown][] | string)[]): ScriptFunction => {
  let next = 0
  return () => {
    const reply = replies[next++] ?? 'ok'
    if (typeof reply === 'string') return reply
    return { calls: reply.map(([name, input]) => ({ name, input: input as Json })) }
  }
}
const allowing = (name: string, execute: Tool['execute'] = () => 'done', more: Json = {}) =>
  tool({ name, description: name, input: { type: 'object' }, execute, ...more } as never)

// ------------------------------------------------------------ four eyes

const step = (name: string, ran: string[], more: Json = {}) =>
  allowing(name, () => ran.push(name), { requiresApproval: true, approver: 'other', ...more })

for (const [claim, first, forgets] of [
  ['the run', 'other', false],
  ['the thread alone', 'other', true],
  ['the thread alone, after a step that anyone may approve', 'anyone', true],
] as const)
  test(`who asked for two steps approves none of them, known from ${claim}`, async () => {
    const ran: string[] = []
    const tools = [step('restart', ran, { approver: first }), step('drop', ran)]
    const provider = scripted(script([['restart', {}]], [['drop', {}]]))
    const agent: Agent = { name: 'ops', provider, tools }
    const as = (principal: string): RunOptions => ({
      store,
      keys: [testKey],
      principal,
      threadId: 't',
    })
    const store = memoryStore()
    const asked = await run(agent, { messages: 'restart, then drop' }, as('mallory'))
    const restart = asked.pending[0] as Json
    const decision = { id: restart.id, name: 'restart', input: {}, approve: true }
    const second = forgets
      ? await run(agent, { messages: '', decisions: [decision] }, as('bob'))
      : await resume(agent, asked, approveAll(asked), as('bob'))
    assert.deepEqual([ran, second.pending.map((c) => c.name)], [['restart'], ['drop']])
    const alone = await resume(agent, second, approveAll(second), as('mallory'))
    assert.match(outputs(alone)[0] ?? '', /someone other than who asked must approve drop/)
    await resume(agent, second, approveAll(second), as('carol'))
    assert.deepEqual(ran, ['restart', 'drop'])
  })

for (const principal of [null, '', false, 0, { id: 'ann' }])
  test(`a principal of ${JSON.stringify(principal)} is nobody's name: nothing is asked`, async () => {
    const it = desk()
    await assert.rejects(it.propose({ principal: principal as never }), /principal must be a text/)
    assert.equal(it.provider.requests.length, 0)
  })

test('what bindContext promises is bound as what it returns is', async () => {
  const bindContext = async ({ account }: Json) => ({ account, absent: undefined })
  const it = desk({}, {}, { bindContext })
  const first = await it.propose({ context: { account: 'staging' } })
  const moved = await it.decide(first, approveAll(first), { context: { account: 'prod' } })
  assert.match(outputs(moved)[0] ?? '', /could not be verified/)
  await it.decide(first, approveAll(first), { context: { account: 'staging' } })
  assert.equal(it.ran.length, 1)
})

for (const [claim, bound] of [
  ['a Map', new Map([['a', 1]])],
  ['a function', () => 1],
  ['a number that is none', { a: [Number.NaN] }],
  ['a date', { at: new Date(0) }],
] as const)
  test(`a bindContext that returns ${claim} binds nothing, so nothing is asked`, async () => {
    const it = desk({}, {}, { bindContext: () => bound })
    await assert.rejects(it.propose(), /bindContext must return plain JSON/)
  })

test('the whole context, which is its tracing ids as JSON, cannot be what is bound', async () => {
  const it = desk({}, {}, { bindContext: (context) => context })
  await assert.rejects(it.propose({ context: { account: 'a' } }), /bindContext must return/)
})

// ------------------------------------------------------------ what an approval is bound to

const audienceOf = (context: Json) =>
  JSON.stringify(
    audience({ principal: 'ann', threadId: 't', context, bound: null } as never, 'requester'),
  )
const kubeconfig = (text: string) =>
  audienceOf({ kubeconfig: Buffer.from(text).toString('base64') })
const yaml = (cluster: string, token = 'aaaa') =>
  `current-context: c\nclusters:\n- name: k\n  cluster:\n    ${cluster}\nusers:\n- name: u\n  user:\n    token: ${token}\n`

for (const [claim, one, two] of [
  ['a quoted key beside a comment', yaml("'server': https://s # server: https://x"), yaml("'server': https://p # server: https://x")],
  ['a tag', yaml('server: !!str https://s'), yaml('server: !!str https://p')],
  ['a comma', yaml('server: https://s,@s'), yaml('server: https://s,@p')],
  ['a comment before the value', yaml('server: #\n      https://s'), yaml('server: #\n      https://p')],
  ['a proxy', yaml('server: https://s\n    proxy-url: http://a'), yaml('server: https://s\n    proxy-url: http://b')],
  ['a context of the same name', 'contexts: [{name: c, context: {cluster: a}}]\nservers: [{server: x}]', 'contexts: [{name: c, context: {cluster: b}}]\nservers: [{server: x}]'],
  ['a key that is part of a word', 'current-context: token:a\nserver: x', 'current-context: token:b\nserver: x'],
  ['a key within quotes', 'current-context: "{token: a}"\nserver: x', 'current-context: "{token: b}"\nserver: x'],
  ['a key within quotes over lines', 'current-context: "a\n token: a\n "\nserver: x', 'current-context: "a\n token: b\n "\nserver: x'],
  ['a quoted key in a bare word', 'current-context: a,"token":"a"\nserver: x', 'current-context: a,"token":"b"\nserver: x'],
] as const) // biome-ignore format: a table
  test(`a kubeconfig that points elsewhere by ${claim} is another audience`, () => {
    assert.notEqual(kubeconfig(one), kubeconfig(two))
  })

test('a kubeconfig with renewed credentials is the same audience', () => {
  const [one, two] = ['eyJh.eyJi.c2ln', 'eyJh.eyJj.bmV3'].map((t) => yaml('server: https://s', t))
  assert.equal(kubeconfig(`${one}`), kubeconfig(`${two}`))
  assert.equal(
    kubeconfig(yaml('server: "https://s"', '"a"')),
    kubeconfig(yaml('server: "https://s"', '"b"')),
  )
  const ca = (data: string) => yaml(`server: https://s\n    certificate-authority-data: ${data}`)
  assert.equal(kubeconfig(ca('LS0t')), kubeconfig(ca('LS0u==')))
})

for (const [one, two] of [
  [[{ id: 'dev' }], [{ id: 'prod' }]],
  ['dev', 'prod'],
  [{ name: 'dev' }, { name: 'prod' }],
  [[{ name: 'dev', account: 1 }], [{ name: 'dev', account: 2 }]],
])
  test(`scopes ${JSON.stringify(one)} are not ${JSON.stringify(two)}`, () => {
    assert.notEqual(audienceOf({ scopes: one }), audienceOf({ scopes: two }))
  })

test('a scope with renewed credentials is the same scope', () => {
  const scope = (Data: string) => audienceOf({ scopes: [{ Name: 'a', Credential: { Data } }] })
  assert.equal(scope('x'), scope('y'))
})

test('what cannot be signed decides nothing, and throws nothing', async () => {
  const ring: Json = {}
  ring.ring = ring
  for (const table of [Number.POSITIVE_INFINITY, Number.NaN, ring]) {
    const it = desk()
    const first = await it.propose()
    const id = idOf(first)
    for (const said of [{ editedInput: { table } }, { input: { table } }]) {
      const answer = await it.decide(first, [{ ...approve(id), ...said } as never])
      assert.match(outputs(answer)[0] ?? '', /could not be verified/)
    }
    const options = { ...it.options, trustClient: 'unsafe' as const }
    const decisions = [{ id: 'c1', approve: true, name: 'drop', input: { table } }]
    const trusted = await run(it.agent, { messages: '', decisions }, options)
    assert.match(outputs(trusted)[0] ?? '', /could not be verified/)
    assert.deepEqual(it.ran, [])
  }
})

// ------------------------------------------------------------ clocks and grants

test('a wall clock that is set forth and back makes a store forget nothing', async (t) => {
  t.mock.timers.enable({ apis: ['Date'], now: Date.now() })
  const store = memoryStore()
  await store.set('k', 'x', 3_600_000)
  t.mock.timers.tick(26 * 3_600_000)
  await store.set('other', 'x')
  assert.equal(await store.get('k'), 'x')
})

for (const [claim, where] of [
  ['an empty where', {}],
  ['no where', undefined],
] as const)
  test(`a grant with ${claim} covers no wider input`, async () => {
    const store = memoryStore()
    const grants = grantBook(store)
    const it = desk({ grantable: true }, {}, { store, grants })
    const first = await it.propose()
    await it.decide(first, [{ ...approve(idOf(first)), grant: { ...(where && { where }) } }])
    const [agent, path, name] = ['db', [], 'drop']
    const among = audience(
      { principal: undefined, threadId: undefined, context: {}, bound: null },
      'requester',
    )
    const use = (input: Json) => grants.use({ agent, path, name, input, audience: among })
    assert.equal(await use({ table: 'b', cascade: false }), undefined)
    assert.equal(await use({ table: 'a', cascade: false, force: true }), undefined)
    assert.equal((await use({ table: 'a', cascade: false })) === undefined, where !== undefined)
  })

// ------------------------------------------------------------ what runs, and what is said of it

test('a tool that changes its input widens no grant and no audit', async () => {
  const store = memoryStore()
  const execute = (input: Json) => {
    delete input.table
    return 'dropped'
  }
  const after: unknown[] = []
  const afterTool: Agent['afterTool'] = ({ input }) => {
    after.push(structuredClone(input))
    ;(input as Json).table = 'other'
    return undefined
  }
  const it = desk({ grantable: true, execute }, { afterTool }, { store, grants: grantBook(store) })
  const first = await it.propose()
  await it.decide(first, [{ ...approve(idOf(first)), grant: {} }])
  const input = { table: 'a', cascade: false }
  assert.deepEqual([it.of('ToolExecuted')[0]?.input, after], [input, [input]])
  const provider = scripted(script([['drop', { table: 'users' }]]))
  const next = await run({ ...it.agent, provider }, { messages: 'again' }, it.options)
  assert.deepEqual(
    next.pending.map((c) => c.input),
    [{ table: 'users' }],
  )
})

test('a rejected call runs by no grant and is asked no more where a default is spelled out', async () => {
  const store = memoryStore()
  const grants = grantBook(store)
  const [a, b, spelled] = [{ table: 'a' }, { table: 'b' }, { table: 'b', cascade: false }]
  const replies = script(
    [
      ['drop', a],
      ['drop', b],
    ],
    [['drop', spelled]],
    'gave up',
  )
  const it = desk({ grantable: true }, { provider: scripted(replies) }, { store, grants })
  const first = await it.propose()
  const where = { cascade: false }
  const decisions = [
    { ...approve(idOf(first)), grant: { where } },
    reject(idOf(first, 1), 'b lives'),
  ]
  const last = await it.decide(first, decisions)
  assert.deepEqual([it.ran, last.pending, last.text], [[{ ...a, ...where }], [], 'gave up'])
  assert.match(told(last)[0] ?? '', /rejected: b lives/)
})

test('a rejection that only the thread remembers holds for a default that is spelled out', async () => {
  const it = desk()
  const first = await it.propose()
  const provider = scripted(script([['drop', { table: 'a', cascade: false }]], 'gave up'))
  const decisions = [{ ...reject(idOf(first), 'no'), name: 'drop', input: { table: 'a' } }]
  const last = await run({ ...it.agent, provider }, { messages: '', decisions }, it.options)
  assert.deepEqual([last.pending, last.text], [[], 'gave up'])
})

test('what is over before an approved tool begins consumes nothing', async () => {
  const over = new AbortController()
  let slow = false
  const preview = async () => {
    if (slow) over.abort(new DcafError('deadline', 'over'))
    return 'p'
  }
  const it = desk({ preview })
  const first = await it.propose()
  slow = true
  const late = await it.decide(first, approveAll(first), { signal: over.signal })
  assert.deepEqual([it.ran, late.executed, late.error?.code], [[], [], 'deadline'])
  slow = false
  await it.decide(first, approveAll(first))
  assert.equal(it.ran.length, 1)
})

test('what is frozen while a preview is made runs nothing and consumes nothing', async () => {
  let frozen: string | false = false
  let slow = false
  const preview = async () => {
    if (slow) frozen = 'incident'
    return 'p'
  }
  const it = desk({ preview }, { frozen: () => frozen })
  const first = await it.propose()
  slow = true
  const held = await it.decide(first, approveAll(first))
  assert.deepEqual([it.ran, outputs(held)], [[], ['Not executed: frozen: incident']])
  slow = false
  frozen = false
  await it.decide(first, approveAll(first))
  assert.equal(it.ran.length, 1)
})

test('a call whose grant met a freeze has a result, and the run goes on', async () => {
  const store = memoryStore()
  const book = grantBook(store)
  let frozen: string | false = false
  const grants = {
    ...book,
    use: async () => {
      frozen = 'incident'
      return 'gr_1'
    },
  }
  const it = desk({ grantable: true }, { frozen: () => frozen }, { store, grants })
  const result = await it.propose()
  assert.deepEqual(
    [it.ran, told(result), result.text],
    [[], ['Not executed: frozen: incident'], 'ok'],
  )
})

const served = (child: Partial<Agent>, provider = scripted(script([['kid', { task: 'x' }]]))) => {
  const kid: Agent = { name: 'kid', description: 'k', provider: scripted(script()), ...child }
  return { provider, agent: { name: 'ops', provider, tools: [agentTool(kid)] } satisfies Agent }
}

test('what failed in a child is told by its code, not in its words', async () => {
  const systemContext = () => {
    throw new Error('CANARY at /secret/path')
  }
  const { agent, provider } = served({ systemContext })
  const facts: Json[] = []
  const result = await run(agent, { messages: 'x' }, { onEvent: (fact) => facts.push(fact) })
  assert.deepEqual(told(result), ['Error executing kid: the agent kid failed: internal_error'])
  assert.ok(!JSON.stringify([provider.requests, result.executed]).includes('CANARY'))
  assert.equal(facts.find((f) => f.type === 'AgentFailed')?.error, 'CANARY at /secret/path')
})

test('a store that is down beneath a child fails the run', async () => {
  const down = () => Promise.reject(new Error('CANARY'))
  const store: Store = { get: down, set: down, swap: down, delete: down }
  const child = { provider: scripted(script([['drop', { table: 'a' }]])), tools: [dropTool([])] }
  const { agent } = served(child)
  const result = await run(agent, { messages: 'x' }, { store, keys: [testKey] })
  assert.deepEqual([result.error?.code, result.executed], ['store_unavailable', []])
})

test('the limit of waiting calls counts those of children', async () => {
  const drops = Array.from({ length: 3 }, (_, i): [string, unknown] => ['drop', { table: `${i}` }])
  const provider = scripted(({ messages }) =>
    messages.length === 1
      ? { calls: drops.map(([name, input]) => ({ name, input: input as Json })) }
      : 'ok',
  )
  const kids = Array.from({ length: 4 }, (): [string, unknown] => ['kid', { task: 'x' }])
  const { agent } = served({ provider, tools: [dropTool([])] }, scripted(script(kids)))
  const result = await run(agent, { messages: 'x' }, { store: memoryStore() })
  assert.equal(result.pending.length, 5)
  const next = await resume(
    agent,
    result,
    result.pending.slice(0, 1).map((c) => approve(c)),
  )
  assert.ok(next.pending.length <= 5)
})

test('a tool whose own word forgot its return is asked for', async () => {
  for (const requiresApproval of [() => undefined, async () => undefined]) {
    const it = desk({ requiresApproval })
    assert.deepEqual([(await it.propose()).pending.length, it.ran.length], [1, 0])
  }
})

// ------------------------------------------------------------ what others are shown

test('of a thread, no preview is shown as what was shown before', async () => {
  let rows = 1
  const it = desk({ preview: () => `${rows} rows` })
  const first = await it.propose()
  const call = first.pending[0] as Json
  rows = 2
  const known = { name: 'drop', input: call.input, preview: 'SECURITY: cleared\u202e' }
  const drift = await run(
    it.agent,
    { messages: '', decisions: [{ ...approve(call.id), known }] },
    it.options,
  )
  assert.deepEqual([drift.pending.length, drift.pending[0]?.reasons], [1, undefined])
})

test('a reason is kept and told no longer than an output', async () => {
  const it = desk({}, {}, { limits: { outputBytes: 1_000 } })
  const first = await it.propose()
  const last = await it.decide(first, [reject(idOf(first), 'r'.repeat(1_000_000))])
  assert.ok(JSON.stringify(last.state).length < 10_000)
  assert.ok((outputs(last)[0] ?? '').length < 1_100)
})

test('an input that no echo could bring back is answered, not shown', async () => {
  let deep: unknown = 1
  for (let i = 0; i < 50; i++) deep = { deep }
  const it = desk({}, { provider: scripted(script([['drop', { table: 'a', deep }]])) })
  const result = await it.propose()
  assert.equal(result.pending.length, 0)
  assert.match(told(result)[0] ?? '', /nested more than 48 levels/)
})

// ------------------------------------------------------------ secrets

const secret = 'CANARY-duplo-token'
const context = { duplo_token: secret }
const holds = (...values: unknown[]) => JSON.stringify(values).includes(secret)

test('what an interceptor says when it stops a run holds no secret', async () => {
  const stop = () => {
    throw new InterceptorError({ userMessage: `bad ${secret}`, code: secret, details: { secret } })
  }
  const it = desk({}, { requestInterceptors: stop })
  const result = await it.propose({ context })
  assert.equal(result.text, 'bad [redacted]')
  assert.ok(!holds(it.facts))
  const { agent, provider } = served({ requestInterceptors: stop })
  const parent = await run(agent, { messages: 'x' }, { context })
  assert.ok(!holds(provider.requests, parent.executed))
})

test('tools that an interceptor wrote hold no secret when the model reads them', async () => {
  const it = desk(
    {},
    {
      requestInterceptors: (r) => {
        r.tools = r.tools.map((t) => ({ ...t, description: secret }))
      },
    },
  )
  await it.propose({ context })
  assert.equal(it.provider.requests[0]?.tools[0]?.description, '[redacted]')
})

test('a call that an interceptor wrote holds no secret, one of the model’s stays as it is', async () => {
  const input = { table: secret }
  const own = desk(
    {},
    { provider: scripted(script([['drop', input]])), responseInterceptors: () => undefined },
  )
  assert.deepEqual((await own.propose({ context })).pending[0]?.input, input)
  for (const change of [
    (r: Json) => {
      r.toolCalls[0].input.table = secret
    },
    () => ({ toolCalls: [{ id: 'x', name: 'drop', input }] }),
  ]) {
    const it = desk({}, { responseInterceptors: change })
    const result = await it.propose({ context })
    assert.deepEqual(result.pending[0]?.input, { table: '[redacted]' })
    assert.ok(!holds(result.state))
  }
})

test('whoever logs for a run is told its secrets first', async () => {
  const heard: string[][] = []
  const { agent } = served({ secrets: () => ['of the kid'] })
  const secrets = () => ['of ops']
  await run({ ...agent, secrets }, { messages: 'x' }, { onSecrets: (v) => heard.push(v) })
  assert.deepEqual(heard, [['of ops'], ['of the kid']])
})

test('a far too long text is masked where it is kept, and a secret that the cut tore is not', () => {
  let most = 0
  const mask = (text: string) => {
    most = Math.max(most, text.length)
    return text.replaceAll('s3cret', '[redacted]')
  }
  for (const shift of [0, 1, 2, 3, 4, 5]) {
    const text = `${'x'.repeat(shift)}${'s3cret'.repeat(1_000_000)}`
    const kept = cap(text, 2_000, mask)
    assert.ok(Buffer.byteLength(kept) <= 2_000)
    assert.equal(kept.replace(/\n\[\.\.\. .*? \.\.\.\]\n/, '').match(/s3|cret/), null)
  }
  assert.ok(most < 10_000)
})

test('a thousand forged ids cost one look at the epoch', async () => {
  const inner = memoryStore()
  let reads = 0
  const store: Store = {
    get: (key) => {
      reads++
      return inner.get(key)
    },
    set: (...all) => inner.set(...all),
    swap: (...all) => inner.swap(...all),
    delete: (key) => inner.delete(key),
  }
  const it = desk({}, {}, { store })
  const id = idOf(await it.propose())
  reads = 0
  const proposed = Array.from({ length: 1_000 }, (_, i) => ({
    id: id.replace(/^tc_.{4}/, `tc_${String(i).padStart(4, '0')}`),
    name: 'drop',
    input: { table: 'a' },
  }))
  const result = await run(it.agent, { messages: 'x', proposed }, it.options)
  assert.deepEqual([result.pending, reads], [[], 1])
})

test('a preview that gives nothing is shown as one that failed, and never holds', async () => {
  for (const preview of [() => undefined, async () => undefined]) {
    const it = desk({ preview })
    const asked = await it.propose()
    assert.match(asked.pending[0]?.preview ?? '', /^The preview failed/)
    const next = await it.decide(asked, approveAll(asked))
    assert.match(outputs(next)[0] ?? '', /changed since this was shown/)
    assert.deepEqual(it.ran, [])
  }
})

test('a policy that is none, as what a switch left behind, asks a person', async () => {
  for (const policy of [false, '', 0]) {
    const look = allowing('look')
    const provider = scripted(script([['look', {}]]))
    const agent = { name: 'ops', provider, tools: [look], policy } as unknown as Agent
    const asked = await run(agent, { messages: 'look' })
    assert.deepEqual([asked.pending.length, asked.executed], [1, []])
  }
})

test('a run whose signal fired before it began judges, asks and executes nothing', async () => {
  let judged = 0
  const policy = () => void judged++
  const call = (id: string, name: string) =>
    ({ type: 'tool_call', id, name, input: { table: 'a' } }) as const
  const it = desk({}, { policy })
  const agent = { ...it.agent, tools: [...(it.agent.tools ?? []), allowing('look')] }
  const parts = [call('1', 'drop'), call('2', 'look')]
  const thread = [
    { role: 'user' as const, parts: [{ type: 'text' as const, text: 'go' }] },
    { role: 'assistant' as const, parts, results: [] },
  ]
  const signal = AbortSignal.abort()
  const { stop, pending, executed } = await run(agent, { messages: thread }, { signal })
  assert.deepEqual({ stop, pending, executed }, { stop: 'aborted', pending: [], executed: [] })
  assert.deepEqual([judged, it.ran], [0, []])
})

test('what a tool tells whoever watches never makes its call fail', async () => {
  const words: unknown[] = [undefined, null, 5, { toString: undefined }]
  const look = allowing('look', (_, ctx) => {
    for (const said of words) ctx.update(said as string)
    ctx.update('x', null as never)
    return 'done'
  })
  const provider = scripted(script([['look', {}]]))
  const context = { duplo_token: 'secret-token' }
  const emit = () => {}
  const result = await run(
    { name: 'ops', provider, tools: [look] },
    { messages: 'x' },
    { context, emit },
  )
  assert.deepEqual(outputs(result), ['done'])
})

test('a tool that ends its own run at once is told as stopped first, and as done late', async () => {
  const hard = new AbortController()
  const it = desk({ execute: () => hard.abort() ?? 'done' }, {}, { hardSignal: hard.signal })
  const asked = await it.propose()
  const result = await it.decide(asked, approveAll(asked))
  assert.match(outputs(result)[0] ?? '', /^Outcome unknown: drop was stopped/)
  await new Promise(setImmediate)
  const facts = it.facts.filter(({ type }) => type.startsWith('ToolExecut'))
  const told = facts.map(({ type, outcome, late }) => [type, outcome, late])
  assert.deepEqual(told, [
    ['ToolExecutionFailed', 'unknown', undefined],
    ['ToolExecuted', 'ok', true],
  ])
  const again = await it.decide(asked, approveAll(asked), {
    hardSignal: new AbortController().signal,
  })
  assert.deepEqual([outputs(again), again.executed[0]?.replayed], [['done'], true])
})

test('what ran is returned though an interceptor stopped the run and nobody could be told', async () => {
  const state = { stops: false }
  const requestInterceptors = () => {
    if (state.stops) throw new InterceptorError({ userMessage: 'no more' })
  }
  const it = desk({}, { requestInterceptors })
  const asked = await it.propose()
  state.stops = true
  const emit = ({ type }: { type: string }) => {
    if (type === 'text_delta') throw new Error('the reader is gone')
  }
  const result = await it.decide(asked, approveAll(asked), { emit })
  assert.deepEqual([outputs(result), result.error?.code], [['dropped a'], 'internal_error'])
})

test('a call that writes to the context takes no approved call after it to another target', async () => {
  const ran: unknown[] = []
  const steer = allowing('steer', (_, { platform }) => {
    platform.k8s_namespace = 'prod'
    return 'steered'
  })
  const drop = allowing('drop', (_, { platform }) => ran.push(platform.k8s_namespace))
  const tools = [steer, drop].map((made) => ({ ...made, requiresApproval: true }))
  const provider = scripted(
    script(
      [
        ['steer', {}],
        ['drop', {}],
      ],
      'ok',
    ),
  )
  const agent: Agent = { name: 'ops', provider, tools }
  const context = () => ({ k8s_namespace: 'staging' })
  const asked = await run(agent, { messages: 'x' }, { context: context() })
  const result = await resume(agent, asked, approveAll(asked), { context: context() })
  assert.deepEqual(ran, [])
  assert.match(outputs(result)[1] ?? '', /could not be verified/)
  const [open] = result.pending
  assert.equal(open?.id, asked.pending[1]?.id)
  await resume(agent, result, approveAll(result), { context: context() })
  assert.deepEqual(ran, ['staging'])
})
