// The loop: one model call plus tools, again and again, until there is an answer or a person must decide.
// Knows no HTTP and no vendor. All state of a run is in the run; an Agent is a plain object that many runs share.
// Beside it, loaded when first needed: hearing.ts (what a person decided), ending.ts (what waits, as it is shown), sealing.ts
// (the state as a client carries it), facts.ts (events for listeners), interceptors.ts, children.ts (agents as tools).

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
  type Proposal,
  type Result,
  type Scope,
  words,
} from './approval.ts'
import { loader } from './load.ts'
import {
  type Mask,
  masker,
  maskJson,
  maskOf,
  platformContext,
  secretKeys,
  secretsOf,
} from './mask.ts'
import * as talk from './messages.ts'
import { Authority, canonical, randomId, sha256 } from './proof.ts'
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
import { memoryStore, type Store } from './store.ts'
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

export type { ChatMessage } from './messages.ts'
export interface RunInput {
  messages: talk.Messages
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

const children = loader(() => import('./children.ts'))
const ending = loader(() => import('./ending.ts'))
const facts = loader(() => import('./facts.ts'))
const hearing = loader(() => import('./hearing.ts'))
const interceptors = loader(() => import('./interceptors.ts'))
const sealing = loader(() => import('./sealing.ts'))

/** Throws only for a caller's mistake, before anything ran; else it returns, with everything that ran. */
export async function run(
  agent: Agent,
  input: RunInput,
  options: RunOptions = {},
): Promise<RunResult> {
  const preparing = prepare(agent, input, options)
  const self = preparing instanceof Promise ? await preparing : preparing
  const { desk } = self
  const started = performance.now()
  if (desk.signal) desk.late = new Late(desk.signal, 1_000) // a model call may not heed it
  try {
    const isHeard = self.resumed || desk.decisions.size > 0 || input.proposed?.length
    if (isHeard && !self.error) await (await hearing()).hear(self, input)
    if (!self.error) {
      desk.signal?.throwIfAborted() // before a call that the thread brings is judged
      await converse(self)
    }
  } catch (error) {
    await fail(self, error)
  }
  const result = isOver(self) ? resultOf(self) : await conclude(self)
  const { stop, usage, error } = result
  const durationMs = performance.now() - started
  self.fact('RunFinished', { stop, usage, durationMs, ...self.stopDetails })
  desk.late?.end()
  desk.over = true
  if (!options.emit) return result
  try {
    const told = desk.emit(error ? { type: 'error', error, result } : { type: 'done', result })
    if (told) await told
  } catch {} // the result is what counts now
  return result
}

/** The turns: every call of the last reply gets its result or waits; then the model speaks. */
export async function converse(self: Run): Promise<void> {
  const { limits, state, desk } = self
  for (let turn = 0; !self.stop; turn++) {
    const last = state.messages.at(-1)
    const calls = last?.role === 'assistant' ? unsettled(self, last) : noCalls
    if (calls.length > 0) await settle(self, calls)
    if (pendingIn(state) || self.loose.length > 0) self.stop = 'approval'
    else if (self.stop) return
    else if (!last?.parts.length || (last.role === 'assistant' && !last.parts.some(isCall)))
      self.stop = 'end'
    else if (turn >= limits.turns) self.stop = 'limit'
    if (self.stop) return
    desk.signal?.throwIfAborted()
    const said = desk.modelCalls++ > 0 && status(self, { type: 'thinking' })
    if (said) await said
    const work = think(self)
    const { parts, finishReason } = await (desk.late ? desk.late.of(work) : work)
    if (parts.length === 0) self.stop = 'end'
    else state.messages.push({ role: 'assistant', parts, results: [] })
    if (finishReason === 'length' || finishReason === 'content_filter') {
      if (!self.stop) refuseAll(self, `Not run: the reply was cut off (${finishReason}).`)
      self.stop = finishReason
    }
  }
}

// ---------------------------------------------------------------- one run

const none = new Map<string, Decision>()

/** What one request and all its child runs share. */
export class Desk {
  readonly options: RunOptions
  readonly platform: PlatformContext
  readonly session: Session
  readonly signal: AbortSignal | undefined
  readonly decisions: Map<string, Decision>
  /** The person's words: the reason of whatever nobody named, where no click says otherwise. */
  readonly words: string
  readonly closes: boolean
  runId = ''
  executed: ExecutedCall[] = []
  /** Decided calls whose outcome was not emitted yet. */
  lines: ExecutedCall[] = []
  usage: Usage = { ...noUsage }
  modelCalls = 0
  toolCalls = 0
  /** Calls that wait, the children's too: no one decides them while this request lasts. */
  asked = 0
  outputBytes = 0
  children: Map<string, Run> | undefined
  /** What stopped a child and stops the run. */
  fatal?: DcafError
  late: Late | undefined
  over = false
  #deaf = false

  constructor(input: RunInput, options: RunOptions) {
    const { context = {}, session } = options
    this.options = options
    this.platform = platformContext(context)
    this.session = session instanceof Session ? session : new Session(session)
    this.signal = options.signal
    this.decisions = input.decisions?.length ? decisionsOf(input.decisions) : none
    this.words = talk.latestWords(input.messages)
    this.closes = this.words !== '' && this.decisions.values().every((d) => d.implicit)
  }

  /** Once a token: no promise is made where the caller made none. Not called again after it failed. */
  emit(event: RunEvent): void | Promise<void> {
    const { emit } = this.options
    if (!emit || this.#deaf) return
    if (this.over && event.type !== 'done' && event.type !== 'error') return
    try {
      return emit(event)?.then(undefined, this.#deafen)
    } catch (error) {
      this.#deafen(error)
    }
  }
  #deafen = (cause: unknown): never => {
    this.#deaf = true
    throw new DcafError('internal_error', 'emit failed', { cause })
  }
}

/** What the gates of one request share, and what a child has from its parent. */
type Base = Omit<Scope, 'limits' | 'context' | 'fact' | 'watched' | 'after'>
type Above = { desk: Desk; scope: Base; path?: string[]; frozen?: Run['frozen'] }

/** One agent of the tree at work; each has a gate of its own. */
export class Run {
  readonly agent: Agent
  readonly state: RunState
  readonly desk: Desk
  readonly path: string[]
  readonly limits: RunLimits
  readonly tools: Map<string, Tool>
  readonly specs: ToolSpec[]
  readonly scope: Scope
  readonly gate: Gate
  readonly listeners: Listener[]
  tell: Scope['fact'] | undefined
  /** The switches of the agents above it, and its own. */
  readonly frozen: (() => string | false)[]
  /** Where somebody reads along: what the model says, as it says it. */
  readonly onDelta: ((delta: { text: string }) => void | Promise<void>) | undefined
  /** The agent's interceptors at work. */
  around: Around | undefined
  /** The state came with the request; else it is the thread. */
  resumed = false
  /** Pending calls that only the thread remembers. */
  loose: Call[] = []
  /** Outcomes of calls that are not in the state, for the model. */
  told: unknown[] = []
  text = ''
  /** Something was said in this turn; some of it was streamed; what, where interceptors will ask. */
  speaking = false
  hasStreamed = false
  streamed = ''
  /** When the model was asked, and when its first piece came; milliseconds. */
  asked = 0
  firstToken = 0
  malformed = 0
  stop: Stop | undefined
  stopDetails: object | undefined
  error: DcafError | undefined

  constructor(agent: Agent, state: RunState, above: Above, mask: Mask) {
    const { desk, path = [], frozen = [] } = above
    const { options } = desk
    this.agent = agent
    this.state = state
    this.desk = desk
    this.path = path
    this.limits = limitsOf(agent, options)
    const { tools, specs } = toolsOf(agent)
    this.tools = tools
    this.specs = specs
    this.frozen = agent.frozen ? [...frozen, agent.frozen] : frozen
    this.onDelta = options.emit && path.length === 0 ? (delta) => this.hear(delta.text) : undefined
    const isHeard = agent.onEvent || options.onEvent
    this.listeners = isHeard ? [agent.onEvent ?? [], options.onEvent ?? []].flat() : []
    this.scope = {
      ...above.scope,
      limits: this.limits,
      mask,
      fact: (type, data) => this.fact(type, data),
      watched: this.listeners.length > 0,
      after: agent.afterTool && afterTool(agent.afterTool),
      context: (call, signal) => this.context(call, signal()),
    }
    const policies = agent.policy === undefined ? [] : [agent.policy].flat() // what is no policy asks
    this.gate = new Gate(this.scope, tools, policies, () => this.isFrozen(), path)
  }

  /** Tells the listeners, if there are any (`scope.watched`); facts.ts knows how. */
  fact(type: string, data: Record<string, unknown>): void {
    this.tell?.(type, data)
  }

  /** A piece of what the model says. */
  hear(text: string): void | Promise<void> {
    this.firstToken ||= performance.now()
    if (!this.around) return this.say(text)
    return this.around.piece?.(text, false, (out) => this.say(out))
  }
  say(text: string): void | Promise<void> {
    this.hasStreamed = true
    if (this.around) this.streamed += text
    return utter(this, text)
  }

  isFrozen(): string | false {
    for (const frozen of this.frozen) {
      const reason = frozen()
      if (reason !== false) return reason
    }
    return false
  }

  context(call: { id: string; name: string }, signal: AbortSignal): ToolContext {
    const { desk, scope } = this
    const { platform, session } = desk
    const { mask } = scope
    const update: ToolContext['update'] = (said, content = {}) => {
      const type = 'intermittent_update' as const
      quietly(() => desk.emit({ type, text: mask(said), content: masked(content, mask) }))
    }
    const delegate: ToolContext['delegate'] = async (child, text) =>
      (await children()).delegate(this, call, child as Agent, text)
    return { platform, session, signal, callId: call.id, update, delegate }
  }
}

/** Interceptors around a model call; interceptors.ts makes them. */
export interface Around {
  request(request: ModelRequest): Promise<ModelRequest>
  /** Where all of them take pieces, what they make of one goes to `say`; else text is held until the reply is whole. */
  piece: ((text: string, done: boolean, say: Say) => void | Promise<void>) | undefined
  /** `said`: what was streamed of it. */
  reply(reply: ModelReply, said: string | undefined): Promise<ModelReply>
  /** The tools of the last request. */
  offered: Set<string> | undefined
}
export type Say = (text: string) => void | Promise<void>

const defaultStore = memoryStore()
const authorities = new WeakMap<Store, Map<string, Authority>>()

export function authorityOf(store: Store, keys: (string | undefined)[] = []): Authority {
  const name = keys.join()
  const known = authorities.get(store) ?? new Map<string, Authority>()
  const authority = known.get(name) ?? new Authority(store, keys)
  authorities.set(store, known.set(name, authority))
  return authority
}

/** Throws `invalid_argument` for what no request could mend. */
export function checkAgent(agent: Agent): void {
  checkParts(agent)
  limitsOf(agent)
}

function checkParts(agent: Agent): void {
  if (typeof agent?.name !== 'string' || !agent.name) throw talk.wrong('an agent needs a name')
  if (typeof agent.provider?.complete !== 'function')
    throw talk.wrong(`agent ${agent.name} needs a provider, such as bedrock({ model })`)
  toolsOf(agent)
  for (const key of agent.visibleContext ?? [])
    if (secretKeys.has(key)) throw talk.wrong(`visibleContext names ${key}, which is secret`)
}

/** Throws for a limit that would be none: NaN holds nothing back. */
function limitsOf(agent: Agent, options: RunOptions = {}): RunLimits {
  if (!agent.limits && !options.limits) return runLimits
  const limits: Record<string, number> & RunLimits = { ...runLimits }
  for (const given of [agent.limits, options.limits] as (Record<string, number> | undefined)[])
    for (const name in given) {
      const value = given[name]
      if (value === undefined || !(name in runLimits)) continue
      if (!Number.isSafeInteger(value) || value < 0)
        throw talk.wrong(`limits.${name} must be a whole number, got ${value}`)
      limits[name] = value
    }
  return limits
}

type Offered = { list: Tool[]; tools: Map<string, Tool>; specs: ToolSpec[] }
const offers = new WeakMap<object, Offered>()
const noTools: Tool[] = []

/** By name, made anew only where the array or what is in it changed. Throws for what are no tools. */
export function toolsOf({ name, tools: list = noTools }: Agent): Offered {
  if (!Array.isArray(list)) {
    const { name: one = 'it' } = (list ?? {}) as { name?: string }
    const kind = typeof list === 'object' ? 'an object' : `a ${typeof list}`
    const got = list === null ? 'null' : kind
    throw talk.wrong(`tools must be an array, got ${got}. Did you mean tools: [${one}]?`)
  }
  const known = offers.get(list)
  if (known?.list.length === list.length && list.every((t, i) => t === known.list[i])) return known
  const tools = new Map<string, Tool>()
  for (const tool of list) {
    if (typeof tool?.validate !== 'function')
      throw talk.wrong(`agent ${name}: every tool must be made by tool({ ... })`)
    if (tools.has(tool.name)) throw talk.wrong(`agent ${name} has two tools named ${tool.name}`)
    tools.set(tool.name, tool)
  }
  const specs = list.map(({ name, description, input }) => ({ name, description, input }))
  const made = { list: [...list], tools, specs }
  offers.set(list, made)
  return made
}

/** A promise only where something is waited for: most agents and most states ask for nothing. */
function prepare(agent: Agent, input: RunInput, options: RunOptions): Run | Promise<Run> {
  checkParts(agent)
  const { principal, bindContext } = options
  if (principal !== undefined && (typeof principal !== 'string' || !principal))
    throw talk.wrong('principal must be a text that is not empty')
  const messages = talk.normalized(input.messages)
  const desk = new Desk(input, options)
  if (!bindContext && !agent.secrets) return open(agent, input, desk, messages, { bound: null })
  return given(agent, desk).then((more) => open(agent, input, desk, messages, more))
}

/** What an approval is bound to besides, and values to mask. */
type Given = { bound: unknown; secrets?: string[] | undefined }

async function given(agent: Agent, { options, platform, session }: Desk): Promise<Given> {
  const bound = (await options.bindContext?.(platform)) ?? null
  if (!isJson(bound)) throw talk.wrong('bindContext must return plain JSON: all of it is bound')
  const secrets = await agent.secrets?.({ platform, session })
  if (secrets) options.onSecrets?.(secrets)
  return { bound, secrets }
}

function open(
  agent: Agent,
  { paused }: RunInput,
  desk: Desk,
  messages: Message[],
  { bound, secrets }: Given,
): Run | Promise<Run> {
  const { options, platform } = desk
  const { principal, grants, signal, hardSignal } = options
  const authority = authorityOf(options.store ?? defaultStore, options.keys)
  const mask = secrets ? masker(secretsOf(platform, secrets)) : maskOf(options.context ?? platform)
  const threadId = options.threadId ?? platform.thread_id
  const scope: Base = {
    agent: agent.name,
    authority,
    who: { principal, threadId, context: platform, bound },
    askers: [],
    fresh: [],
    mask,
    signal,
    hardSignal,
    grants,
    trustClient: options.trustClient === 'unsafe',
  }
  if (!paused) return begin(agent, desk, scope, messages)
  const begun = (state?: RunState, failure?: unknown) =>
    begin(agent, desk, scope, messages, { state, failure })
  if (typeof paused === 'object') return begun(structuredClone(paused))
  const opening = sealing().then(({ openRun }) => openRun(scope, paused))
  return opening.then(begun, (failure) => begun(undefined, failure))
}

function begin(
  agent: Agent,
  desk: Desk,
  scope: Base,
  messages: Message[],
  paused?: { state: RunState | undefined; failure: unknown },
): Run | Promise<Run> {
  const { principal } = scope.who
  const state = paused?.state
  let failure = paused?.failure
  if (state?.askers) scope.askers.push(...state.askers)
  const hasWords = (m: Message) => m.role === 'user' && talk.textOf(m.parts).trim() !== ''
  const spoken = principal && (state ? desk.words !== '' : messages.some(hasWords))
  if (spoken && !scope.askers.includes(principal)) scope.askers.push(principal)
  const { run_id: asked } = desk.platform
  const adopted = typeof asked === 'string' && /^[\w.-]{1,64}$/.test(asked) ? asked : undefined
  desk.runId = state?.runId ?? adopted ?? randomId()
  const fresh = state ?? newState(talk.ours(talk.alternating(messages)), desk.runId)
  const self = new Run(agent, fresh, { desk, scope }, scope.mask)
  self.resumed = state !== undefined
  const equipping = equip(self)
  if (!equipping && !failure) return self // nobody listens
  return (async () => {
    try {
      await equipping
    } catch (error) {
      failure ??= error
    }
    const reason = 'it was not sealed here for this agent, principal, thread and context'
    if (failure) await fail(self, failure)
    else if (paused && !state) self.fact('PausedRunIgnored', { reason })
    const isFirst = messages.filter((m) => m.role === 'user').length === 1
    if (!state && isFirst) self.fact('ConversationStarted', {})
    return self
  })()
}

/** `above`: what it gets from the one that asked for it. */
export async function childOf(agent: Agent, state: RunState, above: Above): Promise<Run> {
  const { desk, scope } = above
  const { platform, session, options } = desk
  let { mask } = scope
  const secrets = await agent.secrets?.({ platform, session })
  if (secrets) {
    options.onSecrets?.(secrets)
    const own = masker(secretsOf({}, secrets))
    mask = (text) => own(scope.mask(text))
  }
  const self = new Run(agent, state, above, mask)
  await equip(self)
  return self
}

/** Loads what only some agents and some states need. */
function equip(self: Run): Promise<void> | undefined {
  const { requestInterceptors, responseInterceptors } = self.agent
  const intercepts = requestInterceptors !== undefined || responseInterceptors !== undefined
  const waits = self.state.calls.some((call) => call.child !== undefined)
  const { watched } = self.scope
  if (!watched && !intercepts && !waits) return undefined
  return (async () => {
    if (watched) self.tell = (await facts()).teller(self)
    if (intercepts) self.around = (await interceptors()).around(self)
    if (waits) await (await children()).reopen(self)
  })()
}

function afterTool(act: NonNullable<Agent['afterTool']>): NonNullable<Scope['after']> {
  return async (call, result, ctx) => {
    try {
      const answer = await act(call, result, ctx)
      const made = { ...result, ...(typeof answer === 'string' ? { content: answer } : answer) }
      if (typeof made.content === 'string') return made
    } catch {} // then nobody may see what it would have taken out
    return { ...result, content: `The result of ${call.name} is withheld: afterTool failed.` }
  }
}

// ---------------------------------------------------------------- what the person said

/** Every open call of the run and its children, in the order they were proposed. */
export function* waiting(self: Run): Generator<{ at: Run; call: Call }> {
  for (const call of self.state.calls) {
    if (call.status !== 'pending') continue
    const child = self.desk.children?.get(call.id)
    if (child) yield* waiting(child)
    else if (call.proof) yield { at: self, call }
  }
}

// ---------------------------------------------------------------- the calls of a turn

type Turn = Extract<Message, { role: 'assistant' }>

const noCalls: Call[] = []

/** Every call of the last reply gets its one result, or waits for a person. */
async function settle(self: Run, calls: Call[]): Promise<void> {
  const { desk } = self
  const judged = calls.map((call) => propose(self, call))
  const isSlow = judged.some((one) => one instanceof Promise)
  const proposals = (isSlow ? await Promise.all(judged) : judged) as Proposal[]
  const ready: Ready[] = []
  for (let i = 0; i < calls.length; i++) {
    const call = calls[i] as Call
    const proposal = proposals[i] as Proposal
    if ('run' in proposal) ready.push({ call, run: proposal.run })
    else if ('ask' in proposal) await askFor(self, call, proposal)
    else apply(self, call, proposal)
  }
  const pool = pooled(self, ready)
  const failure = pool instanceof Promise ? await pool : pool
  const ran = executedIn(self, ready)
  if (failure) throw failure.error
  const told = ran[0] && desk.emit({ type: 'executed_tool_calls', executedToolCalls: ran })
  if (told) await told
  const malformed = calls.every((call) => typeof call.input !== 'object')
  self.malformed = malformed ? self.malformed + 1 : 0
  if (self.malformed > 2) self.stop = 'limit'
}

async function askFor(self: Run, call: Call, proposal: Extract<Proposal, { ask: unknown }>) {
  const no = mayAsk(self, { ...call, input: proposal.input })
  apply(self, call, no ?? (await proposal.ask()))
}

function executedIn({ tools, path, desk }: Run, ready: Ready[]): ExecutedCall[] {
  const ran: ExecutedCall[] = []
  for (const { call } of ready) {
    const { id, name, input, result: output = '', outcome } = call
    if (!outcome) continue
    const type = tools.get(name)?.type ?? 'tool_call'
    const line: ExecutedCall = { id, type, name, input, output, outcome }
    if (path.length > 0) line.path = path
    desk.executed.push(line)
    ran.push(line)
  }
  return ran
}

const isCall = (part: Part) => part.type === 'tool_call'
/** The calls without a result that no person is waited for. */
function unsettled(self: Run, { parts, results }: Turn): Call[] {
  const { state, desk } = self
  const calls: Call[] = []
  for (const part of parts) {
    if (part.type !== 'tool_call' || results.some((r) => r.callId === part.id)) continue
    const { id, name, input } = part
    const known = state.calls.findLast((c) => !c.outcome && (c.part ?? c.id) === id)
    const child = known && desk.children?.get(known.id)
    if (child ? waiting(child).next().value : known?.proof) continue
    const call: Call = known ?? { id, name, input, status: 'executing', requiresApproval: false }
    if (!known) state.calls.push(call)
    calls.push(call)
  }
  return calls
}

type Ready = { call: Call; run: () => Answer | Promise<Answer> }
type Failure = { error: unknown }

/** `limits.parallel` at once. After a failure none is begun, and it returns when those under way have ended. */
function pooled(self: Run, ready: Ready[]): Failure | undefined | Promise<Failure | undefined> {
  let next = 0
  let failure: Failure | undefined
  const failed = (error: unknown): void => {
    failure ??= { error }
  }
  const work = (): void | Promise<void> => {
    for (let one = ready[next++]; one && !failure; one = ready[next++])
      try {
        const working = perform(self, one)
        if (working) return working.catch(failed).then(work)
      } catch (error) {
        failed(error)
      }
  }
  const workers: Promise<void>[] = []
  while (workers.length < Math.max(self.limits.parallel, 1)) {
    const working = work()
    if (!working) break
    workers.push(working)
  }
  return workers.length > 0 ? Promise.all(workers).then(() => failure) : failure
}

/** A promise only where something is waited for. */
function perform(self: Run, { call, run }: Ready): void | Promise<void> {
  const done = (answer: Answer): void => {
    if (self.desk.fatal && self.tools.get(call.name)?.agent) throw self.desk.fatal
    apply(self, call, answer)
  }
  const act = (): void | Promise<void> => {
    const answer = run()
    return answer instanceof Promise ? answer.then(done) : done(answer)
  }
  const { name, input } = call
  const said = call.child === undefined && status(self, { type: 'tool', name, input })
  return said ? said.then(act) : act()
}

function propose(self: Run, call: Call): Proposal | Promise<Proposal> {
  const { desk, limits, around, tools } = self
  if (desk.toolCalls++ >= limits.toolCalls) {
    const most = `Not run: this run reached its limit of ${limits.toolCalls} tool calls (toolCalls).`
    return { outcome: 'error', content: most }
  }
  if (around?.offered && tools.has(call.name) && !around.offered.has(call.name))
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
  if (reason === undefined && desk.asked++ < limits.pending) return undefined
  if (reason === undefined) {
    const content = `Not asked: ${limits.pending} calls wait for approval already (pending). Propose it again after they are decided.`
    return { outcome: 'error', content }
  }
  const again = `${digest(call, self.path)} again`
  if (state.rejected[again]) self.stop = 'limit'
  state.rejected[again] = reason
  const why = '(the same call was rejected before; a person is not asked again)'
  return { outcome: 'rejected', content: `Tool rejected: ${reason} ${why}`, reason }
}

/** Writes what became of a call into the state: its one result, or that it still waits. */
export function apply(self: Run, call: Call, answer: Answer): void {
  const { state, desk, limits } = self
  if ('open' in answer) {
    const { fresh, votes, child } = answer
    const part = fresh?.id === call.id ? {} : { part: call.part ?? call.id }
    if (fresh) state.calls[state.calls.indexOf(call)] = { ...fresh, ...part }
    if (votes) call.votes = votes
    if (child !== undefined) Object.assign(call, { child, status: 'pending' })
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
  const last = state.messages.at(-1)
  if (last?.role !== 'assistant') return
  last.results.push({ callId: call.part ?? call.id, outcome, content })
  if (last.results.length === 1) return
  const order = talk.callsOf(last).map((part) => part.id)
  last.results.sort((a, b) => order.indexOf(a.callId) - order.indexOf(b.callId))
}

function refuseAll({ state }: Run, content: string): void {
  const last = state.messages.at(-1)
  if (last?.role !== 'assistant') return
  last.results = talk.callsOf(last).map(({ id }) => ({ callId: id, outcome: 'error', content }))
}

// ---------------------------------------------------------------- the model

/** One model call between its interceptors. */
async function think(self: Run): Promise<ModelReply> {
  const { agent, desk, scope, around, onDelta } = self
  const { signal } = desk
  let request = requestOf(self)
  if (agent.systemContext || agent.visibleContext) await addContext(self, request)
  if (around) request = await around.request(request)
  self.speaking = false
  self.hasStreamed = false
  self.streamed = ''
  self.firstToken = 0
  self.asked = performance.now()
  let reply: ModelReply
  try {
    reply = await agent.provider.complete(request, onDelta ? { signal, onDelta } : { signal })
  } catch (error) {
    const failure = signal?.aborted ? aborted(signal) : toError(error, 'provider_error')
    modelCalled(self, request, { error: failure.code })
    throw failure
  }
  const { usage, finishReason, raw } = reply
  add(desk.usage, usage)
  if (scope.watched) {
    const { requestId } = (raw ?? {}) as { requestId?: string }
    modelCalled(self, request, { usage, finishReason, requestId, raw })
  }
  const parts = reply.parts.map((p) => (p.type === 'tool_call' ? talk.renamed(p) : p))
  reply = { parts, finishReason, usage, raw }
  const live = onDelta && (!around || around.piece)
  const unsaid = live && !self.hasStreamed ? talk.textOf(parts) : ''
  if (unsaid) await self.hear(unsaid)
  if (live && around?.piece) await around.piece('', true, (out) => self.say(out))
  if (around) reply = await around.reply(reply, live ? self.streamed : undefined)
  const said = live ? undefined : utter(self, talk.textOf(reply.parts))
  if (said) await said
  return reply
}

function add(sum: Usage, usage: Usage): void {
  sum.inputTokens += usage.inputTokens
  sum.outputTokens += usage.outputTokens
  sum.cacheReadTokens += usage.cacheReadTokens
  sum.cacheWriteTokens += usage.cacheWriteTokens
}

function modelCalled(self: Run, request: ModelRequest, more: Record<string, unknown>): void {
  const { agent, asked, firstToken, scope } = self
  const { name, model } = agent.provider
  const durationMs = performance.now() - asked
  const first = firstToken > 0 && { firstTokenMs: firstToken - asked }
  const rendered = () => JSON.stringify(agent.provider.render(request)) ?? 'null'
  const body = () => JSON.parse(scope.mask(rendered()))
  self.fact('ModelCalled', { provider: name, model, durationMs, ...first, ...more, body })
}

function requestOf({ agent, state, specs, told }: Run): ModelRequest {
  const { cache = false, maxTokens, temperature, toolChoice } = agent
  const system: ModelRequest['system'] = []
  if (agent.system)
    system.push(cache ? { text: agent.system, cache: true } : { text: agent.system })
  const request: ModelRequest = { system, messages: state.messages.slice(), tools: specs, cache }
  if (maxTokens !== undefined) request.maxTokens = maxTokens
  if (temperature !== undefined) request.temperature = temperature
  // A forced tool is forced once: forced again after its result, the model could never answer.
  const again = state.messages.at(-1)?.role !== 'user' || told.length > 0
  const forced = typeof toolChoice === 'object' && again
  if (toolChoice !== undefined) request.toolChoice = forced ? 'auto' : toolChoice
  return request
}

/** What of the context the model may read, and the instructions of the moment. */
async function addContext({ agent, desk, scope }: Run, { system }: ModelRequest): Promise<void> {
  const { platform, session } = desk
  const lines: string[] = []
  for (const key of agent.visibleContext ?? []) {
    const value = platform[key]
    const text = typeof value === 'string' ? value : JSON.stringify(value)
    if (value !== undefined) lines.push(`${key}: ${scope.mask(text)}`)
  }
  if (lines.length > 0) system.push({ text: lines.join('\n') })
  const moment = await agent.systemContext?.({ platform, session })
  if (moment) system.push({ text: scope.mask(moment) })
}

/** What the run says: streamed as it comes, the turns apart from each other. */
export function utter(self: Run, text: string): void | Promise<void> {
  if (!text) return
  const out = self.text && !self.speaking ? `\n\n${text}` : text
  self.speaking = true
  self.text += out
  if (self.onDelta) return self.desk.emit({ type: 'text_delta', text: out })
}

type Doing = { type: 'thinking' } | { type: 'tool'; name: string; input: unknown }

function status(self: Run, doing: Doing): void | Promise<void> {
  const { agent, desk, scope } = self
  const { statusText } = agent
  if (statusText === false || !desk.options.emit) return
  const usual = doing.type === 'thinking' ? 'Thinking...' : `Calling tool: ${doing.name}`
  const said = statusText?.(doing)
  const text = typeof said === 'string' ? scope.mask(said) : (said ?? usual)
  if (text) return desk.emit({ type: 'intermittent_update', text, content: {} })
}

// ---------------------------------------------------------------- the end

export async function fail(self: Run, error: unknown): Promise<void> {
  const { desk, scope } = self
  if (error instanceof InterceptorError) {
    self.stop = 'intercepted'
    self.stopDetails = masked({ code: error.reason, details: error.details }, scope.mask)
    try {
      await utter(self, scope.mask(error.userMessage))
    } catch (deaf) {
      await fail(self, deaf) // what ran before is still to be returned
    }
    return
  }
  self.error = desk.signal?.aborted ? aborted(desk.signal) : toError(error, 'internal_error')
  self.stop = self.error.code === 'aborted' ? 'aborted' : 'error'
}

/** Nothing is left to be said, and nothing waits. */
function isOver({ desk, loose, state, stop, text }: Run): boolean {
  if (desk.lines.length > 0 || loose.length > 0 || pendingIn(state)) return false
  return stop !== 'limit' || text !== ''
}

async function conclude(self: Run): Promise<RunResult> {
  try {
    return await (await ending()).conclude(self)
  } catch (error) {
    await fail(self, error)
    return resultOf(self) // what ran is still to be returned
  }
}

export function resultOf(self: Run, pending: PendingCall[] = []): RunResult {
  const { desk, state, scope, text, stop = 'end', error } = self
  const { executed, session, usage } = desk
  if (scope.askers.length > 0) state.askers = [...scope.askers]
  const needsApproval = pending.length > 0
  const { runId } = state
  const result: RunResult = {
    text,
    stop,
    needsApproval,
    pending,
    executed,
    session,
    state,
    usage,
    runId,
  }
  if (error) result.error = error
  return result
}

// ---------------------------------------------------------------- small words

export function newState(messages: Message[] = [], runId: string = randomId()): RunState {
  return { runId, messages, calls: [], kept: [], rejected: {} }
}
export function pendingIn(state: RunState): boolean {
  return state.calls.some((call) => call.status === 'pending')
}

const statusOf = {
  ok: 'completed',
  error: 'failed',
  rejected: 'rejected',
  expired: 'expired',
  unknown: 'unknown',
} as const

/** Of the filled input: a default that is spelled out makes no other call. */
export function digest(
  { name, input, effectiveInput = input }: Pick<Call, 'name' | 'input' | 'effectiveInput'>,
  path: string[] = [],
): string {
  return sha256(canonical([path, name, effectiveInput]))
}

/** By id. Throws where two contradict each other. */
function decisionsOf(list: Decision[]): Map<string, Decision> {
  const decisions = new Map<string, Decision>()
  for (const [i, { ...decision }] of list.entries()) {
    if (typeof decision.id !== 'string') decision.id = ''
    const { id, lists: _, ...said } = decision
    const { id: __, lists: ___, ...known } = decisions.get(id) ?? decision
    if (decisions.has(id) && canonical(said) !== canonical(known))
      throw talk.wrong(`decisions[${i}] contradicts another one of its id`)
    decisions.set(id || ` ${i}`, decision)
  }
  return decisions
}

/** Gives up on work that does not heed `signal`, `graceMs` after it; until `end`. */
class Late {
  readonly #signal: AbortSignal
  readonly #graceMs: number
  readonly #waiting: ((reason: DcafError) => void)[] = []
  #timer: NodeJS.Timeout | undefined
  #isLate = false

  constructor(signal: AbortSignal, graceMs: number) {
    this.#signal = signal
    this.#graceMs = graceMs
    signal.addEventListener('abort', this.#onAbort)
    if (signal.aborted) this.#onAbort()
  }

  readonly #onAbort = (): void => {
    this.#timer = setTimeout(() => {
      this.#isLate = true
      for (const reject of this.#waiting) reject(aborted(this.#signal))
    }, this.#graceMs)
  }

  of<T>(work: Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      work.then(resolve, reject)
      if (this.#isLate) reject(aborted(this.#signal))
      else this.#waiting.push(reject)
    })
  }

  end(): void {
    this.#signal.removeEventListener('abort', this.#onAbort)
    clearTimeout(this.#timer)
  }
}

function aborted(signal: AbortSignal | undefined): DcafError {
  const cause = signal?.reason
  return cause instanceof DcafError
    ? cause
    : new DcafError('aborted', 'the run was aborted', { cause })
}
export function toError(error: unknown, code: 'provider_error' | 'internal_error'): DcafError {
  return error instanceof DcafError ? error : new DcafError(code, words(error), { cause: error })
}
/** What throws or rejects hurts nobody. */
export function quietly(act: () => unknown): void {
  try {
    Promise.resolve(act()).catch(() => {})
  } catch {}
}

export function masked<T>(value: T, mask: Mask): T {
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
