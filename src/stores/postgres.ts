// A Store in one table of PostgreSQL (9.5 or later), over one `query(text, values)`, such as that of a pg Pool. Each
// method is one statement and commits by itself. Opens and closes no connection; creates nothing unless told to.
//
// Covers: any number of processes and hosts; what was confirmed survives a crash; expiry by the server's clock.
// Does not cover: `synchronous_commit = off` and a failover to an asynchronous standby (both lose what was confirmed),
//   a `query` inside a transaction of the caller's (what it confirms can be rolled back), a database whose encoding
//   is not UTF8 (it refuses what it cannot write).
// https://www.postgresql.org/docs/current/sql-insert.html#SQL-ON-CONFLICT

import { DcafError } from '../providers/provider.ts'
import { lifetime, type Store } from '../store.ts'
import { checkedTimeout, fromText, toText, within } from './shared.ts'

/**
 * Runs one statement with `$1` parameters, outside of a transaction, on the primary.
 * pg: `(text, values) => pool.query(text, values)`; postgres.js: `async (text, values) => ({ rows: await sql.unsafe(text, values) })`.
 */
export type PostgresQuery = (text: string, values: unknown[]) => Promise<{ rows: unknown[] }>

export interface PostgresStoreOptions {
  /** The table, `name` or `schema.name`; letters, digits and `_`. Default `dcaf_store`. */
  table?: string
  /** A statement without an answer for so long has failed. Default 5,000. */
  timeoutMs?: number
}

export interface PostgresStore extends Store {
  /** Creates the table and its index where they are missing (`postgresSchema`). Safe to call from many at once. */
  createTable(): Promise<void>
  /**
   * Deletes expired rows, oldest first, in batches; resolves to their number. Writes do the same for one batch a
   * minute, so that a table nobody looks after does not grow for ever.
   */
  prune(): Promise<number>
}

const batch = 500
const sweepEveryMs = 60_000

/** The statements that `createTable` runs, for those who keep their schema elsewhere. */
export function postgresSchema(table = 'dcaf_store'): string {
  const name = quoted(table)
  return `CREATE TABLE IF NOT EXISTS ${name} (
  key text COLLATE "C" PRIMARY KEY,
  value text COLLATE "C" NOT NULL,
  expires timestamptz -- null: stays
);
CREATE INDEX IF NOT EXISTS "${table.split('.').at(-1)}_expires" ON ${name} (expires) WHERE expires IS NOT NULL;
`
}

/** Every failure rejects with `store_unavailable`; a missing table says how to create it. */
export function postgresStore(
  query: PostgresQuery,
  options: PostgresStoreOptions = {},
): PostgresStore {
  const { table = 'dcaf_store' } = options
  const timeoutMs = checkedTimeout(options.timeoutMs)
  const name = quoted(table)
  let nextSweep = 0

  // now() is when the statement came in; it may have waited since for a row that another one held
  const expires = (parameter: string) =>
    `clock_timestamp() + ${parameter}::float8 * interval '1 millisecond'`
  const isLive = 'expires IS NULL OR expires > clock_timestamp()'
  const sql = {
    get: `SELECT value FROM ${name} WHERE key = $1 AND (${isLive})`,
    set: `INSERT INTO ${name} AS kept (key, value, expires) VALUES ($1, $2, ${expires('$3')})
      ON CONFLICT (key) DO UPDATE SET value = excluded.value, expires = excluded.expires`,
    swap: `UPDATE ${name} SET value = $2, expires = ${expires('$3')}
      WHERE key = $1 AND value = $4 AND (${isLive}) RETURNING 1`,
    delete: `DELETE FROM ${name} WHERE key = $1`,
    // The outer condition is asked again of a row that was written meanwhile; the inner one is not. Without it a
    // key that had just been taken anew would be deleted.
    prune: `WITH old AS (SELECT key FROM ${name} WHERE expires <= now()
        ORDER BY expires LIMIT ${batch} FOR UPDATE SKIP LOCKED)
      DELETE FROM ${name} AS kept USING old
      WHERE kept.key = old.key AND kept.expires <= now() RETURNING 1`,
  }
  const claim = `${sql.set} WHERE kept.expires <= clock_timestamp() RETURNING 1`

  function ask(what: string, text: string, values: unknown[] = []): Promise<unknown[]> {
    const deadline = performance.now() + timeoutMs
    return within(timeoutMs, `PostgreSQL ${what}`, async () => {
      for (;;) {
        try {
          const { rows } = await query(text, values)
          if (Array.isArray(rows)) return rows
          throw new Error('query must resolve to { rows: [...] }')
        } catch (error) {
          const { code } = (error ?? {}) as { code?: unknown }
          if (code === '42P01') throw missing(table, error)
          // Where the default isolation is stricter than READ COMMITTED, the loser of a race is told to try again.
          if (code !== '40001' || performance.now() >= deadline) throw error
        }
      }
    })
  }

  async function pruneBatch(): Promise<number> {
    return (await ask('prune', sql.prune)).length
  }

  /** Before the write, so that its failure is the write's, and nothing has been written yet. */
  async function write(what: string, text: string, values: unknown[]): Promise<boolean> {
    const now = Date.now()
    if (now >= nextSweep) {
      nextSweep = now + sweepEveryMs
      if ((await pruneBatch()) === batch) nextSweep = now
    }
    return (await ask(what, text, values)).length > 0
  }

  return {
    async get(key) {
      const [row] = await ask('get', sql.get, [toText(key)])
      return row === undefined ? undefined : fromText((row as { value: string }).value)
    },

    async set(key, value, ttlMs) {
      await write('set', sql.set, [toText(key), toText(value), lifetime(ttlMs) ?? null])
    },

    async swap(key, expected, value, ttlMs) {
      const row = [toText(key), toText(value), lifetime(ttlMs) ?? null]
      if (expected === undefined) return write('swap', claim, row)
      return write('swap', sql.swap, [...row, toText(expected)])
    },

    async delete(key) {
      await ask('delete', sql.delete, [toText(key)])
    },

    async createTable() {
      // IF NOT EXISTS alone can fail with a unique violation when two do it at once
      await ask(
        'createTable',
        `DO $dcaf$ BEGIN
          PERFORM pg_advisory_xact_lock(hashtext('dcaf_store'));
          ${postgresSchema(table)}
        END $dcaf$`,
      )
    },

    async prune() {
      for (let pruned = 0; ; ) {
        const count = await pruneBatch()
        pruned += count
        if (count < batch) return pruned
      }
    },
  }
}

/** 55 characters, since PostgreSQL cuts names at 63 and the index is called after its table. */
function quoted(table: string): string {
  if (/^([A-Za-z_]\w{0,54}\.)?[A-Za-z_]\w{0,54}$/.test(table)) return table.replace(/\w+/g, '"$&"')
  throw new DcafError(
    'invalid_argument',
    `table must be name or schema.name in letters, digits and _, got ${JSON.stringify(table)}`,
  )
}

function missing(table: string, cause: unknown): Error {
  return new Error(
    `table ${table} does not exist. Create it once: await store.createTable(), or run postgresSchema('${table}')`,
    { cause },
  )
}
