// Where things are kept: one interface of four methods. Ledger, votes, grants, sessions and idempotency are built
// on it. Knows nothing of what it keeps. `swap` is the only atomic step; every promise of "once" rests on it.

/** Rejections of any method mean "the store is down": what needed it then does not happen. */
export interface Store {
  get(key: string): Promise<string | undefined>
  /** `ttlMs`: milliseconds until the key is gone; without it the key stays. */
  set(key: string, value: string, ttlMs?: number): Promise<void>
  /** Writes only if the current value is `expected` (`undefined`: only if the key is absent). Atomic. */
  swap(key: string, expected: string | undefined, value: string, ttlMs?: number): Promise<boolean>
  delete(key: string): Promise<void>
}

/** In this process only: what it keeps is gone at exit, and with its epoch every approval it would have redeemed. */
export class MemoryStore implements Store {
  #entries = new Map<string, { value: string; expires: number }>()
  #nextSweep = 0

  #live(key: string): string | undefined {
    const entry = this.#entries.get(key)
    if (!entry) return undefined
    if (entry.expires > Date.now()) return entry.value
    this.#entries.delete(key)
    return undefined
  }

  /** Expired keys nobody asks for again are dropped here, at most once a minute. */
  #sweep(now: number): void {
    if (now < this.#nextSweep) return
    this.#nextSweep = now + 60_000
    for (const [key, entry] of this.#entries) if (entry.expires <= now) this.#entries.delete(key)
  }

  async get(key: string): Promise<string | undefined> {
    return this.#live(key)
  }

  async set(key: string, value: string, ttlMs = Number.POSITIVE_INFINITY): Promise<void> {
    const now = Date.now()
    this.#sweep(now)
    this.#entries.set(key, { value, expires: now + ttlMs })
  }

  async swap(
    key: string,
    expected: string | undefined,
    value: string,
    ttlMs?: number,
  ): Promise<boolean> {
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
