// Events of a stream, parsed. Most differ from the one before in a piece of text alone: then only that piece is parsed, a
// quarter of the work, and the same object says it. Knows no network and no vendor: a fold names the places.
// It holds by JSON's grammar: with a string's literal replaced by another, all else of a value stays as it is.

/** A string in an event: `holder[key]`. `isInput`: a piece of a call's, of which there are seldom many. */
export type Place = [holder: Record<string, unknown>, key: string, isInput?: boolean]

/** An event of which the fold keeps nothing but these strings, in the order they are written in; [] for any other. */
export type PlacesOf = (json: Record<string, unknown>) => Place[]

/** What stands for the strings, each with its number, while it is proved that they are where they seem to be. */
const mark = '\u2603'

/** Learning costs as much as four parses; a stream may change its shape a few times. */
const mostLearned = 3
/** So many are kept for the streams to come. */
const mostShared = 3

/** An event that was learned. */
export interface Shape {
  json: Record<string, unknown>
  places: Place[]
  /** What is written around the places, quotes included. */
  around: string[]
}

/** Of one stream. `shared` is what the streams of one model have in common: events without an id are the same in all. */
export class Repeats {
  readonly #placesOf: PlacesOf | undefined
  readonly #shared: Shape[]
  /** That of the last event, which is likely to be the next one's. */
  #shape: Shape | undefined
  /** Its pieces are none of `shared`, as where each event has the answer's id: these are not asked any more. */
  #isOther = false
  #seen = 0
  #learned = 0

  constructor(placesOf: PlacesOf | undefined, shared: Shape[] = []) {
    this.#placesOf = placesOf
    this.#shared = shared
  }

  /** What `JSON.parse` gives, until the next call: an object that came before may come again with other strings. */
  parse(data: string): unknown {
    if (this.#shape && fill(this.#shape, data)) return this.#shape.json
    if (!this.#isOther)
      for (const shape of this.#shared)
        if (shape !== this.#shape && fill(shape, data)) {
          this.#shape = shape
          return shape.json
        }
    const json = JSON.parse(data)
    if (!this.#placesOf || this.#learned === mostLearned) return json
    const places = this.#placesOf(json)
    if (places.length === 0) return json
    this.#isOther = true
    const patience = places[0]?.[2] ? 6 : 2
    if (++this.#seen % patience === 0) this.#learn(data, json, places)
    return json
  }

  #learn(data: string, json: Record<string, unknown>, places: Place[]): void {
    this.#learned++
    const around: string[] = []
    let from = 0
    for (const [holder, key] of places) {
      const literal = JSON.stringify(holder[key])
      const start = data.indexOf(literal, data.indexOf(`"${key}"`, from) + key.length + 2)
      if (start < from) return
      around.push(data.slice(from, start + 1))
      from = start + literal.length - 1
    }
    around.push(data.slice(from))
    const marked = around.reduce((text, next, i) => `${text}${mark}${i}${next}`)
    if (data.includes(mark) || !this.#areMarked(marked, places.length)) return
    // Copies: a slice would keep all of the text that it is cut from, for as long as the model is used.
    this.#shape = { json, places, around: around.map((text) => Buffer.from(text).toString()) }
    this.#shared.unshift(this.#shape)
    this.#shared.length = Math.min(this.#shared.length, mostShared)
  }

  #areMarked(data: string, count: number): boolean {
    try {
      const places = this.#placesOf?.(JSON.parse(data)) ?? []
      return places.length === count && places.every(isMarked)
    } catch {
      return false
    }
  }
}

/** True if `data` is what was learned but for its strings, which are then in `json`. */
function fill({ places, around }: Shape, data: string): boolean {
  const last = around.length - 1
  const [head = ''] = around
  const tail = around[last] ?? ''
  // startsWith and endsWith look at one character after the other, and take longer than a parse.
  if (data.slice(0, head.length) !== head || data.slice(-tail.length) !== tail) return false
  const values: string[] = []
  let start = head.length
  try {
    for (let i = 1; i <= last; i++) {
      const next = around[i] ?? ''
      const end = i === last ? data.length - tail.length : data.indexOf(next, start)
      if (end < start) return false
      values.push(stringAt(data, start, end))
      start = end + next.length
    }
  } catch {
    return false
  }
  for (let i = 0; i < values.length; i++) {
    const [holder, key] = places[i] as Place
    holder[key] = values[i]
  }
  return true
}

/** What stands between two quotes. Throws for what is more than one string, or less. */
function stringAt(data: string, start: number, end: number): string {
  // A longer slice would keep all of the text that it is cut from.
  const piece = end - start < 13 ? data.slice(start, end) : undefined
  if (piece !== undefined && sameInJson.test(piece)) return piece
  return JSON.parse(data.slice(start - 1, end + 1))
}
const sameInJson = /^[^"\\\p{Cc}]*$/u

function isMarked([holder, key]: Place, i: number): boolean {
  return holder[key] === `${mark}${i + 1}`
}
