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
/** Shorter ones would be masked everywhere. */
const minLength = 4

/**
 * Every string of 4 or more characters under a secret key (of `scopes`, under its `credential` or `credentials` in any
 * case) and in `extra`, and what these hold in turn: the text behind base64, the secret fields of YAML, JSON and INI.
 * Throws `invalid_request` above 1,000 of them.
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
  for (const value of values.slice(0, maxSecrets + 1)) unfold(value, all)
  if (values.length <= maxSecrets && all.size <= 4 * maxSecrets) return [...all]
  throw new DcafError('invalid_request', `platform_context holds over ${maxSecrets} secret values`)
}

/** Beside a `Data`, the name and the type of a credential are no secrets. */
function collect(value: unknown, secret: boolean, found: Set<string>): void {
  if (typeof value === 'string' && secret) found.add(value)
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

const same: Mask = (text) => text

/**
 * A function that puts `[redacted]` for each of `values` in the text it is given; without values it is the identity.
 * Long values are known by their pieces of 64 characters, so most of a cut one is masked too, and no text, however it
 * was made, costs more than some 60 look-ups a character.
 */
export function masker(values: readonly string[]): Mask {
  const needles = new Set(values.flatMap(needlesOf).filter((n) => n.length >= minLength))
  if (needles.size === 0) return same
  const maybe = new Uint8Array(8_192) // a bit for each hash of first four characters: passes over nearly all of a text
  const lengths = new Map<number, number[]>()
  for (const needle of needles) {
    let hash = 0
    for (let i = 0; i < minLength; i++) hash = ((hash << 4) ^ needle.charCodeAt(i)) & 65_535
    maybe[hash >> 3] = (maybe[hash >> 3] ?? 0) | (1 << (hash & 7))
    const known = lengths.get(hash)
    if (!known) lengths.set(hash, [needle.length])
    else if (!known.includes(needle.length)) known.push(needle.length)
  }
  for (const some of lengths.values()) some.sort((a, b) => b - a)

  function marksIn(view: View, base: number, marks: [start: number, end: number][]): void {
    let hash = 0 // of the last four characters: older ones are shifted out
    let reached = 0
    for (let i = 0; i < view.text.length; i++) {
      hash = ((hash << 4) ^ view.text.charCodeAt(i)) & 65_535
      if (!((maybe[hash >> 3] ?? 0) & (1 << (hash & 7)))) continue
      const start = Math.max(0, i + 1 - minLength)
      for (const length of lengths.get(hash) ?? []) {
        if (start + length <= reached) break
        if (!needles.has(view.text.slice(start, start + length))) continue
        reached = start + length
        marks.push([base + locate(view, start).start, base + locate(view, reached - 1).end])
      }
    }
  }

  return (text) => {
    const marks: [start: number, end: number][] = []
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
