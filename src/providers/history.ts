// What is sent again and again, a history and its tools, is rendered and serialised once: JSON of a request's body that
// grows with the talk. Knows no vendor. What is remembered is compared with what it was made of, every time.

import type { ModelRequest } from './provider.ts'

/** What became of one item, and how it stood then. */
interface Step<W> {
  /** All that the item held, as `walk` lists it. */
  seen: unknown[]
  /** So much of the JSON is of turns that no later item can change. */
  closed: number
  /** The turn after these: the next item may join it. `json` is '' until it is needed. */
  open: { turn: W; json: string } | undefined
}

/** Stands in an array for elements whose JSON is known, with commas between them. */
export class Written {
  readonly json: string
  constructor(json: string) {
    this.json = json
  }
  toJSON(): never {
    throw new TypeError('what is remembered stands in a top-level array, where toJson finds it')
  }
}

/** From a list of ours to a list of the vendor's, as `flatMap` makes it, without doing again what was done before. */
export class Memory<T extends object, W extends object> {
  readonly #expand: (item: T) => W[]
  readonly #merge: ((before: W, after: W) => W | undefined) | undefined
  /** By the first item: a talk goes on under it. */
  readonly #talks = new WeakMap<T, { steps: Step<W>[]; json: string }>()

  /** `merge` makes one turn of two neighbours, or leaves them two. */
  constructor(expand: (item: T) => W[], merge?: (before: W, after: W) => W | undefined) {
    this.#expand = expand
    this.#merge = merge
  }

  /**
   * For a top-level array of a body that `toJson` writes. Whatever of `all` was changed since the last time, in place
   * too and however deep, is made anew with all that follows. `finish` changes the last turn.
   */
  of(all: readonly T[], finish?: (last: W) => W): (W | Written)[] {
    const [first] = all
    if (!first) return []
    const talk = this.#talks.get(first) ?? { steps: [], json: '' }
    const { steps } = talk
    let known = 0
    const end = Math.min(all.length, steps.length)
    while (known < end && walk(all[known], steps[known]?.seen ?? []) > 0) known++
    let { closed, open } = steps[known - 1] ?? { closed: 0, open: undefined }
    if (known < all.length) {
      steps.length = known
      talk.json = talk.json.slice(0, closed)
      this.#talks.set(first, talk)
    }
    for (const item of all.slice(known)) {
      for (const turn of this.#expand(item)) {
        const both = open && this.#merge?.(open.turn, turn)
        if (open && !both) talk.json = joined(talk.json, written(open))
        open = { turn: both ?? turn, json: '' }
      }
      closed = talk.json.length
      const seen: unknown[] = []
      walk(item, seen)
      steps.push({ seen, closed, open })
    }
    const before = talk.json.slice(0, closed)
    if (!open) return []
    if (!finish) return [new Written(joined(before, written(open)))]
    const last = finish(open.turn)
    return before === '' ? [last] : [new Written(before), last]
  }

  /** Of a talk that may be over. What is never forgotten lives as long as its first item, and longer in the heap. */
  forget([first]: readonly T[]): void {
    if (first) this.#talks.delete(first)
  }
}

/** A `merge` for wires on which user and assistant must take turns. */
export function alternating<W extends { role: unknown; content: unknown[] }>(
  before: W,
  after: W,
): W | undefined {
  if (before.role !== after.role) return undefined
  return { ...before, content: [...before.content, ...after.content] }
}

/**
 * The blocks of instructions that say something, and which of them end with a cache point. A request may have four
 * points: one is the tools', one the last message's, so two are left here.
 */
export function instructions({
  system,
  cache,
}: ModelRequest): { text: string; isPoint: boolean }[] {
  const blocks = system.filter((block) => block.text.trim() !== '')
  const points = blocks.filter((block) => block.cache).slice(-2)
  if (cache && points.length === 0) points.push(...blocks.slice(-1))
  return blocks.map((block) => ({ text: block.text, isPoint: points.includes(block) }))
}

/** JSON of a body; half a surrogate pair, which vendors answer with 400, becomes a replacement character. */
export function toJson(body: Record<string, unknown>): string {
  let text = ''
  for (const key of Object.keys(body)) {
    const value = body[key]
    const json = Array.isArray(value) ? `[${value.reduce(withElement, '')}]` : wellFormed(value)
    if (json !== undefined) text = joined(text, `${JSON.stringify(key)}:${json}`)
  }
  return `{${text}}`
}

function withElement(list: string, element: unknown): string {
  return joined(list, element instanceof Written ? element.json : (wellFormed(element) ?? 'null'))
}

function written(open: { turn: unknown; json: string }): string {
  open.json ||= wellFormed(open.turn) ?? 'null'
  return open.json
}

function joined(list: string, next: string): string {
  return list === '' ? next : `${list},${next}`
}

/** JSON.stringify writes half a surrogate pair as `\udXXX`. */
function wellFormed(value: unknown): string | undefined {
  const text = JSON.stringify(value) as string | undefined
  if (!text?.includes('\\ud')) return text
  return text.replace(/\\(\\|ud[89a-f][0-9a-f]{2})/g, (all) => (all === '\\\\' ? all : '\ufffd'))
}

const ended = Symbol('of an object')

/**
 * Lists all values in a JSON value, with keys and lengths, so that no other one has the same list; into a list that is
 * there already it writes nothing and compares. Where the value's part of the list ends, or -1 if it differs.
 */
function walk(value: unknown, list: unknown[], from = 0): number {
  if (typeof value !== 'object' || value === null) return step(value, list, from)
  if (Array.isArray(value)) {
    let at = step(value.length, list, from)
    for (let i = 0; i < value.length && at > 0; i++) at = walk(value[i], list, at)
    return at
  }
  let at = from
  for (const key in value) {
    at = step(key, list, at)
    if (at > 0) at = walk((value as Record<string, unknown>)[key], list, at)
    if (at < 0) return at
  }
  return step(ended, list, at)
}

function step(value: unknown, list: unknown[], at: number): number {
  if (at === list.length) return list.push(value)
  return list[at] === value ? at + 1 : -1
}
