// Real servers for tests: Redis through both of its clients, PostgreSQL through a pool. Each service keeps to a prefix or
// a table of its own and removes it when closed. Where a server is missing tests skip and say why; with CI set they fail.

import { randomBytes } from 'node:crypto'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import { Redis } from 'ioredis'
import { Pool } from 'pg'
import { createClient } from 'redis'
import type { PostgresQuery } from '../src/stores/postgres.ts'
import type { RedisSend } from '../src/stores/redis.ts'

export const redisUrl = process.env.REDIS_URL ?? 'redis://127.0.0.1:6379'
export const postgresUrl = process.env.POSTGRES_URL ?? 'postgres://postgres@127.0.0.1:5432/test'

/** A name no other run uses. */
export function uniqueName(): string {
  return `dcaf_test_${randomBytes(6).toString('hex')}`
}

/** For `skip`: `false`, or why the server cannot be used. Rejects instead where CI is set. */
export async function missing(
  open: () => Promise<{ close(): Promise<void> }>,
): Promise<false | string> {
  try {
    await (await open()).close()
    return false
  } catch (error) {
    if (process.env.CI) throw error
    return (error as Error).message
  }
}

export interface RedisService {
  send: RedisSend
  prefix: string
  /** Deletes what is under the prefix and disconnects. */
  close(): Promise<void>
}

/** Through `redis`. Never queues: without a connection a command fails at once; it reconnects by itself. */
export async function redisClient(url = redisUrl): Promise<RedisService> {
  const client = createClient({
    url,
    disableOfflineQueue: true,
    socket: { connectTimeout: 2_000, reconnectStrategy: (n) => isOpen && Math.min(50 * n, 500) },
  })
  let isOpen = false
  client.on('error', () => {}) // an emitter without a listener would throw; every command rejects anyway
  await client.connect().catch((cause) => refuse('Redis', url, 'REDIS_URL', cause))
  isOpen = true
  return redisService(
    (args) => client.sendCommand(args),
    () => {
      isOpen = false
      client.destroy()
    },
  )
}

/** Through `ioredis`, set up as `redisStore` asks for. */
export async function ioredisClient(url = redisUrl): Promise<RedisService> {
  const client = new Redis(url, {
    lazyConnect: true,
    connectTimeout: 2_000,
    enableOfflineQueue: false,
    maxRetriesPerRequest: 0,
    retryStrategy: (n) => (isOpen ? Math.min(50 * n, 500) : null),
  })
  let isOpen = false
  client.on('error', () => {})
  await client.connect().catch((cause) => refuse('Redis', url, 'REDIS_URL', cause))
  isOpen = true
  return redisService(
    ([name, ...args]) => client.call(name, ...args),
    () => {
      isOpen = false
      client.disconnect()
    },
  )
}

function redisService(send: RedisSend, disconnect: () => void): RedisService {
  const prefix = `${uniqueName()}:`
  return {
    send,
    prefix,
    async close() {
      try {
        let cursor = '0'
        do {
          const reply = await send(['SCAN', cursor, 'MATCH', `${prefix}*`, 'COUNT', '1000'])
          const [next, keys] = reply as [string, string[]]
          if (keys.length > 0) await send(['DEL', ...keys])
          cursor = next
        } while (cursor !== '0')
      } finally {
        disconnect()
      }
    },
  }
}

export interface PostgresService {
  pool: Pool
  query: PostgresQuery
  table: string
  /** Drops the table, if there is one, and ends the pool. */
  close(): Promise<void>
}

/** `options`: server settings for each connection, e.g. `-c default_transaction_isolation=serializable`. */
export async function postgresPool(url = postgresUrl, options = ''): Promise<PostgresService> {
  const pool = new Pool({
    connectionString: url,
    options,
    max: 8,
    connectionTimeoutMillis: 10_000, // waiting for one of the eight included
    allowExitOnIdle: true,
  })
  pool.on('error', () => {}) // an idle connection that breaks; the pool makes another
  await pool.query('SELECT 1').catch(async (cause) => {
    await pool.end()
    refuse('PostgreSQL', url, 'POSTGRES_URL', cause)
  })
  const table = uniqueName()
  return {
    pool,
    query: (text, values) => pool.query(text, values),
    table,
    async close() {
      try {
        await pool.query(`DROP TABLE IF EXISTS ${table}`)
      } finally {
        await pool.end()
      }
    },
  }
}

function refuse(name: string, url: string, variable: string, cause: unknown): never {
  const { message, code } = cause as { message?: string; code?: string }
  const host = new URL(url).host // never the whole URL: it may hold a password
  throw new Error(
    `no ${name} at ${host} (${message || code}); start one there, or say where with ${variable}`,
  )
}

export interface NetworkProxy {
  /** The URL it was made for, leading through the proxy. */
  url: string
  /** Cuts every connection and refuses new ones. */
  cut(): void
  /** Accepts, and keeps every byte to itself. */
  hang(): void
  /** Lets requests through, and cuts the connection instead of bringing the first answer. */
  loseReply(): void
  /** Passes on again, what it held back first. */
  heal(): void
  close(): Promise<void>
}

/** A TCP proxy on 127.0.0.1 before a real server: the network between us and it, with switches. */
export async function proxyOf(target: string, defaultPort: number): Promise<NetworkProxy> {
  const { hostname, port } = new URL(target)
  let mode: 'pass' | 'cut' | 'hang' | 'lose' = 'pass'
  const pairs = new Set<[Socket, Socket]>()
  const server = createServer((client) => {
    if (mode === 'cut') return client.destroy()
    const upstream = connect(Number(port || defaultPort), hostname)
    const pair: [Socket, Socket] = [client, upstream]
    pairs.add(pair)
    for (const [from, to] of [pair, [upstream, client]] as [Socket, Socket][]) {
      from.on('error', () => {})
      from.on('close', () => {
        to.destroy()
        pairs.delete(pair)
      })
    }
    client.on('data', (bytes) => upstream.write(bytes))
    upstream.on('data', (bytes) => {
      if (mode === 'lose') client.destroy()
      else client.write(bytes)
    })
    if (mode === 'hang') stop(pair)
  })
  const stop = (pair: [Socket, Socket]) => pair.map((socket) => socket.pause())
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const through = new URL(target)
  through.hostname = '127.0.0.1'
  through.port = String((server.address() as AddressInfo).port)
  return {
    url: through.href,
    cut() {
      mode = 'cut'
      for (const [client] of pairs) client.destroy()
    },
    hang() {
      mode = 'hang'
      for (const pair of pairs) stop(pair)
    },
    loseReply() {
      mode = 'lose'
    },
    heal() {
      mode = 'pass'
      for (const pair of pairs) pair.map((socket) => socket.resume())
    },
    close() {
      for (const [client, upstream] of pairs) {
        client.destroy()
        upstream.destroy()
      }
      return new Promise((resolve) => server.close(() => resolve()))
    },
  }
}
