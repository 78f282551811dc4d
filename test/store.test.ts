// The store in memory, against the table that all stores pass, with a clock of its own where time matters.

import assert from 'node:assert/strict'
import { describe, type TestContext, test } from 'node:test'
import { DcafError } from '../src/providers/provider.ts'
import { available, lifetime, MemoryStore, memoryStore } from '../src/store.ts'
import { faultyStore } from './faulty-store.ts'
import { testStore } from './stores/table.ts'

describe('memoryStore', () => {
  const store = memoryStore()
  testStore(() => store)

  test('is a MemoryStore, the one kind of store that is not durable', () => {
    assert.ok(memoryStore() instanceof MemoryStore)
  })

  test('two of them share nothing', async () => {
    const [a, b] = [memoryStore(), memoryStore()]
    await a.set('k', 'x')
    assert.equal(await b.get('k'), undefined)
  })

  test('a key is gone at its very millisecond, not before', async (t) => {
    const tick = clock(t)
    const kept = memoryStore()
    await kept.set('k', 'x', 1_000)
    tick(999)
    assert.equal(await kept.get('k'), 'x')
    assert.equal(await kept.swap('k', undefined, 'y'), false)
    tick(1)
    assert.equal(await kept.get('k'), undefined)
    assert.equal(await kept.swap('k', 'x', 'y'), false)
    assert.equal(await kept.swap('k', undefined, 'y'), true)
  })

  test('a sweep takes what has expired and nothing else', async (t) => {
    const tick = clock(t)
    const kept = memoryStore()
    await kept.set('a', '1', 10)
    await kept.set('b', '2', 60_001)
    await kept.set('c', '3')
    tick(60_000)
    await kept.set('d', '4', 10)
    assert.equal(await kept.get('a'), undefined)
    assert.equal(await kept.get('b'), '2')
    assert.equal(await kept.get('c'), '3')
    assert.equal(await kept.get('d'), '4')
  })

  test('does not grow by keys that nobody asks for again', async (t) => {
    const tick = clock(t)
    const kept = memoryStore()
    const sizes: number[] = []
    const { set } = Map.prototype
    t.mock.method(Map.prototype, 'set', function (this: Map<unknown, unknown>, ...entry: never[]) {
      set.apply(this, entry as never)
      if (entry[0] === 'last') sizes.push(this.size)
      return this
    })
    for (let n = 0; n < 99; n++) await kept.set(`k${n}`, 'x', 10)
    await kept.set('at its very end', 'x', 60_000)
    tick(59_999)
    await kept.set('last', 'x', 10)
    tick(1)
    await kept.set('last', 'x', 10)
    assert.deepEqual(sizes, [101, 1])
  })
})

describe('lifetime', () => {
  test('is whole milliseconds, or undefined for ever', () => {
    assert.deepEqual([undefined, Number.POSITIVE_INFINITY, 1, 0.1, 1.5].map(lifetime), [
      undefined,
      undefined,
      1,
      1,
      2,
    ])
  })

  test('says what it got', () => {
    assert.throws(() => lifetime(-5), {
      code: 'invalid_argument',
      message: 'ttlMs must be more than 0 milliseconds, got -5',
    })
  })
})

describe('available', () => {
  const throwing = (thrown: unknown) => {
    const fail = () => Promise.reject(thrown)
    return { get: fail, set: fail, swap: fail, delete: fail }
  }

  test('hands on what it is asked, and what comes back', async () => {
    const inner = faultyStore()
    const store = available(inner)
    await store.set('k', 'x', 600_000)
    assert.equal(await store.get('k'), 'x')
    assert.equal(await store.swap('k', 'y', 'z', 600_000), false)
    assert.equal(await store.swap('k', 'x', 'z', 600_000), true)
    assert.equal(await inner.get('k'), 'z')
    await store.delete('k')
    assert.equal(await inner.get('k'), undefined)
  })

  test('calls whatever is thrown by any method a store that is not available, and keeps the cause', async () => {
    const cause = new Error('ECONNREFUSED')
    const store = available(throwing(cause))
    const expected = {
      name: 'DcafError',
      code: 'store_unavailable',
      retryable: true,
      message: 'the store failed: Error: ECONNREFUSED',
      cause,
    }
    await assert.rejects(store.get('k'), expected)
    await assert.rejects(store.set('k', 'x'), expected)
    await assert.rejects(store.swap('k', undefined, 'x'), expected)
    await assert.rejects(store.delete('k'), expected)
  })

  test('leaves an error that says what it is, and a store in memory, as they are', async () => {
    const ours = new DcafError('invalid_argument', 'ttlMs')
    await assert.rejects(available(throwing(ours)).get('k'), (error) => error === ours)
    const memory = memoryStore()
    assert.equal(available(memory), memory)
  })

  test('is one for each store, however often it is asked for', () => {
    const inner = faultyStore()
    const store = available(inner)
    assert.equal(available(inner), store)
    assert.equal(available(store), store)
  })
})

describe('faultyStore', () => {
  testStore(() => faultyStore())

  const unavailable = { code: 'store_unavailable', retryable: true }

  test('down: rejects and does nothing, for the methods and keys it is told', async () => {
    const store = faultyStore()
    store.fault = { kind: 'down', on: ['set'], keys: (key) => key !== 'b' }
    await assert.rejects(store.set('a', '1'), unavailable)
    await store.set('b', '1')
    assert.equal(await store.get('a'), undefined)
    assert.equal(await store.get('b'), '1')
  })

  test('lost: does it and rejects', async () => {
    const store = faultyStore()
    store.fault = { kind: 'lost' }
    await assert.rejects(store.swap('a', undefined, '1'), unavailable)
    assert.equal(await store.inner.get('a'), '1')
  })

  test('hang: does it only after heal', async () => {
    const store = faultyStore()
    store.fault = { kind: 'hang', on: ['set'] }
    const write = store.set('a', '1')
    assert.equal(await store.get('a'), undefined)
    store.heal()
    await write
    assert.equal(await store.get('a'), '1')
  })

  test('slow: does it, later than others', async () => {
    const store = faultyStore()
    const order: string[] = []
    store.fault = { kind: 'slow', ms: 20, on: ['set'] }
    await Promise.all([
      store.set('a', '1').then(() => order.push('set')),
      store.get('a').then(() => order.push('get')),
    ])
    assert.deepEqual(order, ['get', 'set'])
  })

  test('after and times choose the calls that fail', async () => {
    const store = faultyStore()
    store.fault = { kind: 'down', on: ['get'], after: 1, times: 2 }
    const outcomes = []
    for (let n = 0; n < 5; n++)
      outcomes.push(
        await store.get('a').then(
          () => 'ok',
          () => 'down',
        ),
      )
    assert.deepEqual(outcomes, ['ok', 'down', 'down', 'ok', 'ok'])
    assert.equal(store.calls.length, 5)
  })
})

/** Holds Date still; the function it gives moves it on. */
function clock(t: TestContext): (ms: number) => void {
  let now = 1_000
  t.mock.method(performance, 'now', () => now)
  return (ms) => {
    now += ms
  }
}
