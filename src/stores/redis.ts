// A Store in Redis (2.6.12 or later, Cluster, Valkey), over the one function that every client has. Its only keys are
// `dcaf:` and the store's own. Each method is one command on one key, and atomic. Opens and closes no connection.
//
// Covers: any number of processes and hosts on one primary; expiry by the server's clock.
// Does not cover: a failover. Replication is asynchronous: a new primary may lack a key that the old one had confirmed,
//   and what it recorded as done could then be done again (https://redis.io/docs/latest/develop/clients/patterns/distributed-locks/).
//   Best effort, therefore; where "once" must survive the loss of a machine, use PostgreSQL.
// The server must run with `maxmemory-policy noeviction` (else it forgets records to make room) and `appendonly yes`;
//   with `appendfsync everysec`, its default, a crash of the machine loses up to a second, with `always` nothing.
// The client should fail rather than queue while it has no connection (redis: `disableOfflineQueue: true`; ioredis:
//   `enableOfflineQueue: false`), and rather than send a command again (ioredis: `maxRetriesPerRequest: 0`): a `swap`
//   that was made the first time says `false` the second.

import { lifetime, type Store } from '../store.ts'
import { checkedTimeout, fromText, toText, within } from './shared.ts'

/**
 * Sends one command and gives its reply.
 * redis: `(args) => client.sendCommand(args)`; ioredis, its Cluster too: `([name, ...args]) => client.call(name, ...args)`;
 * a cluster of redis: `(args) => cluster.sendCommand(args[0] === 'EVAL' ? args[3] : args[1], false, args)`.
 */
export type RedisSend = (args: [command: string, ...args: string[]]) => Promise<unknown>

export interface RedisStoreOptions {
  /** Before every key. Default `dcaf:`. */
  prefix?: string
  /** A command without an answer for so long has failed. Default 5,000. */
  timeoutMs?: number
}

const swapScript = `if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[3] == '' then redis.call('SET', KEYS[1], ARGV[2])
else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return 1`

/** Every failure, and every reply that is not one of the command's own, rejects with `store_unavailable`. */
export function redisStore(send: RedisSend, options: RedisStoreOptions = {}): Store {
  const { prefix = 'dcaf:' } = options
  const timeoutMs = checkedTimeout(options.timeoutMs)
  const keyOf = (key: string) => toText(prefix + key)

  function ask<T>(args: [string, ...string[]], read: (reply: unknown) => T): Promise<T> {
    return within(timeoutMs, `Redis ${args[0]}`, async () => {
      try {
        return read(await send(args))
      } catch (error) {
        // ioredis hangs the command on its errors, values included: those have no business in a log
        if (error instanceof Error && 'command' in error) delete error.command
        throw error
      }
    })
  }

  return {
    get: (key) => ask(['GET', keyOf(key)], readText),

    async set(key, value, ttlMs) {
      await ask(['SET', keyOf(key), toText(value), ...px(ttlMs)], (reply) => {
        if (!readOk(reply)) throw unexpected(reply)
      })
    },

    async swap(key, expected, value, ttlMs) {
      if (expected === undefined)
        return ask(['SET', keyOf(key), toText(value), 'NX', ...px(ttlMs)], readOk)
      const ttl = String(lifetime(ttlMs) ?? '')
      const args = [keyOf(key), toText(expected), toText(value), ttl]
      return ask(['EVAL', swapScript, '1', ...args], readFlag)
    },

    delete: (key) => ask(['DEL', keyOf(key)], (reply) => void readFlag(reply)),
  }
}

function px(ttlMs: number | undefined): string[] {
  const ttl = lifetime(ttlMs)
  return ttl === undefined ? [] : ['PX', String(ttl)]
}

// Replies are strings, or bytes where the client was told so.

function readText(reply: unknown): string | undefined {
  if (reply === null || reply === undefined) return undefined
  if (reply instanceof Uint8Array) return fromText(Buffer.from(reply).toString())
  if (typeof reply === 'string') return fromText(reply)
  throw unexpected(reply)
}

function readOk(reply: unknown): boolean {
  const text = readText(reply)
  if (text === undefined) return false
  if (text === 'OK') return true
  throw unexpected(reply)
}

function readFlag(reply: unknown): boolean {
  const text = String(reply)
  if (text === '0' || text === '1') return text === '1'
  throw unexpected(reply)
}

/** E.g. `QUEUED`, from a client that is inside MULTI: nothing has happened yet. */
function unexpected(reply: unknown): Error {
  const shown = typeof reply === 'string' ? `a string of ${reply.length} characters` : typeof reply
  return new Error(`unexpected reply, ${reply === null ? 'null' : shown}`)
}
