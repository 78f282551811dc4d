import assert from 'node:assert/strict'
import { test } from 'node:test'
import { toStandardJsonSchema } from '@valibot/to-json-schema'
import { type } from 'arktype'
import { Type } from 'typebox'
import * as v from 'valibot'
import { z } from 'zod'
import { DcafError } from '../src/providers/provider.ts'
import { outputText, type Tool, tool } from '../src/tool.ts'

type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false
const is = <T extends true>(_?: T): void => {}
const done = () => 'done'

/** The message of the `invalid_argument` that `make` throws. */
function refusal(make: () => unknown): string {
  try {
    make()
  } catch (error) {
    if (error instanceof DcafError && error.code === 'invalid_argument') return error.message
    throw error
  }
  throw new assert.AssertionError({ message: 'it was accepted' })
}
/** A tool over a schema that no type can know. */
const over = (input: unknown, more: object = {}): Tool =>
  tool({ name: 'x', description: 'X', input: input as object, execute: done, ...more })

// ------------------------------------------------------------ the styles of input

const styles: Record<string, Tool> = {
  text: tool({
    name: 'weather',
    description: 'Weather',
    input: '{ city: string, days?: number, units?: "celsius" | "fahrenheit" }',
    defaults: { units: 'celsius' },
    execute: (input) => {
      is<Same<typeof input.city, string>>()
      is<Same<typeof input.units, 'celsius' | 'fahrenheit' | undefined>>()
      // @ts-expect-error: no such property
      return input.town
    },
  }),
  typebox: tool({
    name: 'weather',
    description: 'Weather',
    input: Type.Object({
      city: Type.String(),
      days: Type.Optional(Type.Number()),
      units: Type.Union([Type.Literal('celsius'), Type.Literal('fahrenheit')], {
        default: 'celsius',
      }),
    }),
    execute: (input) => {
      is<Same<typeof input, { city: string; days?: number; units: 'celsius' | 'fahrenheit' }>>()
      // @ts-expect-error: no such property
      return input.town
    },
  }),
  json: tool({
    name: 'weather',
    description: 'Weather',
    input: {
      type: 'object',
      properties: {
        city: { type: 'string' },
        days: { type: 'number' },
        units: { enum: ['celsius', 'fahrenheit'], default: 'celsius' },
      },
      required: ['city', 'units'],
    },
    execute: (input) => {
      is<Same<typeof input.city, string>>()
      is<Same<typeof input.units, 'celsius' | 'fahrenheit'>>()
      // @ts-expect-error: a number, not a text
      const days: string | undefined = input.days
      return days
    },
  }),
  zod: tool({
    name: 'weather',
    description: 'Weather',
    input: z.object({
      city: z.string(),
      days: z.number().optional(),
      units: z.enum(['celsius', 'fahrenheit']).default('celsius'),
    }),
    execute: (input) => {
      is<Same<typeof input.units, 'celsius' | 'fahrenheit'>>()
      // @ts-expect-error: no such property
      return input.town
    },
  }),
  arktype: tool({
    name: 'weather',
    description: 'Weather',
    input: type({
      city: 'string',
      'days?': 'number',
      units: '"celsius" | "fahrenheit" = "celsius"',
    }),
    execute: (input) => {
      is<Same<typeof input.units, 'celsius' | 'fahrenheit'>>()
      // @ts-expect-error: no such property
      return input.town
    },
  }),
  valibot: tool({
    name: 'weather',
    description: 'Weather',
    input: toStandardJsonSchema(
      v.object({
        city: v.string(),
        days: v.optional(v.number()),
        units: v.optional(v.picklist(['celsius', 'fahrenheit']), 'celsius'),
      }),
    ),
    execute: (input) => {
      is<Same<typeof input.units, 'celsius' | 'fahrenheit'>>()
      // @ts-expect-error: no such property
      return input.town
    },
  }),
}

for (const [style, made] of Object.entries(styles)) {
  test(`${style}: the model sees an object in which only city is required`, () => {
    const { type: kind, required, properties } = made.input
    assert.deepEqual([kind, required], ['object', ['city']])
    assert.deepEqual(Object.keys(properties as object).sort(), ['city', 'days', 'units'])
  })

  test(`${style}: defaults are filled and nothing given is lost`, async () => {
    assert.deepEqual(await made.validate({ city: 'Ulm' }), {
      value: { city: 'Ulm', units: 'celsius' },
    })
    const all = { city: 'Ulm', days: 3, units: 'fahrenheit' }
    assert.deepEqual(await made.validate(all), { value: all })
  })

  test(`${style}: what is wrong names the field`, async () => {
    const problem = async (input: unknown) => {
      const result = await made.validate(input)
      return 'problem' in result ? result.problem : assert.fail('it was accepted')
    }
    assert.match(await problem({ city: 7 }), /city/)
    assert.match(await problem({}), /city/)
    assert.match(await problem({ city: 'Ulm', units: 'kelvin' }), /units/)
    for (const none of ['{"city":"Ulm"}', null, 7, ['Ulm']]) assert.ok(await problem(none))
  })

  test(`${style}: what was given is not changed`, async () => {
    const given = Object.freeze({ city: 'Ulm' })
    await made.validate(given)
    assert.deepEqual(given, { city: 'Ulm' })
  })
}

for (const [style, made] of Object.entries(styles))
  test(`${style}: the answer is there at once`, () => {
    const all = { city: 'Ulm', days: 3, units: 'celsius' }
    assert.deepEqual(made.validate(all), { value: all })
    assert.ok('problem' in made.validate({ city: 7 }))
  })

test('the value shares nothing with what was given, and has no -0', () => {
  const schema = { type: 'object', properties: { list: { type: 'array' }, a: { default: 1 } } }
  const { a: _, ...properties } = schema.properties
  for (const made of [over(schema), over({ ...schema, properties })]) {
    const given = { list: [{ deep: [-0] }], a: 1, at: { __proto__: null, b: new Date(0) } }
    const result = made.validate(given)
    assert.deepEqual(result, { value: { list: [{ deep: [0] }], a: 1, at: { b: new Date(0) } } })
    const { value } = result as { value: typeof given }
    assert.notEqual(value.list, given.list)
    assert.notEqual(value.list[0], given.list[0])
    assert.notEqual(value.list[0]?.deep, given.list[0]?.deep)
    assert.ok(Object.is(given.list[0]?.deep[0], -0))
  }
})

test('a Standard Schema gets a copy too', async () => {
  const given = { list: [] as number[] }
  const made = over(
    z.object({ list: z.array(z.number()) }).refine(({ list }) => list.push(1) && true),
  )
  await made.validate(given)
  assert.deepEqual(given, { list: [] })
})

test('a __proto__ key stays a key of the value', () => {
  const { value } = over({ type: 'object' }).validate(
    JSON.parse('{"__proto__":{"isAdmin":true}}'),
  ) as { value: { isAdmin?: boolean } }
  assert.deepEqual(Object.keys(value), ['__proto__'])
  assert.equal(value.isAdmin, undefined)
})

test('the words of an enum are told to whoever missed them', async () => {
  assert.match(
    JSON.stringify(await styles.json?.validate({ city: 'Ulm', units: 'kelvin' })),
    /celsius.*fahrenheit/,
  )
})

test('text that is no TypeScript object type is a type error, and throws', () => {
  const made = (input: string) => refusal(() => over(input))
  // @ts-expect-error: not the text of a TypeScript object type
  assert.ok(refusal(() => tool({ name: 'x', description: 'X', input: '{ a: ', execute: done })))
  // @ts-expect-error: not the text of a TypeScript object type
  assert.ok(refusal(() => tool({ name: 'x', description: 'X', input: 'a city', execute: done })))
  // @ts-expect-error: not the text of a TypeScript object type
  assert.ok(refusal(() => tool({ name: 'x', description: 'X', input: 'string[]', execute: done })))
  for (const text of ['', '{', '{ a: ', 'hello world', 'string', 'string[]', '{ a: Foo }'])
    assert.match(made(text), /^tool x: input .*TypeScript object type/, text)
})

test('text known only at run time types as any object', () => {
  const text: string = '{ a: number }'
  const made = tool({
    name: 'x',
    description: 'X',
    input: text,
    execute: (input) => {
      is<Same<typeof input, Record<string, unknown>>>()
      return input.a
    },
  })
  assert.deepEqual(made.input.required, ['a'])
})

test('defaults are typed by the input', () => {
  const bad = () =>
    tool({
      name: 'x',
      description: 'X',
      input: '{ n?: number }',
      // @ts-expect-error: n is a number
      defaults: { n: 'one' },
      execute: done,
    })
  assert.match(refusal(bad), /default of n/)
})

test('approval and preview are typed by the input too', () => {
  const made = tool({
    name: 'x',
    description: 'X',
    input: '{ n?: number }',
    requiresApproval: (input) => {
      is<Same<typeof input.n, number | undefined>>()
      return (input.n ?? 0) > 2
    },
    // @ts-expect-error: a preview is text
    preview: (input) => {
      is<Same<typeof input.n, number | undefined>>()
      return input.n
    },
    execute: done,
  })
  const judge = made.requiresApproval as (input: object) => boolean
  assert.deepEqual([judge({ n: 3 }), judge({})], [true, false])
})

test('a transformed input is typed and run as what comes out of the schema', async () => {
  const made = tool({
    name: 'x',
    description: 'X',
    input: z.object({ text: z.string().transform((text) => text.length) }),
    execute: (input) => {
      is<Same<typeof input.text, number>>()
      return input.text
    },
  })
  assert.deepEqual(await made.validate({ text: 'four' }), { value: { text: 4 } })
})

test('a schema that checks asynchronously is waited for, one that throws is a problem', async () => {
  const late = z.object({ n: z.number().refine(async (n) => n > 1, 'too small') })
  assert.deepEqual(await over(late).validate({ n: 0 }), { problem: '/n too small' })
  const broken = z.object({
    n: z.number().refine(() => {
      throw new Error('no registry')
    }),
  })
  assert.deepEqual(await over(broken).validate({ n: 0 }), { problem: 'no registry' })
})

test('a schema that throws at once is a problem too, whatever it throws', () => {
  const validate = (thrown: unknown) =>
    over({
      '~standard': {
        version: 1,
        vendor: 'own',
        jsonSchema: { input: () => ({ type: 'object' }) },
        validate: () => {
          throw thrown
        },
      },
    }).validate({})
  assert.deepEqual(validate(new Error('no registry')), { problem: 'no registry' })
  assert.deepEqual(validate('gone'), { problem: 'its schema failed' })
})

test('an input that cannot be cloned is copied as its JSON', () => {
  class Pod {
    name = 'web'
    stop() {}
    act = () => 1
  }
  const made = over({ type: 'object' })
  assert.deepEqual(made.validate({ pod: new Pod() }), { value: { pod: { name: 'web' } } })
})

// ------------------------------------------------------------ defaults, wherever they are

const n3 = { type: 'object', properties: { n: { type: 'number', default: 3 } }, required: ['n'] }
for (const [where, schema, given, filled] of [
  ['an object', { properties: { o: n3 } }, { o: {} }, { o: { n: 3 } }],
  ['a list', { properties: { o: { type: 'array', items: n3 } } }, { o: [{}] }, { o: [{ n: 3 }] }],
  [
    'a reference',
    { $defs: { N: n3 }, properties: { o: { $ref: '#/$defs/N' } } },
    { o: {} },
    { o: { n: 3 } },
  ],
  ['a default', { properties: { o: { ...n3, default: {} } } }, {}, { o: { n: 3 } }],
  [
    'one of several',
    { properties: { o: { anyOf: [{ type: 'null' }, n3] } } },
    { o: {} },
    { o: { n: 3 } },
  ],
  [
    'exactly one of several',
    { properties: { o: { oneOf: [n3, { type: 'null' }] } } },
    { o: {} },
    { o: { n: 3 } },
  ],
  ['all of several', { allOf: [n3] }, {}, { n: 3 }],
] as const)
  test(`a default inside ${where} is filled, and the model need not give it`, async () => {
    const made = over({ type: 'object', ...schema })
    assert.deepEqual(await made.validate(given), { value: filled })
    assert.doesNotMatch(JSON.stringify(made.input), /"required":\["n"\]/)
  })

test('one that was filled is a copy', async () => {
  const made = over({ type: 'object', properties: { list: { default: [] } } })
  const fill = async () => (await made.validate({})) as { value: { list: unknown[] } }
  ;(await fill()).value.list.push(1)
  assert.deepEqual(await fill(), { value: { list: [] } })
})

test('null, false and 0 are given, undefined is too', async () => {
  const made = over({ type: 'object', properties: { a: { default: 1 } } })
  for (const a of [null, false, 0, undefined])
    assert.deepEqual(await made.validate({ a }), { value: { a } })
})

test('a key that every object has is no given property', async () => {
  const made = over({ type: 'object', properties: { toString: { type: 'string', default: 'x' } } })
  assert.deepEqual(await made.validate({}), { value: { toString: 'x' } })
})

// ------------------------------------------------------------ what is wrong for good

const good = { name: 'x', description: 'X', input: { type: 'object' }, execute: done }
for (const [claim, change, words] of [
  ['an empty name', { name: '' }, /name must be 1 to 64/],
  ['a name of 65 characters', { name: 'x'.repeat(65) }, /name must be 1 to 64/],
  ['a name with a space', { name: 'a b' }, /got "a b"/],
  ['a name with a line end', { name: 'a\n' }, /name must be/],
  ['no name', { name: undefined }, /name must be/],
  ['no description', { description: undefined }, /tool x: description is missing/],
  ['a blank description', { description: ' ' }, /description is missing/],
  ['no execute', { execute: undefined }, /execute must be a function/],
  ['no input', { input: undefined }, /input must be TypeScript text/],
  ['an input of null', { input: null }, /input must be TypeScript text/],
  ['a schema that is no object', { input: { type: 'string' } }, /type object, got "string"/],
  ['a TypeBox schema that is no object', { input: Type.String() }, /type object/],
  ['a zod schema that is no object', { input: z.string() }, /type object/],
  ['a zod schema that JSON cannot say', { input: z.object({ at: z.date() }) }, /^tool x: its zod schema gives no JSON Schema/],
  ['a schema without JSON Schema', { input: v.object({ a: v.string() }) }, /toStandardJsonSchema/],
  ['defaults beside a Standard Schema', { input: z.object({ a: z.string() }), defaults: { a: 'x' } }, /in the schema itself/],
  ['a default of no property', { input: '{ a?: string }', defaults: { b: 'x' } }, /defaults\.b is no property/],
  ['a default that fails', { input: '{ a?: string }', defaults: { a: 1 } }, /default of a fails/],
  ['a default of a schema that fails', { input: Type.Object({ a: Type.Number({ default: 'x' }) }) }, /default of a fails/],
  ['a default deep inside that fails', { input: { type: 'object', properties: { o: { type: 'object', properties: { a: { type: 'number', default: 'x' } } } } } }, /default of a fails/],
  ['a default behind a reference that fails', { input: { type: 'object', $defs: { N: { type: 'number' } }, properties: { a: { $ref: '#/$defs/N', default: 'x' } } } }, /default of a fails/],
  ['a timeout of 0', { timeoutMs: 0 }, /timeoutMs must be a whole number above 0, got 0/],
  ['half a timeout', { timeoutMs: 0.5 }, /timeoutMs/],
  ['an endless lifetime', { approvalTtlMs: Number.POSITIVE_INFINITY }, /approvalTtlMs/],
  ['a quorum of 0', { quorum: 0, approver: 'anyone' }, /quorum must be/],
  ['a quorum of the requester', { quorum: 2 }, /quorum above 1 needs approver/],
  ['an unknown approver', { approver: 'me' }, /got me/],
  ['an editable tool with a preview', { editable: true, preview: () => '' }, /editable goes with/],
  ['an editable tool with a quorum', { editable: true, quorum: 2, approver: 'anyone' }, /editable goes with/],
  ['an editable tool for others', { editable: true, approver: 'other' }, /editable goes with/],
  ['a command that never asks', { type: 'command', requiresApproval: false }, /always asks/],
] as [string, object, RegExp][]) // biome-ignore format: a table
  test(`tool() refuses ${claim}`, () => {
    assert.match(
      refusal(() => tool({ ...good, ...change } as never)),
      words,
    )
  })

test('tool() refuses what is no definition', () => {
  for (const nothing of [undefined, null, 7, 'delete_pod'])
    assert.match(
      refusal(() => tool(nothing as never)),
      /tool\(\{/,
    )
})

test('a default that refers to a definition is held against it', async () => {
  const made = over({
    type: 'object',
    $defs: { N: { type: 'number' } },
    properties: { a: { $ref: '#/$defs/N', default: 3 } },
  })
  assert.deepEqual(await made.validate({}), { value: { a: 3 } })
})

test('what a definition leaves out has its documented default', () => {
  const { validate, ...made } = over({ type: 'object' })
  assert.equal(typeof validate, 'function')
  assert.deepEqual(made, {
    name: 'x',
    description: 'X',
    input: { type: 'object', properties: {} },
    requiresApproval: false,
    preview: undefined,
    timeoutMs: undefined,
    approvalTtlMs: undefined,
    idempotent: false,
    editable: false,
    type: 'tool_call',
    approver: 'requester',
    quorum: 1,
    grantable: false,
    allowInvisible: [],
    execute: done,
  })
  assert.equal(over({ type: 'object' }, { type: 'command' }).requiresApproval, true)
})

test('a schema handed over is not changed', () => {
  const schema = {
    type: 'object',
    properties: { a: { type: 'string', default: 'x' } },
    required: ['a'],
  }
  const before = structuredClone(schema)
  const made = over(schema, { defaults: { a: 'y' } })
  assert.deepEqual(schema, before)
  assert.deepEqual(made.input, {
    type: 'object',
    properties: { a: { type: 'string', default: 'y' } },
    required: [],
  })
})

// ------------------------------------------------------------ output

for (const [claim, value, text] of [
  ['a text', 'as it is', 'as it is'],
  ['an object', { a: [1, null] }, '{"a":[1,null]}'],
  ['a number', 7, '7'],
  ['null', null, 'null'],
  ['nothing', undefined, ''],
  ['half a character', '\ud800', '\ufffd'],
] as const)
  test(`the output of ${claim} is text`, () => {
    assert.equal(outputText(over({ type: 'object' }), value), text)
  })

test('an output that is no JSON throws', () => {
  assert.throws(() => outputText(over({ type: 'object' }), 1n))
})

for (const [claim, value, text] of [
  ['its output', { stdout: 'a\n', stderr: '', exitCode: 0 }, 'a'],
  ['its errors after its output', { stdout: 'a\n', stderr: 'b\n' }, 'a\nErrors:\nb'],
  ['its exit code', { stdout: '', stderr: 'b', exitCode: 2 }, 'Errors:\nb\nExit code: 2'],
  ['bytes as text', { stdout: Buffer.from('a'), stderr: Buffer.from('') }, 'a'],
  ['nothing for what is null', { stdout: null, stderr: null, exitCode: 0 }, 'Command executed successfully with no output.'],
  ['that it said nothing', { stdout: ' \n' }, 'Command executed successfully with no output.'],
  ['that it said nothing, as text', '', 'Command executed successfully with no output.'],
  ['that it said nothing at all', undefined, 'Command executed successfully with no output.'],
  ['an object of its own', { rows: 3 }, '{"rows":3}'],
  ['a text', 'hello', 'hello'],
] as const) // biome-ignore format: a table
  test(`of a command the person reads ${claim}`, () => {
    assert.equal(outputText(over({ type: 'object' }, { type: 'command' }), value), text)
  })
