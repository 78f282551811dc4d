// Whatever bytes come in, the answer is a known one, and nothing is harmed by them.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { type TestContext, test } from 'node:test'
import fc from 'fast-check'
import { request } from 'undici'
import { serverOptions, withHeaderLimit, withHostCheck } from '../../src/door.ts'
import { chatHandler } from '../../src/http.ts'
import { type Json, serve, u } from '../harness.ts'
import { raw } from '../raw.ts'
import { context, keepClean, see } from './clean.ts'
import { desk } from './desk.ts'
import { holds, quantile, times, tried } from './table.ts'

keepClean()

async function open(t: TestContext, options: Parameters<typeof serve>[2] = {}) {
  const it = desk()
  const served = await serve(t, it.agent, { log: see, onEvent: see, logPayloads: true, ...options })
  const propose = async () => {
    const { body } = await served.chat({ messages: [u('drop a')] })
    return body.data.tool_calls[0].id as string
  }
  return { ...it, ...served, propose }
}

const codes = new Set([
  'invalid_json',
  'messages_missing',
  'messages_empty',
  'invalid_request',
  'unsupported_media_type',
  'body_too_large',
])
/** A refusal or an answer, and nothing else; gives its status. */
async function known(res: Awaited<ReturnType<typeof request>>, where: string): Promise<number> {
  const text = see(await res.body.text())
  const { statusCode: status } = res
  if (status !== 200) {
    const body = JSON.parse(text) as Json
    assert.ok([400, 413, 415, 422].includes(status), `${status} ${text}`)
    assert.ok(codes.has(body.code), text)
    assert.equal(body.retryable, false)
    assert.equal(res.headers['x-request-id'], body.request_id)
    return status
  }
  const lines = where.includes('tream')
    ? text
        .trimEnd()
        .split('\n')
        .map((l) => JSON.parse(l))
    : []
  if (lines.length > 0) assert.equal(lines.at(-1).type, 'done', text)
  else assert.equal((JSON.parse(text) as Json).role, 'assistant', text)
  return status
}

// ---------------------------------------------------------------- bodies like ours, but wrong

const json = fc.letrec((tie) => ({
  value: fc.oneof(
    { maxDepth: 3, withCrossShrink: true },
    fc.constantFrom(null, true, false, 0, -1, 1e308, '', 'true', 'tc_x', [], {}),
    fc.string({ unit: 'binary' }),
    fc.integer(),
    fc.array(tie('value'), { maxLength: 3 }),
    fc.dictionary(
      fc.constantFrom('id', 'name', 'input', 'toString', 'toJSON', 'length', 'then', 'x'),
      tie('value'),
      { maxKeys: 3 },
    ),
  ),
})).value

const some = <T>(value: fc.Arbitrary<T>) => fc.option(value, { nil: null, freq: 6 })
const record = (shape: Record<string, fc.Arbitrary<unknown>>) =>
  fc.record(shape, { requiredKeys: [] })
const list = (item: fc.Arbitrary<unknown>) => some(fc.array(item, { maxLength: 3 }))
const text = fc.constantFrom(
  '',
  'hi',
  'say 3',
  'look',
  'drop a',
  'run ls',
  '\u2028 \u0085',
  '\ud800',
)

/** `ids`: real ones among them, so that decisions get as far as they may. */
function bodies(ids: string[]) {
  const id = fc.constantFrom(...ids, 'tc_x', '', 'constructor', 'toolu_1')
  const entry = record({
    id: some(id),
    type: fc.constantFrom('tool_call', 'command'),
    name: some(fc.constantFrom('drop', 'look', 'shell', 'nope', 'toString')),
    input: some(fc.constantFrom({ table: 'a' }, { table: 'b' }, {}, { command: 'ls' })),
    command: some(fc.constantFrom('ls', '')),
    files: list(fc.constant({ file_path: '../x', file_content: '' })),
    execute: some(fc.boolean()),
    rejection_reason: some(fc.constantFrom('', ' ', 'no')),
    edited_input: some(fc.constantFrom({ table: 'z' }, {})),
    path: list(fc.constantFrom('drop', 'child')),
    intent: some(text),
    output: json,
  })
  const data = record({
    tool_calls: list(entry),
    approvals: list(entry),
    cmds: list(entry),
    executed_tool_calls: list(entry),
    executed_approvals: list(entry),
    executed_cmds: list(record({ command: text, output: json })),
    url_configs: list(record({ url: text, description: text })),
    user_file_uploads: list(record({ file_path: text, file_content: text })),
    session: some(fc.dictionary(fc.constantFrom('a', '$run', '$sealed'), json)),
  })
  const message = record({
    role: fc.constantFrom('user', 'user', 'user', 'assistant', 'system', 'tool'),
    content: some(text),
    data: some(data),
    meta_data: some(fc.constant({})),
    timestamp: some(fc.constantFrom('2026-01-01T00:00:00Z', 'yesterday')),
    user: some(record({ name: text, id: text })),
    platform_context: some(
      fc.oneof(
        fc.constant(context),
        record({
          tenant_id: json,
          user_id: json,
          run_id: json,
          request_id: json,
          thread_id: json,
          scopes: json,
          kubeconfig: json,
          kubeconfig_path: json,
          aws_credentials: json,
          duplo_token: json,
        }),
      ),
    ),
    ambient_context: some(fc.constant({ user_terminal_cmds: [] })),
  })
  return fc.record(
    { messages: fc.array(message, { maxLength: 4 }), thread_id: some(text), source: json, x: json },
    { requiredKeys: ['messages'] },
  )
}

type Mutation = { kind: 'drop' | 'retype' | 'double'; at: number; value: unknown }
const mutations = fc.array(
  fc.record({
    kind: fc.constantFrom('drop', 'retype', 'double'),
    at: fc.nat(),
    value: json,
  }) as fc.Arbitrary<Mutation>,
  { maxLength: 3 },
)

/** As JSON text: a field gone, one of another type, one written twice. */
function mutated(body: unknown, changes: Mutation[]): string {
  const copy = JSON.parse(JSON.stringify(body))
  const doubled = new Map<object, [string, unknown]>()
  for (const { kind, at, value } of changes) {
    const places: [Json, string][] = []
    const walk = (node: unknown): void => {
      if (typeof node !== 'object' || node === null) return
      for (const [key, inner] of Object.entries(node)) {
        places.push([node as Json, key])
        walk(inner)
      }
    }
    walk(copy)
    const [parent, key] = places[at % Math.max(1, places.length)] ?? [copy, 'messages']
    if (kind === 'drop') delete parent[key]
    if (kind === 'retype') parent[key] = value
    if (kind === 'double') doubled.set(parent, [key, value])
  }
  const write = (node: unknown): string => {
    if (typeof node !== 'object' || node === null) return JSON.stringify(node) ?? 'null'
    if (Array.isArray(node)) return `[${node.map(write).join(',')}]`
    const entries = Object.entries(node)
    const twice = doubled.get(node)
    if (twice) entries.push(twice)
    return `{${entries.map(([k, v]) => `${JSON.stringify(k)}:${write(v)}`).join(',')}}`
  }
  return write(copy)
}

test('any body of the wire, mutated, is answered or refused, and never a 5xx', async (t) => {
  const it = await open(t)
  const ids = [await it.propose(), await it.propose()]
  const statuses: Record<number, number> = {}
  const took: number[] = []
  const property = fc.asyncProperty(
    bodies(ids),
    mutations,
    fc.constantFrom('/api/chat', '/api/chat-stream'),
    async (body, changes, path) => {
      const started = performance.now()
      const status = await known(await it.post(path, mutated(body, changes)), path)
      took.push(performance.now() - started)
      statuses[status] = (statuses[status] ?? 0) + 1
    },
  )
  await holds(
    t,
    'mutated bodies',
    times(400, 20_000),
    property,
    () => `${JSON.stringify(statuses)}, p99 ${quantile(took, 0.99).toFixed(1)} ms`,
  )
  assert.ok((statuses[200] ?? 0) > 0 && (statuses[422] ?? 0) > 0)
  assert.ok(it.counts.dropped.every((table) => table === 'a'))
  assert.ok(it.counts.dropped.length <= 2)
  assert.equal(it.counts.commands.length, 0)
})

test('random bytes are 400, 415 or 422', async (t) => {
  const it = await open(t)
  const types = ['application/json', 'application/json; charset=utf-8', 'text/plain', '']
  const bytes = fc.oneof(
    fc.uint8Array({ maxLength: 300 }),
    fc.string({ unit: 'binary' }).map((s) => new Uint8Array(Buffer.from(s))),
    fc.json().map((s) => new Uint8Array(Buffer.from(s))),
  )
  const property = fc.asyncProperty(bytes, fc.constantFrom(...types), async (body, type) => {
    const res = await request(`${it.url}/api/chat`, {
      method: 'POST',
      headers: type ? { 'content-type': type } : {},
      body: Buffer.from(body),
    })
    assert.notEqual(await known(res, 'chat'), 200)
  })
  await holds(t, 'random bytes', times(400, 20_000), property)
  assert.equal(it.counts.asked, 0)
})

test('what is no UTF-8, or begins with a byte order mark, is 400', async (t) => {
  const it = await open(t)
  const whole = Buffer.from(JSON.stringify({ messages: [u('MARK')] }))
  const at = whole.indexOf('MARK')
  const sequences = [
    ...Array.from({ length: 128 }, (_, i) => [0x80 + i]), // no character begins, or ends, with these alone
    ...Array.from({ length: 32 }, (_, i) => [0xc0, 0x80 + i]), // overlong
    ...Array.from({ length: 32 }, (_, i) => [0xed, 0xa0 + i, 0x80]), // surrogates
    ...Array.from({ length: 32 }, (_, i) => [0xf4, 0x90 + i, 0x80, 0x80]), // beyond U+10FFFF
    ...Array.from({ length: 32 }, (_, i) => [0xe2, 0x82 + (i % 60)]), // cut
  ]
  const samples = [
    ...sequences.map((bytes) =>
      Buffer.concat([whole.subarray(0, at), Buffer.from(bytes), whole.subarray(at + 4)]),
    ),
    Buffer.concat([Buffer.from([0xef, 0xbb, 0xbf]), whole]),
    Buffer.from(whole.toString(), 'utf16le'),
    Buffer.concat([Buffer.from([0xff, 0xfe]), Buffer.from(whole.toString(), 'utf16le')]),
    Buffer.concat([whole, Buffer.from([0])]),
    Buffer.from(whole.toString().replace('MARK', '\0')),
  ]
  await tried(t, 'not UTF-8', samples.length, async (i) => {
    const res = await request(`${it.url}/api/chat`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: samples[i] as Buffer,
    })
    assert.equal(await known(res, 'chat'), 400)
  })
})

test('keys and names that reach into prototypes find nothing there', async (t) => {
  const it = await open(t)
  const before = Object.getOwnPropertyNames(Object.prototype).sort()
  const names = [
    '__proto__',
    'constructor',
    'prototype',
    'toString',
    'hasOwnProperty',
    '__defineGetter__',
    'valueOf',
  ]
  const escaped = (name: string, i: number) =>
    i % 2
      ? JSON.stringify(name)
      : `"\\u${name.charCodeAt(0).toString(16).padStart(4, '0')}${name.slice(1)}"`
  const shapes: ((key: string, name: string) => string)[] = [
    (key) => `{"messages":[{"role":"user","content":"hi"}],${key}:{"isAdmin":true}}`,
    (key) => `{"messages":[{"role":"user","content":"hi",${key}:{"isAdmin":true}}]}`,
    (key) => `{"messages":[{"role":"user","content":"hi","data":{${key}:{"isAdmin":true}}}]}`,
    (key) =>
      `{"messages":[{"role":"user","content":"hi","data":{"session":{${key}:{"isAdmin":true}}}}]}`,
    (key) =>
      `{"messages":[{"role":"user","content":"hi","platform_context":{${key}:{"isAdmin":true}}}]}`,
    (key) =>
      `{"messages":[{"role":"user","content":"hi","platform_context":{"a":{${key}:{${key}:1}}}}]}`,
    (_, name) =>
      JSON.stringify({
        messages: [u('', { tool_calls: [{ id: name, name, input: {}, execute: true }] })],
      }),
    (_, name) =>
      JSON.stringify({
        messages: [u('', { approvals: [{ id: 'tc_x', name, execute: true, path: [name] }] })],
      }),
    (_, name) => JSON.stringify({ messages: [{ role: name, content: 'hi' }, u('hi')] }),
    (_, name) => JSON.stringify({ messages: [u('hi')], source: name, thread_id: name }),
  ]
  await tried(t, 'reaching into prototypes', times(140, 500), async (i) => {
    const name = names[i % names.length] as string
    const shape = shapes[Math.floor(i / names.length) % shapes.length] as (typeof shapes)[0]
    await known(await it.post('/api/chat', shape(escaped(name, i), name)), 'chat')
    assert.deepEqual(Object.getOwnPropertyNames(Object.prototype).sort(), before)
    assert.equal(({} as Json).isAdmin, undefined)
  })
  assert.deepEqual([it.counts.dropped, it.counts.commands], [[], []])
})

test('of duplicate keys the last is verified, decided and executed', async (t) => {
  const it = await open(t)
  await tried(t, 'duplicate keys', 50, async (i) => {
    const id = await it.propose()
    const before = it.counts.dropped.length
    const bits = [i & 1, i & 2, i & 4, i & 8, i & 16].map(Boolean)
    const flags = bits.map((execute) => `"execute":${execute}`).join(',')
    const tables = bits.map((b) => `"input":{"table":"${b ? 'a' : 'evil'}"}`).join(',')
    const res = await it.post(
      '/api/chat',
      `{"messages":[],"messages":[{"role":"user","data":{"tool_calls":[{"id":"x","id":"${id}","name":"drop",${tables},${flags}}]}}]}`,
    )
    await known(res, 'chat')
    const runs = bits.at(-1) === true ? 1 : 0
    assert.equal(it.counts.dropped.length - before, runs)
  })
  assert.ok(it.counts.dropped.every((table) => table === 'a'))
})

const likeTheOriginal: unknown[] = [
  { messages: [{ role: 'user', content: 'hi', data: null }] },
  { messages: [{ role: 'user', content: 'hi', data: { tool_calls: null } }] },
  { messages: [{ role: 'user', content: 'hi', data: { cmds: null, executed_cmds: null } }] },
  { messages: [{ role: 'user', content: 'hi', data: { approvals: [null] } }] },
  { messages: [{ role: 'user', content: null }] },
  { messages: [null] },
  { messages: ['hi'] },
  { messages: 'hi' },
  { messages: {} },
  { messages: null },
  { messages: 5 },
  { messages: [[]] },
  { messages: [{}] },
  { messages: [{ role: 'user' }] },
  { messages: [{ role: null, content: 'hi' }] },
  { messages: [{ role: 'user', content: ['hi'] }] },
  { messages: [{ role: 'user', content: { text: 'hi' } }] },
  { messages: [{ role: 'user', content: 5 }] },
  { messages: [{ role: 'user', content: 'hi', data: [] }] },
  { messages: [{ role: 'user', content: 'hi', data: 'x' }] },
  { messages: [{ role: 'user', content: 'hi', data: { tool_calls: {} } }] },
  { messages: [{ role: 'user', content: 'hi', data: { tool_calls: [{}] } }] },
  { messages: [{ role: 'user', content: 'hi', data: { tool_calls: [{ id: 5 }] } }] },
  { messages: [{ role: 'user', content: 'hi', data: { tool_calls: [{ input: 'x' }] } }] },
  { messages: [{ role: 'user', content: 'hi', data: { cmds: [{}] } }] },
  {
    messages: [{ role: 'user', content: 'hi', data: { cmds: [{ command: null, execute: true }] } }],
  },
  { messages: [{ role: 'user', content: 'hi', data: { cmds: [{ command: 'ls', files: [{}] }] } }] },
  { messages: [{ role: 'user', content: 'hi', data: { executed_tool_calls: [{}] } }] },
  {
    messages: [
      { role: 'user', content: 'hi', data: { executed_tool_calls: [{ output: { a: 1 } }] } },
    ],
  },
  { messages: [{ role: 'user', content: 'hi', data: { session: [] } }] },
  { messages: [{ role: 'user', content: 'hi', data: { session: null } }] },
  { messages: [{ role: 'user', content: 'hi', platform_context: [] }] },
  { messages: [{ role: 'user', content: 'hi', platform_context: { scopes: 'x' } }] },
  {
    messages: [
      {
        role: 'user',
        content: 'hi',
        platform_context: { scopes: [null, 5, { name: { toString: 1 } }] },
      },
    ],
  },
  {
    messages: [
      {
        role: 'user',
        content: 'drop a',
        platform_context: { scopes: [{ name: { toString: 1 } }] },
      },
    ],
  },
  {
    messages: [
      {
        role: 'user',
        content: 'drop a',
        platform_context: { scopes: [{ name: { toString: 1, valueOf: 1 } }, { Name: [] }] },
      },
    ],
  },
  {
    messages: [
      { role: 'user', content: 'hi', platform_context: { kubeconfig: 5, duplo_token: {} } },
    ],
  },
  {
    messages: [
      { role: 'user', content: 'drop a', platform_context: { kubeconfig: '%%%', tenant_id: [] } },
    ],
  },
  {
    messages: [
      { role: 'user', content: 'drop a', platform_context: { thread_id: {}, user_id: 7 } },
    ],
  },
  { messages: [{ role: 'user', content: 'hi', user: 'ann' }] },
  { messages: [{ role: 'user', content: 'hi', timestamp: 1700000000 }] },
  { messages: [{ role: 'user', content: 'hi', ambient_context: { user_terminal_cmds: null } }] },
  { messages: [{ role: 'assistant', content: 'hi' }] },
  { messages: [{ role: 'system', content: 'hi' }] },
  { messages: [{ role: 'user', content: 'hi' }], source: 5, thread_id: ['x'] },
  { messages: [{ role: 'user', content: 'drop a' }], thread_id: { a: 1 } },
]

test('bodies that crashed the original are answered or refused', async (t) => {
  const it = await open(t)
  await tried(t, 'bodies that crashed the original', likeTheOriginal.length * 2, async (i) => {
    const path = i % 2 ? '/api/chat-stream' : '/api/chat'
    await known(await it.post(path, likeTheOriginal[i >> 1]), path)
  })
})

// ---------------------------------------------------------------- large, deep, wide

const post = (path: string, body: string, more = 'Content-Type: application/json\r\n') =>
  `POST ${path} HTTP/1.1\r\nHost: localhost\r\n${more}Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`
const hi = JSON.stringify({ messages: [u('hi')] })

test('a body over the limit is 413 that its sender sees, and no more of it is read', async (t) => {
  const { agent } = desk()
  const handler = chatHandler(agent, { log: see })
  const limit = 4_194_304
  const read: number[] = []
  const server = createServer(serverOptions, (req, res) => void handler(req, res))
  server.on('connection', (socket) => socket.on('close', () => read.push(socket.bytesRead)))
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.after(() => {
    server.closeAllConnections()
    server.close()
  })
  const { port } = server.address() as AddressInfo
  const head = (more: string) =>
    `POST /api/chat HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n${more}\r\n`
  const piece = Buffer.alloc(65_536, 0x20)
  const chunk = Buffer.concat([Buffer.from('10000\r\n'), piece, Buffer.from('\r\n')])
  await tried(
    t,
    '100 MB bodies',
    times(6, 20),
    async (i) => {
      const declared = i % 2 === 0
      const client = await raw(
        port,
        head(declared ? 'Content-Length: 104857600\r\n' : 'Transfer-Encoding: chunked\r\n'),
      )
      let gone = false
      client.socket
        .on('error', () => {})
        .on('close', () => {
          gone = true
        })
      for (let sent = 0; sent < 1600 && !gone && !client.text(); sent++) {
        if (!client.socket.write(declared ? piece : chunk))
          await Promise.race([
            once(client.socket, 'drain').catch(() => {}),
            client.closed,
            client.until('}'),
          ])
      }
      const answer = await client.until('"request_id"')
      assert.match(answer, /^HTTP\/1\.1 413 /)
      assert.match(answer, /"code":"body_too_large"/)
      await client.closed
    },
    { atOnce: 6 },
  )
  while (read.length < times(6, 20)) await new Promise(setImmediate)
  assert.ok(Math.max(...read) <= limit + 262_144, `${Math.max(...read)} bytes read`)
  t.diagnostic(`at most ${Math.max(...read) - limit} bytes beyond the limit`)
})

test('a body of exactly the default limit is answered, and one byte more refused', async (t) => {
  const it = await open(t)
  const bodyOf = (bytes: number) => hi.replace('hi', 'x'.repeat(bytes - hi.length + 2))
  for (const [bytes, status] of [
    [4_194_303, 200],
    [4_194_304, 200],
    [4_194_305, 413],
  ] as const)
    assert.equal(await known(await it.post('/api/chat', bodyOf(bytes)), 'chat'), status)
})

test('deep and wide JSON is refused without a stack, while streams go on', async (t) => {
  const it = await open(t)
  const deep = (levels: number) =>
    `{"messages":[{"role":"user","content":"hi"}],"x":${'['.repeat(levels - 1)}${']'.repeat(levels - 1)}}`
  const objects = (n: number) =>
    `{"messages":[{"role":"user","content":"hi"}],"x":[${'{},'.repeat(n)}{}]}`
  const keys = (n: number) =>
    `{"messages":[{"role":"user","content":"hi"}],"x":{${Array.from({ length: n }, (_, i) => `"${i}":0`).join()}}}`
  const streams = Array.from({ length: 20 }, () => it.stream({ messages: [u('slow 40 10')] }))
  const cases: [string, number][] = [
    [deep(63), 200],
    [deep(64), 200],
    [deep(65), 400],
    [deep(10_000), 400],
    [deep(1_000_000), 400],
    [objects(199_990), 200],
    [objects(200_000), 400],
    [objects(1_398_000), 400],
    [keys(300_000), 400],
    [`{"messages":[${'{"role":"user"},'.repeat(999)}{"role":"user","content":"hi"}]}`, 200],
    [`{"messages":[${'{"role":5},'.repeat(999)}{"role":"user","content":"hi"}]}`, 422],
    [JSON.stringify({ messages: [u('hi', { tool_calls: Array(20_000).fill({ id: 5 }) })] }), 422],
    [
      JSON.stringify({
        messages: [
          ...Array(900).fill(u('x', { tool_calls: Array(20).fill({ id: 'a', name: 'b' }) })),
          u('', {
            tool_calls: Array.from({ length: 32 }, (_, i) => ({ id: `a${i}`, execute: true })),
          }),
        ],
      }),
      200,
    ],
  ]
  await tried(t, 'deep and wide bodies', cases.length, async (i) => {
    const [body, status] = cases[i] as [string, number]
    assert.equal(await known(await it.post('/api/chat', body), 'chat'), status, body.slice(0, 80))
  })
  for (const { lines } of await Promise.all(streams)) {
    assert.equal(lines.filter((l) => l.type === 'text_delta').length, 40)
    assert.equal(lines.at(-1)?.type, 'done')
  }
})

// ---------------------------------------------------------------- raw HTTP

test('broken HTTP is refused as it should be, and hangs nothing', async (t) => {
  const { agent, counts } = desk()
  const handler = withHostCheck(withHeaderLimit(chatHandler(agent, { log: see })))
  const server = createServer(serverOptions, async (req, res) => {
    if (!(await handler(req, res))) res.writeHead(404).end()
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.after(() => {
    server.closeAllConnections()
    server.close()
  })
  const { port } = server.address() as AddressInfo
  const close = 'Connection: close\r\nContent-Type: application/json\r\n'
  const head = (method: string, path: string, more = '') =>
    `${method} ${path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n${more}\r\n`
  const type = 'Content-Type: application/json\r\n'
  const cases: [string, string, RegExp][] = [
    [
      'both lengths',
      head('POST', '/api/chat', `${type}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n`) +
        '0\r\n\r\n',
      /^HTTP\/1.1 400/,
    ],
    [
      'two lengths',
      `${head('POST', '/api/chat', `${type}Content-Length: 5\r\nContent-Length: 6\r\n`)}hello`,
      /^HTTP\/1.1 400/,
    ],
    [
      'a negative length',
      head('POST', '/api/chat', `${type}Content-Length: -5\r\n`),
      /^HTTP\/1.1 400/,
    ],
    [
      'a bad chunk',
      head('POST', '/api/chat', `${type}Transfer-Encoding: chunked\r\n`) +
        'zz\r\nhello\r\n0\r\n\r\n',
      /^HTTP\/1.1 400/,
    ],
    ['a folded header', head('POST', '/api/chat', `${type}X-A: b\r\n c\r\n`), /^HTTP\/1.1 400/],
    [
      'a space before the colon',
      head('POST', '/api/chat', 'Content-Type : application/json\r\n'),
      /^HTTP\/1.1 400/,
    ],
    ['a NUL in a header', head('POST', '/api/chat', 'X-A: b\0c\r\n'), /^HTTP\/1.1 400/],
    ['no HTTP at all', '\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03', /^HTTP\/1.1 400/],
    ['a long header', head('GET', '/health', `X-A: ${'x'.repeat(17_000)}\r\n`), /^HTTP\/1.1 431/],
    ['many headers', head('GET', '/health', 'a: b\r\n'.repeat(3_000)), /^HTTP\/1.1 431/],
    ['101 headers', head('GET', '/health', 'a: b\r\n'.repeat(101)), /^HTTP\/1.1 431/],
    ['a gzip body', post('/api/chat', hi, `${close}Content-Encoding: gzip\r\n`), /^HTTP\/1.1 415/],
    ['an unknown path', head('GET', '/etc/passwd'), /^HTTP\/1.1 404/],
    ['a path with dots', head('POST', '/api/../api/chat'), /^HTTP\/1.1 404/],
    ['an encoded path', head('POST', '/api%2fchat'), /^HTTP\/1.1 404/],
    ['a wrong method', head('DELETE', '/api/chat'), /^HTTP\/1.1 405[\s\S]*allow: POST/],
    ['HEAD', head('HEAD', '/api/chat'), /^HTTP\/1.1 405[^{]*$/],
    ['OPTIONS', head('OPTIONS', '/api/chat'), /^HTTP\/1.1 405/],
    [
      'an expectation',
      post('/api/chat', hi, `${close}Expect: 100-continue\r\n`),
      /^HTTP\/1.1 100 Continue\r\n\r\nHTTP\/1.1 200/,
    ],
    ['another expectation', post('/api/chat', hi, `${close}Expect: 200-ok\r\n`), /^HTTP\/1.1 417/],
    [
      'a refused expectation',
      head('POST', '/api/chat', `${type}Expect: 100-continue\r\nContent-Length: 99999999\r\n`),
      /HTTP\/1.1 413/,
    ],
    [
      'an old client',
      `POST /api/chat HTTP/1.0\r\nHost: localhost\r\n${type}Content-Length: ${hi.length}\r\n\r\n${hi}`,
      /^HTTP\/1.1 200/,
    ],
    [
      'an old client’s stream',
      `POST /api/chat-stream HTTP/1.0\r\nHost: localhost\r\n${type}Content-Length: ${hi.length}\r\n\r\n${hi}`,
      /^HTTP\/1.1 200[\s\S]*"done"/,
    ],
    ['no host', `GET /health HTTP/1.1\r\nConnection: close\r\n\r\n`, /^HTTP\/1.1 400/],
    [
      'another host',
      'GET /health HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n',
      /^HTTP\/1.1 403/,
    ],
    [
      'a foreign origin',
      head('POST', '/api/chat', `${type}Origin: https://evil.example\r\nContent-Length: 0\r\n`),
      /^HTTP\/1.1 403/,
    ],
    ['no type', post('/api/chat', hi, 'Connection: close\r\n'), /^HTTP\/1.1 415/],
    [
      'plain text',
      post('/api/chat', hi, 'Connection: close\r\nContent-Type: text/plain\r\n'),
      /^HTTP\/1.1 415/,
    ],
    [
      'a form',
      post(
        '/api/chat',
        hi,
        'Connection: close\r\nContent-Type: application/x-www-form-urlencoded\r\n',
      ),
      /^HTTP\/1.1 415/,
    ],
    ['a GET with a body', post('/api/chat', hi, close).replace('POST', 'GET'), /^HTTP\/1.1 405/],
    [
      'an upgrade',
      head('POST', '/api/chat', 'Upgrade: websocket\r\nConnection: Upgrade\r\n'),
      /^HTTP\/1.1 4/,
    ],
  ]
  await tried(t, 'broken HTTP', cases.length, async (i) => {
    const [claim, bytes, expected] = cases[i] as (typeof cases)[0]
    const client = await raw(port, bytes)
    client.socket.on('error', () => {})
    assert.match(see(await client.closed), expected, claim)
  })
  assert.deepEqual([counts.dropped, counts.commands, counts.looked], [[], [], 0])
})

test('a hundred requests in one write are answered in order', async (t) => {
  const it = await open(t)
  const count = 100
  const all = Array.from({ length: count }, (_, i) =>
    post(
      '/api/chat',
      JSON.stringify({ messages: [u(`hi`)], n: i }),
      `Content-Type: application/json\r\n${i === count - 1 ? 'Connection: close\r\n' : ''}`,
    ),
  )
  const client = await raw(Number(new URL(it.url).port), all.join(''))
  const answers = see(await client.closed)
  assert.deepEqual(
    [...answers.matchAll(/"request_context":\{"n":(\d+)\}/g)].map(([, n]) => Number(n)),
    Array.from({ length: count }, (_, i) => i),
  )
})
