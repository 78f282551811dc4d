// How long a model call may take and how much it may send: the clocks of a call, and the caps of an answer. Knows no
// network and no vendor.

import { setTimeout as sleep } from 'node:timers/promises'
import { ProviderError } from './errors.ts'
import { DcafError } from './provider.ts'

/** Milliseconds. `Infinity` turns a clock off. */
export interface Timeouts {
  /** Until the connection stands. */
  connectMs: number
  /** From sending the request to the first byte of the answer's body: without `onDelta`, all of the model's work. */
  firstEventMs: number
  /** Between two pieces of the answer. Does not run while `onDelta` is awaited. */
  idleMs: number
  /** One `complete` in all, retries and their waits included. */
  stepMs: number
}

export const defaultTimeouts: Readonly<Timeouts> = {
  connectMs: 10_000,
  firstEventMs: 120_000,
  idleMs: 60_000,
  stepMs: 300_000,
}

const MiB = 1024 * 1024
/** Characters of one line or event; bytes of a whole answer; characters of one call's input; bytes read of an error. */
export const caps = { line: MiB, answer: 16 * MiB, input: MiB, error: 64 * 1024 }

/** Node fires at once what is to wait longer. */
export const longestMs = 2 ** 31 - 1

/** Handed over in tests. `now` is monotonic, in milliseconds; `sleep` rejects when its signal aborts. */
export interface Clock {
  now(): number
  sleep(ms: number, signal?: AbortSignal): Promise<void>
  random(): number
}

export const realClock: Clock = {
  now: () => performance.now(),
  random: Math.random,
  sleep: (ms, signal) => sleep(ms, undefined, { signal }),
}

/** The caller's clocks over the defaults. Throws for what is no positive number. */
export function checkedTimeouts(given: Partial<Timeouts> = {}): Timeouts {
  const timeouts = { ...defaultTimeouts }
  for (const name of Object.keys(timeouts) as (keyof Timeouts)[]) {
    const ms = given[name] ?? timeouts[name]
    if (typeof ms !== 'number' || !(ms > 0)) {
      const right = 'a positive number of milliseconds (Infinity for none)'
      throw new DcafError('invalid_argument', `timeouts.${name} must be ${right}, got ${ms}`)
    }
    timeouts[name] = ms
  }
  return timeouts
}

const late: Record<keyof Timeouts, [what: string, maxRetries?: number]> = {
  connectMs: ['did not accept a connection'],
  firstEventMs: ['sent nothing', 1],
  idleMs: ['stopped sending', 1],
  stepMs: ['did not finish', 0],
}

/** What a clock that ran out is thrown as; it names the option to raise. */
export function timeoutError(provider: string, host: string, option: keyof Timeouts, ms: number) {
  const [what, maxRetries] = late[option]
  const message = `${host} ${what} within ${ms} ms (timeouts.${option})`
  return new ProviderError('provider_timeout', message, { provider, retryable: true, maxRetries })
}

/** First-event, idle and step clock of one attempt. All attempts share a timer, which looks at the time and is not reset. */
export class Watch {
  #last = performance.now()
  #silence: 'firstEventMs' | 'idleMs' = 'firstEventMs'
  #isHeld = false
  /** Its place among the `watches`, or -1. */
  #at: number
  readonly #end: number
  readonly #timeouts: Timeouts
  readonly #expired: (option: keyof Timeouts) => void

  /** `stepMs`: what is left of the step clock. `expired` is called once, and not before this has returned. */
  constructor(timeouts: Timeouts, stepMs: number, expired: (option: keyof Timeouts) => void) {
    this.#timeouts = timeouts
    this.#expired = expired
    this.#end = this.#last + stepMs
    if (watches.length === 0) timer?.ref()
    this.#at = watches.push(this) - 1
    arm(this.#last, this.#next(this.#last))
  }

  /** Something arrived. */
  touch(): void {
    this.#last = performance.now()
    this.#silence = 'idleMs'
  }

  /** While our own reader is waited for, silence is not the vendor's. */
  hold(isHeld: boolean): void {
    this.#isHeld = isHeld
    this.#last = performance.now()
  }

  stop(): void {
    const last = watches.at(-1)
    if (this.#at < 0 || !last) return
    watches[this.#at] = last
    last.#at = this.#at
    this.#at = -1
    watches.pop()
    if (watches.length === 0) timer?.unref()
  }

  /** When to look again. */
  look(now: number): number {
    const option = now >= this.#end ? 'stepMs' : now >= this.#due(now) ? this.#silence : undefined
    if (!option) return this.#next(now)
    this.stop()
    queueMicrotask(() => this.#expired(option)) // what it throws is not the others' affair
    return Number.POSITIVE_INFINITY
  }

  /** Never later than the idle clock may want it, so that `touch` need not set the timer again. */
  #next(now: number): number {
    const { firstEventMs, idleMs } = this.#timeouts
    return Math.min(this.#end, this.#due(now), now + firstEventMs, now + idleMs)
  }

  #due(now: number): number {
    return (this.#isHeld ? now : this.#last) + this.#timeouts[this.#silence]
  }
}

/**
 * Those that run; the timer keeps the process alive for them. A timer for each would cost more than all they do, and a
 * Set that is added to and deleted from all the time keeps what it held for the garbage collector's old space.
 */
const watches: Watch[] = []
let timer: NodeJS.Timeout | undefined
let rings = Number.POSITIVE_INFINITY

function arm(now: number, at: number): void {
  if (at >= rings) return
  clearTimeout(timer)
  rings = at
  timer = setTimeout(ring, Math.min(Math.max(Math.ceil(at - now), 1), longestMs))
}

function ring(): void {
  const now = performance.now()
  rings = Number.POSITIVE_INFINITY
  timer = undefined
  let next = rings
  // From the end, since one that is late takes itself away.
  for (let i = watches.length - 1; i >= 0; i--) {
    next = Math.min(next, watches[i]?.look(now) ?? next)
  }
  arm(now, next)
}
