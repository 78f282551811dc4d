// What a server may want around the handler: options for createServer, CORS, a Host check, idempotent requests, and an
// end without a cut answer. Each wraps `(req, res) => Promise<boolean>` and can be left out; the core knows none of them.
// Covers: slow and half-open clients, DNS rebinding, requests sent twice. Does not cover: TLS, rate limits, who asks.

import type { IncomingMessage, OutgoingHttpHeaders, Server, ServerResponse } from 'node:http'
import { randomId } from './proof.ts'
import { DcafError, type ErrorCode } from './providers/provider.ts'
import type { Store } from './store.ts'

/** `false`: not my path, nothing was touched. */
export type Handler = (req: IncomingMessage, res: ServerResponse) => Promise<boolean>

const crypto = () => process.getBuiltinModule('node:crypto')

const open = new Set<ServerResponse>()
let known: typeof ServerResponse | undefined

/** Whose responses are known until their last byte is with the operating system, or the connection is gone. */
function knownResponse(): typeof ServerResponse {
  // An import of node:http also makes its lazy parts (24 ms); this does not, and waits until a server is made.
  const { ServerResponse: NodeResponse } = process.getBuiltinModule('node:http')
  return class KnownResponse<Request extends IncomingMessage> extends NodeResponse<Request> {
    constructor(...args: ConstructorParameters<typeof NodeResponse<Request>>) {
      super(...args)
      open.add(this)
      this.once('close', () => open.delete(this))
    }
  }
}

/** For `createServer(serverOptions, listener)` of node:http or node:https. Times in milliseconds. */
export const serverOptions = {
  /** So that `drain` can tell an idle connection from one whose reader is slow: Node's `closeIdleConnections` cannot. */
  get ServerResponse(): typeof ServerResponse {
    known ??= knownResponse()
    return known
  },
  /** Bytes of all header lines; more is 431. Node's own default, said here because the limits count on it. */
  maxHeaderSize: 16_384,
  /** From the first byte, or the connection, to the end of the headers; later is 408. No honest client takes longer. */
  headersTimeout: 10_000,
  /** To the end of the body: 4 MiB over a slow line. How long the answer takes is not counted. */
  requestTimeout: 30_000,
  /** How often the two above are looked at. Node's default of 30 s would make 40 s of 10. */
  connectionsCheckingInterval: 2_000,
  /** Longer than the 60 s of usual load balancers: who closes an idle connection first must not be us. */
  keepAliveTimeout: 75_000,
  /** A token is not held back for more bytes to come. */
  noDelay: true,
}

/**
 * Refuses requests of more than `count` header lines with 431. (Node's `server.maxHeadersCount` would drop the surplus in
 * silence, an `authorization` perhaps among it.)
 */
export function withHeaderLimit(handler: Handler, count = 100): Handler {
  return async (req, res) => {
    if (req.rawHeaders.length <= 2 * count) return handler(req, res)
    return refuse(res, 431, 'invalid_request', `More than ${count} header lines.`)
  }
}

export interface CorsOptions {
  /** Exactly as browsers send them: `https://desk.example`. `'*'` is everybody, and then without `credentials`. */
  origins: string[] | '*' | ((origin: string) => boolean)
  /** May a page send cookies and read the answer? Default false. */
  credentials?: boolean
  /** Request headers that a page may send, beside those that need no permission. */
  headers?: string[]
  /** Response headers that a page may read. */
  exposed?: string[]
  /** Seconds a browser may remember the answer to a preflight. Default 600. */
  maxAgeS?: number
  /** Of the handler. Default `/api`. */
  basePath?: string
}

/** Lets pages of other origins use the handler's own paths; requests for other paths pass untouched. */
export function withCors(handler: Handler, options: CorsOptions): Handler {
  const { origins, credentials = false, maxAgeS = 600 } = options
  const { headers = ['content-type', 'authorization', 'idempotency-key'] } = options
  const { exposed = ['retry-after', 'x-request-id', 'idempotency-replayed'] } = options
  if (origins === '*' && credentials) throw wrong("origins '*' goes without credentials: list them")
  for (const origin of Array.isArray(origins) ? origins : [])
    if (!URL.canParse(origin) || new URL(origin).origin !== origin)
      throw wrong(`${JSON.stringify(origin)} is no origin; write it like https://desk.example`)
  const allows = (origin: string): boolean =>
    typeof origins === 'function' ? origins(origin) : origins === '*' || origins.includes(origin)
  const paths = pathsOf(options.basePath)

  return async (req, res) => {
    if (!paths.has(pathOf(req))) return handler(req, res)
    const { origin } = req.headers
    const asked = req.method === 'OPTIONS' && req.headers['access-control-request-method']
    const allowed = origin !== undefined && allows(origin)
    if (origins !== '*') res.appendHeader('vary', 'origin') // also where there is none: a cache must know
    if (allowed) {
      res.setHeader('access-control-allow-origin', origins === '*' ? '*' : origin)
      if (credentials) res.setHeader('access-control-allow-credentials', 'true')
      if (!asked) res.setHeader('access-control-expose-headers', exposed.join(', '))
    }
    if (!asked || origin === undefined) return handler(req, res)
    if (!allowed) return refuse(res, 403, 'forbidden', 'This origin may not use this server.')
    res.writeHead(204, {
      'access-control-allow-methods': pathOf(req) === '/health' ? 'GET, HEAD' : 'POST',
      'access-control-allow-headers': headers.join(', '),
      'access-control-max-age': String(maxAgeS),
    })
    res.end()
    return true
  }
}

export interface HostOptions {
  /** Names with or without a port: `desk.example`, `10.0.0.7:8000`. Default: this machine's loopback names, any port. */
  hosts?: string[]
  /** Pages of other hosts that may call, as given to `withCors`. */
  origins?: string[]
}

/**
 * Answers 403 to a Host, or an Origin, that is not listed, whatever the path: a page that points its own name at this
 * machine (DNS rebinding) or posts to it from elsewhere reaches nothing behind this.
 */
export function withHostCheck(handler: Handler, options: HostOptions = {}): Handler {
  const { hosts = ['localhost', '127.0.0.1', '[::1]'], origins = [] } = options
  const known = new Set(hosts.map((host) => host.toLowerCase()))
  const isKnown = (host: string): boolean => {
    const name = host.toLowerCase()
    return known.has(name) || known.has(name.replace(/:\d*$/, ''))
  }
  return async (req, res) => {
    const { host = '', origin } = req.headers
    const hostLines = req.rawHeaders.filter((text, i) => i % 2 === 0 && /^host$/i.test(text))
    const ours = hostLines.length === 1 && isKnown(host)
    if (!ours) return refuse(res, 403, 'forbidden', 'This Host is not served here.')
    if (origin === undefined || origins.includes(origin)) return handler(req, res)
    if (URL.canParse(origin) && isKnown(new URL(origin).host)) return handler(req, res)
    return refuse(res, 403, 'forbidden', 'This origin may not use this server.')
  }
}

export interface IdempotencyOptions {
  /** Shared by all replicas. Answers are kept in it as they were sent. */
  store: Store
  /** How long an answer is kept. Default 24 hours. */
  ttlMs?: number
  /**
   * Whose key it is; without an answer the handler is asked as if there were no key. Default: `authenticate` of the
   * `chatHandler` that is wrapped, or where it has none, whoever sends the same `authorization` and `cookie`. Needed
   * around any other handler: what authenticates there is not known here, and nobody may get the answer of another.
   */
  principal?: (req: IncomingMessage) => string | undefined | Promise<string | undefined>
  /** Bodies beyond this pass as if without a key, for the handler to refuse. Default 4 MiB. */
  bodyBytes?: number
  /** Of all bodies that are being read, the first 64 KiB of each not counted; beyond it 503. Default 128 MiB. */
  bodiesBytes?: number
  /** Answers beyond this are not kept, and not made again either. Default 1 MiB. */
  answerBytes?: number
  /** How long a client may take to read an answer that is sent again. Default 30 s. */
  stallMs?: number
  /** Of the handler. Default `/api`. */
  basePath?: string
}

/** `body` in base64; none where it was too large to keep. */
type Answer = { status: number; headers: OutgoingHttpHeaders; body?: string }
type Kept = { hash: string; answer?: Answer }

/** As long as a request may take, and some more: after a crash a key is free again by then. */
const claimMs = 900_000
/** Requests that wait for the answer to another. */
const maxWaiting = 100
/** Of each body: large ones keep out no small one. */
const uncounted = 65_536

/**
 * A POST with an `Idempotency-Key` (1 to 255 visible ASCII characters) is answered once; sent again, it gets the first
 * answer byte for byte, with `idempotency-replayed: true`. A duplicate waits for the first in this process and is told
 * `busy` in another. The same key with another body is 422. Answers other than 2xx, streams that failed before anything
 * ran, and requests whose client went away are not kept: sent again, they run again, and approvals hold once by themselves.
 */
export function withIdempotency(
  handler: Handler & { authenticate?: IdempotencyOptions['principal'] },
  options: IdempotencyOptions,
): Handler {
  const { store, ttlMs = 86_400_000, bodyBytes = 4_194_304, answerBytes = 1_048_576 } = options
  const { bodiesBytes = 134_217_728, stallMs = 30_000 } = options
  const own = 'authenticate' in handler ? (handler.authenticate ?? byCredentials) : undefined
  const principal = options.principal ?? own
  if (!principal)
    throw wrong('withIdempotency needs principal: who asks, where the handler is not a chatHandler')
  const bodies = { bytes: 0, limit: bodiesBytes }
  const paths = pathsOf(options.basePath)
  const running = new Map<string, { hash: string; answer: Promise<Answer | undefined> }>()
  let waiting = 0

  /** The answer for those who wait, if this came to one; `false`: not the handler's path. */
  async function first(id: string, hash: string, req: IncomingMessage, res: ServerResponse) {
    let text: string | undefined
    try {
      if (!(await store.swap(id, undefined, JSON.stringify({ hash } satisfies Kept), claimMs)))
        text = (await store.get(id)) ?? '{}'
    } catch {
      refuse(res, 503, 'store_unavailable', 'The store is not available. Nothing was done.')
      return undefined
    }
    if (text !== undefined) {
      const kept = read(text)
      if (kept.hash !== undefined && kept.hash !== hash) refuseOther(res)
      else if (kept.answer) replay(res, kept.answer, stallMs)
      else refuse(res, 503, 'busy', 'The first request with this Idempotency-Key is running.')
      return kept.hash === hash ? kept.answer : undefined
    }
    const recorded = record(res, answerBytes)
    let answer: Answer | undefined
    try {
      if (!(await handler(req, res))) return false
      answer = recorded()
      return answer
    } finally {
      const kept = answer && JSON.stringify({ hash, answer } satisfies Kept)
      // Where the store fails now, the claim stays: a retry is told `busy` until it runs out, and nothing runs twice.
      await (kept ? store.set(id, kept, ttlMs) : store.delete(id)).catch(() => {})
    }
  }

  async function inTurn(id: string, hash: string, req: IncomingMessage, res: ServerResponse) {
    for (;;) {
      const before = running.get(id)
      if (!before) break
      if (before.hash !== hash) return refuseOther(res)
      if (waiting >= maxWaiting) return refuse(res, 503, 'busy', 'Too many requests are waiting.')
      waiting++
      const answer = await before.answer
      waiting--
      if (answer) return replay(res, answer, stallMs)
    }
    const { promise, resolve } = Promise.withResolvers<Answer | undefined>()
    running.set(id, { hash, answer: promise })
    let answer: Answer | false | undefined
    try {
      answer = await first(id, hash, req, res)
    } finally {
      running.delete(id)
      resolve(answer || undefined)
    }
    return answer !== false
  }

  return async (req, res) => {
    const { 'idempotency-key': key } = req.headers
    const path = pathOf(req)
    if (key === undefined || req.method !== 'POST' || !paths.has(path)) return handler(req, res)
    if (typeof key !== 'string' || !/^[!-~]{1,255}$/.test(key))
      return refuse(res, 422, 'invalid_request', 'Idempotency-Key: 1 to 255 visible characters.')
    let who: unknown
    try {
      who = await principal(req)
    } catch {} // the handler asks the same and refuses in its own words
    const body = typeof who === 'string' && who !== '' && (await peek(req, bodyBytes, bodies))
    if (req.destroyed && !req.complete) return true
    if (body === 'busy') return tooMuch(req, res)
    if (!body) return handler(req, res)
    const { 'content-type': type, 'content-encoding': encoding } = req.headers
    const id = sha256(JSON.stringify([who, path, key, type, encoding]))
    return inTurn(`idempotency:${id}`, sha256(body), req, res)
  }
}

function byCredentials({ headers }: IncomingMessage): string {
  return JSON.stringify([headers.authorization ?? null, headers.cookie ?? null])
}

/** The body, which stays to be read: it goes back before the stream has said that it ended. `undefined`: not to be had. */
function peek(
  req: IncomingMessage,
  limit: number,
  all: { bytes: number; limit: number },
): Promise<Buffer | 'busy' | undefined> {
  return new Promise((resolve) => {
    const chunks: Buffer[] = []
    let size = 0
    const counted = (): number => Math.max(0, size - uncounted)
    const settle = (whole: boolean): void => {
      const isBusy = all.bytes > all.limit
      all.bytes -= counted()
      req.off('readable', onReadable).off('end', onEnd).off('close', onEnd).off('error', onEnd)
      const body = Buffer.concat(isBusy ? [] : chunks)
      if (size > 0 && !isBusy && !req.destroyed) req.unshift(body)
      resolve(isBusy ? 'busy' : whole && size > 0 ? body : undefined)
    }
    const onEnd = (): void => settle(false)
    const onReadable = (): void => {
      for (let chunk = req.read(); chunk !== null; chunk = req.read()) {
        chunks.push(chunk)
        all.bytes -= counted()
        size += chunk.length
        all.bytes += counted()
      }
      if (req.complete || size > limit || all.bytes > all.limit) settle(size <= limit)
    }
    req.on('readable', onReadable).on('end', onEnd).on('close', onEnd).on('error', onEnd)
  })
}

/** Notes what is written to `res`, and gives it once it is whole and worth keeping. */
function record(res: ServerResponse, limit: number): () => Answer | undefined {
  const chunks: Buffer[] = []
  let size = 0
  let given: OutgoingHttpHeaders = {}
  const note = (chunk: unknown, encoding: unknown): void => {
    if (typeof chunk !== 'string' && !(chunk instanceof Uint8Array)) return
    const utf8 = typeof encoding === 'string' ? (encoding as BufferEncoding) : 'utf8'
    const bytes = typeof chunk === 'string' ? Buffer.from(chunk, utf8) : Buffer.from(chunk)
    size += bytes.length
    if (size <= limit) chunks.push(bytes)
  }
  const { write, end, writeHead } = res
  res.write = ((...args: unknown[]) => {
    note(args[0], args[1])
    return Reflect.apply(write, res, args)
  }) as typeof write
  res.end = ((...args: unknown[]) => {
    note(args[0], args[1])
    return Reflect.apply(end, res, args)
  }) as typeof end
  res.writeHead = ((...args: unknown[]) => {
    const headers = args.at(-1)
    if (typeof headers === 'object') given = headers as OutgoingHttpHeaders
    return Reflect.apply(writeHead, res, args)
  }) as typeof writeHead

  return () => {
    const { statusCode: status, writableEnded } = res
    if (!writableEnded || status < 200 || status > 299) return undefined
    const headers = { ...res.getHeaders(), ...given }
    if (size > limit) return { status, headers }
    const body = Buffer.concat(chunks)
    return cameToNothing(body) ? undefined : { status, headers, body: body.toString('base64') }
  }
}

/** A stream whose last line is an error before anything ran: its status said 200 too early. */
function cameToNothing(body: Buffer): boolean {
  const line = body.subarray(body.lastIndexOf('\n', -2) + 1).toString()
  if (!line.startsWith('{"type":"error"')) return false
  return JSON.parse(line).meta_data === undefined
}

/** What no version of this file wrote is nobody's answer. */
function read(text: string): Partial<Kept> {
  try {
    return JSON.parse(text) ?? {}
  } catch {
    return {}
  }
}

const ofTheConnection = /^(connection|content-length|date|keep-alive|transfer-encoding)$/i

function replay(res: ServerResponse, { status, headers, body }: Answer, stallMs: number): true {
  if (body === undefined)
    return refuse(
      res,
      422,
      'invalid_request',
      'The first answer was too large to keep; nothing was done again.',
    )
  for (const [name, value] of Object.entries(headers))
    if (value !== undefined && !ofTheConnection.test(name) && !res.hasHeader(name))
      res.setHeader(name, value)
  res.setHeader('idempotency-replayed', 'true')
  res.writeHead(status).end(Buffer.from(body, 'base64'))
  const timer = setTimeout(() => res.destroy(), stallMs)
  res.once('close', () => clearTimeout(timer))
  return true
}

function tooMuch(req: IncomingMessage, res: ServerResponse): true {
  refuse(res, 503, 'busy', 'Too many bodies are being read.')
  setTimeout(() => req.complete || req.destroy(), 1_000).unref() // so that the answer arrives
  return true
}

function refuseOther(res: ServerResponse): true {
  const detail = 'This Idempotency-Key was used for another request.'
  return refuse(res, 422, 'invalid_request', detail)
}

/** As far as `drain` needs to know what `chatHandler` returned. */
export interface Drainable {
  /** From now on new requests get 503 `shutting_down`. */
  drain(): void
  /** Runs under way, those of clients that went away included. */
  readonly active: number
  /** Ends them with `shutting_down`; approved tools go on unless `hard`. */
  abortAll(hard?: boolean): void
}
export interface DrainOptions {
  /** Until then what runs may finish. Default 25,000. */
  graceMs?: number
  /** Until then approved tools may finish. Default 28,000: Kubernetes kills at 30,000. */
  hardMs?: number
}
/** Runs ended by us at `graceMs`; connections closed by us, and runs left behind, at `hardMs`. All 0: nobody lost a word. */
export type Drained = { aborted: number; cut: number; running: number }

/**
 * Ends a server: no new connections; idle and half-open ones are closed; a request on an open one gets 503 and its end;
 * streams finish. Resolves when all is done, at the latest shortly after `hardMs`. Never rejects; may be called again.
 * Half-open connections are found by the server's own check, so `connectionsCheckingInterval` (`serverOptions`) counts.
 */
export async function drain(
  server: Server,
  handler: Drainable,
  options: DrainOptions = {},
): Promise<Drained> {
  const { graceMs = 25_000, hardMs = Math.max(28_000, graceMs) } = options
  const { setTimeout: sleep } = process.getBuiltinModule('node:timers/promises')
  const started = performance.now()
  const drained: Drained = { aborted: 0, cut: 0, running: 0 }
  handler.drain()
  // The close of node:net: that of node:http also stops the check that ends half-open connections.
  process.getBuiltinModule('node:net').Server.prototype.close.call(server, () => {})
  server.headersTimeout = 1
  server.prependListener('request', (_, res: ServerResponse) =>
    res.setHeader('connection', 'close'),
  )
  for (let stage: 'grace' | 'hard' | 'over' = 'grace'; ; await sleep(20)) {
    if (![...open].some((res) => res.writableEnded && !res.writableFinished))
      server.closeIdleConnections()
    const connections = await new Promise<number>((resolve) =>
      server.getConnections((_, n) => resolve(n ?? 0)),
    )
    drained.running = handler.active
    if (connections === 0 && drained.running === 0) return drained
    const passed = performance.now() - started
    if (stage === 'grace' && passed >= graceMs) {
      stage = 'hard'
      drained.aborted = handler.active
      handler.abortAll()
    }
    if (stage === 'hard' && passed >= hardMs) {
      stage = 'over'
      drained.cut = connections
      handler.abortAll(true)
      await sleep(100) // their last words
      server.closeAllConnections()
    }
    if (stage === 'over' && passed >= hardMs + 500) return drained
  }
}

/**
 * `drain` at the first of `signals`, then `finish` (close the store, say), then exit: 0, or 1 where something was left
 * running. A second signal exits with 1 at once.
 */
export function onSignals(
  server: Server,
  handler: Drainable,
  options: DrainOptions & {
    /** Default SIGTERM and SIGINT. */
    signals?: NodeJS.Signals[]
    finish?: (drained: Drained) => unknown
  } = {},
): void {
  let asked = false
  const stop = async (): Promise<void> => {
    if (asked) process.exit(1)
    asked = true
    const drained = await drain(server, handler, options)
    await options.finish?.(drained)
    process.exit(drained.running > 0 ? 1 : 0)
  }
  for (const signal of options.signals ?? ['SIGTERM', 'SIGINT']) process.on(signal, stop)
}

function pathsOf(basePath = '/api'): Set<string> {
  const names = ['chat', 'chat-stream', 'sendMessage', 'sendMessageStream']
  return new Set(['/health', ...names.map((name) => `${basePath}/${name}`)])
}

function pathOf(req: IncomingMessage): string {
  return (req.url ?? '').split('?', 1)[0] ?? ''
}

/** The same shape as the handler's own errors. */
function refuse(res: ServerResponse, status: number, code: ErrorCode, detail: string): true {
  if (res.headersSent || res.destroyed) return true
  const problem = {
    detail,
    code,
    retryable: status === 503,
    request_id: randomId(),
  }
  if (status === 503) res.setHeader('retry-after', 1)
  res.setHeader('x-request-id', problem.request_id)
  res.writeHead(status, { 'content-type': 'application/json', 'cache-control': 'no-store' })
  res.end(JSON.stringify(problem))
  return true
}

function sha256(data: string | Buffer): string {
  return crypto().createHash('sha256').update(data).digest('base64url')
}

function wrong(message: string): DcafError {
  return new DcafError('invalid_argument', message)
}
