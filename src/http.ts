// The door: a node:http handler that translates the HelpDesk wire into a run and back. Knows no vendor and no tool;
// starts nothing, listens on nothing. The handler resolves to false, having touched nothing, where a path is not its own.
// Covers: body and time limits, back-pressure, one terminal event, who asks. Does not cover: TLS, CORS, Host (door.ts).

import type { IncomingMessage, OutgoingHttpHeaders, ServerResponse } from 'node:http'
import { inspect } from 'node:util'
import {
  type Agent,
  authorityOf,
  checkAgent,
  type ExecutedCall,
  type PendingCall,
  type RunEvent,
  type RunInput,
  type RunOptions,
  type RunResult,
  run,
  runLimits,
} from './agent.ts'
import type { Decision, Grants } from './approval.ts'
import { type Mask, masker, maskJson, maskOf, secretKeys, secretsOf, unsound } from './mask.ts'
import { dataBlock } from './messages.ts'
import { randomId } from './proof.ts'
import * as wire from './protocol.ts'
import { DcafError, type ErrorCode, noUsage } from './providers/provider.ts'
import { Session } from './session.ts'
import { memoryStore, type Store } from './store.ts'
import type { PlatformContext } from './tool.ts'

/** Served in an agent's place: speaks through `options.emit`, may run agents of its own. */
export type AgentFunction = (
  input: RunInput,
  options: RunOptions,
) => Promise<RunResult | { text: string; session?: Session | Record<string, unknown> }>

export interface ChatOptions {
  /** 32 bytes each, base64; the first signs, all verify. Needed with a durable store. */
  keys?: (string | undefined)[]
  /** Ledger, epoch, sessions. Default: memory, so that approvals end with the process. */
  store?: Store
  /** The principal of a request; anything but a text that is not empty is 401, a thrown `Forbidden` 403. */
  authenticate?: (req: IncomingMessage) => string | undefined | Promise<string | undefined>
  limits?: Partial<ChatLimits>
  /** Default `plain`: travels readable. `sealed`: only we can read it. `server`: kept in the store. */
  session?: 'plain' | 'sealed' | 'server'
  sessionKey?: (principal: string | undefined, context: PlatformContext) => string
  /** Default `/api`. */
  basePath?: string
  /** Asked for `source: "slack"`: should this be answered at all? Throwing or anything but true stays silent. */
  router?: (request: {
    messages: wire.WireMessage[]
    context: PlatformContext
    source: string
  }) => unknown
  /** Sources the router is asked for. Default `['slack']`. */
  routedSources?: string[]
  /** Throws `Forbidden` for a context that may not be acted on. */
  validateContext?: (context: PlatformContext) => unknown
  bindContext?: RunOptions['bindContext']
  grants?: Grants
  onEvent?: RunOptions['onEvent']
  /** One entry a request, a model call, a warning or a failure; plain JSON, masked. */
  log?: (entry: LogEntry) => void
  /** Tool inputs and outputs in the log too, masked. Default false. */
  logPayloads?: boolean
  /** Migration only: approvals without proof. */
  trustClient?: 'unsafe'
}
export type LogEntry = {
  level: 'debug' | 'info' | 'warn' | 'error'
  event: string
  time: string
  [key: string]: unknown
}

export type ChatLimits = typeof runLimits & typeof doorLimits
const doorLimits = {
  bodyBytes: 4_194_304,
  /** Of all bodies that are being read, the first 64 KiB of each not counted; beyond it 503. */
  bodiesBytes: 134_217_728,
  jsonDepth: 64,
  jsonNodes: 200_000,
  messages: 1_000,
  decisions: 32,
  /** Requests at once; more are told to come back. */
  concurrent: 100,
  requestMs: 600_000,
  /** How long a reader may leave its socket full. */
  stallMs: 30_000,
}

export interface ChatHandler {
  (req: IncomingMessage, res: ServerResponse): Promise<boolean>
  /** As it was given: whose an `Idempotency-Key` is. */
  readonly authenticate: ChatOptions['authenticate']
  /** New requests are answered 503 from now on. */
  drain(): void
  readonly draining: boolean
  /** Requests under way. */
  readonly active: number
  /** Ends what is under way with `shutting_down`; `hard` stops approved tools too. */
  abortAll(hard?: boolean): void
}

/** Thrown by `authenticate` or `validateContext`: 403. */
export class Forbidden extends DcafError {
  override name = 'Forbidden'
  constructor(message = 'Forbidden') {
    super('forbidden', message)
  }
}

/** Throws for what no request could mend: a durable store without keys, an approver nobody can name, a bad tool. */
export function chatHandler(agent: Agent | AgentFunction, options: ChatOptions = {}): ChatHandler {
  const door = doorOf(agent, options)
  const { basePath = '/api' } = options
  const routes = new Map<string, 'chat' | 'stream' | 'health'>([
    ['/health', 'health'],
    [`${basePath}/chat`, 'chat'],
    [`${basePath}/sendMessage`, 'chat'],
    [`${basePath}/chat-stream`, 'stream'],
    [`${basePath}/sendMessageStream`, 'stream'],
  ])

  function handler(req: IncomingMessage, res: ServerResponse): Promise<boolean> {
    const url = req.url ?? ''
    const query = url.indexOf('?')
    const path = query < 0 ? url : url.slice(0, query)
    const route = routes.get(path)
    if (!route) return notOurs
    const ask = new Ask(door, res, path)
    if (route !== 'health' && req.method === 'POST') return serve(ask, route === 'stream')
    return serveOther(ask, route, url.slice(path.length))
  }

  const controls: PropertyDescriptorMap = {
    authenticate: { value: options.authenticate },
    drain: { value: () => drain(door) },
    draining: { get: () => door.draining },
    active: { get: () => door.live.length },
    abortAll: { value: (hard = false) => abortAll(door, hard) },
  }
  return Object.defineProperties(handler, controls) as ChatHandler
}

const notOurs = Promise.resolve(false)

/** Health, and methods that a path does not take. */
async function serveOther(ask: Ask, route: string, query: string): Promise<true> {
  const { door, res, requestId } = ask
  const methods = route === 'health' ? ['GET', 'HEAD'] : ['POST']
  if (door.log && route !== 'health') ask.log = await door.log
  if (!methods.includes(`${res.req.method}`)) {
    const allow = methods.join(', ')
    const problem = new DcafError('invalid_request', `Use ${allow} here.`)
    sendJson(ask, 405, problemOf(problem, requestId), { allow })
  } else {
    const ready = !(door.draining && new URLSearchParams(query).has('ready'))
    sendJson(ask, ready ? 200 : 503, { status: ready ? 'ok' : 'draining' })
  }
  ask.log?.request(ask)
  return true
}

function drain(door: Door): void {
  door.draining = true
}

function abortAll(door: Door, hard: boolean): void {
  for (const ask of [...door.live]) ask.stop(shuttingDown())
  if (!hard) return
  door.hard.abort(shuttingDown())
  door.hard = new AbortController()
}

/** What all requests share. */
type Door = ReturnType<typeof doorOf>

function doorOf(agent: Agent | AgentFunction, options: ChatOptions) {
  checkStart(agent, options)
  const { keys, bindContext, grants, trustClient, session: mode = 'plain', log, onEvent } = options
  const store = options.store ?? memoryStore()
  const authority = authorityOf(store, keys)
  const given = typeof agent === 'object' ? agent.limits : {}
  const limits: ChatLimits = { ...runLimits, ...doorLimits, ...given, ...options.limits }
  return {
    agent,
    options,
    limits,
    /** Of every run. */
    shared: { store, keys, bindContext, grants, trustClient, limits: options.limits },
    /** After its signal a run may go on for so long: an approved tool finishes. */
    lastMs: 1_000 + Math.max(limits.toolMs, ...timeoutsOf(agent)),
    /** A list: what a Set no longer holds, its old tables still keep from the garbage collector's quick rounds. */
    live: [] as Ask[],
    /** Of all that is under way: stops approved tools too. */
    hard: new AbortController(),
    draining: false,
    /** Requests whose body is read and whose run is under way: a slow sender takes no place. */
    admitted: 0,
    /** Bytes of bodies under way, as far as they count. */
    bodies: 0,
    clock: undefined as NodeJS.Timeout | undefined,
    // What only some ask for is loaded once, here; where a file does not load, no request that needs it is answered.
    speak: speakerOf(agent),
    keeper:
      mode === 'plain'
        ? undefined
        : import('./sessions.ts').then((m) => m.keeper(mode, authority, options.sessionKey)),
    routed: options.router && import('./router.ts').then((m) => m.routerOf(options)),
    log: log || onEvent ? import('./log.ts').then((m) => m.logOf(options)) : undefined,
  }
}

type Speaker = (input: RunInput, options: RunOptions, mask: Mask) => Promise<Answer>

function speakerOf(agent: Agent | AgentFunction): Speaker {
  if (typeof agent === 'object') return (input, options) => run(agent, input, options)
  const file = import('./function.ts')
  return async (input, options, mask) => (await file).heard(agent, input, options, mask)
}

/** How a session comes and goes where it does not travel readable; sessions.ts makes them. */
export interface Keeper {
  open(incoming: Record<string, unknown>, at: At): Promise<Session>
  close(session: Session, at: At): Promise<Record<string, unknown>>
}
/** A request, as far as a session is concerned. */
export interface At {
  agent: string
  principal: string | undefined
  threadId: string | undefined
  context: PlatformContext
  mask: Mask
  warn(message: string): void
}

const unmasked = masker([])

/** One request, and what is known of it so far. */
class Ask implements At {
  readonly door: Door
  readonly res: ServerResponse
  readonly path: string
  readonly agent: string
  readonly started = performance.now()
  readonly #end = new AbortController()
  /** Client gone, deadline, stall, shutdown. */
  readonly signal = this.#end.signal
  /** Told once why the request ends early. */
  onStop: ((reason: DcafError) => void) | undefined
  /** Its place among those under way. */
  at = -1
  isAdmitted = false
  requestId: string
  principal: string | undefined
  threadId: string | undefined
  context: PlatformContext = {}
  mask = unmasked
  /** The request's scalar fields, for the client's correlation. */
  echo: Record<string, unknown> | undefined
  stream: Lines | undefined
  log: Awaited<Door['log']>
  outcome: Record<string, unknown> | undefined

  constructor(door: Door, res: ServerResponse, path: string) {
    const given = res.req.headers['x-request-id']
    this.door = door
    this.res = res
    this.path = path
    this.agent = door.agent.name
    this.requestId = isPlainId(given) ? given : randomId()
  }

  stop(reason: DcafError): void {
    if (this.signal.aborted) return
    this.#end.abort(reason)
    this.onStop?.(reason)
  }

  /** What `work` gives, or why the request ended, which whoever works may not heed, `graceMs` after it. */
  inTime<T>(work: T | Promise<T>, graceMs = 0): Promise<T> {
    return new Promise((resolve, reject) => {
      let timer: NodeJS.Timeout | undefined
      this.onStop = (reason) => {
        timer = setTimeout(reject, graceMs, reason)
      }
      if (this.signal.aborted) this.onStop(this.signal.reason)
      const end = (settle: typeof reject) => (value: unknown) => {
        this.onStop = undefined
        clearTimeout(timer)
        settle(value)
      }
      Promise.resolve(work).then(end(resolve), end(reject))
    })
  }

  warn(message: string): void {
    this.log?.warn(this, message)
  }
}

function isPlainId(id: unknown): id is string {
  return typeof id === 'string' && /^[\w.-]{1,64}$/.test(id)
}

function checkStart(agent: Agent | AgentFunction, options: ChatOptions): void {
  const wrong = (problem: string) => new DcafError('invalid_argument', problem)
  if (options.session === 'server' && !options.store) throw wrong("session: 'server' needs a store")
  if (typeof agent === 'function') return
  checkAgent(agent)
  for (const tool of agent.tools ?? []) {
    if (tool.agent) checkStart(tool.agent as Agent, options)
    if (tool.approver === 'requester' && tool.quorum === 1) continue
    if (!options.authenticate || !options.store)
      throw wrong(
        `${tool.name} says who may approve (approver, quorum), so chatHandler needs authenticate and a store`,
      )
  }
}

function timeoutsOf(agent: Agent | AgentFunction): number[] {
  const tools = typeof agent === 'function' ? [] : (agent.tools ?? [])
  return tools.flatMap((t) => (t.agent ? timeoutsOf(t.agent as Agent) : (t.timeoutMs ?? 0)))
}

// ---------------------------------------------------------------- one request

/** Never throws: what went wrong is answered. */
async function serve(ask: Ask, streams: boolean): Promise<true> {
  const { door, res } = ask
  const { limits, live } = door
  if (door.log) ask.log = await door.log // no request outruns it
  door.clock ??= clockOf(door, limits.requestMs)
  res.on('close', () => res.writableFinished || ask.stop(gone()))
  ask.at = live.push(ask) - 1
  try {
    if (res.destroyed) throw gone()
    if (door.draining) throw shuttingDown()
    admit(door)
    await answer(ask, streams)
  } catch (error) {
    await failed(ask, error)
  } finally {
    leave(ask)
  }
  ask.log?.request(ask)
  return true
}

/** One for all requests: to set and clear a timer for each would cost more than all that it is for. */
function clockOf(door: Door, ms: number): NodeJS.Timeout {
  return setTimeout(look, Math.min(Math.max(Math.ceil(ms), 1), 2 ** 31 - 1), door).unref()
}

function look(door: Door): void {
  const { live, limits } = door
  const now = performance.now()
  let oldest = now
  for (const ask of [...live]) {
    if (now - ask.started >= limits.requestMs) ask.stop(reached('requestMs', limits))
    else oldest = Math.min(oldest, ask.started)
  }
  door.clock = live.length > 0 ? clockOf(door, oldest + limits.requestMs - now) : undefined
}

const gone = () => new DcafError('aborted', 'the client went away')
const shuttingDown = () =>
  new DcafError('shutting_down', 'The server is shutting down.', { retryable: true })

/** What is said where a limit is reached; N is what it is set to. */
const limitWords = {
  requestMs: ['deadline', 'The request took longer than N ms (limit requestMs).'],
  stallMs: ['aborted', 'The client read nothing for N ms (limit stallMs).'],
  bodyBytes: ['body_too_large', 'The request body has more than N bytes (limit bodyBytes).'],
  bodiesBytes: ['busy', 'The server reads N bytes of bodies at once (limit bodiesBytes).'],
  concurrent: [
    'busy',
    'The server answers N requests at once (limit concurrent). Try again later.',
  ],
} as const
function reached(limit: keyof typeof limitWords, limits: ChatLimits): DcafError {
  const [code, words] = limitWords[limit]
  const later = code === 'busy' ? { retryable: true, retryAfterMs: 1000 } : {}
  return new DcafError(code, words.replace('N', `${limits[limit]}`), later)
}

function admit({ admitted, limits }: Door): void {
  if (admitted >= limits.concurrent) throw reached('concurrent', limits)
}

function leave({ door, at, isAdmitted }: Ask): void {
  const last = door.live.pop() as Ask
  if (last.at !== at) door.live[at] = last
  last.at = at
  if (isAdmitted) door.admitted--
}

/** Throws where nothing ran that the client was not told of. */
async function answer(ask: Ask, streams: boolean): Promise<void> {
  const { door, res, signal } = ask
  const { limits, options, shared } = door
  checkHead(res.req, limits)
  if (options.authenticate) {
    const who: unknown = await ask.inTime(options.authenticate(res.req))
    if (typeof who !== 'string' || who === '')
      throw new DcafError('unauthenticated', 'Who asks is not known.')
    ask.principal = who
  }
  const body = parse(await readBody(ask), limits)
  admit(door)
  door.admitted++
  ask.isAdmitted = true
  const thread = wire.readThread(body, limits.messages)
  const last = thread.at(-1) as (typeof thread)[number]
  const items = wire.readItems(last.message, last.index, limits.decisions)
  know(ask, body as Record<string, unknown>, thread)
  const { context, threadId, principal } = ask
  if (options.validateContext) await ask.inTime(options.validateContext(context))
  const newest = thread.findLast(({ message: { data } }) => data && Object.hasOwn(data, 'session'))
  const incoming = newest?.message.data?.session ?? undefined
  const paused = typeof incoming?.$run === 'string' ? incoming.$run : undefined
  const session = door.keeper
    ? await ask.inTime((await door.keeper).open(incoming ?? {}, ask))
    : readSession(incoming, `/messages/${newest?.index}/data/session`)
  if (streams) ask.stream = new Lines(ask)
  const { stream } = ask
  if (door.routed && !items.some((item) => item.said)) {
    const isAnswered = await door.routed
    const messages = thread.map(({ message }) => message)
    if (!(await ask.inTime(isAnswered(messages, context, body))))
      return finish(ask, { text: '', session, paused })
  }
  const work = door.speak(
    inputOf(ask, thread, items, paused),
    {
      ...shared,
      session,
      context,
      threadId,
      principal,
      signal,
      hardSignal: door.hard.signal,
      onEvent: ask.log && ((fact) => ask.log?.fact(ask, fact)),
      emit: stream && ((event) => stream.relay(event)),
      // What `secrets` names, a child's too, is masked in what the door itself says: session, errors, log.
      onSecrets(values) {
        const [before, own] = [ask.mask, masker(secretsOf({}, values))]
        ask.mask = (text) => own(before(text))
      },
    },
    ask.mask,
  )
  const ending = finish(ask, await ask.inTime(work, door.lastMs))
  if (ending) await ending
}

// ---------------------------------------------------------------- in

const json = /^\s*application\/json\s*(?:;|$)/i
const notUtf8 = /;\s*charset=(?!"?utf-?8"?\s*(?:;|$))/i

/** Refused before a byte of the body is read. */
function checkHead({ headers }: IncomingMessage, limits: ChatLimits): void {
  const { 'content-type': type = '', 'content-encoding': encoding = 'identity' } = headers
  const wrong = (problem: string) => new DcafError('unsupported_media_type', problem)
  if (!json.test(type) || notUtf8.test(type))
    throw wrong('Content-Type must be application/json in UTF-8.')
  if (encoding.toLowerCase() !== 'identity')
    throw wrong('Content-Encoding must be absent or identity.')
  if (Number(headers['content-length']) > limits.bodyBytes) throw reached('bodyBytes', limits)
}

/** Beyond it a body counts: a few small ones pass beside whoever sends many large ones slowly. */
const uncounted = 65_536

function readBody(ask: Ask): Promise<Buffer> {
  const { door, signal } = ask
  const { limits } = door
  const { req } = ask.res
  return new Promise((resolve, reject) => {
    const early = 'the body was read before: what parses bodies (express.json()) must come after'
    if (req.readableEnded) return reject(new DcafError('internal_error', early))
    const chunks: Buffer[] = []
    let size = 0
    const counted = (): number => Math.max(0, size - uncounted)
    const close = (): void => {
      door.bodies -= counted()
      ask.onStop = undefined
    }
    const onEnd = (): void => {
      close()
      resolve(chunks.length === 1 ? (chunks[0] as Buffer) : Buffer.concat(chunks))
    }
    const giveUp = (error: DcafError): void => {
      close()
      req.off('data', onData).off('end', onEnd)
      reject(error)
    }
    const onData = (chunk: Buffer): void => {
      door.bodies -= counted()
      size += chunk.length
      door.bodies += counted()
      chunks.push(chunk)
      if (size <= limits.bodyBytes && door.bodies <= limits.bodiesBytes) return
      req.pause()
      giveUp(reached(size > limits.bodyBytes ? 'bodyBytes' : 'bodiesBytes', limits))
    }
    req.on('data', onData).on('end', onEnd)
    ask.onStop = giveUp
    if (signal.aborted) giveUp(signal.reason)
  })
}

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

function parse(bytes: Buffer, limits: ChatLimits): unknown {
  let body: unknown
  try {
    body = JSON.parse(utf8.decode(bytes))
  } catch {
    throw new DcafError('invalid_json', 'The request body is not JSON in UTF-8.')
  }
  const fault = unsound(body, limits.jsonDepth, limits.jsonNodes)
  if (fault) throw new DcafError('invalid_json', `The request body is refused: ${fault}.`)
  return body
}

type Thread = ReturnType<typeof wire.readThread>

/** The context: the request's fields under the newest that is not empty of a user's message. And what follows from it. */
function know(ask: Ask, body: Record<string, unknown>, thread: Thread): void {
  const { messages: _, ...fields } = body
  const newest = thread.findLast(
    ({ message: m }) => m.role === 'user' && Object.keys(m.platform_context ?? {}).length > 0,
  )
  const context: PlatformContext = { ...fields, ...newest?.message.platform_context }
  const uploads = thread.at(-1)?.message.data?.user_file_uploads
  if (uploads?.length) context.user_file_uploads = uploads
  if (isPlainId(context.request_id)) ask.requestId = context.request_id
  context.request_id = ask.requestId
  ask.context = context
  ask.mask = maskOf(context)
  const { thread_id } = context
  ask.threadId = typeof thread_id === 'number' ? String(thread_id) : thread_id
  for (const [key, value] of Object.entries(fields)) {
    if (secretKeys.has(key) || (typeof value === 'object' && value !== null)) continue
    ask.echo ??= {}
    ask.echo[key] = typeof value === 'string' ? ask.mask(value) : value
  }
}

function readSession(incoming: Record<string, unknown> | undefined, path: string): Session {
  try {
    return new Session(incoming)
  } catch {
    throw wire.invalid(path, 'is nested too deep for a session')
  }
}

/** The thread, its decisions and its reports, as a run reads them. */
function inputOf(ask: Ask, thread: Thread, items: wire.WireItem[], paused?: string): RunInput {
  const { mask, door } = ask
  const messages = thread.map(({ message }) => chatOf(message, mask))
  if (thread.length === 1 && items.length === 0)
    return { messages, decisions: [], paused, proposed: [] }
  const words = messages.at(-1)?.content.trim() || 'not approved'
  const decides = items.some((item) => item.said)
  const known = new Map<string, wire.Proposed>()
  let proposed = new Map<string, wire.Proposed>()
  for (const { message } of thread.slice(0, -1)) {
    const found = wire.proposedIn(message)
    if (message.role === 'assistant') proposed = found
    for (const [id, call] of found) known.set(id, call)
  }
  const decisions: Decision[] = []
  for (const { said, reason = words, at: _, ...item } of items) {
    const { id, name = '', input = {}, path } = item
    const shown = known.get(id)
    const told = { path: path ?? shown?.path, known: shown, implicit: !decides }
    if (said || !decides)
      decisions.push({ ...item, ...told, reason: item.approve ? undefined : reason })
    else if (shown || name) proposed.set(id, shown ?? { name, input, ...(path && { path }) })
  }
  const open = [...proposed].slice(-door.limits.decisions).map(([id, call]) => ({ id, ...call }))
  return { messages, decisions, paused, proposed: open }
}

function chatOf(message: wire.WireMessage, mask: Mask) {
  const reported = wire.reportedIn(message)
  const title = 'Calls that the client reports as done'
  const data = reported.length > 0 ? dataBlock(title, reported, mask) : undefined
  return { role: message.role, content: message.content ?? '', data }
}

// ---------------------------------------------------------------- out

type Answer = Partial<Omit<RunResult, 'session' | 'error'>> & {
  text: string
  session?: RunOptions['session']
  error?: unknown
}

/** A promise only where the session is kept, or the client does not keep up. */
function finish(ask: Ask, answer: Answer): void | Promise<void> {
  const { door, mask } = ask
  if (door.keeper) return finishKept(ask, answer, door.keeper)
  let session: Record<string, unknown> = {}
  let fault: DcafError | undefined
  try {
    session = maskJson(sessionOf(answer).toJSON(), mask) as typeof session
  } catch (thrown) {
    fault = toError(thrown)
  }
  return tell(ask, answer, session, fault)
}

async function finishKept(ask: Ask, answer: Answer, keeper: Promise<Keeper>): Promise<void> {
  let session: Record<string, unknown> = {}
  let fault: DcafError | undefined
  try {
    const closing = (await keeper).close(sessionOf(answer), ask)
    session = await ask.inTime(closing, 1_000)
  } catch (thrown) {
    fault = toError(thrown)
  }
  return tell(ask, answer, session, fault)
}

function sessionOf({ session }: Answer): Session {
  return session instanceof Session ? session : new Session(session)
}

/** Throws where nothing ran that the client was not told of. */
function tell(
  ask: Ask,
  answer: Answer,
  session: Record<string, unknown>,
  fault: DcafError | undefined,
): void | Promise<void> {
  const { stream, requestId, door } = ask
  const { executed = [], pending = [], usage = noUsage, stop = 'end', runId = requestId } = answer
  const error = answer.error === undefined ? fault : toError(answer.error)
  const stop_reason = error ? 'error' : stop
  ask.outcome = { run_id: runId, stop_reason, ...(error && { code: error.code }) }
  if (error && executed.length === 0 && !stream?.started) throw error
  if (error) ask.log?.failure(ask, error)
  if (answer.paused) session.$run = answer.paused
  const replayed = executed.filter((call) => call.replayed).map((call) => [call.id, 'replayed'])
  const meta = {
    run_id: runId,
    has_pending_approvals: pending.length > 0,
    usage: {
      input_tokens: usage.inputTokens,
      output_tokens: usage.outputTokens,
      cache_read_tokens: usage.cacheReadTokens,
      cache_write_tokens: usage.cacheWriteTokens,
    },
    approvals: replayed.length > 0 ? Object.fromEntries(replayed) : undefined,
    request_context: ask.echo,
  }
  const problem = error && problemOf(error, requestId)
  if (stream) {
    const untold = executed.filter((call) => !stream.told.has(call))
    const lists = pending.length + untold.length > 0 ? listsOf(pending, untold) : undefined
    const meta_data = { session, ...meta }
    const done = { type: 'done', stop_reason, meta_data }
    const last = problem ? errorLine(problem, executed.length > 0 ? meta_data : undefined) : done
    if (!lists && (stream.spoke || !answer.text)) return stream.end(last)
    return tellRest(stream, lists ?? noLists, answer.text, last)
  }
  const { name } = door.agent
  const is_complete = pending.length === 0 && !error
  const lists = pending.length + executed.length > 0 ? listsOf(pending, executed) : noLists
  sendJson(ask, 200, {
    role: 'assistant',
    content: answer.text,
    data: { ...lists, url_configs: [], user_file_uploads: [], session },
    meta_data: { ...meta, is_complete, stop_reason, error: problem },
    timestamp: new Date().toISOString(),
    user: null,
    agent: name ? { name, id: name } : null,
  })
}

async function tellRest(stream: Lines, lists: Lists, text: string, last: wire.WireEvent) {
  await stream.tellAll(lists, ['executed_tool_calls', 'executed_cmds', 'executed_approvals'])
  if (!stream.spoke && text) await stream.write({ type: 'text_delta', text })
  await stream.tellAll(lists, ['cmds', 'approvals', 'tool_calls'])
  return stream.end(last)
}

type Lists = Record<string, object[]>

/** All lists of an answer. */
function listsOf(pending: PendingCall[], executed: ExecutedCall[]): Lists {
  const all: Lists = {}
  for (const list of wire.lists) {
    const waits = ({ type }: PendingCall) =>
      list === 'approvals' || (type === 'command') === (list === 'cmds')
    const cameIn = ({ lists = ['tool_calls'] }: ExecutedCall) => lists.includes(list)
    all[list] = pending.filter(waits).map((call) => pendingAs(list, call))
    all[`executed_${list}`] = executed.filter(cameIn).map((call) => executedAs(list, call))
  }
  return all
}

const noLists = listsOf([], [])

/** What is undefined is no JSON, and so left out. */
function pendingAs(list: wire.WireList, call: PendingCall) {
  const { id, type, name, input, description, inputDescription: input_description } = call
  const { command, files = null } = (input ?? {}) as { command?: string; files?: unknown }
  const { effectiveInput: effective_input, expiresAt: expires_at, path, votes } = call
  const { preview, reasons } = call
  const own = {
    tool_calls: { name, input, tool_description: description, input_description, intent: null },
    approvals: { type, name, input, description, intent: null },
    cmds: { command, files },
  }
  const ours = { effective_input, preview, reasons, expires_at, path, votes }
  return { id, ...own[list], execute: false, rejection_reason: null, ...ours }
}

function executedAs(list: wire.WireList, call: ExecutedCall) {
  const { id, type, name, input, output, outcome } = call
  if (list === 'tool_calls') return { id, name, input, output }
  const said = outcome === 'ok' ? output : output.replace(/^Tool rejected: /, 'Rejected: ')
  if (list === 'approvals') return { id, type, name, input, output: said }
  const { command = '' } = (input ?? {}) as { command?: string }
  return { id, command, output: said }
}

/** Characters that a burst may have waiting for the end of its tick. */
const burst = 65_536
/** Bytes that the client has not read, beyond which hints are left out. */
const farBehind = 1_048_576

/** The one writer of NDJSON: what is said in one tick goes out as one string, and a full socket holds the run. */
class Lines {
  readonly #ask: Ask
  #waiting = ''
  #draining: Promise<void> | undefined
  #ended = false
  /** Outcomes that were sent. */
  readonly told = new Set<ExecutedCall>()
  started = false
  /** Some text was sent. */
  spoke = false

  constructor(ask: Ask) {
    this.#ask = ask
  }

  /** Pending calls and the end are told from the result, once; a function's agents may each have said theirs. */
  relay(event: RunEvent): Promise<void> | undefined {
    if (event.type === 'text_delta') return this.write(event)
    // Nobody waits for a tool's: where the reader is far behind, they are left out.
    if (event.type === 'intermittent_update')
      return this.#ask.res.writableLength > farBehind ? undefined : this.write(event)
    if (event.type === 'executed_tool_calls')
      return this.tell('tool_calls', event.executedToolCalls)
    if (event.type === 'executed_commands') return this.tell('cmds', event.executedCmds)
    if (event.type === 'executed_approvals') return this.tell('approvals', event.executedApprovals)
    return undefined
  }

  /** A promise only while the client does not keep up. */
  write(event: wire.WireEvent): Promise<void> | undefined {
    const { res } = this.#ask
    if (this.#ended || res.writableEnded) return undefined // a run that nobody waits for any more
    this.started = true
    if (event.type === 'text_delta') this.spoke = true
    if (res.destroyed) return undefined
    if (!this.#waiting) process.nextTick(() => this.#flush())
    this.#waiting += wire.line(event)
    if (this.#waiting.length > burst) this.#flush()
    return this.#draining
  }

  /** Outcomes while the run goes on. */
  tell(list: wire.WireList, calls: ExecutedCall[]): Promise<void> | undefined {
    for (const call of calls) this.told.add(call)
    const shown = calls.map((call) => executedAs(list, call))
    return this.#list(`executed_${list}`, shown)
  }

  async tellAll(lists: Lists, order: string[]): Promise<void> {
    for (const list of order) if (lists[list]?.length) await this.#list(list, lists[list])
  }

  /** The events of commands are called otherwise than their lists. */
  #list(list: string, calls: object[]): Promise<void> | undefined {
    const type = list.replace('cmds', 'commands')
    return this.write({ type, [list === 'cmds' ? type : list]: calls })
  }

  #flush(isLast = false): void {
    const { res, requestId } = this.#ask
    const text = this.#waiting
    if (res.destroyed || (!text && !isLast)) return
    this.#waiting = ''
    if (!res.headersSent) res.writeHead(200, { ...ndjson, ...common, 'x-request-id': requestId })
    if (isLast) end(this.#ask, text)
    else if (!res.write(text))
      this.#draining ??= unread(this.#ask, () => {
        this.#draining = undefined
      })
  }

  /** The terminal event. */
  end(event: wire.WireEvent): void | Promise<void> {
    const behind = this.write(event)
    this.#ended = true
    return behind ? behind.then(() => this.#flush(true)) : this.#flush(true)
  }
}

const ndjson = { 'content-type': 'application/x-ndjson', 'x-accel-buffering': 'no' }
const common = { 'cache-control': 'no-store', 'x-content-type-options': 'nosniff' }

function sendJson(ask: Ask, status: number, body: unknown, more: OutgoingHttpHeaders = {}): void {
  const { res, requestId } = ask
  if (res.headersSent || res.destroyed) return
  const text = JSON.stringify(body)
  const length = Buffer.byteLength(text)
  const own = { 'content-type': 'application/json', 'content-length': length, ...common }
  res.writeHead(status, { ...own, 'x-request-id': requestId, ...more })
  end(ask, res.req.method === 'HEAD' ? '' : text)
}

function end(ask: Ask, text: string): void {
  ask.res.end(text)
  if (ask.res.writableLength > 0) void unread(ask)
}

/** Until the client has read what it was sent, or is gone; one that reads nothing for `stallMs` is cut off. */
function unread(ask: Ask, onRead = () => {}): Promise<void> {
  const { res, door } = ask
  const { promise, resolve } = Promise.withResolvers<void>()
  const timer = setTimeout(() => {
    ask.stop(reached('stallMs', door.limits))
    res.destroy()
  }, door.limits.stallMs)
  const done = (): void => {
    clearTimeout(timer)
    res.off('drain', done).off('close', done)
    onRead()
    resolve()
  }
  res.on('drain', done).on('close', done)
  return promise
}

// ---------------------------------------------------------------- failure

/** The status of each, and what a client is told where the words of the error are not for it. */
const problems: Partial<Record<ErrorCode, [status: number, sentence?: string]>> = {
  invalid_json: [400],
  messages_missing: [400],
  messages_empty: [400],
  unauthenticated: [401, 'Unauthenticated'],
  forbidden: [403, 'Forbidden'],
  body_too_large: [413],
  unsupported_media_type: [415],
  invalid_request: [422],
  context_too_long: [422, 'The conversation is too long for the model.'],
  busy: [503],
  shutting_down: [503],
  store_unavailable: [503, 'The store is not available. Nothing that needs it was done.'],
  provider_overloaded: [503, 'The model is overloaded. Try again later.'],
  provider_error: [502, 'The model could not answer.'],
  provider_invalid: [502, 'The model answered with something that could not be read.'],
  provider_truncated: [502, 'The answer of the model ended too early.'],
  provider_auth: [502, 'The server is not allowed to use the model.'],
  provider_config: [502, 'The server asked the model for something it does not offer.'],
  provider_timeout: [504, 'The model took too long to answer.'],
  deadline: [504],
}
const unknown: [status: number, sentence: string] = [500, 'Internal error']

type Problem = ReturnType<typeof problemOf>

function problemOf(error: DcafError, request_id: string) {
  const [, detail = error.message] = problems[error.code] ?? unknown
  const code: ErrorCode = problems[error.code] ? error.code : 'internal_error'
  const retryable = code === error.code && error.retryable
  const errors = error instanceof wire.WireError ? error.problems : undefined
  return { detail, code, retryable, request_id, errors }
}
function errorLine({ detail, ...rest }: Problem, meta_data?: object): wire.WireEvent {
  return { type: 'error', error: detail, ...rest, meta_data }
}

/** Nothing ran that the client was not told of: an error with its true status, or the last line of a stream. */
async function failed(ask: Ask, thrown: unknown): Promise<void> {
  const { res, stream } = ask
  const error = toError(thrown)
  const problem = problemOf(error, ask.requestId)
  const [status] = problems[error.code] ?? unknown
  ask.outcome = { ...ask.outcome, code: error.code === 'aborted' ? error.code : problem.code }
  if (status >= 500) ask.log?.failure(ask, error)
  if (res.destroyed) return
  if (stream?.started) return stream.end(errorLine(problem))
  const wait = Math.max(1, Math.ceil((error.retryAfterMs ?? 1000) / 1000))
  sendJson(ask, status, problem, status === 503 ? { 'retry-after': `${wait}` } : {})
  // A body nobody will read: the answer must arrive before the connection ends, so it lingers unread for a moment.
  const { req } = res
  if (!req.complete) setTimeout(() => req.complete || req.destroy(), 1000).unref()
}

function toError(thrown: unknown): DcafError {
  if (thrown instanceof DcafError) return thrown
  const message = thrown instanceof Error ? thrown.message : printed(thrown)
  return new DcafError('internal_error', message, { cause: thrown })
}

/** For a log: whatever was thrown, even what throws when it is looked at. */
export function printed(thrown: unknown): string {
  try {
    return inspect(thrown)
  } catch {
    return 'an unprintable value'
  }
}
