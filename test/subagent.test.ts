import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import { grantBook } from '../src/grants.ts'
import {
  type Agent,
  approve,
  approveAll,
  edit,
  InterceptorError,
  type RunEvent,
  type RunFact,
  type RunResult,
  reject,
  resume,
  run,
} from '../src/index.ts'
import { DcafError } from '../src/providers/provider.ts'
import { scripted } from '../src/providers/scripted.ts'
import { memoryStore } from '../src/store.ts'
import { agentTool } from '../src/subagent.ts'
import { type Tool, tool } from '../src/tool.ts'
import { idOf, type Json, outputs, testKey, told } from './desk.ts'
import { serve, u } from './harness.ts'

const unverified =
  'Not executed: this approval could not be verified (altered, moved, or issued by another server).'
const task = (name: string, text = 'go') => ({ name, input: { task: text } })
const free = (name: string, execute: Tool['execute'] = () => `${name} done`, more = {}): Tool =>
  tool({ name, description: name, input: { type: 'object' }, execute, ...more })

/** A child with a gated tool `drop`, which its model asks for first. */
function childOf(name: string, more: Partial<Agent> = {}, toolMore: Json = {}) {
  const ran: string[] = []
  const drop = free(
    'drop',
    (input) => {
      ran.push(`${name} ${JSON.stringify(input)}`)
      return `${name} dropped`
    },
    { requiresApproval: true, ...toolMore },
  )
  const provider = scripted((request) =>
    request.messages.at(-1)?.role === 'user' ? { calls: [{ name: 'drop' }] } : `${name} is done`,
  )
  const agent: Agent = { name, description: `The ${name}`, provider, tools: [drop], ...more }
  return { agent, ran, provider }
}
function parentOf(
  children: Agent[],
  more: Partial<Agent> = {},
  replies?: Parameters<typeof scripted>[0],
) {
  const provider = scripted(
    replies ??
      ((request) =>
        request.messages.at(-1)?.role === 'user'
          ? { calls: children.map((child) => task(child.name)) }
          : 'all done'),
  )
  const agent: Agent = {
    name: 'parent',
    provider,
    tools: children.map((c) => agentTool(c)),
    ...more,
  }
  return { agent, provider }
}

// ------------------------------------------------------------ the tool

test('an agent tool takes a task, has the agent’s words, no approval flag and no time of its own', () => {
  const { agent } = childOf('db')
  const { name, description, input, requiresApproval, timeoutMs } = agentTool(agent)
  assert.deepEqual(
    [name, description, requiresApproval, timeoutMs],
    ['db', 'The db', false, undefined],
  )
  assert.deepEqual(input, {
    type: 'object',
    properties: { task: { type: 'string' } },
    required: ['task'],
  })
  const other = agentTool(agent, { name: 'ask_db', description: 'Ask the database' })
  assert.deepEqual([other.name, other.description], ['ask_db', 'Ask the database'])
  const silent: Agent = { name: 'x', provider: agent.provider }
  assert.throws(() => agentTool(silent), /description is missing/)
  assert.throws(() => agentTool({ ...agent, name: 'not a name' }), /name must be/)
})

test('what the child says is the result; its tokens and calls count, its text is not streamed', async () => {
  const usage = { inputTokens: 2, outputTokens: 1, cacheReadTokens: 0, cacheWriteTokens: 0 }
  const look = free('look')
  const child: Agent = {
    name: 'db',
    description: 'd',
    provider: scripted([
      { text: 'Hm.', calls: [{ name: 'look' }], usage },
      { text: 'Five.', usage },
    ]),
    tools: [look],
  }
  const { agent, provider } = parentOf([child])
  const events: RunEvent[] = []
  const result = await run(agent, { messages: 'how many?' }, { emit: (e) => void events.push(e) })
  assert.deepEqual([result.text, told(result)], ['all done', ['Hm.\n\nFive.']])
  assert.deepEqual([result.usage.inputTokens, result.usage.outputTokens], [4, 2])
  assert.deepEqual(
    result.executed.map((c) => [c.name, c.path, c.output]),
    [
      ['look', ['db'], 'look done'],
      ['db', undefined, 'Hm.\n\nFive.'],
    ],
  )
  assert.deepEqual(
    events.map((e) =>
      e.type === 'text_delta' || e.type === 'intermittent_update' ? e.text : e.type,
    ),
    [
      'Calling tool: db',
      'Thinking...',
      'Calling tool: look',
      'executed_tool_calls',
      'Thinking...',
      'executed_tool_calls',
      'Thinking...',
      'all done',
      'done',
    ],
  )
  assert.equal(provider.requests.length, 2)
})

test('the child gets the task, the context and the session, and nothing of the parent’s talk', async () => {
  const seen: unknown[] = []
  const look = free('look', (_, { platform, session }) => {
    seen.push(platform.tenant_name, session.get('n'))
    session.set('n', 2)
  })
  const provider = scripted([{ calls: [{ name: 'look' }] }, 'ok'])
  const child: Agent = {
    name: 'db',
    description: 'd',
    provider,
    tools: [look],
    system: 'You are db.',
  }
  const { agent } = parentOf([child], { system: 'You are parent.' })
  const { session } = await run(
    agent,
    { messages: 'the person’s words' },
    { context: { tenant_name: 'acme' }, session: { n: 1 } },
  )
  assert.deepEqual([seen, session.get('n')], [['acme', 1], 2])
  const asked = JSON.stringify(provider.requests)
  assert.match(asked, /You are db\..*"text":"go"/)
  assert.doesNotMatch(asked, /parent|person/)
})

// ------------------------------------------------------------ waiting and going on

test('a child’s call waits in the parent with its path; approved, child and parent go on', async () => {
  const { agent: child, ran, provider: own } = childOf('db')
  const { agent, provider } = parentOf([child])
  const first = await run(agent, { messages: 'x' })
  const [call] = first.pending
  assert.deepEqual([call?.name, call?.path, call?.description], ['drop', ['db'], 'drop'])
  assert.deepEqual([first.stop, own.requests.length, provider.requests.length], ['approval', 1, 1])
  const last = await resume(agent, first, approveAll(first))
  assert.deepEqual([last.text, ran, told(last)], ['all done', ['db {}'], ['db is done']])
  assert.deepEqual(
    last.executed.map((c) => [c.name, c.path, c.output]),
    [
      ['drop', ['db'], 'db dropped'],
      ['db', undefined, 'db is done'],
    ],
  )
  assert.deepEqual([own.requests.length, provider.requests.length], [2, 2])
  const [, turn] = own.requests[1]?.messages ?? []
  assert.deepEqual(turn?.role === 'assistant' && turn.results.map((r) => r.content), ['db dropped'])
})

test('rejected, the child is told why and goes on', async () => {
  const { agent: child, ran, provider } = childOf('db')
  const { agent } = parentOf([child])
  const first = await run(agent, { messages: 'x' })
  const last = await resume(agent, first, [reject(idOf(first), 'not now')])
  assert.deepEqual([last.stop, ran, told(last)], ['end', [], ['db is done']])
  assert.match(JSON.stringify(provider.requests[1]), /Tool rejected: not now/)
})

for (const [claim, order] of [
  ['together', [[0, 1]]],
  ['one after the other', [[0], [1]]],
  ['the last one first', [[1], [0]]],
] as const)
  test(`two children wait at once and are decided ${claim}`, async () => {
    const [db, web] = [childOf('db'), childOf('web')]
    const { agent, provider } = parentOf([db.agent, web.agent])
    const first = await run(agent, { messages: 'x' })
    assert.deepEqual(
      first.pending.map((p) => p.path),
      [['db'], ['web']],
    )
    const ids = first.pending.map((p) => p.id)
    let at: RunResult = first
    for (const step of order) {
      assert.equal(provider.requests.length, 1)
      at = await resume(
        agent,
        at,
        step.map((i) => approve(ids[i] as string)),
      )
    }
    assert.deepEqual([db.ran, web.ran, at.text], [['db {}'], ['web {}'], 'all done'])
    assert.deepEqual(told(at), ['db is done', 'web is done'])
    assert.deepEqual([db.provider.requests.length, web.provider.requests.length], [2, 2])
  })

test('the same child called twice is two children', async () => {
  const { agent: child, ran, provider: own } = childOf('db')
  const { agent } = parentOf([child], {}, (request) =>
    request.messages.at(-1)?.role === 'user'
      ? { calls: [task('db', 'one'), task('db', 'two')] }
      : 'all done',
  )
  const first = await run(agent, { messages: 'x' })
  assert.deepEqual(
    first.pending.map((p) => p.path),
    [['db'], ['db']],
  )
  const [one, two] = first.pending.map((p) => p.id) as [string, string]
  const half = await resume(agent, first, [approve(two)])
  assert.deepEqual([half.pending.map((p) => p.id), ran.length], [[one], 1])
  const last = await resume(agent, half, [reject(one, 'no')])
  assert.deepEqual([last.text, ran.length], ['all done', 1])
  const tasks = own.requests.map((r) => (r.messages[0] as Json).parts[0].text)
  assert.deepEqual(tasks, ['one', 'two', 'two', 'one'])
})

test('a call two agents deep waits, is approved, and all three go on', async () => {
  const { agent: leaf, ran } = childOf('leaf')
  const middle = parentOf([leaf], { name: 'middle', description: 'm' })
  const { agent } = parentOf([middle.agent])
  const facts: RunFact[] = []
  const first = await run(agent, { messages: 'x' }, { onEvent: (f) => facts.push(f) })
  assert.deepEqual(first.pending[0]?.path, ['middle', 'leaf'])
  const state = JSON.parse(JSON.stringify(first.state))
  const last = await run(
    agent,
    { messages: [], decisions: approveAll(first), paused: state },
    { onEvent: (f) => facts.push(f) },
  )
  assert.deepEqual([last.text, ran], ['all done', ['leaf {}']])
  assert.deepEqual(
    last.executed.map((c) => [c.name, c.path ?? []]),
    [
      ['drop', ['middle', 'leaf']],
      ['leaf', ['middle']],
      ['middle', []],
    ],
  )
  const executed = facts
    .filter((f) => f.type === 'ToolExecuted')
    .map((f) => [f.name, f.agent, f.path])
  assert.deepEqual(executed, [
    ['drop', 'leaf', ['middle', 'leaf']],
    ['leaf', 'middle', ['middle']],
    ['middle', 'parent', undefined],
  ])
})

test('an edit and a drift of a child’s call keep its path', async () => {
  let rows = 1
  const { agent: child, ran } = childOf('db', {}, { preview: () => `${rows}` })
  const { agent } = parentOf([child])
  const first = await run(agent, { messages: 'x' })
  const edited = await resume(agent, first, [edit(idOf(first), { n: 1 })])
  assert.deepEqual([edited.pending[0]?.path, edited.pending[0]?.input], [['db'], { n: 1 }])
  rows = 2
  const drift = await resume(agent, edited, approveAll(edited))
  assert.deepEqual([drift.pending[0]?.path, drift.pending[0]?.preview], [['db'], '2'])
  const last = await resume(agent, drift, approveAll(drift))
  assert.deepEqual([last.text, ran], ['all done', ['db {"n":1}']])
})

test('Thinking comes before no request’s first model call, a child’s neither', async () => {
  const { agent: child } = childOf('db')
  const { agent } = parentOf([child])
  const first = await run(agent, { messages: 'x' })
  const said: string[] = []
  const emit = (e: RunEvent) => void (e.type === 'intermittent_update' && said.push(e.text))
  await run(agent, { messages: [], decisions: approveAll(first), paused: first.state }, { emit })
  assert.deepEqual(said, ['Thinking...'])
})

test('a call of the child’s runs in the child’s place only', async () => {
  const { agent: child, ran } = childOf('db')
  const { agent } = parentOf([child], { tools: [agentTool(child), ...(child.tools ?? [])] })
  const first = await run(agent, { messages: 'x' })
  const { id, name, input } = first.pending[0] as Json
  for (const path of [undefined, [], ['web'], ['db', 'db'], ['parent', 'db']]) {
    const decision = { ...approve(id), name, input, ...(path && { path }) }
    const alone = await run(agent, { messages: '', decisions: [decision] })
    assert.deepEqual([outputs(alone), ran], [[unverified], []])
  }
  const right = { ...approve(id), name, input, path: ['db'] }
  assert.deepEqual(outputs(await run(agent, { messages: '', decisions: [right] })), ['db dropped'])
})

test('an unproven rejection is answered as it was put, also on a path to nowhere', async () => {
  const { agent } = parentOf([childOf('db').agent], {}, () => 'ok')
  const decision = { ...reject('tc_x', 'no'), name: 'drop', input: {}, path: ['nowhere'] }
  assert.deepEqual(outputs(await run(agent, { messages: '', decisions: [decision] })), [
    'Tool rejected: no',
  ])
})

// ------------------------------------------------------------ over the wire

const wire = async (t: TestContext, child: Agent, more: Partial<Agent> = {}) => {
  const { agent, provider } = parentOf([child], more, (_, __, index) =>
    index === 0 ? { calls: [task(child.name)] } : 'all done',
  )
  const { chat } = await serve(t, agent, { keys: [testKey], store: memoryStore() })
  const first = (await chat({ messages: [u('x')] })).body
  const [{ id, name, input, path }] = first.data.tool_calls
  const item = { id, name, input, path, execute: true }
  const say = (data: Json, thread: Json[] = [u('x'), first]) =>
    chat({ messages: [...thread, u('', data)] }).then(({ body }) => body)
  return { first, item, say, provider }
}

test('with $run the child goes on where it was', async (t) => {
  const { agent: child, ran, provider: own } = childOf('db')
  const { item, say } = await wire(t, child)
  const body = await say({ tool_calls: [item] })
  assert.deepEqual([body.content, ran, own.requests.length], ['all done', ['db {}'], 2])
  assert.deepEqual(
    body.data.executed_tool_calls.map((c: Json) => [c.name, c.output]),
    [
      ['drop', 'db dropped'],
      ['db', 'db is done'],
    ],
  )
})

test('without $run its call runs through its gate, and the served agent is told', async (t) => {
  const facts: RunFact[] = []
  const {
    agent: child,
    ran,
    provider: own,
  } = childOf('db', {
    onEvent: (f) => facts.push(f),
    afterTool: (_, { content }) => `after ${content}`,
  })
  const { item, say, provider, first } = await wire(t, child)
  const old = { ...first, data: { ...first.data, session: {} } }
  for (const thread of [[], [u('x'), old]]) {
    const body = await say({ tool_calls: [item] }, thread)
    assert.deepEqual(
      body.data.executed_tool_calls.map((c: Json) => c.output),
      ['after db dropped'],
    )
  }
  assert.deepEqual([ran, own.requests.length], [['db {}'], 1])
  assert.match(JSON.stringify(provider.requests[1]?.messages), /after db dropped/)
  assert.deepEqual(
    facts.filter((f) => f.type === 'ToolExecuted').map((f) => [f.agent, f.path]),
    [['db', ['db']]],
  )
})

test('what a child keeps secret is masked, with and without $run', async (t) => {
  const leak = { execute: () => 'vault-secret', requiresApproval: true }
  const { agent: child } = childOf('db', { secrets: () => ['vault-secret'] }, leak)
  const one = await wire(t, child)
  const two = await wire(t, child)
  const bodies = [
    await one.say({ tool_calls: [one.item] }),
    await two.say({ tool_calls: [two.item] }, []),
  ]
  assert.deepEqual(
    bodies.map((b) => b.data.executed_tool_calls[0].output),
    ['[redacted]', '[redacted]'],
  )
  for (const it of [one, two])
    assert.doesNotMatch(JSON.stringify([it.provider.requests, bodies]), /vault-secret/)
})

// ------------------------------------------------------------ what holds for a child

test('the freeze of a child, or of any agent above it, holds', async (t) => {
  let frozen: [boolean, boolean] = [false, false]
  const { agent: child, ran } = childOf('db', { frozen: () => frozen[0] && 'child' })
  const parent = { frozen: () => frozen[1] && 'parent' }
  for (const at of [0, 1] as const) {
    frozen = [false, false]
    const { agent } = parentOf([child], parent)
    const first = await run(agent, { messages: 'x' })
    const it = await wire(t, child, parent)
    frozen[at] = true
    const words = `Not executed: frozen: ${at ? 'parent' : 'child'}`
    const held = await resume(agent, first, approveAll(first))
    assert.deepEqual([outputs(held), held.pending.length], [[words], 1])
    const stray = await it.say({ tool_calls: [it.item] }, [])
    assert.deepEqual(stray.data.executed_tool_calls[0].output, words)
  }
  assert.deepEqual(ran, [])
})

test('the policy of a child is asked for its calls, the parent’s is not', async () => {
  const denied = childOf('db', { policy: () => ({ verdict: 'deny', reason: 'child says no' }) })
  const one = await run(parentOf([denied.agent]).agent, { messages: 'x' })
  assert.deepEqual([one.pending, denied.ran, one.text], [[], [], 'all done'])
  assert.match(JSON.stringify(denied.provider.requests[1]), /Denied by policy: child says no/)
  const free_ = childOf('db', {}, { requiresApproval: false })
  const seen: string[] = []
  const policy: Agent['policy'] = ({ name }) => void seen.push(name)
  await run(parentOf([free_.agent], { policy }).agent, { messages: 'x' })
  assert.deepEqual([free_.ran, seen], [['db {}'], ['db']])
})

test('a parent’s policy may deny an agent tool; one that asks is told to let its tools ask', async () => {
  const { agent: child, provider: own } = childOf('db')
  const denied = await run(
    parentOf([child], { policy: () => ({ verdict: 'deny', reason: 'no' }) }).agent,
    { messages: 'x' },
  )
  assert.deepEqual([denied.pending, told(denied)], [[], ['Denied by policy: no']])
  const asks = await run(parentOf([child], { policy: () => 'ask' }).agent, { messages: 'x' })
  assert.deepEqual(
    [asks.pending, told(asks)],
    [[], ['A policy asks for db, which is an agent: let its tools ask instead.']],
  )
  assert.equal(own.requests.length, 0)
})

test('a parent’s policy that denies while a child waits ends the child, not what it did', async () => {
  let deny = false
  const { agent: child, ran, provider: own } = childOf('db')
  const { agent } = parentOf([child], { policy: () => (deny ? 'deny' : 'allow') })
  const first = await run(agent, { messages: 'x' })
  deny = true
  const last = await resume(agent, first, approveAll(first))
  assert.deepEqual(
    [ran, own.requests.length, told(last)],
    [['db {}'], 1, ['Denied by policy: no reason given']],
  )
  assert.deepEqual(outputs(last), ['db dropped'])
})

test('a child has limits of its own', async () => {
  const looping = scripted(() => ({ calls: [{ name: 'look' }] }))
  const child: Agent = {
    name: 'db',
    description: 'd',
    provider: looping,
    tools: [free('look')],
    limits: { turns: 3 },
  }
  const result = await run(parentOf([child]).agent, { messages: 'x' })
  assert.deepEqual([looping.requests.length, told(result)], [3, ['(db stopped: limit)']])
  const slow = childOf(
    'db',
    { limits: { toolMs: 20 } },
    { requiresApproval: false, execute: () => new Promise(() => {}) },
  )
  await run(parentOf([slow.agent]).agent, { messages: 'x' })
  assert.match(JSON.stringify(slow.provider.requests[1]), /did not finish within 20 ms/)
  const brief = childOf('db', { limits: { approvalTtlMs: 60_000, inputBytes: 100 } })
  const waits = await run(parentOf([brief.agent]).agent, { messages: 'x' })
  assert.ok(Date.parse(waits.pending[0]?.expiresAt ?? '') - Date.now() < 62_000)
  const bad = await resume(parentOf([brief.agent]).agent, waits, [
    edit(idOf(waits), { long: 'x'.repeat(200) }),
  ])
  assert.match(outputs(bad)[0] ?? '', /the limit inputBytes is 100/)
})

test('a child may take longer than toolMs, its tools may not', async () => {
  const child: Agent = {
    name: 'db',
    description: 'd',
    provider: scripted([() => new Promise((r) => setTimeout(r, 40, 'slowly'))]),
  }
  const result = await run(parentOf([child]).agent, { messages: 'x' }, { limits: { toolMs: 5 } })
  assert.deepEqual(told(result), ['slowly'])
})

for (const [claim, replies, more, words] of [
  ['fails', [new DcafError('provider_overloaded', 'slow down')], {}, 'Error executing db: the agent db failed: provider_overloaded'],
  ['is cut off', [{ text: 'The ans', finishReason: 'length' }], {}, 'The ans\n(db stopped: length)'],
  ['is stopped by an interceptor', ['ok'], { requestInterceptors: [() => { throw new InterceptorError({ userMessage: 'Not today.', code: 'curfew' }) }] }, 'Not today.'],
  ['says nothing', [{ text: '' }], {}, ''],
] as const) // biome-ignore format: a table
  test(`a child that ${claim} is a result that says so`, async () => {
    const child = {
      name: 'db',
      description: 'd',
      provider: scripted(replies as never),
      ...more,
    } as Agent
    const result = await run(parentOf([child]).agent, { messages: 'x' })
    assert.deepEqual([told(result), result.text, result.stop], [[words], 'all done', 'end'])
  })

test('a task that is missing is the parent model’s mistake', async () => {
  const { agent } = parentOf([childOf('db').agent], {}, [
    { calls: [{ name: 'db', input: {} }] },
    'ok',
  ])
  assert.match(told(await run(agent, { messages: 'x' }))[0] ?? '', /^Invalid input for db: .*task/)
})

test('a rejected call is not asked again through another child', async () => {
  const { agent: child, ran, provider: own } = childOf('db')
  const { agent } = parentOf([child], {}, (_, __, i) =>
    i < 3 ? { calls: [task('db')] } : 'all done',
  )
  const first = await run(agent, { messages: 'x' })
  const sealed = JSON.parse(JSON.stringify(first.state))
  const last = await run(agent, {
    messages: [],
    decisions: [reject(idOf(first), 'never')],
    paused: sealed,
  })
  assert.deepEqual([last.pending, ran, last.text], [[], [], 'all done'])
  assert.match(JSON.stringify(own.requests), /a person is not asked again/)
})

test('an abort ends child and parent', async () => {
  const controller = new AbortController()
  const child: Agent = {
    name: 'db',
    description: 'd',
    provider: scripted([
      (_, { signal }) => {
        controller.abort()
        return new Promise((_, reject) =>
          signal?.addEventListener('abort', () => reject(signal.reason)),
        )
      },
    ]),
  }
  const result = await run(
    parentOf([child]).agent,
    { messages: 'x' },
    { signal: controller.signal },
  )
  assert.equal(result.stop, 'aborted')
})

test('agents that call each other for ever end', async () => {
  const loop: Agent = {
    name: 'loop',
    description: 'd',
    provider: scripted(() => ({ calls: [task('loop')] })),
    tools: [],
    limits: { turns: 1 },
  }
  loop.tools = [agentTool(loop)]
  const result = await run(loop, { messages: 'x' })
  assert.deepEqual(
    [result.stop, (loop.provider as ReturnType<typeof scripted>).requests.length],
    ['limit', 9],
  )
})

test('a grant for a child’s call is kept under its own path, and works there', async () => {
  const store = memoryStore()
  const grants = grantBook(store)
  const options = { store, keys: [testKey], grants }
  const { agent: child, ran } = childOf('db', {}, { grantable: true })
  const { agent } = parentOf([child])
  const first = await run(agent, { messages: 'x' }, options)
  const [decision] = approveAll(first)
  await resume(agent, first, [{ ...decision, grant: {} } as never], options)
  const second = await run(agent, { messages: 'x' }, options)
  assert.deepEqual([second.pending, ran.length], [[], 2])
  const own = await run({ ...child, name: 'parent' }, { messages: 'x' }, options)
  assert.deepEqual([own.pending.length, ran.length], [1, 2])
})

test('a tool that hands its work to an agent which then waits must be made with agentTool', async () => {
  const { agent: child } = childOf('db')
  const lend = free('lend', (_, ctx) => ctx.delegate(child, 'go'))
  const agent: Agent = {
    name: 'parent',
    provider: scripted([{ calls: [{ name: 'lend' }] }, 'ok']),
    tools: [lend],
  }
  const result = await run(agent, { messages: 'x' })
  assert.match(told(result)[0] ?? '', /^Error executing lend: .*agentTool/)
  assert.doesNotMatch(JSON.stringify(result.state), /"proof"/)
})

test('a tool may ask several agents, one after another or at once', async () => {
  const say = (name: string): Agent => ({
    name,
    description: name,
    provider: scripted((request) => `${name}: ${(request.messages[0] as Json).parts[0].text}`),
  })
  const [db, web] = [say('db'), say('web')]
  const both = free('both', async (_, ctx) => [
    await ctx.delegate(db, 'one'),
    await ctx.delegate(db, 'two'),
    ...(await Promise.all([ctx.delegate(db, 'three'), ctx.delegate(web, 'four')])),
  ])
  const agent: Agent = {
    name: 'parent',
    provider: scripted([{ calls: [{ name: 'both' }] }, 'ok']),
    tools: [both],
  }
  const result = await run(agent, { messages: 'x' })
  assert.deepEqual(JSON.parse(told(result)[0] ?? ''), [
    'db: one',
    'db: two',
    'db: three',
    'web: four',
  ])
})

for (const echo of [true, false])
  test(`a call two agents deep is approved over the wire (${echo ? 'with' : 'without'} $run)`, async (t) => {
    const { agent: leaf, ran, provider: own } = childOf('leaf')
    const middle = parentOf([leaf], { name: 'middle', description: 'm' })
    const { item, say, provider } = await wire(t, middle.agent)
    assert.deepEqual(item.path, ['middle', 'leaf'])
    const body = await say({ tool_calls: [item] }, ...(echo ? [] : [[]]))
    assert.deepEqual([body.content, ran], ['all done', ['leaf {}']])
    assert.deepEqual(
      body.data.executed_tool_calls.map((call: Json) => call.output),
      echo ? ['leaf dropped', 'leaf is done', 'all done'] : ['leaf dropped'],
    )
    assert.deepEqual([own.requests.length, provider.requests.length], [echo ? 2 : 1, 2])
    for (const path of [['middle'], ['leaf'], ['leaf', 'middle'], ['middle', 'leaf', 'leaf'], []]) {
      const moved = await say({ tool_calls: [{ ...item, path }] }, [])
      assert.deepEqual(moved.data.executed_tool_calls[0].output, unverified, path.join('/'))
    }
    assert.equal(ran.length, 1)
  })

for (const echo of [true, false])
  test(`a command of a child’s is told as one (${echo ? 'with' : 'without'} its state)`, async () => {
    const { agent: child } = childOf('db', {}, { type: 'command' })
    const { agent } = parentOf([child], {}, (_, __, i) => (i ? 'ok' : { calls: [task('db')] }))
    const first = await run(agent, { messages: 'x' })
    const call = first.pending[0] as Json
    assert.equal(call.type, 'command')
    const decision = {
      ...approve(call as never),
      name: 'drop',
      input: {},
      lists: ['cmds', 'approvals'] as never,
    }
    const paused = echo ? { paused: first.state } : {}
    const { executed } = await run(agent, { messages: '', decisions: [decision], ...paused })
    assert.deepEqual([executed[0]?.type, executed[0]?.name], ['command', 'drop'])
  })
