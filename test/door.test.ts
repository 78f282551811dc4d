import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { type TestContext, test } from 'node:test'
import { request } from 'undici'
import {
  drain,
  type Handler,
  serverOptions,
  withCors,
  withHeaderLimit,
  withHostCheck,
  withIdempotency,
} from '../src/door.ts'
import { chatHandler } from '../src/http.ts'
import { DcafError } from '../src/providers/provider.ts'
import { type ScriptEntry, scripted } from '../src/providers/scripted.ts'
import { memoryStore, type Store } from '../src/store.ts'
import { tool } from '../src/tool.ts'
import { faultyStore } from './faulty-store.ts'
import { type Raw, raw } from './raw.ts'

const argument = (error: unknown) => error instanceof DcafError && error.code === 'invalid_argument'

async function listen(t: TestContext, handler: Handler, options: object = serverOptions) {
  const server = createServer(options, async (req, res) => {
    if (!(await handler(req, res))) res.writeHead(404).end('not ours')
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.after(() => {
    server.closeAllConnections()
    server.close()
  })
  const { port } = server.address() as AddressInfo
  return { server, port, url: `http://127.0.0.1:${port}` }
}

async function bodyOf(req: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = []
  for await (const chunk of req) chunks.push(chunk)
  return Buffer.concat(chunks).toString()
}

const ok: Handler = async (_, res) => {
  res.end('ok')
  return true
}

const get = (head: string) => `GET /api/chat HTTP/1.1\r\n${head}\r\n\r\n`

// ---------------------------------------------------------------- server options

test('the options are the documented ones', () => {
  const { ServerResponse: _, ...plain } = serverOptions
  assert.deepEqual(plain, {
    maxHeaderSize: 16 * 1024,
    headersTimeout: 10_000,
    requestTimeout: 30_000,
    connectionsCheckingInterval: 2_000,
    keepAliveTimeout: 75_000,
    noDelay: true,
  })
})

test('a header block over 16 KiB is 431, one below is served', async (t) => {
  const { port } = await listen(t, ok)
  const head = (bytes: number) => get(`Host: a\r\nConnection: close\r\nX: ${'x'.repeat(bytes)}`)
  assert.match(await (await raw(port, head(15_000))).closed, /^HTTP\/1.1 200/)
  assert.match(await (await raw(port, head(17_000))).closed, /^HTTP\/1.1 431/)
})

test('a client that never ends its headers, or its body, is told 408', async (t) => {
  const quick = { headersTimeout: 60, requestTimeout: 60, connectionsCheckingInterval: 20 }
  const reads: Handler = async (req, res) => {
    await bodyOf(req).catch(() => {})
    res.end()
    return true
  }
  const { port } = await listen(t, reads, { ...serverOptions, ...quick })
  const slow = [
    'GET / HTTP/1.1\r\nHost:',
    'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc',
  ]
  for (const head of slow) assert.match(await (await raw(port, head)).closed, /^HTTP\/1.1 408/)
})

test('takes 100 header lines, and refuses 101 and more with 431', async (t) => {
  const { port } = await listen(t, withHeaderLimit(ok))
  const lines = (count: number) =>
    get(['Host: a', 'Connection: close', ...Array(count - 2).fill('a:')].join('\r\n'))
  assert.match(await (await raw(port, lines(100))).closed, /^HTTP\/1.1 200/)
  for (const count of [101, 1000]) {
    const answer = await (await raw(port, lines(count))).closed
    assert.match(answer, /^HTTP\/1.1 431 [\s\S]*"detail":"More than 100 header lines\."/)
  }
  assert.match(await (await raw(port, lines(3000))).closed, /^HTTP\/1.1 431/) // Node's own, by size
})

// ---------------------------------------------------------------- cors

const chatOnly: Handler = async (req, res) => {
  if (!req.url?.startsWith('/api/chat') && req.url !== '/health') return false
  if (req.method === 'OPTIONS') res.writeHead(405, { allow: 'POST' }).end()
  else res.writeHead(200, { 'content-type': 'text/plain' }).end('ok')
  return true
}
const corsOf = (headers: Record<string, unknown>) =>
  Object.fromEntries(
    Object.entries(headers).filter(([name]) => /^(access-control|vary)/.test(name)),
  )
const preflight = (origin: string) => ({
  origin,
  'access-control-request-method': 'POST',
  'access-control-request-headers': 'content-type',
})

test('answers a preflight for a listed origin, and refuses it for another', async (t) => {
  const handler = withCors(chatOnly, { origins: ['https://desk.example'] })
  const { url } = await listen(t, handler)
  const ask = (origin: string, path = '/api/chat') =>
    request(url + path, { method: 'OPTIONS', headers: preflight(origin) })
  const yes = await ask('https://desk.example')
  assert.equal(yes.statusCode, 204)
  assert.deepEqual(corsOf(yes.headers), {
    vary: 'origin',
    'access-control-allow-origin': 'https://desk.example',
    'access-control-allow-methods': 'POST',
    'access-control-allow-headers': 'content-type, authorization, idempotency-key',
    'access-control-max-age': '600',
  })
  const health = await ask('https://desk.example', '/health')
  assert.equal(health.headers['access-control-allow-methods'], 'GET, HEAD')
  for (const origin of [
    'https://evil.example',
    'https://desk.example:444',
    'http://desk.example',
    'null',
  ]) {
    const no = await ask(origin)
    assert.equal(no.statusCode, 403)
    assert.deepEqual(corsOf(no.headers), { vary: 'origin' })
  }
})

test('lets a listed origin read the answer, and says to caches that it varies', async (t) => {
  const { url } = await listen(t, withCors(chatOnly, { origins: ['https://desk.example'] }))
  const post = (headers: Record<string, string>) =>
    request(`${url}/api/chat`, { method: 'POST', headers })
  const listed = await post({ origin: 'https://desk.example' })
  assert.deepEqual(corsOf(listed.headers), {
    vary: 'origin',
    'access-control-allow-origin': 'https://desk.example',
    'access-control-expose-headers': 'retry-after, x-request-id, idempotency-replayed',
  })
  const others: Record<string, string>[] = [{ origin: 'https://evil.example' }, {}]
  for (const headers of others)
    assert.deepEqual(corsOf((await post(headers)).headers), { vary: 'origin' })
})

test('everybody is a star without credentials, and a listed origin may have credentials', async (t) => {
  const star = await listen(t, withCors(chatOnly, { origins: '*' }))
  const listed = await listen(
    t,
    withCors(chatOnly, { origins: (origin) => origin.endsWith('.example'), credentials: true }),
  )
  const headers = { origin: 'https://a.example' }
  const open = await request(`${star.url}/api/chat`, { method: 'POST', headers })
  assert.equal(open.headers['access-control-allow-origin'], '*')
  assert.equal(open.headers.vary, undefined)
  const own = await request(`${listed.url}/api/chat`, { method: 'POST', headers })
  assert.equal(own.headers['access-control-allow-origin'], 'https://a.example')
  assert.equal(own.headers['access-control-allow-credentials'], 'true')
})

test('leaves other paths, and OPTIONS that is no preflight, to others', async (t) => {
  const { url } = await listen(t, withCors(chatOnly, { origins: ['https://desk.example'] }))
  const headers = preflight('https://desk.example')
  const other = await request(`${url}/mine`, { method: 'OPTIONS', headers })
  assert.equal(other.statusCode, 404)
  assert.deepEqual(corsOf(other.headers), {})
  const plain = await request(`${url}/api/chat`, { method: 'OPTIONS' })
  assert.equal(plain.statusCode, 405)
})

test('refuses origins that no browser would send, and credentials for everybody', () => {
  for (const origin of [
    'https://desk.example/',
    'desk.example',
    'https://DESK.example',
    '*',
    'null',
  ])
    assert.throws(() => withCors(ok, { origins: [origin] }), argument, origin)
  assert.throws(() => withCors(ok, { origins: '*', credentials: true }), argument)
})

// ---------------------------------------------------------------- host

async function hostStatus(port: number, head: string): Promise<string> {
  const answer = await (await raw(port, `GET /any HTTP/1.1\r\n${head}Connection: close\r\n\r\n`))
    .closed
  return answer.slice(9, 12)
}

test('serves the loopback names on any port, and no other host', async (t) => {
  let reached = 0
  const { port } = await listen(
    t,
    withHostCheck(async (_, res) => {
      reached++
      res.end()
      return true
    }),
  )
  const mine = [
    'localhost',
    'LOCALHOST:8000',
    '127.0.0.1',
    `127.0.0.1:${port}`,
    '[::1]',
    '[::1]:80',
  ]
  for (const host of mine) assert.equal(await hostStatus(port, `Host: ${host}\r\n`), '200', host)
  assert.equal(reached, mine.length)
  for (const host of [
    'evil.example',
    'evil.example:8000',
    'localhost.evil.example',
    '127.0.0.1.evil.example',
    'evil.example@localhost',
    'localhost@evil.example',
    'localhost:80:80',
    'localhost evil',
    '0.0.0.0',
    '',
  ])
    assert.equal(await hostStatus(port, `Host: ${host}\r\n`), '403', host)
  assert.equal(await hostStatus(port, 'Host: localhost\r\nHost: evil.example\r\n'), '403')
  assert.equal(reached, mine.length)
  const old = await (await raw(port, 'GET / HTTP/1.0\r\n\r\n')).closed
  assert.equal(old.slice(9, 12), '403')
})

test('refuses foreign pages, and takes those of its own hosts and of listed origins', async (t) => {
  const { port } = await listen(t, withHostCheck(ok, { origins: ['https://desk.example'] }))
  const from = (origin: string) => hostStatus(port, `Host: localhost\r\nOrigin: ${origin}\r\n`)
  for (const origin of ['http://localhost:3000', 'http://127.0.0.1', 'https://desk.example'])
    assert.equal(await from(origin), '200', origin)
  for (const origin of [
    'https://evil.example',
    'http://localhost.evil.example',
    'null',
    'file://',
    '',
  ])
    assert.equal(await from(origin), '403', origin)
})

test('takes a listed host, on the listed port only where one is named', async (t) => {
  const { port } = await listen(t, withHostCheck(ok, { hosts: ['desk.example', '10.0.0.7:8000'] }))
  const cases = {
    'Desk.example:81': '200',
    '10.0.0.7:8000': '200',
    '10.0.0.7': '403',
    localhost: '403',
  }
  for (const [host, status] of Object.entries(cases))
    assert.equal(await hostStatus(port, `Host: ${host}\r\n`), status, host)
})

// ---------------------------------------------------------------- idempotency

/** Answers with a number that grows, after `held` is let go. */
function counting(answer?: (req: IncomingMessage, res: ServerResponse, body: string) => unknown) {
  const runs = { count: 0, bodies: [] as string[], release: () => {}, held: Promise.resolve() }
  const handler: Handler = async (req, res) => {
    if (!req.url?.startsWith('/api/')) return false
    const run = ++runs.count
    const body = await bodyOf(req)
    runs.bodies.push(body)
    await runs.held
    if (answer) await answer(req, res, body)
    else {
      res.setHeader('x-request-id', `id-${run}`)
      res.writeHead(200, { 'content-type': 'application/json' })
      res.write(`{"run":${run},`)
      res.end('"text":"é\u{1f511}"}')
    }
    return true
  }
  const hold = () => {
    runs.held = new Promise((resolve) => {
      runs.release = resolve
    })
  }
  return { handler: Object.assign(handler, { authenticate: undefined }), runs, hold }
}

function poster(url: string) {
  return async (
    key: string | undefined,
    body = '{}',
    headers: Record<string, string> = {},
    path = '/api/chat',
  ) => {
    const res = await request(url + path, {
      method: 'POST',
      headers: { ...(key !== undefined && { 'idempotency-key': key }), ...headers },
      body,
    })
    const { statusCode: status, headers: answered } = res
    return { status, headers: answered, text: await res.body.text() }
  }
}

test('answers a key once: sent again, it gets the first answer, byte for byte', async (t) => {
  const { handler, runs } = counting()
  const { url } = await listen(t, withIdempotency(handler, { store: memoryStore() }))
  const post = poster(url)
  const first = await post('k1')
  const again = await post('k1')
  assert.equal(first.text, '{"run":1,"text":"é\u{1f511}"}')
  assert.deepEqual([again.status, again.text], [first.status, first.text])
  assert.equal(again.headers['content-type'], 'application/json')
  assert.equal(again.headers['x-request-id'], 'id-1')
  assert.equal(again.headers['idempotency-replayed'], 'true')
  assert.equal(first.headers['idempotency-replayed'], undefined)
  assert.equal(runs.count, 1)
})

test('runs anew for another key, path, authorization or cookie, and without a key', async (t) => {
  const { handler, runs } = counting()
  const { url } = await listen(t, withIdempotency(handler, { store: memoryStore() }))
  const post = poster(url)
  await post('k1')
  await post('k2')
  await post('k1', '{}', {}, '/api/chat-stream')
  await post('k1', '{}', { authorization: 'Bearer a' })
  await post('k1', '{}', { authorization: 'Bearer b' })
  await post('k1', '{}', { cookie: 'a' })
  await post(undefined)
  await post(undefined)
  assert.equal(runs.count, 8)
})

test('refuses another body under the same key, while the first runs and after', async (t) => {
  const { handler, runs, hold } = counting()
  const { url } = await listen(t, withIdempotency(handler, { store: memoryStore() }))
  const post = poster(url)
  hold()
  const first = post('k', '{"a":1}')
  while (runs.count === 0) await new Promise(setImmediate)
  const during = await post('k', '{"a":2}')
  runs.release()
  await first
  const after = await post('k', '{"a":2}')
  for (const { status, text } of [during, after]) {
    assert.equal(status, 422)
    const { detail, code } = JSON.parse(text)
    assert.equal(code, 'invalid_request')
    assert.equal(detail, 'This Idempotency-Key was used for another request.')
  }
  assert.equal(runs.count, 1)
})

test('duplicates sent at once wait for the first, and get its answer', async (t) => {
  const { handler, runs, hold } = counting()
  const { url } = await listen(t, withIdempotency(handler, { store: memoryStore() }))
  const post = poster(url)
  hold()
  const all = Array.from({ length: 20 }, () => post('k'))
  while (runs.count === 0) await new Promise(setImmediate)
  runs.release()
  const answers = await Promise.all(all)
  assert.equal(new Set(answers.map(({ text }) => text)).size, 1)
  assert.equal(runs.count, 1)
})

test('a duplicate in another process is told busy, and later gets the answer', async (t) => {
  const store = memoryStore()
  const here = counting()
  const there = counting()
  const one = await listen(t, withIdempotency(here.handler, { store }))
  const two = await listen(t, withIdempotency(there.handler, { store }))
  here.hold()
  const first = poster(one.url)('k')
  while (here.runs.count === 0) await new Promise(setImmediate)
  const busy = await poster(two.url)('k')
  assert.deepEqual([busy.status, JSON.parse(busy.text).code], [503, 'busy'])
  assert.equal(busy.headers['retry-after'], '1')
  here.runs.release()
  const { text } = await first
  assert.equal((await poster(two.url)('k')).text, text)
  assert.equal(there.runs.count, 0)
})

test('keeps no answer but 2xx: sent again, the request runs again', async (t) => {
  for (const status of [302, 400, 401, 422, 429, 500, 503]) {
    const { handler, runs } = counting((_, res) => res.writeHead(status).end('{}'))
    const { url } = await listen(t, withIdempotency(handler, { store: memoryStore() }))
    assert.equal((await poster(url)('k')).status, status)
    assert.equal((await poster(url)('k')).status, status)
    assert.equal(runs.count, 2)
  }
})

test('keeps a stream, but not one that failed before anything ran', async (t) => {
  const text = '{"type":"text_delta","text":"x"}\n'
  const cases: [last: string, runs: number][] = [
    ['{"type":"done","meta_data":{}}\n', 1],
    ['{"type":"error","error":"x","code":"deadline","meta_data":{}}\n', 1],
    ['{"type":"error","error":"x","code":"deadline"}\n', 2],
  ]
  for (const [last, count] of cases) {
    const { handler, runs } = counting((_, res) => {
      res.writeHead(200, { 'content-type': 'application/x-ndjson' })
      res.write(text)
      res.end(last)
    })
    const { url } = await listen(t, withIdempotency(handler, { store: memoryStore() }))
    const post = poster(url)
    for (let i = 0; i < 2; i++)
      assert.equal((await post('k', '{}', {}, '/api/chat-stream')).text, text + last)
    assert.equal(runs.count, count)
  }
})

test('a client that goes away leaves no answer behind', async (t) => {
  const gone = Promise.withResolvers<void>()
  const { handler, runs } = counting(async (_, res) => {
    res.write('{"half":')
    if (runs.count === 1) {
      await once(res, 'close')
      return gone.resolve()
    }
    res.end('"whole"}')
  })
  const { url, port } = await listen(t, withIdempotency(handler, { store: memoryStore() }))
  const client = await raw(
    port,
    'POST /api/chat HTTP/1.1\r\nHost: a\r\nIdempotency-Key: k\r\nContent-Length: 2\r\n\r\n{}',
  )
  await client.until('half')
  client.socket.destroy()
  await gone.promise
  assert.equal((await poster(url)('k')).text, '{"half":"whole"}')
  assert.equal(runs.count, 2)
})

function broken(methods: (keyof Store)[]): Store {
  const store = memoryStore()
  const down = async () => {
    throw new Error('ECONNREFUSED')
  }
  return new Proxy(store, {
    get: (target, name) =>
      methods.includes(name as keyof Store) ? down : target[name as keyof Store].bind(target),
  })
}

test('runs nothing while the store is down', async (t) => {
  for (const methods of [['swap'], ['swap', 'get', 'set', 'delete']] as const) {
    const { handler, runs } = counting()
    const { url } = await listen(t, withIdempotency(handler, { store: broken([...methods]) }))
    const { status, text } = await poster(url)('k')
    assert.deepEqual([status, JSON.parse(text).code], [503, 'store_unavailable'])
    assert.equal(runs.count, 0)
  }
})

test('a store that fails at the end costs the answer, and runs nothing twice', async (t) => {
  const { handler, runs } = counting()
  const { url } = await listen(t, withIdempotency(handler, { store: broken(['set']) }))
  assert.equal((await poster(url)('k')).status, 200)
  assert.equal((await poster(url)('k')).status, 503)
  assert.equal(runs.count, 1)
})

test('hands the body on as it came, whole, in pieces, chunked, or too large', async (t) => {
  const { handler, runs } = counting()
  const { url, port } = await listen(
    t,
    withIdempotency(handler, { store: memoryStore(), bodyBytes: 100_000 }),
  )
  const bodies = ['x', 'é'.repeat(40_000), 'y'.repeat(100_000), 'z'.repeat(400_000)]
  for (const [i, body] of bodies.entries()) await poster(url)(`k${i}`, body)
  const head = 'POST /api/chat HTTP/1.1\r\nHost: a\r\nConnection: close\r\nIdempotency-Key: c\r\n'
  const client = await raw(port, `${head}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n`)
  await new Promise((resolve) => setTimeout(resolve, 20))
  client.send('2\r\nde\r\n')
  await new Promise((resolve) => setTimeout(resolve, 20))
  client.send('0\r\n\r\n')
  await client.closed
  assert.deepEqual(runs.bodies, [...bodies, 'abcde'])
  // too large to be compared: passed on both times
  await poster(url)('k3', bodies[3])
  assert.equal(runs.count, 6)
})

test('an empty body reaches the handler as one', async (t) => {
  const { handler, runs } = counting()
  const { url, port } = await listen(t, withIdempotency(handler, { store: memoryStore() }))
  assert.equal((await poster(url)('k', '')).status, 200)
  const head = 'POST /api/chat HTTP/1.1\r\nHost: a\r\nConnection: close\r\nIdempotency-Key: c\r\n'
  const client = await raw(port, `${head}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n`)
  assert.match(await client.closed, /^HTTP\/1.1 200/)
  assert.deepEqual(runs.bodies, ['', ''])
})

test('an answer too large to keep is not made again', async (t) => {
  const { handler, runs } = counting((_, res) => res.end('x'.repeat(101)))
  const store = memoryStore()
  const { url } = await listen(t, withIdempotency(handler, { store, answerBytes: 100 }))
  assert.equal((await poster(url)('k')).status, 200)
  const again = await poster(url)('k')
  assert.equal(again.status, 422)
  assert.match(JSON.parse(again.text).detail, /too large to keep/)
  assert.equal(runs.count, 1)
})

test('refuses a key that is no key', async (t) => {
  const { handler, runs } = counting()
  const { url } = await listen(t, withIdempotency(handler, { store: memoryStore() }))
  for (const key of ['', 'a b', 'x'.repeat(256), 'é'])
    assert.equal((await poster(url)(key)).status, 422, key)
  assert.equal((await poster(url)('x'.repeat(255))).status, 200)
  assert.equal(runs.count, 1)
})

test('whose key it is says principal; where it refuses, the handler is asked', async (t) => {
  const { handler, runs } = counting()
  const principal = (req: IncomingMessage) => {
    if (req.headers['x-user'] === 'evil') throw new Error('no')
    return req.headers['x-user'] as string | undefined
  }
  const { url } = await listen(t, withIdempotency(handler, { store: memoryStore(), principal }))
  const as = (user?: string) => poster(url)('k', '{}', user ? { 'x-user': user } : {})
  await as('ann')
  assert.equal((await as('ann')).headers['idempotency-replayed'], 'true')
  await as('bob')
  assert.equal(runs.count, 2)
  for (const user of [undefined, undefined, 'evil', 'evil'])
    assert.equal((await as(user)).headers['idempotency-replayed'], undefined)
  assert.equal(runs.count, 6)
})

test('other paths and methods pass untouched, and a handler that throws frees the key', async (t) => {
  let throwing = true
  const inner: Handler = async (_, res) => {
    if (throwing) throw new Error('broken')
    res.end('ok')
    return true
  }
  const seen: unknown[] = []
  const principal = () => 'ann'
  const outer = withIdempotency(inner, { store: memoryStore(), principal })
  const { url } = await listen(t, async (req, res) => {
    if (req.url === '/mine')
      return withIdempotency(async () => false, { store: memoryStore(), principal })(req, res)
    return outer(req, res).catch((error) => {
      seen.push((error as Error).message)
      res.writeHead(500).end()
      return true
    })
  })
  assert.equal((await poster(url)('k', '{}', {}, '/mine')).status, 404)
  assert.equal((await poster(url)('k')).status, 500)
  throwing = false
  assert.equal((await poster(url)('k')).text, 'ok')
  assert.equal(
    (await request(`${url}/api/chat`, { headers: { 'idempotency-key': 'k' } })).statusCode,
    200,
  )
  assert.deepEqual(seen, ['broken'])
})

test('an entry that nobody here wrote is nobody’s answer, and nothing runs on it', async (t) => {
  for (const text of ['', 'null', '5', '"x"', '{', '{"hash":5}', '[]']) {
    const store = { ...faultyStore(), swap: async () => false, get: async () => text }
    const { handler, runs } = counting()
    const { url } = await listen(t, withIdempotency(handler, { store }))
    const { status } = await poster(url)('k')
    assert.ok([503, 422].includes(status), `${text} ${status}`)
    assert.equal(runs.count, 0)
  }
})

test('an answer sent again to a client that does not read it is ended by a clock', async (t) => {
  const size = 20_000_000
  const { handler, runs } = counting((_, res) => res.end('x'.repeat(size)))
  const options = { store: memoryStore(), answerBytes: 2 * size, stallMs: 80 }
  const { server, port, url } = await listen(t, withIdempotency(handler, options))
  await poster(url)('k')
  const head =
    'POST /api/chat HTTP/1.1\r\nHost: a\r\nIdempotency-Key: k\r\nContent-Length: 2\r\n\r\n{}'
  const connections = () =>
    new Promise<number>((resolve) => server.getConnections((_, n) => resolve(n)))
  const before = await connections()
  const accepted = once(server, 'connection')
  const client = await raw(port, head)
  await accepted
  client.socket.pause()
  while ((await connections()) > before) await new Promise((resolve) => setTimeout(resolve, 10))
  assert.equal(runs.count, 1)
  client.socket.destroy()
})

test('a handler that has no such path leaves the key free', async (t) => {
  const store = memoryStore()
  const none = await listen(
    t,
    withIdempotency(async () => false, { store, principal: () => 'ann' }),
  )
  const { handler } = counting()
  const some = await listen(t, withIdempotency(handler, { store }))
  assert.equal((await poster(none.url)('k')).status, 404)
  assert.equal((await poster(some.url)('k')).status, 200)
})

// ---------------------------------------------------------------- the end

/** A chat whose streams end when told to, as `chatHandler`'s do. */
function streaming() {
  const live = new Set<() => void>()
  let draining = false
  let hard = 0
  let working = 0
  const handler = async (req: IncomingMessage, res: ServerResponse) => {
    if (draining) {
      res.writeHead(503, { 'content-length': 0 }).end()
      return true
    }
    const done = Promise.withResolvers<string>()
    const stop = () => done.resolve('shutting_down')
    live.add(stop)
    res.write('begun\n')
    if (req.url === '/endless') res.write('x'.repeat(20_000_000))
    const finish = setTimeout(() => done.resolve('done'), Number(req.url?.slice(1)) || 60_000)
    const last = await done.promise
    clearTimeout(finish)
    res.end(`${last}\n`)
    live.delete(stop)
    return true
  }
  const parts = {
    drain: () => {
      draining = true
    },
    abortAll: (isHard = false) => {
      if (isHard) hard++
      for (const stop of live) stop()
    },
    get active() {
      return live.size + working
    },
    work: (by: number) => {
      working += by
    },
    hards: () => hard,
  }
  return { handler, parts }
}
const quick = { ...serverOptions, connectionsCheckingInterval: 20 }
const ask = (path: string) => `GET ${path} HTTP/1.1\r\nHost: a\r\n\r\n`

test('lets streams finish, and closes what is idle, half open or silent', async (t) => {
  const { handler, parts } = streaming()
  const { server, port } = await listen(t, handler, quick)
  const streams = await Promise.all(Array.from({ length: 10 }, () => raw(port, ask('/300'))))
  const idle = await Promise.all(Array.from({ length: 10 }, () => raw(port, ask('/1'))))
  const half = await Promise.all(
    ['', 'GET', 'GET / HTTP/1.1\r\nHost: a\r\nX-'].map((text) => raw(port, text)),
  )
  await Promise.all(streams.map((client) => client.until('begun')))
  await Promise.all(idle.map((client) => client.until('0\r\n\r\n')))
  const drained = await drain(server, parts)
  assert.deepEqual(drained, { aborted: 0, cut: 0, running: 0 })
  for (const client of streams)
    assert.match(await client.closed, /begun[\s\S]*done\n\r\n0\r\n\r\n$/)
  await Promise.all([...idle, ...half].map((client) => client.closed))
  await assert.rejects(raw(port), { code: 'ECONNREFUSED' })
})

test('after the grace, streams end with shutting_down and none is cut', async (t) => {
  const { handler, parts } = streaming()
  const { server, port } = await listen(t, handler, quick)
  const streams = await Promise.all(Array.from({ length: 20 }, () => raw(port, ask('/60000'))))
  await Promise.all(streams.map((client) => client.until('begun')))
  const drained = await drain(server, parts, { graceMs: 50, hardMs: 5_000 })
  assert.deepEqual(drained, { aborted: 20, cut: 0, running: 0 })
  for (const client of streams) assert.match(await client.closed, /shutting_down\n\r\n0\r\n\r\n$/)
  assert.equal(parts.hards(), 0)
})

test('a request on an open connection gets 503 and the end of it', async (t) => {
  const { handler, parts } = streaming()
  const { server, port } = await listen(t, handler, quick)
  const client = await raw(port, ask('/100'))
  await client.until('begun')
  const ended = drain(server, parts)
  client.send(ask('/100'))
  const text = await client.closed
  assert.match(
    text,
    /done\n\r\n0\r\n\r\nHTTP\/1.1 503 Service Unavailable\r\nconnection: close\r\n/,
  )
  assert.deepEqual(await ended, { aborted: 0, cut: 0, running: 0 })
})

test('a client that never reads is cut at the hard limit', async (t) => {
  const { handler, parts } = streaming()
  const { server, port } = await listen(t, handler, quick)
  const client: Raw = await raw(port, ask('/endless'))
  client.socket.pause()
  while (parts.active === 0) await new Promise(setImmediate)
  const drained = await drain(server, parts, { graceMs: 20, hardMs: 60 })
  assert.deepEqual(drained, { aborted: 1, cut: 1, running: 0 })
  assert.equal(parts.hards(), 1)
  client.socket.destroy()
})

test('a slow reader gets the whole of an answer that had ended before the drain began', async (t) => {
  const size = 20_000_000
  const ended = Promise.withResolvers<void>()
  const { parts } = streaming()
  const { server, port } = await listen(
    t,
    async (_, res) => {
      res.end('x'.repeat(size))
      ended.resolve()
      return true
    },
    quick,
  )
  const client = await raw(port, ask('/'))
  client.socket.pause()
  await ended.promise
  const drained = drain(server, parts)
  setTimeout(() => client.socket.resume(), 100)
  const text = await client.closed
  assert.equal(text.length - text.indexOf('\r\n\r\n') - 4, size)
  assert.deepEqual(await drained, { aborted: 0, cut: 0, running: 0 })
})

test('waits for work whose client is gone, until the hard limit', async (t) => {
  const { handler, parts } = streaming()
  const { server } = await listen(t, handler, quick)
  parts.work(2)
  setTimeout(() => parts.work(-1), 60)
  const drained = await drain(server, parts, { graceMs: 20, hardMs: 120 })
  assert.deepEqual(drained, { aborted: 2, cut: 0, running: 1 })
})

test('may be called again, and on a server that never listened', async (t) => {
  const { handler, parts } = streaming()
  const { server } = await listen(t, handler, quick)
  const both = await Promise.all([drain(server, parts), drain(server, parts)])
  assert.deepEqual(both[0], both[1])
  assert.deepEqual(await drain(createServer(), parts), { aborted: 0, cut: 0, running: 0 })
})

// ---------------------------------------------------------------- with the handler itself

/** An agent with one gated tool, which takes `ms`. */
function desk(replies: ScriptEntry[], ms = 0) {
  const done: string[] = []
  const remove = tool({
    name: 'delete_pod',
    description: 'Delete a pod',
    input: '{ name: string }',
    requiresApproval: true,
    execute: async ({ name }) => {
      await new Promise((resolve) => setTimeout(resolve, ms))
      done.push(name)
      return `deleted ${name}`
    },
  })
  return { chat: chatHandler({ name: 'ops', provider: scripted(replies), tools: [remove] }), done }
}
const call = { calls: [{ name: 'delete_pod', input: { name: 'x' } }] }
const asJson = { 'content-type': 'application/json' }
const thread = (content: string, data?: unknown) =>
  JSON.stringify({ messages: [{ role: 'user', content, data }] })
async function proposal(url: string) {
  const { text } = await poster(url)(undefined, thread('delete x'), asJson)
  const { id, name, input } = JSON.parse(text).data.tool_calls[0]
  return thread('', { tool_calls: [{ id, name, input, execute: true }] })
}

test('an approval sent twice under one key runs once and is answered alike', async (t) => {
  const { chat, done } = desk([call, 'gone'])
  const { url } = await listen(t, withIdempotency(chat, { store: memoryStore() }))
  const approval = await proposal(url)
  const [first, again] = await Promise.all([
    poster(url)('k', approval, asJson),
    poster(url)('k', approval, asJson),
  ])
  assert.equal(JSON.parse(first.text).data.executed_tool_calls[0].output, 'deleted x')
  assert.equal(again.text, first.text)
  assert.deepEqual(done, ['x'])
})

test('drain ends a stream of the handler with shutting_down, and lets an approved tool finish', async (t) => {
  const endless: ScriptEntry = async (_, { signal, onDelta }) => {
    await onDelta?.({ type: 'text_delta', text: 'begun' })
    await once(signal as AbortSignal, 'abort')
    throw signal?.reason
  }
  const talk = desk([endless])
  const one = await listen(t, talk.chat, quick)
  const body = thread('hi')
  const client = await raw(
    one.port,
    `POST /api/chat-stream HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n` +
      `Content-Length: ${body.length}\r\n\r\n${body}`,
  )
  await client.until('begun')
  const ended = await drain(one.server, talk.chat, { graceMs: 30, hardMs: 5_000 })
  assert.deepEqual(ended, { aborted: 1, cut: 0, running: 0 })
  const lines = (await client.closed).split('\n').filter((line) => line.startsWith('{'))
  assert.equal(JSON.parse(lines.at(-1) ?? '').code, 'shutting_down')

  const work = desk([call, 'gone'], 150)
  const two = await listen(t, work.chat, quick)
  const approval = await proposal(two.url)
  const answered = poster(two.url)(undefined, approval, asJson)
  while (work.chat.active === 0) await new Promise(setImmediate)
  const drained = await drain(two.server, work.chat, { graceMs: 30, hardMs: 5_000 })
  assert.deepEqual(drained, { aborted: 1, cut: 0, running: 0 })
  assert.deepEqual(work.done, ['x'])
  const { status, text } = await answered
  assert.equal(status, 200)
  assert.equal(JSON.parse(text).data.executed_tool_calls[0].output, 'deleted x')
})

const script = (grace: number) => `
  import { createServer } from 'node:http'
  import { onSignals, serverOptions } from ${JSON.stringify(new URL('../src/door.ts', import.meta.url))}
  let active = 0
  const chat = { drain() {}, abortAll() {}, get active() { return active } }
  const server = createServer(serverOptions, (req, res) => {
    active++
    res.write('begun')
    setTimeout(() => { active--; res.end('done') }, Number(req.url.slice(1)))
  })
  onSignals(server, chat, {
    graceMs: ${grace}, hardMs: ${grace},
    finish: (drained) => console.log(JSON.stringify(drained)),
  })
  server.listen(0, '127.0.0.1', () => console.log(server.address().port))`

async function child(t: TestContext, grace: number) {
  const node = spawn(process.execPath, ['--input-type=module', '-e', script(grace)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  t.after(() => node.kill('SIGKILL'))
  let out = ''
  node.stdout.on('data', (chunk) => {
    out += chunk
  })
  await once(node.stdout, 'data')
  return { node, port: Number(out), exit: once(node, 'exit'), out: () => out }
}

test('a signal drains and exits with 0', async (t) => {
  const { node, port, exit, out } = await child(t, 10_000)
  const client = await raw(port, ask('/200'))
  await client.until('begun')
  node.kill('SIGTERM')
  assert.match(await client.closed, /done/)
  assert.deepEqual(await exit, [0, null])
  assert.match(out(), /\{"aborted":0,"cut":0,"running":0\}/)
})

test('a second signal exits with 1 at once, and so does work that never ends, at the hard limit', async (t) => {
  const twice = await child(t, 60_000)
  const client = await raw(twice.port, ask('/60000'))
  await client.until('begun')
  twice.node.kill('SIGTERM')
  await assert.rejects(async () => {
    for (;;) (await raw(twice.port)).socket.destroy() // until it accepts no more: the first signal has arrived
  })
  twice.node.kill('SIGINT')
  assert.deepEqual(await twice.exit, [1, null])
  const never = await child(t, 50)
  await (await raw(never.port, ask('/60000'))).until('begun')
  never.node.kill('SIGTERM')
  assert.deepEqual(await never.exit, [1, null])
  assert.match(never.out(), /\{"aborted":1,"cut":1,"running":1\}/)
})
