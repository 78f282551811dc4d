// The one place that retries a model call: how often, after which pause, and when not. Knows no network and no vendor.

import { ProviderError } from './errors.ts'
import { type Clock, realClock } from './limits.ts'

export interface RetryOptions {
  /** Default 2. */
  retries?: number | undefined
  /** True once anything went downstream: from then on nothing is tried again. */
  emitted?: () => boolean
  /** `clock.now()` after which no retry may begin. */
  deadline?: number
  signal?: AbortSignal | undefined
  clock?: Clock
}

/** Retries a `ProviderError` that says it may pass. Rejects with the signal's reason, or with what was thrown last. */
export async function retrying<T>(attempt: () => Promise<T>, options: RetryOptions): Promise<T> {
  const { signal, retries = 2, deadline = Number.POSITIVE_INFINITY, clock = realClock } = options
  for (let tried = 0; ; tried++) {
    signal?.throwIfAborted()
    try {
      return await attempt()
    } catch (error) {
      signal?.throwIfAborted()
      if (!(error instanceof ProviderError) || !error.retryable || options.emitted?.()) throw error
      if (tried >= Math.min(retries, error.maxRetries ?? retries)) throw error
      const wait = error.retryAfterMs ?? backoffMs(tried, clock.random())
      if (wait > longestWaitMs || clock.now() + wait >= deadline) throw error
      await clock.sleep(wait, signal).catch((aborted) => {
        throw signal?.aborted ? signal.reason : aborted
      })
    }
  }
}

/** A vendor that asks for a longer pause is not waited for: the caller is told instead. */
const longestWaitMs = 60_000

/** 0.5 s, 1 s, 2 s ... 8 s, less up to a quarter, so that a thousand clients do not come back at once. */
function backoffMs(tried: number, random: number): number {
  return Math.min(500 * 2 ** tried, 8_000) * (1 - 0.25 * random)
}
