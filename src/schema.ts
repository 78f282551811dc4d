// What a schema says of a value: whether it fits, what is wrong with it, which defaults it leaves out. JSON Schema
// 2020-12, TypeBox, TypeScript text, Standard Schema (https://standardschema.dev). Knows no tool, no session and no wire.

import { createRequire } from 'node:module'
import type { Validator } from 'typebox/schema'

/** The standard-schema.dev shape, as far as it is read here. */
export interface StandardSchema<Output = unknown> {
  '~standard': {
    version: 1
    vendor: string
    validate(value: unknown): StandardResult<Output> | Promise<StandardResult<Output>>
    types?: { input: unknown; output: Output } | undefined
    jsonSchema?: { input(options: { target: string }): Record<string, unknown> }
  }
}
type StandardResult<Output> = { value: Output; issues?: undefined } | { issues: readonly Issue[] }
type Issue = { message: string; path?: readonly unknown[] | undefined }

type Json = Record<string, unknown>
export type Validated = { value: unknown } | { problem: string }
/** `schema` is what the model sees. */
type Input = { schema: Json; validate(given: unknown): Validated | Promise<Validated> }
type Fault = (problem: string) => Error

/**
 * TypeBox takes 100 ms to load and its compiler 30, so neither is before it is needed. It is ESM alone: what `require`
 * gives is what `import` gives.
 */
export const load = createRequire(import.meta.url)

/** Throws what `fault` makes of it where `source` is no schema of an object, or a default does not fit. */
export function inputOf(source: unknown, defaults: Json | undefined, fault: Fault): Input {
  if (typeof source === 'string') {
    const schema = load('typebox').Type.Script(source)
    if (schema.type === 'object' && !JSON.stringify(schema).includes('"$ref":"'))
      return jsonInput(schema, defaults, fault)
    throw fault(`input is not the text of a TypeScript object type: ${JSON.stringify(source)}`)
  }
  if (!isObject(source) && typeof source !== 'function')
    throw fault('input must be TypeScript text, a TypeBox or JSON Schema, or a Standard Schema')
  const standard = (source as Partial<StandardSchema>)['~standard']
  if (!standard) return jsonInput(source as Json, defaults, fault)
  let schema: Json | undefined
  let why = 'Hand over one that does (valibot: toStandardJsonSchema from @valibot/to-json-schema)'
  try {
    schema = standard.jsonSchema?.input({ target: 'draft-2020-12' })
  } catch (error) {
    why = String(error)
  }
  if (!schema) throw fault(`its ${standard.vendor} schema gives no JSON Schema. ${why}`)
  if (defaults) throw fault('write defaults in the schema itself')
  const validate: Input['validate'] = (given) => {
    try {
      const result = standard.validate(copyJson(given))
      return 'then' in result ? result.then(judged).catch(broken) : judged(result)
    } catch (error) {
      return broken(error)
    }
  }
  return { schema: jsonInput(schema, undefined, fault).schema, validate }
}

function judged(result: StandardResult<unknown>): Validated {
  if (!result.issues) return { value: result.value }
  return { problem: result.issues.map(issueText).join('; ') || 'invalid' }
}
function broken(error: unknown): Validated {
  return { problem: error instanceof Error ? error.message : 'its schema failed' }
}
/** As in `/list/0 must be a number`. */
export function issueText({ path = [], message }: Issue): string {
  const keys = path.map((step) => (isObject(step) && 'key' in step ? step.key : step))
  return `${keys.map((key) => `/${String(key)}`).join('')} ${message}`.trim()
}

/** A schema, and what of it was compiled so far. */
type Root = { schema: Json; checks: Map<unknown, Validator> }

function jsonInput(source: Json, defaults: Json | undefined, fault: Fault): Input {
  if (source.type !== 'object')
    throw fault(`input must be a schema of type object, got ${JSON.stringify(source.type)}`)
  const properties = { ...(source.properties as Record<string, Json>) }
  for (const [key, value] of Object.entries(defaults ?? {})) {
    if (!Object.hasOwn(properties, key)) throw fault(`defaults.${key} is no property`)
    properties[key] = { ...properties[key], default: value }
  }
  const root: Root = { schema: { ...source, properties }, checks: new Map() }
  const given = [...objectsIn(root.schema)].flatMap((part) => Object.entries(part.properties))
  const missable = given.filter(([, property]) => hasDefault(property))
  for (const [key, property] of missable) {
    const problem = problemOf(property, fill(property, copyJson(property?.default), root), root)
    if (problem) throw fault(`the default of ${key} fails its schema: ${problem}`)
  }
  const schema = JSON.parse(JSON.stringify(root.schema))
  for (const part of objectsIn(schema)) // what has a default, the model need not give
    if (part.required) part.required = part.required.filter((k) => !hasDefault(part.properties[k]))
  return {
    schema,
    validate(given) {
      const copy = copyJson(given)
      const value = missable.length > 0 ? fill(root.schema, copy, root) : copy
      const problem = problemOf(root.schema, value, root)
      return problem ? { problem } : { value }
    },
  }
}

type WithProperties = { properties: Record<string, Json>; required?: string[] }
/** Every part of a schema that names properties, however deep. */
function* objectsIn(part: unknown): Generator<WithProperties> {
  if (!isObject(part)) return
  if (isObject(part.properties)) yield part as WithProperties
  for (const inner of Object.values(part)) yield* objectsIn(inner)
}
function hasDefault(part: unknown): part is { default: unknown } {
  return isObject(part) && 'default' in part
}

type Branches = Partial<Record<'allOf' | 'anyOf' | 'oneOf', unknown[]>>
/** `value`, which is ours, with the defaults of `part` filled in; of a choice those of the first branch that then fits. */
function fill(part: unknown, value: unknown, root: Root): unknown {
  if (!isObject(part) || !isObject(value)) return value
  const { allOf = [], anyOf = [], oneOf = [] } = part as Branches
  let filled: unknown = value
  if (Array.isArray(value)) filled = value.map((item) => fill(part.items, item, root))
  else
    for (const [key, property] of Object.entries(part.properties ?? {})) {
      const isGiven = Object.hasOwn(value, key)
      if (!isGiven && hasDefault(property)) value[key] = copyJson(property.default)
      if (isGiven || hasDefault(property)) value[key] = fill(property, value[key], root)
    }
  const steps = /^#\/(.*)/s.exec(`${part.$ref}`)?.[1]?.split('/')
  const into = (at: unknown, step: string): unknown => (at as Json | undefined)?.[step]
  const referred = steps?.reduce(into, root.schema)
  for (const each of [...allOf, referred]) filled = fill(each, filled, root)
  for (const branches of [anyOf, oneOf]) {
    const fits = (branch: unknown): boolean =>
      checkOf(branch, root).Check(fill(branch, copyJson(filled), root))
    filled = fill(branches.find(fits), filled, root)
  }
  return filled
}

/** A part of the schema by itself, its references still leading somewhere. */
function checkOf(part: unknown, { schema: { $defs, definitions }, checks }: Root): Validator {
  const known = checks.get(part)
  if (known) return known
  const more = { ...($defs ? { $defs } : {}), ...(definitions ? { definitions } : {}) }
  const made = compile(isObject(part) ? { ...part, ...more } : part)
  checks.set(part, made)
  return made
}

export function compile(schema: unknown): Validator {
  return load('typebox/schema').Compile(schema)
}

function problemOf(part: unknown, value: unknown, root: Root): string | undefined {
  const validator = checkOf(part, root)
  if (validator.Check(value)) return undefined
  return validator.Errors(value)[1].slice(0, 5).map(errorText).join('; ') || 'invalid'
}

/** With the schema's own values, so that a model need not guess again. */
function errorText({ instancePath, message, params }: SchemaError): string {
  const text = `${instancePath || 'input'} ${message}`
  if ('allowedValue' in params) return `${text}: ${JSON.stringify(params.allowedValue)}`
  if (!('allowedValues' in params)) return text
  return `${text}: ${params.allowedValues.map((value) => JSON.stringify(value)).join(', ')}`
}
type SchemaError = ReturnType<Validator['Errors']>[1][number]

/** Fresh all the way down, with -0 as JSON has it. By hand: a tenth of structuredClone. */
export function copyJson(value: unknown): unknown {
  if (!isObject(value)) return value === 0 ? 0 : value
  if (Array.isArray(value)) return value.map(copyJson)
  const copy: Json = {}
  if (Object.getPrototypeOf(value) !== Object.prototype) return cloned(value)
  for (const key of Object.keys(value)) {
    if (key === '__proto__') return cloned(value) // to write it here would set the copy's prototype
    copy[key] = copyJson(value[key])
  }
  return copy
}
function cloned(value: object): unknown {
  try {
    return structuredClone(value)
  } catch {
    return JSON.parse(JSON.stringify(value))
  }
}

function isObject(value: unknown): value is Json {
  return typeof value === 'object' && value !== null
}
