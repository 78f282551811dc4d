// The PostgreSQL store: what every store does under the loosest and the strictest isolation, its own table, a network cut in
// every place.

import assert from 'node:assert/strict'
import { after, before, describe, type TestContext, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import {
  type PostgresQuery,
  type PostgresStore,
  postgresSchema,
  postgresStore,
} from '../../src/stores/postgres.ts'
import {
  missing,
  type NetworkProxy,
  type PostgresService,
  postgresPool,
  postgresUrl,
  proxyOf,
  uniqueName,
} from '../services.ts'
import { testStore } from './table.ts'

const patience = 30_000
const skip = await missing(postgresPool)

const unavailable = (message: RegExp) => ({
  name: 'DcafError',
  code: 'store_unavailable',
  retryable: true,
  message,
})

for (const level of ['read committed', 'serializable'])
  describe(`postgresStore, ${level}`, { skip }, () => {
    let service: PostgresService
    let store: PostgresStore
    before(async () => {
      const setting = level.replace(' ', '\\ ')
      service = await postgresPool(postgresUrl, `-c default_transaction_isolation=${setting}`)
      store = postgresStore(service.query, { table: service.table, timeoutMs: patience })
      await store.createTable()
    })
    after(() => service.close())

    test('is what the connections have', async () => {
      const { rows } = await service.pool.query('SHOW transaction_isolation')
      assert.deepEqual(rows, [{ transaction_isolation: level }])
    })

    testStore(() => store)
  })

describe('postgresStore', { skip }, () => {
  let service: PostgresService
  let store: PostgresStore
  before(async () => {
    service = await postgresPool()
    store = postgresStore(service.query, { table: service.table })
    await store.createTable()
  })
  after(() => service.close())

  const count = async () => {
    const { rows } = await service.pool.query(`SELECT count(*)::int AS n FROM ${service.table}`)
    return rows[0].n
  }

  /** A connection of the test's own, given up at its end with whatever it has begun. */
  const borrow = async (t: TestContext) => {
    const client = await service.pool.connect()
    t.after(() => client.release(true))
    return client
  }

  test('two pools on one table see each other at once', async () => {
    const second = await postgresPool()
    const other = postgresStore(second.query, { table: service.table })
    const won = await Promise.all(
      Array.from({ length: 100 }, (_, n) => (n % 2 ? store : other).swap('k', undefined, `${n}`)),
    )
    assert.deepEqual(won.filter(Boolean), [true])
    assert.equal(await other.get('k'), String(won.indexOf(true)))
    await second.close()
  })

  test('a claim that waits for another one loses once that one commits, and wins if it is rolled back', async (t) => {
    for (const [end, wins] of [
      ['COMMIT', false],
      ['ROLLBACK', true],
    ] as const) {
      const client = await borrow(t)
      const first = postgresStore((text, values) => client.query(text, values), service)
      await client.query('BEGIN')
      assert.equal(await first.swap(`w ${end}`, undefined, 'first'), true)
      const waiting = store.swap(`w ${end}`, undefined, 'second')
      await blocked(service)
      await client.query(end)
      assert.equal(await waiting, wins)
    }
  })

  test('a key that expires while a claim waits for its row is absent', async (t) => {
    await store.set('w', 'old', 400)
    const client = await borrow(t)
    await client.query('BEGIN')
    await client.query(`SELECT 1 FROM ${service.table} WHERE key = 'w' FOR UPDATE`)
    const claiming = store.swap('w', undefined, 'new')
    await blocked(service)
    await sleep(500)
    await client.query('COMMIT')
    assert.equal(await claiming, true)
  })

  test('rows can be read in psql: text as it is, JSON unchanged', async () => {
    const value = JSON.stringify({ state: 'done', output: 'tab\t, NUL \0, ü, 😀, lone \ud800' })
    await store.set('ledger', value)
    const { rows } = await service.pool.query(
      `SELECT key, value, expires FROM ${service.table} WHERE key = 'ledger'`,
    )
    assert.deepEqual(rows, [{ key: 'ledger', value, expires: null }])
  })

  test('prune deletes what has expired and nothing else, and says how much', async () => {
    await service.pool.query(`TRUNCATE ${service.table}`)
    await service.pool.query(
      `INSERT INTO ${service.table} SELECT n::text, 'x', now() - interval '1 hour' FROM generate_series(1, 1200) AS n`,
    )
    await store.set('always', 'x')
    await store.set('later', 'x', 600_000)
    assert.equal(await store.prune(), 1200)
    assert.equal(await store.prune(), 0)
    assert.equal(await count(), 2)
  })

  test('prune leaves a key alone that is taken anew while it waits', async (t) => {
    // SKIP LOCKED is taken out, to make it wait: what is tested is the condition that the server asks again then
    let text = ''
    const spy = postgresStore(async (sent) => {
      text = sent
      return { rows: [] }
    }, service)
    await spy.prune()
    const client = await borrow(t)
    const claiming = postgresStore((sent, values) => client.query(sent, values), service)
    await claiming.set('first', 'x') // the write that prunes
    await store.set('again', 'old', 1)
    await sleep(20)
    await client.query('BEGIN')
    assert.equal(await claiming.swap('again', undefined, 'new', 600_000), true)
    const pruning = service.pool.query(text.replace('FOR UPDATE SKIP LOCKED', ''))
    await blocked(service)
    await client.query('COMMIT')
    assert.equal((await pruning).rows.length, 0)
    assert.equal(await store.get('again'), 'new')
  })

  test('prune does not wait for a row that another one holds', async (t) => {
    await store.set('held', 'x', 1)
    await store.set('free', 'x', 1)
    await sleep(20)
    const client = await borrow(t)
    await client.query('BEGIN')
    await client.query(`SELECT 1 FROM ${service.table} WHERE key = 'held' FOR UPDATE`)
    assert.equal(await store.prune(), 1)
    await client.query('COMMIT')
    assert.equal(await store.prune(), 1)
  })

  test('a write prunes a batch first, once a minute, and goes on with the next while there is more', async (t) => {
    t.mock.timers.enable({ apis: ['Date'], now: Date.now() })
    const sent: string[] = []
    let expired = 700
    const swept = postgresStore(async (text) => {
      sent.push(text.trimStart().split(' ')[0] ?? '')
      const rows = Array.from({ length: text.startsWith('WITH') ? Math.min(expired, 500) : 0 })
      expired -= rows.length
      return { rows }
    })
    await swept.set('k', 'v')
    await swept.swap('k', 'v', 'w')
    await swept.swap('k', undefined, 'w')
    await swept.get('k')
    t.mock.timers.tick(59_999)
    await swept.set('k', 'v')
    t.mock.timers.tick(1)
    await swept.set('k', 'v')
    assert.deepEqual(sent, [
      ...['WITH', 'INSERT', 'WITH', 'UPDATE', 'INSERT', 'SELECT'],
      ...['INSERT', 'WITH', 'INSERT'],
    ])
  })
})

describe('postgresStore, its table', { skip }, () => {
  let service: PostgresService
  before(async () => {
    service = await postgresPool()
  })
  after(() => service.close())

  test('is not created by use; every method says how to create it', async () => {
    const store = postgresStore(service.query, { table: service.table })
    const refused = unavailable(
      /table \w+ does not exist\. Create it once: await store\.createTable\(\), or run postgresSchema\('\w+'\)/,
    )
    await assert.rejects(store.get('k'), refused)
    await assert.rejects(store.set('k', 'x'), refused)
    await assert.rejects(store.swap('k', undefined, 'x'), refused)
    await assert.rejects(store.swap('k', 'x', 'y'), refused)
    await assert.rejects(store.delete('k'), refused)
    await assert.rejects(store.prune(), refused)
    const { rows } = await service.pool.query('SELECT to_regclass($1) AS found', [service.table])
    assert.deepEqual(rows, [{ found: null }])
  })

  test('may be created by twenty at once, and again', async () => {
    const store = postgresStore(service.query, { table: service.table })
    await Promise.all(Array.from({ length: 20 }, () => store.createTable()))
    await store.set('k', 'x')
    await store.createTable()
    assert.equal(await store.get('k'), 'x')
  })

  test('may lie in another schema, made by the text of postgresSchema', async () => {
    const schema = uniqueName()
    await service.pool.query(`CREATE SCHEMA ${schema}`)
    await service.pool.query(postgresSchema(`${schema}.Kept`))
    const store = postgresStore(service.query, { table: `${schema}.Kept` })
    assert.equal(await store.swap('k', undefined, 'x'), true)
    const { rows } = await service.pool.query(
      'SELECT tablename, indexname FROM pg_indexes WHERE schemaname = $1 ORDER BY 2',
      [schema],
    )
    assert.deepEqual(rows, [
      { tablename: 'Kept', indexname: 'Kept_expires' },
      { tablename: 'Kept', indexname: 'Kept_pkey' },
    ])
    await service.pool.query(`DROP SCHEMA ${schema} CASCADE`)
  })
})

describe('postgresStore through a network that fails', { skip }, () => {
  let proxy: NetworkProxy
  let service: PostgresService
  let store: PostgresStore
  before(async () => {
    proxy = await proxyOf(postgresUrl, 5432)
    service = await postgresPool(proxy.url)
    store = postgresStore(service.query, { table: service.table, timeoutMs: patience })
    await store.createTable()
    await store.set('first', 'x')
  })
  after(async () => {
    await service.close()
    await proxy.close()
  })

  test('that hangs: refuses after its time, and works again', async () => {
    const hasty = postgresStore(service.query, { table: service.table, timeoutMs: 100 })
    const refused = unavailable(/^PostgreSQL (get|set|swap|delete|prune): no answer within 100 ms$/)
    proxy.hang()
    await Promise.all([
      assert.rejects(hasty.get('h'), refused),
      assert.rejects(hasty.set('h', 'x'), refused),
      assert.rejects(hasty.swap('h', undefined, 'x'), refused),
      assert.rejects(hasty.swap('h', 'x', 'y'), refused),
      assert.rejects(hasty.delete('h2'), refused),
      assert.rejects(hasty.prune(), refused),
    ])
    proxy.heal()
    assert.equal(await store.get('first'), 'x')
  })

  test('that is cut: refuses at once, and works again without a restart', async () => {
    await store.set('c', 'x')
    proxy.cut()
    await assert.rejects(store.swap('c', 'x', 'y'), unavailable(/^PostgreSQL swap: /))
    await assert.rejects(store.get('c'), unavailable(/^PostgreSQL get: /))
    proxy.heal()
    assert.equal(await store.get('c'), 'x')
    assert.equal(await store.swap('c', 'x', 'y'), true)
  })

  test('that loses the reply: refuses what was done, and it is done once', async () => {
    await store.get('first') // a connection that stands
    proxy.loseReply()
    await assert.rejects(store.swap('l', undefined, 'mine'), unavailable(/^PostgreSQL swap: /))
    proxy.heal()
    assert.equal(await store.get('l'), 'mine')
    assert.equal(await store.swap('l', undefined, 'again'), false)
  })
})

describe('postgresStore over a query that is none', () => {
  for (const answer of [undefined, null, [], {}, { rows: 'x' }])
    test(`takes an answer without rows for a failure: ${JSON.stringify(answer)}`, async () => {
      const store = postgresStore((async () => answer) as unknown as PostgresQuery)
      await assert.rejects(store.swap('k', undefined, 'x'), unavailable(/rows/))
      await assert.rejects(store.get('k'), unavailable(/rows/))
    })

  test('gives up on a conflict that never ends, in its time', async () => {
    const conflict = Object.assign(new Error('could not serialize access'), { code: '40001' })
    const store = postgresStore(
      async () => {
        await sleep(1)
        throw conflict
      },
      { timeoutMs: 50 },
    )
    await assert.rejects(store.get('k'), { code: 'store_unavailable' })
  })

  test('tries no other failure again', async () => {
    let calls = 0
    const cause = Object.assign(new Error('terminating connection'), { code: '57P01' })
    const store = postgresStore(async () => {
      calls++
      throw cause
    })
    await assert.rejects(store.get('k'), { code: 'store_unavailable', cause })
    assert.equal(calls, 1)
  })

  for (const table of ['', 'a b', 'a"b', 'a;b', 'a.b.c', '1a', 'a.', 'x'.repeat(56), 'ä'])
    test(`refuses a table called ${JSON.stringify(table)}`, () => {
      const query: PostgresQuery = async () => ({ rows: [] })
      const refused = { code: 'invalid_argument', message: /^table must be name or schema.name/ }
      assert.throws(() => postgresStore(query, { table }), refused)
      assert.throws(() => postgresSchema(table), refused)
    })
})

/** Until some statement on the table of this test waits for a lock. */
async function blocked({ pool, table }: PostgresService): Promise<void> {
  for (let left = 200; left > 0; left--) {
    const { rows } = await pool.query(
      `SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND strpos(query, $1) > 0`,
      [table],
    )
    if (rows.length > 0) return
    await sleep(10)
  }
  throw new Error('nothing waits')
}
