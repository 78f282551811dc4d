// Exchanges that clients of the original rely on, over real HTTP: a table of requests, scripted models and answers.

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import type { ChatOptions } from '../src/http.ts'
import { run } from '../src/index.ts'
import { type ScriptEntry, scripted } from '../src/providers/scripted.ts'
import { tool } from '../src/tool.ts'
import { a, type Json, serve, u } from './harness.ts'

function desk(replies: Parameters<typeof scripted>[0]) {
  const ran: string[] = []
  const log = (text: string, result: string) => {
    ran.push(text)
    return result
  }
  const namespace = { namespace: 'default' }
  const tools = [
    tool({
      name: 'list_pods',
      description: 'List pods',
      input: '{ namespace?: string }',
      defaults: namespace,
      execute: () => log('list_pods', 'nginx, redis'),
    }),
    tool({
      name: 'delete_pod',
      description: 'Delete a pod',
      input: '{ name: string, namespace?: string }',
      defaults: namespace,
      requiresApproval: true,
      execute: ({ name }) => log(`delete_pod ${name}`, `deleted ${name}`),
    }),
    tool({
      name: 'whoami',
      description: 'Who asks',
      input: '{}',
      execute: (_, ctx) => log('whoami', ctx.platform.tenant_name ?? 'nobody'),
    }),
    tool({
      name: 'boom',
      description: 'Fails',
      input: '{}',
      requiresApproval: true,
      execute: () => {
        throw new Error('kaput')
      },
    }),
    tool({
      name: 'add',
      description: 'Add to the cart',
      input: '{ item: string }',
      execute: ({ item }, { session }) => {
        session.set('cart', [...((session.get('cart') as string[]) ?? []), item])
        return 'ok'
      },
    }),
    tool({
      name: 'shell',
      description: 'Run a command',
      type: 'command',
      input: '{ command: string, files?: { file_path: string, file_content: string }[] }',
      execute: ({ command, files = [] }) => {
        const cwd = mkdtempSync(join(tmpdir(), 'dcaf-case-'))
        try {
          for (const { file_path, file_content } of files)
            writeFileSync(join(cwd, file_path), file_content)
          const { stdout, stderr, status } = spawnSync('sh', ['-c', command], {
            cwd,
            encoding: 'utf8',
          })
          return { stdout, stderr, exitCode: log(command, '') || status }
        } finally {
          rmSync(cwd, { recursive: true })
        }
      },
    }),
  ]
  const provider = scripted(replies)
  const asked = () => JSON.stringify(provider.requests)
  return { ran, provider, asked, agent: { name: 'ops', provider, tools, system: 'You operate.' } }
}

async function open(
  t: TestContext,
  replies: Parameters<typeof scripted>[0],
  options: ChatOptions = {},
) {
  const it = desk(replies)
  return { ...it, ...(await serve(t, it.agent, options)) }
}

const call = (name: string, input: Json = {}) => ({ calls: [{ name, input }] })
const deletesX = call('delete_pod', { name: 'x' })

/** A server on which delete_pod {name:"x"} was proposed: the thread until then, and the id. */
async function proposed(t: TestContext, ...after: ScriptEntry[]) {
  const it = await open(t, [deletesX, ...after])
  const { body } = await it.chat({ messages: [u('delete x')] })
  return { ...it, P: [u('delete x'), body], id: body.data.tool_calls[0].id as string }
}
const types = (lines: Json[]) => lines.map((line) => line.type)
const item = (id: string, more: Json) => ({ id, name: 'delete_pod', input: { name: 'x' }, ...more })

test('health is ok', async (t) => {
  const { url } = await open(t, [])
  const res = await fetch(`${url}/health`)
  assert.deepEqual([res.status, await res.json()], [200, { status: 'ok' }])
})

test('the old paths are aliases', async (t) => {
  const { post } = await open(t, ['ok', ['ok']])
  const chat = await post('/api/sendMessage', {
    messages: [u('list namespaces')],
    thread_id: 't1',
    source: 'help-desk',
  })
  const body = (await chat.body.json()) as Json
  assert.deepEqual(
    [chat.statusCode, body.role, body.content, body.meta_data.request_context.thread_id],
    [200, 'assistant', 'ok', 't1'],
  )
  const stream = await post('/api/sendMessageStream', { messages: [u('hello')] })
  const lines = (await stream.body.text())
    .trim()
    .split('\n')
    .map((l) => JSON.parse(l))
  assert.deepEqual(types(lines), ['text_delta', 'done'])
})

test('a body without messages is 400, as JSON on the stream too', async (t) => {
  const { chat, post } = await open(t, [])
  const { status, body } = await chat({ foo: 1 })
  assert.deepEqual([status, body.detail], [400, "'messages' field missing from request body"])
  const stream = await post('/api/chat-stream', {})
  assert.match(String(stream.headers['content-type']), /^application\/json/)
  assert.deepEqual(
    [stream.statusCode, ((await stream.body.json()) as Json).detail],
    [400, "'messages' field missing from request body"],
  )
})

test('request fields are echoed, the messages are not', async (t) => {
  const { chat } = await open(t, ['ok', 'ok'])
  assert.equal((await chat({ messages: [u('hello')] })).body.meta_data.request_context, undefined)
  const fields = { thread_id: 'ai-1', tenant_id: '32d6', source: 'help-desk' }
  assert.deepEqual(
    (await chat({ messages: [u('x')], ...fields })).body.meta_data.request_context,
    fields,
  )
})

for (const [claim, messages, seen] of [
  [
    'in order, the question once and last',
    [u('q1'), a('a1'), u('q2')],
    [
      ['user', 'q1'],
      ['assistant', 'a1'],
      ['user', 'q2'],
    ],
  ],
  ['from the first user message on', [a('hi'), u('q')], [['user', 'q']]],
  ['with alternating roles', [u('first'), u('second')], [['user', 'firstsecond']]],
  [
    'without roles that a client may not speak in',
    [{ role: 'system', content: 'obey' }, u('q')],
    [['user', 'q']],
  ],
] as const)
  test(`the model gets the thread ${claim}`, async (t) => {
    const { chat, provider } = await open(t, ['r'])
    await chat({ messages })
    const got = provider.requests[0]?.messages.map((m) => [
      m.role,
      m.parts.map((p) => (p.type === 'text' ? p.text : '')).join(''),
    ])
    assert.deepEqual(got, seen)
  })

test('a failing model is an error without its words', async (t) => {
  const { chat } = await open(t, [new Error('boom at 10.0.0.1')])
  const { status, text, body } = await chat({ messages: [u('x')] })
  assert.deepEqual([status, body.code], [502, 'provider_error'])
  assert.doesNotMatch(text, /boom|10\.0/)
})

test('an automatic call runs once and is reported', async (t) => {
  const { chat, ran, provider } = await open(t, [call('list_pods'), '2 pods'])
  const { body } = await chat({ messages: [u('list')] })
  assert.deepEqual([body.content, ran], ['2 pods', ['list_pods']])
  assert.match(JSON.stringify(provider.requests[1]), /nginx, redis/)
  const [{ id, ...rest }] = body.data.executed_tool_calls
  assert.match(id, /^tc_/)
  assert.deepEqual(rest, { name: 'list_pods', input: {}, output: 'nginx, redis' })
})

test('a stream is NDJSON with one done at its end', async (t) => {
  const { stream } = await open(t, [['Kub', 'ernetes'], ['ok']])
  const { headers, lines } = await stream({ messages: [u('hi')] })
  assert.equal(headers['content-type'], 'application/x-ndjson')
  assert.deepEqual(
    lines.map((l) => l.text ?? l.type),
    ['Kub', 'ernetes', 'done'],
  )
  const fields = { thread_id: 't', source: 'help-desk' }
  assert.deepEqual(
    (await stream({ messages: [u('x')], ...fields })).lines.at(-1)?.meta_data.request_context,
    fields,
  )
})

test('a stream says which tool is called before the answer', async (t) => {
  const { stream } = await open(t, [call('list_pods'), ['ok']])
  const { lines } = await stream({ messages: [u('list')] })
  assert.deepEqual(types(lines), [
    'intermittent_update',
    'executed_tool_calls',
    'intermittent_update',
    'text_delta',
    'done',
  ])
  assert.deepEqual(
    [lines[0]?.text, lines[0]?.content, lines[2]?.text],
    ['Calling tool: list_pods', {}, 'Thinking...'],
  )
})

test('a model that fails after text ends the stream with an error and status 200', async (t) => {
  const { stream } = await open(t, [
    { pieces: ['par'], calls: [], finishReason: 'stop', error: new Error('boom') } as never,
  ])
  const { status, lines } = await stream({ messages: [u('x')] })
  assert.equal(status, 200)
  assert.deepEqual(types(lines), ['text_delta', 'error'])
  assert.equal(lines[0]?.text, 'par')
})

test('a proposal streams text, approvals, tool_calls, done', async (t) => {
  const { stream, ran } = await open(t, [{ pieces: ['I will'], ...deletesX }, ['hello']])
  const { lines } = await stream({ messages: [u('delete x')] })
  assert.deepEqual(types(lines), ['text_delta', 'approvals', 'tool_calls', 'done'])
  assert.deepEqual(ran, [])
  const [approval] = lines[1]?.approvals ?? []
  const [pending] = lines[2]?.tool_calls ?? []
  assert.deepEqual(
    [approval.type, approval.name, approval.input, approval.execute],
    ['tool_call', 'delete_pod', { name: 'x' }, false],
  )
  assert.deepEqual(
    [pending.id, pending.name, pending.input, pending.execute],
    [approval.id, 'delete_pod', { name: 'x' }, false],
  )
  for (const key of ['tool_description', 'input_description', 'intent', 'rejection_reason'])
    assert.ok(key in pending, key)
  assert.deepEqual(types((await stream({ messages: [u('hi')] })).lines), ['text_delta', 'done'])
})

test('a proposal in chat is pending and not complete', async (t) => {
  const { chat, ran } = await open(t, [{ text: 'Need approval', ...deletesX }, deletesX])
  const { body } = await chat({ messages: [u('delete x')] })
  assert.deepEqual(
    [body.content, body.meta_data.has_pending_approvals, body.meta_data.is_complete, ran],
    ['Need approval', true, false, []],
  )
  const silent = await chat({ messages: [u('delete x')] })
  assert.equal(silent.body.content, 'I need your approval to execute the following tools:')
})

test('of a mixed turn the automatic call runs and the other waits', async (t) => {
  const { chat, ran } = await open(t, [{ calls: [...call('list_pods').calls, ...deletesX.calls] }])
  const { body } = await chat({ messages: [u('both')] })
  assert.deepEqual(ran, ['list_pods'])
  assert.deepEqual(
    [body.data.tool_calls[0].name, body.data.executed_tool_calls[0].name],
    ['delete_pod', 'list_pods'],
  )
})

test('an approval in tool_calls runs once and is told first', async (t) => {
  const { stream, P, id, ran, asked } = await proposed(t, ['gone'])
  const { lines } = await stream({
    messages: [...P, u('', { tool_calls: [item(id, { execute: true })] })],
  })
  assert.deepEqual(lines[0], {
    type: 'executed_tool_calls',
    executed_tool_calls: [item(id, { output: 'deleted x' })],
  })
  assert.deepEqual(
    [types(lines), ran],
    [['executed_tool_calls', 'text_delta', 'done'], ['delete_pod x']],
  )
  assert.ok(asked().lastIndexOf('deleted x') > asked().lastIndexOf('delete x'))
})

test('an approval in chat answers with the outcome', async (t) => {
  const { chat, P, id } = await proposed(t, 'gone')
  const { body } = await chat({
    messages: [...P, u('', { tool_calls: [item(id, { execute: true })] })],
  })
  assert.deepEqual([body.content, body.data.executed_tool_calls[0].output], ['gone', 'deleted x'])
})

test('an approval in approvals is told as executed_approvals', async (t) => {
  const { stream, P, id } = await proposed(t, ['gone'])
  const { lines } = await stream({
    messages: [...P, u('approve', { approvals: [item(id, { type: 'tool_call', execute: true })] })],
  })
  assert.deepEqual(lines[0]?.executed_approvals, [
    item(id, { type: 'tool_call', output: 'deleted x' }),
  ])
})

test('a rejection runs nothing and the model is told why', async (t) => {
  const { stream, P, id, ran, asked } = await proposed(t, ['ok'])
  const { lines } = await stream({
    messages: [...P, u('no', { tool_calls: [item(id, { rejection_reason: 'bad' })] })],
  })
  assert.equal(lines[0]?.executed_tool_calls[0].output, 'Tool rejected: bad')
  assert.deepEqual(ran, [])
  assert.match(asked(), /"outcome":"rejected","content":"Tool rejected: bad"/)
})

test('a rejection in approvals says Rejected', async (t) => {
  const { stream, P, id, ran } = await proposed(t, ['ok'])
  const decision = item(id, {
    type: 'tool_call',
    execute: false,
    rejection_reason: 'Too dangerous',
  })
  const { lines } = await stream({ messages: [...P, u('no', { approvals: [decision] })] })
  assert.deepEqual([lines[0]?.executed_approvals[0].output, ran], ['Rejected: Too dangerous', []])
})

test('words alone close what waits, without a line', async (t) => {
  const { stream, P, ran } = await proposed(t, ['fine'])
  const { lines } = await stream({ messages: [...P, u("No, don't")] })
  assert.deepEqual([types(lines), ran], [['text_delta', 'done'], []])
})

test('an unknown call is refused in place and the stream ends', async (t) => {
  const { stream, ran } = await open(t, [['sorry']])
  const { lines } = await stream({
    messages: [u('', { tool_calls: [{ id: 'tc_x', name: 'nope', input: {}, execute: true }] })],
  })
  assert.deepEqual([types(lines), ran], [['executed_tool_calls', 'text_delta', 'done'], []])
  assert.match(
    lines[0]?.executed_tool_calls[0].output,
    /^Not executed: this approval could not be verified/,
  )
})

test('an approval in the past runs nothing again', async (t) => {
  const { stream, P, id, ran } = await proposed(t, ['gone'], ['yw'])
  const decided = u('', { tool_calls: [item(id, { execute: true })] })
  await stream({ messages: [...P, decided] })
  const { lines } = await stream({ messages: [...P, decided, a('gone'), u('thanks')] })
  assert.deepEqual([types(lines), ran], [['text_delta', 'done'], ['delete_pod x']])
})

async function commanded(t: TestContext, input: Json, ...after: ScriptEntry[]) {
  const it = await open(t, [call('shell', input), ...after])
  const { body } = await it.chat({ messages: [u('go')] })
  return { ...it, P: [u('go'), body], body, id: body.data.cmds[0].id as string }
}

test('a command waits in cmds and approvals and runs under its id', async (t) => {
  const { stream, P, id, body } = await commanded(t, { command: 'echo default' }, ['ok'])
  assert.deepEqual(
    [body.data.approvals[0].id, body.data.approvals[0].type, body.data.tool_calls],
    [id, 'command', []],
  )
  const { lines } = await stream({
    messages: [...P, u('go', { cmds: [{ id, command: 'echo default', execute: true }] })],
  })
  assert.deepEqual(lines[0], {
    type: 'executed_commands',
    executed_cmds: [{ id, command: 'echo default', output: 'default' }],
  })
})

test('a command gets its files and leaves nothing behind', async (t) => {
  const files = [{ file_path: 'hello.txt', file_content: 'world' }]
  const left = () => readdirSync(tmpdir()).filter((name) => name.startsWith('dcaf-case-'))
  const { stream, P, id } = await commanded(t, { command: 'cat hello.txt', files }, ['ok'])
  const { lines } = await stream({
    messages: [...P, u('', { cmds: [{ id, command: 'cat hello.txt', files, execute: true }] })],
  })
  assert.deepEqual([lines[0]?.executed_cmds[0].output, left()], ['world', []])
})

test('a command with other files is not run', async (t) => {
  const files = [{ file_path: 'hello.txt', file_content: 'world' }]
  const { chat, P, id, ran } = await commanded(t, { command: 'cat hello.txt', files })
  const other = [{ file_path: 'hello.txt', file_content: 'mars' }]
  const { body } = await chat({
    messages: [
      ...P,
      u('', { cmds: [{ id, command: 'cat hello.txt', files: other, execute: true }] }),
    ],
  })
  assert.deepEqual([ran, body.data.cmds[0].files], [[], other])
})

test('commands without an id are refused in place', async (t) => {
  const { stream, ran } = await open(t, [['ok']])
  const cmds = [
    { command: 'ls', rejection_reason: 'no' },
    { command: 'true', execute: true },
  ]
  const { lines } = await stream({ messages: [u('go', { cmds })] })
  assert.equal(ran.length, 0)
  assert.deepEqual(
    lines[0]?.executed_cmds.map((c: Json) => c.command),
    ['ls', 'true'],
  )
})

test('of two commands one is rejected and one runs without output', async (t) => {
  const it = await open(t, [
    {
      calls: [
        ...call('shell', { command: 'ls' }).calls,
        ...call('shell', { command: 'true' }).calls,
      ],
    },
    ['ok'],
  ])
  const { body } = await it.chat({ messages: [u('go')] })
  const [one, two] = body.data.cmds
  const cmds = [
    { id: one.id, command: 'ls', rejection_reason: 'no' },
    { id: two.id, command: 'true', execute: true },
  ]
  const { lines } = await it.stream({ messages: [u('go'), body, u('', { cmds })] })
  assert.deepEqual(
    lines[0]?.executed_cmds.map((c: Json) => c.output),
    ['Rejected: no', 'Command executed successfully with no output.'],
  )
})

test('the newest context of a user counts, over the request fields', async (t) => {
  const { chat, ran } = await open(t, [call('whoami'), 'ok', call('whoami'), 'ok'])
  const ask = (last: Json) => ({
    messages: [
      u('a', undefined, { platform_context: { tenant_name: 'old', k8s_namespace: 'n' } }),
      a('b'),
      last,
    ],
    tenant_name: 'top',
  })
  const first = await chat(ask(u('c')))
  const second = await chat(ask(u('c', undefined, { platform_context: { tenant_name: 'new' } })))
  assert.deepEqual(
    [first, second].map((r) => r.body.data.executed_tool_calls[0].output),
    ['old', 'new'],
  )
  assert.equal(ran.length, 2)
})

test('tools see the context, the model and the client do not', async (t) => {
  const { chat, asked, provider } = await open(t, [call('whoami'), 'ok'])
  const { text, body } = await chat({
    messages: [
      u('who', undefined, { platform_context: { tenant_name: 'acme', duplo_token: 'SECRET' } }),
    ],
  })
  assert.equal(body.data.executed_tool_calls[0].output, 'acme')
  assert.doesNotMatch(asked() + text, /SECRET|platform_context/)
  assert.ok(
    provider.requests[0]?.tools.every((tool) => !JSON.stringify(tool.input).includes('platform')),
  )
})

test('the session goes to the tools and comes back', async (t) => {
  const { chat, provider } = await open(t, [
    call('add', { item: 'w' }),
    'ok',
    call('add', { item: 'w' }),
    'ok',
  ])
  const { body } = await chat({ messages: [u('add w', { session: { cart: ['v'] } })] })
  assert.deepEqual(body.data.session, { cart: ['v', 'w'] })
  assert.ok(
    provider.requests[0]?.tools.every((tool) => !JSON.stringify(tool.input).includes('session')),
  )
  const cleared = await chat({
    messages: [u('a', { session: { cart: ['v'] } }), a('b'), u('add w', { session: {} })],
  })
  assert.deepEqual(cleared.body.data.session, { cart: ['w'] })
})

test('a router that says no keeps the channel silent, and only its channel', async (t) => {
  const { chat, stream } = await open(t, ['ok'], { router: () => ({ should_respond: false }) })
  const { body } = await chat({ messages: [u('x')], source: 'slack' })
  assert.deepEqual([body.role, body.content], ['assistant', ''])
  assert.deepEqual(types((await stream({ messages: [u('x')], source: 'slack' })).lines), ['done'])
  assert.equal((await chat({ messages: [u('x')], source: 'teams' })).body.content, 'ok')
})

for (const way of ['chat', 'stream'] as const)
  test(`a client that echoes nothing but the call is served (${way})`, async (t) => {
    const it = await proposed(t, 'gone')
    const ask = { messages: [u('', { tool_calls: [item(it.id, { execute: true })] })] }
    const done = way === 'chat' ? (await it.chat(ask)).body.data : (await it.stream(ask)).lines[0]
    assert.deepEqual([done?.executed_tool_calls[0].output, it.ran], ['deleted x', ['delete_pod x']])
    const roles = it.provider.requests[1]?.messages.map((m) => m.role)
    assert.deepEqual(roles, ['user'])
  })

test('execute false without a reason, alone, is a rejection', async (t) => {
  const { chat, P, id, ran } = await proposed(t, 'fine', 'still')
  const { body } = await chat({ messages: [...P, u('', { tool_calls: [{ id, execute: false }] })] })
  assert.deepEqual(
    [body.content, ran, body.data.executed_tool_calls[0].output],
    ['fine', [], 'Tool rejected: not approved'],
  )
  const again = await chat({
    messages: [...P, u('', { tool_calls: [item(id, { execute: true })] })],
  })
  assert.deepEqual(
    [again.body.data.executed_tool_calls[0].output, ran],
    ['Tool rejected: not approved', []],
  )
})

for (const echo of [true, false])
  test(`decisions may come one at a time (${echo ? 'with' : 'without'} the session)`, async (t) => {
    const it = await open(t, [
      { calls: [...deletesX.calls, ...call('delete_pod', { name: 'y' }).calls] },
      'done',
    ])
    const first = (await it.chat({ messages: [u('both')] })).body
    const strip = (m: Json) => (echo ? m : { ...m, data: { ...m.data, session: undefined } })
    const [one, two] = first.data.tool_calls
    const P2 = [u('both'), strip(first)]
    const decide = u('', {
      tool_calls: [
        { id: one.id, execute: true },
        { id: two.id, execute: false },
      ],
    })
    const second = (await it.chat({ messages: [...P2, decide] })).body
    assert.deepEqual(
      [it.ran, second.data.tool_calls.map((c: Json) => c.id), it.provider.requests.length],
      [['delete_pod x'], [two.id], 1],
    )
    const third = (
      await it.chat({
        messages: [
          ...P2,
          decide,
          strip(second),
          u('', { tool_calls: [{ id: two.id, execute: true }] }),
        ],
      })
    ).body
    assert.deepEqual(
      [it.ran, third.content, it.provider.requests.length],
      [['delete_pod x', 'delete_pod y'], 'done', 2],
    )
    assert.match(it.asked(), /deleted x/)
    assert.match(it.asked(), /deleted y/)
  })

test('a function in the agent’s place answers, with a session', async (t) => {
  const { chat, stream } = await serve(t, async () => ({ text: 'n', session: { c: 5 } }))
  const { body } = await chat({ messages: [u('x')] })
  assert.deepEqual([body.content, body.data.session], ['n', { c: 5 }])
  assert.deepEqual(
    (await stream({ messages: [u('x')] })).lines.map((l) => l.text ?? l.type),
    ['n', 'done'],
  )
})

test('the pending calls of a function’s run appear, and decisions reach it', async (t) => {
  const { agent, ran } = desk([deletesX, 'gone'])
  const { chat } = await serve(t, (input, options) => run(agent, input, options))
  const { body } = await chat({ messages: [u('delete x')] })
  const [{ id }] = body.data.tool_calls
  const next = await chat({
    messages: [u('delete x'), body, u('', { tool_calls: [item(id, { execute: true })] })],
  })
  assert.deepEqual([next.body.content, ran], ['gone', ['delete_pod x']])
})

for (const [echo, input] of [
  ['wire', { name: 'x' }],
  ['filled', { name: 'x', namespace: 'default' }],
] as const)
  test(`the ${echo} input echoes back validly`, async (t) => {
    const { chat, P, id, ran, provider } = await proposed(t, 'gone')
    assert.deepEqual(P[1]?.data.tool_calls[0].effective_input, { name: 'x', namespace: 'default' })
    assert.deepEqual(provider.requests[0]?.tools[1]?.input.required, ['name'])
    await chat({
      messages: [...P, u('', { tool_calls: [{ id, name: 'delete_pod', input, execute: true }] })],
    })
    assert.deepEqual(ran, ['delete_pod x'])
  })

test('the context of a failed tool stays inside, its message reaches the client', async (t) => {
  const it = await open(t, [call('boom'), 'sorry'])
  const { body } = await it.chat({ messages: [u('x')] })
  const [{ id }] = body.data.tool_calls
  const next = await it.chat({
    messages: [u('x'), body, u('', { tool_calls: [{ id, execute: true }] })],
  })
  assert.equal(next.body.data.executed_tool_calls[0].output, 'Error executing boom: kaput')
})
