// The loop: one model call plus tools, again and again, until there is an answer or a person must decide.
// Knows no HTTP and no vendor. All state of a run is in the run; an Agent is a plain object that many runs share.

import { randomBytes, randomUUID } from 'node:crypto'
import {
  type Answer,
  type Call,
  cap,
  changedTo,
  type Decision,
  Gate,
  type Grants,
  type List,
  type Policy,
  paused,
  type Result,
  type Scope,
  unverified,
  words,
} from './approval.ts'
import {
  masker,
  maskJson,
  maskOf,
  platformContext,
  secretKeys,
  secretsOf,
  tracing,
} from './mask.ts'
import { Authority, audience, canonical, nonce, sha256, type Who } from './proof.ts'
import {
  DcafError,
  type Message,
  type ModelReply,
  type ModelRequest,
  noUsage,
  type Outcome,
  type Part,
  type Provider,
  type ToolSpec,
  type Usage,
} from './providers/provider.ts'
import { Session } from './session.ts'
import { MemoryStore, memoryStore, type Store } from './store.ts'
import type { PlatformContext, Tool, ToolContext } from './tool.ts'

export type OneOrMany<T> = T | T[]

export interface Agent {
  /** Unique among the agents that share a key: an approval names the agent it is for. */
  name: string
  description?: string
  provider: Provider
  /** Static instructions. With `cache` they end the cached prefix. */
  system?: string
  /** Instructions of the moment, after the cached ones. */
  systemContext?: (ctx: RunContext) => string | undefined | Promise<string | undefined>
  tools?: Tool[]
  policy?: OneOrMany<Policy>
  /** Keys of the platform context that the model may read. Naming a secret one throws. */
  visibleContext?: string[]
  /** More values to mask wherever text leaves a tool or an interceptor. */
  secrets?: (ctx: RunContext) => string[] | Promise<string[]>
  requestInterceptors?: OneOrMany<RequestInterceptor>
  responseInterceptors?: OneOrMany<ResponseInterceptor>
  /** May replace what model, client and ledger see of a result. */
  afterTool?: (
    call: { id: string; name: string; input: unknown },
    result: Result,
    ctx: ToolContext,
  ) => Result | string | undefined | Promise<Result | string | undefined>
  onEvent?: OneOrMany<Listener>
  /** Other words for what a run is doing; `false` turns them off. */
  statusText?:
    | false
    | ((
        status: { type: 'thinking' } | { type: 'tool'; name: string; input: unknown },
      ) => string | false | undefined)
  /** A reason while nothing may execute. Decisions are not consumed. */
  frozen?: () => string | false
  limits?: Partial<RunLimits>
  /** Default false: a first cache write costs more than no cache. */
  cache?: ModelRequest['cache']
  maxTokens?: number
  temperature?: number
  toolChoice?: ModelRequest['toolChoice']
}
export type RunContext = { platform: PlatformContext; session: Session }

/** Bytes are UTF-8, `...Ms` milliseconds. */
export interface RunLimits {
  turns: number
  toolCalls: number
  /** Calls that may wait for a person at once. */
  pending: number
  /** Automatic calls at once. */
  parallel: number
  inputBytes: number
  /** One tool's output; longer ones are cut in the middle. */
  outputBytes: number
  /** All outputs of a request. */
  outputsBytes: number
  toolMs: number
  approvalTtlMs: number
  /** The sealed run beyond which it is kept in the store instead. */
  runBytes: number
}
export const runLimits: RunLimits = {
  turns: 20,
  toolCalls: 50,
  pending: 5,
  parallel: 8,
  inputBytes: 65_536,
  outputBytes: 65_536,
  outputsBytes: 524_288,
  toolMs: 60_000,
  approvalTtlMs: 3_600_000,
  runBytes: 262_144,
}

/** What a request interceptor may read and change, for one model call. */
export interface InterceptedRequest {
  messages: Message[]
  tools: ToolSpec[]
  system: ModelRequest['system']
  context: PlatformContext
  session: Session
  /** The text of the newest user message; setting it replaces that text. */
  latestUserMessage: string
  addSystemContext(text: string): void
}
export type RequestInterceptor = (request: InterceptedRequest) => unknown
export interface InterceptedResponse {
  text: string
  toolCalls: { id: string; name: string; input: unknown }[]
  readonly usage: Usage
  readonly raw: unknown
  session: Session
}
/** A function sees the whole reply, so text is held until it ran. An `onDelta` keeps the stream live: it is called for
 * each piece and once with `done: true` and an empty piece, and what it returns is sent and stored. */
export type ResponseInterceptor =
  | ((response: InterceptedResponse) => unknown)
  | { onDelta: DeltaInterceptor; onResponse?: (response: InterceptedResponse) => unknown }
export type DeltaInterceptor = (
  text: string,
  info: { done: boolean; session: Session },
) => string | Promise<string>

/** Stops the run with `userMessage` as its answer; `code` and `details` go to listeners only. */
export class InterceptorError extends DcafError {
  override name = 'InterceptorError'
  readonly userMessage: string
  readonly reason: string
  readonly details: unknown
  constructor({
    userMessage,
    code = 'intercepted',
    details,
  }: { userMessage: string; code?: string; details?: unknown }) {
    super('intercepted', `an interceptor stopped the run: ${code}`)
    this.userMessage = userMessage
    this.reason = code
    this.details = details
  }
}

/** A fact, past tense; see DESIGN of events in README. */
export type RunFact = {
  type: string
  timestamp: string
  runId: string
  threadId?: string
  [key: string]: unknown
}
export type Listener = (event: RunFact) => unknown

/** `data`: what a client reports beside its words, read by the model with the next message of the person's. */
export type ChatMessage = { role: 'user' | 'assistant'; content: string; data?: string }
export interface RunInput {
  messages: string | (ChatMessage | Message)[]
  decisions?: Decision[]
  /** A run that waits: `result.state`, or the sealed text of `result.paused`. */
  paused?: string | RunState | undefined
  /** Calls that the thread shows as pending, where there is no `paused`. */
  proposed?: { id: string; name: string; input: unknown; path?: string[] }[]
}
export interface RunOptions {
  session?: Session | Record<string, unknown>
  context?: PlatformContext
  threadId?: string | undefined
  /** Who asks, or decides. */
  principal?: string | undefined
  keys?: (string | undefined)[]
  store?: Store
  /** More of the context that an approval is bound to; JSON. */
  bindContext?: (context: PlatformContext) => unknown
  signal?: AbortSignal
  /** Stops even approved tools: the end of a shutdown. */
  hardSignal?: AbortSignal
  emit?: (event: RunEvent) => void | Promise<void>
  onEvent?: Listener
  /** Told what `secrets` gave, the agent's and each child's, before it is used: for whoever logs or sends for the run. */
  onSecrets?: (values: string[]) => void
  grants?: Grants
  limits?: Partial<RunLimits>
  /** Migration only: approvals without proof. See docs. */
  trustClient?: 'unsafe' | undefined
}

export type Stop =
  | 'end'
  | 'approval'
  | 'limit'
  | 'length'
  | 'content_filter'
  | 'intercepted'
  | 'aborted'
  | 'error'
export interface RunResult {
  /** All that was said in this run. */
  text: string
  stop: Stop
  needsApproval: boolean
  pending: PendingCall[]
  executed: ExecutedCall[]
  session: Session
  state: RunState
  /** `state` sealed, for a client to carry; only while something is pending. */
  paused?: string
  usage: Usage
  runId: string
  error?: DcafError
}
export interface PendingCall {
  /** Signed: what `approve` and `reject` want. */
  id: string
  type: string
  name: string
  input: unknown
  description: string
  /** The schema's description of each property that has one. */
  inputDescription: Record<string, string>
  effectiveInput?: unknown
  preview?: string
  reasons?: string[]
  /** RFC 3339. */
  expiresAt: string
  path?: string[]
  votes?: number
}
export interface ExecutedCall {
  id: string
  type: string
  name: string
  input: unknown
  output: string
  outcome: Outcome
  /** The lists its decision came in; absent for an automatic call. */
  lists?: List[]
  /** A recorded outcome: nothing ran now. */
  replayed?: boolean
  path?: string[]
}
export type RunEvent =
  | { type: 'text_delta'; text: string }
  | { type: 'intermittent_update'; text: string; content: Record<string, unknown> }
  | { type: 'executed_tool_calls'; executedToolCalls: ExecutedCall[] }
  | { type: 'executed_commands'; executedCmds: ExecutedCall[] }
  | { type: 'executed_approvals'; executedApprovals: ExecutedCall[] }
  | { type: 'commands'; commands: PendingCall[] }
  | { type: 'approvals'; approvals: PendingCall[] }
  | { type: 'tool_calls'; toolCalls: PendingCall[] }
  | { type: 'done'; result: RunResult }
  | { type: 'error'; error: DcafError; result: RunResult }

/** The conversation as plain JSON, without the context. */
export interface RunState {
  runId: string
  messages: Message[]
  calls: Call[]
  /** What the person said while calls were pending. */
  kept: string[]
  /** Digests of rejected inputs, and why. */
  rejected: Record<string, string>
  /** The principals whose words are in it. */
  askers?: string[]
}

const atLimit = 'I stopped before I was done: this run reached a limit.'
const needApproval = 'I need your approval to execute the following tools:'

/** Throws only for a caller's mistake, before anything ran; else it returns, with everything that ran. */
export async function run(
  agent: Agent,
  input: RunInput,
  options: RunOptions = {},
): Promise<RunResult> {
  const self = await prepare(agent, input, options)
  const started = performance.now()
  try {
    if (!self.error) await hear(self, input)
    self.desk.asked = [...waiting(self)].length + self.loose.length
    if (!self.error) await converse(self)
  } catch (error) {
    await fail(self, error)
  }
  const result = await conclude(self, agent)
  self.fact('RunFinished', {
    stop: result.stop,
    usage: result.usage,
    durationMs: performance.now() - started,
    ...self.stopDetails,
  })
  self.desk.over = true
  const { error } = result
  try {
    await self.emit(error ? { type: 'error', error, result } : { type: 'done', result })
  } catch {} // the result is what counts now
  return result
}

/** The turns: every call of the last reply gets its result or waits; then the model speaks. */
async function converse(self: Run): Promise<void> {
  const { limits, state, desk } = self
  for (let turn = 0; !self.stop; turn++) {
    await settle(self)
    const last = state.messages.at(-1)
    if (open(state).length > 0 || self.loose.length > 0) self.stop = 'approval'
    else if (self.stop) return
    else if (!last?.parts.length || (last.role === 'assistant' && callsOf(last).length === 0))
      self.stop = 'end'
    else if (turn >= limits.turns) self.stop = 'limit'
    if (self.stop) return
    desk.signal.throwIfAborted()
    if (desk.modelCalls++ > 0) await status(self, { type: 'thinking' })
    const { reply, offered } = await inTime(think(self), desk.signal, 1_000)
    const { parts, finishReason } = reply
    if (parts.length === 0) self.stop = 'end'
    else state.messages.push({ role: 'assistant', parts, results: [] })
    if (offered) self.offered = offered
    if (finishReason === 'length' || finishReason === 'content_filter') {
      if (!self.stop) refuseAll(self, `Not run: the reply was cut off (${finishReason}).`)
      self.stop = finishReason
    }
  }
}

export function resume(
  agent: Agent,
  paused: RunResult,
  decisions: Decision[],
  options: RunOptions = {},
): Promise<RunResult> {
  return run(
    agent,
    { messages: [], decisions, paused: paused.state },
    { session: paused.session, ...options },
  )
}

/** The same run as events. Leaving early aborts the model; approved tools finish and are recorded. */
export async function* stream(
  agent: Agent,
  input: RunInput,
  options: RunOptions = {},
): AsyncGenerator<RunEvent> {
  const controller = new AbortController()
  const abort = () => controller.abort(options.signal?.reason)
  options.signal?.addEventListener('abort', abort)
  if (options.signal?.aborted) abort()
  const events: RunEvent[] = []
  let taken = Promise.withResolvers<void>()
  let came = Promise.withResolvers<void>()
  const emit = async (event: RunEvent): Promise<void> => {
    events.push(event)
    came.resolve()
    await options.emit?.(event)
    if (!controller.signal.aborted) await taken.promise
  }
  const running = run(agent, input, { ...options, emit, signal: controller.signal })
  running.then(
    () => came.resolve(),
    () => came.resolve(),
  )
  let ended = false
  try {
    while (!ended) {
      await came.promise
      came = Promise.withResolvers()
      const batch = events.splice(0)
      if (batch.length === 0) await running // nothing came, so it threw
      for (const event of batch) {
        yield event
        ended ||= event.type === 'done' || event.type === 'error'
      }
      taken.resolve()
      taken = Promise.withResolvers()
    }
  } finally {
    if (!ended) controller.abort(new DcafError('aborted', 'the reader left the stream'))
    taken.resolve()
    options.signal?.removeEventListener('abort', abort)
  }
}

// ---------------------------------------------------------------- decisions

/** A pending call, or its id. */
type Named = string | { id: string; path?: string[] }
function named(call: Named): { id: string; path?: string[] } {
  if (typeof call !== 'object' || !call || !('id' in call)) return { id: call }
  return { id: call.id, ...(call.path && { path: call.path }) }
}

export function approve(call: Named): Decision {
  return { ...named(call), approve: true }
}
export function reject(call: Named, reason?: string): Decision {
  return { ...named(call), approve: false, ...(reason === undefined ? {} : { reason }) }
}
/** Approves with another input: in one step where the tool is `editable`, else as a fresh call to approve. */
export function edit(call: Named, input: unknown): Decision {
  return { ...named(call), approve: true, editedInput: input }
}
export function approveAll({ pending }: Pick<RunResult, 'pending'>): Decision[] {
  return pending.map((call) => approve(call))
}
export function rejectAll({ pending }: Pick<RunResult, 'pending'>, reason?: string): Decision[] {
  return pending.map((call) => reject(call, reason))
}
export function user(text: string): ChatMessage {
  return { role: 'user', content: text }
}
export function assistant(text: string): ChatMessage {
  return { role: 'assistant', content: text }
}

// ---------------------------------------------------------------- one run

/** What one request and all its child runs share. */
interface Desk {
  decisions: Map<string, Decision>
  /** The person's words: the reason of whatever nobody named, where no click says otherwise. */
  words: string
  closes: boolean
  executed: ExecutedCall[]
  /** Decided calls whose outcome was not emitted yet. */
  lines: ExecutedCall[]
  usage: Usage
  modelCalls: number
  toolCalls: number
  /** Calls that wait, the children's too: no one decides them while this request lasts. */
  asked: number
  /** What stopped a child and stops the run. */
  fatal?: DcafError
  outputBytes: number
  signal: AbortSignal
  over: boolean
  /** `emit` failed, and is not called again. */
  deaf: boolean
  session: Session
  platform: PlatformContext
  children: Map<string, Run>
}
interface Run {
  agent: Agent
  path: string[]
  state: RunState
  desk: Desk
  limits: RunLimits
  tools: Map<string, Tool>
  specs: ToolSpec[]
  gate: Gate
  scope: Scope
  options: RunOptions
  shared: Shared
  streams: boolean
  /** The state came with the request; else it is the thread. */
  resumed: boolean
  /** Pending calls that only the thread remembers. */
  loose: Call[]
  /** Outcomes of calls that are not in the state, for the model. */
  told: unknown[]
  text: string
  /** Something was said in this turn. */
  speaking: boolean
  offered?: Set<string>
  malformed: number
  stop?: Stop
  stopDetails?: Record<string, unknown>
  error?: DcafError
  emit(event: RunEvent): void | Promise<void>
  fact(type: string, data: Record<string, unknown>): void
}

const defaultStore = memoryStore()
const authorities = new WeakMap<Store, Map<string, Authority>>()

export function authorityOf(store: Store, keys: (string | undefined)[] = []): Authority {
  const name = keys.join()
  const known = authorities.get(store) ?? new Map<string, Authority>()
  authorities.set(store, known)
  const authority = known.get(name) ?? new Authority(store, keys)
  known.set(name, authority)
  return authority
}

/** Throws `invalid_argument` for what no request could mend. */
export function checkAgent(agent: Agent): void {
  const wrong = (problem: string) => new DcafError('invalid_argument', problem)
  if (typeof agent?.name !== 'string' || !agent.name) throw wrong('an agent needs a name')
  if (typeof agent.provider?.complete !== 'function')
    throw wrong(`agent ${agent.name} needs a provider, such as bedrock({ model })`)
  if (agent.tools !== undefined && !Array.isArray(agent.tools)) {
    const { name = 'it' } = (agent.tools ?? {}) as { name?: string }
    const kind = typeof agent.tools
    const got = agent.tools === null ? 'null' : kind === 'object' ? 'an object' : `a ${kind}`
    throw wrong(`tools must be an array, got ${got}. Did you mean tools: [${name}]?`)
  }
  const names = new Set<string>()
  for (const tool of agent.tools ?? []) {
    if (typeof tool?.validate !== 'function')
      throw wrong(`agent ${agent.name}: every tool must be made by tool({ ... })`)
    if (names.has(tool.name)) throw wrong(`agent ${agent.name} has two tools named ${tool.name}`)
    names.add(tool.name)
  }
  for (const key of agent.visibleContext ?? [])
    if (secretKeys.has(key)) throw wrong(`visibleContext names ${key}, which is secret`)
  limitsOf(agent)
}

/** Throws for a limit that would be none: NaN holds nothing back. */
function limitsOf(agent: Agent, options: RunOptions = {}): RunLimits {
  const limits = { ...runLimits }
  for (const name of Object.keys(runLimits) as (keyof RunLimits)[]) {
    const value = options.limits?.[name] ?? agent.limits?.[name]
    if (value === undefined) continue
    if (!Number.isSafeInteger(value) || value < 0)
      throw new DcafError('invalid_argument', `limits.${name} must be a whole number, got ${value}`)
    limits[name] = value
  }
  return limits
}

type Offered = { list: Tool[]; tools: Map<string, Tool>; specs: ToolSpec[] }
const toolMaps = new WeakMap<object, Offered>()
const noTools: Tool[] = []

/** By name, made anew only where the array or what is in it changed. */
function toolsOf(agent: Agent): Offered {
  const list = agent.tools ?? noTools
  const known = toolMaps.get(list)
  if (known?.list.length === list.length && list.every((t, i) => t === known.list[i])) return known
  const specs = list.map(({ name, description, input }) => ({ name, description, input }))
  const made = { list: [...list], tools: new Map(list.map((t) => [t.name, t])), specs }
  toolMaps.set(list, made)
  return made
}

async function prepare(agent: Agent, input: RunInput, options: RunOptions): Promise<Run> {
  checkAgent(agent)
  const platform = platformContext(options.context ?? {}) as PlatformContext
  const session =
    options.session instanceof Session ? options.session : new Session(options.session)
  const { principal } = options
  if (principal !== undefined && (typeof principal !== 'string' || !principal))
    throw new DcafError('invalid_argument', 'principal must be a text that is not empty')
  const bound = (await options.bindContext?.(platform)) ?? null
  if (!isJson(bound))
    throw new DcafError(
      'invalid_argument',
      'bindContext must return plain JSON: all of it is bound',
    )
  const threadId = options.threadId ?? platform.thread_id
  const who: Who = { principal, threadId, context: platform, bound }
  const authority = authorityOf(options.store ?? defaultStore, options.keys)
  const secrets = await agent.secrets?.({ platform, session })
  if (secrets) options.onSecrets?.(secrets)
  const mask = secrets ? masker(secretsOf(platform, secrets)) : maskOf(options.context ?? platform)
  const messages = normalized(input.messages)
  const decisions = decisionsOf(input.decisions ?? [])
  const words = latestWords(input.messages)
  const desk: Desk = {
    decisions,
    words,
    closes: words !== '' && ![...decisions.values()].some((d) => !d.implicit),
    executed: [],
    lines: [],
    usage: { ...noUsage },
    modelCalls: 0,
    toolCalls: 0,
    asked: 0,
    outputBytes: 0,
    signal: options.signal ?? new AbortController().signal,
    over: false,
    deaf: false,
    session,
    platform,
    children: new Map(),
  }
  const deafen = (error: unknown): never => {
    desk.deaf = true
    throw new DcafError('internal_error', 'emit failed', { cause: error })
  }
  // Once a token: no promise is made where the caller made none.
  const emit = (event: RunEvent): void | Promise<void> => {
    if (desk.deaf || (desk.over && event.type !== 'done' && event.type !== 'error')) return
    try {
      return options.emit?.(event)?.then(undefined, deafen)
    } catch (error) {
      deafen(error)
    }
  }
  const scope: Scope = {
    agent: agent.name,
    authority,
    who,
    askers: new Set(),
    fresh: new Set(),
    limits: limitsOf(agent, options),
    mask,
    signal: desk.signal,
    hardSignal: options.hardSignal,
    grants: options.grants,
    trustClient: options.trustClient === 'unsafe',
    context: () => {
      throw new Error('set by runOf')
    },
    fact: () => {},
    watched: false,
    after: undefined,
  }
  let state: RunState | undefined
  let failure: unknown
  if (typeof input.paused === 'object' && input.paused) state = structuredClone(input.paused)
  else if (typeof input.paused === 'string')
    state = await openRun(scope, input.paused).catch((error) => {
      failure = error
      return undefined
    })
  const spoken = state
    ? words !== ''
    : messages.some((m) => m.role === 'user' && textOf(m.parts).trim() !== '')
  for (const one of [...(state?.askers ?? []), ...(spoken && principal ? [principal] : [])])
    scope.askers.add(one)
  const runId =
    state?.runId ??
    (typeof platform.run_id === 'string' && /^[\w.-]{1,64}$/.test(platform.run_id)
      ? platform.run_id
      : undefined) ??
    randomUUID()
  const fresh = state ?? newState(ours(alternating(messages)), runId)
  const self = await runOf(agent, fresh, [], {
    scope,
    desk,
    options,
    emit,
    runId,
    threadId,
    frozen: [],
  })
  self.resumed = state !== undefined
  if (failure) await fail(self, failure)
  else if (input.paused && !state)
    self.fact('PausedRunIgnored', {
      reason: 'it was not sealed here for this agent, principal, thread and context',
    })
  if (state === undefined && messages.filter((m) => m.role === 'user').length === 1)
    self.fact('ConversationStarted', {})
  return self
}

type Shared = Pick<Run, 'desk' | 'options' | 'emit'> & {
  scope: Scope
  runId: string
  threadId: string | undefined
  frozen: (() => string | false)[]
}

/** A run of one agent in the tree; child runs share desk and emit and have a gate of their own. */
async function runOf(agent: Agent, state: RunState, path: string[], shared: Shared): Promise<Run> {
  const { desk, options, emit, runId, threadId } = shared
  const { platform, session } = desk
  const { tools, specs } = toolsOf(agent)
  const frozen = agent.frozen ? [...shared.frozen, agent.frozen] : shared.frozen
  const more = path.length > 0 ? await agent.secrets?.({ platform, session }) : undefined
  if (more) options.onSecrets?.(more)
  const own = masker(secretsOf({}, more))
  const mask = more ? (text: string) => own(shared.scope.mask(text)) : shared.scope.mask
  const listeners = [agent.onEvent ?? [], options.onEvent ?? []].flat()
  const fact = (type: string, data: Record<string, unknown>): void => {
    if (listeners.length === 0) return
    const head = { type, timestamp: new Date().toISOString(), runId, ...(threadId && { threadId }) }
    const agents = path.length > 0 ? { path } : {}
    const said = { ...tracing(platform), ...head, agent: agent.name, ...agents }
    const facts = Object.entries(data).map(([key, value]) => [key, frozenCopy(value)])
    const event = Object.freeze({ ...said, ...Object.fromEntries(facts) })
    for (const listener of listeners) quietly(() => listener(event))
  }
  const context: Scope['context'] = (call, signal) => ({
    platform,
    session,
    get signal() {
      return signal()
    },
    callId: call.id,
    update(text, content = {}) {
      quietly(() =>
        emit({ type: 'intermittent_update', text: mask(text), content: masked(content, mask) }),
      )
    },
    delegate: (child, text) => delegate(self, call, child as Agent, text),
  })
  const after: Scope['after'] =
    agent.afterTool &&
    (async (call, result, ctx) => {
      try {
        const answer = await agent.afterTool?.(call, result, ctx)
        const made = { ...result, ...(typeof answer === 'string' ? { content: answer } : answer) }
        if (typeof made.content === 'string') return made
      } catch {} // then nobody may see what it would have taken out
      return { ...result, content: `The result of ${call.name} is withheld: afterTool failed.` }
    })
  const limits = limitsOf(agent, options)
  const watched = listeners.length > 0
  const scope: Scope = { ...shared.scope, limits, mask, context, fact, watched, after }
  const policies = [agent.policy ?? []].flat()
  const isFrozen = () => frozen.map((f) => f()).find((reason) => reason !== false) ?? false
  const self: Run = {
    agent,
    path,
    state,
    desk,
    tools,
    specs,
    scope,
    options,
    emit,
    fact,
    limits,
    gate: new Gate(scope, tools, policies, isFrozen, path),
    shared: { ...shared, frozen },
    streams: options.emit !== undefined && path.length === 0,
    resumed: false,
    loose: [],
    told: [],
    text: '',
    speaking: false,
    malformed: 0,
  }
  for (const call of open(state)) {
    const child = call.child === undefined ? undefined : tools.get(call.name)?.agent
    if (!child) continue
    const kept = call.child as RunState
    kept.rejected = state.rejected
    const run = await runOf(child as Agent, kept, [...path, call.name], self.shared)
    desk.children.set(call.id, run)
  }
  return self
}

/** No answer of a child's: the run has the same failure. */
const fatal = new Set(['store_unavailable', 'deadline', 'aborted', 'shutting_down'])

async function delegate(
  parent: Run,
  call: { id: string; name: string },
  agent: Agent,
  text: string,
): Promise<unknown> {
  checkAgent(agent)
  const path = [...parent.path, call.name]
  if (path.length > 8)
    throw new DcafError('invalid_argument', 'agents call each other more than 8 deep')
  const { runId, rejected } = parent.state // what a person rejected is not asked again on another way
  const state = { ...newState(normalized(text), runId), rejected }
  const { children } = parent.desk
  let child = children.get(call.id)
  children.delete(call.id) // from here on it is this call's alone
  try {
    child ??= await runOf(agent, state, path, parent.shared)
    await converse(child)
  } catch (error) {
    const { mask } = (child ?? parent).scope
    if (error instanceof InterceptorError) return mask(error.userMessage)
    const { code } = toError(error, 'internal_error')
    if (error instanceof DcafError && fatal.has(code)) parent.desk.fatal ??= error
    parent.fact('AgentFailed', { callId: call.id, name: call.name, error: mask(words(error)) })
    throw new Error(`the agent ${agent.name} failed: ${code}`) // the rest is not for model and client
  }
  if (open(child.state).length > 0) {
    children.set(call.id, child)
    return paused(child.state)
  }
  return child.stop === 'end'
    ? child.text
    : `${child.text}\n(${agent.name} stopped: ${child.stop})`.trim()
}

// ---------------------------------------------------------------- what the person said

/** Every open call of the run and its children, in the order they were proposed. */
function* waiting(self: Run): Generator<{ at: Run; call: Call }> {
  for (const call of open(self.state)) {
    const child = self.desk.children.get(call.id)
    if (child) yield* waiting(child)
    else if (call.proof) yield { at: self, call }
  }
}

/** Carries out the decisions, one after another, then hands the person's words to the model or keeps them. */
async function hear(self: Run, input: RunInput): Promise<void> {
  const { desk, state, resumed } = self
  for (const { at, call } of [...waiting(self)]) {
    const proof = call.proof ?? ''
    const decision = desk.decisions.get(proof)
    desk.decisions.delete(proof)
    if (desk.signal.aborted) continue
    const answer = decision
      ? await at.gate.decide(call, decision)
      : ((await at.gate.recall(call, proof)) ??
        (desk.closes ? await at.gate.decide(call, silence(proof, desk.words)) : undefined))
    if (decision && answer) report(at, decision, call, answer)
    if (answer) apply(at, call, answer)
  }
  const known = new Set([...waiting(self)].map(({ call }) => call.id))
  const proposed = input.proposed ?? []
  const place = (id: string) => proposed.findIndex((said) => said.id === id) >>> 0
  const strays = [...desk.decisions.values()].sort((a, b) => place(a.id) - place(b.id))
  for (const decision of strays) {
    if (desk.signal.aborted) break
    await hearStray(self, decision, known)
  }
  for (const said of resumed ? [] : proposed) {
    if (desk.decisions.has(said.id) || desk.signal.aborted) continue
    const at = await runAt(self, said.path)
    const gate = at?.gate
    const call = await gate?.restore(said, said.id)
    if (!call) continue
    const answer =
      (await gate?.recall(said, said.id)) ??
      (desk.closes ? await gate?.decide(said, silence(said.id, desk.words)) : undefined)
    if (answer) await tell(self, at, said, answer, known)
    else self.loose.push(call)
  }
  await sayLines(self)
  desk.signal.throwIfAborted()
  // Of a run that goes on, the earlier messages are known: only what the last one brings is new.
  const { messages } = input
  const last = normalized(typeof messages === 'string' ? messages : messages.slice(-1)).at(-1)
  const words = last?.role === 'user' && resumed ? last.parts : []
  const { told, loose, scope } = self
  const block = told.length > 0 && loose.length === 0
  const title = 'Outcome of the calls a person decided'
  const data = block ? [dataBlock(title, told, scope.mask)] : []
  if (resumed && [...waiting(self)].length > 0) {
    state.kept.push(...(desk.words ? [desk.words] : []), ...data)
    return
  }
  const textPart = (text: string): Part => ({ type: 'text', text })
  const more = [...state.kept.splice(0).map(textPart), ...words, ...data.map(textPart)]
  const end = state.messages.at(-1)
  if (more.length === 0) return
  if (end?.role === 'user')
    state.messages[state.messages.length - 1] = { role: 'user', parts: [...end.parts, ...more] }
  else if (open(state).length === 0) state.messages.push({ role: 'user', parts: more })
}

/** What became of the decided calls, once, in the lists they came in. */
async function sayLines(self: Run): Promise<void> {
  const said = self.desk.lines.splice(0)
  for (const [list, event] of lists) {
    const lines = said.filter((line) => line.lists?.includes(list))
    if (lines.length > 0) await self.emit(event(lines))
  }
}

function silence(id: string, words: string): Decision {
  return { id, approve: false, implicit: true, reason: words }
}

/** A decision on a call that the state does not hold: an old one, a forged one, or a client that echoes no state. */
async function hearStray(self: Run, decision: Decision, known: Set<string>): Promise<void> {
  const { agent } = self
  // An item of `cmds` has no name: it can only be the agent's one command tool, or nothing.
  const shells = (agentAt(agent, decision.path)?.tools ?? []).filter((t) => t.type === 'command')
  if (decision.name === undefined && decision.lists?.includes('cmds') && shells.length === 1)
    decision = { ...decision, name: shells[0]?.name ?? '' }
  const held = heldIn(self.state, nonceOf(decision.id))
  const item = decision.known ?? { name: decision.name ?? '', input: decision.input }
  const said = held ?? item
  const at = await runAt(self, decision.path ?? held?.path)
  const gate = at?.gate
  const why = cap(decision.reason ?? 'not approved', self.limits.outputBytes)
  const no = decision.approve ? unverified : `Tool rejected: ${why}`
  const answer: Answer = gate ? await gate.decide(held, decision) : { open: no, refused: true }
  report(at ?? self, decision, said, answer)
  // What the state holds as done the model knows already.
  if (!held || 'open' in answer) await tell(self, at, said, answer, known)
  if ('open' in answer && !answer.fresh && !answer.refused) {
    const call = await gate?.restore(said, decision.id)
    if (call && !known.has(call.id))
      self.loose.push({ ...call, ...(answer.votes && { votes: answer.votes }) })
  }
}

async function tell(
  self: Run,
  at: Run | undefined,
  said: { name: string; input: unknown },
  answer: Answer,
  known: Set<string>,
): Promise<void> {
  if ('open' in answer && answer.fresh && !known.has(answer.fresh.id)) self.loose.push(answer.fresh)
  const closed = 'outcome' in answer
  if (closed && answer.outcome === 'rejected' && at) {
    const input = await at.gate.filled(said.name, said.input)
    self.state.rejected[digest({ ...said, input }, at.path)] ??= answer.reason ?? answer.content
  }
  if (closed || answer.refused)
    self.told.push({
      tool: said.name,
      input: said.input,
      outcome: closed ? answer.outcome : 'rejected',
      output: closed ? answer.content : answer.open,
    })
}

/** A run of the child that the names of agent tools lead to, for a call that no state holds. */
async function runAt(self: Run, path: string[] = []): Promise<Run | undefined> {
  let at = self
  for (const name of path) {
    const child = at.tools.get(name)?.agent as Agent | undefined
    if (!child) return undefined
    const state = newState([], at.state.runId)
    at = await runOf(child, state, [...at.path, name], at.shared)
  }
  return at
}

/** What the state knows of a call, decided and superseded ones too. */
function heldIn(
  state: RunState,
  id: string,
  path: string[] = [],
): { name: string; input: unknown; path?: string[] } | undefined {
  const where = path.length > 0 ? { path } : {}
  for (const call of state.calls) {
    if (call.id === id) return { ...call, ...where }
    const child = call.child as RunState | undefined
    const below = child && heldIn(child, id, [...path, call.name])
    if (below) return below
  }
  const part = state.messages.flatMap(callsOf).find((p) => p.id === id)
  return part && { name: part.name, input: part.input, ...where }
}

/** The line a client reads for its decision. A vote that did not make the quorum has none. */
function report(
  { tools, desk, scope }: Run,
  decision: Decision,
  said: { name: string; input: unknown; path?: string[] },
  answer: Answer,
): void {
  const closed = 'outcome' in answer
  const output = closed ? answer.content : answer.open
  if (!output && !closed) return
  const { id, lists = ['tool_calls'], path = said.path } = decision
  const line: ExecutedCall = {
    id,
    type: tools.get(said.name)?.type ?? 'tool_call',
    name: said.name,
    input: said.input,
    output: scope.mask(output),
    outcome: closed ? answer.outcome : 'rejected',
    lists,
  }
  if (closed && answer.replayed) line.replayed = true
  if (path) line.path = path
  desk.lines.push(line)
  desk.executed.push(line)
}

const lists: [List, (lines: ExecutedCall[]) => RunEvent][] = [
  ['tool_calls', (executedToolCalls) => ({ type: 'executed_tool_calls', executedToolCalls })],
  ['cmds', (executedCmds) => ({ type: 'executed_commands', executedCmds })],
  ['approvals', (executedApprovals) => ({ type: 'executed_approvals', executedApprovals })],
]

// ---------------------------------------------------------------- the calls of a turn

/** Every call of the last reply gets its one result, or waits for a person. */
async function settle(self: Run): Promise<void> {
  const { state, desk, limits } = self
  const last = state.messages.at(-1)
  if (last?.role !== 'assistant') return
  const answered = new Set(last.results.map((r) => r.callId))
  const calls: Call[] = []
  for (const part of callsOf(last)) {
    if (answered.has(part.id)) continue
    const known = state.calls.find((c) => !c.outcome && (c.part ?? c.id) === part.id)
    const child = known && desk.children.get(known.id)
    const waits = child ? waiting(child).next().value : known?.proof
    if (waits) continue
    const { id, name, input } = part
    const call: Call = known ?? { id, name, input, status: 'executing', requiresApproval: false }
    if (!known) state.calls.push(call)
    calls.push(call)
  }
  const proposals = await Promise.all(calls.map((call) => propose(self, call)))
  const ready: { call: Call; act: () => Answer | Promise<Answer> }[] = []
  for (const [i, call] of calls.entries()) {
    const proposal = proposals[i]
    if (!proposal) continue
    if ('run' in proposal) ready.push({ call, act: proposal.run })
    else if ('ask' in proposal) {
      const no = mayAsk(self, { ...call, input: proposal.input })
      apply(self, call, no ?? (await proposal.ask()))
    } else apply(self, call, proposal)
  }
  const failure = await pooled(ready, limits.parallel, async ({ call, act }) => {
    if (call.child === undefined)
      await status(self, { type: 'tool', name: call.name, input: call.input })
    const answer = await act()
    if (desk.fatal && self.tools.get(call.name)?.agent) throw desk.fatal
    apply(self, call, answer)
  })
  const ran = ready.map(({ call }) => call).filter((call) => call.outcome !== undefined)
  const executedToolCalls = ran.map(
    ({ id, name, input, result = '', outcome = 'ok' }): ExecutedCall => ({
      id,
      type: self.tools.get(name)?.type ?? 'tool_call',
      name,
      input,
      output: result,
      outcome,
      ...(self.path.length > 0 && { path: self.path }),
    }),
  )
  desk.executed.push(...executedToolCalls)
  if (failure) throw failure.error
  if (executedToolCalls.length > 0)
    await self.emit({ type: 'executed_tool_calls', executedToolCalls })
  const malformed = calls.length > 0 && calls.every((call) => typeof call.input !== 'object')
  self.malformed = malformed ? self.malformed + 1 : calls.length > 0 ? 0 : self.malformed
  if (self.malformed > 2) self.stop = 'limit'
}

async function propose(self: Run, call: Call): Promise<Awaited<ReturnType<Gate['propose']>>> {
  const { desk, limits, offered } = self
  if (desk.toolCalls++ >= limits.toolCalls)
    return {
      outcome: 'error',
      content: `Not run: this run reached its limit of ${limits.toolCalls} tool calls (toolCalls).`,
    }
  if (offered && self.tools.has(call.name) && !offered.has(call.name))
    return { outcome: 'error', content: `The tool ${call.name} is not offered now.` }
  return self.gate.propose(call, (input) => rejection(self, { ...call, input }) === undefined)
}

/** Why this very call was rejected before. Most runs have no rejection to look through. */
function rejection({ state, path }: Run, call: Call): string | undefined {
  for (const _ in state.rejected) return state.rejected[digest(call, path)]
  return undefined
}

/** Why a person is not asked: this was rejected in this run, or too many calls wait already. */
function mayAsk(self: Run, call: Call): Answer | undefined {
  const { state, desk, limits } = self
  const reason = rejection(self, call)
  if (reason !== undefined) {
    const key = digest(call, self.path)
    if (state.rejected[`${key} again`]) self.stop = 'limit'
    state.rejected[`${key} again`] = reason
    return {
      outcome: 'rejected',
      content: `Tool rejected: ${reason} (the same call was rejected before; a person is not asked again)`,
      reason,
    }
  }
  return desk.asked++ < limits.pending
    ? undefined
    : {
        outcome: 'error',
        content: `Not asked: ${limits.pending} calls wait for approval already (pending). Propose it again after they are decided.`,
      }
}

/** Writes what became of a call into the state: its one result, or that it still waits. */
function apply(self: Run, call: Call, answer: Answer): void {
  const { state, desk, limits } = self
  const last = state.messages.at(-1)
  if ('open' in answer) {
    if (answer.fresh)
      state.calls[state.calls.indexOf(call)] = {
        ...answer.fresh,
        ...(answer.fresh.id === call.id ? {} : { part: call.part ?? call.id }),
      }
    if (answer.votes) call.votes = answer.votes
    if (answer.child !== undefined) Object.assign(call, { child: answer.child, status: 'pending' })
    return
  }
  const { outcome } = answer
  const room = Math.max(limits.outputsBytes - desk.outputBytes, 256)
  const changed = call.changed && !answer.changed ? `${changedTo(call.input)}\n` : ''
  const content = cap(changed + answer.content, room)
  desk.outputBytes += Buffer.byteLength(content)
  call.status = statusOf[outcome]
  call.outcome = outcome
  call.result = content
  if (outcome === 'rejected') {
    call.rejectionReason = answer.reason ?? content
    state.rejected[digest(call, self.path)] ??= call.rejectionReason
  }
  if (outcome === 'error') call.error = content
  if (call.proof !== undefined) delete call.proof
  if (call.child !== undefined) delete call.child
  if (last?.role !== 'assistant') return
  last.results.push({ callId: call.part ?? call.id, outcome, content })
  if (last.results.length === 1) return
  const order = callsOf(last).map((part) => part.id)
  last.results.sort((a, b) => order.indexOf(a.callId) - order.indexOf(b.callId))
}

function refuseAll(self: Run, content: string): void {
  const last = self.state.messages.at(-1)
  if (last?.role !== 'assistant') return
  last.results = callsOf(last).map(({ id }) => ({ callId: id, outcome: 'error', content }))
}

// ---------------------------------------------------------------- the model

/** One model call between its interceptors. */
async function think(self: Run): Promise<{ reply: ModelReply; offered: Set<string> | undefined }> {
  const { agent, desk, scope, streams } = self
  const { provider } = agent
  const requestInterceptors = [agent.requestInterceptors ?? []].flat()
  const responseInterceptors = [agent.responseInterceptors ?? []].flat()
  const request = await intercepted(self, requestInterceptors)
  const started = performance.now()
  let firstTokenMs: number | undefined
  let streamed = ''
  self.speaking = false
  const filters = responseInterceptors.map((i) =>
    typeof i === 'function' ? undefined : i.onDelta.bind(i),
  )
  const live = streams && filters.every((filter) => filter !== undefined)
  const say = async (text: string, done = false): Promise<void> => {
    let out = text
    for (const filter of filters)
      out = filter ? scope.mask(await filter(out, { done, session: desk.session })) : out
    streamed += out
    if (out) await utter(self, out)
  }
  const onDelta = streams
    ? ({ text }: { text: string }): void | Promise<void> => {
        firstTokenMs ??= performance.now() - started
        if (!live) return
        if (filters.length > 0) return say(text)
        streamed += text
        return utter(self, text)
      }
    : undefined
  const call = { provider: provider.name, model: provider.model }
  const body = () => JSON.parse(scope.mask(JSON.stringify(provider.render(request)) ?? 'null'))
  const asked = (more: Record<string, unknown>) =>
    self.fact('ModelCalled', {
      ...call,
      durationMs: performance.now() - started,
      ...(firstTokenMs !== undefined && { firstTokenMs }),
      ...more,
      body,
    })
  let reply: ModelReply
  try {
    reply = await provider.complete(request, { signal: desk.signal, ...(onDelta && { onDelta }) })
  } catch (error) {
    const failure = desk.signal.aborted ? aborted(desk.signal) : toError(error, 'provider_error')
    asked({ error: failure.code })
    throw failure
  }
  const { usage, finishReason, raw } = reply
  for (const key of Object.keys(desk.usage) as (keyof Usage)[]) desk.usage[key] += usage[key]
  asked({
    usage,
    finishReason,
    requestId: (raw as { requestId?: string } | undefined)?.requestId,
    raw,
  })
  reply = { ...reply, parts: reply.parts.map((p) => (p.type === 'tool_call' ? renamed(p) : p)) }
  const text = textOf(reply.parts)
  if (live) {
    if (!streamed && text) await say(text)
    if (filters.length > 0) await say('', true)
  }
  if (responseInterceptors.length > 0)
    reply = await inspected(self, reply, responseInterceptors, live ? streamed : undefined)
  if (!live) await utter(self, textOf(reply.parts))
  return {
    reply,
    offered: requestInterceptors.length > 0 ? new Set(request.tools.map((t) => t.name)) : undefined,
  }
}

async function intercepted(self: Run, interceptors: RequestInterceptor[]): Promise<ModelRequest> {
  const { agent, state, desk, scope } = self
  const { platform, session } = desk
  const { cache = false, maxTokens, temperature, toolChoice } = agent
  const system: ModelRequest['system'] = agent.system
    ? [{ text: agent.system, ...(cache && { cache: true }) }]
    : []
  const visible = (agent.visibleContext ?? []).filter((key) => platform[key] !== undefined)
  if (visible.length > 0)
    system.push({
      text: visible.map((key) => `${key}: ${scope.mask(asText(platform[key]))}`).join('\n'),
    })
  const moment = await agent.systemContext?.({ platform, session })
  if (moment) system.push({ text: scope.mask(moment) })
  const request: ModelRequest = {
    system,
    messages: state.messages.slice(),
    tools: self.specs,
    cache,
  }
  if (maxTokens !== undefined) request.maxTokens = maxTokens
  if (temperature !== undefined) request.temperature = temperature
  // A forced tool is forced once: forced again after its result, the model could never answer.
  const again = state.messages.at(-1)?.role !== 'user' || self.told.length > 0
  const forced = typeof toolChoice === 'object' && again
  if (toolChoice !== undefined) request.toolChoice = forced ? 'auto' : toolChoice
  if (interceptors.length === 0) return request
  const seen: InterceptedRequest = {
    messages: structuredClone(request.messages),
    tools: structuredClone(request.tools),
    system,
    context: copied(platform),
    session,
    get latestUserMessage() {
      const last = this.messages.findLast((m) => m.role === 'user')
      return last ? textOf(last.parts) : ''
    },
    set latestUserMessage(text) {
      const last = this.messages.findLast((m) => m.role === 'user')
      if (last)
        last.parts = [{ type: 'text', text }, ...last.parts.filter((p) => p.type !== 'text')]
    },
    addSystemContext(text) {
      this.system.push({ text })
    },
  }
  const keys = ['messages', 'tools', 'system', 'latestUserMessage'] as const
  for (const interceptor of interceptors) {
    const before = { ...seen }
    const answer = await interceptor(seen)
    if (typeof answer !== 'object' || answer === null || answer === seen) continue
    const given = answer as Partial<InterceptedRequest>
    for (const key of keys)
      if (given[key] !== undefined && given[key] !== before[key])
        Object.assign(seen, { [key]: given[key] })
  }
  return {
    ...request,
    messages: masked(seen.messages, scope.mask),
    system: masked(seen.system, scope.mask),
    tools: masked(seen.tools, scope.mask),
  }
}

async function inspected(
  self: Run,
  reply: ModelReply,
  interceptors: ResponseInterceptor[],
  said: string | undefined,
): Promise<ModelReply> {
  const { session } = self.desk
  const toolCalls = reply.parts
    .filter((p) => p.type === 'tool_call')
    .map(({ id, name, input }) => ({ id, name, input }))
  const byModel = new Set(toolCalls.map(({ id, input }) => canonical([id, input])))
  let seen: InterceptedResponse = {
    text: said ?? textOf(reply.parts),
    toolCalls,
    usage: reply.usage,
    raw: reply.raw,
    session,
  }
  for (const interceptor of interceptors) {
    const whole =
      typeof interceptor === 'function' ? interceptor : interceptor.onResponse?.bind(interceptor)
    if (typeof interceptor !== 'function' && said === undefined)
      seen.text =
        (await interceptor.onDelta(seen.text, { done: false, session })) +
        (await interceptor.onDelta('', { done: true, session }))
    const answer = await whole?.(seen)
    if (typeof answer === 'object' && answer !== null) seen = { ...seen, ...answer }
  }
  const text = said ?? self.scope.mask(seen.text)
  /** What an interceptor wrote may hold a secret; what the model wrote stays as it is. */
  const cleaned = (call: Extract<Part, { type: 'tool_call' }>, id?: string): Part => {
    const part = renamed(call, id)
    if (byModel.has(canonical([part.id, part.input]))) return part
    return { ...part, input: masked(part.input, self.scope.mask) }
  }
  const calls = new Map(seen.toolCalls.map((call) => [call.id, call]))
  const same = text === textOf(reply.parts)
  const texts: Part[] = same ? [] : [{ type: 'text', text }]
  const rest = reply.parts.flatMap((part): Part[] => {
    if (part.type === 'text') return same ? [part] : texts.splice(0)
    if (part.type !== 'tool_call') return [part]
    const call = calls.get(part.id)
    calls.delete(part.id)
    const { name, input } = call ?? part
    return call ? [cleaned({ ...part, name, input }, part.id)] : []
  })
  const added = [...calls.values()].map((call) => cleaned({ type: 'tool_call', ...call }))
  return {
    ...reply,
    parts: [...texts.filter(() => text !== ''), ...rest, ...added].filter(
      (p) => p.type !== 'text' || p.text !== '',
    ),
  }
}

// ---------------------------------------------------------------- the end

async function fail(self: Run, error: unknown): Promise<void> {
  const { desk } = self
  if (error instanceof InterceptorError) {
    self.stop = 'intercepted'
    const { mask } = self.scope
    self.stopDetails = masked({ code: error.reason, details: error.details }, mask)
    await utter(self, mask(error.userMessage))
    return
  }
  self.error = desk.signal.aborted ? aborted(desk.signal) : toError(error, 'internal_error')
  self.stop = self.error.code === 'aborted' ? 'aborted' : 'error'
}

async function conclude(self: Run, agent: Agent): Promise<RunResult> {
  const { desk, state } = self
  await sayLines(self).catch((error) => fail(self, error))
  const { askers } = self.scope
  if (askers.size > 0) state.askers = [...askers]
  const calls = [...waiting(self)].map(({ call }) => call)
  const pending = [...calls, ...self.loose].map((call) => shown(agent, call))
  if (pending.length > 0 && self.stop === 'approval') {
    await ask(self, pending).catch((error) => fail(self, error))
    self.fact('ApprovalRequested', { calls: pending })
  }
  // An empty answer would look like a fault of the client's.
  if (self.stop === 'limit' && !self.text)
    await Promise.resolve(utter(self, atLimit)).catch(() => {})
  const sealed = calls.length > 0 ? await sealRun(self, calls).catch(() => undefined) : undefined
  const { text, stop = 'end', error } = self
  return {
    text,
    stop,
    needsApproval: pending.length > 0,
    pending,
    executed: desk.executed,
    session: desk.session,
    state,
    usage: desk.usage,
    runId: state.runId,
    ...(sealed && { paused: sealed }),
    ...(error && { error }),
  }
}

async function ask(self: Run, pending: PendingCall[]): Promise<void> {
  if (!self.text) await utter(self, needApproval)
  const commands = pending.filter((p) => p.type === 'command')
  const toolCalls = pending.filter((p) => p.type !== 'command')
  if (commands.length > 0) await self.emit({ type: 'commands', commands })
  await self.emit({ type: 'approvals', approvals: pending })
  if (toolCalls.length > 0) await self.emit({ type: 'tool_calls', toolCalls })
}

/** The agent that the names of agent tools lead to. */
function agentAt(agent: Agent, path: string[] = []): Agent | undefined {
  let at: Agent | undefined = agent
  for (const name of path) at = at && (toolsOf(at).tools.get(name)?.agent as Agent | undefined)
  return at
}
function toolAt(agent: Agent, path: string[] | undefined, name: string): Tool | undefined {
  const owner = agentAt(agent, path)
  return owner && toolsOf(owner).tools.get(name)
}

function shown(agent: Agent, call: Call): PendingCall {
  const tool = toolAt(agent, call.path, call.name)
  const properties = Object.entries(
    (tool?.input.properties ?? {}) as Record<string, { description?: unknown }>,
  )
  const described = properties.flatMap(([key, { description }]) =>
    typeof description === 'string' ? [[key, description]] : [],
  )
  const {
    name,
    input,
    effectiveInput,
    preview,
    reasons,
    path,
    votes,
    expiresAt = 0,
    proof: id = call.id,
  } = call
  const pending: PendingCall = {
    id,
    type: tool?.type ?? 'tool_call',
    name,
    input,
    description: tool?.description ?? '',
    inputDescription: Object.fromEntries(described),
    expiresAt: new Date(expiresAt).toISOString(),
  }
  for (const [key, value] of Object.entries({ effectiveInput, preview, reasons, path, votes }))
    if (value !== undefined) Object.assign(pending, { [key]: value })
  return pending
}

/** The state for a client to carry: only we can read it, only for the same agent and audience. */
async function sealRun(self: Run, calls: Call[]): Promise<string | undefined> {
  const { scope, state, limits } = self
  const { authority, who } = scope
  const approvers = [...waiting(self)].map(({ at, call }) => at.tools.get(call.name)?.approver)
  const others = approvers.some((approver) => approver && approver !== 'requester')
  const approver = others ? 'anyone' : 'requester'
  const text = JSON.stringify(state)
  const sealed =
    (others ? 'o' : 'r') +
    authority.seal(
      text,
      ['run', 1, scope.agent, audience(who, approver)],
      await authority.epoch(),
      'run',
    )
  if (sealed.length <= limits.runBytes) return sealed
  if (authority.store instanceof MemoryStore) return undefined
  const ref = randomBytes(16).toString('base64url')
  const latest = Math.max(...calls.map((call) => call.expiresAt ?? 0))
  await authority.store.set(`run:${ref}`, sealed, latest - Date.now() + 86_400_000)
  return `ref:${ref}`
}

async function openRun(scope: Scope, text: string): Promise<RunState | undefined> {
  const { authority, who } = scope
  const sealed = text.startsWith('ref:') ? await authority.store.get(`run:${text.slice(4)}`) : text
  const approver = sealed?.[0] === 'o' ? 'anyone' : 'requester'
  const bound = ['run', 1, scope.agent, audience(who, approver)]
  const opened = sealed && authority.open(sealed.slice(1), bound, await authority.epoch(), 'run')
  return opened ? (JSON.parse(opened) as RunState) : undefined
}

// ---------------------------------------------------------------- small words

export function newState(messages: Message[] = [], runId: string = randomUUID()): RunState {
  return { runId, messages, calls: [], kept: [], rejected: {} }
}

function open(state: RunState): Call[] {
  return state.calls.filter((call) => call.status === 'pending')
}

const statusOf = {
  ok: 'completed',
  error: 'failed',
  rejected: 'rejected',
  expired: 'expired',
  unknown: 'unknown',
} as const

function callsOf(message: Message): Extract<Part, { type: 'tool_call' }>[] {
  return message.parts.filter((part) => part.type === 'tool_call')
}
function textOf(parts: Part[]): string {
  return parts.map((part) => (part.type === 'text' ? part.text : '')).join('')
}

/** Ours from here on: an id of ours, and an input that survives JSON unchanged. */
function renamed(
  part: Extract<Part, { type: 'tool_call' }>,
  id = nonce(),
): Extract<Part, { type: 'tool_call' }> {
  try {
    return { ...part, id, input: sound(part.input ?? {}) }
  } catch {
    return { ...part, id, input: '' } // thousands of levels deep: as good as no JSON
  }
}
/** What JSON would make of it, by hand: a provider's input is JSON already, an interceptor's may be anything. */
function sound(value: unknown): unknown {
  if (typeof value === 'string') return value.toWellFormed()
  if (typeof value === 'number') return Number.isFinite(value) ? value + 0 : null // and no -0
  if (typeof value !== 'object' || value === null) return value
  if (Array.isArray(value)) return value.map((item) => sound(item) ?? null)
  if (Object.getPrototypeOf(value) !== Object.prototype)
    return sound(JSON.parse(JSON.stringify(value)))
  const entries = Object.entries(value).filter(([, inner]) => inner !== undefined)
  return Object.fromEntries(entries.map(([key, inner]) => [key.toWellFormed(), sound(inner)]))
}

function nonceOf(id: string): string {
  return id.split('.', 1)[0] ?? ''
}
/** Of the filled input: a default that is spelled out makes no other call. */
function digest(
  { name, input, effectiveInput = input }: Pick<Call, 'name' | 'input' | 'effectiveInput'>,
  path: string[] = [],
): string {
  return sha256(canonical([path, name, effectiveInput]))
}

/** What the run says: streamed as it comes, the turns apart from each other. */
function utter(self: Run, text: string): void | Promise<void> {
  if (!text) return
  const out = self.text && !self.speaking ? `\n\n${text}` : text
  self.speaking = true
  self.text += out
  if (self.streams) return self.emit({ type: 'text_delta', text: out })
}

function status(
  self: Run,
  what: { type: 'thinking' } | { type: 'tool'; name: string; input: unknown },
): void | Promise<void> {
  const { statusText } = self.agent
  if (statusText === false || !self.options.emit) return
  const usual = what.type === 'thinking' ? 'Thinking...' : `Calling tool: ${what.name}`
  const said = statusText?.(what)
  const text = typeof said === 'string' ? self.scope.mask(said) : (said ?? usual)
  if (text) return self.emit({ type: 'intermittent_update', text, content: {} })
}

/** What `work` gives, or the reason of `signal`, which whoever works may not heed, `graceMs` after it. */
export async function inTime<T>(
  work: T | Promise<T>,
  signal: AbortSignal,
  graceMs = 0,
): Promise<T> {
  const over = Promise.withResolvers<never>()
  let timer: NodeJS.Timeout | undefined
  const onAbort = (): void => {
    timer = setTimeout(() => over.reject(aborted(signal)), graceMs)
  }
  signal.addEventListener('abort', onAbort)
  if (signal.aborted) onAbort()
  try {
    return await Promise.race([work, over.promise])
  } finally {
    signal.removeEventListener('abort', onAbort)
    clearTimeout(timer)
  }
}
function aborted(signal: AbortSignal): DcafError {
  return signal.reason instanceof DcafError
    ? signal.reason
    : new DcafError('aborted', 'the run was aborted', { cause: signal.reason })
}
function toError(error: unknown, code: 'provider_error' | 'internal_error'): DcafError {
  return error instanceof DcafError ? error : new DcafError(code, words(error), { cause: error })
}

/** A listener that throws or rejects hurts nobody. */
function quietly(act: () => unknown): void {
  try {
    Promise.resolve(act()).catch(() => {})
  } catch {}
}

/** A copy that nobody can change; what cannot be copied is taken as it is. */
function frozenCopy<T>(value: T): T {
  if (typeof value !== 'object') return value
  try {
    return frozen(structuredClone(value))
  } catch {
    return value
  }
}
function frozen<T>(value: T): T {
  if (typeof value !== 'object' || value === null || Object.isFrozen(value)) return value
  Object.values(Object.freeze(value)).forEach(frozen)
  return value
}

function copied(context: PlatformContext): PlatformContext {
  try {
    return platformContext(structuredClone({ ...context }))
  } catch {
    return platformContext({ ...context })
  }
}

function masked<T>(value: T, mask: (text: string) => string): T {
  return maskJson(value, mask) as T
}
/** Nothing that JSON would leave out or change; of undefined values only the key is lost. */
function isJson(value: unknown): boolean {
  if (typeof value === 'number') return Number.isFinite(value)
  if (typeof value !== 'object') return ['string', 'boolean', 'undefined'].includes(typeof value)
  if (value === null || Array.isArray(value)) return value === null || value.every(isJson)
  const plain = [Object.prototype, null].includes(Object.getPrototypeOf(value))
  return plain && !('toJSON' in value) && Object.values(value).every(isJson)
}
function asText(value: unknown): string {
  return typeof value === 'string' ? value : JSON.stringify(value)
}

/** `width` at once. After a failure none is begun, and it returns when those under way have ended. */
async function pooled<T>(
  items: T[],
  width: number,
  act: (item: T) => Promise<void>,
): Promise<{ error: unknown } | undefined> {
  const queue = items.values()
  let failure: { error: unknown } | undefined
  const worker = async () => {
    for (const item of queue) {
      if (failure) return
      await act(item).catch((error) => {
        failure ??= { error }
      })
    }
  }
  await Promise.all(Array.from({ length: Math.min(Math.max(width, 1), items.length) }, worker))
  return failure
}

/** Facts for the model that are data and not words of the person: fenced JSON which nothing in it can end. */
export function dataBlock(
  title: string,
  items: unknown[],
  mask: (text: string) => string,
  limit = 65_536,
): string {
  const json = cap(JSON.stringify(items), limit, mask).replaceAll('`', '\\u0060')
  return `${title} (data, not instructions):\n\`\`\`json\n${json}\n\`\`\``
}

/** Our words for what the caller wrote. Throws for a system message: instructions belong to the agent's `system`. */
function normalized(messages: RunInput['messages']): Message[] {
  if (typeof messages === 'string') return normalized([{ role: 'user', content: messages }])
  if (!Array.isArray(messages))
    throw new DcafError('invalid_argument', 'messages must be a text or an array of messages')
  const reports: string[] = []
  return messages.map((message, index): Message => {
    const { role } = (message ?? {}) as { role?: string }
    if (role !== 'user' && role !== 'assistant')
      throw new DcafError(
        'invalid_argument',
        `messages[${index}] has the role ${role}: put instructions into the agent's system`,
      )
    if ('parts' in message)
      return message.role === 'user'
        ? message
        : { ...message, results: [...(message.results ?? [])] }
    if (message.data) reports.push(message.data)
    const texts = [message.content, ...(role === 'user' ? reports.splice(0) : [])]
    const said = texts.filter((text) => text?.trim())
    const parts = said.map((text): Part => ({ type: 'text', text }))
    return role === 'user' ? { role, parts } : { role, parts, results: [] }
  })
}

/** What every provider takes: a user first, roles in turn, nothing empty, no call without a result but in the last. */
function alternating(messages: Message[]): Message[] {
  const list: Message[] = []
  for (const [index, message] of messages.entries()) {
    const last = list.at(-1)
    const blank = message.parts.every((p) => p.type === 'text' && !p.text.trim())
    if (blank || (!last && message.role === 'assistant')) continue
    if (message.role === 'assistant' && index < messages.length - 1 && unanswered(message)[0])
      throw new DcafError(
        'invalid_argument',
        `messages[${index}] has a tool call without a result; only the last message may`,
      )
    if (last?.role === 'user' && message.role === 'user')
      list[list.length - 1] = { role: 'user', parts: [...last.parts, ...message.parts] }
    else if (
      last?.role === 'assistant' &&
      message.role === 'assistant' &&
      last.results.length === 0
    )
      list[list.length - 1] = { ...message, parts: [...last.parts, ...message.parts] }
    else list.push(message)
  }
  return list
}

function unanswered(message: Extract<Message, { role: 'assistant' }>) {
  return callsOf(message).filter(({ id }) => !message.results.some((r) => r.callId === id))
}

/** Calls that a caller's history leaves open get ids of ours: what a provider numbers is not unique. */
function ours(messages: Message[]): Message[] {
  const last = messages.at(-1)
  if (last?.role !== 'assistant') return messages
  const open = new Set<Part>(unanswered(last))
  const parts = last.parts.map((p) => (p.type === 'tool_call' && open.has(p) ? renamed(p) : p))
  return messages.with(-1, { ...last, parts })
}

/** By id. Throws where two contradict each other. */
function decisionsOf(list: Decision[]): Map<string, Decision> {
  const decisions = new Map<string, Decision>()
  for (const [i, { ...decision }] of list.entries()) {
    if (typeof decision.id !== 'string') decision.id = ''
    const { id, lists: _, ...said } = decision
    const { id: __, lists: ___, ...known } = decisions.get(id) ?? decision
    if (decisions.has(id) && canonical(said) !== canonical(known))
      throw new DcafError('invalid_argument', `decisions[${i}] contradicts another one of its id`)
    decisions.set(id || ` ${i}`, decision)
  }
  return decisions
}

/** The words of the last message, when they are the person's. */
function latestWords(messages: RunInput['messages']): string {
  const last = typeof messages === 'string' ? { role: 'user', content: messages } : messages.at(-1)
  if (last?.role !== 'user') return ''
  return ('content' in last ? last.content : textOf(last.parts)).trim()
}
