// A Store with switches, for tests of what happens when a store fails: `const store = faultyStore(); store.fault = {...}`.
// Passes everything on to `inner` (default: in memory) until told otherwise, and counts the calls.

import { setTimeout as sleep } from 'node:timers/promises'
import { DcafError } from '../src/providers/provider.ts'
import { memoryStore, type Store } from '../src/store.ts'

export type StoreMethod = keyof Store

export interface Fault {
  /**
   * `down`: rejects, nothing was done. `lost`: was done, then rejects, as when the reply is lost. `hang`: neither answers
   * nor does anything until `heal()`. `slow`: answers after `ms`.
   */
  kind: 'down' | 'lost' | 'hang' | 'slow'
  /** For `slow`. */
  ms?: number
  /** Only these methods. Default: all. */
  on?: StoreMethod[]
  /** Only these keys. Default: all. */
  keys?: (key: string) => boolean
  /** Let so many matching calls pass first. Default 0. */
  after?: number
  /** Fail so many matching calls, then heal. Default: all. */
  times?: number
}

export interface FaultyStore extends Store {
  inner: Store
  fault: Fault | undefined
  /** Every call so far, answered or not, in order. */
  calls: { method: StoreMethod; key: string }[]
  /** No fault any more; calls that hang now go through. */
  heal(): void
}

/**
 * Counts as durable, whatever `inner` is. `onCall` is awaited before each call is looked at: a test can set a fault
 * there, or kill the process.
 */
export function faultyStore(
  inner: Store = memoryStore(),
  onCall?: (method: StoreMethod, key: string, store: FaultyStore) => unknown,
): FaultyStore {
  let hanging: (() => void)[] = []
  let fault: Fault | undefined
  let matched = 0

  async function call<T>(method: StoreMethod, key: string, work: () => Promise<T>): Promise<T> {
    store.calls.push({ method, key })
    await onCall?.(method, key, store)
    const now = applies(method, key)
    if (now?.kind === 'down') throw broken(method)
    if (now?.kind === 'hang') await new Promise<void>((resolve) => hanging.push(resolve))
    if (now?.kind === 'slow') await sleep(now.ms ?? 0)
    const result = await work()
    if (now?.kind === 'lost') throw broken(method)
    return result
  }

  function applies(method: StoreMethod, key: string): Fault | undefined {
    if (!fault || fault.on?.includes(method) === false || fault.keys?.(key) === false)
      return undefined
    const { after = 0, times = Number.POSITIVE_INFINITY } = fault
    const index = matched++
    return index >= after && index < after + times ? fault : undefined
  }

  const store: FaultyStore = {
    inner,
    calls: [],
    get fault() {
      return fault
    },
    set fault(next) {
      fault = next
      matched = 0
    },
    heal() {
      store.fault = undefined
      const waiting = hanging
      hanging = []
      for (const go of waiting) go()
    },
    get: (key) => call('get', key, () => inner.get(key)),
    set: (key, value, ttlMs) => call('set', key, () => inner.set(key, value, ttlMs)),
    swap: (key, expected, value, ttlMs) =>
      call('swap', key, () => inner.swap(key, expected, value, ttlMs)),
    delete: (key) => call('delete', key, () => inner.delete(key)),
  }
  return store
}

function broken(method: StoreMethod): DcafError {
  return new DcafError('store_unavailable', `faulty store: ${method} failed as told`, {
    retryable: true,
  })
}
