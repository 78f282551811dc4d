// What every Store must do, as a table of claims: `testStore(() => yours)` in a test file runs it against yours too. Each
// row takes keys of its own, so that one store serves all rows at once, and a server many runs.

import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { describe, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import fc from 'fast-check'
import type { Store } from '../../src/store.ts'

interface StoreRow {
  claim: string
  run(store: Store): Promise<void>
}

/**
 * One test a row, several at once. `store` is called in each, after `before`; give it a long `timeoutMs`, so that nothing here
 * depends on how busy the machine is.
 */
export function testStore(store: () => Store): void {
  describe('does what every store does:', { concurrency: 8 }, () => {
    for (const row of storeTable) test(row.claim, () => row.run(store()))
  })
}

const key = (name = '') => `${name}${randomBytes(9).toString('base64url')}`

/** A ttl that is over when `expired()` is: no assertion depends on how fast the machine is in between. */
const short = 30
const expired = () => sleep(3 * short)
const long = 600_000

const odd: Record<string, string> = {
  empty: '',
  space: ' \t\r\n ',
  NUL: 'a\0b\0',
  controls: String.fromCharCode(...Array(32).keys(), 127, 133),
  'the escape of our own': '\x010000\x01',
  'beyond the BMP': '𝔘😀👩‍👩‍👧',
  'lone surrogates': 'x\ud800y\udfff\ud83d',
  'line separators and BOM': '\u2028\u2029\ufeff\ufffd\uffff',
  quotes: `'"\`\\$1 ?1 :a %s {x} -- ; DROP`,
  wildcards: '*?[a-z]%_',
  'property names': '__proto__',
  combining: 'e\u0301', // not the same as \u00e9
}

/** Pairs that are one key to who folds case, trims, normalizes or cuts. */
const lookalikes: [string, string][] = [
  ['a', 'A'],
  ['a', 'a '],
  ['a', 'a\0'],
  ['a\0b', 'a\0c'],
  ['\ud800', '\ud801'],
  ['\ud800', '\ufffd'],
  ['e\u0301', '\u00e9'],
  ['1', '1.0'],
  ['x'.repeat(287), 'x'.repeat(288)],
]

const storeTable: StoreRow[] = [
  {
    claim: 'a key never written is absent',
    async run(store) {
      assert.equal(await store.get(key()), undefined)
    },
  },
  {
    claim: 'get gives what set wrote last',
    async run(store) {
      const k = key()
      assert.equal(await store.set(k, 'one'), undefined)
      assert.equal(await store.get(k), 'one')
      await store.set(k, 'two')
      assert.equal(await store.get(k), 'two')
    },
  },
  {
    claim: 'a deleted key is absent, and deleting it again is no error',
    async run(store) {
      const k = key()
      await store.set(k, 'one')
      assert.equal(await store.delete(k), undefined)
      assert.equal(await store.get(k), undefined)
      assert.equal(await store.delete(k), undefined)
      assert.equal(await store.swap(k, undefined, 'again'), true)
    },
  },
  {
    claim: 'swap from undefined writes only an absent key',
    async run(store) {
      const k = key()
      assert.equal(await store.swap(k, undefined, 'first'), true)
      assert.equal(await store.swap(k, undefined, 'second'), false)
      assert.equal(await store.get(k), 'first')
    },
  },
  {
    claim: 'swap from a value writes only over exactly that value',
    async run(store) {
      const k = key()
      assert.equal(await store.swap(k, 'a', 'b'), false)
      assert.equal(await store.get(k), undefined)
      await store.set(k, 'a')
      for (const other of ['', 'A', 'a ', 'a\0', 'b', 'undefined', 'null'])
        assert.equal(await store.swap(k, other, 'b'), false)
      assert.equal(await store.get(k), 'a')
      assert.equal(await store.swap(k, 'a', 'b'), true)
      assert.equal(await store.get(k), 'b')
    },
  },
  {
    claim: 'an empty value is present',
    async run(store) {
      const k = key()
      assert.equal(await store.swap(k, undefined, ''), true)
      assert.equal(await store.get(k), '')
      assert.equal(await store.swap(k, undefined, 'x'), false)
      assert.equal(await store.swap(k, '', 'x'), true)
    },
  },
  {
    claim: 'swap to the same value succeeds',
    async run(store) {
      const k = key()
      await store.set(k, 'same')
      assert.equal(await store.swap(k, 'same', 'same'), true)
    },
  },
  ...(['set', 'swap from undefined', 'swap from a value'] as const).map((how) => ({
    claim: `what ${how} wrote with a ttl expires, for get and for both swaps`,
    async run(store: Store) {
      const [a, b, c] = [key(), key(), key()]
      for (const k of [a, b, c]) {
        if (how === 'set') await store.set(k, 'old', short)
        else if (how === 'swap from undefined') await store.swap(k, undefined, 'old', short)
        else {
          await store.set(k, 'older')
          assert.equal(await store.swap(k, 'older', 'old', short), true)
        }
      }
      await expired()
      assert.equal(await store.get(a), undefined)
      assert.equal(await store.swap(b, 'old', 'new'), false)
      assert.equal(await store.swap(c, undefined, 'new'), true)
      assert.equal(await store.get(c), 'new')
      assert.equal(await store.swap(b, undefined, 'new'), true)
    },
  })),
  {
    claim: 'a key is there until its ttl is over',
    async run(store) {
      const [a, b] = [key(), key()]
      await store.set(a, 'x', long)
      assert.equal(await store.swap(b, undefined, 'x', long), true)
      await expired()
      assert.equal(await store.get(a), 'x')
      assert.equal(await store.swap(b, undefined, 'y', long), false)
      assert.equal(await store.swap(b, 'x', 'y', long), true)
      assert.equal(await store.get(b), 'y')
    },
  },
  {
    claim: 'set without a ttl takes an earlier ttl away',
    async run(store) {
      const k = key()
      await store.set(k, 'x', short)
      await store.set(k, 'y')
      await expired()
      assert.equal(await store.get(k), 'y')
    },
  },
  {
    claim: 'swap without a ttl takes an earlier ttl away',
    async run(store) {
      const k = key()
      let left = 5 // a machine may stall for longer than the ttl
      do await store.set(k, 'x', 1_000)
      while (!(await store.swap(k, 'x', 'y')) && --left > 0)
      await sleep(1_200)
      assert.equal(await store.get(k), 'y')
    },
  },
  {
    claim: 'a later ttl counts, not the earlier one',
    async run(store) {
      const [longer, shorter] = [key(), key()]
      await store.set(longer, 'x', short)
      await store.set(longer, 'y', long)
      await store.set(shorter, 'x', long)
      await store.set(shorter, 'y', short)
      await expired()
      assert.equal(await store.get(longer), 'y')
      assert.equal(await store.get(shorter), undefined)
    },
  },
  {
    claim: 'a swap that loses changes neither value nor ttl',
    async run(store) {
      const k = key()
      await store.set(k, 'x')
      assert.equal(await store.swap(k, 'other', 'y', short), false)
      assert.equal(await store.swap(k, undefined, 'y', short), false)
      await expired()
      assert.equal(await store.get(k), 'x')
    },
  },
  {
    claim: 'an expired key can be taken once',
    async run(store) {
      const k = key()
      await store.set(k, 'old', short)
      await expired()
      const won = await Promise.all(
        Array.from({ length: 50 }, (_, n) => store.swap(k, undefined, String(n), long)),
      )
      assert.deepEqual(won.filter(Boolean), [true])
      assert.equal(await store.get(k), String(won.indexOf(true)))
    },
  },
  {
    claim: 'takes a ttl that is no whole number, very large, or infinite',
    async run(store) {
      for (const ttl of [long + 0.4, Number.MAX_SAFE_INTEGER, Number.POSITIVE_INFINITY]) {
        const k = key()
        assert.equal(await store.swap(k, undefined, 'x', ttl), true)
        await store.set(k, 'y', ttl)
        assert.equal(await store.swap(k, 'y', 'z', ttl), true)
        assert.equal(await store.get(k), 'z')
      }
    },
  },
  {
    claim: 'a ttl below one millisecond is one millisecond',
    async run(store) {
      const k = key()
      assert.equal(await store.swap(k, undefined, 'x', 0.25), true)
      await expired()
      assert.equal(await store.get(k), undefined)
    },
  },
  {
    claim: 'refuses a ttl that is no time, and writes nothing',
    async run(store) {
      const [absent, present] = [key(), key()]
      await store.set(present, 'x')
      for (const ttl of [0, -1, Number.NaN, Number.NEGATIVE_INFINITY, 2 ** 60]) {
        const refused = { name: 'DcafError', code: 'invalid_argument', message: /ttlMs/ }
        await assert.rejects(store.set(absent, 'y', ttl), refused)
        await assert.rejects(store.swap(absent, undefined, 'y', ttl), refused)
        await assert.rejects(store.swap(present, 'x', 'y', ttl), refused)
      }
      assert.equal(await store.get(absent), undefined)
      assert.equal(await store.get(present), 'x')
    },
  },
  ...Object.entries(odd).map(([name, text]) => ({
    claim: `keeps a key and a value that are odd: ${name}`,
    async run(store: Store) {
      const k = key() + text
      assert.equal(await store.swap(k, undefined, text, long), true)
      assert.equal(await store.get(k), text)
      assert.equal(await store.swap(k, undefined, 'x'), false)
      assert.equal(await store.swap(k, text, `${text}!${text}`), true)
      assert.equal(await store.get(k), `${text}!${text}`)
      await store.set(k, text)
      assert.equal(await store.get(k), text)
      await store.delete(k)
      assert.equal(await store.get(k), undefined)
    },
  })),
  {
    claim: 'keys that look alike are two keys',
    async run(store) {
      for (const [a, b] of lookalikes) {
        const run = key()
        const [left, right] = [run + a, run + b]
        assert.equal(await store.swap(left, undefined, 'left'), true)
        assert.equal(await store.swap(right, undefined, 'right'), true)
        assert.equal(await store.get(left), 'left')
      }
    },
  },
  {
    claim: 'keys may be empty, and 300 characters of four bytes each',
    async run(store) {
      const before = await store.get('') // the one key that rows and runs share
      await store.set('', `${before}x`)
      assert.equal(await store.get(''), `${before}x`)
      await store.delete('')
      const k = '😀'.repeat(300 - 12) + key()
      assert.equal(await store.swap(k, undefined, 'x'), true)
      assert.equal(await store.get(k), 'x')
      assert.equal(await store.get(k.slice(0, -1)), undefined)
    },
  },
  {
    claim: 'keeps four megabytes, and compares them whole',
    async run(store) {
      const k = key()
      const value = 'ü😀x'.repeat(2 ** 19)
      assert.equal(await store.swap(k, undefined, value), true)
      assert.ok((await store.get(k)) === value)
      assert.equal(await store.swap(k, `${value.slice(0, -1)}y`, 'small'), false)
      assert.equal(await store.swap(k, value, 'small'), true)
      assert.equal(await store.get(k), 'small')
    },
  },
  {
    claim: 'of 200 that take one key at once exactly one wins',
    async run(store) {
      const k = key()
      const won = await Promise.all(
        Array.from({ length: 200 }, (_, n) => store.swap(k, undefined, String(n), long)),
      )
      assert.deepEqual(won.filter(Boolean), [true])
      assert.equal(await store.get(k), String(won.indexOf(true)))
    },
  },
  {
    claim: 'of 200 that change one value at once exactly one wins',
    async run(store) {
      const k = key()
      await store.set(k, 'start')
      const won = await Promise.all(
        Array.from({ length: 200 }, (_, n) => store.swap(k, 'start', String(n))),
      )
      assert.deepEqual(won.filter(Boolean), [true])
      assert.equal(await store.get(k), String(won.indexOf(true)))
    },
  },
  {
    claim: 'counters kept by swap lose no update',
    async run(store) {
      const k = key()
      await Promise.all(Array.from({ length: 10 }, () => count(store, k, 10)))
      assert.equal(await store.get(k), '100')
    },
  },
  {
    claim: 'does in sequence what a map would do',
    async run(store) {
      const text = fc.oneof(
        fc.constantFrom('', 'a', 'b'),
        fc.string({ unit: 'binary', maxLength: 12 }),
      )
      const step = fc.record({
        method: fc.constantFrom('get', 'set', 'swap', 'delete'),
        key: fc.constantFrom('a', 'A', 'a\0', '\ud800', ''),
        expected: fc.oneof(fc.constant(undefined), text),
        guess: fc.boolean(),
        value: text,
        ttl: fc.constantFrom(undefined, long),
      } as const)
      await fc.assert(
        fc.asyncProperty(fc.array(step, { maxLength: 30 }), async (steps) => {
          const run = key()
          const model = new Map<string, string>()
          for (const s of steps) {
            const k = run + s.key
            const held = model.get(k)
            if (s.method === 'get') assert.equal(await store.get(k), held)
            if (s.method === 'set') await store.set(k, s.value, s.ttl)
            if (s.method === 'delete') await store.delete(k)
            const expected = s.guess ? held : s.expected
            const wins = s.method === 'swap' && expected === held
            if (s.method === 'swap')
              assert.equal(await store.swap(k, expected, s.value, s.ttl), wins)
            if (s.method === 'set' || wins) model.set(k, s.value)
            if (s.method === 'delete') model.delete(k)
          }
          for (const [k, value] of model) {
            assert.equal(await store.get(k), value)
            await store.delete(k)
          }
        }),
        { numRuns: 40 },
      )
    },
  },
]

/** Adds 1 to the number under `k`, `times` times, as sessions and grants do it. */
export async function count(store: Store, k: string, times: number): Promise<void> {
  for (let done = 0; done < times; ) {
    const held = await store.get(k)
    if (await store.swap(k, held, String(Number(held ?? 0) + 1))) done++
  }
}
