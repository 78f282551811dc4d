// The SQLite store: the table, many processes on one file, and every way in which a file can fail.

import assert from 'node:assert/strict'
import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { DatabaseSync, StatementSync } from 'node:sqlite'
import { after, describe, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { sqliteStore } from '../../src/stores/sqlite.ts'
import { testStore } from './table.ts'

const folder = mkdtempSync(join(tmpdir(), 'dcaf-sqlite-'))
after(() => rmSync(folder, { recursive: true, force: true }))
const patience = 30_000
let files = 0
const newFile = () => join(folder, `${++files}.db`)

const unavailable = (message: RegExp) => ({
  name: 'DcafError',
  code: 'store_unavailable',
  retryable: true,
  message,
})

describe('sqliteStore', () => {
  const store = sqliteStore(newFile(), { timeoutMs: patience })
  after(() => store.close())
  testStore(() => store)

  test('what it confirmed is there for the next process', async () => {
    const file = newFile()
    const first = sqliteStore(file)
    await first.set('k', 'x')
    assert.equal(await first.swap('claimed', undefined, 'by me', 600_000), true)
    first.close()
    const second = sqliteStore(file)
    assert.equal(await second.get('k'), 'x')
    assert.equal(await second.swap('claimed', undefined, 'by you'), false)
    second.close()
  })

  test('two stores on one file in one process see each other at once', async () => {
    const file = newFile()
    const [a, b] = [sqliteStore(file), sqliteStore(file)]
    const won = await Promise.all(
      Array.from({ length: 100 }, (_, n) => (n % 2 ? a : b).swap('k', undefined, String(n))),
    )
    assert.deepEqual(won.filter(Boolean), [true])
    assert.equal(await a.get('k'), await b.get('k'))
    a.close()
    assert.equal(await b.swap('k', String(won.indexOf(true)), 'x'), true)
    b.close()
  })

  test('makes nothing before the first use, then a file only its owner can read', async () => {
    const file = newFile()
    const made = sqliteStore(file)
    assert.throws(() => statSync(file), { code: 'ENOENT' })
    await made.set('k', 'x')
    for (const suffix of ['', '-wal', '-shm'])
      assert.equal(statSync(file + suffix).mode & 0o777, 0o600, suffix)
    made.close()
  })

  test('leaves the mode of a file that was there, and its other tables, alone', async () => {
    const file = newFile()
    const other = new DatabaseSync(file)
    other.exec("CREATE TABLE mine (x); INSERT INTO mine VALUES ('kept')")
    chmodSync(file, 0o640)
    const made = sqliteStore(file)
    await made.set('k', 'x')
    made.close()
    assert.equal(statSync(file).mode & 0o777, 0o640)
    assert.deepEqual({ ...other.prepare('SELECT x FROM mine').get() }, { x: 'kept' })
    other.close()
  })

  test('a file is in WAL mode, for whoever opens it', async () => {
    const file = newFile()
    const made = sqliteStore(file)
    await made.set('k', 'x')
    made.close()
    const other = new DatabaseSync(file)
    assert.equal(other.prepare('PRAGMA journal_mode').get()?.journal_mode, 'wal')
    other.close()
  })

  test('waits for the disk with every write', async (t) => {
    const opened = new Set<DatabaseSync>()
    const { exec } = DatabaseSync.prototype
    t.mock.method(DatabaseSync.prototype, 'exec', function (this: DatabaseSync, sql: string) {
      opened.add(this)
      exec.call(this, sql)
    })
    const made = sqliteStore(newFile())
    await made.set('k', 'x')
    const levels = [...opened].map((on) => on.prepare('PRAGMA synchronous').get()?.synchronous)
    assert.deepEqual(levels, [2]) // FULL
    made.close()
  })

  test('a key is gone at its very millisecond, not before', async (t) => {
    t.mock.timers.enable({ apis: ['Date'], now: 1_700_000_000_000 })
    const kept = sqliteStore(newFile())
    await kept.set('k', 'x', 1_000)
    t.mock.timers.tick(999)
    assert.equal(await kept.get('k'), 'x')
    assert.equal(await kept.swap('k', undefined, 'y'), false)
    t.mock.timers.tick(1)
    assert.equal(await kept.get('k'), undefined)
    assert.equal(await kept.swap('k', 'x', 'y'), false)
    assert.equal(await kept.swap('k', undefined, 'y'), true)
    kept.close()
  })

  test('keeps to the folder it was given a path in when the process moves elsewhere', async () => {
    const home = process.cwd()
    process.chdir(folder)
    const made = sqliteStore('relative.db')
    process.chdir(home)
    await made.set('k', 'x')
    made.close()
    assert.ok(statSync(join(folder, 'relative.db')).isFile())
  })

  for (const file of ['', ':memory:', 'file::memory:', 'file:x?mode=memory', undefined, 7])
    test(`refuses what names no file: ${file}`, () => {
      assert.throws(() => sqliteStore(file as string), {
        code: 'invalid_argument',
        message: /needs the path of a file.*memoryStore/,
      })
    })

  for (const timeoutMs of [0, -1, Number.NaN, 2 ** 31, Number.POSITIVE_INFINITY])
    test(`refuses ${timeoutMs} as a time to wait`, () => {
      assert.throws(() => sqliteStore(newFile(), { timeoutMs }), { code: 'invalid_argument' })
    })

  test('importing it does not load node:sqlite', async () => {
    const child = fork(join(import.meta.dirname, 'import-only.ts'), [newFile()], { silent: true })
    const [loaded] = await once(child, 'message')
    assert.deepEqual(loaded, { before: false, after: true })
  })
})

describe('sqliteStore, expired rows', () => {
  const rows = (file: string) => {
    const other = new DatabaseSync(file)
    const { n } = other.prepare('SELECT count(*) AS n FROM dcaf_store').get() as { n: number }
    other.close()
    return n
  }

  test('go with the writes, a batch at a time, and nothing else goes', async (t) => {
    t.mock.timers.enable({ apis: ['Date'], now: 1_700_000_000_000 })
    const file = newFile()
    const made = sqliteStore(file)
    for (let n = 0; n < 700; n++) await made.set(`old ${n}`, 'x', 1_000)
    await made.set('later', 'x', 600_000)
    await made.set('always', 'x')
    assert.equal(rows(file), 702)
    t.mock.timers.tick(59_000)
    await made.set('always', 'x')
    assert.equal(rows(file), 702, 'not yet: at most once a minute')
    t.mock.timers.tick(1_000)
    await made.set('always', 'x')
    assert.equal(rows(file), 202, 'a whole batch')
    await made.swap('always', 'x', 'y')
    assert.equal(rows(file), 2, 'the rest with the next write')
    assert.equal(await made.get('later'), 'x')
    assert.equal(await made.get('always'), 'y')
    made.close()
  })

  test('go with the first write of a new process', async () => {
    const file = newFile()
    const first = sqliteStore(file)
    await first.set('old', 'x', 10)
    first.close()
    await sleep(30)
    const second = sqliteStore(file)
    await second.set('k', 'x')
    second.close()
    assert.equal(rows(file), 1)
  })
})

describe('sqliteStore, many processes on one file', () => {
  test('every key has one winner', async () => {
    const file = newFile() // nobody has made it yet: all eight race for that too
    const won = await processes(file, 8, 'claim', 50)
    const names = Array.from({ length: 50 }, (_, n) => `key ${n}`)
    assert.deepEqual(won.flat().sort(), names.sort())
  })

  test('what one confirmed is there when it is killed right after', async () => {
    const file = newFile()
    const child = fork(join(import.meta.dirname, 'worker.ts'), [file, 'die', '0'])
    const exit = once(child, 'exit')
    await once(child, 'message')
    child.send('go')
    assert.deepEqual(await exit, [null, 'SIGKILL'])
    const store = sqliteStore(file)
    assert.equal(await store.swap('claimed', undefined, 'mine'), false)
    store.close()
  })

  test('counters lose no update', async () => {
    const file = newFile()
    await processes(file, 8, 'count', 15)
    const store = sqliteStore(file)
    assert.equal(await store.get('counter'), '120')
    store.close()
  })
})

describe('sqliteStore, when the file fails', () => {
  test('locked by another writer: refuses after its time, not before, and works again', async () => {
    const file = newFile()
    const store = sqliteStore(file, { timeoutMs: 150 })
    await store.set('k', 'x')
    const other = new DatabaseSync(file)
    other.exec('BEGIN IMMEDIATE')
    const refused = unavailable(/^SQLite \w+, .*: database is locked$/)
    await Promise.all([
      assert.rejects(store.swap('k', 'x', 'y'), refused),
      assert.rejects(store.swap('new', undefined, 'y'), refused),
      assert.rejects(store.set('k', 'y'), refused),
      assert.rejects(store.delete('k'), refused),
    ])
    assert.equal(await store.get('k'), 'x')
    const waiting = store.swap('k', 'x', 'y')
    other.exec('COMMIT')
    assert.equal(await waiting, true)
    other.close()
    store.close()
  })

  test('locked: the rest of the process goes on meanwhile', async () => {
    const file = newFile()
    const store = sqliteStore(file, { timeoutMs: 10_000 })
    await store.set('k', 'x')
    const other = new DatabaseSync(file)
    other.exec('BEGIN IMMEDIATE')
    const waiting = Promise.all(Array.from({ length: 20 }, (_, n) => store.set(`${n}`, 'x')))
    for (let n = 0; n < 20; n++) await sleep(1) // never ends if a wait were synchronous: the lock is ours to release
    other.exec('COMMIT')
    await waiting
    assert.equal(await store.get('19'), 'x')
    other.close()
    store.close()
  })

  test('locked at the first use, even for readers: refuses, and works once it is not', async () => {
    const file = newFile()
    const other = new DatabaseSync(file)
    other.exec('PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE; CREATE TABLE mine (x)')
    const store = sqliteStore(file, { timeoutMs: 100 })
    await assert.rejects(store.get('k'), unavailable(/locked/))
    other.exec('COMMIT')
    other.close()
    assert.equal(await store.get('k'), undefined)
    store.close()
  })

  test('full: refuses what needs room, keeps what it has, and says so', async () => {
    const store = sqliteStore(newFile(), { maxBytes: 64 * 1024 })
    await store.set('k', 'x')
    const full = unavailable(/database or disk is full/)
    await assert.rejects(store.set('big', 'x'.repeat(1e6)), full)
    await assert.rejects(store.swap('big', undefined, 'x'.repeat(1e6)), full)
    await assert.rejects(store.swap('k', 'x', 'x'.repeat(1e6)), full)
    assert.equal(await store.get('big'), undefined)
    assert.equal(await store.get('k'), 'x')
    assert.equal(await store.swap('k', 'x', 'y'), true)
    store.close()
  })

  test('read-only: refuses every write, and reads or refuses', async () => {
    const file = newFile()
    const first = sqliteStore(file)
    await first.set('k', 'x')
    first.close()
    await readOnly(file, async () => {
      const store = sqliteStore(file)
      const refused = unavailable(/readonly|unable to open/)
      await assert.rejects(store.set('k', 'y'), refused)
      await assert.rejects(store.swap('k', 'x', 'y'), refused)
      await assert.rejects(store.swap('new', undefined, 'y'), refused)
      await assert.rejects(store.delete('k'), refused)
      store.close()
    })
    const again = sqliteStore(file)
    assert.equal(await again.get('k'), 'x')
    again.close()
  })

  test('no folder: refuses, and works once there is one', async () => {
    const file = join(folder, 'later', 'x.db')
    const store = sqliteStore(file)
    await assert.rejects(
      store.get('k'),
      unavailable(/^SQLite get, .*x\.db: unable to open database file$/),
    )
    mkdirSync(join(folder, 'later'))
    await store.set('k', 'x')
    assert.equal(await store.get('k'), 'x')
    store.close()
  })

  test('no database: refuses, keeps the cause, and leaves the file as it is', async () => {
    const file = newFile()
    const bytes = 'these are somebody’s notes, '.repeat(50)
    writeFileSync(file, bytes)
    const store = sqliteStore(file)
    await assert.rejects(store.swap('k', undefined, 'x'), (error: Error) => {
      assert.equal((error.cause as { errcode: number }).errcode, 26) // SQLITE_NOTADB
      return /file is not a database/.test(error.message)
    })
    assert.equal(statSync(file).size, Buffer.byteLength(bytes))
    store.close()
  })

  test('no database: works once the file is emptied', async () => {
    const file = newFile()
    writeFileSync(file, 'no database '.repeat(1_000))
    const store = sqliteStore(file)
    await assert.rejects(store.get('k'), unavailable(/file is not a database/))
    truncateSync(file)
    await store.set('k', 'x')
    assert.equal(await store.get('k'), 'x')
    store.close()
  })

  test('leaves nothing open that it could not use', async (t) => {
    const file = newFile()
    writeFileSync(file, 'no database '.repeat(1_000))
    const store = sqliteStore(file)
    const closing = t.mock.method(DatabaseSync.prototype, 'close')
    for (let n = 0; n < 3; n++) await assert.rejects(store.get('k'), unavailable(/not a database/))
    assert.equal(closing.mock.callCount(), 3)
  })

  test('a connection that broke is not used again', async (t) => {
    const file = newFile()
    const store = sqliteStore(file)
    await store.set('k', 'x')
    const broken = Object.assign(new Error('disk I/O error'), { errcode: 522 })
    const closing = t.mock.method(DatabaseSync.prototype, 'close')
    t.mock.method(
      StatementSync.prototype,
      'get',
      () => {
        throw broken
      },
      { times: 1 },
    )
    await assert.rejects(store.get('k'), { code: 'store_unavailable', cause: broken })
    assert.equal(closing.mock.callCount(), 1)
    assert.equal(await store.get('k'), 'x')
    store.close()
  })

  test('busy for a reason of its own, such as recovery, is waited for too', async (t) => {
    const store = sqliteStore(newFile())
    await store.set('k', 'x')
    const recovering = Object.assign(new Error('database is locked'), { errcode: 261 }) // SQLITE_BUSY_RECOVERY
    t.mock.method(
      StatementSync.prototype,
      'get',
      () => {
        throw recovering
      },
      { times: 1 },
    )
    assert.equal(await store.get('k'), 'x')
    store.close()
  })

  test('a file system that cannot do WAL is refused', async (t) => {
    t.mock.method(StatementSync.prototype, 'get', () => ({ journal_mode: 'delete' }), { times: 1 })
    const store = sqliteStore(newFile())
    await assert.rejects(store.get('k'), unavailable(/needs WAL, the file system gives delete/))
    store.close()
  })

  test('a table of that name which is another one: refuses', async () => {
    const file = newFile()
    const other = new DatabaseSync(file)
    other.exec('CREATE TABLE dcaf_store (x)')
    other.close()
    const store = sqliteStore(file)
    await assert.rejects(store.get('k'), unavailable(/no such column|no column named/))
    store.close()
  })

  test('deleted while open: nothing of it is remembered, and what comes next is on disk', async () => {
    const file = newFile()
    const store = sqliteStore(file)
    await store.set('epoch', '1')
    rmSync(file) // its -wal and -shm stay, as they do when somebody is in a hurry
    assert.equal(await store.get('epoch'), undefined)
    await store.set('epoch', '2')
    const other = sqliteStore(file)
    assert.equal(await other.get('epoch'), '2')
    other.close()
    store.close()
  })

  test('deleted while two have it open: the first to write makes the new one, the other follows', async () => {
    const file = newFile()
    const store = sqliteStore(file)
    for (let n = 0; n < 300; n++) await store.set('epoch', `${n}`) // a -wal with something in it
    rmSync(file)
    const claimed = Array.from({ length: 5 }, (_, n) => `key ${n}`)
    assert.deepEqual(await processes(file, 1, 'claim', 5), [claimed])
    assert.equal(await store.swap('key 4', undefined, 'mine'), false)
    assert.deepEqual(await processes(file, 1, 'claim', 5), [[]])
    store.close()
  })

  test('closed: refuses, also what was waiting; closing twice is no error', async () => {
    const file = newFile()
    const store = sqliteStore(file)
    await store.set('k', 'x')
    const other = new DatabaseSync(file)
    other.exec('BEGIN IMMEDIATE')
    const waiting = assert.rejects(store.set('k', 'y'), unavailable(/the store was closed/))
    store.close()
    store.close()
    await waiting
    await assert.rejects(store.get('k'), unavailable(/the store was closed/))
    other.close()
  })
})

/** So many processes at once on one file; what each sends back at its end. */
async function processes(file: string, howMany: number, task: 'claim' | 'count', amount: number) {
  const children = Array.from({ length: howMany }, () =>
    fork(join(import.meta.dirname, 'worker.ts'), [file, task, String(amount)]),
  )
  await Promise.all(children.map((child) => once(child, 'message')))
  return Promise.all(children.map(answerOf))
}

async function answerOf(child: ChildProcess): Promise<string[]> {
  const answer = once(child, 'message')
  const exit = once(child, 'exit').then(([code]) => assert.equal(code, 0))
  child.send('go')
  await exit
  return (await answer)[0] as string[]
}

/** Takes the right to write: as root by being nobody meanwhile, since nothing is read-only to root. */
async function readOnly(file: string, run: () => Promise<void>): Promise<void> {
  const isRoot = process.geteuid?.() === 0
  chmodSync(file, 0o444)
  chmodSync(folder, 0o555)
  if (isRoot) process.seteuid?.(65_534)
  try {
    await run()
  } finally {
    if (isRoot) process.seteuid?.(0)
    chmodSync(folder, 0o755)
    chmodSync(file, 0o644)
  }
}
