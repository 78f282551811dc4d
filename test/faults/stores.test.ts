// A store that is locked, full, read-only, slow, cut off, silent or restarted, through a real one: what could not be recorded
// does not run, what ran is told, nothing runs twice, and whoever needs no store notices nothing.

import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { after, describe, type TestContext, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import type { LogEntry } from '../../src/http.ts'
import type { Store } from '../../src/store.ts'
import { type SqliteStore, sqliteStore } from '../../src/stores/sqlite.ts'
import { serve } from '../harness.ts'
import { keepClean } from './clean.ts'
import { decide, fleetKey, isUnknown, propose, say, styles } from './fleet.ts'
import { type Ops, opsAgent } from './ops.ts'
import { isFull, times, tried } from './table.ts'

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

/** `act` for as long as it is refused: the store recovers by itself. In a full run within five seconds. */
async function recovered<T extends { status: number }>(act: () => Promise<T>): Promise<T> {
  const began = performance.now()
  for (;;) {
    const answer = await act()
    if (answer.status !== 503) {
      if (isFull) assert.ok(performance.now() - began < 5_000, 'it took more than five seconds')
      return answer
    }
    await sleep(20)
  }
}

async function assertRefused(it: { url: string; done(callId: string): string[] }, call: Call) {
  for (const style of styles.slice(0, 2)) {
    const { status, code } = await decide(it.url, call, style)
    assert.deepEqual([status, code], [503, 'store_unavailable'])
  }
  assert.deepEqual(it.done(call.callId), [])
}
type Call = Awaited<ReturnType<typeof propose>>

async function assertRunsOnce(it: { url: string; done(callId: string): string[] }, call: Call) {
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
    const refused: unknown[] = []
    for (const size of [16_384, 2_048, 256, 1])
      for (let n = 0; refused.length === 0 || n === 0; n++) {
        refused.length = 0
        await store.set(`fill ${size} ${n}`, 'x'.repeat(size)).catch((error) => refused.push(error))
        if (refused.length > 0) break
      }
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
      const long = 'x'.repeat(10_000)
      const it = await desk(t, store, { onEffect: () => fill(store) }, { afterTool: undefined })
      const call = await propose(it.url, `web-${long}`)
      const { status, output } = await decide(it.url, call)
      assert.deepEqual([status, [output]], [200, it.done(call.callId)])
      assert.ok(it.entries.some(({ event }) => event === 'LedgerFailed'))
      for (const style of styles)
        assert.match((await decide(it.url, call, style)).output ?? '', isUnknown)
      assert.equal(it.done(call.callId).length, 1)
      store.close()
    }))

  test('read-only: nothing runs', (t) =>
    tried(t, 'SQLite read-only at begin', times(1, 20), async () => {
      const [store, file] = newStore()
      const it = await desk(t, store)
      const call = await propose(it.url, 'web-1')
      const prepare = DatabaseSync.prototype.prepare
      const open = process.getBuiltinModule('node:sqlite').DatabaseSync
      assert.equal(open.prototype.prepare, prepare)
      const lock = new DatabaseSync(file)
      lock.exec('PRAGMA query_only = ON')
      lock.close()
      await assertRunsOnce(it, call)
      store.close()
    }))
})
