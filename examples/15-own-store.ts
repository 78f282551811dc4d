// A store of your own: four methods over anything with one atomic "write only if it is still what I
// read". Here a bucket with ETags, as S3 and others have it (If-Match, If-None-Match). Every
// promise of "once" rests on `swap`. Then:
// chatHandler(agent, { store: bucketStore(yours), keys: [process.env.DCAF_KEY] })

import { createHash, randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { lifetime, type Store } from '../src/index.ts'

interface Bucket {
  get(name: string): Promise<{ body: string; etag: string } | undefined>
  /** `false`: the condition does not hold (412), and nothing was written. */
  put(name: string, body: string, when?: { match: string } | { noneMatch: '*' }): Promise<boolean>
  delete(name: string): Promise<void>
}

export function bucketStore(bucket: Bucket): Store {
  // Keys may hold any character; JSON writes even those that UTF-8 cannot.
  const nameOf = (key: string) => createHash('sha256').update(JSON.stringify(key)).digest('hex')

  function bodyOf(value: string, ttlMs?: number): string {
    const ttl = lifetime(ttlMs) // throws for what is no time
    return JSON.stringify({ value, ...(ttl !== undefined && { expires: Date.now() + ttl }) })
  }

  async function read(key: string): Promise<{ value?: string; etag?: string }> {
    const found = await bucket.get(nameOf(key))
    if (!found) return {}
    const { value, expires = Infinity } = JSON.parse(found.body)
    // What expired is absent, but its object is still there to be replaced.
    return expires > Date.now() ? { value, etag: found.etag } : { etag: found.etag }
  }

  return {
    get: async (key) => (await read(key)).value,
    async set(key, value, ttlMs) {
      await bucket.put(nameOf(key), bodyOf(value, ttlMs))
    },
    async swap(key, expected, value, ttlMs) {
      const { etag, value: current } = await read(key)
      if (current !== expected) return false
      const when = etag ? { match: etag } : { noneMatch: '*' as const }
      return bucket.put(nameOf(key), bodyOf(value, ttlMs), when)
    },
    delete: (key) => bucket.delete(nameOf(key)),
  }
}

/** Stands in for the service. */
export function memoryBucket(): Bucket {
  const objects = new Map<string, { body: string; etag: string }>()
  return {
    get: async (name) => objects.get(name),
    async put(name, body, when) {
      const { etag } = objects.get(name) ?? {}
      if (when && ('match' in when ? etag !== when.match : etag !== undefined)) return false
      objects.set(name, { body, etag: randomUUID() })
      return true
    },
    async delete(name) {
      objects.delete(name)
    },
  }
}

if (process.argv[1] === import.meta.filename) {
  const store = bucketStore(memoryBucket())
  const claim = async (_: unknown, i: number) => store.swap('claim', undefined, `by ${i}`)
  const claims = await Promise.all(Array.from({ length: 20 }, claim))
  console.log('of 20 at once:', claims.filter(Boolean).length, await store.get('claim'))
  await store.set('short', 'lived', 1)
  await sleep(10)
  console.log('expired:', await store.get('short'), await store.swap('short', undefined, 'taken'))
}

// Prints:
//
// of 20 at once: 1 by 0
// expired: undefined true
