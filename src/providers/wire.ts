// What all HTTP providers share: a POST over undici, answers read as JSON, SSE or NDJSON, clocks, retries and
// `ProviderError`. Knows no vendor. A provider is a `Wire`: pure functions from our words to a body and back.
// SSE: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream

import { randomBytes } from 'node:crypto'
import type { Dispatcher } from 'undici'
import {
  type CompleteOptions,
  DcafError,
  type DcafErrorOptions,
  type ErrorCode,
  type FinishReason,
  type Message,
  type ModelReply,
  type ModelRequest,
  type Part,
  type Provider,
  type ToolResult,
  type Usage,
} from './provider.ts'

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

/** Handed over in tests. `now` is monotonic, in milliseconds; `sleep` rejects when its signal aborts. */
export interface Clock {
  now(): number
  sleep(ms: number, signal?: AbortSignal): Promise<void>
  random(): number
}

/** What every HTTP provider takes beside its own options. */
export interface HttpOptions {
  timeouts?: Partial<Timeouts>
  /** How often a failed call is made again, at the most, as long as nothing has streamed. Default 2. */
  retries?: number
  /** Sent with every request, over the provider's own. */
  headers?: Record<string, string>
  /** An undici dispatcher of your own (a proxy, a mock). Default: one keep-alive agent for the process. */
  dispatcher?: Dispatcher
  /** Plain http to other hosts than this one. Default false: the key would travel in clear. */
  allowHttp?: boolean
  clock?: Clock
}

export interface ProviderErrorOptions extends DcafErrorOptions {
  provider: string
  /** The HTTP status, where there was one. */
  status?: number
  /** The vendor's name for the request, for its support. */
  requestId?: string
  /** Fewer retries than usual: a clock that ran out is tried once more at the most. */
  maxRetries?: number | undefined
}

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

/** What a fold or a parse may know of the answer it reads, and how it says that the answer is no good. */
export interface Answer {
  status: number
  requestId: string | undefined
  /** Makes the error to throw. `what` follows the host: `answered 429: slow down`. Masked here. */
  fail(code: ErrorCode, what: string, options?: Partial<ProviderErrorOptions>): ProviderError
  /** The error a vendor reported, in any of the usual envelopes, classified as if it came with this status. */
  refuse(body: unknown, status?: number): ProviderError
}

/** One streamed answer being put together. Whatever it throws that is no DcafError becomes `provider_invalid`. */
export interface Fold {
  /** One event: its JSON, or the string `[DONE]`; `name` is SSE's `event:`. Returns text to hand on, if any. */
  // biome-ignore lint/suspicious/noExplicitAny: a vendor's JSON; a wrong shape throws and is caught as provider_invalid
  event(json: any, name: string): string | undefined
  /** True once the vendor's last event was seen: nothing after it is waited for. */
  done: boolean
  /** The stream is over. `framed`: HTTP said so, it was not just the connection that closed. Throws if it is cut short. */
  end(framed: boolean): ModelReply
}

/** One vendor's API. */
export interface Wire {
  /** OTel `gen_ai.provider.name`. */
  name: string
  model: string
  /** Where to post; asked once, when the provider is made. */
  url(stream: boolean): string
  /** Asked for every request. Values of headers with `auth`, `key` or `token` in their name are masked in errors. */
  headers: Record<string, string> | (() => Record<string, string> | Promise<Record<string, string>>)
  format: 'sse' | 'ndjson'
  /** The body. Elements of its top-level arrays that are the same object as before are not serialised again. */
  render(request: ModelRequest, stream: boolean): Record<string, unknown>
  // biome-ignore lint/suspicious/noExplicitAny: as `Fold.event`
  parse(json: any, answer: Answer): ModelReply
  fold(answer: Answer): Fold
  /** Response header with the vendor's request id. Default `x-request-id`. */
  requestIdHeader?: string
  /** Asked of a reply without calls: true if it goes on when it is sent back. To the caller the two are one. */
  isPaused?(reply: ModelReply): boolean
  /** Sees an error body before the shared rules do; returns what it knows better. */
  failure?(
    body: unknown,
    status: number,
  ): ({ code?: ErrorCode } & Partial<ProviderErrorOptions>) | undefined
}

/** `render` takes what `complete` decides by the presence of `onDelta`: whether the streaming wire is asked for. */
export interface HttpProvider extends Provider {
  render(request: ModelRequest, options?: { stream?: boolean }): unknown
}

const MiB = 1024 * 1024
/** Bytes of one line or event, of a whole answer; characters of one call's input; bytes read of an error's body. */
export const caps = { line: MiB, answer: 16 * MiB, input: MiB, error: 64 * 1024 }

/** After the vendor's last event: how long the connection may take to end, so that it can be used again. */
const graceMs = 200

/** A reply that the vendor paused is sent back this often before it is handed over as it is. */
const resumes = 10

/** Makes a `Provider` of a `Wire`. Throws at once for an address or a clock that cannot work. */
export function httpProvider(wire: Wire, options: HttpOptions = {}): HttpProvider {
  const timeouts = checkedTimeouts(options.timeouts)
  const clock = options.clock ?? realClock
  const whole = endpoint(wire.name, wire.url(false), options.allowHttp)
  const streamed = endpoint(wire.name, wire.url(true), options.allowHttp)
  const headers = lowerCased(options.headers)

  async function complete(request: ModelRequest, given?: CompleteOptions): Promise<ModelReply> {
    let reply = await ask(request, given)
    for (let i = 0; i < resumes; i++) {
      if (reply.finishReason !== 'stop' || !wire.isPaused?.(reply)) break
      const { parts, usage } = reply
      const messages: Message[] = [...request.messages, { role: 'assistant', parts, results: [] }]
      const next = await ask({ ...request, messages }, given)
      for (const key of Object.keys(usage) as (keyof Usage)[]) usage[key] += next.usage[key]
      reply = toReply([...parts, ...next.parts], next.finishReason, usage, next.raw)
    }
    return reply
  }

  async function ask(
    request: ModelRequest,
    { signal, onDelta }: CompleteOptions = {},
  ): Promise<ModelReply> {
    signal?.throwIfAborted()
    const url = onDelta ? streamed : whole
    const body = toJson(wire.render(request, onDelta !== undefined))
    const dispatcher = options.dispatcher ?? (await sharedAgent(timeouts.connectMs))
    const deadline = clock.now() + timeouts.stepMs
    const call: Call = {
      wire,
      url,
      body,
      request,
      headers,
      dispatcher,
      timeouts,
      signal,
      onDelta,
      emitted: false,
    }
    const attempt = () => {
      return new Promise<ModelReply>((resolve, reject) => {
        new Exchange(call, resolve, reject).begin(deadline - clock.now())
      })
    }
    const emitted = () => call.emitted
    return retrying(attempt, { retries: options.retries, emitted, deadline, signal, clock })
  }

  return {
    name: wire.name,
    model: wire.model,
    // Parsed from the text that would be sent, so that the two cannot differ and nobody can change what is cached.
    render: (request, { stream = false } = {}) => JSON.parse(toJson(wire.render(request, stream))),
    complete,
  }
}

// ---- Retry -------------------------------------------------------------------------------------------------------

export interface RetryOptions {
  /** Turns what `attempt` threw into a `ProviderError`; `undefined` means it is not ours to retry. */
  classify?: (error: unknown) => ProviderError | undefined
  /** Default 2. */
  retries?: number
  /** True once anything went downstream: from then on nothing is tried again. */
  emitted?: () => boolean
  /** `clock.now()` after which no retry may begin. */
  deadline?: number
  signal?: AbortSignal
  clock?: Clock
}

/** The one place that retries. Rejects with the signal's reason, with what `classify` made, or with what was thrown. */
export async function retrying<T>(attempt: () => Promise<T>, options: RetryOptions): Promise<T> {
  const { signal, retries = 2, deadline = Number.POSITIVE_INFINITY, clock = realClock } = options
  const classify =
    options.classify ?? ((e: unknown) => (e instanceof ProviderError ? e : undefined))
  for (let tried = 0; ; tried++) {
    signal?.throwIfAborted()
    try {
      return await attempt()
    } catch (thrown) {
      signal?.throwIfAborted()
      const error = classify(thrown)
      if (!error) throw thrown
      const wait = error.retryAfterMs ?? backoffMs(tried, clock.random())
      if (
        !error.retryable ||
        tried >= Math.min(retries, error.maxRetries ?? retries) ||
        options.emitted?.() ||
        wait > longestWaitMs ||
        clock.now() + wait >= deadline
      ) {
        throw error
      }
      await clock.sleep(wait, signal)
    }
  }
}

/** A vendor that asks for a longer pause is not waited for: the caller is told instead. */
const longestWaitMs = 60_000

/** 0.5 s, 1 s, 2 s ... 8 s, less up to a quarter, so that a thousand clients do not come back at once. */
function backoffMs(tried: number, random: number): number {
  return Math.min(500 * 2 ** tried, 8_000) * (1 - 0.25 * random)
}

type Headers = Record<string, string | string[] | undefined>

/** `retry-after-ms`, else `retry-after` in seconds or as a date; `undefined` for what is absent, past or no number. */
export function retryAfterMs(headers: Headers): number | undefined {
  const ms = Number(first(headers['retry-after-ms']) ?? Number.NaN)
  if (ms > 0 && ms < Number.POSITIVE_INFINITY) return ms
  const text = first(headers['retry-after'])?.trim()
  if (!text) return undefined
  // Only what begins with a weekday is read as a date: Date.parse makes a year of almost anything.
  const wait = /^[A-Z][a-z]{2}/.test(text) ? Date.parse(text) - Date.now() : Number(text) * 1000
  return wait > 0 && wait < Number.POSITIVE_INFINITY ? wait : undefined
}

function first(value: string | string[] | undefined): string | undefined {
  return Array.isArray(value) ? value[0] : value
}

// ---- Clocks ------------------------------------------------------------------------------------------------------

export const realClock: Clock = {
  now: () => performance.now(),
  random: Math.random,
  sleep: (ms, signal) =>
    new Promise((resolve, reject) => {
      const aborted = () => {
        clearTimeout(timer)
        reject(signal?.reason)
      }
      const timer = setTimeout(() => {
        signal?.removeEventListener('abort', aborted)
        resolve()
      }, ms)
      signal?.addEventListener('abort', aborted, { once: true })
    }),
}

/** The caller's clocks over the defaults. Throws for what is no positive number. */
export function checkedTimeouts(given: Partial<Timeouts> = {}): Timeouts {
  const timeouts = { ...defaultTimeouts }
  for (const name of Object.keys(timeouts) as (keyof Timeouts)[]) {
    const ms = given[name]
    if (ms === undefined) continue
    if (typeof ms !== 'number' || !(ms > 0)) {
      throw new DcafError(
        'invalid_argument',
        `timeouts.${name} must be a positive number of milliseconds (Infinity for none), got ${ms}`,
      )
    }
    timeouts[name] = ms
  }
  return timeouts
}

/** What a clock that ran out is thrown as; it names the option to raise. */
export function timeoutError(
  provider: string,
  host: string,
  option: keyof Timeouts,
  ms: number,
): ProviderError {
  const [what, maxRetries] = {
    connectMs: ['did not accept a connection', undefined],
    firstEventMs: ['sent nothing', 1],
    idleMs: ['stopped sending', 1],
    stepMs: ['did not finish', 0],
  }[option] as [string, number | undefined]
  const message = `${host} ${what} within ${ms} ms (timeouts.${option})`
  return new ProviderError('provider_timeout', message, { provider, retryable: true, maxRetries })
}

/** First-event, idle and step clock of one attempt on one timer, which looks at the time instead of being reset. */
export class Watch {
  #timer: NodeJS.Timeout | undefined
  #begun = false
  #held = false
  #last = performance.now()
  readonly #end: number
  readonly #timeouts: Timeouts
  readonly #expired: (option: keyof Timeouts) => void

  /** `stepMs`: what is left of the step clock. `expired` is called once. */
  constructor(timeouts: Timeouts, stepMs: number, expired: (option: keyof Timeouts) => void) {
    this.#timeouts = timeouts
    this.#expired = expired
    this.#end = this.#last + stepMs
    this.#arm(this.#last)
  }

  /** Something arrived. */
  touch(): void {
    this.#last = performance.now()
    this.#begun = true
  }

  /** While our own reader is waited for, silence is not the vendor's. */
  hold(held: boolean): void {
    this.#held = held
    this.#last = performance.now()
  }

  stop(): void {
    clearTimeout(this.#timer)
    this.#timer = undefined
  }

  #arm(now: number): void {
    const { firstEventMs, idleMs } = this.#timeouts
    const quiet = this.#held ? now : this.#last
    // Never later than the idle clock may want it, so that `touch` need not set it again.
    const next = Math.min(this.#end, quiet + this.#limit(), now + Math.min(firstEventMs, idleMs))
    // A delay of more than 31 bits would fire at once.
    const wait = Math.min(Math.max(Math.ceil(next - now), 1), 2 ** 31 - 1)
    this.#timer = setTimeout(() => this.#look(), wait)
  }

  #limit(): number {
    return this.#begun ? this.#timeouts.idleMs : this.#timeouts.firstEventMs
  }

  #look(): void {
    const now = performance.now()
    if (now >= this.#end) this.#expired('stepMs')
    else if (!this.#held && now >= this.#last + this.#limit()) {
      this.#expired(this.#begun ? 'idleMs' : 'firstEventMs')
    } else this.#arm(now)
  }
}

// ---- One request -------------------------------------------------------------------------------------------------

interface Endpoint {
  origin: string
  host: string
  path: string
}

/** Throws for an address that cannot work, and for one where what is asked would travel in clear. */
export function endpoint(provider: string, text: string, allowHttp = false): Endpoint {
  const url = URL.parse(text)
  if (url?.protocol !== 'https:' && url?.protocol !== 'http:') {
    throw configError(provider, 'the base URL must begin with https://')
  }
  const loopback = /^(localhost|.*\.localhost|127(\.\d+){3}|\[::1\])$/.test(url.hostname)
  if (url.protocol === 'http:' && !loopback && !allowHttp) {
    const fix = 'must be reached over https (allowHttp: true if its network is trusted)'
    throw configError(provider, `${url.host} ${fix}`)
  }
  return { origin: url.origin, host: url.host, path: url.pathname + url.search }
}

const agents = new Map<number, Promise<Dispatcher>>()

/** undici is loaded by the first request. HTTP/2 is off: a session that dies there ends a stream as if it were whole. */
export function sharedAgent(connectMs: number): Promise<Dispatcher> {
  let agent = agents.get(connectMs)
  if (!agent) {
    agent = import('undici').then(
      ({ Agent }) =>
        new Agent({
          allowH2: false,
          connect: { timeout: Math.min(connectMs, 2 ** 31 - 1) },
          keepAliveTimeout: 30_000,
          headersTimeout: 0, // the clocks above are ours, and exact
          bodyTimeout: 0,
        }),
    )
    agents.set(connectMs, agent)
  }
  return agent
}

/** So that a caller's header replaces one of ours, whatever its spelling. */
function lowerCased(headers: Record<string, string> = {}): Record<string, string> {
  return Object.fromEntries(Object.entries(headers).map(([name, v]) => [name.toLowerCase(), v]))
}

/** What the attempts of one `complete` share. */
interface Call {
  wire: Wire
  url: Endpoint
  body: string
  request: ModelRequest
  /** The caller's, over the wire's own. */
  headers: Record<string, string>
  dispatcher: Dispatcher
  timeouts: Timeouts
  signal: AbortSignal | undefined
  onDelta: CompleteOptions['onDelta']
  emitted: boolean
}

/**
 * One POST and its answer, as an undici handler: no stream in between, so a piece costs its parsing and little else.
 * `dispatch` follows no redirect and retries nothing. Settles once; settling early destroys the connection.
 */
class Exchange implements Dispatcher.DispatchHandler, Answer {
  status = 0
  requestId: string | undefined
  readonly #call: Call
  readonly #resolve: (reply: ModelReply) => void
  readonly #reject: (error: unknown) => void
  #watch: Watch | undefined
  #controller: Dispatcher.DispatchController | undefined
  #sent: Record<string, string> = {}
  #headers: Headers = {}
  #framed = false
  #settled = false
  #bytes = 0
  /** A streamed answer has a reader and a fold; any other is collected in `#pieces`. */
  #reader: SseReader | LineReader | undefined
  #fold: Fold | undefined
  #pieces: Buffer[] = []
  /** What is still being handed downstream. */
  #busy: Promise<void> | undefined
  #grace: NodeJS.Timeout | undefined

  constructor(call: Call, resolve: (reply: ModelReply) => void, reject: (error: unknown) => void) {
    this.#call = call
    this.#resolve = resolve
    this.#reject = reject
  }

  begin(stepMs: number): void {
    const { wire, url, timeouts, signal } = this.#call
    signal?.addEventListener('abort', this.#aborted, { once: true })
    this.#watch = new Watch(timeouts, stepMs, (option) => {
      const late = timeoutError(wire.name, url.host, option, timeouts[option])
      this.#fail(this.status >= 400 ? this.#statusError() : late)
    })
    const own = typeof wire.headers === 'function' ? wire.headers() : wire.headers
    if (own instanceof Promise) own.then((headers) => this.#send(headers), this.#fail)
    else this.#send(own)
  }

  #send(own: Record<string, string>): void {
    const { url, body, headers, dispatcher } = this.#call
    this.#sent = { 'content-type': 'application/json', ...own, ...headers }
    if (this.#settled) return
    try {
      const { origin, path } = url
      dispatcher.dispatch({ origin, path, method: 'POST', headers: this.#sent, body }, this)
    } catch (error) {
      this.onResponseError(undefined, error as Error)
    }
  }

  // What undici calls, in this order.

  onRequestStart(controller: Dispatcher.DispatchController): void {
    this.#controller = controller
    if (this.#settled) controller.abort(gone)
  }

  onResponseStart(_: Dispatcher.DispatchController, status: number, headers: Headers): void {
    if (status < 200) return
    const { wire, onDelta } = this.#call
    this.status = status
    this.#headers = headers
    this.requestId = first(headers[wire.requestIdHeader ?? 'x-request-id'])
    this.#framed = (headers['content-length'] ?? headers['transfer-encoding']) !== undefined
    if (status >= 300 && status < 400) {
      this.#fail(this.fail('provider_config', `answered ${status}: redirects are not followed`))
    }
    // Some gateways answer whole although a stream was asked for.
    const type = first(headers['content-type']) ?? ''
    if (
      status >= 300 ||
      !onDelta ||
      (wire.format === 'sse' && /^(application\/json|text\/html)/.test(type))
    )
      return
    this.#reader = wire.format === 'sse' ? new SseReader() : new LineReader()
    this.#fold = wire.fold(this)
  }

  onResponseData(controller: Dispatcher.DispatchController, chunk: Buffer): void {
    if (this.#settled) return
    try {
      // A dispatcher that cannot pause sends on while the reader is busy.
      const wait = this.#busy ? this.#busy.then(() => this.#read(chunk)) : this.#read(chunk)
      if (!wait) return
      this.#busy = wait
      this.#watch?.hold(true)
      controller.pause()
      wait.then(() => {
        if (this.#busy !== wait) return
        this.#busy = undefined
        this.#watch?.hold(false)
        controller.resume()
      }, this.#fail)
    } catch (error) {
      this.#fail(error)
    }
  }

  onResponseEnd(): void {
    if (this.#busy) this.#busy.then(this.#finish, () => {})
    else void this.#finish()
  }

  onResponseError(_: Dispatcher.DispatchController | undefined, error: Error): void {
    if (this.#fold?.done) this.onResponseEnd()
    else this.#fail(this.status >= 400 ? this.#statusError() : this.#connectionError(error))
  }

  // Reading

  #read(chunk: Buffer): Promise<void> | undefined {
    this.#watch?.touch()
    this.#bytes += chunk.length
    if (this.#fold?.done) return undefined
    if (this.status >= 400 && this.#bytes > caps.error) throw this.#statusError()
    if (this.#bytes > caps.answer) throw this.fail('provider_invalid', 'sent more than 16 MiB')
    if (this.#reader)
      return this.#deliver(this.#understand(() => this.#reader?.push(chunk)) ?? none)
    this.#pieces.push(chunk)
    return undefined
  }

  /** Hands on what the events say; a promise only once a reader has to be waited for. */
  #deliver(events: readonly StreamEvent[], from = 0): Promise<void> | undefined {
    for (let i = from; i < events.length && !this.#settled; i++) {
      const text = this.#step(events[i] as StreamEvent)
      const wait = text && this.#emit(text)
      if (wait) return wait.then(() => this.#deliver(events, i + 1))
    }
    return undefined
  }

  #step({ name, data }: StreamEvent): string | undefined {
    const fold = this.#fold as Fold
    if (fold.done) return undefined
    const text = this.#understand(() => {
      if (name === 'error') throw this.refuse(toJsonOrText(data))
      return fold.event(data.trim() === '[DONE]' ? '[DONE]' : JSON.parse(data), name)
    })
    if (fold.done) {
      this.#watch?.stop()
      this.#grace = setTimeout(() => this.onResponseEnd(), graceMs)
    }
    return text
  }

  #emit(text: string): Promise<void> | undefined {
    this.#call.emitted = true
    const wait = this.#call.onDelta?.({ type: 'text_delta', text })
    return typeof wait?.then === 'function' ? wait : undefined
  }

  readonly #finish = async (): Promise<void> => {
    if (this.#settled) return
    try {
      if (this.status >= 400) throw this.#statusError()
      if (this.#fold) {
        if (this.#framed) await this.#deliver(this.#reader?.rest() ?? none)
        return this.#succeed(this.#understand(() => (this.#fold as Fold).end(this.#framed)))
      }
      const json = this.#json()
      const reply = this.#understand(() => this.#call.wire.parse(json, this))
      const texts = reply.parts.map((part) => (part.type === 'text' ? part.text : ''))
      if (this.#call.onDelta && texts.join('')) await this.#emit(texts.join(''))
      this.#succeed(reply)
    } catch (error) {
      this.#fail(error)
    }
  }

  #json(): unknown {
    const text = this.#text()
    try {
      return JSON.parse(text.charCodeAt(0) === 0xfeff ? text.slice(1) : text)
    } catch {
      if (!this.#framed || text.trim() === '') throw truncated(this)
      const type = first(this.#headers['content-type']) ?? 'no content-type'
      throw this.fail('provider_invalid', `answered ${this.status} with what is no JSON (${type})`)
    }
  }

  #text(): string {
    const [piece] = this.#pieces
    const all = piece && this.#pieces.length === 1 ? piece : Buffer.concat(this.#pieces)
    return all.toString('utf8')
  }

  /** Whatever a wire trips over is the answer's fault, unless it said so better itself. */
  #understand<T>(read: () => T): T {
    try {
      return read()
    } catch (error) {
      if (error instanceof DcafError) throw error
      const what = error instanceof TooLong ? error.message : 'sent what cannot be understood'
      throw this.fail('provider_invalid', what, error instanceof TypeError ? { cause: error } : {})
    }
  }

  // Failing

  fail(code: ErrorCode, what: string, options: Partial<ProviderErrorOptions> = {}): ProviderError {
    const { wire, url, request } = this.#call
    return new ProviderError(code, `${url.host} ${clean(what, this.#sent, request)}`, {
      provider: wire.name,
      requestId: this.requestId,
      ...(this.status && { status: this.status }),
      ...options,
    })
  }

  refuse(body: unknown, status?: number): ProviderError {
    const words = errorWords(body)
    const known = status ?? statusOf(words)
    const { code, ...better } = this.#call.wire.failure?.(body, known) ?? {}
    const said = words.message ?? words.type ?? words.code
    const verb = known === this.status ? `answered ${known}` : 'broke off'
    const should = first(this.#headers['x-should-retry'])
    return this.fail(code ?? codeOf(known, words), said ? `${verb}: ${said}` : verb, {
      status: known,
      retryable: should === 'true' || (should !== 'false' && isTransient(known, words)),
      retryAfterMs: retryAfterMs(this.#headers),
      ...better,
    })
  }

  /** The error of an answer that has an error's status, with as much of its body as there is. */
  #statusError(): ProviderError {
    return this.refuse(toJsonOrText(this.#text()), this.status)
  }

  #connectionError(cause: Error): ProviderError {
    if (this.status) {
      const what = `broke the connection (${causeOf(cause)})`
      return this.fail('provider_truncated', what, { retryable: true, cause })
    }
    const { wire, url, timeouts } = this.#call
    const late = () => timeoutError(wire.name, url.host, 'connectMs', timeouts.connectMs)
    return notAnswered(cause, this.fail.bind(this), late)
  }

  readonly #aborted = (): void => this.#fail(this.#call.signal?.reason)

  #succeed(reply: ModelReply): void {
    if (this.#settle()) this.#resolve(reply)
  }

  readonly #fail = (error: unknown): void => {
    if (this.#settle()) this.#reject(error)
  }

  #settle(): boolean {
    if (this.#settled) return false
    this.#settled = true
    this.#watch?.stop()
    clearTimeout(this.#grace)
    this.#call.signal?.removeEventListener('abort', this.#aborted)
    this.#controller?.abort(gone) // no effect on an answer that has ended
    return true
  }
}

const gone = new Error('no longer wanted')

/** The reply is not there: the stream ended before the vendor said that it was over. */
export function truncated(answer: Answer): ProviderError {
  return answer.fail('provider_truncated', 'ended its answer early', { retryable: true })
}

/** Plain text and proxies' pages are errors too: errorWords knows what to take of them. */
function toJsonOrText(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return text
  }
}

/** A request that no byte came back for. */
export function notAnswered(
  cause: Error,
  fail: Answer['fail'],
  noConnection: () => ProviderError,
): ProviderError {
  const code = causeOf(cause)
  if (code === 'UND_ERR_CONNECT_TIMEOUT') return noConnection()
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

// ---- Errors in vendors' envelopes --------------------------------------------------------------------------------

export interface ErrorWords {
  message?: string
  type?: string
  code?: string
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
  return {
    ...(message === undefined
      ? {}
      : { message: typeof message === 'string' ? message : JSON.stringify(message) }),
    ...(typeof type === 'string' ? { type } : {}),
    ...(error.code === undefined || error.code === null ? {} : { code: String(error.code) }),
  }
}

/** The status an error event would have had as an answer. */
function statusOf({ type = '', code = '' }: ErrorWords): number {
  if (/^[45]\d\d$/.test(code)) return Number(code)
  const words = `${type} ${code}`.toLowerCase()
  if (/overload|unavailable/.test(words)) return 529
  if (/rate_limit|throttl|exhausted|quota/.test(words)) return 429
  if (/timeout|deadline/.test(words)) return 504
  if (/authentication|permission|api_key|unauthenticated/.test(words)) return 401
  if (/not_found/.test(words)) return 404
  if (/too_large/.test(words)) return 413
  if (/invalid|context_length/.test(words)) return 400
  return 500
}

const quota = /insufficient_quota|billing/
const tooLong =
  /context.?(length|window)|prompt is too long|(input|prompt) is too long|too many (input )?tokens|input tokens? exceed|maximum (context|number of tokens)/i

export function codeOf(status: number, words: ErrorWords): ErrorCode {
  if (status === 401 || status === 403) return 'provider_auth'
  if (status === 413) return 'context_too_long'
  if (status < 500 && status !== 429) {
    if (tooLong.test(`${words.message} ${words.type} ${words.code}`)) return 'context_too_long'
  }
  if (status === 404 || quota.test(`${words.type} ${words.code}`)) return 'provider_config'
  if (status === 429 || status === 503 || status === 529) return 'provider_overloaded'
  if (status === 408 || status === 504) return 'provider_timeout'
  return 'provider_error'
}

export function isTransient(status: number, words: ErrorWords): boolean {
  if (quota.test(`${words.type} ${words.code}`)) return false
  if (status === 408 || status === 409 || status === 429) return true
  return status >= 500 && status !== 501 && status !== 505
}

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
function withoutPrompt(line: string, request: ModelRequest): string {
  const asked = request.system.map((block) => block.text)
  for (const message of request.messages) {
    for (const part of message.parts) {
      if (part.type === 'text') asked.push(part.text)
      else if (part.type === 'file') asked.push(part.data)
      else if (part.type === 'tool_call') asked.push(JSON.stringify(part.input) ?? '')
    }
    if (message.role === 'assistant') asked.push(...message.results.map((r) => r.content))
  }
  const has = (piece: string) => asked.some((text) => text.includes(piece))
  let kept = line
  for (const text of asked) if (text.length >= 8) kept = kept.replaceAll(text, '[…]')
  // Every run of 16 holds one whole block of 8 that begins at a multiple of 8: few look-ups, then exact ones.
  const quoted = new Set<number>()
  for (let at = 0; at + 8 <= kept.length; at += 8) {
    if (!has(kept.slice(at, at + 8))) continue
    for (let from = Math.max(0, at - 8); from <= at; from++) {
      if (from + 16 > kept.length || !has(kept.slice(from, from + 16))) continue
      for (let i = from; i < from + 16; i++) quoted.add(i)
    }
  }
  if (quoted.size === 0) return kept
  let out = ''
  for (let i = 0; i < kept.length; i++) {
    if (!quoted.has(i)) out += kept[i]
    else if (!quoted.has(i - 1)) out += '[…]'
  }
  return out
}

// ---- Reading -----------------------------------------------------------------------------------------------------

export interface StreamEvent {
  /** SSE's `event:`, or ''. */
  name: string
  data: string
}

class TooLong extends Error {}

const nothing = Buffer.alloc(0)
const none: readonly StreamEvent[] = []

/** Bytes in any pieces to whole lines. A line's end is one byte of ASCII, so no character is ever decoded in halves. */
class Lines {
  #held = nothing
  #length = 0
  #afterCr = false
  #atStart = true

  /** The lines that `chunk` completes, each ending in LF whatever ended it; '' if none. */
  push(chunk: Buffer): string {
    const lf = chunk.lastIndexOf(10)
    const cr = chunk.indexOf(13, lf + 1) === -1 ? -1 : chunk.lastIndexOf(13)
    const cut = Math.max(lf, cr) + 1
    if (cut === 0) {
      this.#hold(chunk)
      return ''
    }
    let text: string
    if (this.#length === 0) text = chunk.toString('utf8', 0, cut)
    else {
      this.#hold(chunk.subarray(0, cut))
      text = this.#held.toString('utf8', 0, this.#length)
      this.#length = 0
      if (this.#held.length > 65_536) this.#held = nothing
    }
    if (cut < chunk.length) this.#hold(chunk.subarray(cut))
    return this.#tidy(text)
  }

  /** What is left without a line's end. */
  rest(): string {
    return this.#tidy(this.#held.toString('utf8', 0, this.#length))
  }

  #tidy(text: string): string {
    let from = 0
    if (this.#atStart && text !== '') {
      this.#atStart = false
      if (text.charCodeAt(0) === 0xfeff) from = 1
    }
    if (this.#afterCr && text.charCodeAt(from) === 10) from++ // the second half of CRLF
    if (text !== '') this.#afterCr = text.endsWith('\r')
    const line = from === 0 ? text : text.slice(from)
    return line.includes('\r') ? line.replace(/\r\n?/g, '\n') : line
  }

  /** Copies: a piece of one byte would otherwise keep an object of a hundred. Doubling keeps it linear. */
  #hold(piece: Buffer): void {
    const length = this.#length + piece.length
    if (length > caps.line) throw new TooLong('sent a line of more than 1 MiB')
    if (length > this.#held.length) {
      const wider = Buffer.allocUnsafe(Math.max(1024, length * 2))
      this.#held.copy(wider, 0, 0, this.#length)
      this.#held = wider
    }
    piece.copy(this.#held, this.#length)
    this.#length = length
  }
}

/** Server-sent events. An event the stream ends in the middle of is dropped, as the standard says. */
export class SseReader {
  readonly #lines = new Lines()
  #name = ''
  #data: string | undefined

  push(chunk: Buffer): readonly StreamEvent[] {
    const text = this.#lines.push(chunk)
    if (text === '') return none
    const events: StreamEvent[] = []
    for (let at = 0; at < text.length; ) {
      const end = text.indexOf('\n', at)
      if (end === at) {
        if (this.#data) events.push({ name: this.#name, data: this.#data })
        this.#name = ''
        this.#data = undefined
      } else if (text.startsWith('data:', at)) {
        const value = text.slice(text.charCodeAt(at + 5) === 32 ? at + 6 : at + 5, end)
        this.#data = this.#data === undefined ? value : `${this.#data}\n${value}`
        if (this.#data.length > caps.line) throw new TooLong('sent an event of more than 1 MiB')
      } else if (text.startsWith('event:', at)) {
        this.#name = text.slice(at + 6, end).trim()
      }
      at = end + 1
    }
    return events
  }

  rest(): readonly StreamEvent[] {
    return none
  }
}

/** Newline-delimited JSON; blank lines are skipped, and the last line needs no newline. */
export class LineReader {
  readonly #lines = new Lines()

  push(chunk: Buffer): readonly StreamEvent[] {
    return this.#events(this.#lines.push(chunk))
  }

  /** A last line that is no JSON was cut; without it the answer has no end, and its fold says so. */
  rest(): readonly StreamEvent[] {
    return this.#events(this.#lines.rest()).filter(({ data }) => {
      try {
        return JSON.parse(data) !== undefined
      } catch {
        return false
      }
    })
  }

  #events(text: string): readonly StreamEvent[] {
    if (text === '') return none
    const events: StreamEvent[] = []
    for (const line of text.split('\n')) {
      if (line.trim() !== '') events.push({ name: '', data: line })
    }
    return events
  }
}

// ---- Rendering ---------------------------------------------------------------------------------------------------

/** JSON of what is remembered below; '' until it is first needed. Nothing else is worth an entry. */
const texts = new WeakMap<object, string>()

/** JSON of a body. What a remembering function made is serialised once, if it stands in a top-level array. */
export function toJson(body: Record<string, unknown>): string {
  let text = ''
  for (const key of Object.keys(body)) {
    const value = body[key]
    const json = Array.isArray(value) ? `[${value.map(elementJson).join(',')}]` : wellFormed(value)
    if (json !== undefined) text += `${text === '' ? '' : ','}${JSON.stringify(key)}:${json}`
  }
  return `{${text}}`
}

function elementJson(element: unknown): string {
  const known = texts.get(element as object)
  if (known) return known
  const text = wellFormed(element) ?? 'null'
  if (known === '') texts.set(element as object, text)
  return text
}

/** JSON.stringify writes half a surrogate pair as `\udXXX`, which vendors answer with 400. */
function wellFormed(value: unknown): string | undefined {
  const text = JSON.stringify(value) as string | undefined
  if (!text?.includes('\\ud')) return text
  return text.replace(/\\(\\|ud[89a-f][0-9a-f]{2})/g, (all) => (all === '\\\\' ? all : '\ufffd'))
}

/**
 * Renders a history and remembers what became of each message, so that a turn renders only what is new. The last
 * message may still grow and is not remembered. `merge` makes one of neighbours with one role.
 */
export function rememberingHistory<W extends { role?: unknown }>(
  expand: (message: Message) => W[],
  merge?: (before: W, after: W) => W | undefined,
): (messages: readonly Message[]) => W[] {
  const known = new WeakMap<Message, { seen: unknown[]; turns: W[] }>()
  const joined = new WeakMap<W, { before: W; both: W }>()
  const join = (before: W, after: W): W | undefined => {
    const hit = joined.get(after)
    if (hit?.before === before) return hit.both
    const both = merge?.(before, after)
    if (both && texts.has(after)) {
      joined.set(after, { before, both })
      texts.set(both, '')
    }
    return both
  }
  return (messages) => {
    const out: W[] = []
    messages.forEach((message, i) => {
      let entry = known.get(message)
      if (!entry || !isSame(entry.seen, message)) {
        entry = { seen: contents(message), turns: expand(message) }
        if (i < messages.length - 1) {
          known.set(message, entry)
          for (const turn of entry.turns) texts.set(turn, '')
        }
      }
      for (const turn of entry.turns) {
        const before = out[out.length - 1]
        const both = before?.role === turn.role && before && join(before, turn)
        if (both) out[out.length - 1] = both
        else out.push(turn)
      }
    })
    return out
  }
}

/** A `merge` for wires on which user and assistant must take turns. */
export function alternating<W extends { content: unknown[] }>(before: W, after: W): W {
  return { ...before, content: [...before.content, ...after.content] }
}

/** Remembers what `make` made of an object for as long as it lives and its properties are the same values. */
export function remembering<K extends object, V extends object>(
  make: (from: K) => V,
): (from: K) => V {
  const known = new WeakMap<K, { seen: unknown[]; made: V }>()
  return (from) => {
    const hit = known.get(from)
    const seen = Object.values(from)
    if (hit && seen.length === hit.seen.length && seen.every((value, i) => value === hit.seen[i]))
      return hit.made
    const made = make(from)
    known.set(from, { seen, made })
    texts.set(made, '')
    return made
  }
}

/** Everything of a message that `===` can compare: a message changed in place is rendered anew. */
function contents(message: Message): unknown[] {
  return [...message.parts, ...resultsOf(message)].flatMap((piece) => Object.values(piece))
}

function isSame(seen: unknown[], message: Message): boolean {
  let i = 0
  for (const pieces of [message.parts, resultsOf(message)]) {
    for (const piece of pieces as Record<string, unknown>[]) {
      for (const key in piece) if (piece[key] !== seen[i++]) return false
    }
  }
  return i === seen.length
}

function resultsOf(message: Message): ToolResult[] {
  return message.role === 'assistant' ? message.results : []
}

// ---- Replies and tool calls --------------------------------------------------------------------------------------

/**
 * A reply from parts in the vendor's order: neighbouring texts become one, empty ones go, a call without an id of its
 * own gets one, and `stop` beside a call is `tool_call`, whatever word the vendor has for it.
 */
export function toReply(
  parts: Part[],
  finishReason: FinishReason,
  usage: Usage,
  raw: unknown,
): ModelReply {
  const out: Part[] = []
  const ids = new Set<string>()
  for (const part of parts) {
    const before = out.at(-1)
    if (part.type === 'tool_call') {
      const id = part.id && !ids.has(part.id) ? part.id : newCallId()
      ids.add(id)
      out.push({ ...part, id })
    } else if (part.type !== 'text') out.push(part)
    else if (before?.type === 'text') {
      out[out.length - 1] = { type: 'text', text: before.text + part.text }
    } else if (part.text !== '') out.push(part)
  }
  return {
    parts: out,
    finishReason: ids.size && finishReason === 'stop' ? 'tool_call' : finishReason,
    usage,
    raw,
  }
}

/** Usage of a wire whose input leaves out what was read from the cache and what was written to it. */
export function toUsage(input: unknown, output: unknown, read: unknown, write: unknown): Usage {
  const [cacheReadTokens, cacheWriteTokens] = [count(read), count(write)]
  const inputTokens = count(input) + cacheReadTokens + cacheWriteTokens
  return { inputTokens, outputTokens: count(output), cacheReadTokens, cacheWriteTokens }
}

/** A number of tokens, or 0 for what is absent or no number. */
export function count(value: unknown): number {
  return typeof value === 'number' && value > 0 ? value : 0
}

/** For what is not a string where the wire says string: thrown inside a fold or a parse it becomes `provider_invalid`. */
export function string(value: unknown): string {
  if (typeof value !== 'string') throw new TypeError('not a string')
  return value
}

/** A caller's mistake that no request can repair: a missing key, an address. */
export function configError(provider: string, what: string): ProviderError {
  return new ProviderError('provider_config', `${provider}: ${what}`, { provider })
}

/** Before anything is sent. `takes`: what this wire does take, e.g. `PNG and JPEG in a user's message`. */
export function unsupportedFile(
  provider: string,
  takes: string,
  part: Part & { type: 'file' },
): ProviderError {
  return new ProviderError(
    'unsupported_media_type',
    `${provider} takes ${takes}; got ${part.mediaType}`,
    { provider },
  )
}

/** A name for a call whose vendor gave none, or one it gave before. */
export function newCallId(): string {
  return `tc_${randomBytes(12).toString('base64url')}`
}

/**
 * A call's input from whatever a wire carries: nothing and blank text are `{}`, an object is itself, the text of one is
 * parsed. All else, and what is deeper than 64 or holds keys that reach prototypes, stays text, which the loop refuses.
 * `cut`: the reply ended for its length in this call, so that nothing is not `{}` but the beginning of something, and an
 * object may be what was left of a larger one.
 */
export function toolInput(value: unknown, cut = false): unknown {
  if (value === undefined || value === null) return cut ? '' : {}
  try {
    if (typeof value !== 'string') return isPlain(value) && !cut ? value : JSON.stringify(value)
    if (value.trim() === '') return cut ? '' : {}
    const input: unknown = JSON.parse(value)
    return isPlain(input) ? input : value
  } catch {
    return typeof value === 'string' ? value : 'nested too deep' // for JSON.stringify
  }
}

/** The reverse, for wires that want an object: text that was none comes along as `malformed_input`. */
export function inputObject(input: unknown): Record<string, unknown> {
  const isObject = typeof input === 'object' && input !== null && !Array.isArray(input)
  return isObject ? (input as Record<string, unknown>) : { malformed_input: input }
}

/** Appends a piece of a call's arguments; a call of more than 1 MiB is no call. */
export function append(answer: Answer, text: string, piece: string): string {
  if (text.length + piece.length > caps.input) {
    throw answer.fail('provider_invalid', 'sent a tool call of more than 1 MiB')
  }
  return text + piece
}

function isPlain(value: unknown): boolean {
  return (
    typeof value === 'object' && value !== null && !Array.isArray(value) && isHarmless(value, 64)
  )
}

function isHarmless(value: unknown, depth: number): boolean {
  if (typeof value !== 'object' || value === null) return true
  if (depth === 0) return false
  if (Array.isArray(value)) return value.every((item) => isHarmless(item, depth - 1))
  return Object.entries(value).every(
    ([key, item]) =>
      key !== '__proto__' &&
      !(key === 'constructor' && Object(item) === item && Object.hasOwn(item, 'prototype')) &&
      isHarmless(item, depth - 1),
  )
}
