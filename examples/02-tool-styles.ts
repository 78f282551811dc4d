// Four ways to say what a tool takes: TypeScript text, TypeBox, JSON Schema, and any Standard
// Schema such as zod's. Each gives `execute` its type, the model its schema, and the input its
// checks and defaults.

import Type from 'typebox'
import * as z from 'zod'
import { run, tool } from '../src/index.ts'
import { scripted } from '../src/providers/scripted.ts'

const description = 'The weather of a city'

const text = tool({
  name: 'text',
  description,
  input: '{ city: string, units?: "celsius" | "kelvin" }',
  defaults: { units: 'celsius' },
  execute: ({ city, units }) => `${city}: 21 ${units}`,
})

const typebox = tool({
  name: 'typebox',
  description,
  input: Type.Object({
    city: Type.String({ description: 'Its English name', minLength: 2 }),
    units: Type.Enum(['celsius', 'kelvin'], { default: 'celsius' }),
  }),
  execute: ({ city, units }) => `${city}: 21 ${units}`,
})

const jsonSchema = tool({
  name: 'json_schema',
  description,
  input: {
    type: 'object',
    properties: { city: { type: 'string' }, units: { enum: ['celsius', 'kelvin'] } },
    required: ['city'],
  },
  defaults: { units: 'celsius' },
  execute: ({ city, units }) => `${city}: 21 ${units}`,
})

const zod = tool({
  name: 'zod',
  description,
  input: z.object({ city: z.string(), units: z.enum(['celsius', 'kelvin']).default('celsius') }),
  execute: ({ city, units }) => `${city}: 21 ${units}`,
})

const tools = [text, typebox, jsonSchema, zod]
const right = tools.map(({ name }) => ({ name, input: { city: 'Oslo' } }))
const wrong = tools.map(({ name }) => ({ name, input: { city: 7 } }))
const provider = scripted([{ calls: right }, { calls: wrong }, 'Mild.'])

const { executed, state } = await run({ name: 'weather', provider, tools }, { messages: 'Oslo?' })
for (const { name, output } of executed) console.log(`${name}:`, output)
for (const { error } of state.calls) if (error) console.log('to the model:', error)

// Prints:
//
// text: Oslo: 21 celsius
// typebox: Oslo: 21 celsius
// json_schema: Oslo: 21 celsius
// zod: Oslo: 21 celsius
// to the model: Invalid input for text: /city must be string
// to the model: Invalid input for typebox: /city must be string
// to the model: Invalid input for json_schema: /city must be string
// to the model: Invalid input for zod: /city Invalid input: expected string, received number
