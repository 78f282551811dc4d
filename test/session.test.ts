import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { test } from 'node:test'
import { runInNewContext } from 'node:vm'
import { type } from 'arktype'
import fc from 'fast-check'
import { Type } from 'typebox'
import * as v from 'valibot'
import { z } from 'zod'
import { DcafError } from '../src/providers/provider.ts'
import { Session } from '../src/session.ts'

const argument = (message: RegExp) => (error: unknown) =>
  error instanceof DcafError && error.code === 'invalid_argument' && message.test(error.message)
const request = (message: string) => (error: unknown) =>
  error instanceof DcafError && error.code === 'invalid_request' && error.message === message

test('keeps JSON values by key', () => {
  const session = new Session({ a: 1, b: null })
  session.set('c', ['x']).set('d', { deep: [true] })
  assert.deepEqual(session.keys(), ['a', 'b', 'c', 'd'])
  assert.equal(session.get('b'), null)
  assert.equal(session.has('b'), true)
  assert.equal(session.get('none'), undefined)
  assert.deepEqual(
    [...session],
    [
      ['a', 1],
      ['b', null],
      ['c', ['x']],
      ['d', { deep: [true] }],
    ],
  )
  assert.equal(JSON.stringify(session), '{"a":1,"b":null,"c":["x"],"d":{"deep":[true]}}')
})

test('deletes, clears and updates', () => {
  const session = new Session({ a: 1, b: 2 })
  assert.equal(session.delete('a'), true)
  assert.equal(session.delete('a'), false)
  session.update({ b: 3, c: 4 })
  assert.deepEqual(session.toJSON(), { b: 3, c: 4 })
  session.clear()
  assert.deepEqual(session.toJSON(), {})
  assert.equal(session.has('b'), false)
})

test('is empty without data, and copies another session', () => {
  assert.deepEqual(new Session().toJSON(), {})
  assert.deepEqual(new Session(null).toJSON(), {})
  const first = new Session({ a: [1] })
  const second = new Session(first)
  second.set('a', [2])
  assert.deepEqual([first.get('a'), second.get('a')], [[1], [2]])
})

test('refuses data that is no object of values by key', () => {
  for (const data of [[1], 'text', 7, new Map([['a', 1]]), () => 1])
    assert.throws(
      () => new Session(data as object),
      argument(/^(a )?session .*got \w+|must be JSON/),
    )
})

test('hands out and takes in copies, so that only set changes it', () => {
  const cart = ['a']
  const session = new Session({ held: cart })
  session.set('cart', cart)
  cart.push('after set')
  ;(session.get('cart') as string[]).push('after get')
  ;(session.get('cart', Type.Array(Type.String())) as string[]).push('after typed get')
  ;(session.toJSON().cart as string[]).push('after toJSON')
  for (const [, value] of session) (value as string[]).push('after iteration')
  assert.deepEqual(session.toJSON(), { held: ['a'], cart: ['a'] })
})

test('gives a fresh fallback each time: a shared constant cannot carry values between sessions', () => {
  const empty: string[] = []
  new Session().get('cart', Type.Array(Type.String()), empty).push('mine')
  assert.deepEqual(empty, [])
})

const schemas = {
  'a TypeBox schema': Type.Array(Type.Object({ price: Type.Number() })),
  'a JSON Schema': {
    type: 'array',
    items: { type: 'object', required: ['price'], properties: { price: { type: 'number' } } },
  },
  'a zod schema': z.array(z.object({ price: z.number() })),
  'an arktype schema': type({ price: 'number' }).array(),
  'a valibot schema': v.array(v.object({ price: v.number() })),
}
for (const [name, schema] of Object.entries(schemas)) {
  test(`checks a value against ${name}, and names key and field where it does not fit`, () => {
    const session = new Session({ cart: [{ price: 1 }], bad: [{ price: 1 }, { price: 'free' }] })
    assert.deepEqual(session.get('cart', schema), [{ price: 1 }])
    assert.equal(session.get('none', schema), undefined)
    assert.throws(
      () => session.get('bad', schema),
      (error) =>
        error instanceof DcafError &&
        error.code === 'invalid_request' &&
        error.message.startsWith('session.bad does not fit its schema: /1/price '),
    )
    assert.deepEqual(session.get('bad', schema, []), [])
    assert.deepEqual(session.get('none', schema, []), [])
    assert.deepEqual(session.get('cart', schema, []), [{ price: 1 }])
  })
}

test('names the key alone where the value as a whole does not fit', () => {
  assert.throws(
    () => new Session({ n: 'one' }).get('n', { type: 'number' }),
    request('session.n does not fit its schema: must be number'),
  )
})

test('takes undefined and null as fallbacks too', () => {
  const session = new Session({ n: 'one' })
  assert.equal(session.get('n', Type.Union([Type.Null(), Type.Number()]), null), null)
  assert.equal(session.get('n', Type.Optional(Type.Number()), undefined as never), undefined)
})

test("gives a Standard Schema's output, not its input", () => {
  const session = new Session({ at: '2026-01-02' })
  assert.deepEqual(session.get('at', z.coerce.date()), new Date('2026-01-02'))
})

test('refuses an async schema, for a session is read at once', () => {
  const schema = z.string().refine(async () => true)
  assert.throws(() => new Session({ a: 'x' }).get('a', schema))
  const standard = { '~standard': { validate: async () => ({ value: 1 }) } }
  assert.throws(() => new Session({ a: 'x' }).get('a', standard), argument(/no async schema/))
})

test('infers the type of a value from its schema', () => {
  const session = new Session({ n: 1, list: ['a'], day: '2026-01-02' })
  const typed: number | undefined = session.get('n', Type.Number())
  const literal: number = session.get('n', { type: 'number' }, 0)
  const list: string[] = session.get('list', { type: 'array', items: { type: 'string' } }, [])
  const date: Date | undefined = session.get('day', z.coerce.date())
  const ark: string | undefined = session.get('day', type('string'))
  // @ts-expect-error without a fallback it may be absent
  const sure: number = session.get('n', Type.Number())
  // @ts-expect-error a fallback has the type of the schema
  session.get('n', Type.Number(), 'none')
  // @ts-expect-error without a schema it is unknown
  const blind: number = session.get('n')
  assert.deepEqual([typed, literal, list, ark, sure, blind], [1, 1, ['a'], '2026-01-02', 1, 1])
  assert.ok(date instanceof Date)
})

class Money {
  cents = 5
}
const cycle: { self?: unknown } = {}
cycle.self = { again: [cycle] }
const nested = (levels: number) => {
  let value: unknown = 0
  for (let i = 0; i < levels; i++) value = [value]
  return value
}
const refused: [what: string, value: unknown, message: RegExp][] = [
  ['undefined', undefined, /^session\.k must be JSON, got undefined/],
  ['undefined inside', { a: [1, { b: undefined }] }, /^session\.k\.a\.1\.b .*got undefined/],
  ['a hole in an array', Object.assign([1], { length: 3 }), /^session\.k\.1 .*got undefined/],
  ['a function', { run() {} }, /^session\.k\.run .*got Function/],
  ['a symbol', Symbol('s'), /^session\.k .*got symbol/],
  ['a bigint', [1n], /^session\.k\.0 .*got bigint/],
  ['NaN', { n: Number.NaN }, /^session\.k\.n .*got NaN/],
  ['Infinity', Number.NEGATIVE_INFINITY, /^session\.k .*got -Infinity/],
  ['a Map', { m: new Map() }, /^session\.k\.m must be JSON or have toJSON, got Map/],
  ['a Set', new Set([1]), /got Set/],
  ['a Promise', Promise.resolve(1), /got Promise/],
  ['an Error', new Error('x'), /got Error/],
  ['a typed array', new Uint8Array(2), /got Uint8Array/],
  ['a boxed number', Object(1), /got Number/],
  ['an instance without toJSON', { price: new Money() }, /^session\.k\.price .*got Money/],
  ['an object over another', Object.create({ inherited: 1 }), /^session\.k /],
  ['a toJSON that gives no JSON', { toJSON: () => new Map() }, /^session\.k .*got Map/],
  ['a toJSON that never ends', { toJSON: endless }, /levels deep/],
  ['a cycle', cycle, /^session\.k\.self\.again\.0 leads back/],
  ['more than 50 levels', nested(51), /nested more than 50 levels deep/],
  ['__proto__ inside', JSON.parse('{"a":{"__proto__":1}}'), /^session\.k\.a\.__proto__/],
  ['constructor inside', { constructor: 1 }, /^session\.k\.constructor/],
  ['prototype inside', [{ prototype: 1 }], /^session\.k\.0\.prototype/],
]
function endless(): unknown {
  return { toJSON: endless }
}
for (const [what, value, message] of refused) {
  test(`refuses ${what}, naming key and path, and changes nothing`, () => {
    const session = new Session({ k: 'before' })
    assert.throws(() => session.set('k', value), argument(message))
    assert.throws(() => session.update({ a: 1, k: value }), argument(message))
    assert.throws(() => new Session({ k: value }), argument(message))
    assert.deepEqual(session.toJSON(), { k: 'before' })
    assert.equal(session.changed, false)
  })
}

test('stores what toJSON gives', () => {
  const session = new Session()
  const price = { cents: 5, toJSON: () => ({ eur: '0.05' }) }
  session.update({ at: new Date(0), url: new URL('http://a.example/'), prices: [price] })
  const expected = {
    at: '1970-01-01T00:00:00.000Z',
    url: 'http://a.example/',
    prices: [{ eur: '0.05' }],
  }
  assert.deepEqual(session.toJSON(), expected)
})

test('keeps zero, and makes one of its two signs, as JSON has it', () => {
  const session = new Session({ zero: 0, minus: [-0] })
  assert.ok(Object.is(session.get('zero'), 0))
  assert.ok(Object.is((session.get('minus') as number[])[0], 0))
})

test('takes 50 levels, the same object twice, and plain objects of any realm', () => {
  const session = new Session()
  const shared = { a: 1 }
  session.set('deep', nested(50))
  session.set('twice', [shared, shared])
  session.set('realm', runInNewContext('({ a: [1] })'))
  session.set('bare', Object.assign(Object.create(null), { a: 1 }))
  assert.deepEqual(session.get('twice'), [{ a: 1 }, { a: 1 }])
  assert.deepEqual([session.get('realm'), session.get('bare')], [{ a: [1] }, { a: 1 }])
})

test("hides the library's own keys, and refuses to set them", () => {
  const session = new Session({ $run: 'sealed', a: 1 })
  assert.equal(session.get('$run'), undefined)
  assert.equal(session.has('$run'), false)
  assert.deepEqual(session.keys(), ['a'])
  assert.deepEqual(session.toJSON(), { a: 1 })
  assert.deepEqual([...session], [['a', 1]])
  assert.throws(
    () => session.set('$run', 'x'),
    argument(/^session\.\$run: keys that begin with \$/),
  )
  assert.throws(() => session.update({ b: 1, $x: 1 }), argument(/^session\.\$x: /))
  assert.equal(session.delete('$run'), false)
  assert.deepEqual(session.toJSON(), { a: 1 })
})

for (const key of ['__proto__', 'constructor', 'prototype']) {
  test(`refuses the key ${key}`, () => {
    const data = JSON.parse(`{"${key}":{"isAdmin":true}}`)
    assert.throws(() => new Session().set(key, { isAdmin: true }), argument(/refused on the wire/))
    assert.throws(() => new Session().update(data), argument(/refused on the wire/))
    assert.throws(() => new Session(data), argument(/refused on the wire/))
    assert.equal(new Session().get(key), undefined)
    assert.equal(new Session().has(key), false)
    assert.equal(({} as { isAdmin?: boolean }).isAdmin, undefined)
  })
}

test('holds keys that objects inherit', () => {
  const session = new Session({ toString: 1 })
  session.set('hasOwnProperty', 2)
  assert.deepEqual(session.keys(), ['toString', 'hasOwnProperty'])
  assert.equal(session.get('valueOf'), undefined)
})

test('replays sets and deletes on newer values, whose other keys survive', () => {
  const session = new Session({ a: 1, b: 1, c: 1 })
  session.set('a', 2)
  session.delete('b')
  session.delete('d')
  session.set('e', 1).set('e', 2)
  session.set('f', 1).delete('f')
  const newest = { a: 9, b: 9, c: 9, d: 9, f: 9, g: 9 }
  assert.deepEqual(session.replayOn(newest).toJSON(), { a: 2, c: 9, g: 9, e: 2 })
  assert.deepEqual(session.toJSON(), { a: 2, c: 1, e: 2 })
})

test('replays a clear, and what was set after it', () => {
  const session = new Session({ a: 1 })
  session.set('b', 1)
  session.clear()
  session.set('c', 1)
  assert.deepEqual(session.replayOn({ a: 9, b: 9, d: 9 }).toJSON(), { c: 1 })
  assert.deepEqual(session.replayOn(undefined).toJSON(), { c: 1 })
})

test('a session only read has nothing to replay', () => {
  const session = new Session({ a: 1 })
  session.get('a')
  session.toJSON()
  assert.equal(session.changed, false)
  assert.deepEqual(session.replayOn({ b: 2 }).toJSON(), { b: 2 })
  for (const change of [
    (s: Session) => s.set('a', 1),
    (s: Session) => s.delete('x'),
    (s: Session) => s.clear(),
  ]) {
    const changed = new Session({ a: 1 })
    change(changed)
    assert.equal(changed.changed, true)
  }
})

test('gives back any JSON as the trip over the wire would', () => {
  const key = fc
    .string()
    .filter((k) => !k.startsWith('$') && !['__proto__', 'constructor', 'prototype'].includes(k))
  const { json } = fc.letrec((tie) => ({
    json: fc.oneof(
      { depthSize: 'small' },
      fc.jsonValue({ maxDepth: 0 }),
      fc.array(tie('json'), { maxLength: 4 }),
      fc.dictionary(key, tie('json'), { maxKeys: 4 }),
    ),
  }))
  fc.assert(
    fc.property(fc.dictionary(key, json), (data) => {
      const session = new Session(data)
      assert.deepEqual(session.toJSON(), JSON.parse(JSON.stringify(data)))
      assert.deepEqual(new Session(JSON.parse(JSON.stringify(session))).toJSON(), session.toJSON())
    }),
    { numRuns: 300 },
  )
})

test('the package loads no TypeBox, and a session none until a schema is used', () => {
  const script = `
    import { registerHooks } from 'node:module'
    const seen = new Set()
    registerHooks({ resolve: (name, context, next) => { seen.add(name); return next(name, context) } })
    const { Session } = await import(${JSON.stringify(new URL('../src/index.ts', import.meta.url))})
    new Session({ a: 1 }).set('b', 2).toJSON()
    const before = [...seen].filter((name) => name.startsWith('typebox'))
    new Session({ a: 1 }).get('a', { type: 'number' })
    console.log(before.length, seen.has('typebox/schema'))`
  const out = execFileSync(process.execPath, ['--input-type=module', '-e', script], {
    encoding: 'utf8',
  })
  assert.equal(out.trim(), '0 true')
})
