// What all HTTP providers share: a POST over undici and its answer, whole or streamed. Knows no vendor: a provider is a
// `Wire`, pure functions from our words to a body and back. Next to it lie its parts: limits.ts (clocks and caps),
// retry.ts, connect.ts, lines.ts and repeats.ts (events), history.ts (JSON of what is sent), reply.ts and errors.ts.

import type { Dispatcher } from 'undici'
import { type Endpoint, endpoint, sharedPool } from './connect.ts'
import * as errors from './errors.ts'
import { toJson } from './history.ts'
import * as limits from './limits.ts'
import { EventReader, TooLong } from './lines.ts'
import type { CompleteOptions, ErrorCode, ModelReply, ModelRequest, Provider } from './provider.ts'
import { DcafError } from './provider.ts'
import { type PlacesOf, Repeats, type Shape } from './repeats.ts'
import { toReply } from './reply.ts'
import { retrying } from './retry.ts'

export { ProviderError } from './errors.ts'

/** What every HTTP provider takes beside its own options. */
export interface HttpOptions {
  timeouts?: Partial<limits.Timeouts>
  /** How often a failed call is made again, at the most, as long as nothing has streamed. Default 2. */
  retries?: number
  /** Sent with every request, over the provider's own. */
  headers?: Record<string, string>
  /** An undici dispatcher of your own (a proxy, a mock). Default: one keep-alive agent for the process. */
  dispatcher?: Dispatcher
  /** Plain http to other hosts than this one. Default false: the key would travel in clear. */
  allowHttp?: boolean
  clock?: limits.Clock
}

/** What a fold or a parse may know of the answer it reads, and how it says that the answer is no good. */
export interface Answer {
  status: number
  requestId: string | undefined
  /** Keys, and what was asked, are masked here. */
  fail: errors.Fail
  /** The error a vendor reported, in any of the usual envelopes, classified as if it came with this status. */
  refuse(body: unknown, status?: number): errors.ProviderError
}

/** One streamed answer being put together. Whatever it throws that is no DcafError becomes `provider_invalid`. */
export interface Fold {
  /** One event: its JSON, or the string `[DONE]`; `name` is SSE's `event:`. Returns text to hand on, if any. */
  // biome-ignore lint/suspicious/noExplicitAny: a vendor's JSON; a wrong shape throws and is caught as provider_invalid
  event(json: any, name: string): string | undefined
  /** Where the text of an event is, if it keeps nothing else of it: repeats.ts then parses little of the next. */
  places?: PlacesOf
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
  /** A function is asked for every request. In errors, values of headers named like `auth`, `key` or `token` are masked. */
  headers: Record<string, string> | (() => Record<string, string> | Promise<Record<string, string>>)
  format: 'sse' | 'ndjson'
  /** The body. What a `Memory` gives stands in its top-level arrays. */
  render(request: ModelRequest, stream: boolean): Record<string, unknown>
  fold(answer: Answer): Fold
  /** An answer that was not streamed. Default: it reads like a stream of one event. */
  // biome-ignore lint/suspicious/noExplicitAny: as `Fold.event`
  parse?(json: any, answer: Answer): ModelReply
  /** Response header with the vendor's request id. Default `x-request-id`. */
  requestIdHeader?: string
  /** The talk has come to an answer: what was kept for its next turn may go. */
  forget?(request: ModelRequest): void
  /** Asked of a reply without calls: true if it goes on when it is sent back. To the caller the two are one. */
  isPaused?(reply: ModelReply): boolean
  /** Sees an error body before the shared rules do; returns what it knows better. */
  failure?(body: unknown, status: number): Partial<errors.Failure>
}

/** `render` takes what `complete` decides by the presence of `onDelta`: whether the streaming wire is asked for. */
export interface HttpProvider extends Provider {
  render(request: ModelRequest, options?: { stream?: boolean }): unknown
}

/** After the vendor's last event: how long the connection may take to end, so that it can be used again. */
const graceMs = 200

/** A reply that the vendor paused is sent back this often before it is handed over as it is. */
const resumes = 10

/** Makes a `Provider` of a `Wire`. Throws at once for an address or a clock that cannot work. */
export function httpProvider(wire: Wire, options: HttpOptions = {}): HttpProvider {
  const { retries, dispatcher: given, clock = limits.realClock } = options
  const timeouts = limits.checkedTimeouts(options.timeouts)
  const whole = endpoint(wire.name, wire.url(false), options.allowHttp)
  const streamed = endpoint(wire.name, wire.url(true), options.allowHttp)
  const headers = headersOf(wire, options.headers)
  const shapes: Shape[] = []

  async function complete(request: ModelRequest, how: CompleteOptions = {}): Promise<ModelReply> {
    how.signal?.throwIfAborted()
    let reply = await ask(request, how)
    for (let i = 0; i < resumes; i++) {
      if (reply.finishReason !== 'stop' || !wire.isPaused?.(reply)) break
      const { parts, usage } = reply
      const turn = { role: 'assistant' as const, parts, results: [] }
      const more = { ...request, messages: [...request.messages, turn] }
      const next = await ask(more, how)
      for (const key of Object.keys(usage) as (keyof typeof usage)[]) usage[key] += next.usage[key]
      reply = toReply({ ...next, parts: [...parts, ...next.parts], usage })
    }
    if (reply.finishReason !== 'tool_call') wire.forget?.(request)
    return reply
  }

  function ask(request: ModelRequest, how: CompleteOptions): Promise<ModelReply> {
    const url = how.onDelta ? streamed : whole
    const dispatcher = given ?? url.dispatcher
    if (dispatcher) return send(url, dispatcher, request, how)
    return sharedPool(url.origin, timeouts.connectMs).then((pool) => {
      url.dispatcher = pool
      return send(url, pool, request, how)
    })
  }

  function send(
    url: Endpoint,
    dispatcher: Dispatcher,
    request: ModelRequest,
    { signal, onDelta }: CompleteOptions,
  ): Promise<ModelReply> {
    const body = toJson(wire.render(request, onDelta !== undefined))
    const deadline = clock.now() + timeouts.stepMs
    const sent = { wire, url, dispatcher, body, request, headers, timeouts, shapes }
    const call: Call = { ...sent, signal, onDelta, emitted: false }
    const attempt = () => new Exchange(call, deadline - clock.now()).reply
    return retrying(attempt, { retries, emitted: () => call.emitted, deadline, signal, clock })
  }

  return {
    name: wire.name,
    model: wire.model,
    // Parsed from the text that would be sent, so that the two cannot differ and nobody can change what is cached.
    render: (request, { stream = false } = {}) => JSON.parse(toJson(wire.render(request, stream))),
    complete,
  }
}

type Sent = Record<string, string>

/** What is sent with every request: the caller's over the wire's own. A wire whose own may change is asked each time. */
function headersOf(wire: Wire, given: Sent = {}): Sent | (() => Sent | Promise<Sent>) {
  const { headers } = wire
  // So that a caller's header replaces one of ours, whatever its spelling.
  const over = Object.fromEntries(Object.entries(given).map(([name, v]) => [name.toLowerCase(), v]))
  const all = (own: Sent) => ({ 'content-type': 'application/json', ...own, ...over })
  if (typeof headers !== 'function') return all(headers)
  return () => {
    const own = headers()
    return own instanceof Promise ? own.then(all) : all(own)
  }
}

/** What the attempts of one `complete` share. */
interface Call extends CompleteOptions {
  wire: Wire
  url: Endpoint
  dispatcher: Dispatcher
  body: string
  request: ModelRequest
  headers: ReturnType<typeof headersOf>
  timeouts: limits.Timeouts
  /** Of the model's events. */
  shapes: Shape[]
  /** Whether anything went downstream. */
  emitted: boolean
}

/**
 * One POST and its answer, as an undici handler: no stream in between, so a piece costs its parsing and little else.
 * `dispatch` follows no redirect and retries nothing. Settles once; settling early destroys the connection.
 */
class Exchange implements Dispatcher.DispatchHandler, Answer {
  status = 0
  requestId: string | undefined
  readonly reply: Promise<ModelReply>
  readonly #call: Call
  readonly #done = Promise.withResolvers<ModelReply>()
  readonly #watch: limits.Watch
  #onAbort: (() => void) | undefined
  #controller: Dispatcher.DispatchController | undefined
  #sent: Sent = none
  #headers: errors.Headers = none
  #framed = false
  #bytes = 0
  /** A streamed answer has a reader and a fold; any other is collected in `#pieces`. */
  #reader: EventReader | undefined
  #fold: Fold | undefined
  #repeats: Repeats | undefined
  #pieces: Buffer[] = []
  /** Downstream is waited for. */
  #busy = false
  /** Nothing more will come. */
  #over = false
  /** What came of it, while its text is handed on. */
  #made: ModelReply | undefined
  #settled = false
  #grace: NodeJS.Timeout | undefined

  constructor(call: Call, stepMs: number) {
    this.#call = call
    this.reply = this.#done.promise
    const { wire, url, timeouts, signal, headers } = call
    if (signal) {
      // A function: around an object with handleEvent node makes one, and an async one at that.
      this.#onAbort = () => this.#fail(signal.reason)
      signal.addEventListener('abort', this.#onAbort)
    }
    this.#watch = new limits.Watch(timeouts, stepMs, (option) => {
      const late = limits.timeoutError(wire.name, url.host, option, timeouts[option])
      this.#fail(this.status >= 400 ? this.#statusError() : late)
    })
    try {
      const sent = typeof headers === 'function' ? headers() : headers
      if (!(sent instanceof Promise)) this.#send(sent)
      else {
        sent.then(
          (headers) => this.#send(headers),
          (error) => this.#fail(error),
        )
      }
    } catch (error) {
      this.#fail(error)
    }
  }

  #send(headers: Sent): void {
    if (this.#settled) return
    const { url, body, dispatcher } = this.#call
    const { origin, path } = url
    this.#sent = { ...headers } // a dispatcher of the caller's may add its own: for this request alone
    try {
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

  onResponseStart(_: Dispatcher.DispatchController, status: number, headers: errors.Headers): void {
    if (status < 200) return
    const { wire, onDelta, shapes } = this.#call
    this.status = status
    this.#headers = headers
    this.requestId = errors.header(headers, wire.requestIdHeader ?? 'x-request-id')
    this.#framed = (headers['content-length'] ?? headers['transfer-encoding']) !== undefined
    if (status >= 300 && status < 400) {
      this.#fail(this.fail('provider_config', `answered ${status}: redirects are not followed`))
    }
    if (status >= 300 || !onDelta) return
    // Some gateways answer whole although a stream was asked for.
    const type = errors.header(headers, 'content-type') ?? ''
    if (wire.format === 'sse' && /^(application\/json|text\/html)/.test(type)) return
    this.#reader = new EventReader(wire.format)
    this.#fold = wire.fold(this)
    this.#repeats = new Repeats(this.#fold.places, shapes)
  }

  onResponseData(controller: Dispatcher.DispatchController, chunk: Buffer): void {
    if (this.#settled || this.#fold?.done) return
    this.#watch.touch()
    this.#bytes += chunk.length
    if (this.#busy) controller.pause() // this piece waits, and no other
    try {
      if (this.status >= 400 && this.#bytes > limits.caps.error) throw this.#statusError()
      if (this.#bytes > limits.caps.answer) throw new TooLong('sent more than 16 MiB')
      if (!this.#reader) this.#pieces.push(chunk)
      else {
        this.#reader.push(chunk)
        if (!this.#busy) this.#deliver()
      }
    } catch (error) {
      this.#fail(this.#understood(error))
    }
  }

  onResponseEnd(): void {
    if (this.#settled) return
    this.#over = true
    if (this.#framed) this.#reader?.end()
    if (!this.#busy) this.#deliver()
  }

  onResponseError(_: Dispatcher.DispatchController | undefined, error: Error): void {
    if (this.#settled) return
    if (this.#fold?.done) this.onResponseEnd()
    else this.#fail(this.status >= 400 ? this.#statusError() : this.#connectionError(error))
  }

  // Reading

  /** Hands on what the events say, then the reply. Comes back when a reader that it has to wait for is ready. */
  #deliver(): void {
    try {
      for (let text = this.#next(); text !== undefined; text = this.#next()) {
        if (text !== '' && this.#waits(text)) return
      }
      if (this.#over) this.#finish()
    } catch (error) {
      this.#fail(error)
    }
  }

  /** The text of the next event, often ''; `undefined` if there is none. */
  #next(): string | undefined {
    const reader = this.#reader
    const fold = this.#fold
    if (!reader || !fold || fold.done || this.#settled) return undefined
    try {
      const data = reader.next()
      if (data === undefined) return undefined
      const { name } = reader
      if (name === 'error') throw this.refuse(toJsonOrText(data))
      const isMark = data.length < 20 && data.trim() === '[DONE]'
      const text = fold.event(isMark ? '[DONE]' : this.#repeats?.parse(data), name)
      if (fold.done) {
        this.#watch.stop()
        queueMicrotask(() => this.#linger())
      }
      return text ?? ''
    } catch (error) {
      throw this.#understood(error)
    }
  }

  /** After the vendor's last event; most answers end in the bytes that brought it. */
  #linger(): void {
    if (!this.#settled) this.#grace = setTimeout(() => this.onResponseEnd(), graceMs)
  }

  /** Hands a text on. True if that has to be waited for: then `#deliver` is called. */
  #waits(text: string): boolean {
    this.#call.emitted = true
    const wait = this.#call.onDelta?.({ type: 'text_delta', text })
    if (typeof wait?.then !== 'function') return false
    this.#busy = true
    this.#watch.hold(true)
    wait.then(
      () => {
        this.#busy = false
        if (this.#settled) return
        this.#watch.hold(false)
        this.#deliver()
        if (!this.#busy) this.#controller?.resume()
      },
      (error) => this.#fail(error),
    )
    return true
  }

  #finish(): void {
    if (!this.#made) {
      if (this.status >= 400) throw this.#statusError()
      try {
        this.#made = this.#fold ? this.#fold.end(this.#framed) : this.#parse(this.#json())
      } catch (error) {
        throw this.#understood(error)
      }
      // A gateway that answered whole has told nothing yet.
      const isTold = this.#fold !== undefined || !this.#call.onDelta
      const text = isTold ? '' : textOf(this.#made)
      if (text !== '' && this.#waits(text)) return
    }
    const made = this.#made
    if (this.#settle()) this.#done.resolve(made)
  }

  #parse(json: unknown): ModelReply {
    const { wire } = this.#call
    if (wire.parse) return wire.parse(json, this)
    const fold = wire.fold(this)
    fold.event(json, '')
    return fold.end(true)
  }

  #json(): unknown {
    const json = toJsonOrText(this.#text())
    if (typeof json !== 'string') return json
    if (!this.#framed || json.trim() === '') throw errors.truncated(this)
    const type = errors.header(this.#headers, 'content-type') ?? 'no content-type'
    throw this.fail('provider_invalid', `answered ${this.status} with what is no JSON (${type})`)
  }

  #text(): string {
    const [piece] = this.#pieces
    return utf8.decode(piece && this.#pieces.length === 1 ? piece : Buffer.concat(this.#pieces))
  }

  // Failing

  fail(
    code: ErrorCode,
    what: string,
    options: Partial<errors.ProviderErrorOptions> = {},
  ): errors.ProviderError {
    const { wire, url, request } = this.#call
    return new errors.ProviderError(
      code,
      `${url.host} ${errors.clean(what, this.#sent, request)}`,
      {
        provider: wire.name,
        requestId: this.requestId,
        status: this.status || undefined,
        ...options,
      },
    )
  }

  refuse(body: unknown, status?: number): errors.ProviderError {
    const words = errors.errorWords(body)
    const known = status ?? errors.statusOf(words)
    const { code, ...better } = this.#call.wire.failure?.(body, known) ?? {}
    const said = words.message ?? words.type ?? words.code
    const verb = known === this.status ? `answered ${known}` : 'broke off'
    const should = errors.header(this.#headers, 'x-should-retry')
    return this.fail(code ?? errors.codeOf(known, words), said ? `${verb}: ${said}` : verb, {
      status: known,
      retryable: should === 'true' || (should !== 'false' && errors.isTransient(known, words)),
      retryAfterMs: errors.retryAfterMs(this.#headers),
      ...better,
    })
  }

  /** The error of an answer that has an error's status, with as much of its body as there is. */
  #statusError(): errors.ProviderError {
    return this.refuse(toJsonOrText(this.#text()), this.status)
  }

  /** Whatever a wire trips over is the answer's fault, unless it said so better itself. */
  #understood(error: unknown): DcafError {
    if (error instanceof DcafError) return error
    const what = error instanceof TooLong ? error.message : 'sent what cannot be understood'
    return this.fail('provider_invalid', what, error instanceof TypeError ? { cause: error } : {})
  }

  #connectionError(cause: Error): errors.ProviderError {
    if (this.status) {
      const what = `broke the connection (${errors.causeOf(cause)})`
      return this.fail('provider_truncated', what, { retryable: true, cause })
    }
    const { wire, url, timeouts } = this.#call
    const late = limits.timeoutError(wire.name, url.host, 'connectMs', timeouts.connectMs)
    return errors.notAnswered(cause, this.fail.bind(this), late)
  }

  #fail(error: unknown): void {
    if (this.#settle()) this.#done.reject(error)
  }

  /** True the first time. */
  #settle(): boolean {
    if (this.#settled) return false
    this.#settled = true
    this.#watch.stop()
    if (this.#grace) clearTimeout(this.#grace)
    if (this.#onAbort) this.#call.signal?.removeEventListener('abort', this.#onAbort)
    this.#controller?.abort(gone) // no effect on an answer that has ended
    // Whoever still knows of this exchange must not keep what it read.
    this.#controller = undefined
    this.#reader = undefined
    this.#fold = undefined
    this.#repeats = undefined
    this.#made = undefined
    this.#pieces.length = 0
    return true
  }
}

const gone = new Error('no longer wanted')
const none = {}

function textOf({ parts }: ModelReply): string {
  return parts.map((part) => (part.type === 'text' ? part.text : '')).join('')
}

/** Takes a byte order mark away. */
const utf8 = new TextDecoder()

/** Plain text and proxies' pages are errors too: errorWords knows what to take of them. */
function toJsonOrText(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return text
  }
}
