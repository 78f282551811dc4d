// What never leaves: the secret values of a platform context, and a function that takes them out of any text. Also the
// two looks at what comes in: is this JSON sound, does this text hide something. Knows no wire and no agent.
// Covers: a value as it is, in base64 (padded or not, URL-safe, inside a longer encoded text), percent-encoded,
// JSON-escaped, two of these on top of each other, broken over lines. Does not cover: other encodings, parts of a value
// of up to 64 characters, what a model or a tool made of it.

import { DcafError } from './providers/provider.ts'

export type Mask = (text: string) => string

/** Keys of the platform context that hold secrets: none may be made visible to the model or echoed to a client. */
export const secretKeys = new Set(['aws_credentials', 'duplo_token', 'kubeconfig', 'scopes'])

/** More are refused: a client chooses how many, and each costs time and memory. */
const maxSecrets = 1_000
/** Characters of them all, and of what they hold in turn. */
const maxLength = 262_144
/** Shorter ones would be masked everywhere. */
const minLength = 4

/**
 * Every string of 4 or more characters, and number of 6, under a secret key (of `scopes`, under its `credential` or `credentials` in any
 * case) and in `extra`, and what these hold in turn: the text behind base64, the secret fields of YAML, JSON and INI.
 * Throws `invalid_request` above 1,000 of them, or 256 Ki characters.
 */
export function secretsOf(context: object = {}, extra: Values = []): string[] {
  return unfolded(givenIn(context, extra))
}
type Values = readonly (string | undefined)[]

/** The values as they stand there, before anything is made of them. */
function givenIn(context: object, extra: Values = []): Set<string> {
  const found = new Set<string>()
  collect(extra, true, found)
  for (const key of secretKeys)
    collect((context as Record<string, unknown>)[key], key !== 'scopes', found)
  return found
}

/** Beside a `Data`, the name and the type of a credential are no secrets. */
function collect(value: unknown, secret: boolean, found: Set<string>): void {
  if (typeof value === 'string' && secret && value.length >= minLength) found.add(value)
  // Shorter ones are years, ports and seconds.
  if (Number.isFinite(value) && secret && `${value}`.length >= 6) found.add(`${value}`)
  if (typeof value !== 'object' || value === null) return
  const entries = Object.entries(value)
  const label = entries.some(([key]) => /^data$/i.test(key)) ? /(name|type|kind|^id)$/i : /^$/
  for (const [key, inner] of entries)
    collect(inner, secret ? !label.test(key) : /^credentials?$/i.test(key), found)
}

function unfolded(given: Set<string>): string[] {
  const all = new Set<string>()
  for (const value of limited(given, maxSecrets)) unfold(value, all)
  return [...limited(all, 4 * maxSecrets)]
}

function limited(values: Set<string>, count: number): Set<string> {
  const isFew = values.size <= count
  if (isFew && lengthOf(values) <= maxLength) return values
  const most = isFew ? `${maxLength} characters of secret values` : `${maxSecrets} secret values`
  throw new DcafError('invalid_request', `platform_context holds over ${most}`)
}

/** `steps`: a kubeconfig in base64 with a certificate in base64 in it takes three. */
function unfold(value: string | undefined, all: Set<string>, steps = 3): void {
  const text = value?.trim() ?? ''
  if (text.length < minLength || /^(null|true|false)$/.test(text)) return
  if (all.has(text) || all.size > 4 * maxSecrets) return
  all.add(text)
  if (steps === 0) return
  const decoded = /^[\w+/-][\w+/\s-]*={0,2}$/.test(text) && Buffer.from(text, 'base64').toString()
  if (decoded && !/[^\t\n\r\P{Cc}]|\ufffd/u.test(decoded)) unfold(decoded, all, steps - 1)
  for (const { groups } of text.matchAll(secretOption)) unfold(groups?.plain, all, steps - 1)
  for (const { groups: { double, single, block, plain } = {} } of text.matchAll(secretField)) {
    const quoted = double && (decode({ text: double })?.text ?? double)
    const lines = block?.split('\n') ?? [plain?.split(/\s#/)[0], plain?.split(/[,}]/)[0]]
    for (const inner of [quoted, single?.replaceAll("''", "'"), ...lines])
      unfold(inner, all, steps - 1)
  }
}

/** `token: x`, `"client-key-data": "x"`, `aws_secret_access_key = x`, a YAML block. */
const secretField =
  /(?<![\w.-])[\w.-]*(?:token|password|secret|private[_-]key|access[_-]key(?:[_-]id)?|api[_-]key|-data)["']?[ \t]*[:=][ \t]*(?:"(?<double>(?:[^"\\]|\\.)*)"|'(?<single>(?:[^']|'')*)'|[|>][+-]?\d?[ \t]*\n(?<block>(?:[ \t]+\S.*\n?)+)|(?<plain>[^\s#].*))/gi

/** How a kubeconfig gives secrets to a command: `- name: X_TOKEN`, `value: x` below it; `--token=x`, `["--token", "x"]`. */
const secretOption =
  /(?:name["']?[ \t]*:[ \t]*["']?\w{0,64}(?:token|password|secret|key)\w{0,64}["']?\s*(?:,\s*)?["']?value["']?[ \t]*:[ \t]*|--[\w-]{0,64}(?:token|password|secret|key)["']?(?:=|\s*,\s*|\s*-[ \t]+))["']?(?<plain>[^\s"',\]}#]+)/gi

const same: Mask = (text) => text

/**
 * A function that puts `[redacted]` for each of `values` in the text it is given; without values it is the identity.
 * Long values are known by their pieces of 64 characters, so most of a cut one is masked too. Takes time in proportion
 * to the text and to the values, whatever they are.
 */
export function masker(values: readonly string[]): Mask {
  const words = new Set<string>()
  for (const value of values) for (const form of formsOf(value)) addPieces(form, words)
  if (words.size === 0) return same
  const search = new Search(words)
  return (text) => {
    let hidden: Uint8Array | undefined
    for (let base = 0; base < text.length; base += step) {
      let view: View | undefined = { text: text.slice(base, base + step + overlap) }
      for (let level = 0; view && level <= 4; level++) {
        const layer: View = view
        search.each(layer.text, (from, to) => {
          hidden ??= new Uint8Array(text.length)
          hidden.fill(1, base + locate(layer, from).start, base + locate(layer, to - 1).end)
        })
        view = decode(layer)
      }
    }
    if (!hidden) return text
    let masked = ''
    for (let start = 0, end = 0; start < text.length; start = end) {
      end = hidden.indexOf(hidden[start] ? 0 : 1, start)
      if (end < 0) end = text.length
      masked += hidden[start] ? '[redacted]' : text.slice(start, end)
    }
    return masked
  }
}

/** Finds many words in one pass over a text: https://en.wikipedia.org/wiki/Aho-Corasick_algorithm */
class Search {
  /** All words, where some are as long as a piece: those are too many for nodes. */
  readonly #pieces: Set<string> | undefined
  /** A bit for each hash of first four characters: passes over nearly all of a text. */
  readonly #starts = new Uint8Array(8_192)
  /** By node: the longest other node that this one ends with, and the length of the longest word it ends with. */
  readonly #fail: Int32Array
  readonly #ending: Uint8Array
  /** The edges: an open hash table from a node and a character to a node; 0, the root, is none. */
  readonly #from: Float64Array
  readonly #to: Int32Array
  readonly #seed = (Math.random() * 2 ** 32) | 1 // nobody chooses words that collide

  constructor(all: Set<string>) {
    const words = [...all].filter((word) => word.length < pieceLength)
    this.#pieces = words.length < all.size ? all : undefined
    const most = lengthOf(words) + 1
    this.#fail = new Int32Array(most)
    this.#ending = new Uint8Array(most)
    this.#to = new Int32Array(2 ** Math.ceil(Math.log2(1.5 * most)))
    this.#from = new Float64Array(this.#to.length)
    const nodes = new Int32Array(words.length)
    let last = 0
    // All of one depth before the next: `fail` leads to a lesser one.
    for (let depth = 0; depth < pieceLength; depth++)
      for (const [i, word] of words.entries()) {
        if (word.length <= depth) continue
        const [node = 0, char] = [nodes[i], word.charCodeAt(depth)]
        const edge = this.#edge(node, char)
        if (this.#to[edge] === 0) {
          const fail = node === 0 ? 0 : this.#next(this.#fail[node] ?? 0, char)
          last++
          this.#fail[last] = fail
          this.#ending[last] = this.#ending[fail] ?? 0
          this.#from[edge] = node * 65_536 + char
          this.#to[edge] = last
        }
        const next = this.#to[edge] ?? 0
        nodes[i] = next
        if (word.length === depth + 1) this.#ending[next] = word.length
      }
    for (const word of all) {
      let hash = 0
      for (let i = 0; i < minLength; i++) hash = hashed(hash, word.charCodeAt(i))
      this.#starts[hash >> 3] = (this.#starts[hash >> 3] ?? 0) | (1 << (hash & 7))
    }
  }

  /** Where the edge is, or belongs. */
  #edge(node: number, char: number): number {
    const most = this.#to.length - 1
    const hash = Math.imul(Math.imul(node, 65_599) ^ char, this.#seed)
    for (let i = (hash ^ (hash >>> 15)) & most; ; i = (i + 1) & most)
      if (this.#to[i] === 0 || this.#from[i] === node * 65_536 + char) return i
  }

  #next(state: number, char: number): number {
    for (let node = state; ; node = this.#fail[node] ?? 0) {
      const to = this.#to[this.#edge(node, char)] ?? 0
      if (to !== 0 || node === 0) return to
    }
  }

  each(text: string, found: (from: number, to: number) => void): void {
    const starts = this.#starts
    let node = 0
    let hash = 0 // of four characters from `start` on: older ones are shifted out
    for (let start = 1 - minLength; start < text.length; start++) {
      const ahead = start + minLength - 1
      hash = hashed(hash, ahead < text.length ? text.charCodeAt(ahead) : 0)
      const isStart = (starts[hash >> 3] ?? 0) & (1 << (hash & 7))
      if (start < 0 || (node === 0 && !isStart)) continue
      if (isStart && this.#pieces?.has(text.slice(start, start + pieceLength)))
        found(start, Math.min(start + pieceLength, text.length))
      node = this.#next(node, text.charCodeAt(start))
      const length = this.#ending[node] ?? 0
      if (length > 0) found(start + 1 - length, start + 1)
    }
  }
}

function hashed(before: number, char: number): number {
  return ((before << 4) ^ char) & 65_535
}

function lengthOf(texts: Iterable<string>): number {
  let sum = 0
  for (const text of texts) sum += text.length
  return sum
}

const made = new WeakMap<object, { given: Set<string>; mask: Mask }>()

function mayHoldSecrets(context: Record<string, unknown>): boolean {
  for (const key of secretKeys) if (context[key] !== undefined) return true
  return false
}

/** `masker` of a context's secrets, made once for as long as they stay what they are. */
export function maskOf(context: object): Mask {
  if (!mayHoldSecrets(context as Record<string, unknown>)) return same
  const given = givenIn(context)
  if (given.size === 0) return same
  const known = made.get(context)
  if (known?.given.size === given.size && known.given.isSubsetOf(given)) return known.mask
  const mask = masker(unfolded(given))
  made.set(context, { given, mask })
  return mask
}

/** The value, and its base64 as it reads in each of the three places that a longer encoded text can have for it. */
function formsOf(value: string): Set<string> {
  const forms = new Set([value, value.toWellFormed(), value.replaceAll(' ', '+')])
  // A text is decoded before it is searched, so a value that itself looks encoded must be known in that state too.
  for (const form of [...forms]) {
    const once = decode({ text: form })
    if (once) forms.add(once.text).add(decode({ text: once.text })?.text ?? '')
  }
  const bytes = Buffer.from(value)
  const whole = bytes.toString('base64')
  const bare = whole.replace(/=+$/, '')
  const sure = whole.slice(0, Math.floor((bytes.length * 4) / 3)) // has no bit of what may follow
  const base64 = [whole, bare.slice(-pieceLength), sure.slice(-pieceLength)] // one text but for its end
  for (const before of [1, 2]) {
    const text = Buffer.concat([Buffer.alloc(before), bytes]).toString('base64')
    base64.push(text.slice(before + 1, Math.floor(((before + bytes.length) * 4) / 3)))
  }
  for (const form of base64) forms.add(form).add(form.replaceAll('+', '-').replaceAll('/', '_'))
  return forms
}

const pieceLength = 64
/** Long texts are searched in steps, so that their decoded forms do not fill the memory; a piece fits in the overlap. */
const [step, overlap] = [1 << 18, 1 << 12]

function addPieces(form: string, words: Set<string>): void {
  if (form.length < minLength) return
  words.add(form.length > pieceLength ? form.slice(-pieceLength) : form)
  for (let i = 0; i < form.length - pieceLength; i += pieceLength)
    words.add(form.slice(i, i + pieceLength))
}

/** A text with one level of encoding off, and the codes that were taken off: `at` here, from `start` to `end` before. */
interface View {
  text: string
  under?: View
  codes?: { at: number; size: number; start: number; end: number }[]
}

/** JSON's escapes, percent-encoded UTF-8 characters, and line ends with indentation inside of what may be one word. */
const encoded =
  /\\(?:u\p{AHex}{4}|["\\/bfnrt])|%(?:[0-7]\p{AHex}|[c-dC-D]\p{AHex}%\p{AHex}{2}|[eE]\p{AHex}(?:%\p{AHex}{2}){2}|[fF]\p{AHex}(?:%\p{AHex}{2}){3})|(?<=[\w+/-])\r?\n[ \t]*(?=[\w+/=-])/gu

function decode(under: View): View | undefined {
  if (!/[\\%\n]/.test(under.text)) return undefined
  const codes: View['codes'] = []
  let shift = 0
  const text = under.text.replace(encoded, (code: string, start: number) => {
    const bytes = code.startsWith('%') && Buffer.from(code.replaceAll('%', ''), 'hex').toString()
    const plain = bytes || (code.startsWith('\\') ? JSON.parse(`"${code}"`) : '')
    codes.push({ at: start - shift, size: plain.length, start, end: start + code.length })
    shift += code.length - plain.length
    return plain
  })
  return codes.length > 0 ? { text, under, codes } : undefined
}

/** Where a character of a view is in the text that was given. */
function locate({ under, codes = [] }: View, index: number): { start: number; end: number } {
  if (!under) return { start: index, end: index + 1 }
  let [low, high] = [0, codes.length]
  while (low < high) {
    const middle = (low + high) >> 1
    if ((codes[middle]?.at ?? 0) <= index) low = middle + 1
    else high = middle
  }
  const { at, size, start, end } = codes[low - 1] ?? { at: 0, size: 0, start: 0, end: 0 }
  const after = index - at - size
  if (after >= 0) return locate(under, end + after)
  return { start: locate(under, start).start, end: locate(under, end - 1).end }
}

/** A deep copy with every string, number and key masked; where there is nothing to mask, `value` itself. */
export function maskJson(value: unknown, mask: Mask): unknown {
  if (mask === same || value === null) return value
  if (typeof value === 'string') return mask(value)
  if (typeof value === 'number') return mask(`${value}`) === `${value}` ? value : mask(`${value}`)
  if (typeof value !== 'object') return value
  if ('toJSON' in value && typeof value.toJSON === 'function') return maskJson(value.toJSON(), mask)
  if (Array.isArray(value)) return value.map((item) => maskJson(item, mask))
  return Object.fromEntries(Object.entries(value).map(([k, v]) => [mask(k), maskJson(v, mask)]))
}

/**
 * The context as tools get it: the data are its own enumerable properties, but as JSON and in `console.log` it is its
 * tracing ids alone. Not protected: a spread copy, `structuredClone`, a value taken out of it.
 */
export function platformContext<T extends object>(data: T): T {
  const context = { ...data }
  Object.defineProperty(context, 'toJSON', show)
  Object.defineProperty(context, inspect, show)
  return context
}

export type TracingIds = { [Key in (typeof tracingKeys)[number]]?: string }

const tracingKeys = ['user_id', 'session_id', 'run_id', 'request_id'] as const

/** All that events and logs say of a context: those of the four ids that are set. */
export function tracing(context: object = {}): TracingIds {
  const ids: TracingIds = {}
  for (const key of tracingKeys) {
    const id = (context as Record<string, unknown>)[key]
    if (typeof id === 'string') ids[key] = id
  }
  return ids
}
const inspect = Symbol.for('nodejs.util.inspect.custom')
const show = { value: tracingOfThis, enumerable: false, writable: false, configurable: false }
function tracingOfThis(this: object | undefined): TracingIds {
  return tracing(this)
}

/**
 * Whether a text may read other than it is: control characters but tab, LF and CR, bidi, zero-width, tags and whatever
 * else has no shape, line separators, variation selectors that follow no emoji.
 */
export function invisible(text: string): boolean {
  return unseen.test(text)
}
const unseen =
  /[[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]--[\t\n\r\ufe0e\ufe0f]]|(?<!\p{Emoji})[\ufe0e\ufe0f]/v

/** What is wrong with parsed JSON, to be asked before anything recursive meets it. A scalar has no level. */
export function unsound(json: unknown, maxDepth: number, maxNodes: number): string | undefined {
  return measured(json, maxDepth, maxNodes).problem
}

/** The same, and in the same walk how many bytes of JSON it is at the most: up to six times what it is. */
export function measured(json: unknown, maxDepth: number, maxNodes: number) {
  let nodes = 0
  let bytes = 0
  const walk = (value: unknown, levels: number): string | undefined => {
    if (++nodes > maxNodes) return `it has more than ${maxNodes} values (limit jsonNodes)`
    if (typeof value === 'number' && !Number.isFinite(value)) return 'a number in it is too large'
    bytes += typeof value === 'string' ? 6 * value.length + 3 : 25 // "\\u0000", and no number has more digits
    if (typeof value !== 'object' || value === null) return undefined
    if (levels === 0) return `it is nested more than ${maxDepth} levels deep (limit jsonDepth)`
    if ('toJSON' in value) bytes = Number.POSITIVE_INFINITY
    let problem: string | undefined
    if (Array.isArray(value))
      for (let i = 0; i < value.length && !problem; i++) problem = walk(value[i], levels - 1)
    else
      for (const key in value) {
        if (key === '__proto__' || key === 'constructor' || key === 'prototype')
          return `the key ${key} is refused`
        bytes += 6 * key.length + 3
        problem = walk((value as Record<string, unknown>)[key], levels - 1)
        if (problem) return problem
      }
    return problem
  }
  return { problem: walk(json, maxDepth), bytes }
}
