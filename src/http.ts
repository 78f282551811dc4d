// The door: a node:http handler that translates the HelpDesk wire into a run and back. Knows no vendor and no tool;
// starts nothing, listens on nothing. The handler resolves to false, having touched nothing, where a path is not its own.
// Covers: body and time limits, back-pressure, one terminal event, who asks. Does not cover: TLS, CORS, Host (door.ts).

import { randomUUID } from 'node:crypto'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { inspect } from 'node:util'
import {
  type Agent,
  authorityOf,
  type ChatMessage,
  checkAgent,
  type ExecutedCall,
  inTime,
  type Listener,
  type PendingCall,
  type RunEvent,
  type RunFact,
  type RunInput,
  type RunLimits,
  type RunOptions,
  type RunResult,
  run,
  runLimits,
} from './agent.ts'
import type { Decision, Grants } from './approval.ts'
import {
  type Mask,
  masker,
  maskJson,
  maskOf,
  secretKeys,
  secretsOf,
  tracing,
  unsound,
} from './mask.ts'
import { dataBlock } from './messages.ts'
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
  onEvent?: Listener
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

export interface ChatLimits extends RunLimits {
  bodyBytes: number
  /** Of all bodies that are being read, the first 64 KiB of each not counted; beyond it 503. Default 128 MiB. */
  bodiesBytes: number
  jsonDepth: number
  jsonNodes: number
  messages: number
  decisions: number
  /** Requests at once; more are told to come back. */
  concurrent: number
  requestMs: number
  /** How long a reader may leave its socket full. */
  stallMs: number
}
const doorLimits = {
  bodyBytes: 4_194_304,
  bodiesBytes: 134_217_728,
  jsonDepth: 64,
  jsonNodes: 200_000,
  messages: 1_000,
  decisions: 32,
  concurrent: 100,
  requestMs: 600_000,
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

interface Ask {
  req: IncomingMessage
  res: ServerResponse
  requestId: string
  streams: boolean
  /** Client gone, deadline, stall, shutdown. */
  signal: AbortSignal
  principal: string | undefined
  context?: PlatformContext
  mask?: Mask
  /** The request's scalar fields, for the client's correlation. */
  echo?: Record<string, unknown> | undefined
  stream?: Lines | undefined
  outcome?: Record<string, unknown>
  admitted?: boolean
}
type Live = { stop: AbortController; hard: AbortController }

/** Throws for what no request could mend: a durable store without keys, an approver nobody can name, a bad tool. */
export function chatHandler(agent: Agent | AgentFunction, options: ChatOptions = {}): ChatHandler {
  const store = options.store ?? memoryStore()
  const { basePath = '/api', trustClient } = options
  const limits: ChatLimits = {
    ...runLimits,
    ...doorLimits,
    ...(typeof agent === 'object' && agent.limits),
    ...options.limits,
  }
  checkStart(agent, options)
  const authority = authorityOf(store, options.keys)
  const mode = options.session ?? 'plain'
  const keeper =
    mode === 'plain'
      ? undefined
      : import('./sessions.ts').then((m) => m.keeper(mode, authority, options.sessionKey))
  const lastMs = 1_000 + Math.max(limits.toolMs, ...timeoutsOf(agent))
  const door: Door = {
    ...options,
    options,
    agent,
    store,
    limits,
    keeper,
    lastMs,
    admitted: 0,
    bodies: 0,
  }
  const { stallMs } = limits
  if (trustClient)
    note(door, undefined, 'warn', 'trust_client', {
      message: 'approvals are accepted without proof',
    })
  const routes = new Map<string, 'chat' | 'stream' | 'health'>([
    ['/health', 'health'],
    [`${basePath}/chat`, 'chat'],
    [`${basePath}/sendMessage`, 'chat'],
    [`${basePath}/chat-stream`, 'stream'],
    [`${basePath}/sendMessageStream`, 'stream'],
  ])
  const live = new Set<Live>()
  let draining = false

  async function handler(req: IncomingMessage, res: ServerResponse): Promise<boolean> {
    const [path = '', query] = (req.url ?? '').split('?', 2)
    const route = routes.get(path)
    if (!route) return false
    const given = req.headers['x-request-id']
    const requestId = typeof given === 'string' && idPattern.test(given) ? given : randomUUID()
    res.setHeader('x-request-id', requestId)
    const started = performance.now()
    const each: Live = { stop: new AbortController(), hard: new AbortController() }
    const { signal } = each.stop
    const streams = route === 'stream'
    const ask: Ask = { req, res, requestId, streams, signal, principal: undefined }
    const allow = route === 'health' ? 'GET, HEAD' : 'POST'
    if (!allow.split(', ').includes(req.method ?? '')) {
      res.setHeader('allow', allow)
      const problem = new DcafError('invalid_request', `Use ${allow} here.`)
      sendJson(res, 405, problemOf(problem, requestId), stallMs)
    } else if (route === 'health') {
      const ready = !(draining && new URLSearchParams(query).has('ready'))
      sendJson(res, ready ? 200 : 503, { status: ready ? 'ok' : 'draining' }, stallMs)
    } else {
      live.add(each)
      try {
        if (draining)
          throw new DcafError('shutting_down', 'the server is shutting down', { retryable: true })
        admit(door)
        await answer(door, ask, each)
      } catch (error) {
        await failed(door, ask, error)
      }
      live.delete(each)
      if (ask.admitted) door.admitted--
    }
    if (route !== 'health')
      note(door, ask, 'info', 'request', {
        method: req.method,
        path,
        ...(res.headersSent && { status: res.statusCode }),
        duration_ms: Math.round(performance.now() - started),
        ...ask.outcome,
      })
    return true
  }

  const state = {
    authenticate: { value: options.authenticate },
    drain: {
      value: () => {
        draining = true
      },
    },
    draining: { get: () => draining },
    active: { get: () => live.size },
    abortAll: {
      value: (hard = false) => {
        const reason = new DcafError('shutting_down', 'The server is shutting down.', {
          retryable: true,
        })
        for (const each of live) {
          each.stop.abort(reason)
          if (hard) each.hard.abort(reason)
        }
      },
    },
  }
  return Object.defineProperties(handler, state) as ChatHandler
}

type Door = ChatOptions & {
  agent: Agent | AgentFunction
  store: Store
  /** After its signal a run may go on for so long: an approved tool finishes. */
  lastMs: number
  limits: ChatLimits
  options: ChatOptions
  /** Requests whose body is read and whose run is under way: a slow sender takes no place. */
  admitted: number
  /** Bytes of bodies under way, as far as they count. */
  bodies: number
  keeper: Promise<Keeper> | undefined
}
/** How a session comes and goes where it does not travel readable; sessions.ts makes them. */
export interface Keeper {
  open(incoming: Record<string, unknown>, at: At): Promise<Session>
  close(session: Session, at: At): Promise<Record<string, unknown>>
}
export type At = {
  agent: string
  principal: string | undefined
  threadId: string | undefined
  context: PlatformContext
  warn(message: string): void
  mask: Mask
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

async function answer(door: Door, ask: Ask, live: Live): Promise<void> {
  const { req, res } = ask
  const { limits } = door
  const timer = setTimeout(() => {
    const late = `The request took longer than ${limits.requestMs} ms (limit requestMs).`
    live.stop.abort(new DcafError('deadline', late))
  }, limits.requestMs)
  const onClose = () =>
    res.writableFinished || live.stop.abort(new DcafError('aborted', 'the client went away'))
  res.on('close', onClose)
  try {
    checkHead(req, limits.bodyBytes)
    const { authenticate } = door
    if (authenticate) {
      const who: unknown = await inTime(authenticate(req), ask.signal)
      if (typeof who !== 'string' || who === '')
        throw new DcafError('unauthenticated', 'Who asks is not known.')
      ask.principal = who
    }
    const body = parse(await readBody(door, req, ask.signal), limits)
    admit(door)
    door.admitted++
    ask.admitted = true
    await converse(door, ask, live, body)
  } finally {
    clearTimeout(timer)
    res.off('close', onClose)
  }
}

function admit({ admitted, limits }: Door): void {
  if (admitted < limits.concurrent) return
  const most = `The server answers ${limits.concurrent} requests at once (limit concurrent). Try again later.`
  throw new DcafError('busy', most, { retryable: true, retryAfterMs: 1000 })
}

async function converse(door: Door, ask: Ask, live: Live, body: unknown): Promise<void> {
  const { agent, limits, keeper, store, keys, bindContext, grants, trustClient } = door
  const thread = wire.readThread(body, limits.messages)
  const last = thread.at(-1) as (typeof thread)[number]
  const items = wire.readItems(last.message, last.index, limits.decisions)
  const context = contextOf(body as object, thread, ask)
  ask.context = context
  ask.mask = maskOf(context)
  ask.echo = echoOf(body as object, ask.mask)
  const { signal } = ask
  await inTime(door.validateContext?.(context), signal)
  const threadId =
    typeof context.thread_id === 'number' ? String(context.thread_id) : context.thread_id
  const at: At = {
    agent: agent.name,
    principal: ask.principal,
    threadId,
    context,
    warn: (message) => note(door, ask, 'warn', 'session', { message }),
    mask: ask.mask,
  }
  const { incoming, path } = sessionIn(thread)
  const session = keeper
    ? await inTime((await keeper).open(incoming, at), signal)
    : readSession(incoming, path)
  const stream = ask.streams ? new Lines(ask.res, limits.stallMs, live.stop) : undefined
  ask.stream = stream
  if (
    !items.some((item) => item.approve || item.reason) &&
    !(await inTime(isAnswered(door, thread, context, body as object), signal))
  ) {
    const { $run: paused } = incoming
    const silent = { text: '', session, ...(typeof paused === 'string' && { paused }) }
    return finish(door, ask, silent, at)
  }
  const options: RunOptions = {
    session,
    context,
    threadId,
    principal: ask.principal,
    store,
    signal,
    hardSignal: live.hard.signal,
    trustClient,
    ...((door.onEvent || door.log) && { onEvent: (fact) => onFact(door, ask, fact) }),
    ...(door.options.limits && { limits: door.options.limits }),
    ...(keys && { keys }),
    ...(bindContext && { bindContext }),
    ...(grants && { grants }),
    ...(stream && { emit: (event: RunEvent) => relay(stream, event) }),
    // What `secrets` names, a child's too, is masked in what the door itself says: session, errors, log.
    onSecrets(values) {
      const [before, own] = [at.mask, masker(secretsOf({}, values))]
      at.mask = (text) => own(before(text))
      ask.mask = at.mask
    },
  }
  const input = inputOf(thread, items, incoming.$run, ask.mask, limits.decisions)
  const work: Promise<Answer> =
    typeof agent === 'function'
      ? heard(agent, input, options, ask.mask)
      : run(agent, input, options)
  await finish(door, ask, await inTime(work, signal, door.lastMs), at)
}

/** A function and what it said through `emit`, which counts over what it returns: both answers must be the same. */
async function heard(
  agent: AgentFunction,
  input: RunInput,
  options: RunOptions,
  mask: Mask,
): Promise<Answer> {
  let text = ''
  const lines = new Set<ExecutedCall>()
  const known = new WeakMap<ExecutedCall, ExecutedCall>() // what is told twice stays one
  const clean = (call: ExecutedCall): ExecutedCall => {
    const masked = known.get(call) ?? { ...call, output: mask(`${call.output}`) }
    known.set(call, masked).set(masked, masked)
    return masked
  }
  const emit = (given: RunEvent) => {
    const event = { ...given }
    if (event.type === 'executed_tool_calls')
      event.executedToolCalls = event.executedToolCalls.map(clean)
    if (event.type === 'executed_commands') event.executedCmds = event.executedCmds.map(clean)
    if (event.type === 'executed_approvals')
      event.executedApprovals = event.executedApprovals.map(clean)
    for (const line of executedIn(event)) lines.add(line)
    if (event.type !== 'text_delta' && event.type !== 'intermittent_update')
      return options.emit?.(event)
    const said = { ...event, text: mask(event.text) }
    if (said.type === 'text_delta') text += said.text
    else said.content = maskJson(said.content, mask) as Record<string, unknown>
    return options.emit?.(said)
  }
  try {
    const answer = await agent(input, { ...options, emit })
    if (typeof answer?.text !== 'string')
      throw new TypeError('the function in place of an agent must return { text }')
    const executed = [
      ...lines.union(new Set((('executed' in answer && answer.executed) || []).map(clean))),
    ]
    return { ...answer, executed, text: text || mask(answer.text) }
  } catch (error) {
    if (lines.size === 0) throw error
    return {
      text,
      executed: [...lines],
      error: toError(error),
      ...(options.session && { session: options.session }),
    }
  }
}

function executedIn(event: RunEvent): ExecutedCall[] {
  if (event.type === 'executed_tool_calls') return event.executedToolCalls
  if (event.type === 'executed_commands') return event.executedCmds
  return event.type === 'executed_approvals' ? event.executedApprovals : []
}

// ---------------------------------------------------------------- in

/** Refused before a byte of the body is read. */
function checkHead(req: IncomingMessage, bodyBytes: number): void {
  const {
    'content-type': type = '',
    'content-encoding': encoding = 'identity',
    'content-length': length,
  } = req.headers
  const [media = '', ...parameters] = type
    .toLowerCase()
    .split(';')
    .map((part) => part.trim())
  const charset = parameters.find((part) => part.startsWith('charset='))
  if (media !== 'application/json' || (charset && !/^charset="?utf-?8"?$/.test(charset)))
    throw new DcafError('unsupported_media_type', 'Content-Type must be application/json in UTF-8.')
  if (encoding.toLowerCase() !== 'identity')
    throw new DcafError('unsupported_media_type', 'Content-Encoding must be absent or identity.')
  if (Number(length) > bodyBytes) throw tooLarge(bodyBytes)
}

function tooLarge(bodyBytes: number): DcafError {
  return new DcafError(
    'body_too_large',
    `The request body has more than ${bodyBytes} bytes (limit bodyBytes).`,
  )
}

/** Beyond it a body counts: a few small ones pass beside whoever sends many large ones slowly. */
const uncounted = 65_536

function readBody(door: Door, req: IncomingMessage, signal: AbortSignal): Promise<Buffer> {
  const { bodyBytes, bodiesBytes } = door.limits
  return new Promise((resolve, reject) => {
    const early = 'the body was read before: what parses bodies (express.json()) must come after'
    if (req.readableEnded) return reject(new DcafError('internal_error', early))
    const chunks: Buffer[] = []
    let size = 0
    const counted = (): number => Math.max(0, size - uncounted)
    const end = (settle: () => void): void => {
      door.bodies -= counted()
      req.off('data', onData).off('end', onEnd).off('error', onError)
      signal.removeEventListener('abort', onAbort)
      settle()
    }
    const onData = (chunk: Buffer): void => {
      door.bodies -= counted()
      size += chunk.length
      door.bodies += counted()
      chunks.push(chunk)
      if (size <= bodyBytes && door.bodies <= bodiesBytes) return
      req.pause()
      const most = `The server reads ${bodiesBytes} bytes of bodies at once (limit bodiesBytes).`
      const busy = () => new DcafError('busy', most, { retryable: true, retryAfterMs: 1000 })
      end(() => reject(size > bodyBytes ? tooLarge(bodyBytes) : busy()))
    }
    const onEnd = () => end(() => resolve(Buffer.concat(chunks)))
    const onError = () => end(() => reject(new DcafError('aborted', 'the client went away')))
    const onAbort = () => end(() => reject(signal.reason))
    req.on('data', onData).on('end', onEnd).on('error', onError)
    signal.addEventListener('abort', onAbort)
    if (signal.aborted) onAbort()
  })
}

function parse(bytes: Buffer, limits: ChatLimits): unknown {
  let body: unknown
  try {
    body = JSON.parse(new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes))
  } catch {
    throw new DcafError('invalid_json', 'The request body is not JSON in UTF-8.')
  }
  const fault = unsound(body, limits.jsonDepth, limits.jsonNodes)
  if (fault) throw new DcafError('invalid_json', `The request body is refused: ${fault}.`)
  return body
}

type Thread = ReturnType<typeof wire.readThread>

/** The request's fields under the newest non-empty context of a user's message. */
function contextOf(body: object, thread: Thread, ask: Ask): PlatformContext {
  const fields = Object.entries(body).filter(([key]) => key !== 'messages')
  const newest = thread.findLast(
    ({ message: m }) => m.role === 'user' && Object.keys(m.platform_context ?? {}).length > 0,
  )
  const context: PlatformContext = {
    ...Object.fromEntries(fields),
    ...newest?.message.platform_context,
  }
  const uploads = thread.at(-1)?.message.data?.user_file_uploads
  if (uploads?.length) context.user_file_uploads = uploads
  if (typeof context.request_id === 'string' && idPattern.test(context.request_id))
    ask.requestId = context.request_id
  context.request_id = ask.requestId
  ask.res.setHeader('x-request-id', ask.requestId)
  return context
}
const idPattern = /^[\w.-]{1,64}$/

function echoOf(body: object, mask: Mask): Record<string, unknown> | undefined {
  const scalars = Object.entries(body).filter(
    ([key, value]) =>
      key !== 'messages' && !secretKeys.has(key) && (typeof value !== 'object' || value === null),
  )
  return scalars.length > 0
    ? Object.fromEntries(scalars.map(([k, v]) => [k, typeof v === 'string' ? mask(v) : v]))
    : undefined
}

/** The newest session of the thread, even an empty one, and where it is. */
function sessionIn(thread: Thread): { incoming: Record<string, unknown>; path: string } {
  const newest = thread.findLast(
    ({ message }) => message.data && Object.hasOwn(message.data, 'session'),
  )
  const path = `/messages/${newest?.index}/data/session`
  return { incoming: newest?.message.data?.session ?? {}, path }
}

function readSession(incoming: Record<string, unknown>, path: string): Session {
  try {
    return new Session(incoming)
  } catch {
    throw wire.invalid(path, 'is nested too deep for a session')
  }
}

async function isAnswered(
  door: Door,
  thread: Thread,
  context: PlatformContext,
  body: { source?: unknown },
): Promise<boolean> {
  const source = typeof body.source === 'string' ? body.source : 'help-desk'
  if (!door.router || !(door.routedSources ?? ['slack']).includes(source)) return true
  try {
    const said = await door.router({
      messages: thread.map(({ message }) => message),
      context,
      source,
    })
    return (
      said === true ||
      (wire.isRecord(said) && (said.should_respond === true || said.shouldRespond === true))
    )
  } catch {
    return false // when in doubt, stay silent
  }
}

/** The thread, its decisions and its reports, as a run reads them. */
function inputOf(
  thread: Thread,
  items: wire.WireItem[],
  paused: unknown,
  mask: Mask,
  most: number,
): RunInput {
  const messages = thread.map(({ message }): ChatMessage => {
    const reported = wire.reportedIn(message)
    const chat: ChatMessage = { role: message.role, content: message.content ?? '' }
    if (reported.length > 0)
      chat.data = dataBlock('Calls that the client reports as done', reported, mask)
    return chat
  })
  const words = messages.at(-1)?.content.trim() || 'not approved'
  const earlier = thread.slice(0, -1).map(({ message }) => message)
  const known = new Map(items.length > 0 ? earlier.flatMap((m) => [...wire.proposedIn(m)]) : [])
  const decides = items.some((item) => item.approve || item.reason !== undefined)
  const decisions: Decision[] = []
  const answered = earlier.findLast((message) => message.role === 'assistant')
  const proposed = new Map(answered ? wire.proposedIn(answered) : [])
  for (const { id, lists, approve, reason, name, input, edited, grant, path } of items) {
    const shown = known.get(id)
    if (decides && !approve && reason === undefined) {
      if (shown || name)
        proposed.set(id, shown ?? { name: name ?? '', input: input ?? {}, ...(path && { path }) })
      continue
    }
    const decision: Decision = { id, approve, lists }
    const where = path ?? shown?.path
    if (!approve) decision.reason = reason ?? words
    if (!decides) decision.implicit = true
    if (shown) decision.known = shown
    if (name !== undefined) decision.name = name
    if (input !== undefined) decision.input = input
    if (edited !== undefined) decision.editedInput = edited
    if (grant !== undefined) decision.grant = grant
    if (where !== undefined) decision.path = where
    decisions.push(decision)
  }
  return {
    messages,
    decisions,
    paused: typeof paused === 'string' ? paused : undefined,
    proposed: [...proposed].slice(-most).map(([id, call]) => ({ id, ...call })),
  }
}

// ---------------------------------------------------------------- out

/** Pending calls and the end are told from the result, once; a function's agents may each have said theirs. */
function relay(stream: Lines, event: RunEvent): Promise<void> | undefined {
  switch (event.type) {
    case 'text_delta':
      return stream.write(event)
    case 'intermittent_update': // nobody waits for a tool's: where the reader is far behind, they are left out
      return stream.behind ? undefined : stream.write(event)
    case 'executed_tool_calls':
      return stream.tell('tool_calls', event.executedToolCalls)
    case 'executed_commands':
      return stream.tell('cmds', event.executedCmds)
    case 'executed_approvals':
      return stream.tell('approvals', event.executedApprovals)
    default:
      return undefined
  }
}

function within(list: wire.WireList, calls: Iterable<ExecutedCall>): ExecutedCall[] {
  return [...calls].filter(({ lists = ['tool_calls'] }) => lists.includes(list))
}
function executedLine(list: wire.WireList, calls: ExecutedCall[]): WireEvent {
  if (list === 'cmds')
    return { type: 'executed_commands', executed_cmds: calls.map(executedCommand) }
  return list === 'approvals'
    ? { type: 'executed_approvals', executed_approvals: calls.map(executedApproval) }
    : { type: 'executed_tool_calls', executed_tool_calls: calls.map(executedCall) }
}

type Answer = Partial<Omit<RunResult, 'session'>> & {
  text: string
  session?: RunOptions['session']
}

async function finish(door: Door, ask: Ask, answer: Answer, at: At): Promise<void> {
  const { stream, requestId, res } = ask
  const { executed = [], pending = [], usage = noUsage, stop = 'end', runId = requestId } = answer
  const saved = await inTime(save(door, answer.session, at), ask.signal, 1_000).catch(toError)
  const error = answer.error ?? (saved instanceof DcafError ? saved : undefined)
  ask.outcome = {
    run_id: runId,
    stop_reason: error ? 'error' : stop,
    ...(error && { code: error.code }),
  }
  if (error && executed.length === 0 && !stream?.started) throw error
  if (error) failure(door, ask, error)
  const session = saved instanceof DcafError ? {} : saved
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
    ...(replayed.length > 0 && { approvals: Object.fromEntries(replayed) }),
    ...(ask.echo && { request_context: ask.echo }),
  }
  const problem = error && problemOf(error, requestId)
  const commands = pending.filter((call) => call.type === 'command')
  const toolCalls = pending.filter((call) => call.type !== 'command')
  if (stream) {
    const untold = executed.filter((call) => !stream.told.has(call))
    for (const list of ['tool_calls', 'cmds', 'approvals'] as const)
      if (within(list, untold).length > 0) await stream.tell(list, within(list, untold))
    if (!stream.spoke && answer.text) await stream.write({ type: 'text_delta', text: answer.text })
    if (commands.length > 0)
      await stream.write({ type: 'commands', commands: commands.map(pendingCommand) })
    if (pending.length > 0)
      await stream.write({ type: 'approvals', approvals: pending.map(pendingApproval) })
    if (toolCalls.length > 0)
      await stream.write({ type: 'tool_calls', tool_calls: toolCalls.map(pendingCall) })
    const meta_data = { session, ...meta }
    if (!problem) return stream.end({ type: 'done', stop_reason: stop, meta_data })
    const { detail, ...rest } = problem
    return stream.end({
      type: 'error',
      error: detail,
      ...rest,
      ...(executed.length > 0 && { meta_data }),
    })
  }
  const name = door.agent.name
  const message = {
    role: 'assistant',
    content: answer.text,
    data: {
      tool_calls: toolCalls.map(pendingCall),
      executed_tool_calls: within('tool_calls', executed).map(executedCall),
      approvals: pending.map(pendingApproval),
      executed_approvals: within('approvals', executed).map(executedApproval),
      cmds: commands.map(pendingCommand),
      executed_cmds: within('cmds', executed).map(executedCommand),
      url_configs: [],
      user_file_uploads: [],
      session,
    },
    meta_data: {
      ...meta,
      is_complete: pending.length === 0 && !error,
      stop_reason: problem ? 'error' : stop,
      ...(problem && { error: problem }),
    },
    timestamp: new Date().toISOString(),
    user: null,
    agent: name ? { name, id: name } : null,
  }
  sendJson(res, 200, message, door.limits.stallMs)
}

/** The session as it goes out, secrets masked. */
async function save(
  { keeper }: Door,
  answered: Answer['session'],
  at: At,
): Promise<Record<string, unknown>> {
  const session = answered instanceof Session ? answered : new Session(answered ?? {})
  if (keeper) return (await keeper).close(session, at)
  return maskJson(session.toJSON(), at.mask) as Record<string, unknown>
}

/** What every list shows of a pending call beside its own fields. */
function ours({ effectiveInput, preview, reasons, expiresAt, path, votes }: PendingCall) {
  return {
    ...(effectiveInput !== undefined && { effective_input: effectiveInput }),
    ...(preview !== undefined && { preview }),
    ...(reasons && { reasons }),
    expires_at: expiresAt,
    ...(path && { path }),
    ...(votes !== undefined && { votes }),
  }
}
function pendingCall(call: PendingCall) {
  const { id, name, input, description, inputDescription } = call
  return {
    id,
    name,
    input,
    execute: false,
    tool_description: description,
    input_description: inputDescription,
    intent: null,
    rejection_reason: null,
    ...ours(call),
  }
}
function pendingApproval(call: PendingCall) {
  const { id, type, name, input, description } = call
  return {
    id,
    type,
    name,
    input,
    execute: false,
    rejection_reason: null,
    description,
    intent: null,
    ...ours(call),
  }
}
function pendingCommand(call: PendingCall) {
  const { command, files = null } = call.input as { command?: string; files?: unknown }
  return { id: call.id, command, execute: false, rejection_reason: null, files, ...ours(call) }
}
function executedCall({ id, name, input, output }: ExecutedCall) {
  return { id, name, input, output }
}
function executedApproval({ id, type, name, input, output, outcome }: ExecutedCall) {
  return { id, type, name, input, output: plainly(output, outcome) }
}
function executedCommand({ id, input, output, outcome }: ExecutedCall) {
  return {
    id,
    command: (input as { command?: string } | undefined)?.command ?? '',
    output: plainly(output, outcome),
  }
}
function plainly(output: string, outcome: string): string {
  return outcome === 'ok' ? output : output.replace(/^Tool rejected: /, 'Rejected: ')
}

type WireEvent = { type: string; [key: string]: unknown }

/** Characters that a burst may have waiting for the end of its tick. */
const burst = 65_536
/** Bytes that the client has not read, beyond which hints are left out. */
const farBehind = 1_048_576

/** The one writer of NDJSON: what is said in one tick goes out as one string, and a full socket holds the run. */
class Lines {
  readonly #res: ServerResponse
  readonly #stallMs: number
  readonly #stop: AbortController
  #waiting = ''
  #draining: Promise<void> | undefined
  #ended = false
  started = false
  /** Some text was sent. */
  spoke = false
  /** Outcomes that were sent. */
  readonly told = new Set<ExecutedCall>()

  constructor(res: ServerResponse, stallMs: number, stop: AbortController) {
    this.#res = res
    this.#stallMs = stallMs
    this.#stop = stop
  }

  /** A promise only while the client does not keep up. */
  write(event: WireEvent): Promise<void> | undefined {
    if (this.#ended) return undefined // a run that nobody waits for any more
    this.started = true
    this.spoke ||= event.type === 'text_delta'
    if (this.#res.destroyed) return undefined
    if (!this.#waiting) process.nextTick(() => this.#flush())
    this.#waiting += wire.line(event)
    if (this.#waiting.length > burst) this.#flush()
    return this.#draining
  }

  tell(list: wire.WireList, calls: ExecutedCall[]): Promise<void> | undefined {
    for (const call of calls) this.told.add(call)
    return this.write(executedLine(list, calls))
  }

  get behind(): boolean {
    return this.#res.writableLength > farBehind
  }

  #flush(): void {
    const res = this.#res
    if (!this.#waiting || res.destroyed) return
    if (!res.headersSent) res.writeHead(200, streamHeaders)
    const kept = res.write(this.#waiting)
    this.#waiting = ''
    if (kept || this.#draining) return
    this.#draining = new Promise((resolve) => {
      const timer = setTimeout(() => {
        this.#stop.abort(
          new DcafError(
            'aborted',
            `the client read nothing for ${this.#stallMs} ms (limit stallMs)`,
          ),
        )
        res.destroy()
      }, this.#stallMs)
      const done = (): void => {
        clearTimeout(timer)
        res.off('drain', done).off('close', done)
        this.#draining = undefined
        resolve()
      }
      res.on('drain', done).on('close', done)
    })
  }

  /** The terminal event. */
  async end(event: WireEvent): Promise<void> {
    const written = this.write(event)
    this.#ended = true
    await written
    this.#flush()
    if (!this.#res.destroyed) this.#res.end()
  }
}

const streamHeaders = {
  'content-type': 'application/x-ndjson',
  'cache-control': 'no-store',
  'x-accel-buffering': 'no',
  'x-content-type-options': 'nosniff',
}

/** `stallMs`: how long the client may take to read it. */
function sendJson(res: ServerResponse, status: number, body: unknown, stallMs: number): void {
  if (res.headersSent || res.destroyed) return
  const text = JSON.stringify(body)
  const length = Buffer.byteLength(text)
  res.writeHead(status, {
    'content-type': 'application/json',
    'content-length': length,
    'cache-control': 'no-store',
    'x-content-type-options': 'nosniff',
  })
  res.end(res.req.method === 'HEAD' ? undefined : text)
  const timer = setTimeout(() => res.destroy(), stallMs)
  res.once('close', () => clearTimeout(timer))
}

// ---------------------------------------------------------------- failure

const statuses: Partial<Record<ErrorCode, number>> = {
  invalid_json: 400,
  messages_missing: 400,
  messages_empty: 400,
  unauthenticated: 401,
  forbidden: 403,
  body_too_large: 413,
  unsupported_media_type: 415,
  invalid_request: 422,
  context_too_long: 422,
  busy: 503,
  shutting_down: 503,
  store_unavailable: 503,
  provider_overloaded: 503,
  provider_error: 502,
  provider_invalid: 502,
  provider_truncated: 502,
  provider_auth: 502,
  provider_config: 502,
  provider_timeout: 504,
  deadline: 504,
}

/** What a client is told where the words of the error are not for it. */
const sentences: Partial<Record<ErrorCode, string>> = {
  unauthenticated: 'Unauthenticated',
  forbidden: 'Forbidden',
  context_too_long: 'The conversation is too long for the model.',
  store_unavailable: 'The store is not available. Nothing that needs it was done.',
  provider_overloaded: 'The model is overloaded. Try again later.',
  provider_error: 'The model could not answer.',
  provider_invalid: 'The model answered with something that could not be read.',
  provider_truncated: 'The answer of the model ended too early.',
  provider_auth: 'The server is not allowed to use the model.',
  provider_config: 'The server asked the model for something it does not offer.',
  provider_timeout: 'The model took too long to answer.',
}

type Problem = {
  detail: string
  code: ErrorCode
  retryable: boolean
  request_id: string
  errors?: wire.WireProblem[]
}

function problemOf(error: DcafError, requestId: string): Problem {
  const known = statuses[error.code] !== undefined
  const code = known ? error.code : 'internal_error'
  const detail = known ? (sentences[code] ?? error.message) : 'Internal error'
  const errors = error instanceof wire.WireError ? error.problems : undefined
  return {
    detail,
    code,
    retryable: known && error.retryable,
    request_id: requestId,
    ...(errors && { errors }),
  }
}

/** Nothing ran that the client was not told of: an error with its true status, or the last line of a stream. */
async function failed(door: Door, ask: Ask, thrown: unknown): Promise<void> {
  const { res, stream, requestId } = ask
  const error = toError(thrown)
  const told = problemOf(error, requestId)
  ask.outcome = { ...ask.outcome, code: error.code === 'aborted' ? error.code : told.code }
  if ((statuses[told.code] ?? 500) >= 500) failure(door, ask, error)
  if (res.destroyed) return
  const { detail, ...rest } = told
  if (stream?.started) return stream.end({ type: 'error', error: detail, ...rest })
  const status = statuses[told.code] ?? 500
  if (status === 503)
    res.setHeader('retry-after', Math.max(1, Math.ceil((error.retryAfterMs ?? 1000) / 1000)))
  sendJson(res, status, told, door.limits.stallMs)
  // A body nobody will read: the answer must arrive before the connection ends, so it lingers unread for a moment.
  if (!ask.req.complete) setTimeout(() => ask.req.complete || ask.req.destroy(), 1000).unref()
}

function toError(thrown: unknown): DcafError {
  if (thrown instanceof DcafError) return thrown
  const message = thrown instanceof Error ? thrown.message : inspect(thrown)
  return new DcafError('internal_error', message, { cause: thrown })
}

// ---------------------------------------------------------------- the log

/** Ends of a request that say nothing but their code, which its entry has: a crowd of them needs no crowd of stacks. */
const ordinary = new Set<ErrorCode>(['aborted', 'busy', 'deadline', 'shutting_down'])

/** The whole of an error, for the log alone. */
function failure(door: Door, ask: Ask, error: DcafError): void {
  const { message, code, stack, cause } = error
  if (ordinary.has(code)) return
  const why = cause !== undefined && { cause: inspect(cause) }
  note(door, ask, 'error', 'failure', { message, code, stack, ...why })
}

function note(
  door: Door,
  ask: Ask | undefined,
  level: LogEntry['level'],
  event: string,
  more: Record<string, unknown>,
): void {
  if (!door.log) return
  const mask = ask?.mask ?? masker([])
  const ids = ask ? { request_id: ask.requestId, ...tracing(ask.context) } : {}
  const clean = (text: string) => oneLine(mask(text))
  quietly(() => {
    const said = Object.entries(JSON.parse(JSON.stringify({ ...ids, ...more })))
    const data = Object.fromEntries(said.map(([key, value]) => [key, maskJson(value, clean)]))
    return door.log?.({ level, event, time: new Date().toISOString(), ...data })
  })
}

/** Neither listener nor log hurts anybody, and nobody waits for them. */
function quietly(act: () => unknown): void {
  try {
    Promise.resolve(act()).catch(() => {})
  } catch {}
}

/** Cut where a client chose its length; what JSON leaves raw and a line reader or an eye trips over, escaped as JSON would. */
function oneLine(text: string): string {
  const unit = (c: string) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`
  const hidden = /[\u007f-\u009f\p{Zl}\p{Zp}\p{Cf}]/gu
  return text.slice(0, 65_536).replace(hidden, (c) => c.replace(/./gs, unit))
}

const payloads = ['input', 'output', 'error', 'reason', 'calls', 'raw', 'details']
const troubles: Record<string, LogEntry['level']> = {
  LedgerFailed: 'error',
  PausedRunIgnored: 'warn',
}

function onFact(door: Door, ask: Ask, fact: RunFact): void {
  const { type, timestamp: _, body: __, ...data } = fact
  if (!door.logPayloads && !troubles[type]) for (const key of payloads) delete data[key]
  note(door, ask, troubles[type] ?? 'info', type, data)
  quietly(() => door.onEvent?.(fact))
}
