// Many at once, slow ones, and such as go away: counted from outside, measured inside a process of its own. What is
// measured is printed; what is asserted are counts, ends, and orders of magnitude.

import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { Pool, request } from 'undici'
import { type Json, u } from '../harness.ts'
import { raw } from '../raw.ts'
import { type Child, child, type Stats } from './child.ts'
import { context, keepClean, see } from './clean.ts'
import { isFull, quantile, row, times, tried } from './table.ts'

keepClean()

const mib = 1_048_576
const megabytes = (bytes: number) => `${(bytes / mib).toFixed(1)} MiB`
const body = (prompt: string) =>
  JSON.stringify({ messages: [u(prompt, undefined, { platform_context: context })] })
const asJson = { 'content-type': 'application/json' }
const head = (path: string, text: string) =>
  `POST ${path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: ${Buffer.byteLength(text)}\r\n\r\n${text}`

async function stream(url: string, prompt: string): Promise<Json[]> {
  const res = await request(`${url}/api/chat-stream`, {
    method: 'POST',
    headers: asJson,
    body: body(prompt),
  })
  const text = see(await res.body.text())
  assert.equal(res.statusCode, 200, text)
  return text
    .trimEnd()
    .split('\n')
    .map((l) => JSON.parse(l))
}
/** Until what the child says is so, or far too long. */
async function until(server: Child, isSo: (stats: Stats) => boolean): Promise<Stats> {
  for (let tries = 0; ; tries++) {
    const stats = await server.ask('stats')
    if (isSo(stats)) return stats
    assert.ok(tries < 1_200, `it never came to that: ${JSON.stringify(stats)}`)
    await sleep(50)
  }
}

test('streams at full load end well, beside the least that a server can do', async (t) => {
  const server = await child(t)
  const pool = new Pool(server.url, { connections: 100 })
  t.after(() => pool.destroy())
  const took = { '/api/chat-stream': [] as number[], '/echo': [] as number[] }
  const text = body('say 200')
  const ask = async (path: keyof typeof took) => {
    const started = performance.now()
    const res = await pool.request({ path, method: 'POST', headers: asJson, body: text })
    const lines = (await res.body.text()).trimEnd().split('\n')
    took[path].push(performance.now() - started)
    assert.deepEqual([res.statusCode, lines.length], [200, path === '/echo' ? 200 : 201])
  }
  for (const path of ['/echo', '/api/chat-stream'] as const)
    await tried(t, `100 at once: ${path}`, times(300, 20_000), () => ask(path), {
      atOnce: 100,
      more: () =>
        `p50 ${quantile(took[path], 0.5).toFixed(1)} ms, p99 ${quantile(took[path], 0.99).toFixed(1)} ms`,
    })
})

test('readers that never read cost little memory, and are all torn down', async (t) => {
  const count = times(20, 100)
  const server = await child(t, { limits: { stallMs: 3_000, concurrent: 1_000 } })
  await stream(server.url, 'flood 1280')
  const before = await server.ask('gc')
  const text = body('flood 1280')
  const clients = await Promise.all(
    Array.from({ length: count }, async () => {
      const client = await raw(server.port, head('/api/chat-stream', text))
      client.socket.pause()
      client.socket.on('error', () => {})
      return client
    }),
  )
  let made = 0
  await until(server, ({ counts }) => {
    const isStill = counts.asked === count + 1 && counts.flooded === made
    made = counts.flooded
    return isStill
  })
  const held = await server.ask('gc')
  await until(server, (stats) => stats.active === 0)
  // A run is over at its signal; the model that was held by the reader sees it once the socket has closed.
  const ended = await until(server, (stats) => stats.counts.aborted >= count)
  for (const { socket } of clients) socket.destroy()
  const transcripts = (made - 1280) * 16_384 // what the kernel's buffers took: a run keeps its own text
  const grown = held.heap - before.heap - transcripts
  const pieces = `${made - 1280} of ${count * 1280} pieces were made`
  row(
    t,
    'readers that never read 20 MiB',
    count,
    count - ended.counts.aborted,
    `holds ${megabytes(grown)} beside ${megabytes(transcripts)} of transcripts, ${pieces}`,
  )
  assert.ok(grown < 80 * mib, megabytes(grown))
  assert.equal(ended.counts.aborted, count)
  await until(server, (stats) => stats.connections <= before.connections)
})

test('a thousand streams at once are all told to the end', async (t) => {
  const [count, events, ms] = isFull ? [times(60, 1_000), 200, 50] : [60, 40, 5]
  const server = await child(t, { limits: { concurrent: 2_000 } })
  await stream(server.url, 'say 200')
  const before = await server.ask('gc')
  await server.ask('reset')
  let peak = 0
  let held = 0
  let watching = true
  const watch = (async () => {
    for (; watching; await sleep(100)) {
      const stats = await server.ask(held === 0 && peak > 0 ? 'gc' : 'stats')
      if (stats.active === count && held === 0 && peak > 0) held = stats.heap - before.heap
      if (stats.active === count) peak = Math.max(peak, stats.rss)
    }
  })()
  const pool = new Pool(server.url, { connections: count })
  const text = body(`slow ${events} ${ms}`)
  await tried(
    t,
    'streams at once',
    count,
    async () => {
      const res = await pool.request({
        path: '/api/chat-stream',
        method: 'POST',
        headers: asJson,
        body: text,
      })
      const lines = (await res.body.text())
        .trimEnd()
        .split('\n')
        .map((l) => JSON.parse(l))
      assert.equal(lines.filter((l) => l.type === 'text_delta').length, events)
      assert.equal(lines.at(-1).type, 'done')
    },
    { atOnce: count },
  )
  watching = false
  await watch
  await pool.destroy()
  const after = await until(server, (stats) => stats.connections <= before.connections)
  const each = held / count
  const more = (peak - before.rss) / count
  row(
    t,
    'what a stream costs',
    count,
    0,
    `${(each / 1024).toFixed(0)} KiB held, the process grew by ${(more / 1024).toFixed(0)} KiB, event loop late by p99 ${after.lateP99.toFixed(1)} ms, max ${after.lateMax.toFixed(1)} ms`,
  )
  if (isFull) assert.ok(each < 150 * 1024, `${each} bytes a stream`)
  assert.ok(after.handles <= before.handles, `${after.handles} handles, ${before.handles} before`)
})

test('beyond the limit all are told at once to come back, and nobody else', async (t) => {
  const [room, count] = isFull ? [50, times(100, 500)] : [10, 100]
  const server = await child(t, { limits: { concurrent: room } })
  const pool = new Pool(server.url, { connections: count })
  t.after(() => pool.destroy())
  const statuses: Record<number, number> = {}
  const refusedIn: number[] = []
  const refused = Promise.withResolvers<void>()
  const text = body('hang')
  const all = Array.from({ length: count }, async () => {
    const started = performance.now()
    const res = await pool.request({
      path: '/api/chat-stream',
      method: 'POST',
      headers: asJson,
      body: text,
    })
    statuses[res.statusCode] = (statuses[res.statusCode] ?? 0) + 1
    if (res.statusCode === 503) {
      refusedIn.push(performance.now() - started)
      assert.equal(res.headers['retry-after'], '1')
      assert.equal(((await res.body.json()) as Json).code, 'busy')
      if (refusedIn.length === count - room) refused.resolve()
    } else assert.match(await res.body.text(), /begun[\s\S]*shutting_down/)
  })
  await Promise.race([refused.promise, Promise.all(all)])
  await until(server, (stats) => stats.active === room)
  await server.ask('abort')
  await Promise.all(all)
  row(
    t,
    'more than there is room for',
    count,
    0,
    `${JSON.stringify(statuses)}, refusals p99 ${quantile(refusedIn, 0.99).toFixed(0)} ms`,
  )
  assert.deepEqual(statuses, { 200: room, 503: count - room })
})

test('the worst bodies that fit hold the event loop for a moment each', async (t) => {
  const server = await child(t)
  const at = '{"messages":[{"role":"user","content":"hi"'
  const secrets = Object.fromEntries(
    Array.from({ length: 55 }, (_, i) => [`k${i}`, randomBytes(3_300).toString('base64')]),
  )
  const bodies: Record<string, string> = {
    'a text': `${at}},{"role":"user","content":"${'x'.repeat(4_100_000)}"}]}`,
    'escaped text': `${at}},{"role":"user","content":"${'\\u0041'.repeat(690_000)}"}]}`,
    'a deep array': `${at}}],"x":${'['.repeat(2_000_000)}${']'.repeat(2_000_000)}}`,
    'empty objects': `${at}}],"x":[${'{},'.repeat(1_390_000)}{}]}`,
    keys: `${at}}],"x":{${Array.from({ length: 330_000 }, (_, i) => `"k${i}":0`).join()}}}`,
    numbers: `${at}}],"x":[${'1e-7,'.repeat(190_000)}0]}`,
    'wrong messages': `{"messages":[${'{"role":5},'.repeat(999)}${at.slice(13)}}]}`,
    secrets: `${at},"platform_context":${JSON.stringify({ aws_credentials: secrets })}}]}`,
  }
  for (const [name, text] of Object.entries(bodies)) {
    assert.ok(text.length <= 4_194_304, name)
    const before = await server.ask('reset')
    await tried(t, `the worst bodies: ${name}`, times(2, 20), async () => {
      const res = await request(`${server.url}/api/chat`, {
        method: 'POST',
        headers: asJson,
        body: text,
      })
      see(await res.body.text())
      assert.ok([200, 400, 422].includes(res.statusCode), `${res.statusCode}`)
    })
    const { lateMax, cpu } = await server.ask('stats')
    const each = (cpu - before.cpu) / times(2, 20)
    t.diagnostic(
      `${name}: ${each.toFixed(0)} ms of the processor, loop late by ${lateMax.toFixed(0)} ms`,
    )
    assert.ok(lateMax < 5_000, `${name}: ${lateMax} ms`)
  }
})

test('slow senders are closed in time, and others do not feel them', async (t) => {
  const [heads, bodies] = isFull ? [times(100, 2_000), times(30, 500)] : [100, 30]
  const server = await child(t, {
    limits: { concurrent: 20 },
    ...(!isFull && {
      server: { headersTimeout: 500, requestTimeout: 800, connectionsCheckingInterval: 100 },
    }),
  })
  const took = async (n: number) => {
    const each: number[] = []
    for (let i = 0; i < n; i++) {
      const started = performance.now()
      assert.equal((await stream(server.url, 'say 20')).at(-1)?.type, 'done')
      each.push(performance.now() - started)
    }
    return quantile(each, 0.99)
  }
  await took(20)
  const alone = await took(50)
  const clients: Awaited<ReturnType<typeof raw>>[] = []
  const text = head('/api/chat', body('hi'))
  for (let i = 0; i < heads + bodies; i++) {
    const client = await raw(
      server.port,
      i < heads ? 'POST /api/chat HTTP/1.1\r\nHost:' : text.slice(0, -5),
    )
    client.socket.on('error', () => {})
    clients.push(client)
  }
  const among = await took(50)
  const started = performance.now()
  const answers = await Promise.all(clients.map((client) => client.closed))
  const closedIn = performance.now() - started
  const wrong = answers.filter((answer) => !answer.startsWith('HTTP/1.1 408'))
  row(
    t,
    'slow senders',
    heads + bodies,
    wrong.length,
    `all closed within ${(closedIn / 1000).toFixed(1)} s, others p99 ${among.toFixed(1)} ms (alone ${alone.toFixed(1)} ms)`,
  )
  assert.equal(wrong.length, 0, wrong[0])
  await until(server, (stats) => stats.active === 0)
})

test('thousands that go away, or are ended by their clock, leave no memory behind', async (t) => {
  const count = times(150, 5_000)
  for (const kind of ['clients that go away', 'deadlines'] as const) {
    const server = await child(t, {
      limits: { concurrent: 1_000, ...(kind === 'deadlines' && { requestMs: 30 }) },
    })
    const text = head('/api/chat-stream', body('hang'))
    const cycle = async () => {
      const client = await raw(server.port, text)
      client.socket.on('error', () => {})
      await client.until(kind === 'deadlines' ? '"deadline"' : 'begun')
      client.socket.destroy()
      if (!client.socket.closed) await once(client.socket, 'close')
    }
    const rounds = async (n: number) => {
      for (let i = 0; i < n; i += 50)
        await Promise.all(Array.from({ length: Math.min(50, n - i) }, cycle))
      return until(server, (stats) => stats.active === 0 && stats.connections === 0)
    }
    await rounds(200)
    const before = await server.ask('gc')
    await tried(t, kind, 1, () => rounds(count))
    const after = await server.ask('gc')
    const grown = after.heap - before.heap
    row(t, `${kind}: heap`, count, 0, `+${(grown / 1024).toFixed(0)} KiB`)
    assert.ok(grown < 5 * mib, `${grown} bytes`)
    assert.ok(after.handles <= before.handles)
    assert.equal(after.counts.aborted, count + 200)
    assert.equal(server.output(), '')
  }
})
