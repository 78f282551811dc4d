// A store that is locked, full, read-only, slow, cut off, silent or restarted, through a real one: what could not be recorded
// does not run, what ran is told, nothing runs twice, and whoever needs no store notices nothing.

import assert from 'node:assert/strict'
import { chmodSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { after, afterEach, before, describe, type TestContext, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { Client } from 'pg'
import type { LogEntry } from '../../src/http.ts'
import type { Store } from '../../src/store.ts'
import { type SqliteStore, sqliteStore } from '../../src/stores/sqlite.ts'
import { faultyStore } from '../faulty-store.ts'
import { serve } from '../harness.ts'
import { type NetworkProxy, proxyOf } from '../services.ts'
import { keepClean } from './clean.ts'
import { decide, fleetKey, isUnknown, propose, say, styles } from './fleet.ts'
import { type Ops, opsAgent } from './ops.ts'
import { type OwnServer, ownPostgres, ownRedis } from './servers.ts'
import { isFull, quantile, row, times, tried } from './table.ts'
import { openStore, type Where, type World, worlds } from './worlds.ts'

keepClean()

/** A server over `store`, what its tool did to each call, and what it logged. */
async function desk(t: TestContext, store: Store, ops: Partial<Ops> = {}, tool: object = {}) {
  const done = new Map<string, string[]>()
  const entries: LogEntry[] = []
  const onEffect: Ops['onEffect'] = async (callId, effect, ctx) => {
    done.set(callId, [...(done.get(callId) ?? []), effect])
    await ops.onEffect?.(callId, effect, ctx)
  }
  const agent = opsAgent({ ...ops, onEffect }, tool)
  const log = (entry: LogEntry) => void entries.push(entry)
  const { url } = await serve(t, agent, { store, keys: [fleetKey], log })
  return { url, entries, done: (callId: string) => done.get(callId) ?? [] }
}

/** `act` for as long as it is refused: the store recovers by itself. In a full run within so many seconds. */
async function recovered<T extends { status: number }>(
  act: () => Promise<T>,
  seconds = 5,
): Promise<T> {
  const began = performance.now()
  for (;;) {
    const answer = await act()
    if (answer.status !== 503) {
      if (isFull) assert.ok(performance.now() - began < seconds * 1_000, 'it took too long')
      return answer
    }
    await sleep(20)
  }
}

type Desk = Awaited<ReturnType<typeof desk>>
type Call = Awaited<ReturnType<typeof propose>>

async function assertRefused(it: Desk, call: Call) {
  for (const style of styles.slice(0, 2)) {
    const { status, code } = await decide(it.url, call, style)
    assert.deepEqual([status, code], [503, 'store_unavailable'])
  }
  assert.deepEqual(it.done(call.callId), [])
}
async function assertRunsOnce(it: Desk, call: Call) {
  const { output } = await recovered(() => decide(it.url, call))
  const [effect, ...more] = it.done(call.callId)
  assert.deepEqual([output, more], [effect, []])
  const again = await decide(it.url, call, 'old')
  assert.deepEqual([again.output, again.replayed], [effect, true])
}

async function assertChats(url: string, words = 'look') {
  const { status, body } = await say(url, words)
  assert.deepEqual([status, body.content], [200, 'ok'])
}

// ------------------------------------------------------------ a file

describe('a file that fails', () => {
  const folder = mkdtempSync(join(tmpdir(), 'dcaf-faults-'))
  after(() => rmSync(folder, { recursive: true, force: true }))
  let files = 0
  const newStore = (options: object = {}): [SqliteStore, string] => {
    const file = join(folder, `${++files}.db`)
    return [sqliteStore(file, { timeoutMs: times(100, 5_000), ...options }), file]
  }

  test('locked by another writer: nothing runs, chat goes on, and it runs once it is free', (t) =>
    tried(t, 'SQLite locked', times(1, 3), async () => {
      const [store, file] = newStore()
      const it = await desk(t, store)
      const call = await propose(it.url, 'web-1')
      const other = new DatabaseSync(file)
      other.exec('BEGIN IMMEDIATE')
      const refused = assertRefused(it, call)
      await assertChats(it.url)
      await refused
      other.exec('COMMIT')
      other.close()
      await assertRunsOnce(it, call)
      store.close()
    }))

  /** Until not even the smallest row has room. */
  async function fill(store: Store) {
    for (const size of [16_384, 2_048, 256, 1])
      for (let n = 0, hasRoom = true; hasRoom; n++)
        hasRoom = await store.set(`fill ${size} ${n}`, 'x'.repeat(size)).then(
          () => true,
          () => false,
        )
  }

  test('full when it must begin: nothing runs, until there is room', (t) =>
    tried(t, 'SQLite full at begin', times(1, 20), async () => {
      const [store] = newStore({ maxBytes: 128 * 1024 })
      const it = await desk(t, store)
      const call = await propose(it.url, 'web-1')
      await fill(store)
      await assertRefused(it, call)
      await assertChats(it.url)
      await store.delete('fill 16384 0')
      await assertRunsOnce(it, call)
      store.close()
    }))

  test('full when it must finish: told once, logged, and unknown to whoever asks again', (t) =>
    tried(t, 'SQLite full at finish', times(1, 20), async () => {
      const [store] = newStore({ maxBytes: 128 * 1024 })
      const it = await desk(t, store, { onEffect: () => fill(store) })
      const call = await propose(it.url, `web-${'x'.repeat(10_000)}`)
      await assertToldOnce(it, call)
      store.close()
    }))

  test('read-only: nothing runs, until it may be written', (t) =>
    tried(t, 'SQLite read-only', times(1, 20), async () => {
      const [first, file] = newStore()
      const call = await propose((await desk(t, first)).url, 'web-1')
      first.close()
      const store = sqliteStore(file)
      const it = await desk(t, store)
      const isRoot = process.geteuid?.() === 0 // to whom nothing is read-only
      for (const [path, mode] of [
        [file, 0o444],
        [folder, 0o555],
      ] as const)
        chmodSync(path, mode)
      if (isRoot) process.seteuid?.(65_534)
      try {
        await assertRefused(it, call)
        await assertChats(it.url)
      } finally {
        if (isRoot) process.seteuid?.(0)
        for (const [path, mode] of [
          [folder, 0o755],
          [file, 0o644],
        ] as const)
          chmodSync(path, mode)
      }
      await assertRunsOnce(it, call)
      store.close()
    }))
})

/** The tool ran, and the ledger could not be told: whoever asked has the outcome, and nobody else ever will. */
async function assertToldOnce(it: Desk, call: Call) {
  const { status, output } = await decide(it.url, call)
  assert.deepEqual([status, [output]], [200, it.done(call.callId)])
  assert.ok(it.entries.some(({ event }) => event === 'LedgerFailed'))
  for (const style of styles) {
    const again = await recovered(() => decide(it.url, call, style))
    assert.match(again.output ?? '', isUnknown)
  }
  assert.equal(it.done(call.callId).length, 1)
}

// ------------------------------------------------------------ a network

for (const { name, open, skip } of worlds.slice(1))
  describe(`${name} behind a network that fails`, { skip }, () => {
    let world: World
    let proxy: NetworkProxy
    const opened: (() => Promise<void>)[] = []
    const through = async (timeoutMs = 5_000): Promise<Store> => {
      const { url } = world.where as { url: string }
      const mine = await proxyOf(url, world.port)
      proxy = mine
      const where = { ...world.where, url: proxy.url, timeoutMs } as Where
      const { store, close } = await openStore(where)
      await store.set('warm', 'x') // the first write of a minute prunes first
      opened.push(close, () => mine.close())
      return store
    }
    before(async () => {
      world = await open()
    })
    afterEach(async () => {
      for (const close of opened.splice(0)) await close()
    })
    after(() => world?.close())

    test('down at the start: all but approvals is served, and it recovers by itself', (t) =>
      tried(t, `${name} down at the start`, times(1, 10), async () => {
        const { url } = world.where as { url: string }
        proxy = await proxyOf(url, world.port)
        proxy.cut()
        const { store, close } = await openStore({ ...world.where, url: proxy.url } as Where)
        const it = await desk(t, store)
        const { status, body } = await say(it.url, 'restart web-1')
        assert.deepEqual([status, body.code], [503, 'store_unavailable'])
        await assertChats(it.url)
        proxy.heal()
        await recovered(() => say(it.url, 'restart web-1'))
        await assertRunsOnce(it, await propose(it.url, 'web-1'))
        await close()
        await proxy.close()
      }))

    test('cut between proposal and approval: nothing runs, chat goes on, then it runs once', (t) =>
      tried(t, `${name} cut before begin`, times(1, 20), async () => {
        const it = await desk(t, await through())
        const call = await propose(it.url, 'web-1')
        proxy.cut()
        await assertRefused(it, call)
        await assertChats(it.url)
        await assertChats(it.url, 'hello')
        proxy.heal()
        await assertRunsOnce(it, call)
      }))

    test('cut while the tool runs: told once, logged, and unknown to whoever asks again', (t) =>
      tried(t, `${name} cut between begin and finish`, times(1, 20), async () => {
        const it = await desk(t, await through(), {
          onEffect() {
            proxy.cut()
            setTimeout(() => proxy.heal(), 200)
          },
        })
        await assertToldOnce(it, await propose(it.url, 'web-1'))
      }))

    test('the answer to begin is lost: nothing runs, now or later', (t) =>
      tried(t, `${name}, answer to begin lost`, times(1, 20), async () => {
        const inner = await through()
        const store = faultyStore(inner, (method, key) => {
          if (method === 'swap' && key.startsWith('call:')) proxy.loseReply()
        })
        const it = await desk(t, store)
        const call = await propose(it.url, 'web-1')
        await assertRefused(it, call)
        proxy.heal()
        const other = await desk(t, inner)
        for (const style of styles) {
          const { output } = await recovered(() => decide(other.url, call, style))
          assert.match(output ?? '', isUnknown)
        }
        assert.deepEqual([it.done(call.callId), other.done(call.callId)], [[], []])
      }))

    test('silent: refused after its time, and a begin that arrives late runs nothing', (t) =>
      tried(t, `${name} silent`, times(1, 20), async () => {
        const inner = await through(times(200, 1_000))
        let silences = true
        const store = faultyStore(inner, (method, key) => {
          if (silences && method === 'swap' && key.startsWith('call:')) proxy.hang()
        })
        const it = await desk(t, store)
        const call = await propose(it.url, 'web-1')
        const refused = decide(it.url, call)
        const [chat] = await Promise.all([say(it.url, 'look'), refused])
        assert.deepEqual([chat.status, (await refused).status], [200, 503])
        silences = false
        proxy.heal()
        await sleep(50)
        const { output } = await recovered(() => decide(it.url, call))
        const [effect, ...more] = it.done(call.callId)
        assert.deepEqual(more, [])
        if (effect) assert.equal(output, effect)
        else assert.match(output ?? '', isUnknown)
      }))

    test('slow: an approval takes its time, chat does not', (t) =>
      tried(t, `${name} slow`, times(1, 2), async () => {
        const store = faultyStore(await through())
        const it = await desk(t, store)
        const call = await propose(it.url, 'web-1')
        const chat = async () => {
          const began = performance.now()
          await assertChats(it.url)
          return performance.now() - began
        }
        const many = () => Promise.all(Array.from({ length: times(5, 50) }, chat))
        await many()
        const usual = await many()
        store.fault = { kind: 'slow', ms: times(300, 3_000) }
        let isDone = false
        const answer = decide(it.url, call).then((answered) => {
          isDone = true
          return answered
        })
        const meanwhile = await many()
        assert.equal(isDone, false)
        assert.equal((await answer).output, it.done(call.callId)[0])
        const [before, during] = [quantile(usual, 0.99), quantile(meanwhile, 0.99)]
        row(t, `${name} slow, chat p99`, usual.length, 0, `${during | 0} ms, ${before | 0} before`)
      }))
  })

test('a table that is gone: nothing runs until it is back', {
  skip: worlds[2]?.skip ?? false,
}, async (t) => {
  const world = await (worlds[2] as (typeof worlds)[0]).open()
  const { store, close } = await openStore(world.where)
  const it = await desk(t, store)
  const call = await propose(it.url, 'web-1')
  const { url, table } = world.where as { url: string; table: string }
  const client = new Client({ connectionString: url })
  await client.connect()
  await client.query(`ALTER TABLE ${table} RENAME TO ${table}_away`)
  await assertRefused(it, call)
  await client.query(`ALTER TABLE ${table}_away RENAME TO ${table}`)
  await client.end()
  await assertRunsOnce(it, call)
  await close()
  await world.close()
})

// ------------------------------------------------------------ a server that crashes

for (const [name, open] of [
  ['Redis', ownRedis],
  ['PostgreSQL', ownPostgres],
] as const)
  test(`${name} crashes and is started again under load: nothing runs twice, chat never fails`, {
    skip: !isFull && 'in npm run test:faults',
    timeout: 1_200_000,
  }, async (t) => {
    const server = await open()
    if (!server) return t.skip(`no program to start a ${name} with`)
    try {
      const counts = await storm(t, server)
      const more = `${counts.crashes} crashes, ${counts.unknown} unknown, ${counts.chats} chats`
      row(t, `${name} crashing`, counts.calls, 0, more)
    } finally {
      await server.close()
    }
  })

async function storm(t: TestContext, server: OwnServer) {
  const { store, close } = await openStore({ ...server.where, timeoutMs: 1_000 })
  const it = await desk(t, store)
  const isNightly = Boolean(process.env.DCAF_NIGHTLY)
  const [most, ms] = isNightly ? [5_000, 600_000] : [2_000, 30_000]
  const endsAt = Date.now() + ms
  const calls: Call[] = []
  let working = 4
  let crashes = 0
  let chats = 0
  const worker = async () => {
    while (calls.length < most && Date.now() < endsAt) {
      const words = 'restart web-1'
      const { body } = await recovered(() => say(it.url, words), 60)
      const { id, name, input } = body.data.tool_calls[0]
      const call: Call = { id, callId: id.split('.')[0], name, input, words, answer: body }
      calls.push(call)
      await Promise.all(styles.slice(0, 2).map((style) => decide(it.url, call, style)))
    }
    working--
  }
  const chat = async () => {
    for (; working > 0; chats++) {
      await assertChats(it.url)
      await sleep(20)
    }
  }
  const crash = async () => {
    for (; working > 0; crashes++) {
      await sleep(1_000 + Math.random() * (isNightly ? 4_000 : 1_000))
      await server.crash()
      await sleep(Math.random() * 1_000)
      await server.start()
    }
  }
  await Promise.all([crash(), chat(), ...[1, 2, 3, 4].map(worker)])
  let unknown = 0
  for (const call of calls) {
    const { output } = await recovered(() => decide(it.url, call, 'old'), 60)
    const [effect, ...more] = it.done(call.callId)
    assert.deepEqual(more, [])
    if (output === effect) continue
    assert.match(output ?? '', isUnknown)
    unknown++
  }
  await close()
  return { calls: calls.length, crashes, unknown, chats }
}
