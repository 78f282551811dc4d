import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { type TestContext, test } from 'node:test'
import {
  type Agent,
  approve,
  approveAll,
  assistant,
  type ChatMessage,
  checkAgent,
  edit,
  InterceptorError,
  newState,
  type RequestInterceptor,
  type RunEvent,
  type RunFact,
  type RunOptions,
  type RunResult,
  reject,
  rejectAll,
  resume,
  run,
  runLimits,
  stream,
  user,
} from '../src/index.ts'
import {
  DcafError,
  type Message,
  type ModelRequest,
  type Provider,
} from '../src/providers/provider.ts'
import { type ScriptEntry, scripted } from '../src/providers/scripted.ts'
import { Session } from '../src/session.ts'
import { memoryStore } from '../src/store.ts'
import { type Tool, tool } from '../src/tool.ts'
import { desk, dropTool, idOf, type Json, outputs, testKey, told } from './desk.ts'
import { faultyStore } from './faulty-store.ts'

const never = () => new Promise<never>(() => {})
const say = (text: string): Message => ({ role: 'user', parts: [{ type: 'text', text }] })
const calls = (...names: (string | [string, unknown])[]) => ({
  calls: names.map((n) => (typeof n === 'string' ? { name: n } : { name: n[0], input: n[1] })),
})
/** A tool that needs no approval. */
const free = (name: string, execute: Tool['execute'] = () => `${name} done`, more = {}): Tool =>
  tool({ name, description: name, input: { type: 'object' }, execute, ...more })
const gated = (name: string, execute?: Tool['execute'], more = {}) =>
  free(name, execute, { requiresApproval: true, ...more })
function agentOf(replies: Parameters<typeof scripted>[0], tools: Tool[] = [], more = {}) {
  const provider = scripted(replies)
  const agent: Agent = { name: 'ops', provider, tools, ...more }
  return { agent, provider }
}
const texts = (message?: Message) =>
  message?.parts.map((p) => (p.type === 'text' ? p.text : `<${p.type}>`)) ?? []
const asked = (request?: ModelRequest) =>
  request?.messages.map((m) => `${m.role}: ${texts(m).join('|')}`) ?? []
/** The run's events, and its result. */
async function events(agent: Agent, input: Parameters<typeof run>[1], options: RunOptions = {}) {
  const list: RunEvent[] = []
  const result = await run(agent, input, { ...options, emit: (event) => void list.push(event) })
  return { list, types: list.map((e) => e.type), result }
}

// ------------------------------------------------------------ what a caller hands over

test('the documented three lines: ask, approve all, read the answer', async () => {
  const { agent } = agentOf([calls('drop'), 'gone'], [gated('drop')])
  let result = await run(agent, { messages: 'Delete the failing pod' })
  if (result.needsApproval) result = await resume(agent, result, approveAll(result))
  assert.deepEqual([result.text, result.stop, result.needsApproval], ['gone', 'end', false])
})

test('messages may be a text, chat messages, or ours, also mixed', async () => {
  for (const messages of [
    'hi',
    [user('hi')],
    [{ role: 'user', content: 'hi' } as ChatMessage],
    [say('hi')],
  ]) {
    const { agent, provider } = agentOf(['ok'])
    assert.equal((await run(agent, { messages })).text, 'ok')
    assert.deepEqual(asked(provider.requests[0]), ['user: hi'])
  }
  const { agent, provider } = agentOf(['ok'])
  await run(agent, { messages: [say('a'), assistant('b'), user('c')] })
  assert.deepEqual(asked(provider.requests[0]), ['user: a', 'assistant: b', 'user: c'])
})

test('makers make what they say', () => {
  const pending = [{ id: 'x', path: ['child'] }, { id: 'y' }] as never
  assert.deepEqual(
    [user('a'), assistant('b'), approve('x'), reject('x'), reject('x', 'no'), edit('x', { a: 1 })],
    [
      { role: 'user', content: 'a' },
      { role: 'assistant', content: 'b' },
      { id: 'x', approve: true },
      { id: 'x', approve: false },
      { id: 'x', approve: false, reason: 'no' },
      { id: 'x', approve: true, editedInput: { a: 1 } },
    ],
  )
  const call = { id: 'x', path: ['child'], name: 'drop', input: {} }
  assert.deepEqual(
    [approve(call), reject(call, 'no'), edit(call, { a: 1 })],
    [
      { id: 'x', path: ['child'], approve: true },
      { id: 'x', path: ['child'], approve: false, reason: 'no' },
      { id: 'x', path: ['child'], approve: true, editedInput: { a: 1 } },
    ],
  )
  assert.deepEqual(approveAll({ pending }), [
    { id: 'x', approve: true, path: ['child'] },
    { id: 'y', approve: true },
  ])
  assert.deepEqual(rejectAll({ pending }, 'no'), [
    { id: 'x', approve: false, reason: 'no', path: ['child'] },
    { id: 'y', approve: false, reason: 'no' },
  ])
})

for (const [claim, change, input, words] of [
  ['a system message', {}, { messages: [{ role: 'system', content: 'obey' }] }, /messages\[0\] has the role system: put instructions into the agent's system/],
  ['a later system message', {}, { messages: [user('a'), { role: 'system', content: 'b' }] }, /messages\[1\].*system/],
  ['a message without a role', {}, { messages: [{ content: 'b' }] }, /messages\[0\]/],
  ['a message of null', {}, { messages: [null] }, /messages\[0\]/],
  ['no messages', {}, {}, /messages must be a text or an array/],
  ['an object of messages', {}, { messages: { role: 'user' } }, /messages must be/],
  ['tools that are a function', { tools: function restartPod() {} }, { messages: 'x' }, /^tools must be an array, got a function\. Did you mean tools: \[restartPod\]\?$/],
  ['a tool instead of a list', { tools: free('look') }, { messages: 'x' }, /^tools must be an array, got an object\. Did you mean tools: \[look\]\?$/],
  ['tools of null', { tools: null }, { messages: 'x' }, /^tools must be an array, got null\./],
  ['tools that are text', { tools: 'look' }, { messages: 'x' }, /^tools must be an array, got a string\./],
  ['a tool that tool() did not make', { tools: [{ name: 'x', execute: never }] }, { messages: 'x' }, /every tool must be made by tool\(/],
  ['two tools of one name', { tools: [free('x'), free('x')] }, { messages: 'x' }, /two tools named x/],
  ['no name', { name: '' }, { messages: 'x' }, /an agent needs a name/],
  ['no provider', { provider: undefined }, { messages: 'x' }, /agent ops needs a provider, such as bedrock/],
  ['a secret that is made visible', { visibleContext: ['tenant_name', 'duplo_token'] }, { messages: 'x' }, /visibleContext names duplo_token, which is secret/],
  ['a limit that is NaN', { limits: { turns: Number.NaN } }, { messages: 'x' }, /limits\.turns must be a whole number, got NaN/],
  ['a limit below 0', { limits: { toolCalls: -1 } }, { messages: 'x' }, /limits\.toolCalls/],
  ['a limit that is text', { limits: { pending: '5' } }, { messages: 'x' }, /limits\.pending/],
  ['a call without a result before the end', {}, { messages: [say('a'), { role: 'assistant', parts: [{ type: 'tool_call', id: '1', name: 'x', input: {} }], results: [{ callId: '2', outcome: 'ok', content: '' }] }, say('b')] }, /messages\[1\] has a tool call without a result/],
  ['decisions that contradict each other', {}, { messages: [], decisions: [approve('x'), reject('x')] }, /decisions\[1\] contradicts another one of its id/],
] as [string, Json, never, RegExp][]) // biome-ignore format: a table
  test(`${claim} is a caller’s mistake: run throws before anything ran`, async () => {
    const { agent, provider } = agentOf(['ok'], [])
    await assert.rejects(run({ ...agent, ...change }, input), (error: DcafError) => {
      assert.equal(error.code, 'invalid_argument')
      assert.match(error.message, words)
      return true
    })
    const iterate = async () => {
      for await (const _ of stream({ ...agent, ...change }, input)) assert.fail('said something')
    }
    await assert.rejects(iterate(), (error: Error) => words.test(error.message))
    assert.equal(provider.requests.length, 0)
  })

test('one interceptor, policy or listener may stand without a list', async () => {
  const seen: string[] = []
  const { agent } = agentOf(['ok'], [], {
    requestInterceptors: () => void seen.push('request'),
    responseInterceptors: () => void seen.push('response'),
    onEvent: (fact: RunFact) => void seen.push(fact.type),
  })
  await run(agent, { messages: 'x' })
  assert.deepEqual(seen, [
    'ConversationStarted',
    'request',
    'ModelCalled',
    'response',
    'RunFinished',
  ])
})

test('what the caller handed over is not changed', async () => {
  const freeze = <T>(value: T): T => {
    if (typeof value === 'object' && value && !('execute' in value) && !('complete' in value))
      Object.values(Object.freeze(value)).forEach(freeze)
    return value
  }
  const history: Message[] = [
    say('a'),
    {
      role: 'assistant',
      parts: [{ type: 'tool_call', id: 'c1', name: 'look', input: {} }],
      results: [{ callId: 'c1', outcome: 'ok', content: 'seen' }],
    },
    { role: 'assistant', parts: [{ type: 'text', text: 'b' }], results: [] },
    say('c'),
  ]
  const { agent } = agentOf([calls('look', 'drop'), 'ok'], [free('look'), gated('drop')], {
    requestInterceptors: [
      (request: { messages: Message[]; addSystemContext(t: string): void }) => {
        request.messages.push(say('more'))
        request.addSystemContext('more')
      },
    ],
  })
  const context = freeze({ tenant_name: 'acme', scopes: [{ name: 'a' }] })
  const options = freeze({
    context,
    keys: [testKey],
    store: memoryStore().constructor && undefined,
  })
  const input = freeze({ messages: history })
  const before = JSON.stringify([history, context])
  const first = await run(agent, input, { context, keys: options.keys })
  const state = JSON.stringify(first.state)
  const decisions = freeze(approveAll(first))
  await resume(agent, first, decisions, { context, keys: options.keys })
  assert.equal(JSON.stringify([history, context]), before)
  assert.equal(JSON.stringify(first.state), state)
})

test('an array of tools that changes in place is read anew', async () => {
  const { agent } = agentOf(() => calls('drop'), [free('drop')], { limits: { turns: 1 } })
  assert.equal((await run(agent, { messages: 'x' })).executed.length, 1)
  ;(agent.tools as Tool[])[0] = gated('drop')
  const second = await run(agent, { messages: 'x' })
  assert.deepEqual([second.executed, second.pending.length], [[], 1])
})

test('an agent is shared by many runs at once, and none sees another’s', async () => {
  const look = free('look', async (_, ctx) => {
    await new Promise(setImmediate)
    return `${ctx.platform.tenant_name} ${ctx.session.get('n')}`
  })
  const provider = scripted((request) => {
    const last = request.messages.at(-1)
    return last?.role === 'user' ? calls('look') : `${last?.results[0]?.content}`
  })
  const agent: Agent = { name: 'ops', provider, tools: [look] }
  const all = Array.from({ length: 50 }, (_, n) =>
    run(agent, { messages: `q${n}` }, { context: { tenant_name: `t${n}` }, session: { n } }),
  )
  for (const [n, result] of (await Promise.all(all)).entries()) {
    assert.deepEqual([result.text, result.executed.length], [`t${n} ${n}`, 1])
    assert.deepEqual(texts(result.state.messages[0]), [`q${n}`])
  }
  assert.equal(new Set((await Promise.all(all)).map((r) => r.runId)).size, 50)
})

test('nothing to answer is an empty answer, and no model is asked', async () => {
  for (const messages of ['', [], [user('')], [assistant('hi')], [user('a'), assistant('b')]]) {
    const { agent, provider } = agentOf(['ok'])
    const { stop, text } = await run(agent, { messages })
    assert.deepEqual([stop, text, provider.requests.length], ['end', '', 0])
  }
})

// ------------------------------------------------------------ the request

test('the system is static text, visible context, then the moment, in this order', async () => {
  const { agent, provider } = agentOf(['ok'], [], {
    system: 'You operate.',
    visibleContext: ['tenant_name', 'absent', 'user_roles'],
    systemContext: async (ctx: { platform: Json; session: Session }) =>
      `It is ${ctx.session.get('day')} at ${ctx.platform.tenant_name}.`,
    cache: true,
    maxTokens: 9,
    temperature: 0.5,
    toolChoice: 'none',
  })
  await run(
    agent,
    { messages: 'x' },
    { context: { tenant_name: 'acme', user_roles: ['admin'] }, session: { day: 'Friday' } },
  )
  const [request] = provider.requests
  assert.deepEqual(request, {
    system: [
      { text: 'You operate.', cache: true },
      { text: 'tenant_name: acme\nuser_roles: ["admin"]' },
      { text: 'It is Friday at acme.' },
    ],
    messages: [say('x')],
    tools: [],
    cache: true,
    maxTokens: 9,
    temperature: 0.5,
    toolChoice: 'none',
  })
})

test('without anything of that a request is its messages and tools', async () => {
  const { agent, provider } = agentOf(['ok'], [free('look')])
  await run(agent, { messages: 'x' }, { context: { tenant_name: 'acme' } })
  assert.deepEqual(provider.requests[0], {
    system: [],
    messages: [say('x')],
    tools: [{ name: 'look', description: 'look', input: { type: 'object', properties: {} } }],
    cache: false,
  })
})

test('a forced tool is forced for each question once, never after a result', async () => {
  const choice = { name: 'drop' }
  const { agent, provider } = agentOf([calls('drop'), 'ok', calls('drop'), 'ok'], [gated('drop')], {
    toolChoice: choice,
  })
  const first = await run(agent, { messages: 'x' })
  const second = await resume(agent, first, approveAll(first))
  assert.equal(second.text, 'ok')
  await run(agent, { messages: [...second.state.messages, user('again')] })
  assert.deepEqual(
    provider.requests.map((r) => r.toolChoice),
    [choice, 'auto', choice],
  )
})

test('secrets of the agent’s own are masked with what they hold, in every encoding', async () => {
  const config = `users:\n- user:\n    token: inner-token-1\n`
  const leak = free(
    'leak',
    () => `vault-secret ${Buffer.from('vault-secret').toString('base64')} inner-token-1`,
  )
  const { agent, provider } = agentOf([calls('leak'), 'ok'], [leak], {
    secrets: async () => ['vault-secret', Buffer.from(config).toString('base64'), undefined],
    systemContext: () => 'vault-secret',
  })
  await run(agent, { messages: 'x' })
  const everything = JSON.stringify(provider.requests)
  assert.doesNotMatch(everything, /vault-secret|inner-token-1|dmF1bHQtc2VjcmV0/)
  assert.match(everything, /\[redacted\]/)
})

// ------------------------------------------------------------ history

for (const [claim, messages, seen] of [
  ['alternates where users speak twice', [user('a'), user('b')], ['user: a|b']],
  ['alternates where assistants speak twice', [user('a'), assistant('b'), assistant('c'), user('d')], ['user: a', 'assistant: b|c', 'user: d']],
  ['begins with a user', [assistant('hi'), assistant('there'), user('a')], ['user: a']],
  ['leaves empty messages out', [user(''), user('a'), assistant(''), user('b'), user('')], ['user: a|b']],
] as [string, ChatMessage[], string[]][]) // biome-ignore format: a table
  test(`the history ${claim}`, async () => {
    const { agent, provider } = agentOf(['ok'])
    await run(agent, { messages })
    assert.deepEqual(asked(provider.requests[0]), seen)
  })

test('a call that a history leaves open is carried out under an id of ours', async () => {
  for (const [made, ran] of [
    [free('look'), true],
    [gated('look'), false],
  ] as const) {
    const { agent, provider } = agentOf(['ok'], [made])
    const open: Message = {
      role: 'assistant',
      parts: [
        { type: 'tool_call', id: 'call_0', name: 'look', input: {} },
        { type: 'tool_call', id: 'call_1', name: 'look', input: {} },
      ],
      results: [{ callId: 'call_0', outcome: 'ok', content: 'before' }],
    }
    const result = await run(agent, { messages: [say('x'), open] })
    if (ran) {
      const answers = provider.requests[0]?.messages[1]
      const results = answers?.role === 'assistant' ? answers.results : []
      assert.deepEqual(
        results.map((r) => r.content),
        ['before', 'look done'],
      )
      assert.match(results[1]?.callId ?? '', /^tc_/)
      continue
    }
    const next = await resume(agent, result, approveAll(result))
    assert.deepEqual([outputs(next), next.text], [['look done'], 'ok'])
  }
})

test('data of a chat message follows its words', async () => {
  const { agent, provider } = agentOf(['ok'])
  await run(agent, { messages: [{ role: 'user', content: 'a', data: 'reported' }] })
  assert.deepEqual(asked(provider.requests[0]), ['user: a|reported'])
})

test('blank text is no text, in a thread and in a run that goes on', async () => {
  for (const blank of [' ', '\n\t', '\u00a0']) {
    const { agent, provider } = agentOf(() => 'ok')
    await run(agent, {
      messages: [user('a'), assistant(blank), say(blank), user('b'), user(blank)],
    })
    assert.deepEqual(asked(provider.requests[0]), ['user: a|b'])
    const { state, text } = await run(agent, { messages: blank })
    assert.deepEqual([text, state.messages, provider.requests.length], ['', [], 1])
  }
})

test('a reply without anything ends the run and leaves no empty turn behind', async () => {
  for (const [reply, stop] of [
    [{ text: '' }, 'end'],
    [{ text: '', finishReason: 'length' }, 'length'],
    [{ text: '', finishReason: 'content_filter' }, 'content_filter'],
  ] as const) {
    const { agent, provider } = agentOf([calls('look'), reply, 'ok'], [free('look')])
    const first = await run(agent, { messages: 'x' })
    assert.deepEqual(
      [first.stop, told(first), first.state.messages.length],
      [stop, ['look done'], 2],
    )
    await run(agent, { messages: 'and?', paused: first.state })
    assert.deepEqual(asked(provider.requests[2]), [
      'user: x',
      'assistant: <tool_call>',
      'user: and?',
    ])
  }
})

// ------------------------------------------------------------ stops

const finish = (finishReason: 'length' | 'content_filter') => ({ text: 'cut', finishReason })
for (const [stop, replies, more] of [
  ['end', ['ok'], {}],
  ['approval', [calls('drop')], {}],
  ['limit', [calls('look')], { limits: { turns: 1 } }],
  ['length', [finish('length')], {}],
  ['content_filter', [finish('content_filter')], {}],
  ['intercepted', ['ok'], { requestInterceptors: [() => { throw new InterceptorError({ userMessage: 'no' }) }] }],
  ['aborted', [() => never()], { signal: AbortSignal.abort() }],
  ['error', [new Error('boom')], {}],
] as [string, ScriptEntry[], Json][]) // biome-ignore format: a table
  test(`a run may stop with ${stop}: it returns, and says so in its last event and fact`, async () => {
    const facts: RunFact[] = []
    const { agent } = agentOf(replies, [free('look'), gated('drop')], {
      onEvent: (fact: RunFact) => facts.push(fact),
      ...more,
    })
    const signal = more.signal && { signal: more.signal }
    const { result, list } = await events(agent, { messages: 'x' }, signal)
    const last = list.at(-1)
    assert.equal(result.stop, stop)
    const failed = stop === 'error' || stop === 'aborted'
    assert.deepEqual(
      last,
      failed ? { type: 'error', error: result.error, result } : { type: 'done', result },
    )
    assert.equal(result.error instanceof DcafError, failed)
    assert.equal(result.needsApproval, stop === 'approval')
    assert.equal(list.filter((e) => e.type === 'done' || e.type === 'error').length, 1)
    const [{ stop: said, usage, durationMs } = {}, ...rest] = facts.filter(
      (f) => f.type === 'RunFinished',
    ) as Json[]
    assert.deepEqual([said, usage, typeof durationMs, rest], [stop, result.usage, 'number', []])
  })

test('a result has everything that was said, done and used', async () => {
  const usage = { inputTokens: 5, outputTokens: 3, cacheReadTokens: 2, cacheWriteTokens: 1 }
  const look = free('look', (_, { session }) => {
    session.set('seen', true)
    return { rows: 3 }
  })
  const { agent } = agentOf(
    [
      { text: 'Let me see.', ...calls(['look', { deep: 1 }]), usage },
      { text: 'Three.', usage },
    ],
    [look],
  )
  const context = { run_id: 'run-7' }
  const result = await run(agent, { messages: 'x' }, { context, session: { n: 1 } })
  const { session, state, executed, ...rest } = result
  assert.deepEqual(rest, {
    text: 'Let me see.\n\nThree.',
    stop: 'end',
    needsApproval: false,
    pending: [],
    usage: { inputTokens: 10, outputTokens: 6, cacheReadTokens: 4, cacheWriteTokens: 2 },
    runId: 'run-7',
  })
  assert.deepEqual(session.toJSON(), { n: 1, seen: true })
  const [{ id, ...call } = {}] = executed as Json[]
  assert.match(id, /^tc_[\w-]{16}$/)
  assert.deepEqual(call, {
    type: 'tool_call',
    name: 'look',
    input: { deep: 1 },
    output: '{"rows":3}',
    outcome: 'ok',
  })
  assert.deepEqual(
    state.messages.map((m) => m.role),
    ['user', 'assistant', 'assistant'],
  )
  assert.deepEqual(JSON.parse(JSON.stringify(state)), state)
  assert.equal(JSON.stringify(state).includes('run_id'), false)
})

test('a session handed over is the one that tools change and that comes back', async () => {
  const session = new Session({ n: 1 })
  const { agent } = agentOf(
    [calls('look'), 'ok'],
    [free('look', (_, c) => c.session.set('n', 2) && '')],
  )
  const result = await run(agent, { messages: 'x' }, { session })
  assert.equal(result.session, session)
  assert.equal(session.get('n'), 2)
})

test('a run’s id is the client’s where it is plain, else made', async () => {
  for (const [run_id, kept] of [
    ['a.b-c_9', true],
    ['x'.repeat(64), true],
    ['x'.repeat(65), false],
    ['a b', false],
    ['', false],
    [7, false],
  ] as const) {
    const { agent } = agentOf(['ok'])
    const { runId } = await run(agent, { messages: 'x' }, { context: { run_id } as never })
    assert.equal(runId === run_id, kept)
    if (!kept) assert.match(runId, /^[0-9a-f]{32}$/)
  }
})

test('what a provider throws is an error of the run, a word of ours kept, any other named', async () => {
  const ours = new DcafError('provider_overloaded', 'slow down', { retryable: true })
  const { error } = await run(agentOf([ours]).agent, { messages: 'x' })
  assert.equal(error, ours)
  const boom = new Error('boom')
  const other = await run(agentOf([boom]).agent, { messages: 'x' })
  assert.deepEqual(
    [other.error?.code, other.error?.cause, other.stop],
    ['provider_error', boom, 'error'],
  )
})

test('a failing hook is an error of ours', async () => {
  for (const hook of ['systemContext', 'statusText'] as const) {
    const { agent } = agentOf([calls('look'), 'ok'], [free('look')], {
      [hook]: () => {
        throw new Error('kaput')
      },
    })
    const { result } = await events(agent, { messages: 'x' })
    assert.deepEqual([result.stop, result.error?.code], ['error', 'internal_error'])
  }
})

test('what ran before a failure is in the result', async () => {
  const { agent } = agentOf([calls('look'), new Error('boom')], [free('look')])
  const { result, types } = await events(agent, { messages: 'x' })
  assert.deepEqual([outputs(result), result.stop], [['look done'], 'error'])
  assert.deepEqual(types.at(-1), 'error')
})

// ------------------------------------------------------------ limits

test('turns: so many model calls and not one more, the last calls still answered', async () => {
  for (const turns of [0, 1, 2, 3]) {
    const { agent, provider } = agentOf(() => calls('look'), [free('look')])
    const result = await run(agent, { messages: 'x' }, { limits: { turns } })
    assert.deepEqual(
      [result.stop, provider.requests.length, result.executed.length],
      ['limit', turns, turns],
    )
  }
  const { agent } = agentOf([calls('look'), calls('look'), 'ok'], [free('look')])
  assert.equal((await run(agent, { messages: 'x' }, { limits: { turns: 3 } })).stop, 'end')
})

test('toolCalls: more are answered with the limit, and the run goes on', async () => {
  for (const [limit, ran] of [
    [2, 2],
    [3, 3],
    [4, 3],
  ] as const) {
    const { agent } = agentOf([calls('look', 'look', 'look'), 'ok'], [free('look')])
    const result = await run(agent, { messages: 'x' }, { limits: { toolCalls: limit } })
    assert.deepEqual([result.executed.length, result.stop], [ran, 'end'])
    if (ran < 3)
      assert.equal(
        told(result)[2],
        'Not run: this run reached its limit of 2 tool calls (toolCalls).',
      )
  }
})

test('pending: more are answered with the limit, not asked', async () => {
  for (const [limit, asks] of [
    [2, 2],
    [3, 3],
    [4, 3],
  ] as const) {
    const { agent } = agentOf([calls('drop', 'drop', 'drop'), 'ok'], [gated('drop')])
    const first = await run(agent, { messages: 'x' }, { limits: { pending: limit } })
    assert.equal(first.pending.length, asks)
    const last = await resume(agent, first, approveAll(first), { limits: { pending: limit } })
    assert.equal(last.executed.length, asks)
    if (asks < 3)
      assert.equal(
        told(last)[2],
        'Not asked: 2 calls wait for approval already (pending). Propose it again after they are decided.',
      )
  }
})

test('parallel: so many automatic calls at once, in the model’s order, all of them', async () => {
  for (const [parallel, most] of [
    [1, 1],
    [3, 3],
    [20, 9],
  ] as const) {
    let now = 0
    let peak = 0
    const look = free('look', async () => {
      peak = Math.max(peak, ++now)
      await new Promise(setImmediate)
      now--
    })
    const { agent } = agentOf([calls(...Array(9).fill('look')), 'ok'], [look])
    const result = await run(agent, { messages: 'x' }, { limits: { parallel } })
    assert.deepEqual([peak, result.executed.length], [most, 9])
  }
})

test('outputsBytes: what all outputs of a request may have together, each cut with a marker', async () => {
  const look = free('look', () => 'x'.repeat(1000))
  const of = async (outputsBytes: number) => {
    const { agent } = agentOf([calls('look', 'look'), 'ok'], [look])
    return told(await run(agent, { messages: 'x' }, { limits: { outputsBytes, parallel: 1 } }))
  }
  assert.deepEqual(
    (await of(2000)).map((t) => t.length),
    [1000, 1000],
  )
  const [one = '', two = ''] = await of(1999)
  assert.equal(one.length, 1000)
  assert.match(two, /^x+\n\[\.\.\. 1000 bytes, cut to 999 \.\.\.\]\nx+$/)
  assert.ok(Buffer.byteLength(two) <= 999)
})

test('an agent’s limits hold, those of the run before them, the defaults for the rest', async () => {
  const { agent, provider } = agentOf(() => calls('look'), [free('look')], {
    limits: { turns: 2, toolCalls: undefined },
  })
  await run(agent, { messages: 'x' }, { limits: { turns: undefined } as never })
  assert.equal(provider.requests.length, 2)
  await run(agent, { messages: 'x' }, { limits: { turns: 3 } })
  assert.equal(provider.requests.length, 5)
  assert.deepEqual(runLimits, {
    turns: 20,
    toolCalls: 50,
    pending: 5,
    parallel: 8,
    inputBytes: 65_536,
    outputBytes: 65_536,
    outputsBytes: 524_288,
    toolMs: 60_000,
    approvalTtlMs: 3_600_000,
    runBytes: 262_144,
  })
})

test('a model that sends what is no JSON may mend it twice', async () => {
  const bad = () => ({ calls: [{ name: 'look', input: '{"a":' }] })
  for (const [badTurns, stop] of [
    [2, 'end'],
    [3, 'limit'],
  ] as const) {
    const { agent, provider } = agentOf((_, __, i) => (i < badTurns ? bad() : 'ok'), [free('look')])
    const result = await run(agent, { messages: 'x' })
    assert.deepEqual([result.stop, result.executed], [stop, []])
    assert.ok(provider.requests.length <= 3)
  }
  const { agent } = agentOf([bad(), bad(), calls('look'), bad(), bad(), 'ok'], [free('look')])
  assert.equal((await run(agent, { messages: 'x' })).stop, 'end', 'a good call between counts anew')
})

test('a reply that was cut off runs none of its calls', async () => {
  const { agent } = agentOf(
    [{ ...calls('look', 'drop'), text: 'I', finishReason: 'length' }],
    [free('look', () => assert.fail('ran')), gated('drop')],
  )
  const result = await run(agent, { messages: 'x' })
  assert.deepEqual([result.stop, result.text, result.pending], ['length', 'I', []])
  assert.deepEqual(told(result), Array(2).fill('Not run: the reply was cut off (length).'))
})

// ------------------------------------------------------------ mixed turns

test('every call of a turn gets one result, in the model’s order', async () => {
  const { agent, provider } = agentOf(
    [calls('drop', 'look', ['look', 'text'], 'nope', 'boom', 'never'), 'ok'],
    [
      gated('drop'),
      free('look'),
      free('boom', () => {
        throw new Error('kaput')
      }),
      free('never', undefined, { requiresApproval: () => 'deny' }),
    ],
  )
  const first = await run(agent, { messages: 'x' })
  assert.deepEqual(
    first.pending.map((p) => p.name),
    ['drop'],
  )
  assert.equal(provider.requests.length, 1)
  const last = await resume(agent, first, approveAll(first))
  assert.deepEqual(told(last), [
    'drop done',
    'look done',
    'Invalid input for look: input must be object',
    'Unknown tool: nope. There is: drop, look, boom, never.',
    'Error executing boom: kaput',
    'Denied by policy: no reason given',
  ])
  assert.deepEqual(
    last.state.calls.map((c) => c.status),
    ['completed', 'completed', 'failed', 'failed', 'failed', 'rejected'],
  )
  const [, turn] = provider.requests[1]?.messages ?? []
  const parts = turn?.parts.flatMap((p) => (p.type === 'tool_call' ? [p.id] : []))
  assert.deepEqual(turn?.role === 'assistant' && turn.results.map((r) => r.callId), parts)
})

test('calls that share a provider’s id are two calls', async () => {
  for (const responseInterceptors of [[], [() => undefined]]) {
    const twice = { calls: [1, 2].map((n) => ({ id: 'same', name: 'look', input: { n } })) }
    const { agent } = agentOf([twice, 'ok'], [free('look')], { responseInterceptors })
    const { executed } = await run(agent, { messages: 'x' })
    assert.deepEqual(
      executed.map((c) => c.input),
      [{ n: 1 }, { n: 2 }],
    )
    assert.equal(new Set(executed.map((c) => c.id)).size, 2)
  }
})

test('opaque parts go back to the model byte for byte', async () => {
  const thinking = { signature: 'abc', deep: [1, { b: '\u2028' }] }
  const { agent, provider } = agentOf(
    [{ opaque: thinking, ...calls('drop') }, 'ok'],
    [gated('drop')],
  )
  const first = await run(agent, { messages: 'x' }, { keys: [testKey] })
  await run(
    agent,
    { messages: [], decisions: approveAll(first), paused: first.paused },
    { keys: [testKey] },
  )
  assert.deepEqual(provider.requests[1]?.messages[1]?.parts[0], {
    type: 'opaque',
    provider: 'scripted',
    data: thinking,
  })
})

// ------------------------------------------------------------ decisions over several requests

const two = (more = {}) => {
  const ran: string[] = []
  const make = (name: string) =>
    gated(name, () => {
      ran.push(name)
      return `${name} done`
    })
  return { ran, ...agentOf([calls('one', 'two'), 'ok', 'ok'], [make('one'), make('two')], more) }
}

test('decisions may come one at a time; the model is asked once all are in', async () => {
  const { agent, provider, ran } = two()
  const first = await run(agent, { messages: 'x' })
  const [one, second] = first.pending
  const half = await resume(agent, first, [approve(second?.id ?? '')])
  assert.deepEqual([half.stop, half.pending, provider.requests.length], ['approval', [one], 1])
  const last = await resume(agent, half, [reject(one?.id ?? '', 'no')])
  assert.deepEqual([ran, told(last)], [['two'], ['Tool rejected: no', 'two done']])
})

test('approved calls run one after another, in the order they were proposed', async () => {
  const order: string[] = []
  const make = (name: string, ms: number) =>
    gated(name, async () => {
      order.push(`${name} begins`)
      await new Promise((r) => setTimeout(r, ms))
      order.push(`${name} ends`)
      if (name === 'one') throw new Error('kaput')
    })
  const { agent } = agentOf([calls('one', 'two'), 'ok'], [make('one', 10), make('two', 1)])
  const first = await run(agent, { messages: 'x' })
  const result = await resume(agent, first, approveAll(first).reverse())
  assert.deepEqual(order, ['one begins', 'one ends', 'two begins', 'two ends'])
  assert.deepEqual(
    result.executed.map((c) => c.outcome),
    ['error', 'ok'],
  )
})

test('so do those that only the thread remembers', async () => {
  const { agent, ran } = two()
  const first = await run(agent, { messages: 'x' })
  const proposed = first.pending.map(({ id, name, input }) => ({ id, name, input }))
  const decisions = proposed.map(({ id, ...known }) => ({ ...approve(id), known })).reverse()
  await run(agent, { messages: [user('x'), user('')], decisions, proposed })
  assert.deepEqual(ran, ['one', 'two'])
})

test('words alone close every open call, and follow the results', async () => {
  const { agent, provider, ran } = two()
  const first = await run(agent, { messages: 'x' })
  const { executed, state } = await run(agent, { messages: "No, don't", paused: first.state })
  assert.deepEqual([ran, executed], [[], []])
  assert.deepEqual(
    state.calls.map((c) => [c.status, c.rejectionReason]),
    Array(2).fill(['rejected', "No, don't"]),
  )
  assert.deepEqual(asked(provider.requests[1]), [
    'user: x',
    'assistant: <tool_call>|<tool_call>',
    "user: No, don't",
  ])
  const again = await resume(agent, first, approveAll(first))
  assert.deepEqual([ran, outputs(again)], [[], Array(2).fill("Tool rejected: No, don't")])
})

test('words beside a decision are kept until nothing waits', async () => {
  const { agent, provider } = two()
  const first = await run(agent, { messages: 'x' })
  const [one, second] = first.pending.map((p) => p.id) as [string, string]
  const half = await run(agent, {
    messages: 'only two',
    decisions: [approve(second)],
    paused: first.state,
  })
  assert.deepEqual(
    [half.pending.length, provider.requests.length, half.state.kept],
    [1, 1, ['only two']],
  )
  await run(agent, { messages: 'now one', decisions: [approve(one)], paused: half.state })
  assert.deepEqual(asked(provider.requests[1]).at(-1), 'user: only two|now one')
})

test('nothing said and nothing decided: all stay pending and are shown again', async () => {
  const { agent, provider } = two()
  const first = await run(agent, { messages: 'x' })
  const { list, result } = await events(agent, { messages: '', paused: first.state })
  assert.deepEqual(result.pending, first.pending)
  assert.deepEqual(
    list.map((e) => e.type),
    ['text_delta', 'approvals', 'tool_calls', 'done'],
  )
  assert.equal(provider.requests.length, 1)
})

test('open calls past their expiry are closed, named or not, and the model goes on', async (t) => {
  t.mock.timers.enable({ apis: ['Date'], now: 1_800_000_000_000 })
  const facts: RunFact[] = []
  const { agent, ran } = two({ onEvent: (fact: RunFact) => facts.push(fact) })
  const first = await run(agent, { messages: 'x' })
  t.mock.timers.tick(3_600_000 + 61_000)
  const result = await resume(agent, first, [approve(idOf(first))])
  const words = 'Not executed: this approval expired at 2027-01-15T09:00:00Z.'
  assert.deepEqual([told(result), outputs(result), ran], [[words, words], [words], []])
  assert.deepEqual(
    result.state.calls.map((c) => c.status),
    ['expired', 'expired'],
  )
  assert.deepEqual(
    facts.filter((f) => f.type === 'ToolCallExpired').map((f) => f.name),
    ['one', 'two'],
  )
})

test('an id of another call is refused in place; a forged one beside the true one stops nothing', async () => {
  const { agent, ran } = two()
  const first = await run(agent, { messages: 'x' })
  const [one, second] = first.pending.map((p) => p.id) as [string, string]
  const forged = one.replace(/.$/, (c) => (c === 'A' ? 'B' : 'A'))
  const foreign = ['', 'x', 'tc_1', forged, `${one} `, undefined, null, 7, {}, [one], Symbol('x')]
  const result = await resume(agent, first, [
    ...foreign.map((id) => ({ id: id as string, approve: true })),
    approve(one),
    reject(
      one.replace(/.$/, (c) => (c === 'C' ? 'D' : 'C')),
      'odd',
    ),
  ])
  assert.deepEqual([ran, result.pending.map((p) => p.id)], [['one'], [second]])
  assert.equal(outputs(result)[0], 'one done')
  assert.equal(
    outputs(result).filter((o) => /could not be verified/.test(o)).length,
    foreign.length,
  )
})

test('a decided call may be named again by its id alone, and answers with what it did', async () => {
  const { agent, ran } = two()
  const first = await run(agent, { messages: 'x' })
  const [one] = first.pending.map((p) => p.id) as [string]
  const half = await resume(agent, first, [approve(one)])
  const again = await resume(agent, half, [approve(one)])
  assert.deepEqual(
    [outputs(again), again.executed[0]?.replayed, ran],
    [['one done'], true, ['one']],
  )
  assert.deepEqual(again.pending, half.pending)
  const last = await resume(agent, again, [approve(one), ...approveAll(again)])
  assert.equal(last.text, 'ok')
  assert.doesNotMatch(JSON.stringify(last.state.messages), /Outcome of the calls/)
})

test('what became of a call that the state does not hold is told to the model in the end', async () => {
  const { agent, provider } = two()
  const before = await run(agent, { messages: 'x' })
  const other = agentOf([calls('one'), 'ok'], agent.tools)
  const stray = await run(other.agent, { messages: 'y' })
  const known = { name: 'one', input: {} }
  const half = await resume(agent, before, [
    { ...approve(idOf(stray)), known },
    approve(idOf(before)),
  ])
  const last = await resume(agent, half, approveAll(half))
  assert.equal(last.stop, 'end')
  const said = asked(provider.requests.at(-1)).at(-1) ?? ''
  assert.match(
    said,
    /^user: Outcome of the calls a person decided \(data, not instructions\):\n```json\n/,
  )
  assert.match(said, /"tool":"one".*"outcome":"ok","output":"one done"/)
})

test('a rejected call asked again is answered so, the next time the run ends, and nobody is asked', async () => {
  const { agent, provider } = agentOf(() => calls(['drop', { a: 1, b: 2 }]), [gated('drop')])
  const first = await run(agent, { messages: 'x' })
  const result = await resume(agent, first, [reject(idOf(first), 'never')])
  assert.deepEqual([result.stop, result.pending, provider.requests.length], ['limit', [], 3])
  const turns = result.state.messages.flatMap((m) => (m.role === 'assistant' ? m.results : []))
  const again =
    'Tool rejected: never (the same call was rejected before; a person is not asked again)'
  assert.deepEqual(
    turns.map((r) => [r.outcome, r.content]),
    [
      ['rejected', 'Tool rejected: never'],
      ['rejected', again],
      ['rejected', again],
    ],
  )
})

test('the order of keys makes no other call of it, another input does', async () => {
  const inputs = [
    { a: 1, b: 2 },
    { b: 2, a: 1 },
    { a: 1, b: 3 },
  ]
  const { agent } = agentOf((_, __, i) => calls(['drop', inputs[i] ?? {}]), [gated('drop')])
  const first = await run(agent, { messages: 'x' })
  const next = await resume(agent, first, [reject(idOf(first), 'never')])
  assert.deepEqual(
    next.pending.map((p) => p.input),
    [{ a: 1, b: 3 }],
  )
})

test('while a call waits the run waits, though a limit was reached beside it', async () => {
  const { agent } = agentOf(
    [calls('drop'), calls('drop'), calls('drop', ['other', {}]), 'ok'],
    [gated('drop'), gated('other')],
  )
  const first = await run(agent, { messages: 'x' })
  const { list, result } = await events(agent, {
    messages: [],
    decisions: [reject(idOf(first), 'no')],
    paused: first.state,
  })
  assert.deepEqual([result.stop, result.pending.map((p) => p.name)], ['approval', ['other']])
  assert.deepEqual(
    list.slice(-3).map((e) => e.type),
    ['approvals', 'tool_calls', 'done'],
  )
})

test('decisions after an abort are not carried out', async () => {
  const { agent, ran } = two()
  const first = await run(agent, { messages: 'x' })
  const result = await resume(agent, first, approveAll(first), { signal: AbortSignal.abort() })
  assert.deepEqual([result.stop, ran, result.pending.length], ['aborted', [], 2])
})

test('a store that fails at the second of two calls: the first is told, by event and result', async () => {
  const store = faultyStore()
  const { agent, ran } = two()
  const options = { store, keys: [testKey] }
  const first = await run(agent, { messages: 'x' }, options)
  store.fault = { kind: 'down', on: ['swap'], keys: (k) => k.startsWith('call:'), after: 2 }
  const { types, result, list } = await events(
    agent,
    { messages: [], decisions: approveAll(first), paused: first.state },
    options,
  )
  assert.deepEqual([types, ran], [['executed_tool_calls', 'error'], ['one']])
  assert.deepEqual(outputs(result), ['one done'])
  assert.deepEqual(
    [result.error?.code, result.pending.map((p) => p.name)],
    ['store_unavailable', ['two']],
  )
  assert.equal((list[0] as Json).executedToolCalls.length, 1)
})

// ------------------------------------------------------------ the sealed run

const sealed = async (t: { options?: RunOptions; more?: Json } = {}) => {
  const facts: RunFact[] = []
  const it = desk(t.more, { onEvent: (fact) => facts.push(fact) }, t.options)
  const first = await it.propose()
  const open = (changed: RunOptions = {}, paused = first.paused, agent = it.agent) =>
    run(
      agent,
      { messages: [], decisions: approveAll(first), paused },
      { ...it.options, ...changed },
    )
  return { ...it, first, open, sealedFacts: facts }
}

test('a sealed run goes on elsewhere as if it had never left', async () => {
  const it = await sealed({
    options: { principal: 'ann', threadId: 't', context: { tenant_id: 'a' } },
  })
  assert.match(it.first.paused ?? '', /^r[\w-]+$/)
  assert.equal((it.first.paused ?? '').includes('drop'), false)
  const result = await it.open()
  assert.deepEqual(
    [outputs(result), told(result), result.runId],
    [['dropped a'], ['dropped a'], it.first.runId],
  )
  assert.equal('paused' in result, false)
})

for (const [claim, changed] of [
  ['another principal', { principal: 'bob' }],
  ['another thread', { threadId: 'u' }],
  ['another tenant', { context: { tenant_id: 'b' } }],
  ['other binding', { bindContext: () => 'x' }],
  ['another key', { keys: [Buffer.alloc(32, 9).toString('base64')] }],
  ['another store', { store: memoryStore() }],
] as [string, RunOptions][])
  test(`a sealed run does not open for ${claim}; that is said, and nothing runs`, async () => {
    const it = await sealed({
      options: { principal: 'ann', threadId: 't', context: { tenant_id: 'a' } },
    })
    const result = await it.open(changed)
    assert.deepEqual([it.ran, result.pending, result.stop], [[], [], 'end'])
    const [fact] = it.sealedFacts.filter((f) => f.type === 'PausedRunIgnored')
    assert.match(String(fact?.reason), /not sealed here/)
  })

test('a sealed run does not open for another agent, changed, or made up', async () => {
  const it = await sealed({ options: { principal: 'ann' } })
  const { paused = '' } = it.first
  const other = await it.open({}, paused, { ...it.agent, name: 'other' })
  assert.deepEqual([other.pending, it.ran], [[], []])
  for (const text of [
    '',
    'r',
    'x',
    'ref:',
    'ref:nope',
    paused.slice(0, -1),
    `o${paused.slice(1)}`,
    paused.replace(/.$/, '!'),
  ])
    assert.deepEqual([(await it.open({}, text)).pending, it.ran], [[], []], text)
})

test('a run that waits for others opens for others of the same thread', async () => {
  const options = { principal: 'ann', threadId: 't', context: { user_id: 'u1', tenant_id: 'a' } }
  const it = await sealed({ options, more: { approver: 'other' } })
  assert.match(it.first.paused ?? '', /^o/)
  const bob = { principal: 'bob', context: { user_id: 'u2', tenant_id: 'a' } }
  assert.equal((await it.open({ ...bob, threadId: 'u' })).pending.length, 0)
  assert.deepEqual(told(await it.open(bob)), ['dropped a'])
})

test('runBytes: beyond it the sealed run is kept in a durable store, for a day after the expiry', async (t) => {
  t.mock.timers.enable({ apis: ['Date'], now: 1_800_000_000_000 })
  const { first } = await sealed()
  const size = first.paused?.length ?? 0
  for (const [runBytes, kept] of [
    [size - 40, true],
    [size + 40, false],
  ] as const) {
    const store = faultyStore()
    const ttls: [string, number | undefined][] = []
    const { set } = store
    store.set = (key, value, ttl) => {
      ttls.push([key, ttl])
      return set(key, value, ttl)
    }
    const it = await sealed({ options: { store, limits: { runBytes } } })
    const { paused = '' } = it.first
    assert.equal(/^ref:[\w-]{22}$/.test(paused), kept)
    assert.deepEqual(ttls, kept ? [[`run:${paused.slice(4)}`, 3_600_000 + 86_400_000]] : [])
    assert.notEqual(paused.slice(4), it.first.runId)
    assert.deepEqual(told(await it.open()), ['dropped a'])
    if (!kept) continue
    const other = await it.open({ threadId: 'other' })
    assert.deepEqual([other.pending, other.executed[0]?.outcome], [[], 'rejected'])
  }
  const memory = await sealed({ options: { limits: { runBytes: size - 40 } } })
  assert.equal('paused' in memory.first, false)
})

test('a run exactly as long as runBytes still travels', async () => {
  const fixed = { runId: 'r', messages: [], calls: [], kept: [], rejected: {} }
  assert.ok(fixed)
  const it = await sealed()
  const size = it.first.paused?.length ?? 0
  const again = await run(
    it.agent,
    { messages: [], paused: it.first.state },
    { ...it.options, limits: { runBytes: size } },
  )
  assert.equal(again.paused?.length, size)
  const less = await run(
    it.agent,
    { messages: [], paused: it.first.state },
    { ...it.options, limits: { runBytes: size - 1 } },
  )
  assert.equal(less.paused, undefined)
})

test('a store that is down cannot open a kept run: nothing runs, and the run says so', async () => {
  const store = faultyStore()
  const it = await sealed({ options: { store, limits: { runBytes: 10 } } })
  store.fault = { kind: 'down', keys: (key) => key.startsWith('run:') }
  const result = await it.open()
  assert.deepEqual([result.error?.code, it.ran], ['store_unavailable', []])
  store.heal()
  assert.deepEqual(told(await it.open()), ['dropped a'])
})

test('nothing paused, null or empty, is a thread like any other', async () => {
  for (const paused of [undefined, null, ''] as never[]) {
    const { agent, provider } = agentOf(['ok'])
    await run(agent, { messages: 'x', paused })
    assert.deepEqual(asked(provider.requests[0]), ['user: x'])
  }
})

test('a state that a caller made, its call pending without a proof, is asked and never just run', async () => {
  const { agent } = agentOf(['ok'], [gated('drop')])
  const state = newState([say('x')])
  const id = `tc_${randomBytes(12).toString('base64url')}`
  const part = { type: 'tool_call' as const, id, name: 'drop', input: {} }
  state.messages.push({ role: 'assistant', parts: [part], results: [] })
  for (const status of ['pending', 'approved', 'executing'] as const) {
    state.calls = [{ id, name: 'drop', input: {}, requiresApproval: false, status }]
    const first = await run(agent, { messages: [], paused: state })
    assert.deepEqual([first.stop, first.executed, first.pending.length], ['approval', [], 1])
    assert.equal(first.state.calls.length, 1)
  }
})

// ------------------------------------------------------------ events of a stream

test('the events of a whole conversation, in order and to the letter', async () => {
  const provider = scripted([
    {
      pieces: ['I ', 'will'],
      calls: [{ name: 'look' }, { name: 'drop' }, { name: 'shell', input: { command: 'ls' } }],
    },
    { pieces: ['done', '.'] },
  ])
  const shell = tool({
    name: 'shell',
    description: 'Shell',
    type: 'command',
    input: '{ command: string }',
    execute: ({ command }, ctx) => {
      ctx.update('listing', { of: command })
      return { stdout: 'a.txt\n', exitCode: 0 }
    },
  })
  const agent: Agent = { name: 'ops', provider, tools: [free('look'), gated('drop'), shell] }
  const first = await events(agent, { messages: 'x' })
  const executed = first.result.executed
  const [drop, ls] = first.result.pending
  assert.deepEqual(first.list, [
    { type: 'text_delta', text: 'I ' },
    { type: 'text_delta', text: 'will' },
    { type: 'intermittent_update', text: 'Calling tool: look', content: {} },
    { type: 'executed_tool_calls', executedToolCalls: executed },
    { type: 'commands', commands: [ls] },
    { type: 'approvals', approvals: [drop, ls] },
    { type: 'tool_calls', toolCalls: [drop] },
    { type: 'done', result: first.result },
  ])
  const decisions = [
    { ...approve(drop?.id ?? ''), lists: ['approvals', 'tool_calls'] as never },
    { ...approve(ls?.id ?? ''), lists: ['cmds'] as never },
  ]
  const second = await events(agent, { messages: [], decisions, paused: first.result.state })
  const [one, two] = second.result.executed
  assert.deepEqual(second.list, [
    { type: 'intermittent_update', text: 'listing', content: { of: 'ls' } },
    { type: 'executed_tool_calls', executedToolCalls: [one] },
    { type: 'executed_commands', executedCmds: [two] },
    { type: 'executed_approvals', executedApprovals: [one] },
    { type: 'text_delta', text: 'done' },
    { type: 'text_delta', text: '.' },
    { type: 'done', result: second.result },
  ])
  assert.deepEqual([two?.output, second.result.text], ['a.txt', 'done.'])
})

test('only what waits is said where nothing else is', async () => {
  const { agent } = agentOf([calls('drop')], [gated('drop')])
  const { list, result } = await events(agent, { messages: 'x' })
  assert.equal(result.text, 'I need your approval to execute the following tools:')
  assert.deepEqual(
    list.map((e) => e.type),
    ['text_delta', 'approvals', 'tool_calls', 'done'],
  )
})

test('Thinking comes before every model call but a request’s first', async () => {
  const { agent } = agentOf([calls('look'), calls('look'), 'ok'], [free('look')])
  const { list } = await events(agent, { messages: 'x' })
  const said = list.flatMap((e) => (e.type === 'intermittent_update' ? [e.text] : []))
  assert.deepEqual(said, ['Calling tool: look', 'Thinking...', 'Calling tool: look', 'Thinking...'])
})

test('statusText has other words, the usual ones, or none', async () => {
  const saying = async (statusText: Agent['statusText']) => {
    const { agent } = agentOf([calls(['look', { a: 1 }]), 'ok'], [free('look')], { statusText })
    const { list } = await events(agent, { messages: 'x' })
    return list.flatMap((e) => (e.type === 'intermittent_update' ? [e.text] : []))
  }
  assert.deepEqual(await saying(false), [])
  assert.deepEqual(await saying(() => false), [])
  assert.deepEqual(await saying(() => undefined), ['Calling tool: look', 'Thinking...'])
  assert.deepEqual(
    await saying((s) => (s.type === 'tool' ? `${s.name} ${JSON.stringify(s.input)}` : 'Hm')),
    ['look {"a":1}', 'Hm'],
  )
})

test('what a tool reports is delivered while it runs, masked, and not after the end', async () => {
  let late: (() => void) | undefined
  const seen: string[] = []
  const look = free('look', (_, ctx) => {
    ctx.update('token sesame-open', { token: ['sesame-open'] })
    seen.push('ran')
    late = () => ctx.update('late')
  })
  const { agent } = agentOf([calls('look'), 'ok'], [look], { statusText: false })
  const list: RunEvent[] = []
  await run(
    agent,
    { messages: 'x' },
    {
      context: { duplo_token: 'sesame-open' },
      emit: (event) => {
        list.push(event)
        seen.push(event.type)
      },
    },
  )
  late?.()
  assert.deepEqual(seen, [
    'intermittent_update',
    'ran',
    'executed_tool_calls',
    'text_delta',
    'done',
  ])
  assert.deepEqual(list[0], {
    type: 'intermittent_update',
    text: 'token [redacted]',
    content: { token: ['[redacted]'] },
  })
})

test('turns of text are kept apart', async () => {
  const { agent } = agentOf(
    [{ text: 'One.', ...calls('look') }, { pieces: ['Two', '.'] }],
    [free('look')],
  )
  const { list, result } = await events(agent, { messages: 'x' })
  const said = list.flatMap((e) => (e.type === 'text_delta' ? [e.text] : []))
  assert.deepEqual([said, result.text], [['One.', '\n\nTwo', '.'], 'One.\n\nTwo.'])
})

test('without emit the model is not asked to stream', async () => {
  const streams: boolean[] = []
  const { agent } = agentOf((_, { onDelta }) => {
    streams.push(onDelta !== undefined)
    return 'ok'
  })
  await run(agent, { messages: 'x' })
  await events(agent, { messages: 'x' })
  assert.deepEqual(streams, [false, true])
})

test('a slow reader holds the model', async () => {
  let reading = 0
  const { agent } = agentOf([Array(20).fill('x')])
  await run(
    agent,
    { messages: 'x' },
    {
      emit: async (event) => {
        if (event.type !== 'text_delta') return
        assert.equal(reading++, 0)
        await new Promise(setImmediate)
        reading--
      },
    },
  )
})

test('a reader that fails ends the run, is told no more, and what ran is in the result', async () => {
  for (const at of ['intermittent_update', 'executed_tool_calls', 'text_delta', 'done']) {
    let told_ = 0
    const { agent } = agentOf([calls('look', 'look', 'look'), 'ok'], [free('look')])
    const result = await run(
      agent,
      { messages: 'x' },
      {
        emit: (event) => {
          if (event.type !== at) return
          told_++
          throw new Error('EPIPE')
        },
      },
    )
    assert.equal(told_, 1)
    if (at === 'done') assert.equal(result.stop, 'end')
    else
      assert.deepEqual(
        [result.stop, result.error?.code, `${result.error?.cause}`],
        ['error', 'internal_error', 'Error: EPIPE'],
      )
    assert.equal(result.executed.length, at === 'intermittent_update' ? 0 : 3)
  }
})

// ------------------------------------------------------------ stream()

test('stream says what emit says, the result last', async () => {
  const { agent } = agentOf([{ pieces: ['a', 'b'], ...calls('look') }, 'c'], [free('look')])
  const list: RunEvent[] = []
  for await (const event of stream(agent, { messages: 'x' })) list.push(event)
  const { agent: again } = agentOf([{ pieces: ['a', 'b'], ...calls('look') }, 'c'], [free('look')])
  const { types } = await events(again, { messages: 'x' })
  assert.deepEqual(
    list.map((e) => e.type),
    types,
  )
  const last = list.at(-1)
  assert.equal(last?.type === 'done' && last.result.text, 'ab\n\nc')
})

test('stream and emit may be used together', async () => {
  const { agent } = agentOf([['a', 'b']])
  const both: string[] = []
  const emit = (event: RunEvent) => void both.push(`emit ${event.type}`)
  for await (const event of stream(agent, { messages: 'x' }, { emit })) both.push(event.type)
  assert.deepEqual(both.filter((t) => t.startsWith('emit')).length, both.length / 2)
})

test('leaving a stream early aborts the model; an approved tool finishes and is recorded', async () => {
  let aborted = false
  const { agent } = agentOf([
    (_, { signal, onDelta }) => {
      signal?.addEventListener('abort', () => {
        aborted = true
      })
      void onDelta?.({ type: 'text_delta', text: 'x' })
      return never()
    },
  ])
  for await (const _ of stream(agent, { messages: 'x' })) break
  await new Promise(setImmediate)
  assert.equal(aborted, true)
  const gate = Promise.withResolvers<string>()
  const store = memoryStore()
  const drop = gated('drop', (_, ctx) => {
    ctx.update('begun')
    return gate.promise.then((x) => `${x} ${ctx.signal.aborted}`)
  })
  const other = agentOf([calls('drop'), 'ok', 'ok'], [drop])
  const first = await run(other.agent, { messages: 'x' }, { store })
  const input = { messages: [], decisions: approveAll(first), paused: first.state }
  for await (const event of stream(other.agent, input, { store }))
    if (event.type === 'intermittent_update') break
  gate.resolve('done')
  await new Promise(setImmediate)
  const again = await resume(other.agent, first, approveAll(first), { store })
  assert.deepEqual([outputs(again), again.executed[0]?.replayed], [['done false'], true])
  assert.equal(other.provider.requests.length, 2, 'the model was asked by the second request alone')
})

test('a caller’s signal ends a stream with an error event', async () => {
  const controller = new AbortController()
  const { agent } = agentOf([
    ['a'],
    () => {
      controller.abort(new DcafError('deadline', 'too long'))
      return never()
    },
  ])
  const first: RunEvent[] = []
  for await (const event of stream(agent, { messages: 'x' }, { signal: controller.signal }))
    first.push(event)
  assert.equal(first.at(-1)?.type, 'done')
  const list: RunEvent[] = []
  for await (const event of stream(agent, { messages: 'x' }, { signal: controller.signal }))
    list.push(event)
  const last = list.at(-1)
  assert.deepEqual(
    [list.length, last?.type === 'error' && [last.error.code, last.result.stop]],
    [1, ['deadline', 'error']],
  )
  for await (const event of stream(agent, { messages: 'x' }, { signal: AbortSignal.abort() }))
    assert.deepEqual(event.type === 'error' && event.result.stop, 'aborted')
})

// ------------------------------------------------------------ interceptors of requests

test('request interceptors run in order, for every model call, and may wait', async () => {
  const order: string[] = []
  const at =
    (name: string): RequestInterceptor =>
    async (request) => {
      await new Promise(setImmediate)
      order.push(`${name}: ${request.latestUserMessage}`)
    }
  const { agent } = agentOf([calls('look'), 'ok'], [free('look')], {
    requestInterceptors: [at('a'), at('b')],
  })
  await run(agent, { messages: 'x' })
  assert.deepEqual(order, ['a: x', 'b: x', 'a: x', 'b: x'])
})

for (const [way, make] of [
  ['changed', (text: string): RequestInterceptor => (request) => {
    request.addSystemContext(text)
    request.messages.push(say(text))
    request.tools.pop()
  }],
  ['returned', (text: string): RequestInterceptor => (request) => ({
    system: [...request.system, { text }],
    messages: [...request.messages, say(text)],
    tools: request.tools.slice(0, -1),
  })],
  ['returned as a copy, later', (text: string): RequestInterceptor => async (request) => ({
    ...request,
    system: [...request.system, { text }],
    messages: [...request.messages, say(text)],
    tools: request.tools.slice(0, -1),
  })],
  ['changed and returned', (text: string): RequestInterceptor => (request) => {
    request.addSystemContext(text)
    request.messages = [...request.messages, say(text)]
    request.tools.pop()
    return request
  }],
] as [string, (text: string) => RequestInterceptor][]) // biome-ignore format: a table
  test(`what request interceptors ${way} is sent once, and never enters the state`, async () => {
    const { agent, provider } = agentOf([calls('look'), 'ok'], [free('look'), free('other')], {
      system: 'S',
      requestInterceptors: [make('EXTRA')],
    })
    const result = await run(agent, { messages: 'x' })
    for (const request of provider.requests) {
      assert.deepEqual(request.system, [{ text: 'S' }, { text: 'EXTRA' }])
      assert.deepEqual(texts(request.messages.at(-1)), ['EXTRA'])
      assert.deepEqual(
        request.tools.map((t) => t.name),
        ['look'],
      )
    }
    assert.equal(result.state.messages.length, 3)
    assert.doesNotMatch(JSON.stringify(result.state), /EXTRA/)
  })

test('the latest user message may be replaced, by setting or returning it', async () => {
  for (const interceptor of [
    (request) => {
      request.latestUserMessage = request.latestUserMessage.replace('4111', '****')
    },
    (request) => ({ ...request, latestUserMessage: 'card ****' }),
    () => ({ latestUserMessage: 'card ****' }),
  ] as RequestInterceptor[]) {
    const file = { type: 'file' as const, mediaType: 'image/png', data: 'AA==' }
    const { agent, provider } = agentOf(['ok'], [], { requestInterceptors: [interceptor] })
    const message: Message = { role: 'user', parts: [{ type: 'text', text: 'card 4111' }, file] }
    const { state } = await run(agent, { messages: [say('a'), assistant('b'), message] })
    assert.deepEqual(provider.requests[0]?.messages.at(-1)?.parts, [
      { type: 'text', text: 'card ****' },
      file,
    ])
    assert.deepEqual(texts(state.messages[2])[0], 'card 4111')
  }
})

test('without a user message there is none to read or to set', async () => {
  const seen: string[] = []
  const interceptor: RequestInterceptor = (request) => {
    request.messages = request.messages.filter((m) => m.role === 'assistant')
    seen.push(request.latestUserMessage)
    request.latestUserMessage = 'x'
    assert.equal(request.messages.length, 0)
    request.messages = [say('y')]
  }
  const { agent } = agentOf(['ok'], [], { requestInterceptors: [interceptor] })
  await run(agent, { messages: 'x' })
  assert.deepEqual(seen, [''])
})

test('an interceptor changes neither the tools of other runs nor the context of this one', async () => {
  const seen: unknown[] = []
  const look = free('look', (_, ctx) => {
    seen.push(ctx.platform.tenant_id, ctx.platform.scopes)
  })
  const interceptor: RequestInterceptor = ({ tools, context }) => {
    const [spec] = tools
    if (spec) spec.description += '!'
    if (spec) spec.input.properties = { a: {} }
    context.tenant_id = 'other'
    context.scopes?.push({ name: 'more' })
  }
  const { agent, provider } = agentOf(() => calls('look'), [look], {
    requestInterceptors: [interceptor],
    limits: { turns: 2 },
  })
  await run(
    agent,
    { messages: 'x' },
    { context: { tenant_id: 'a', scopes: [{ name: 's' }], clock: () => 1 } },
  )
  await run(agent, { messages: 'x' }, { context: { tenant_id: 'a', scopes: [{ name: 's' }] } })
  assert.equal(seen[2], 'a')
  assert.deepEqual(seen.slice(-2), ['a', [{ name: 's' }]])
  assert.deepEqual(
    new Set(provider.requests.map((r) => r.tools[0]?.description)),
    new Set(['look!']),
  )
})

test('a session that an interceptor changes is the session', async () => {
  const { agent } = agentOf([calls('look'), 'ok'], [free('look')], {
    requestInterceptors: [
      ({ session }: { session: Session }) =>
        session.set('asked', session.get('asked', { type: 'number' } as const, 0) + 1),
    ],
    responseInterceptors: [
      ({ session }: { session: Session }) => void session.set('answered', true),
    ],
  })
  const { session } = await run(agent, { messages: 'x' })
  assert.deepEqual(session.toJSON(), { asked: 2, answered: true })
})

test('a tool that an interceptor takes away is not run, though the model asks for it', async () => {
  const { agent } = agentOf([calls('look'), 'ok'], [free('look', () => assert.fail('ran'))], {
    requestInterceptors: [
      (request: { tools: unknown[] }) => {
        request.tools = []
      },
    ],
  })
  assert.deepEqual(told(await run(agent, { messages: 'x' })), ['The tool look is not offered now.'])
})

test('what an interceptor writes of a secret is masked', async () => {
  const { agent, provider } = agentOf(['ok'], [], {
    requestInterceptors: [
      ({ context, messages, addSystemContext }: Json) => {
        messages.push(say(`m ${context.duplo_token}`))
        assert.equal(typeof addSystemContext, 'function')
      },
      (request: { addSystemContext(t: string): void; context: Json }) =>
        request.addSystemContext(`s ${request.context.duplo_token}`),
    ],
  })
  await run(agent, { messages: 'x' }, { context: { duplo_token: 'sesame-open' } })
  assert.deepEqual(provider.requests[0]?.system, [{ text: 's [redacted]' }])
  assert.deepEqual(texts(provider.requests[0]?.messages.at(-1)), ['m [redacted]'])
})

for (const hook of ['requestInterceptors', 'responseInterceptors'])
  test(`an InterceptorError of ${hook} is the answer, its code and details are facts`, async () => {
    const facts: RunFact[] = []
    const { agent, provider } = agentOf([calls('look'), 'ok'], [free('look')], {
      onEvent: (fact: RunFact) => facts.push(fact),
      [hook]: [
        async () => {
          throw new InterceptorError({
            userMessage: 'Not today.',
            code: 'curfew',
            details: { a: 1 },
          })
        },
      ],
    })
    const { result, list } = await events(agent, { messages: 'x' })
    assert.deepEqual(
      [result.text, result.stop, result.error],
      ['Not today.', 'intercepted', undefined],
    )
    assert.deepEqual(list, [
      { type: 'text_delta', text: 'Not today.' },
      { type: 'done', result },
    ])
    assert.equal(provider.requests.length, hook === 'requestInterceptors' ? 0 : 1)
    const last = facts.at(-1)
    assert.deepEqual(
      [last?.type, last?.stop, last?.code, last?.details],
      ['RunFinished', 'intercepted', 'curfew', { a: 1 }],
    )
    assert.doesNotMatch(JSON.stringify(list), /curfew/)
  })

test('an interceptor that throws anything else is an error of the run', async () => {
  const { agent } = agentOf(['ok'], [], {
    requestInterceptors: [() => Promise.reject(new Error('kaput'))],
  })
  const { stop, error } = await run(agent, { messages: 'x' })
  assert.deepEqual([stop, error?.code], ['error', 'internal_error'])
})

test('an InterceptorError has documented properties', () => {
  const error = new InterceptorError({ userMessage: 'No' })
  assert.deepEqual(
    [error.name, error.code, error.userMessage, error.reason, error.details],
    ['InterceptorError', 'intercepted', 'No', 'intercepted', undefined],
  )
})

// ------------------------------------------------------------ interceptors of responses

for (const [way, interceptor] of [
  ['changed', (r: Json) => { r.text = r.text.toUpperCase() }],
  ['returned', (r: Json) => ({ text: r.text.toUpperCase() })],
  ['returned as a copy, later', async (r: Json) => ({ ...r, text: r.text.toUpperCase() })],
] as const) // biome-ignore format: a table
  test(`what response interceptors ${way} is stored and sent, and text is held until then`, async () => {
    for (const streams of [true, false]) {
      const { agent } = agentOf([['a', 'b']], [], {
        responseInterceptors: [interceptor, (r: Json) => ({ text: `${r.text}!` })],
      })
      const { list, result } = streams
        ? await events(agent, { messages: 'x' })
        : { list: [], result: await run(agent, { messages: 'x' }) }
      assert.deepEqual([result.text, texts(result.state.messages[1])], ['AB!', ['AB!']])
      if (streams)
        assert.deepEqual(
          list.map((e) => (e as Json).text),
          ['AB!', undefined],
        )
    }
  })

test('a response interceptor sees text, calls, usage, raw and session', async () => {
  const seen: Json[] = []
  const usage = { inputTokens: 1, outputTokens: 2, cacheReadTokens: 0, cacheWriteTokens: 0 }
  const { agent } = agentOf(
    [{ text: 'a', ...calls(['look', { n: 1 }]), usage, raw: { id: 7 } }, 'ok'],
    [free('look')],
    {
      responseInterceptors: [(response: Json) => void seen.push({ ...response })],
    },
  )
  const { executed } = await run(agent, { messages: 'x' }, { session: { n: 1 } })
  const [{ session, ...first } = {}] = seen as Json[]
  assert.deepEqual(first, {
    text: 'a',
    toolCalls: [{ id: executed[0]?.id, name: 'look', input: { n: 1 } }],
    usage,
    raw: { id: 7 },
  })
  assert.equal(session.get('n'), 1)
})

test('calls that a response interceptor changes, takes away or adds are judged as they are then', async () => {
  const ran: unknown[] = []
  const tools = [free('look', (input) => ran.push(input)), gated('drop')]
  const change = (toolCalls: unknown) => ({
    responseInterceptors: [(r: Json) => (r.toolCalls.length ? { toolCalls } : undefined)],
  })
  const renamed = agentOf([calls('drop'), 'ok'], tools, {
    responseInterceptors: [
      (r: Json) => {
        for (const call of r.toolCalls)
          Object.assign(call, { name: 'look', input: { n: 1, none: undefined } })
      },
    ],
  })
  await run(renamed.agent, { messages: 'x' })
  assert.deepEqual(ran, [{ n: 1 }])
  const gone = agentOf([calls('drop')], tools, change([]))
  const result = await run(gone.agent, { messages: 'x' })
  assert.deepEqual([result.stop, result.pending, result.state.messages.length], ['end', [], 1])
  const added = agentOf(
    [calls('look'), 'ok'],
    tools,
    change([
      { name: 'drop', input: {} },
      { id: 'x', name: 'look', input: { n: 2 } },
    ]),
  )
  const first = await run(added.agent, { messages: 'x' })
  assert.deepEqual([first.pending.map((p) => p.name), ran.at(-1)], [['drop'], { n: 2 }])
  assert.match(idOf(first), /^tc_/)
})

test('parts that are no text stay where they are', async () => {
  const { agent } = agentOf(
    [{ opaque: { s: 1 }, text: 'a', ...calls('look') }, 'ok'],
    [free('look')],
    {
      responseInterceptors: [(r: Json) => ({ text: r.text && `${r.text}!` })],
    },
  )
  const { state } = await run(agent, { messages: 'x' })
  assert.deepEqual(
    state.messages[1]?.parts.map((p) => (p.type === 'text' ? p.text : p.type)),
    ['opaque', 'a!', 'tool_call'],
  )
  const silent = agentOf([{ text: 'a', ...calls('look') }, 'ok'], [free('look')], {
    responseInterceptors: [() => ({ text: '' })],
  })
  const muted = await run(silent.agent, { messages: 'x' })
  assert.deepEqual(
    [muted.text, muted.state.messages[1]?.parts.map((p) => p.type)],
    ['', ['tool_call']],
  )
})

test('text that an interceptor adds to a reply without any is sent', async () => {
  const { agent } = agentOf([calls('look'), 'ok'], [free('look')], {
    responseInterceptors: [(r: Json) => ({ text: r.text || 'Looking.' })],
  })
  assert.equal((await run(agent, { messages: 'x' })).text, 'Looking.\n\nok')
})

test('an onDelta keeps a stream live: pieces go out as they come, changed, and are stored so', async () => {
  const order: string[] = []
  let held = ''
  const onDelta = async (text: string, { done }: { done: boolean }) => {
    order.push(`${text}${done ? '.' : ''}`)
    held += text
    const out = done ? held : held.slice(0, -1)
    held = done ? '' : held.slice(-1)
    return out.toUpperCase()
  }
  const { agent } = agentOf(
    [
      (_, { onDelta }) => {
        void onDelta
        return ['ab', 'cd']
      },
    ],
    [],
    { responseInterceptors: [{ onDelta }, { onDelta: (text: string) => text.replace('A', '_') }] },
  )
  const { list, result } = await events(agent, { messages: 'x' })
  assert.deepEqual(order, ['ab', 'cd', '.'])
  assert.deepEqual(
    list.slice(0, -1).map((e) => (e as Json).text),
    ['_', 'BC', 'D'],
  )
  assert.deepEqual([result.text, texts(result.state.messages[1])], ['_BCD', ['_BCD']])
  order.length = 0
  const plain = await run(
    agentOf([['ab', 'cd']], [], { responseInterceptors: [{ onDelta }] }).agent,
    { messages: 'x' },
  )
  assert.deepEqual([plain.text, order], ['ABCD', ['abcd', '.']])
})

test('an onDelta beside a function is held too; its onResponse sees the whole and keeps its this', async () => {
  const seen: string[] = []
  const filter = {
    sign: '~',
    onDelta(text: string) {
      return text && this.sign + text
    },
    onResponse(response: Json) {
      seen.push(this.sign + response.text)
    },
  }
  const { agent } = agentOf([['a', 'b']], [], {
    responseInterceptors: [filter, (r: Json) => ({ text: `${r.text}!` })],
  })
  const { list } = await events(agent, { messages: 'x' })
  assert.deepEqual([(list[0] as Json).text, seen], ['~ab!', ['~~ab']])
  const live = agentOf([['a', 'b']], [], { responseInterceptors: [filter] })
  const { list: pieces } = await events(live.agent, { messages: 'x' })
  assert.deepEqual(
    [pieces.slice(0, -1).map((e) => (e as Json).text), seen[1]],
    [['~a', '~b'], '~~a~b'],
  )
})

test('a provider that streams nothing is said in one piece', async () => {
  const mute: Provider = {
    name: 'm',
    model: 'm',
    render: () => ({}),
    complete: async () => ({
      parts: [{ type: 'text', text: 'whole' }],
      finishReason: 'stop',
      usage: { inputTokens: 0, outputTokens: 0, cacheReadTokens: 0, cacheWriteTokens: 0 },
    }),
  }
  for (const responseInterceptors of [[], [{ onDelta: (t: string) => t }], [() => undefined]]) {
    const { list, result } = await events(
      { name: 'a', provider: mute, responseInterceptors },
      { messages: 'x' },
    )
    assert.deepEqual(
      [list[0], list.length, result.text],
      [{ type: 'text_delta', text: 'whole' }, 2, 'whole'],
    )
  }
})

// ------------------------------------------------------------ facts

test('every fact has its head, and those of the table have what the table says', async () => {
  const facts: Json[] = []
  const usage = { inputTokens: 1, outputTokens: 1, cacheReadTokens: 0, cacheWriteTokens: 0 }
  const provider = scripted([
    { ...calls('look', 'boom', 'drop', 'other'), usage, raw: { requestId: 'req-1' } },
    'ok',
  ])
  const agent: Agent = {
    name: 'ops',
    provider,
    tools: [
      free('look', () => 'sesame-open'),
      free('boom', () => {
        throw new Error('sesame-open')
      }),
      gated('drop'),
      gated('other'),
    ],
    onEvent: [(fact) => facts.push(fact), () => {}],
  }
  const context = {
    user_id: 'u',
    session_id: 's',
    run_id: 'r',
    request_id: 'q',
    tenant_id: 't',
    duplo_token: 'sesame-open',
  }
  const options = { context, threadId: 'th', principal: 'ann', limits: { parallel: 1 } }
  const { result: first } = await events(agent, { messages: 'x' }, options)
  const [drop, other] = first.pending.map((p) => p.id) as [string, string]
  await resume(agent, first, [approve(drop), reject(other, 'no'), approve('odd')], options)
  for (const fact of facts) {
    const { type, timestamp, runId, threadId, agent, user_id, session_id, run_id, request_id } =
      fact
    assert.match(type, /^[A-Z][A-Za-z]+(ed|Started)$/)
    assert.equal(new Date(timestamp).toISOString(), timestamp)
    assert.deepEqual(
      [runId, threadId, agent, user_id, session_id, run_id, request_id],
      ['r', 'th', 'ops', 'u', 's', 'r', 'q'],
    )
    assert.equal('tenant_id' in fact, false)
  }
  assert.doesNotMatch(JSON.stringify(facts), /sesame/)
  assert.deepEqual(
    facts.map((f) => f.type),
    [
      'ConversationStarted', 'ModelCalled', 'ToolExecuted', 'ToolExecutionFailed', 'ApprovalRequested', 'RunFinished',
      'ToolCallApproved', 'ToolExecuted', 'ToolCallRejected', 'ToolCallRefused', 'ModelCalled', 'RunFinished',
    ],
  ) // biome-ignore format: two requests
  const [, model, ran, failed, requested, , approved, , rejected, refused] = facts as [
    Json,
    ...Json[],
  ]
  assert.deepEqual(
    [model?.usage, model?.finishReason, model?.requestId, model?.provider, model?.model],
    [usage, 'tool_call', 'req-1', 'scripted', 'scripted'],
  )
  assert.equal(typeof model?.durationMs, 'number')
  assert.equal(model?.body().messages[0].role, 'user')
  const { durationMs, ...look } = ran as Json
  assert.equal(typeof durationMs, 'number')
  assert.deepEqual(
    [look.callId, look.name, look.input, look.output, look.outcome],
    [first.executed[0]?.id, 'look', {}, '[redacted]', 'ok'],
  )
  assert.deepEqual(
    [failed?.error, failed?.outcome, 'output' in (failed ?? {})],
    ['Error executing boom: [redacted]', 'error', false],
  )
  assert.deepEqual(requested?.calls, first.pending)
  assert.deepEqual(
    [approved?.callId, approved?.name, approved?.approvedBy],
    [drop.split('.')[0], 'drop', 'ann'],
  )
  assert.deepEqual(
    [rejected?.callId, rejected?.name, rejected?.rejectedBy, rejected?.reason],
    [other.split('.')[0], 'other', 'ann', 'no'],
  )
  assert.match(refused?.reason, /could not be verified/)
})

test('a first token’s time is measured where text streams', async () => {
  const facts: Json[] = []
  const { agent } = agentOf([['a'], 'b'], [], { onEvent: (f: Json) => facts.push(f) })
  await events(agent, { messages: 'x' })
  await run(agent, { messages: 'x' })
  const [streamed, whole] = facts.filter((f) => f.type === 'ModelCalled')
  assert.ok(streamed?.firstTokenMs <= streamed?.durationMs)
  assert.equal('firstTokenMs' in (whole ?? {}), false)
})

test('a failed model call is a fact with its code', async () => {
  const facts: Json[] = []
  const { agent } = agentOf([new DcafError('provider_overloaded', 'slow down')], [], {
    onEvent: (f: Json) => facts.push(f),
  })
  await run(agent, { messages: 'x' })
  const fact = facts.find((f) => f.type === 'ModelCalled')
  assert.deepEqual([fact?.error, fact?.usage], ['provider_overloaded', undefined])
})

test('the body of a model call is what was sent, masked', async () => {
  let body: unknown
  const { agent } = agentOf(['ok'], [], {
    systemContext: () => 'note',
    onEvent: (fact: Json) => {
      if (fact.type === 'ModelCalled') body = fact.body()
    },
  })
  await run(
    agent,
    { messages: 'my token is sesame-open' },
    { context: { duplo_token: 'sesame-open' } },
  )
  assert.deepEqual((body as ModelRequest).messages, [say('my token is [redacted]')])
})

test('facts are immutable, all the way down', async () => {
  const { agent } = agentOf([calls('look', 'drop')], [free('look'), gated('drop')], {
    onEvent: [
      (fact: Json) => {
        const walk = (value: unknown): void => {
          if (typeof value !== 'object' || value === null) return
          assert.ok(Object.isFrozen(value), fact.type)
          Object.values(value).forEach(walk)
        }
        walk(fact)
      },
    ],
  })
  const result = await run(agent, { messages: 'x' })
  assert.equal(Object.isFrozen(result.usage), false)
  assert.equal(Object.isFrozen(result.pending[0]), false)
})

test('a listener that throws, rejects or hangs hurts nobody', async () => {
  const seen: string[] = []
  const listeners = [
    () => {
      throw new Error('kaput')
    },
    () => Promise.reject(new Error('kaput')),
    never,
    (fact: RunFact) => void seen.push(fact.type),
  ]
  const { agent } = agentOf(['ok'], [], { onEvent: listeners })
  const { text } = await run(agent, { messages: 'x' }, { onEvent: listeners[0] as never })
  assert.deepEqual([text, seen], ['ok', ['ConversationStarted', 'ModelCalled', 'RunFinished']])
})

test('a conversation starts with its first user message alone', async () => {
  const started = async (messages: ChatMessage[]) => {
    const facts: string[] = []
    const { agent } = agentOf(['ok'], [], { onEvent: (f: RunFact) => facts.push(f.type) })
    await run(agent, { messages })
    return facts.includes('ConversationStarted')
  }
  assert.equal(await started([user('a')]), true)
  assert.equal(await started([assistant('hi'), user('a')]), true)
  assert.equal(await started([user('a'), assistant('b'), user('c')]), false)
})

// ------------------------------------------------------------ what a tool gets

test('a tool gets the context, the session, a signal and the id of its call', async () => {
  let got: Json = {}
  const look = free('look', (_, ctx) => {
    got = { ...ctx }
  })
  const { agent } = agentOf([calls('look'), 'ok'], [look])
  const context = { tenant_name: 'acme', duplo_token: 'sesame-open', own: { deep: [1] } }
  const { executed } = await run(agent, { messages: 'x' }, { context, session: { n: 1 } })
  assert.deepEqual({ ...got.platform }, context)
  assert.equal(JSON.stringify(got.platform), '{}')
  assert.equal(got.session.get('n'), 1)
  assert.equal(got.signal.aborted, false)
  assert.equal(got.callId, executed[0]?.id)
})

test('an automatic call stops with the run, and its run says what it was', async () => {
  const controller = new AbortController()
  let seen = false
  const look = free('look', (_, { signal }) => {
    signal.addEventListener('abort', () => {
      seen = true
    })
    controller.abort(new DcafError('deadline', 'too long'))
    return never()
  })
  const { agent } = agentOf([calls('look'), 'ok'], [look])
  const result = await run(agent, { messages: 'x' }, { signal: controller.signal })
  assert.deepEqual([result.stop, result.error?.code, seen], ['error', 'deadline', true])
  assert.deepEqual(outputs(result), ['Error executing look: look was stopped before it finished'])
})

test('many calls at once leave no listener on a signal', async (t: TestContext) => {
  const warnings: Error[] = []
  const onWarning = (warning: Error) => warnings.push(warning)
  process.on('warning', onWarning)
  t.after(() => process.off('warning', onWarning))
  const { agent } = agentOf(
    [calls(...Array(40).fill('look')), 'ok'],
    [free('look', () => new Promise((r) => setImmediate(r, '')))],
  )
  const { signal } = new AbortController()
  const result = await run(agent, { messages: 'x' }, { signal, limits: { parallel: 40 } })
  await new Promise(setImmediate)
  assert.deepEqual([result.executed.length, warnings], [40, []])
})

test('checkAgent accepts what run accepts', () => {
  checkAgent({ name: 'a', provider: scripted([]), tools: [dropTool([])], limits: {} })
  assert.throws(() => checkAgent(undefined as never), /an agent needs a name/)
})

test('a result may be resumed twice: the second time it is told what the first did', async () => {
  const it = desk()
  const first: RunResult = await it.propose()
  const [one, two_] = await Promise.all([
    it.decide(first, approveAll(first)),
    it.decide(first, approveAll(first)),
  ])
  assert.deepEqual([outputs(one), outputs(two_), it.ran.length], [['dropped a'], ['dropped a'], 1])
})

test('a run that ends at a limit without a word says so', async () => {
  const look = tool({ name: 'look', description: 'd', input: '{}', execute: () => 'x' })
  const provider = scripted(() => ({ calls: [{ name: 'look' }] }))
  const result = await run(
    { name: 'a', provider, tools: [look], limits: { turns: 2 } },
    { messages: 'go' },
  )
  assert.deepEqual(
    [result.stop, result.text],
    ['limit', 'I stopped before I was done: this run reached a limit.'],
  )
})
