// What the stores of this folder have in common: any string as text that each of them can keep, a limit to how long
// a client may take, and one error for all that fails. Knows no database.

import { DcafError } from '../providers/provider.ts'

/**
 * PostgreSQL's text has no NUL, and UTF-8 no lone surrogates: clients drop those or turn them all into U+FFFD, and two
 * keys become one. They are written as U+0001 and four hex digits, and so is U+0001. JSON text is never changed by it.
 */
export function toText(value: string): string {
  return value.replace(
    /[\0\x01\p{Surrogate}]/gu,
    (unit) => `\x01${unit.charCodeAt(0).toString(16).padStart(4, '0')}`,
  )
}

export function fromText(text: string): string {
  return text.replace(/\x01([0-9a-f]{4})/g, (_, hex: string) =>
    String.fromCharCode(Number.parseInt(hex, 16)),
  )
}

/** For the log. Never quotes a key or a value. */
export function unavailable(what: string, cause?: unknown): DcafError {
  return new DcafError('store_unavailable', `${what}: ${reason(cause)}`, { retryable: true, cause })
}

function reason(cause: unknown): string {
  if (!(cause instanceof Error)) return String(cause)
  const { code } = cause as { code?: unknown }
  return cause.message || String(code ?? cause.name) // an AggregateError of refused connections has no message
}

export function checkedTimeout(timeoutMs = 5_000): number {
  if (timeoutMs > 0 && timeoutMs < 2 ** 31) return timeoutMs
  throw new DcafError(
    'invalid_argument',
    `timeoutMs must be between 0 and ${2 ** 31} milliseconds, got ${timeoutMs}`,
  )
}

/** What `work` gives; rejects with `store_unavailable` if it fails or has not ended after `timeoutMs`. */
export async function within<T>(
  timeoutMs: number,
  what: string,
  work: () => Promise<T>,
): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer within ${timeoutMs} ms`)), timeoutMs)
  })
  try {
    return await Promise.race([work(), late])
  } catch (cause) {
    throw unavailable(what, cause)
  } finally {
    clearTimeout(timer)
  }
}
