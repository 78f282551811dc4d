// What is remembered of a thread between its requests: JSON values by key, copied on the way in and on the way out.
// Knows neither wire nor store: who keeps it, and whether it travels in the clear, sealed or not at all, is the door's
// affair. Do not base authorization on it: in the plain mode a client holds it.

import type { Static, TSchema } from 'typebox'
import type { XStatic } from 'typebox/schema'
import { DcafError } from './providers/provider.ts'
import { copyJson, issueText, load, type StandardSchema, type Validated } from './schema.ts'

/** The type a schema stands for: TypeBox, JSON Schema written in place or `as const`, or Standard Schema. */
export type Stored<S> = S extends { '~standard': { types?: { output: infer Output } | undefined } }
  ? Output
  : S extends TSchema
    ? Static<S>
    : XStatic<S>

export class Session {
  readonly #values = new Map<string, unknown>()
  #touched: Set<string> | undefined
  #cleared = false

  /**
   * `data`: an object of values by key, another Session, or nothing. Keys that begin with `$` are the library's and
   * left out. What is no JSON throws as in `set`.
   */
  constructor(data?: object | null) {
    if (data === undefined || data === null) return
    for (const [key, value] of entriesOf(data))
      if (!key.startsWith('$')) this.#values.set(key, value)
  }

  /**
   * A copy: changing it changes nothing here; `set` it again. `undefined` where the key is absent.
   * With a schema the value is checked, and one that does not fit throws `invalid_request` naming key and field.
   * With a fallback that cannot happen: absent or unfit, a copy of the fallback is the answer, for a client may have
   * sent anything. A schema's defaults are not filled in; of a Standard Schema its output comes back.
   */
  get(key: string): unknown
  get<const S extends object>(key: string, schema: S): Stored<S> | undefined
  get<const S extends object>(key: string, schema: S, fallback: Stored<S>): Stored<S>
  get(key: string, schema?: object, ...fallback: [unknown?]): unknown {
    if (!this.#values.has(key)) return structuredClone(fallback[0])
    const value = copyJson(this.#values.get(key))
    if (schema === undefined) return value
    const fit = check(schema, value)
    if ('value' in fit) return fit.value
    if (fallback.length > 0) return structuredClone(fallback[0])
    throw new DcafError('invalid_request', `session.${key} does not fit its schema: ${fit.problem}`)
  }

  /** Takes JSON and what has `toJSON`. Anything else throws `invalid_argument`, naming key and path. */
  set(key: string, value: unknown): this {
    return this.update({ [key]: value })
  }

  /** `set` for each key of `values`, or for none where one of them is refused. */
  update(values: Record<string, unknown>): this {
    const entries = entriesOf(values)
    const ours = entries.find(([key]) => key.startsWith('$'))
    if (ours) throw wrong(`session.${ours[0]}: keys that begin with $ are the library's own`)
    for (const [key, value] of entries) {
      this.#values.set(key, value)
      this.#touch(key)
    }
    return this
  }

  has(key: string): boolean {
    return this.#values.has(key)
  }

  /** Whether there was such a key. */
  delete(key: string): boolean {
    this.#touch(key) // an absent key too: somebody else may be setting it meanwhile
    return this.#values.delete(key)
  }

  keys(): string[] {
    return [...this.#values.keys()]
  }

  clear(): void {
    this.#values.clear()
    this.#touched = undefined
    this.#cleared = true
  }

  #touch(key: string): void {
    this.#touched ??= new Set()
    this.#touched.add(key)
  }

  /** Whether `replayOn` would do anything. */
  get changed(): boolean {
    return this.#cleared || this.#touched !== undefined
  }

  /**
   * A session of `newest` with this one's sets, deletes and clear made on it. Keys that only others changed keep their
   * newest value; of a key that both changed, this one's value stands, for it replaces and does not merge.
   */
  replayOn(newest?: object | null): Session {
    const session = new Session(this.#cleared ? undefined : newest)
    for (const key of this.#touched ?? [])
      if (this.#values.has(key)) session.set(key, this.#values.get(key))
      else session.delete(key)
    return session
  }

  toJSON(): Record<string, unknown> {
    const json: Record<string, unknown> = {} // no key is `__proto__`: that is refused
    for (const [key, value] of this.#values) json[key] = copyJson(value)
    return json
  }

  *[Symbol.iterator](): IterableIterator<[key: string, value: unknown]> {
    for (const [key, value] of this.#values) yield [key, copyJson(value)]
  }
}

function entriesOf(values: unknown): [string, unknown][] {
  const data = jsonOf(values)
  if (typeof data === 'object' && data && !Array.isArray(data)) return Object.entries(data)
  throw wrong(`a session takes an object of values by key, got ${kind(values)}`)
}

/** The wire takes 64 levels of a whole request, of which the messages around a session need some. */
const maxDepth = 50

/** A copy that is JSON and nothing else: what `get` gives now, it still gives after the trip to the client and back. */
function jsonOf(value: unknown, path = 'session', parents: readonly object[] = []): unknown {
  if (typeof value === 'string' || typeof value === 'boolean' || value === null) return value
  if (Number.isFinite(value)) return value === 0 ? 0 : value // JSON has no -0
  if (typeof value !== 'object') throw wrong(`${path} must be JSON, got ${kind(value)}`)
  if (parents.includes(value)) throw wrong(`${path} leads back to an object that it is part of`)
  if (parents.length > maxDepth) throw wrong(`${path} is nested more than ${maxDepth} levels deep`)
  const within = [...parents, value]
  const json = 'toJSON' in value && typeof value.toJSON === 'function' ? value.toJSON() : value
  if (json !== value) return jsonOf(json, path, within)
  if (Array.isArray(value)) return Array.from(value, (v, i) => jsonOf(v, `${path}.${i}`, within))
  const prototype = Object.getPrototypeOf(value)
  if (prototype !== null && Object.getPrototypeOf(prototype) !== null)
    throw wrong(`${path} must be JSON or have toJSON, got ${kind(value)}`)
  const copy: Record<string, unknown> = {}
  for (const [key, v] of Object.entries(value)) {
    if (forbidden.has(key)) throw wrong(`${path}.${key}: this key is refused on the wire`)
    copy[key] = jsonOf(v, `${path}.${key}`, within)
  }
  return copy
}
const forbidden = new Set(['__proto__', 'constructor', 'prototype'])

/** Interpreted, not compiled: a schema written in place costs 4 us to interpret and 24 us to compile. */
function check(schema: object, value: unknown): Validated {
  if ('~standard' in schema) {
    const result = (schema as StandardSchema)['~standard'].validate(value)
    if (result instanceof Promise) throw wrong('a session is read at once: no async schema')
    if (!result.issues) return result
    return { problem: issueText(result.issues[0] ?? { message: 'invalid' }) }
  }
  typebox ??= load('typebox/schema') as NonNullable<typeof typebox>
  if (typebox.Check(schema, value)) return { value }
  const [error] = typebox.Errors(schema, value)[1]
  return { problem: `${error?.instancePath} ${error?.message}`.trim() }
}
let typebox: typeof import('typebox/schema') | undefined

function kind(value: unknown): string {
  if (value instanceof Object) return value.constructor?.name ?? 'object'
  return typeof value === 'number' || value === null ? String(value) : typeof value
}

function wrong(message: string): DcafError {
  return new DcafError('invalid_argument', message)
}
