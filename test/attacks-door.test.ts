// Ways in that were tried at the edges of the core: policies, masking, the door and what stands around it.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import type { IncomingMessage } from 'node:http'
import { connect } from 'node:net'
import { PassThrough, Writable } from 'node:stream'
import { test } from 'node:test'
import type { AuditLine } from '../src/audit.ts'
import { type McpClient, mcpTools } from '../src/bridges/mcp.ts'
import { callsOf } from '../src/cli/audit.ts'
import chat from '../src/cli/chat.ts'
import { plain } from '../src/cli/plain.ts'
import type { Terminal } from '../src/cli.ts'
import { withIdempotency } from '../src/door.ts'
import { chatHandler } from '../src/http.ts'
import { type Agent, run } from '../src/index.ts'
import { masker, secretsOf, unsound } from '../src/mask.ts'
import { matching } from '../src/policies.ts'
import { scripted } from '../src/providers/scripted.ts'
import { memoryStore } from '../src/store.ts'
import { tool } from '../src/tool.ts'
import { type Json, serve, serveHandler, u } from './harness.ts'

test('a quoted option is still an option: quotes and comments are never run unasked', () => {
  const policy = matching({ allow: ['kubectl get *', /kubectl logs .+/] })
  for (const hidden of ['"--raw=/x"', "'--kubeconfig=/tmp/x'", '""--raw=/x', 'a#b', '\\--x', '`x`'])
    for (const verb of ['get', 'logs'])
      assert.notEqual(policy({ command: `kubectl ${verb} ${hidden}` }), 'allow', hidden)
  assert.equal(policy({ command: 'kubectl get pods' }), 'allow')
})

const mcp = (listTools: McpClient['listTools']): McpClient => ({
  listTools,
  callTool: async () => ({}),
})
const server = mcp(async () => ({
  tools: [{ name: 'drop', description: 'Drop', inputSchema: { type: 'object' } }],
}))

test('whatever define leaves of it, a tool that is not read-only asks', async () => {
  for (const requiresApproval of [undefined, false, null, 0]) {
    const [drop] = await mcpTools(server, { define: () => ({ requiresApproval }) as never })
    assert.equal(drop?.requiresApproval, true)
  }
})

test('a server whose list of tools goes round in circles, or never ends, is an error', async () => {
  let page = 0
  for (const nextCursor of [() => 'same', () => `${page++}`])
    await assert.rejects(
      mcpTools(mcp(async () => ({ tools: [], nextCursor: nextCursor() }))),
      /does not end/,
    )
})

test('who is no text is nobody', async (t) => {
  for (const who of [null, '', false, 0, { id: 'mallory' }, ['a']]) {
    const agent = { name: 'a', provider: scripted(() => 'hello') }
    const { chat } = await serve(t, agent, { authenticate: () => who as never })
    assert.equal((await chat({ messages: [u('x')] })).status, 401, JSON.stringify(who))
  }
})

test('a sessionKey that is no text gives nobody the session of another', async (t) => {
  for (const key of [Promise.resolve('x'), undefined, '', 5]) {
    const agent = { name: 'a', provider: scripted(() => 'hello') }
    const options = { session: 'server', store: memoryStore(), sessionKey: () => key } as never
    const { chat } = await serve(t, agent, options)
    assert.equal((await chat({ messages: [u('x')], thread_id: '1' })).status, 500)
  }
})

test('what a run says after the end of its stream is not sent', async (t) => {
  const slow: Agent = { name: 'slow', provider: scripted(() => 'late') }
  const late = Promise.withResolvers<void>()
  const { stream } = await serve(t, async (input, options) => {
    const emit = options.emit
    setImmediate(async () => {
      await run(slow, input, { ...options, ...(emit && { emit }) })
      late.resolve()
    })
    return { text: 'quick', session: { pad: '\u0085'.repeat(1_000_000) } }
  })
  const { lines } = await stream({ messages: [u('x')] })
  await late.promise
  assert.deepEqual(
    lines.map(({ type }) => type),
    ['text_delta', 'done'],
  )
})

test('a word that is refused takes nothing back in the audit', () => {
  const line = (type: string, more: Json) =>
    ({ type, time: 't', callId: 'tc_1', name: 'drop', ...more }) as unknown as AuditLine
  const [call] = callsOf([
    line('ToolCallApproved', { approvedBy: 'ann' }),
    line('ToolExecuted', { outcome: 'ok' }),
    line('ToolCallRefused', { reason: 'forged' }),
  ])
  assert.deepEqual(
    [call?.decision, call?.by, call?.reason, call?.outcome],
    ['approved', 'ann', undefined, 'ok'],
  )
})

test('what a trail or a service says stays on its line and has no colour', async (t) => {
  assert.equal(plain('a\u001b[2K\nb\u202e\r', ''), 'a\\u{1b}[2K\\u{a}b\\u{202e}\\u{d}')
  const evil = tool({
    name: 'drop',
    description: 'x',
    input: { type: 'object' },
    requiresApproval: true,
    execute: () => 'x',
  })
  const provider = scripted(() => ({ calls: [{ name: 'drop', input: {} }] }))
  const { server } = await serve(t, { name: 'a', provider, tools: [evil] })
  const [listener] = server.listeners('request') as ((...all: unknown[]) => void)[]
  server.removeAllListeners('request').on('request', (req, res) => {
    const { write, end } = res
    const spoil = (text: unknown) =>
      `${text}`.replaceAll('"drop"', '"drop\\u001b[2K\\n"').replaceAll('Z"', 'Z\\u001b[2K"')
    res.write = (text: unknown) => Reflect.apply(write, res, [spoil(text)])
    res.end = (text: unknown = '') => Reflect.apply(end, res, [spoil(text)])
    listener?.(req, res)
  })
  const { port } = server.address() as { port: number }
  const stdin = Object.assign(new PassThrough(), { isTTY: true })
  let out = ''
  const stdout = new Writable({
    write(chunk, _, done) {
      const text = `${chunk}`
      out += text
      if (text.endsWith('> ')) stdin.write(out.includes('Run it?') ? '/quit\n' : 'go\n')
      if (text.endsWith('] ')) stdin.write('s\n')
      done()
    },
  })
  const terminal = { stdin, stdout, stderr: stdout, env: {} } as unknown as Terminal
  await chat.run({ positionals: [`http://127.0.0.1:${port}`], values: {} }, terminal)
  assert.match(out, /drop\\u\{1b\}\[2K\\u\{a\} {2}x/)
  assert.match(out, /until .*Z\\u\{1b\}/)
  assert.ok(!out.includes('\u001b'))
})

test('an answer kept under a key is for whom the handler knows as the same, and for nobody else', async (t) => {
  const answers = { run: 0 }
  const provider = scripted(() => `private answer ${++answers.run}`)
  const known = ['alice', 'bob']
  const authenticate = ({ headers }: IncomingMessage) =>
    known.find((name) => name === headers['x-user'])
  const inner = chatHandler({ name: 'a', provider }, { authenticate })
  const { post } = await serveHandler(t, withIdempotency(inner, { store: memoryStore() }))
  const ask = async (name?: string, type = 'application/json') => {
    const headers = {
      'idempotency-key': 'k',
      'content-type': type,
      ...(name && { 'x-user': name }),
    }
    const res = await post('/api/chat', { messages: [u('x')] }, headers)
    const text = await res.body.text()
    return res.statusCode === 200 ? JSON.parse(text).content : res.statusCode
  }
  assert.equal(await ask('alice'), 'private answer 1')
  assert.equal(await ask('alice'), 'private answer 1')
  assert.equal(await ask('bob'), 'private answer 2')
  assert.equal(await ask(), 401)
  assert.equal(await ask('alice', 'text/plain'), 415)
  known.shift()
  assert.equal(await ask('alice'), 401)
})

test('around a handler that says not who asks, an Idempotency-Key needs principal', () => {
  const handler = async () => false
  assert.throws(() => withIdempotency(handler, { store: memoryStore() }), /needs principal/)
})

for (const kept of [false, true])
  test(`large bodies that do not end keep out no small one, ${kept ? 'with' : 'without'} a key`, async (t) => {
    const limits = { bodiesBytes: 200_000 }
    const chat = chatHandler({ name: 'a', provider: scripted(() => 'hello') }, { limits })
    const { port, post } = await serveHandler(
      t,
      kept ? withIdempotency(chat, { store: memoryStore(), ...limits }) : chat,
    )
    const answers: Promise<unknown>[] = []
    for (let i = 0; i < 4; i++) {
      const key = kept ? `idempotency-key: k${i}\r\n` : ''
      const head = `POST /api/chat HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n${key}`
      const socket = connect(port, '127.0.0.1')
      t.after(() => socket.destroy())
      socket.on('error', () => {})
      answers.push(once(socket, 'data').then(([data]) => assert.match(`${data}`, /^HTTP.1.1 503/)))
      socket.write(`${head}content-length: 200000\r\n\r\n${' '.repeat(199_999)}`)
    }
    await Promise.any(answers) // which of them is a matter of who came first
    const headers: Record<string, string> = kept ? { 'idempotency-key': 'small' } : {}
    assert.equal((await post('/api/chat', { messages: [u('x')] }, headers)).statusCode, 200)
  })

test('masks each of many values that begin alike, overlap or hold each other', () => {
  const values = [
    'aaaa',
    'aaaab',
    'abaaa',
    'aaba',
    'cdef',
    'bcdefg',
    'cdefgh',
    'efghij',
    'e'.repeat(63),
  ]
  const mask = masker(values)
  for (const value of values) assert.equal(mask(`-${value}-`), '-[redacted]-')
  for (let i = 0; i < 500; i++) {
    const text = Array.from({ length: 40 }, () => 'abcdefgh'[Math.floor(Math.random() * 8)]).join(
      '',
    )
    const naive = [...text].map((_, at) =>
      values.some((value) => {
        const from = text.lastIndexOf(value, at)
        return from >= 0 && from + value.length > at
      }),
    )
    const kept = [...text].map((c, at) => (naive[at] ? '\0' : c)).join('')
    assert.equal(mask(text).replaceAll('[redacted]', '\0'), kept.replace(/\0+/g, '\0'), text)
  }
})

test('values that share their beginning cost a long text no look-up for each of their lengths', () => {
  const near = Array.from(
    { length: 990 },
    (_, i) => `aaaa${'bcdefgh'.repeat(9).slice(0, (i % 59) + 1)}${i}`,
  )
  const text = 'a'.repeat(200_000)
  const { slice } = String.prototype
  let slices = 0
  String.prototype.slice = function (...args) {
    slices++
    return slice.apply(this, args)
  }
  try {
    assert.equal(masker(near)(text), text)
  } finally {
    String.prototype.slice = slice
  }
  assert.ok(slices < 220_000, `${slices}`)
})

test('so many characters of secrets and no more', async (t) => {
  const wrong = /over 262144 characters/
  assert.throws(() => secretsOf({ kubeconfig: 'x'.repeat(262_145) }), wrong)
  assert.throws(() => secretsOf({ kubeconfig: btoa('token: abcdefgh\n'.repeat(9_000)) }), wrong)
  assert.equal(secretsOf({ duplo_token: 'x'.repeat(100_000) })[0]?.length, 100_000)
  const { chat } = await serve(t, { name: 'a', provider: scripted(() => 'ok') })
  const { status } = await chat({ messages: [u('x')], kubeconfig: 'x'.repeat(4_000_000) })
  assert.equal(status, 422)
})

test('takes a number for a secret, and what a kubeconfig hands to its command', () => {
  const env =
    'env:\n- name: AWS_SECRET_ACCESS_KEY\n  value: canary-env\n- name: AWS_PROFILE\n  value: production'
  const args =
    'args: ["--token", "canary-arg"]\nargs:\n- --client-secret\n- canary-item\n- --api-key=canary-opt'
  const json = '{"env":[{"name":"X_TOKEN","value":"canary-json"}]}'
  const found = secretsOf({ duplo_token: 90210777, kubeconfig: [env, args, json] })
  for (const value of [
    '90210777',
    'canary-env',
    'canary-arg',
    'canary-item',
    'canary-opt',
    'canary-json',
  ])
    assert.ok(found.includes(value), value)
  assert.ok(!found.includes('production'))
})

test('a number that JSON has no room for is no sound JSON', () => {
  assert.match(unsound(JSON.parse('{"a":[1e999]}'), 9, 9) ?? '', /too large/)
})

test('what secrets() names leaves neither through the session nor through an error in the log', async (t) => {
  const keep = tool({
    name: 'keep',
    description: 'x',
    input: { type: 'object' },
    execute: (_, ctx) => {
      ctx.session.set('k', 'canary-own')
      return 'x'
    },
  })
  const provider = scripted([{ calls: [{ name: 'keep', input: {} }] }, 'ok'])
  const one: Agent = { name: 'a', provider, tools: [keep], secrets: () => ['canary-own'] }
  const { text } = await (await serve(t, one)).chat({ messages: [u('x')] })
  assert.ok(!text.includes('canary') && text.includes('[redacted]'))
  const logged: unknown[] = []
  const systemContext = (): string => {
    throw new Error('vault says canary-own')
  }
  const two = await serve(t, { ...one, systemContext }, { log: (entry) => logged.push(entry) })
  await two.chat({ messages: [u('x')] })
  assert.match(JSON.stringify(logged), /vault says \[redacted\]/)
})

test('what a function in place of an agent says that it ran is masked, and told once', async (t) => {
  const call = {
    id: '1',
    type: 'tool_call',
    name: 't',
    input: {},
    output: 'has canary-token',
    outcome: 'ok' as const,
  }
  const { chat, stream } = await serve(t, async (_, options) => {
    await options.emit?.({ type: 'executed_tool_calls', executedToolCalls: [call] })
    return { text: 'x', executed: [call] } as never
  })
  const body = { messages: [u('x')], duplo_token: 'canary-token' }
  const answers = [(await chat(body)).text, (await stream(body)).text]
  for (const text of answers) assert.equal(text.split('has [redacted]').length, 2, text)
  assert.ok(!answers.join().includes('canary'))
})

test('ids that a thread lists without end are not all looked up', async (t) => {
  const store = memoryStore()
  let reads = 0
  const counted = {
    ...store,
    get: (key: string) => {
      reads++
      return store.get(key)
    },
    set: store.set.bind(store),
    swap: store.swap.bind(store),
    delete: store.delete.bind(store),
  }
  const drop = tool({
    name: 'drop',
    description: 'x',
    input: { type: 'object' },
    requiresApproval: true,
    execute: () => 'x',
  })
  const provider = scripted((_: unknown, __: unknown, i: number) =>
    i === 0 ? { calls: [{ name: 'drop', input: {} }] } : 'ok',
  )
  const { chat } = await serve(
    t,
    { name: 'a', provider, tools: [drop] },
    { store: counted, keys: [btoa('k'.repeat(32))] },
  )
  const { body } = await chat({ messages: [u('x')] })
  const [{ id }] = body.data.tool_calls
  const approvals = Array.from({ length: 3_000 }, (_, i) => ({
    id: id.replace(/^tc_.{8}/, `tc_${String(i).padStart(8, '0')}`),
    name: 'drop',
    input: {},
  }))
  reads = 0
  await chat({
    messages: [u('x'), { role: 'assistant', content: 'x', data: { approvals } }, u('y')],
  })
  assert.ok(reads < 150, `${reads}`)
})

test('what was thrown and cannot be printed is answered too, and takes no place for good', async (t) => {
  const odd = () => {
    throw { [Symbol.for('nodejs.util.inspect.custom')]: odd }
  }
  const thrown = () => ({ [Symbol.for('nodejs.util.inspect.custom')]: odd })
  const provider = { ...scripted(() => ''), complete: () => Promise.reject(thrown()) }
  const entries: Json[] = []
  const log = (entry: Json) => entries.push(entry)
  for (const options of [{ authenticate: () => Promise.reject(thrown()) }, {}]) {
    const { chat, handler } = await serve(t, { name: 'a', provider }, { ...options, log })
    const { status } = await chat({ messages: [u('hi')] })
    assert.ok(status === 500 || status === 502)
    await new Promise(setImmediate)
    assert.equal(handler.active, 0)
  }
  assert.deepEqual(
    entries.filter(({ event }) => event === 'failure').map(({ cause }) => cause),
    ['an unprintable value', 'an unprintable value'],
  )
})
