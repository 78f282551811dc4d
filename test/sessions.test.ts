// Sessions that do not travel readable, through the door: what goes out, what comes back, and what does not count.

import assert from 'node:assert/strict'
import type { IncomingMessage } from 'node:http'
import { type TestContext, test } from 'node:test'
import type { ChatOptions, LogEntry } from '../src/http.ts'
import { scripted } from '../src/providers/scripted.ts'
import { sessionTtlMs } from '../src/sessions.ts'
import { memoryStore, type Store } from '../src/store.ts'
import { tool } from '../src/tool.ts'
import { faultyStore } from './faulty-store.ts'
import { type Json, serve, u } from './harness.ts'

const key = Buffer.alloc(32, 7).toString('base64')
const authenticate = (req: IncomingMessage) => String(req.headers['x-user'] ?? 'ann')

/** An agent that adds what the message says to `session.cart`, and one gated tool. */
async function shop(t: TestContext, options: ChatOptions, name = 'shop') {
  const seen: Json[] = []
  const log: LogEntry[] = []
  const add = tool({
    name: 'add',
    description: 'Add to the cart',
    input: '{ item: string }',
    execute: ({ item }, { session, platform }) => {
      const cart = (session.get('cart') as string[] | undefined) ?? []
      session.set('cart', [...cart, item === 'token' ? platform.duplo_token : item])
      return 'ok'
    },
  })
  const drop = tool({
    name: 'drop',
    description: 'Drop',
    input: '{}',
    requiresApproval: true,
    execute: () => 'dropped',
  })
  const provider = scripted((request) => {
    const last = request.messages.at(-1)
    if (last?.role === 'assistant') return 'ok'
    const said = last?.parts.map((p) => (p.type === 'text' ? p.text : '')).join('') ?? ''
    if (said === 'drop') return { calls: [{ name: 'drop' }] }
    return said.startsWith('+')
      ? { calls: [{ name: 'add', input: { item: said.slice(1) } }] }
      : 'ok'
  })
  const agent = {
    name,
    provider,
    tools: [add, drop],
    systemContext: ({ session }: { session: { toJSON(): Json } }) => {
      seen.push(session.toJSON())
      return ''
    },
  }
  const it = await serve(t, agent, { log: (entry) => log.push(entry), ...options })
  const say = async (content: string, session?: unknown, fields: Json = {}, who = 'ann') => {
    const { context, ...more } = fields
    const data = session === undefined ? undefined : { session }
    const ask = {
      messages: [u(content, data, context && { platform_context: context })],
      thread_id: 't1',
      ...more,
    }
    const got = await it.chat(ask, { 'x-user': who })
    return { ...got, session: got.body.data?.session as Json }
  }
  const warnings = () => log.filter((e) => e.event === 'session').map((e) => [e.level, e.message])
  return { ...it, say, seen, log, warnings, provider }
}

// ---------------------------------------------------------------- sealed

const sealed = (more: ChatOptions = {}): ChatOptions => ({
  session: 'sealed',
  keys: [key],
  authenticate,
  ...more,
})

test('a sealed session travels unreadable, and comes back whole', async (t) => {
  const { say, seen, warnings } = await shop(t, sealed())
  const first = await say('+milk')
  assert.deepEqual(Object.keys(first.session), ['$sealed'])
  assert.doesNotMatch(first.text, /milk"\]|cart/)
  const second = await say('+bread', first.session)
  await say('look', second.session)
  assert.deepEqual(seen.at(-1), { cart: ['milk', 'bread'] })
  assert.notEqual(first.session.$sealed, second.session.$sealed)
  assert.deepEqual(warnings(), [])
})

test('a sealed session is sealed anew each time, and an empty one is nothing', async (t) => {
  const { say } = await shop(t, sealed())
  const { session } = await say('+milk')
  const again = await say('look', session)
  assert.notEqual(again.session.$sealed, session.$sealed)
  assert.deepEqual((await say('look')).session, {})
})

test('a sealed session opens for the same agent, person and thread alone', async (t) => {
  const store = memoryStore()
  const one = await shop(t, sealed({ store }))
  const other = await shop(t, sealed({ store }), 'other')
  const { session } = await one.say('+milk')
  for (const [claim, desk, fields, who] of [
    ['another person', one, {}, 'bob'],
    ['another thread', one, { thread_id: 't2' }, 'ann'],
    ['no thread', one, { thread_id: undefined }, 'ann'],
    ['another agent', other, {}, 'ann'],
  ] as const) {
    const { status } = await desk.say('look', session, fields, who)
    assert.deepEqual([status, desk.seen.at(-1)], [200, {}], claim)
    assert.deepEqual(
      desk.warnings().at(-1),
      ['warn', 'a sealed session did not open; it is read as empty'],
      claim,
    )
  }
  await one.say('look', session)
  assert.deepEqual(one.seen.at(-1), { cart: ['milk'] })
})

test('a sealed session in which any character changed is empty, with a warning, and never 500', async (t) => {
  const { say, seen, warnings } = await shop(t, sealed())
  const { session } = await say('+milk')
  const text = session.$sealed as string
  const changed = [...text].map(
    (c, i) => text.slice(0, i) + (c === 'x' ? 'y' : 'x') + text.slice(i + 1),
  )
  const cut = [
    text.slice(1),
    text.slice(0, -1),
    `${text}A`,
    `${text}=`,
    `${text}!`,
    ` ${text}`,
    '',
    'x',
    '!!!!',
  ]
  for (const $sealed of [...changed, ...cut]) {
    const before = warnings().length
    const { status } = await say('look', { $sealed })
    assert.deepEqual([status, seen.at(-1), warnings().length], [200, {}, before + 1], $sealed)
  }
})

test('of the last character of a sealed text every bit counts', async (t) => {
  const { say, seen } = await shop(t, sealed())
  const letters = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_'
  for (const item of ['+a', '+ab', '+abc']) {
    const { session } = await say(item)
    const text = session.$sealed as string
    for (const last of letters.replace(text.at(-1) ?? '', '')) {
      await say('look', { $sealed: text.slice(0, -1) + last })
      assert.deepEqual(seen.at(-1), {}, `${item} ${last}`)
    }
  }
})

test('what comes in plain where it must be sealed is empty, with a warning', async (t) => {
  const { say, seen, warnings } = await shop(t, sealed())
  const { session } = await say('+milk')
  await say('look', { cart: ['gold'] })
  assert.deepEqual(seen.at(-1), {})
  await say('look', { ...session, cart: ['gold'] })
  assert.deepEqual(seen.at(-1), { cart: ['milk'] })
  for (const $sealed of [5, null, {}, ['x']]) await say('look', { $sealed })
  assert.deepEqual(seen.at(-1), {})
  assert.deepEqual(
    warnings().map(([, message]) => message),
    [
      ...Array(2).fill('a session came in plain where it must be sealed; it is read as empty'),
      ...Array(4).fill('a sealed session did not open; it is read as empty'),
    ],
  )
})

test('a cleared sealed session stays cleared', async (t) => {
  const { say, seen, warnings } = await shop(t, sealed())
  await say('+milk')
  await say('look', {})
  assert.deepEqual([seen.at(-1), warnings()], [{}, []])
})

test('sealed sessions outlive the server where the key does, and rotate with it', async (t) => {
  const fresh = Buffer.alloc(32, 8).toString('base64')
  const old = await shop(t, sealed())
  const { session } = await old.say('+milk')
  const during = await shop(t, sealed({ keys: [fresh, key] }))
  const moved = await during.say('look', session)
  assert.deepEqual(during.seen.at(-1), { cart: ['milk'] })
  const after = await shop(t, sealed({ keys: [fresh] }))
  await after.say('look', session)
  assert.deepEqual(after.seen.at(-1), {})
  await after.say('look', moved.session)
  assert.deepEqual(after.seen.at(-1), { cart: ['milk'] })
})

test('in a sealed session too the paused run travels beside it', async (t) => {
  const { say, chat } = await shop(t, sealed())
  const { session } = await say('+milk')
  const first = await say('drop', session)
  assert.deepEqual(Object.keys(first.session).sort(), ['$run', '$sealed'])
  const [{ id }] = first.body.data.tool_calls
  const { body } = await chat({
    messages: [u('drop'), first.body, u('', { tool_calls: [{ id, execute: true }] })],
    thread_id: 't1',
  })
  assert.equal(body.data.executed_tool_calls[0].output, 'dropped')
  assert.deepEqual(Object.keys(body.data.session), ['$sealed'])
})

// ---------------------------------------------------------------- kept in the store

const server = (store: Store, more: ChatOptions = {}): ChatOptions => ({
  session: 'server',
  store,
  keys: [key],
  authenticate,
  ...more,
})

test('a kept session needs no echo: what the client sends does not count', async (t) => {
  const { say, seen } = await shop(t, server(memoryStore()))
  assert.deepEqual((await say('+milk')).session, { cart: ['milk'] })
  assert.deepEqual((await say('+bread')).session, { cart: ['milk', 'bread'] })
  for (const session of [{}, { cart: ['gold'] }, { $sealed: 'x' }, null]) await say('look', session)
  assert.deepEqual(seen.slice(-4), Array(4).fill({ cart: ['milk', 'bread'] }))
})

test('a kept session needs a thread, given as a field or in the context', async (t) => {
  const { say } = await shop(t, server(memoryStore()))
  for (const thread_id of [undefined, '', null]) {
    const { status, body } = await say('x', undefined, { thread_id })
    assert.deepEqual(
      [status, body.code, body.errors],
      [
        422,
        'invalid_request',
        [{ path: '/thread_id', message: 'is needed: it names the session' }],
      ],
    )
  }
  const inContext = { thread_id: undefined, context: { thread_id: 't9' } }
  assert.deepEqual((await say('+milk', undefined, inContext)).session, { cart: ['milk'] })
  assert.deepEqual((await say('+milk', undefined, { thread_id: 7 })).status, 200)
})

test('a kept session belongs to agent, person, tenant and thread', async (t) => {
  const store = memoryStore()
  const one = await shop(t, server(store))
  const other = await shop(t, server(store), 'other')
  await one.say('+milk')
  await one.say('look', undefined, {}, 'bob')
  await one.say('look', undefined, { thread_id: 't2' })
  await one.say('look', undefined, { context: { tenant_id: 'acme' } })
  await other.say('look')
  assert.deepEqual([...one.seen.slice(-3), other.seen.at(-1)], Array(4).fill({}))
  await one.say('look')
  assert.deepEqual(one.seen.at(-1), { cart: ['milk'] })
})

test('sessionKey chooses whose session it is', async (t) => {
  const store = faultyStore()
  const sessionKey = (who: string | undefined, { tenant_id }: Json) =>
    `${tenant_id}/${who === 'bob' ? 'b' : 'x'}`
  const { say } = await shop(t, server(store, { sessionKey }))
  const tenant = { context: { tenant_id: 'acme' } }
  await say('+milk', undefined, tenant)
  assert.deepEqual((await say('look', undefined, { ...tenant, thread_id: 't2' }, 'cid')).session, {
    cart: ['milk'],
  })
  assert.deepEqual((await say('look', undefined, tenant, 'bob')).session, {})
  const keys = new Set(store.calls.map((c) => c.key).filter((k) => k.startsWith('session:')))
  assert.deepEqual([...keys], ['session:acme/x', 'session:acme/b'])
})

test('without sessionKey the key tells nothing of who and where', async (t) => {
  const store = faultyStore()
  const { say } = await shop(t, server(store))
  await say('+milk')
  const keys = store.calls.map((c) => c.key).filter((k) => k.startsWith('session:'))
  assert.match(keys[0] ?? '', /^session:[\w-]{43}$/)
})

test('no change is lost where many write at once', async (t) => {
  const store = memoryStore()
  const set = tool({
    name: 'set',
    description: 'Set',
    input: '{ key: string }',
    execute: async ({ key }, { session }) => {
      await new Promise((resolve) => setTimeout(resolve, 5))
      session.set(key, 1)
      return 'ok'
    },
  })
  const provider = scripted((request) => {
    const last = request.messages.at(-1)
    const [part] = last?.parts ?? []
    if (last?.role !== 'user' || part?.type !== 'text') return 'ok'
    return { calls: [{ name: 'set', input: { key: part.text } }] }
  })
  const agent = { name: 'a', provider, tools: [set] }
  const one = await serve(t, agent, server(store))
  const two = await serve(t, agent, server(store))
  const names = Array.from({ length: 20 }, (_, i) => `k${i}`)
  await Promise.all(
    names.map((name, i) => (i % 2 ? one : two).chat({ messages: [u(name)], thread_id: 't' })),
  )
  const { body } = await one.chat({ messages: [u('last')], thread_id: 't' })
  assert.deepEqual(Object.keys(body.data.session).sort(), [...names, 'last'].sort())
})

test('a session that nothing changed is not written', async (t) => {
  const store = faultyStore()
  const { say } = await shop(t, server(store))
  await say('+milk')
  const writes = () =>
    store.calls.filter((c) => c.method !== 'get' && c.key.startsWith('session:')).length
  const before = writes()
  await say('look')
  assert.equal(writes(), before)
})

test('a kept session is forgotten thirty days after its last write', async (t) => {
  assert.equal(sessionTtlMs, 30 * 86_400_000)
  const inner = memoryStore()
  const kept: [key: string, ttlMs: number | undefined][] = []
  const store: Store = {
    get: (key) => inner.get(key),
    set: (key, value, ttlMs) => inner.set(key, value, ttlMs),
    swap: (key, expected, value, ttlMs) => {
      kept.push([key.split(':', 1)[0] ?? '', ttlMs])
      return inner.swap(key, expected, value, ttlMs)
    },
    delete: (key) => inner.delete(key),
  }
  const { say } = await shop(t, server(store))
  await say('+milk')
  await say('look')
  await say('+bread')
  assert.deepEqual(
    kept.filter(([kind]) => kind === 'session'),
    Array(2).fill(['session', sessionTtlMs]),
  )
})

for (const corrupt of [
  '',
  '{',
  'null',
  '[]',
  '"x"',
  '{"a":',
  'x'.repeat(100),
  '{"__proto__":{"x":1}}',
  '5',
])
  test(`a kept session that reads ${JSON.stringify(corrupt.slice(0, 12))} is empty, with a warning, and mended by the next write`, async (t) => {
    const store = memoryStore()
    const { say, seen, warnings } = await shop(t, server(store, { sessionKey: () => 'k' }))
    await store.set('session:k', corrupt)
    const { status } = await say('look')
    assert.deepEqual([status, seen.at(-1)], [200, {}])
    if (corrupt !== 'null')
      assert.deepEqual(warnings()[0], [
        'warn',
        'a kept session is not readable; it is read as empty',
      ])
    assert.deepEqual((await say('+milk')).session, { cart: ['milk'] })
    assert.equal(await store.get('session:k'), '{"cart":["milk"]}')
  })

test('a store that is down is 503 before anything ran', async (t) => {
  const store = faultyStore()
  const { say, provider } = await shop(t, server(store))
  store.fault = { kind: 'down', on: ['get'] }
  const { status, body } = await say('+milk')
  assert.deepEqual([status, body.code, provider.requests.length], [503, 'store_unavailable', 0])
})

test('a store that goes down later costs the session, and not the word of what ran', async (t) => {
  const store = faultyStore()
  const { say, log } = await shop(t, server(store))
  await say('look')
  store.fault = { kind: 'down', on: ['swap'] }
  const { status, body, session } = await say('+milk')
  assert.deepEqual(
    [status, body.data.executed_tool_calls.length, body.meta_data.error.code, session],
    [200, 1, 'store_unavailable', {}],
  )
  assert.ok(log.some((entry) => entry.event === 'failure' && entry.code === 'store_unavailable'))
})

test('a store that hangs over a session holds nobody longer than the request may take', async (t) => {
  for (const method of ['get', 'swap'] as const) {
    const store = faultyStore()
    const { say, handler } = await shop(t, server(store, { limits: { requestMs: 60 } }))
    await say('look')
    store.fault = { kind: 'hang', on: [method], keys: (key) => key.startsWith('session:') }
    const { status, body } = await say('+milk')
    assert.equal((body.meta_data?.error ?? body).code, 'deadline')
    assert.deepEqual([status, handler.active], [method === 'get' ? 504 : 200, 0])
    store.heal()
  }
})

test('a caller’s own store that rejects with anything is store_unavailable', async (t) => {
  const inner = memoryStore()
  const broken = {
    ...inner,
    get: () => Promise.reject(new TypeError('redis is gone')),
  } as unknown as Store
  const { say } = await shop(t, server(broken))
  const { status, body, text } = await say('x')
  assert.deepEqual([status, body.code], [503, 'store_unavailable'])
  assert.doesNotMatch(text, /redis/)
})

test('secrets that a tool put into a session are not kept, nor sealed', async (t) => {
  for (const options of [server(memoryStore()), sealed()]) {
    const { say, seen } = await shop(t, options)
    const context = { duplo_token: 'sesame-token' }
    const first = await say('+token', undefined, { context })
    assert.doesNotMatch(first.text, /sesame/)
    await say('look', first.session, { context })
    assert.deepEqual(seen.at(-1), { cart: ['[redacted]'] })
  }
})

test('the paused run travels with the client where the session does not', async (t) => {
  const { say, chat } = await shop(t, server(memoryStore()))
  await say('+milk')
  const first = await say('drop')
  assert.deepEqual(Object.keys(first.session), ['cart', '$run'])
  const [{ id }] = first.body.data.tool_calls
  const { body } = await chat({
    messages: [
      u('', { session: { $run: first.session.$run }, tool_calls: [{ id, execute: true }] }),
    ],
    thread_id: 't1',
  })
  assert.deepEqual([body.content, body.data.session], ['ok', { cart: ['milk'] }])
  assert.equal(body.data.executed_tool_calls[0].output, 'dropped')
})
