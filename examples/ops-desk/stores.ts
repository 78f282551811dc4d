// DCAF_STORE to a Store: the library's stores over clients that this example brings, loaded only when they are named.
// A server that is down does not keep the desk from starting: what needs the store is refused until it is back.

import { memoryStore, type Store } from '../../src/index.ts'
import { ConfigError, type StoreChoice } from './config.ts'
import type { Log } from './log.ts'

export interface OpenStore {
  store: Store
  close(): Promise<void>
}

const connectMs = 5_000

export async function openStore(choice: StoreChoice, log: Log): Promise<OpenStore> {
  switch (choice.kind) {
    case 'memory':
      return { store: memoryStore(), close: async () => {} }
    case 'sqlite': {
      const { sqliteStore } = await import('../../src/stores/sqlite.ts')
      const store = sqliteStore(choice.file)
      return { store, close: async () => store.close() }
    }
    case 'redis':
      return redis(choice.url, log)
    case 'postgres':
      return postgres(choice.url, log)
  }
}

async function redis(url: string, log: Log): Promise<OpenStore> {
  const { createClient } = await packageFor('redis', import('redis'))
  const { redisStore } = await import('../../src/stores/redis.ts')
  const client = createClient({
    url,
    disableOfflineQueue: true, // fail at once rather than run what was refused long ago
    socket: { connectTimeout: connectMs, reconnectStrategy: (n) => Math.min(100 * 2 ** n, 2_000) },
  })
  tellOnce(client, 'Redis', log)
  // Until it is there, or has failed once; from then on it goes on trying by itself.
  const failed = new Promise<void>((resolve) => client.once('error', () => resolve()))
  await Promise.race([client.connect(), failed])
  return {
    store: redisStore((args) => client.sendCommand(args)),
    close: async () => client.destroy(),
  }
}

async function postgres(url: string, log: Log): Promise<OpenStore> {
  const { default: pg } = await packageFor('pg', import('pg'))
  const { postgresStore } = await import('../../src/stores/postgres.ts')
  const pool = new pg.Pool({ connectionString: url, connectionTimeoutMillis: connectMs })
  tellOnce(pool, 'PostgreSQL', log)
  const store = postgresStore((text, values) => pool.query(text, values))
  let closed = false
  // The one table it needs. Tried until the server is there.
  const prepare = async (): Promise<void> => {
    try {
      await store.createTable()
    } catch (error) {
      log({ level: 'warn', event: 'store', message: (error as Error).message })
      setTimeout(() => closed || prepare(), 2_000).unref()
    }
  }
  await prepare()
  return {
    store,
    close: async () => {
      closed = true
      await pool.end()
    },
  }
}

async function packageFor<T>(name: string, loading: Promise<T>): Promise<T> {
  try {
    return await loading
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ERR_MODULE_NOT_FOUND') throw error
    throw new ConfigError(`DCAF_STORE needs the package ${name}: run npm install ${name}`)
  }
}

/** A client without an `error` listener ends the process; one that retries would fill the log. */
function tellOnce(
  client: { on(event: string, listener: (error?: Error) => void): unknown },
  what: string,
  log: Log,
): void {
  let told = false
  client.on('error', (error) => {
    const message = `${what}: ${error?.message || error?.name}`
    if (!told) log({ level: 'warn', event: 'store', message })
    told = true
  })
  for (const event of ['ready', 'connect']) client.on(event, () => (told = false))
}
