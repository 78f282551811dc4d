// The stores that faults are tried on, each as something that another process can open too: a file, a prefix in a real
// Redis, a table in a real PostgreSQL. What a world made it takes away again; nobody else's keys are touched.

import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Store } from '../../src/store.ts'
import { postgresStore } from '../../src/stores/postgres.ts'
import { missing, postgresPool, postgresUrl, redisClient, redisUrl } from '../services.ts'

/** Plain JSON: it travels to other processes. */
export type Where = { timeoutMs?: number } & (
  | { kind: 'memory' }
  | { kind: 'sqlite'; file: string; maxBytes?: number }
  | { kind: 'redis'; url: string; prefix: string }
  | { kind: 'postgres'; url: string; table: string }
)
export interface OpenStore {
  store: Store
  close(): Promise<void>
}

/** A store over a client of its own, which reconnects by itself. Resolves even while the server is down. */
export async function openStore(where: Where): Promise<OpenStore> {
  const { timeoutMs = 5_000 } = where
  switch (where.kind) {
    case 'memory': {
      const { memoryStore } = await import('../../src/store.ts')
      return { store: memoryStore(), close: async () => {} }
    }
    case 'sqlite': {
      const { sqliteStore } = await import('../../src/stores/sqlite.ts')
      const { maxBytes } = where
      const store = sqliteStore(where.file, { timeoutMs, ...(maxBytes && { maxBytes }) })
      return { store, close: async () => store.close() }
    }
    case 'redis': {
      const { createClient } = await import('redis')
      const { redisStore } = await import('../../src/stores/redis.ts')
      const client = createClient({
        url: where.url,
        disableOfflineQueue: true,
        socket: { connectTimeout: 2_000, reconnectStrategy: (n) => Math.min(50 * n, 500) },
      })
      const failed = new Promise<void>((resolve) => client.on('error', () => resolve()))
      await Promise.race([client.connect(), failed])
      const { prefix } = where
      const send = (args: [string, ...string[]]) => client.sendCommand(args)
      return {
        store: redisStore(send, { prefix, timeoutMs }),
        close: async () => client.destroy(),
      }
    }
    case 'postgres': {
      const { Pool } = await import('pg')
      const pool = new Pool({
        connectionString: where.url,
        max: 4,
        connectionTimeoutMillis: 2_000,
        allowExitOnIdle: true,
      })
      pool.on('error', () => {})
      const query = (text: string, values: unknown[]) => pool.query(text, values)
      return {
        store: postgresStore(query, { table: where.table, timeoutMs }),
        close: () => pool.end(),
      }
    }
  }
}

export interface World {
  name: 'sqlite' | 'redis' | 'postgres'
  /** Of the server, for a proxy before it. */
  port: number
  where: Where
  /** Loses all it holds, as if it had never been: the file, the keys, the table. */
  forget(): Promise<void>
  close(): Promise<void>
}

async function sqlite(): Promise<World> {
  const folder = mkdtempSync(join(tmpdir(), 'dcaf-faults-'))
  const file = join(folder, 'store.db')
  return {
    name: 'sqlite',
    port: 0,
    where: { kind: 'sqlite', file, timeoutMs: 20_000 },
    forget: async () => rmSync(file),
    close: async () => rmSync(folder, { recursive: true, force: true }),
  }
}

async function redis(): Promise<World> {
  const service = await redisClient()
  return {
    name: 'redis',
    port: 6379,
    where: { kind: 'redis', url: redisUrl, prefix: service.prefix, timeoutMs: 20_000 },
    async forget() {
      const keys = (await service.send(['KEYS', `${service.prefix}*`])) as string[]
      if (keys.length > 0) await service.send(['DEL', ...keys])
    },
    close: service.close,
  }
}

async function postgres(): Promise<World> {
  const service = await postgresPool()
  const { query, table } = service
  const create = () => postgresStore(query, { table }).createTable()
  await create()
  return {
    name: 'postgres',
    port: 5432,
    where: { kind: 'postgres', url: postgresUrl, table, timeoutMs: 20_000 },
    async forget() {
      await query(`DROP TABLE ${table}`, [])
      await create()
    },
    close: service.close,
  }
}

/** Each with why it cannot be used here, for `skip`. */
export const worlds = [
  { name: 'SQLite', open: sqlite, skip: false as false | string },
  { name: 'Redis', open: redis, skip: await missing(redis) },
  { name: 'PostgreSQL', open: postgres, skip: await missing(postgres) },
]
