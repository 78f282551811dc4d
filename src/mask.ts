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
export function secretsOf(
  context: object = {},
  extra: readonly (string | undefined)[] = [],
): string[] {
  const found = new Set<string>()
  collect(extra, true, found)
  for (const [key, value] of Object.entries(context))
    if (secretKeys.has(key)) collect(value, key !== 'scopes', found)
  const values = [...found].filter((value) => value.length >= minLength)
  const all = new Set<string>()
  if (values.length <= maxSecrets && lengthOf(values) <= maxLength)
    for (const value of values) unfold(value, all)
  let most = ''
  if (lengthOf(values) > maxLength || lengthOf(all) > maxLength)
    most = `platform_context holds over ${maxLength} characters of secret values`
  if (values.length > maxSecrets || all.size > 4 * maxSecrets)
    most = `platform_context holds over ${maxSecrets} secret values`
  if (most) throw new DcafError('invalid_request', most)
  return [...all]
}

/** Beside a `Data`, the name and the type of a credential are no secrets. */
function collect(value: unknown, secret: boolean, found: Set<string>): void {
  if (typeof value === 'string' && secret) found.add(value)
  // Shorter ones are years, ports and seconds.
  if (Number.isFinite(value) && secret && `${value}`.length >= 6) found.add(`${value}`)
  if (typeof value !== 'object' || value === null) return
  const entries = Object.entries(value)
  const label = entries.some(([key]) => /^data$/i.test(key)) ? /(name|type|kind|^id)$/i : /^$/
  for (const [key, inner] of entries)
    collect(inner, secret ? !label.test(key) : /^credentials?$/i.test(key), found)
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
  const needles = new Set(values.flatMap(needlesOf).filter((n) => n.length >= minLength))
  if (needles.size === 0) return same
  const words = new Words([...needles].filter((needle) => needle.length < pieceLength))
  const long = new Set([...needles].filter((needle) => needle.length === pieceLength))
  const starts = new Uint8Array(8_192) // a bit for each hash of first four characters: passes over nearly all of a text
  for (const needle of needles) {
    let hash = 0
    for (let i = 0; i < minLength; i++) hash = ((hash << 4) ^ needle.charCodeAt(i)) & 65_535
    starts[hash >> 3] = (starts[hash >> 3] ?? 0) | (1 << (hash & 7))
  }

  function marksIn(view: View, base: number, marks: Marks): void {
    const { text } = view
    const mark = (from: number, to: number): void => {
      const [start, end] = [base + locate(view, from).start, base + locate(view, to - 1).end]
      const last = marks.at(-1)
      if (last && last[0] <= start && start <= last[1]) last[1] = Math.max(last[1], end)
      else marks.push([start, end])
    }
    let state = 0
    let hash = 0 // of four characters from `start` on: older ones are shifted out
    for (let start = 1 - minLength; start < text.length; start++) {
      const ahead = start + minLength - 1
      hash = ((hash << 4) ^ (ahead < text.length ? text.charCodeAt(ahead) : 0)) & 65_535
      if (start < 0) continue
      const isStart = (starts[hash >> 3] ?? 0) & (1 << (hash & 7))
      if (state === 0 && !isStart) continue
      if (isStart && long.size > 0 && long.has(text.slice(start, start + pieceLength)))
        mark(start, start + pieceLength)
      state = words.next(state, text.charCodeAt(start))
      const length = words.ending(state)
      if (length > 0) mark(start + 1 - length, start + 1)
    }
  }

  return (text) => {
    const marks: Marks = []
    for (let base = 0; base < text.length; base += step) {
      let view: View | undefined = { text: text.slice(base, base + step + overlap) }
      for (let level = 0; view && level <= 4; level++) {
        marksIn(view, base, marks)
        view = decode(view)
      }
    }
    let out = ''
    let done = 0
    for (const [start, end] of marks.sort((a, b) => a[0] - b[0])) {
      if (start > done || done === 0) out += `${text.slice(done, start)}[redacted]`
      done = Math.max(done, end)
    }
    return out + text.slice(done)
  }
}
type Marks = [start: number, end: number][]

/** Finds many words in one pass over a text: https://en.wikipedia.org/wiki/Aho-Corasick_algorithm */
class Words {
  /** By node: the longest other node that this one ends with, and the length of the longest word it ends with. */
  readonly #fail: Int32Array
  readonly #ending: Uint8Array
  /** The edges: an open hash table from a node and a character to a node; 0, the root, is none. */
  readonly #from: Int32Array
  readonly #char: Uint16Array
  readonly #to: Int32Array
  readonly #seed = (Math.random() * 2 ** 32) | 1 // nobody chooses words that collide

  constructor(words: string[]) {
    const most = lengthOf(words) + 1
    const size = 2 ** Math.ceil(Math.log2(1.5 * most))
    this.#fail = new Int32Array(most)
    this.#ending = new Uint8Array(most)
    this.#from = new Int32Array(size)
    this.#char = new Uint16Array(size)
    this.#to = new Int32Array(size)
    const nodes = new Int32Array(words.length)
    let last = 0
    for (
      let depth = 0;
      depth < pieceLength;
      depth++ // all of one depth before the next: `fail` leads to a lesser one
    )
      for (const [i, word] of words.entries()) {
        if (word.length <= depth) continue
        const [node = 0, char] = [nodes[i], word.charCodeAt(depth)]
        const edge = this.#edge(node, char)
        if (this.#to[edge] === 0) {
          last++
          const fail = node === 0 ? 0 : this.next(this.#fail[node] ?? 0, char)
          this.#fail[last] = fail
          this.#ending[last] = this.#ending[fail] ?? 0
          this.#from[edge] = node
          this.#char[edge] = char
          this.#to[edge] = last
        }
        const next = this.#to[edge] ?? 0
        nodes[i] = next
        if (word.length === depth + 1) this.#ending[next] = word.length
      }
  }

  /** Where the edge is, or belongs. */
  #edge(node: number, char: number): number {
    const most = this.#to.length - 1
    const hash = Math.imul(Math.imul(node, 65_599) ^ char, this.#seed)
    for (let i = (hash ^ (hash >>> 15)) & most; ; i = (i + 1) & most)
      if (this.#to[i] === 0 || (this.#from[i] === node && this.#char[i] === char)) return i
  }

  next(state: number, char: number): number {
    for (let node = state; ; node = this.#fail[node] ?? 0) {
      const to = this.#to[this.#edge(node, char)] ?? 0
      if (to !== 0 || node === 0) return to
    }
  }

  ending(state: number): number {
    return this.#ending[state] ?? 0
  }
}

function lengthOf(texts: Iterable<string>): number {
  let sum = 0
  for (const text of texts) sum += text.length
  return sum
}

const made = new WeakMap<object, { values: string; mask: Mask }>()

/** `masker` of a context's secrets, made once for as long as they stay what they are. */
export function maskOf(context: object): Mask {
  const values = secretsOf(context)
  const key = values.join('\0')
  const known = made.get(context)
  if (known?.values === key) return known.mask
  const mask = masker(values)
  made.set(context, { values: key, mask })
  return mask
}

/** The value, and its base64 as it reads in each of the three places that a longer encoded text can have for it. */
function needlesOf(value: string): string[] {
  const needles = [value, value.toWellFormed(), value.replaceAll(' ', '+')]
  // A text is decoded before it is searched, so a value that itself looks encoded must be known in that state too.
  for (const needle of needles.slice()) {
    const once = decode({ text: needle })
    if (once) needles.push(once.text, decode({ text: once.text })?.text ?? '')
  }
  const bytes = Buffer.from(value)
  for (const before of [0, 1, 2]) {
    const base64 = Buffer.concat([Buffer.alloc(before), bytes]).toString('base64')
    const [from, to] = [Math.ceil((before * 4) / 3), Math.floor(((before + bytes.length) * 4) / 3)]
    const forms = [base64.slice(from, to)] // what neither neighbour has a bit of
    if (before === 0) forms.push(base64, base64.replace(/=+$/, ''))
    for (const form of forms) needles.push(form, form.replaceAll('+', '-').replaceAll('/', '_'))
  }
  return needles.flatMap(pieces)
}

const pieceLength = 64
/** Long texts are searched in steps, so that their decoded forms do not fill the memory; a piece fits in the overlap. */
const [step, overlap] = [1 << 18, 1 << 12]

function pieces(needle: string): string[] {
  if (needle.length <= pieceLength) return [needle]
  const starts = Array.from(
    { length: Math.floor(needle.length / pieceLength) },
    (_, i) => i * pieceLength,
  )
  return [...starts, needle.length - pieceLength].map((start) =>
    needle.slice(start, start + pieceLength),
  )
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
  const show = { value: () => tracing(data) }
  const { toJSON: _, ...own } = Object.getOwnPropertyDescriptors(data) as PropertyDescriptorMap
  return Object.create(Object.prototype, { ...own, toJSON: show, [inspect]: show })
}
const inspect = Symbol.for('nodejs.util.inspect.custom')

export type TracingIds = {
  user_id?: string
  session_id?: string
  run_id?: string
  request_id?: string
}

/** All that events and logs say of a context: those of the four ids that are set. */
export function tracing(context: object = {}): TracingIds {
  const { user_id, session_id, run_id, request_id } = context as Record<string, unknown>
  const ids = Object.entries({ user_id, session_id, run_id, request_id })
  return Object.fromEntries(ids.filter(([, id]) => typeof id === 'string'))
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
  let nodes = 1
  let level = [json]
  for (let depth = 0; level.length > 0; depth++) {
    const below: unknown[] = []
    for (const value of level) {
      if (typeof value === 'number' && !Number.isFinite(value)) return 'a number in it is too large'
      if (typeof value !== 'object' || value === null) continue
      if (depth === maxDepth)
        return `it is nested more than ${maxDepth} levels deep (limit jsonDepth)`
      for (const [key, inner] of Object.entries(value)) {
        if (key === '__proto__' || key === 'constructor' || key === 'prototype')
          return `the key ${key} is refused`
        if (++nodes > maxNodes) return `it has more than ${maxNodes} values (limit jsonNodes)`
        below.push(inner)
      }
    }
    level = below
  }
  return undefined
}
