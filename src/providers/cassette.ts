// Record a provider's answers into a file, and answer from that file later without a network: tests on real traffic.
// It knows no wire: it keeps what was asked, the body the provider rendered for it, and the reply in our words.
//
// Covers: secret values that the caller names, and fields named like the common secret headers.
// Does not cover: secrets that nobody named, and named ones that a tool cut in pieces or encoded twice.

import { readFileSync } from 'node:fs'
import { mkdir, rename, writeFile } from 'node:fs/promises'
import { dirname } from 'node:path'
import type { Delta, ErrorCode, ModelReply, ModelRequest, Provider } from './provider.ts'
import { DcafError } from './provider.ts'
import { copy, type ScriptEntry, scripted } from './scripted.ts'
import type { HttpProvider, ProviderError } from './wire.ts'

export interface CassetteOptions {
  /** Values to keep out of the file, each of 4 or more characters; also in base64, URL- and JSON-escaped form. */
  secrets?: (string | undefined)[]
}

interface Cassette {
  cassette: 1
  provider: string
  model: string
  calls: RecordedCall[]
}

interface RecordedCall {
  /** What the provider was asked, in our words; left out where the provider renders exactly that. */
  asked?: ModelRequest
  /** The body that `render` gave for it. */
  request: unknown
  /** Present if the call streamed. */
  deltas?: string[]
  reply?: ModelReply
  error?: RecordedError
}

/** `code` of a `DcafError`; with it come `retryable`, `retryAfterMs`, `status` and `requestId`. */
type RecordedError = { name: string; message: string; code?: ErrorCode; [field: string]: unknown }

/**
 * A provider that hands every call to `provider` and keeps it in `file`, which it starts anew and writes whole after
 * each call (a temporary file, then a rename). Calls stand in the order in which they began. An aborted call, and
 * one whose `onDelta` threw, is not kept: neither is the model's answer. A file that cannot be written rejects the call.
 */
export function record(provider: Provider, file: string, options: CassetteOptions = {}): Provider {
  const mask = masker(options.secrets)
  const calls: (RecordedCall | undefined)[] = []
  let begun = 0
  let written = Promise.resolve()

  function keep(index: number, call: RecordedCall): Promise<void> {
    const deltas = call.deltas && { deltas: whole(call.deltas, mask) }
    calls[index] = mask({ ...call, ...deltas })
    const { name, model } = provider
    const kept = calls.filter((call) => call !== undefined)
    const cassette: Cassette = { cassette: 1, provider: name, model, calls: kept }
    const text = `${JSON.stringify(cassette, undefined, 2)}\n`
    written = written.catch(() => {}).then(() => writeWhole(file, text))
    return written
  }

  return {
    name: provider.name,
    model: provider.model,
    render: (request) => provider.render(request),
    async complete(request, call = {}) {
      const { signal, onDelta } = call
      const index = begun++
      const body = copy((provider as HttpProvider).render(request, { stream: !!onDelta }))
      const asked = difference(copy(request), body) && { asked: copy(request) }
      const deltas: string[] = []
      let readerFailed = false
      const listening = onDelta && {
        onDelta: async (delta: Delta) => {
          deltas.push(delta.text)
          readerFailed = true
          await onDelta(delta)
          readerFailed = false
        },
      }
      const kept = { ...asked, request: body, ...(onDelta && { deltas }) }
      try {
        const reply = await provider.complete(request, { ...call, ...listening })
        await keep(index, { ...kept, reply })
        return reply
      } catch (error) {
        if (calls[index] || signal?.aborted || readerFailed) throw error
        await keep(index, { ...kept, error: describe(error) })
        throw error
      }
    },
  }
}

/**
 * A provider that answers from `file` alone. A call is answered by the first unused record of the same request, up to
 * a consistent renaming of our random call ids; a request that none matches rejects with the first difference to the
 * next unused one. A streamed record streams its pieces again, another one its texts; a recorded failure is thrown
 * again as a `DcafError` of the same code. `secrets` as they were given to `record`.
 *
 * `render` gives the body that the recorded provider rendered for that request (masked, as it stands in the file,
 * with today's ids), and throws for a request that is not on the cassette: only the original could say.
 */
export function replay(file: string, options: CassetteOptions = {}): Provider {
  const mask = masker(options.secrets)
  const { provider, model, calls } = read(file)
  const tape = calls.map((call) => ({ call, ...withoutIds(call.asked ?? call.request) }))
  let unused = tape

  function find(request: ModelRequest, among: typeof tape) {
    const asked = withoutIds(mask(copy(request)))
    const found = among.find((record) => !difference(record.value, asked.value))
    if (found) return { found, now: <T>(value: T) => renamed(value, found.ids, asked.ids) }
    const count = `${tape.length} ${tape.length === 1 ? 'call' : 'calls'}`
    const [next] = among
    if (!next) throw miss(`${file} has ${count}, and all of them were replayed already`)
    const what = difference(next.value, asked.value)
    throw miss(
      `${file} has no such request left. Call ${tape.indexOf(next) + 1} of ${count} differs at ${what}`,
    )
  }

  function answer(request: ModelRequest): ScriptEntry {
    const { found, now } = find(request, unused)
    unused = unused.filter((record) => record !== found)
    const { reply, error, deltas } = now(found.call)
    const texts = reply?.parts.flatMap((part) => (part.type === 'text' ? [part.text] : []))
    return { pieces: deltas ?? texts ?? [], ...(reply ?? { error: revive(error) }) }
  }

  function render(request: ModelRequest): unknown {
    const { found, now } = find(request, tape)
    return now(found.call.request)
  }

  return { ...scripted(answer, { name: provider, model }), render }
}

function miss(message: string): DcafError {
  return new DcafError('provider_error', `${message}. Record it again, or see what changed.`)
}

function read(file: string): Cassette {
  try {
    const cassette = JSON.parse(readFileSync(file, 'utf8')) as Cassette
    if (cassette.cassette === 1 && Array.isArray(cassette.calls)) return cassette
    throw new Error('It is no cassette')
  } catch (cause) {
    const message = `Cannot read the cassette ${file}. Make one with record(provider, file).`
    throw new DcafError('invalid_argument', message, { cause })
  }
}

async function writeWhole(file: string, text: string): Promise<void> {
  const temporary = `${file}.${crypto.randomUUID()}.tmp`
  await mkdir(dirname(file), { recursive: true })
  await writeFile(temporary, text)
  await rename(temporary, file)
}

/** Pieces as they came, or in one if a secret was cut in two by them. */
function whole(pieces: string[], mask: <T>(value: T) => T): string[] {
  const text = pieces.join('')
  return mask(text) === mask(pieces).join('') ? pieces : [text]
}

function describe(error: unknown): RecordedError {
  const { name, message } = error instanceof Error ? error : new Error(String(error))
  if (!(error instanceof DcafError)) return { name, message }
  const { code, retryable, retryAfterMs, status, requestId } = error as Partial<ProviderError>
  return copy({ name, message, code, retryable, retryAfterMs, status, requestId } as RecordedError)
}

function revive(error: RecordedError = { name: 'Error', message: 'no reply recorded' }): Error {
  const { name, message, code, ...rest } = error
  if (!code) return Object.assign(new Error(message), { name })
  return Object.assign(new DcafError(code, message), { name, ...rest })
}

/** Our call ids: random, so never the same in two runs. The proof that follows one on the wire begins with a dot. */
const callId = /(?<![\w-])tc_[\w-]{16}(?![\w-])/g

/** Ids by the order of their first appearance: two requests are the same up to renaming if these values are equal. */
function withoutIds(value: unknown): { value: unknown; ids: string[] } {
  const ids: string[] = []
  const number = (id: string) => {
    if (!ids.includes(id)) ids.push(id)
    return `tc_#${ids.indexOf(id) + 1}`
  }
  return { value: mapText(value, (text) => text.replace(callId, number)), ids }
}

function renamed<T>(value: T, from: string[], to: string[]): T {
  return mapText(value, (text) => text.replace(callId, (id) => to[from.indexOf(id)] ?? id))
}

/** Every text in a JSON value, names of fields included; "key" is the field it stands in. */
function mapText<T>(value: T, change: (text: string, key: string) => string, key = ''): T {
  if (typeof value === 'string') return change(value, key) as T
  if (Array.isArray(value)) return value.map((item) => mapText(item, change, key)) as T
  if (typeof value !== 'object' || value === null) return value
  const field = ([name, item]: [string, unknown]) => [change(name, ''), mapText(item, change, name)]
  return Object.fromEntries(Object.entries(value).map(field)) as T
}

/** The first place where two JSON values differ, as words; nothing if they do not. */
function difference(expected: unknown, got: unknown, at = ''): string | undefined {
  if (expected === got) return undefined
  const both = [expected, got]
  const alike = Array.isArray(expected) === Array.isArray(got)
  if (!alike || both.some((value) => typeof value !== 'object' || value === null)) {
    const [from, to] = shortened(expected, got)
    return `${at || '/'}: expected ${from}, got ${to}`
  }
  const [left, right] = both as [Record<string, unknown>, Record<string, unknown>]
  const keys = new Set([...Object.keys(left), ...Object.keys(right)])
  for (const key of Array.isArray(expected) ? keys : [...keys].sort()) {
    const step = key.replaceAll('~', '~0').replaceAll('/', '~1')
    const found = difference(left[key], right[key], `${at}/${step}`)
    if (found) return found
  }
  return undefined
}

/** Long texts are shown from a little before the place where they part. */
function shortened(expected: unknown, got: unknown): [string, string] {
  const [from = '', to = ''] = [expected, got].map((value) => JSON.stringify(value) ?? 'nothing')
  let same = 0
  while (same < from.length && from[same] === to[same]) same++
  const start = Math.max(0, same - 20)
  const cut = (text: string) =>
    `${start > 0 ? '…' : ''}${text.slice(start, start + 80)}${text.length > start + 80 ? '…' : ''}`
  return [cut(from), cut(to)]
}

const secretFields =
  /^(authorization|proxy-authorization|cookie|set-cookie|api-key|x-api-key|x-goog-api-key|x-amz-security-token)$/i

function masker(secrets: (string | undefined)[] = []): <T>(value: T) => T {
  const values = secrets.filter((secret) => secret !== undefined && secret !== '') as string[]
  if (values.some((secret) => secret.length < 4)) {
    throw new DcafError('invalid_argument', 'A secret to mask must have 4 or more characters')
  }
  const longestFirst = values.flatMap(spellings).sort((a, b) => b.length - a.length)
  const maskText = (text: string, key: string) => {
    if (secretFields.test(key)) return '[redacted]'
    return longestFirst.reduce((rest, spelling) => rest.replaceAll(spelling, '[redacted]'), text)
  }
  return (value) => mapText(value, maskText)
}

function spellings(secret: string): string[] {
  const bytes = Buffer.from(secret)
  const base64 = bytes.toString('base64').replace(/=+$/, '')
  const escaped = JSON.stringify(secret).slice(1, -1)
  return [secret, base64, bytes.toString('base64url'), encodeURIComponent(secret), escaped]
}
