// A model call that failed, named by our codes: from HTTP's status, from the words in vendors' envelopes, from what the
// network says. A message holds no key and nothing of what was asked. Knows no vendor.

import { DcafError, type DcafErrorOptions, type ErrorCode, type ModelRequest } from './provider.ts'

export interface ProviderErrorOptions extends DcafErrorOptions {
  provider: string
  /** The HTTP status, where there was one. */
  status?: number | undefined
  /** The vendor's name for the request, for its support. */
  requestId?: string | undefined
  /** Fewer retries than usual: a clock that ran out is tried once more at the most. */
  maxRetries?: number | undefined
}

export type Failure = ProviderErrorOptions & { code: ErrorCode }

/** A model call that failed. The message names host and answer, never the key, never what was asked. */
export class ProviderError extends DcafError {
  override name = 'ProviderError'
  readonly provider: string
  readonly status: number | undefined
  readonly requestId: string | undefined
  readonly maxRetries: number | undefined

  constructor(code: ErrorCode, message: string, options: ProviderErrorOptions) {
    super(code, message, options)
    this.provider = options.provider
    this.status = options.status
    this.requestId = options.requestId
    this.maxRetries = options.maxRetries
  }
}

/** Makes the error to throw of an answer. `what` follows the host: `answered 429: slow down`. */
export type Fail = (
  code: ErrorCode,
  what: string,
  options?: Partial<ProviderErrorOptions>,
) => ProviderError

/** A caller's mistake that no request can repair: a missing key, an address. */
export function configError(provider: string, what: string): ProviderError {
  return new ProviderError('provider_config', `${provider}: ${what}`, { provider })
}

/** Before anything is sent. `takes`: what this wire does take, e.g. `PNG and JPEG in a user's message`. */
export function unsupportedFile(provider: string, takes: string, file: { mediaType: string }) {
  const message = `${provider} takes ${takes}; got ${file.mediaType}`
  return new ProviderError('unsupported_media_type', message, { provider })
}

/** The reply is not there: the stream ended before the vendor said that it was over. */
export function truncated(answer: { fail: Fail }): ProviderError {
  return answer.fail('provider_truncated', 'ended its answer early', { retryable: true })
}

// ---- What a vendor says ------------------------------------------------------------------------------------------

export interface ErrorWords {
  message?: string | undefined
  type?: string | undefined
  code?: string | undefined
}

/** `{error:{message,type,code}}`, `{error:"text"}`, `{message}`, `{detail}`, Google's `[{error}]`, or plain text. */
export function errorWords(body: unknown): ErrorWords {
  const outer = Array.isArray(body) ? body[0] : body
  if (typeof outer === 'string') return outer.trim().startsWith('<') ? {} : { message: outer }
  if (typeof outer !== 'object' || outer === null) return {}
  const error = outer.error ?? outer
  if (typeof error === 'string') return { message: error }
  const message = error.message ?? error.detail ?? outer.message ?? outer.detail
  const type = error.type ?? error.status
  const { code } = error
  return {
    message: typeof message === 'string' ? message : JSON.stringify(message),
    type: typeof type === 'string' ? type : undefined,
    code: typeof code === 'string' || typeof code === 'number' ? `${code}` : undefined,
  }
}

/** The status an error event would have had as an answer. */
export function statusOf({ type = '', code = '' }: ErrorWords): number {
  if (/^[45]\d\d$/.test(code)) return Number(code)
  const words = `${type} ${code}`
  return statuses.find(([pattern]) => pattern.test(words))?.[1] ?? 500
}

/** The first that fits. */
const statuses: [RegExp, number][] = [
  [/overload|unavailable/i, 529],
  [/rate_limit|throttl|exhausted|quota/i, 429],
  [/timeout|deadline/i, 504],
  [/authentication|permission|api_key|unauthenticated/i, 401],
  [/not_found/i, 404],
  [/too_large/i, 413],
  [/invalid|context_length/i, 400],
]

const quota = /insufficient_quota|billing/
const tooLong =
  /context.?(length|window)|prompt is too long|(input|prompt) is too long|too many (input )?tokens|input tokens? exceed|maximum (context|number of tokens)/i

export function codeOf(status: number, { message, type, code }: ErrorWords): ErrorCode {
  if (status === 401 || status === 403) return 'provider_auth'
  if (status === 413) return 'context_too_long'
  const isLong = tooLong.test(`${message} ${type} ${code}`)
  if (isLong && status < 500 && status !== 429) return 'context_too_long'
  if (status === 404 || quota.test(`${type} ${code}`)) return 'provider_config'
  if (status === 429 || status === 503 || status === 529) return 'provider_overloaded'
  if (status === 408 || status === 504) return 'provider_timeout'
  return 'provider_error'
}

export function isTransient(status: number, { type, code }: ErrorWords): boolean {
  if (quota.test(`${type} ${code}`)) return false
  if (status === 408 || status === 409 || status === 429) return true
  return status >= 500 && status !== 501 && status !== 505
}

export type Headers = Record<string, string | string[] | undefined>

export function header(headers: Headers, name: string): string | undefined {
  const value = headers[name]
  return Array.isArray(value) ? value[0] : value
}

/** `retry-after-ms`, else `retry-after` in seconds or as a date; `undefined` for what is absent, past or no number. */
export function retryAfterMs(headers: Headers): number | undefined {
  const text = header(headers, 'retry-after')?.trim() ?? ''
  // Only what begins with a weekday is read as a date: Date.parse makes a year of almost anything.
  const wait = /^[A-Z][a-z]{2}/.test(text) ? Date.parse(text) - Date.now() : Number(text) * 1000
  const isWait = (ms: number) => ms > 0 && ms < Number.POSITIVE_INFINITY
  return [Number(header(headers, 'retry-after-ms')), wait].find(isWait)
}

// ---- What the network says ---------------------------------------------------------------------------------------

/** A request that no byte came back for. `late`: the error if it waited too long for a connection. */
export function notAnswered(cause: Error, fail: Fail, late: ProviderError): ProviderError {
  const code = causeOf(cause)
  if (code === 'UND_ERR_CONNECT_TIMEOUT') return late
  if (/CERT|TLS|SSL|SELF_SIGNED|ISSUER|VERIFY/.test(code)) {
    return fail('provider_config', `has no certificate to trust (${code})`, { cause })
  }
  if (/^(E(?!RR_)[A-Z_]+|UND_ERR_(SOCKET|CLOSED|DESTROYED))$/.test(code)) {
    return fail('provider_error', `cannot be reached (${code})`, { retryable: true, cause })
  }
  const ours = code === 'UND_ERR_INVALID_ARG' ? 'provider_config' : 'provider_invalid'
  return fail(ours, `cannot be asked: ${cause.message}`, { cause })
}

export function causeOf(error: Error & { code?: unknown; errors?: { code?: unknown }[] }): string {
  const code = error.code ?? error.errors?.[0]?.code // an AggregateError when every address failed
  return typeof code === 'string' ? code : error.name
}

// ---- What must not be said ---------------------------------------------------------------------------------------

/** One line without keys and without what was asked, for a message that ends up in a log. */
export function clean(text: string, sent: Record<string, string>, request: ModelRequest): string {
  let line = text.replace(/\s+/g, ' ').replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]/g, '')
  for (const [name, value] of Object.entries(sent)) {
    if (!/auth|key|token|secret|cookie/i.test(name)) continue
    for (const secret of [value, value.replace(/^\S+ /, '')]) {
      if (secret.length >= 4) line = line.replaceAll(secret, '[redacted]')
    }
  }
  line = withoutPrompt(line.slice(0, 1000), request)
  return (line.length > 300 ? `${line.slice(0, 300)}…` : line).toWellFormed()
}

/** Vendors quote the request in their errors. What shares 16 characters in a row with it is left out. */
function withoutPrompt(text: string, { system, messages }: ModelRequest): string {
  const asked = system.map((block) => block.text)
  for (const message of messages) {
    for (const part of message.parts) {
      if (part.type === 'text') asked.push(part.text)
      if (part.type === 'file') asked.push(part.data)
      if (part.type === 'tool_call') asked.push(JSON.stringify(part.input) ?? '')
    }
    if (message.role === 'assistant') asked.push(...message.results.map(({ content }) => content))
  }
  let line = text
  for (const whole of asked) if (whole.length >= 8) line = line.replaceAll(whole, '[…]')
  const isAsked = (from: number, length: number) => {
    const piece = line.slice(Math.max(from, 0), from + length)
    return piece.length === length && asked.some((whole) => whole.includes(piece))
  }
  // Every run of 16 holds one whole block of 8 that begins at a multiple of 8: few look-ups, then exact ones.
  const quoted: boolean[] = Array(line.length).fill(false)
  for (let at = 0; at < line.length; at += 8) {
    if (!isAsked(at, 8)) continue
    for (let from = at - 8; from <= at; from++) {
      if (isAsked(from, 16)) quoted.fill(true, from, from + 16)
    }
  }
  return line.replace(/./gs, (one, i) => (!quoted[i] ? one : quoted[i - 1] ? '' : '[…]'))
}
