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
  readonly #least: number
  /** By the first item: a talk goes on under it. */
  readonly #talks = new WeakMap<T, { steps: Step<W>[]; json: string }>()

  /**
   * `merge` makes one turn of two neighbours, or leaves them two. A list shorter than `least` is made anew each time:
   * for a question, its one call and the answer, remembering costs more than it saves.
   */
  constructor(expand: (item: T) => W[], merge?: (before: W, after: W) => W | undefined, least = 3) {
    this.#expand = expand
    this.#merge = merge
    this.#least = least
  }

  /**
   * For a top-level array of a body that `toJson` writes. Whatever of `all` was changed since the last time, in place
   * too and however deep, is made anew with all that follows. `finish` changes the last turn.
   */
  of(all: readonly T[], finish?: (last: W) => W): (W | Written)[] {
    const [first] = all
    if (!first) return []
    if (all.length < this.#least) return this.#anew(all, finish)
    const talk = this.#talks.get(first) ?? { steps: [], json: '' }
    const { steps } = talk
    let known = 0
    let step: Step<W> | undefined
    for (const one of steps) {
      if (known === all.length || stands(all[known], one.seen) < 0) break
      step = one
      known++
    }
    let { closed, open } = step ?? { closed: 0, open: undefined }
    if (known < all.length) {
      if (known === 0) this.#talks.set(first, talk)
      steps.length = known
      talk.json = talk.json.slice(0, closed)
    }
    for (; known < all.length; known++) {
      const item = all[known] as T
      for (const turn of this.#expand(item)) {
        const both = open && this.#merge?.(open.turn, turn)
        if (open && !both) talk.json = joined(talk.json, written(open))
        open = { turn: both ?? turn, json: '' }
      }
      closed = talk.json.length
      steps.push({ seen: listed(item, []), closed, open })
    }
    const before = talk.json.slice(0, closed)
    if (!open) return []
    if (!finish) return [new Written(joined(before, written(open)))]
    const last = finish(open.turn)
    return before === '' ? [last] : [new Written(before), last]
  }

  #anew(all: readonly T[], finish: ((last: W) => W) | undefined): W[] {
    const turns: W[] = []
    for (const item of all) {
      for (const turn of this.#expand(item)) {
        const before = this.#merge && turns.at(-1)
        const both = before && this.#merge?.(before, turn)
        if (both) turns[turns.length - 1] = both
        else turns.push(turn)
      }
    }
    const last = turns.at(-1)
    if (finish && last) turns[turns.length - 1] = finish(last)
    return turns
  }

  /** Of a talk that may be over. What is never forgotten lives as long as its first item, and longer in the heap. */
  forget([first]: readonly T[]): void {
    if (first) this.#talks.delete(first)
  }
}

/** JSON of elements that are the same in most requests, though made anew for each: instructions, which can be long. */
export class Last {
  #seen: unknown[] = []
  #written = new Written('')

  of(elements: object[]): Written {
    if (stands(elements, this.#seen) < 0) {
      this.#written = new Written(elements.map(wellFormed).join())
      this.#seen = listed(elements, [])
    }
    return this.#written
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
  const blocks: { text: string; isPoint: boolean }[] = []
  for (const { text, cache } of system) {
    if (text.trim() !== '') blocks.push({ text, isPoint: cache === true })
  }
  const last = blocks.at(-1)
  const points = blocks.filter((block) => block.isPoint)
  for (const early of points.slice(0, -2)) early.isPoint = false
  if (cache && points.length === 0 && last) last.isPoint = true
  return blocks
}

/** JSON of a body; half a surrogate pair, which vendors answer with 400, becomes a replacement character. */
export function toJson(body: Record<string, unknown>): string {
  let text = ''
  for (const key in body) {
    const value = body[key]
    const json = Array.isArray(value) ? listOf(value) : wellFormed(value)
    if (json !== undefined) text += `${text === '' ? '{' : ','}${JSON.stringify(key)}:${json}`
  }
  return text === '' ? '{}' : `${text}}`
}

function listOf(elements: unknown[]): string {
  let list = ''
  for (const element of elements) {
    list = joined(list, element instanceof Written ? element.json : (wellFormed(element) ?? 'null'))
  }
  return `[${list}]`
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

const begun = Symbol('of an object or a list')
const ended = Symbol('of an object')

/** All values in a JSON value, with keys, lengths and where they begin, so that no other one has the same list. */
function listed(value: unknown, list: unknown[]): unknown[] {
  if (typeof value !== 'object' || value === null) list.push(value)
  else if (Array.isArray(value)) {
    list.push(begun, value.length)
    for (const item of value) listed(item, list)
  } else {
    list.push(begun)
    for (const key in value) {
      list.push(key)
      listed((value as Record<string, unknown>)[key], list)
    }
    list.push(ended)
  }
  return list
}

/** Whether a value has this list still: where its part of the list ends, or -1. Asked of a whole talk for every request. */
function stands(value: unknown, list: unknown[], from = 0): number {
  if (typeof value !== 'object' || value === null) return list[from] === value ? from + 1 : -1
  if (list[from] !== begun) return -1
  let at = from + 1
  if (Array.isArray(value)) {
    if (list[at++] !== value.length) return -1
    for (let i = 0; i < value.length && at > 0; i++) at = stands(value[i], list, at)
    return at
  }
  for (const key in value) {
    if (list[at++] !== key) return -1
    const item = (value as Record<string, unknown>)[key]
    // What is no object is compared here: a call for each costs more than all else.
    if (typeof item === 'object' && item !== null) at = stands(item, list, at)
    else if (list[at++] !== item) return -1
    if (at < 0) return -1
  }
  return list[at] === ended ? at + 1 : -1
}
