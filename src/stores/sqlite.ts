// A Store in one SQLite file, over node:sqlite: the durable default, with nothing to install. Creates the file (readable
// by its owner only) and in it the table `dcaf_store` at the first use, and beside it SQLite's own `-wal` and `-shm`.
//
// Covers: any number of processes on one machine; what was confirmed survives `kill -9` and power loss (WAL with
//   synchronous=FULL); the file deleted under running processes, which then all go on with the same new one.
// Does not cover: network file systems (their locks are no locks), several machines, a disk that hangs (calls are
//   synchronous: about one fsync a write), an older copy of the file put back: it has forgotten what ran since. To
//   put any file in its place stop every process first and remove `-wal` and `-shm`.
// https://sqlite.org/wal.html, https://sqlite.org/howtocorrupt.html

import { chmodSync, existsSync, rmSync, statSync } from 'node:fs'
import { resolve } from 'node:path'
import type { DatabaseSync, StatementSync } from 'node:sqlite'
import { setTimeout as sleep } from 'node:timers/promises'
import { DcafError } from '../providers/provider.ts'
import { lifetime, type Store } from '../store.ts'
import { checkedTimeout, fromText, toText, unavailable } from './shared.ts'

export interface SqliteStoreOptions {
  /** How long to wait while another process writes, without holding up this one. Default 5,000. */
  timeoutMs?: number
  /** The file's size at the most: writes beyond it are refused as on a full disk. Default: the disk's. */
  maxBytes?: number
}

export interface SqliteStore extends Store {
  /** Closes the file. Every method then rejects with `store_unavailable`. */
  close(): void
}

const batch = 500
const sweepEveryMs = 60_000

/**
 * `file` is a path; its folder must exist. Throws only for what is wrong for good; a file that cannot be opened rejects
 * each call with `store_unavailable`, as does one that is locked, full or read-only, and the next call tries again.
 */
export function sqliteStore(file: string, options: SqliteStoreOptions = {}): SqliteStore {
  const path = checkedPath(file)
  const timeoutMs = checkedTimeout(options.timeoutMs)
  let connection: Connection | undefined
  let isClosed = false
  let nextSweep = 0

  function disconnect(): void {
    connection?.database.close()
    connection = undefined
  }

  function current(): Connection {
    if (isClosed) throw new Error('the store was closed')
    if (connection && connection.inode !== inodeOf(path)) disconnect()
    connection ??= connect(path, options.maxBytes)
    return connection
  }

  /**
   * SQLite's own busy_timeout would wait too, but synchronously: one stuck writer would stop the whole process for
   * five seconds a call.
   */
  async function attempt<T>(what: string, work: (on: Connection, now: number) => T): Promise<T> {
    const deadline = performance.now() + timeoutMs
    for (let pauseMs = 1; ; pauseMs = Math.min(2 * pauseMs, 50)) {
      try {
        return work(current(), Date.now())
      } catch (error) {
        const isBusy = [5, 6, 15].includes(resultCode(error)) // SQLITE_BUSY, SQLITE_LOCKED, SQLITE_PROTOCOL
        if (!isBusy) disconnect() // what broke it may be gone next time
        if (!isBusy || performance.now() >= deadline)
          throw unavailable(`SQLite ${what}, ${path}`, error)
      }
      await sleep(pauseMs * (0.5 + Math.random()))
    }
  }

  /** A batch at a time, with the writes: a process has no second thread to do it in. */
  function sweep({ prune }: Connection, now: number): void {
    if (now < nextSweep) return
    nextSweep = Number(prune.run(now).changes) === batch ? now : now + sweepEveryMs
  }

  return {
    get: (key) =>
      attempt('get', ({ get }, now) => {
        const row = get.get(toText(key), now)
        return row && fromText(String(row.value))
      }),

    async set(key, value, ttlMs) {
      const ttl = lifetime(ttlMs)
      await attempt('set', (on, now) => {
        sweep(on, now)
        on.set.run(toText(key), toText(value), expiry(now, ttl))
      })
    },

    async swap(key, expected, value, ttlMs) {
      const ttl = lifetime(ttlMs)
      return attempt('swap', (on, now) => {
        sweep(on, now)
        const row = [toText(key), toText(value), expiry(now, ttl), now]
        const { changes } =
          expected === undefined ? on.claim.run(...row) : on.swap.run(...row, toText(expected))
        return changes > 0
      })
    },

    async delete(key) {
      await attempt('delete', (on) => on.delete.run(toText(key)))
    },

    close() {
      isClosed = true
      disconnect()
    },
  }
}

interface Connection
  extends Record<'get' | 'set' | 'claim' | 'swap' | 'delete' | 'prune', StatementSync> {
  database: DatabaseSync
  inode: string
}

function connect(path: string, maxBytes: number | undefined): Connection {
  // Asked for here: importing this file costs nothing, and warns of nothing where node:sqlite is experimental
  const sqlite = process.getBuiltinModule('node:sqlite')
  if (!sqlite) throw new Error('this Node was built without node:sqlite')
  const isNew = !existsSync(path)
  const database = new sqlite.DatabaseSync(path)
  try {
    // Not by opening it first: closing any descriptor of a database drops the locks this process has on it
    if (isNew) chmodSync(path, 0o600)
    database.exec('PRAGMA synchronous = FULL')
    if (statSync(path).size === 0) create(database, path)
    const mode = database.prepare('PRAGMA journal_mode = WAL').get()?.journal_mode
    if (mode !== 'wal') throw new Error(`needs WAL, the file system gives ${mode}`)
    database.exec(schema)
    if (maxBytes !== undefined) {
      const { page_size } = database.prepare('PRAGMA page_size').get() as { page_size: number }
      database.exec(`PRAGMA max_page_count = ${Math.max(1, Math.floor(maxBytes / page_size))}`)
    }
    const set = `INSERT INTO dcaf_store (key, value, expires) VALUES (?1, ?2, ?3)
      ON CONFLICT (key) DO UPDATE SET value = excluded.value, expires = excluded.expires`
    return {
      database,
      inode: inodeOf(path),
      get: database.prepare(
        'SELECT value FROM dcaf_store WHERE key = ?1 AND (expires IS NULL OR expires > ?2)',
      ),
      set: database.prepare(set),
      claim: database.prepare(`${set} WHERE dcaf_store.expires <= ?4`),
      swap: database.prepare(`UPDATE dcaf_store SET value = ?2, expires = ?3
        WHERE key = ?1 AND value = ?5 AND (expires IS NULL OR expires > ?4)`),
      delete: database.prepare('DELETE FROM dcaf_store WHERE key = ?1'),
      prune: database.prepare(`DELETE FROM dcaf_store WHERE key IN
        (SELECT key FROM dcaf_store WHERE expires <= ?1 ORDER BY expires LIMIT ${batch})`),
    }
  } catch (error) {
    database.close()
    throw error
  }
}

const schema = `
  CREATE TABLE IF NOT EXISTS dcaf_store (
    key TEXT PRIMARY KEY, value TEXT NOT NULL, expires INTEGER /* Unix ms; null: stays */
  ) STRICT;
  CREATE INDEX IF NOT EXISTS dcaf_store_expires ON dcaf_store (expires) WHERE expires IS NOT NULL`

/**
 * Where a database was deleted without its `-wal` and `-shm`, and a process still has it open, a new one of that name
 * would share those two with it and lose what it wrote. They are removed while nobody can be using them: this process
 * has the empty file to itself, and no file is in WAL mode while it is empty.
 */
function create(database: DatabaseSync, path: string): void {
  database.exec('BEGIN EXCLUSIVE')
  if (statSync(path).size === 0)
    for (const suffix of ['-wal', '-shm']) rmSync(path + suffix, { force: true })
  database.exec(`${schema}; COMMIT`)
}

function checkedPath(file: string): string {
  if (typeof file === 'string' && file && file !== ':memory:' && !file.startsWith('file:'))
    return resolve(file) // now: the working directory may be another one at the first use
  throw new DcafError(
    'invalid_argument',
    `sqliteStore needs the path of a file, got ${JSON.stringify(file)}. In memory: memoryStore()`,
  )
}

/** Which file the path names now; `` if none. */
function inodeOf(path: string): string {
  const stat = statSync(path, { throwIfNoEntry: false })
  return stat ? `${stat.dev}:${stat.ino}` : ''
}

function expiry(now: number, ttl: number | undefined): number | null {
  return ttl === undefined ? null : now + ttl
}

/** SQLite's primary result code: the low byte of the extended one. */
function resultCode(error: unknown): number {
  return error instanceof Error && 'errcode' in error ? Number(error.errcode) & 0xff : 0
}
