// Where things are kept: one interface of four methods. Ledger, votes, grants, sessions and idempotency are built
// on it. Knows nothing of what it keeps. `swap` is the only atomic step; every promise of "once" rests on it.

import { DcafError } from './providers/provider.ts'

/**
 * Keys are strings of up to 300 characters, values of up to some megabytes; both may hold any character. A key past
 * its time is absent, for `swap` too. Rejections of any method mean "the store is down": what needed it then does
 * not happen. A write that was rejected may still have been made, or be made later; a `swap` that says `true` was.
 * A store other than `MemoryStore` counts as durable: what it has confirmed is there after a restart.
 */
export interface Store {
  get(key: string): Promise<string | undefined>
  /** `ttlMs`: milliseconds until the key is gone; without it the key stays, whatever it had before. */
  set(key: string, value: string, ttlMs?: number): Promise<void>
  /** Writes only if the current value is `expected` (`undefined`: only if the key is absent). Atomic. */
  swap(key: string, expected: string | undefined, value: string, ttlMs?: number): Promise<boolean>
  delete(key: string): Promise<void>
}

/**
 * `ttlMs` as every store takes it: whole milliseconds, `undefined` for a key that stays. Zero, less, and NaN throw: a
 * claim that were gone as soon as it is made would let the next one win too.
 */
export function lifetime(ttlMs: number | undefined): number | undefined {
  if (ttlMs === undefined || ttlMs === Number.POSITIVE_INFINITY) return undefined
  if (ttlMs > 0 && ttlMs <= Number.MAX_SAFE_INTEGER) return Math.ceil(ttlMs)
  throw new DcafError('invalid_argument', `ttlMs must be more than 0 milliseconds, got ${ttlMs}`)
}

/** In this process only: what it keeps is gone at exit, and with its epoch every approval it would have redeemed. */
export class MemoryStore implements Store {
  #entries = new Map<string, { value: string; expires: number }>()
  #nextSweep = 0

  #live(key: string): string | undefined {
    const entry = this.#entries.get(key)
    return entry && entry.expires > performance.now() ? entry.value : undefined
  }

  /** Expired keys that nobody writes again are dropped here, at most once a minute. */
  #sweep(now: number): void {
    if (now < this.#nextSweep) return
    this.#nextSweep = now + 60_000
    for (const [key, entry] of this.#entries) if (entry.expires <= now) this.#entries.delete(key)
  }

  async get(key: string): Promise<string | undefined> {
    return this.#live(key)
  }

  async set(key: string, value: string, ttlMs?: number): Promise<void> {
    const now = performance.now() // a wall clock that is set forth and back would forget what ran
    const expires = now + (lifetime(ttlMs) ?? Number.POSITIVE_INFINITY)
    this.#sweep(now)
    this.#entries.set(key, { value, expires })
  }

  async swap(key: string, expected: string | undefined, value: string, ttlMs?: number) {
    if (this.#live(key) !== expected) return false
    await this.set(key, value, ttlMs) // set runs to its end before anything else can: no await before its write
    return true
  }

  async delete(key: string): Promise<void> {
    this.#entries.delete(key)
  }
}

export function memoryStore(): MemoryStore {
  return new MemoryStore()
}

const guarded = new WeakMap<Store, Store>()

/** The same store, each of whose failures is `store_unavailable`: a caller's own may reject with anything. */
export function available(store: Store): Store {
  const known = store instanceof MemoryStore ? store : guarded.get(store)
  if (known) return known
  const made: Store = {
    get: (key) => guard(() => store.get(key)),
    set: (key, value, ttlMs) => guard(() => store.set(key, value, ttlMs)),
    swap: (key, expected, value, ttlMs) => guard(() => store.swap(key, expected, value, ttlMs)),
    delete: (key) => guard(() => store.delete(key)),
  }
  guarded.set(store, made).set(made, made)
  return made
}

async function guard<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (cause) {
    if (cause instanceof DcafError) throw cause
    const message = `the store failed: ${cause}`
    throw new DcafError('store_unavailable', message, { retryable: true, cause })
  }
}
