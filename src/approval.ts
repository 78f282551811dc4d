// May it run: the way of a call from the model's proposal, past policy and a person's signed word, to its tool. The only
// caller of a tool's `execute` is in this file, and it demands a Permit that only the Gate can make. Knows no model, no
// messages and no HTTP. What only some calls need is in files of its own: the ledger, opinions, other approvers.
// Covers: forged, moved, altered and expired approvals; drift of tool, input and preview; with ledger.ts replayed and
// doubled ones and crashes. Does not cover: a stolen key, a store that loses acknowledged writes, what a tool does.

import { loader } from './load.ts'
import { invisible, maskJson, measured, unsound } from './mask.ts'
import type { Authority, Bound, Id, Who } from './proof.ts'
import { audience, canonical, hasMoved, parseId, sha256 } from './proof.ts'
import { DcafError, type Outcome } from './providers/provider.ts'
import { copyJson } from './schema.ts'
import type { Verdict, Word } from './tool.ts'
import { outputText, type Tool, type ToolContext, type Validated } from './tool.ts'

/** Asked for every call, at the proposal and again at execution. `undefined` has no opinion; throwing asks. */
export type Policy = (
  call: { name: string; input: unknown; tool: Tool },
  ctx: ToolContext,
) => Verdict | undefined | Promise<Verdict | undefined>

/** An outcome is a status too, but for `ok` and `error`, which are `completed` and `failed`. */
export type Status = 'pending' | 'approved' | 'executing' | 'completed' | 'failed' | Unfulfilled
type Unfulfilled = Exclude<Outcome, 'ok' | 'error'>

/** A tool call as a person sees it and as the state keeps it. Plain JSON; `input` is the model's own. */
export interface Call {
  /** `tc_NONCE`: its name in ledger, events and towards the provider. */
  id: string
  name: string
  input: unknown
  status: Status
  requiresApproval: boolean
  /** The signed id that a decision must bring; only while pending. */
  proof?: string
  /** Unix milliseconds. */
  expiresAt?: number
  /** The input with defaults, where filling changed it. */
  effectiveInput?: unknown
  preview?: string
  reasons?: string[]
  /** How many of the quorum approved. */
  votes?: number
  /** Agent tools from the served agent down to this call's; absent for its own calls. */
  path?: string[]
  /** The call this one stands in for, and whether a person changed its input. */
  replaces?: string
  changed?: boolean
  /** The `tool_call` part it answers, where that is not its own id. */
  part?: string
  /** The paused run of a child agent. */
  child?: unknown
  outcome?: Outcome
  result?: string
  rejectionReason?: string
  error?: string
}

export interface Decision {
  /** The signed id, as it was shown. */
  id: string
  approve: boolean
  reason?: string
  editedInput?: unknown
  /** What the client echoed; it must agree with what was proposed. */
  name?: string
  input?: unknown
  /** What the thread says was proposed under this id. */
  known?: { name: string; input: unknown; preview?: string }
  path?: string[]
  grant?: GrantRequest
  /** Inferred from silence or words: not a click on this call. */
  implicit?: boolean
  /** The wire's lists it came in; its outcome is reported in each. Default `tool_calls`. */
  lists?: List[]
}
export type List = 'tool_calls' | 'approvals' | 'cmds'
/** `until` is RFC 3339; `where` must deep-equal these keys of an input. */
export type GrantRequest = { where?: Record<string, unknown>; until?: string; max_uses?: number }
/** `agent`: the served one; `path`: the agent tools from there to whose call it is. */
export type GrantCall = Omit<Bound, 'path' | 'who'> & { path?: string[]; audience: unknown[] }
/** What grants.ts makes over a store. Both reject when the store is down. */
export interface Grants {
  /** The id of a grant that covers the call, its use counted; `undefined` where none does. */
  use(call: GrantCall): Promise<string | undefined>
  add(call: GrantCall, grant: GrantRequest, by: string | undefined): Promise<string>
}

/** What became of a call: it ended, or it is still open, perhaps as a fresh call or a child's. */
export type Answer = Ended | Open
type Open = { open: string; fresh?: Call; votes?: number; child?: unknown; refused?: boolean }
export type Ended = Result & {
  replayed?: boolean
  reason?: string
  /** The content says already that a person changed the input. */
  changed?: true
}
export type Result = { outcome: Outcome; content: string }

/** Everything of one run that its gates need. */
export interface Scope {
  /** The served agent's name. */
  agent: string
  authority: Authority
  who: Who
  /** The principals whose words led here; shared by the gates of a run. */
  askers: string[]
  /** The epochs that were read in this run. */
  fresh: string[]
  limits: { toolMs: number; approvalTtlMs: number; inputBytes: number; outputBytes: number }
  mask: (text: string) => string
  /** Client gone, deadline, shutdown: stops automatic calls. */
  signal: AbortSignal | undefined
  /** The hard end of a shutdown: beside its own timeout the only thing that stops an approved call. */
  hardSignal: AbortSignal | undefined
  /** `signal` makes one when it is first asked for. */
  context(call: { id: string; name: string }, signal: () => AbortSignal): ToolContext
  fact(type: string, data: Record<string, unknown>): void
  /** Whether anybody hears facts. */
  watched: boolean
  /** The agent's `afterTool`; never rejects. */
  after: AfterTool | undefined
  trustClient: boolean
  grants: Grants | undefined
}
type Ran = { id: string; name: string; input: unknown }
type AfterTool = (call: Ran, result: Result, ctx: ToolContext) => Promise<Result>

/** What to do for a proposed call: nothing any more, run it now, or ask a person. `input` is the filled one. */
export type Proposal =
  | Answer
  | { run: () => Soon<Answer> }
  | { ask: () => Promise<Answer>; input: unknown }
/** A promise only where something is waited for. */
type Soon<T> = T | Promise<T>

export type Said = { name: string; input: unknown; preview?: string; changed?: boolean }
/** A decision under examination: `before` is the ledger's text when it was read, which `begin` expects to find. */
export type Case = Pick<Id, 'nonce' | 'expires' | 'shown'> & {
  epoch: string
  said: Said
  tool: Tool | undefined
  before?: string
}
/** `denied`: what becomes of it, where that is the verdict. */
export type Checked = { value: unknown; verdict: Word; reasons: string[]; denied?: Ended }
/** What a decision comes to: how the call ended, and on whose word. */
export type Done = { outcome: Outcome; output: string; by?: string | undefined; fresh?: Call }
/** What is done once a call is begun; `finish` records how it ended. */
export type Act = (finish: (record: Done) => Promise<void>) => Promise<Answer>

type Tools = ReadonlyMap<string, Tool>
type Frozen = () => string | false

/** A client's echo holds the input some levels down in a body that may be 64 deep. */
const maxDepth = 48
const maxValues = 100_000
export const unverified =
  'Not executed: this approval could not be verified (altered, moved, or issued by another server).'
const tooLate = 'Not executed: the request was over before it began.'

/** What only some calls need. Where it does not load, what needed it rejects: nothing runs. */
const approvers = loader(() => import('./approvers.ts'))
const fresh = loader(() => import('./fresh.ts'))
const ledger = loader(() => import('./ledger.ts'))
const opinions = loader(() => import('./opinions.ts'))
const trust = loader(() => import('./trust.ts'))

/** One agent's calls in one run: who may run, on whose word, once. More is public than its five verbs: for the files it loads. */
export class Gate {
  readonly scope: Scope
  readonly tools: Tools
  readonly path: string[]
  readonly #policies: Policy[]
  readonly #frozen: Frozen

  constructor(scope: Scope, tools: Tools, policies: Policy[], frozen: Frozen, path: string[]) {
    this.scope = scope
    this.tools = tools
    this.path = path
    this.#policies = policies
    this.#frozen = frozen
  }

  /** A call the model just made. `grantable`: whether a person did not reject just this, the filled input. */
  propose(call: Call, grantable: Grantable = () => true): Soon<Proposal> {
    const tool = this.tools.get(call.name)
    if (!tool) {
      const known = [...this.tools.keys()].join(', ')
      return this.refuse(call, error(`Unknown tool: ${call.name}. There is: ${known}.`))
    }
    try {
      const offer = (checked: Checked | string) => this.#offer(tool, call, checked, grantable)
      return soon(this.check(tool, call.input), offer)
    } catch (error) {
      return Promise.reject(error) // with those of its siblings, so that none is left alone
    }
  }

  #offer(tool: Tool, call: Call, checked: Checked | string, grantable: Grantable): Soon<Proposal> {
    if (typeof checked === 'string') return this.refuse(call, error(checked))
    const { value, verdict, denied } = checked
    if (denied) return this.refuse(call, denied, 'policy')
    const frozen = this.frozenBy()
    if (verdict === 'allow') {
      if (frozen) return this.refuse(call, error(frozen))
      return { run: () => this.#execute(permit(tool, value, call)) }
    }
    const problem = tool.agent
      ? `A policy asks for ${tool.name}, which is an agent: let its tools ask instead.`
      : unseen(tool, call.input, value)
    if (problem) return this.refuse(call, error(problem))
    const ask = async () => ({ open: '', fresh: await this.present(tool, call, checked) })
    const offer = { input: value, ask }
    const mayUse = this.scope.grants && !frozen && grantable(value)
    return mayUse ? this.#granted(tool, call, value).then((run) => run ?? offer) : offer
  }

  /** Runs on a grant in a person's place; `undefined` where none covers the call. */
  async #granted(tool: Tool, call: Call, input: unknown) {
    const found = await (await approvers()).covered(this, tool, call, input)
    if (!found) return undefined
    const { one, grant } = found
    const run = async (): Promise<Answer> => {
      const answer = await this.#once(one, permit(tool, input, { ...call, grant }))
      return 'outcome' in answer || answer.fresh ? answer : error(answer.open || tooLate)
    }
    return { run }
  }

  /** A person's word on a call. */
  async decide(found: Said | undefined, d: Decision): Promise<Answer> {
    const answer = await this.#weigh(found, d)
    const [id = ''] = d.id.split('.', 1)
    const call = { id, name: found?.name ?? d.known?.name ?? d.name }
    const { outcome, open, votes }: Partial<Ended & Open> = answer
    if (outcome === 'expired') this.fact('ToolCallExpired', call)
    if (open) this.fact('ToolCallRefused', call, { reason: open })
    const approvedBy = this.scope.who.principal
    if (votes) this.fact('ToolCallApproved', call, { approvedBy, votes })
    return answer
  }

  /** The order of checks is the protocol's: change nothing here without its tests. */
  async #weigh(found: Said | undefined, d: Decision): Promise<Answer> {
    const id = parseId(d.id)
    const thread = d.known ?? (d.name === undefined ? undefined : { name: d.name, input: d.input })
    const said = found ?? (thread && { name: thread.name, input: thread.input }) // no preview: others read it
    const altered =
      (said && d.name !== undefined && d.name !== said.name) ||
      ![said?.input, d.input, d.editedInput].every(signable)
    if (said && !altered && d.approve && this.scope.trustClient && !d.id.startsWith('tc_'))
      return this.#trusted(said, d)
    const one = id && said && !altered ? await this.#verify(id, said) : undefined
    const reason = cap(d.reason ?? 'not approved', this.scope.limits.outputBytes)
    const content = `Tool rejected: ${reason}`
    if (!one || !said) return refused(d.approve ? unverified : content)
    const { tool } = one
    const { past, late, close } = await ledger()
    const before = await past(this, one)
    if (before) return before
    const rejected: Ended = { outcome: 'rejected', content, ...(reason && { reason }) }
    if (!d.approve) return close(this, one, rejected)
    const several = tool && (tool.approver !== 'requester' || tool.quorum > 1)
    const stranger = several && (await (await approvers()).stranger(this, tool, one.nonce))
    if (stranger) return refused(stranger)
    const expired = late(one)
    if (expired) return expired
    const frozen = this.frozenBy()
    if (frozen) return { open: frozen }
    if (!tool) return close(this, one, error(`The tool ${said.name} is no longer offered.`))
    const proposed = await this.check(tool, said.input)
    if (typeof proposed === 'string') return close(this, one, error(proposed))
    const edit = edited(d, [said.input, proposed.value], (found ?? d.known) !== undefined)
    if (edit && !(tool.editable && d.editedInput !== undefined))
      return (await fresh()).replaced(this, one, tool, edit)
    if ((await this.#shown(tool, proposed.value)).digest !== one.shown)
      return (await fresh()).replaced(this, one, tool)
    const { input } = edit ?? said
    const run = await this.legible(tool, input, edit ? undefined : proposed)
    if (typeof run === 'string') return { open: `Not executed: ${run}` }
    if (run.denied) return close(this, one, run.denied, 'policy')
    const votes = tool.quorum > 1 ? await (await approvers()).vote(this, tool, one) : undefined
    if (votes !== undefined) return { open: '', votes }
    const leave = permit(tool, run.value, { id: one.nonce, name: tool.name })
    // Before it runs: the tool may change its input, and what ran is not refused any more.
    const given =
      d.grant && (await approvers()).giving(this, tool, copyJson(run.value), one, d.grant)
    const answer = await this.#once(one, leave, edit ? `${changedTo(edit.input)}\n` : '')
    if ('outcome' in answer && answer.outcome === 'ok' && !answer.replayed) await given?.()
    return answer
  }

  /** The migration path, for ids that are none of ours. */
  async #trusted(said: Said, d: Decision): Promise<Answer> {
    const found = await (await trust()).trusted(this, said, d)
    if (!('one' in found)) return found
    const { one, tool, input } = found
    return this.#once(one, permit(tool, input, { id: d.id, name: tool.name }))
  }

  /** What ledger and clock say of an open call nobody named; `undefined` while it waits. */
  async recall(said: Said, proof: string): Promise<Answer | undefined> {
    const id = parseId(proof)
    if (!id) return undefined
    const one = await this.#verify(id, said)
    const { past, late } = await ledger()
    const before = one && (await past(this, one))
    const expired = before ? undefined : late(id)
    if (expired) this.fact('ToolCallExpired', { id: id.nonce, name: said.name })
    return before ?? expired
  }

  /** The input as the tool would get it; as it came, where the tool does not take it. */
  async filled(name: string, input: unknown): Promise<unknown> {
    const result = await this.tools.get(name)?.validate(input)
    return result && 'value' in result ? result.value : input
  }

  /** A call that only the thread remembers, as a person must see it again; `undefined` where its id does not hold. */
  async restore(said: Said, proof: string): Promise<Call | undefined> {
    const id = parseId(proof)
    const one = id && (await this.#verify(id, said))
    return one?.tool && (await fresh()).restored(this, one, one.tool, proof)
  }

  fact(type: string, call: Named, more?: Record<string, unknown>): void {
    if (this.scope.watched) this.scope.fact(type, { callId: call.id, name: call.name, ...more })
  }

  /** Says of a call that it does not run, and gives back what became of it. */
  refuse(call: Named, end: Ended, by?: string): Ended {
    const { outcome, content, reason = content } = end
    if (outcome === 'rejected') this.fact('ToolCallRejected', call, { rejectedBy: by, reason })
    else this.fact('ToolCallRefused', call, { reason })
    return end
  }

  // ------------------------------------------------------------ judging

  /** The filled input and the strictest verdict on it, or a sentence on what is wrong with it. */
  check(tool: Tool, input: unknown): Soon<Checked | string> {
    const { inputBytes } = this.scope.limits
    const { problem, bytes: most } = measured(input, maxDepth, maxValues)
    if (problem || most > inputBytes) {
      const bytes = Buffer.byteLength(JSON.stringify(input) ?? '')
      if (bytes > inputBytes)
        return `The input of ${tool.name} has ${bytes} bytes; the limit inputBytes is ${inputBytes}.`
    }
    if (problem) return this.#judge(tool, { problem })
    return soon(tool.validate(input), (result) => this.#judge(tool, result))
  }

  #judge(tool: Tool, result: Validated): Soon<Checked | string> {
    const problem =
      'problem' in result ? result.problem : unsound(result.value, maxDepth, maxValues)
    if ('problem' in result || problem)
      return `Invalid input for ${tool.name}: ${this.scope.mask(`${problem}`)}`
    const { requiresApproval, type } = tool
    const { value } = result
    const verdict = requiresApproval || type === 'command' ? 'ask' : 'allow'
    if (this.#policies.length === 0 && typeof requiresApproval === 'boolean')
      return { value, verdict, reasons: [] }
    const given = () => copyJson(value)
    return opinions().then((all) => all.consult(this, this.#policies, tool, value, given))
  }

  /** `checked`, or the first field in it whose characters an approver could not see. */
  async legible(tool: Tool, input: unknown, known?: Checked): Promise<Checked | string> {
    const checked = known ?? (await this.check(tool, input))
    return typeof checked === 'string' ? checked : (unseen(tool, input, checked.value) ?? checked)
  }

  frozenBy(): string | undefined {
    try {
      const reason = this.#frozen()
      return reason === false ? undefined : `Not executed: frozen: ${reason}`
    } catch (error) {
      return `Not executed: frozen: its switch failed: ${words(error)}`
    }
  }

  // ------------------------------------------------------------ what is shown and signed

  async present(tool: Tool, call: Call, checked: Checked, asked?: string): Promise<Call> {
    const { authority, limits } = this.scope
    const { digest: shown, ...view } = await this.view(tool, call.input, checked)
    const ends = Date.now() + (tool.approvalTtlMs ?? limits.approvalTtlMs)
    const expiresAt = Math.ceil(ends / 1000) * 1000
    const id = { nonce: call.id, expires: expiresAt, shown }
    const proof = await authority.sign(id, this.#bound(call, tool.approver))
    if (tool.approver !== 'requester') await (await approvers()).keepAskers(this, tool, id, asked)
    return { ...call, ...view, status: 'pending', requiresApproval: true, proof, expiresAt }
  }

  /** What the approver sees besides name and input. */
  async view(tool: Tool, input: unknown, { value, reasons }: Checked) {
    const view: Pick<Call, 'effectiveInput' | 'preview' | 'reasons' | 'path'> = {}
    const filled = canonical(value)
    if (filled !== canonical(input)) view.effectiveInput = JSON.parse(filled)
    if (reasons.length > 0) view.reasons = reasons
    if (this.path.length > 0) view.path = this.path
    return { ...view, ...(await this.#shown(tool, value)) }
  }

  /** The digest of definition, filled input and preview key as they are now. A preview that fails never repeats. */
  async #shown(tool: Tool, input: unknown, filled = canonical(input)) {
    const { preview } = tool
    const made =
      preview && (await (await opinions()).previewed(this, tool, preview, copyJson(input)))
    const all = `[${definition(tool)},${filled},${made?.key ?? 'null'}]`
    const digest = sha256(all).slice(0, 16)
    return made ? { preview: made.text, digest } : { digest }
  }

  clean(text: string): string {
    return cap(text, this.scope.limits.outputBytes, this.scope.mask)
  }

  timeoutOf(tool: Tool | undefined): number {
    return Math.min(tool?.timeoutMs ?? this.scope.limits.toolMs, 2 ** 31 - 1) // more would fire at once
  }

  #bound({ name, input }: Said, approver: Tool['approver']): Bound {
    const { agent, who } = this.scope
    return { agent, path: this.path, name, input, who: audience(who, approver) }
  }

  /** Whose word it is; a tool that is gone may have had any approver. */
  async #verify(id: Id, said: Said): Promise<Case | undefined> {
    const { authority, fresh } = this.scope
    const tool = this.tools.get(said.name)
    for (const approver of tool ? [tool.approver] : (['requester', 'anyone'] as const)) {
      const epoch = await authority.verify(id, this.#bound(said, approver), fresh)
      if (epoch !== undefined) return { ...id, epoch, said, tool }
    }
    return undefined
  }

  // ------------------------------------------------------------ once

  async #once(one: Case, leave: Permit, note = ''): Promise<Answer> {
    const { who, signal, hardSignal } = this.scope
    if (hardSignal?.aborted) return { open: 'Not executed: the server is shutting down.' }
    // Asked again here: a slow preview, policy or store, or a call before it, came after it was asked first.
    const stop = () => {
      if (hasMoved(who)) return unverified
      return this.frozenBy() ?? (signal?.aborted ? '' : undefined)
    }
    const { grant } = leave.call
    const by = grant ? `grant:${grant}` : who.principal
    const act: Act = async (finish) => {
      const record = ({ outcome, content }: Result) =>
        finish({ outcome, output: note + content, by })
      this.fact('ToolCallApproved', leave.call, { approvedBy: by, ...(grant && { grant }) })
      let late = false
      const answer = await this.#execute(leave, (work) => {
        late = true
        // What then waits for a person waits for nobody.
        void work.then((end) => record('outcome' in end ? end : error('')))
      })
      if (!('outcome' in answer)) return answer
      if (!late) await record(answer)
      return { ...answer, content: note + answer.content }
    }
    return (await ledger()).begin(this, one, act, stop)
  }

  // ------------------------------------------------------------ the one caller of execute

  /**
   * Runs the tool against its clock and never rejects. What a tool gives at once is answered at once, without timer and
   * promise. `outlived` makes it a gated call, and gets its work past its clock.
   */
  #execute(leave: Permit, outlived?: (work: Promise<Answer>) => void): Soon<Answer> {
    const { tool, call } = leave
    const { context, signal, hardSignal, after, watched, mask } = this.scope
    const outer = outlived ? hardSignal : signal
    const started = watched ? performance.now() : 0
    const input = after || watched ? copyJson(leave.input) : undefined // a tool may change what it is given
    const clock = new AbortController()

    const ended = (answer: Answer, more?: { late?: true }): Answer => {
      if (!watched || !('outcome' in answer)) return answer
      const { outcome, content } = answer
      const durationMs = performance.now() - started
      const grant = call.grant ? { grant: call.grant } : {}
      const data = { input: maskJson(input, mask), outcome, durationMs, ...grant, ...more }
      if (outcome === 'ok') this.fact('ToolExecuted', call, { ...data, output: content })
      else this.fact('ToolExecutionFailed', call, { ...data, error: content })
      return answer
    }
    const fail = (why: string): Result => error(this.clean(`Error executing ${tool.name}: ${why}`))
    const read = (value: unknown): Answer => {
      if (!(value instanceof Paused))
        return { outcome: 'ok', content: this.clean(outputText(tool, value)) }
      if (tool.agent) return { open: '', child: value.state }
      throw new Error('the agent behind it waits for a person: make such a tool with agentTool')
    }

    if (outer?.aborted) return ended(fail(`${tool.name} was stopped before it began`))
    const ctx = context(call, () => clock.signal)
    let value: unknown
    let answer: Answer | undefined
    try {
      value = tool.execute(leave.input, ctx)
      if (!isThenable(value)) answer = read(value)
    } catch (error) {
      answer = fail(words(error))
    }
    if (answer && !after && !outer?.aborted) return ended(answer)

    const work = (async (): Promise<Answer> => {
      let end = answer && (await answer) // where the tool itself stopped the run, that is told first
      try {
        end ??= read(await value)
      } catch (error) {
        end = fail(words(error))
      }
      if (after && 'outcome' in end) {
        const seen = await after({ id: call.id, name: call.name, input: copyJson(input) }, end, ctx)
        end = { ...seen, content: this.clean(seen.content) }
      }
      return ended(end, clock.signal.aborted ? { late: true } : {})
    })()
    return new Promise((resolve, reject) => {
      const end = (answer: Answer): void => {
        clearTimeout(timer)
        outer?.removeEventListener('abort', onAbort)
        resolve(answer)
      }
      const giveUp = (why: string): void => {
        clock.abort(new DcafError('aborted', why))
        const unknown = `Outcome unknown: ${why}. It was NOT run again. Check the target before asking again.`
        const sure = !outlived || tool.idempotent
        if (!sure) outlived(work)
        end(ended(sure ? fail(why) : { outcome: 'unknown', content: unknown }))
      }
      const onAbort = () => giveUp(`${tool.name} was stopped before it finished`)
      const ms = this.timeoutOf(tool)
      const onTime = () => giveUp(`${tool.name} did not finish within ${ms} ms`)
      const timer = tool.agent ? undefined : setTimeout(onTime, ms)
      outer?.addEventListener('abort', onAbort)
      if (outer?.aborted) onAbort() // the tool itself may have done it
      work.then(end, reject)
    })
  }
}

type Named = { id: string; name: string | undefined }
type Called = { id: string; name: string; grant?: string }
type Grantable = (input: unknown) => boolean

/** Leave to run one tool once with one input. Made by the Gate alone: `mint` does not leave this file. */
type Permit = { tool: Tool; input: unknown; call: Called; [mint]: true }
const mint: unique symbol = Symbol('permit')
function permit(tool: Tool, input: unknown, call: Called): Permit {
  return { tool, input, call, [mint]: true }
}

/** What an agent tool returns while its child waits for a person. */
export class Paused {
  readonly state: unknown
  constructor(state: unknown) {
    this.state = state
  }
}
export function paused(state: unknown): Paused {
  return new Paused(state)
}

const definitions = new WeakMap<Tool, { all: unknown[]; text: string }>()
/** What of a tool an approval holds for, canonical; made anew where somebody changed the tool. */
function definition(tool: Tool): string {
  const { name, description, input, type, approver, quorum, editable, idempotent } = tool
  const all = [name, description, input, type, approver, quorum, editable, idempotent]
  const known = definitions.get(tool)
  if (known?.all.every((value, i) => value === all[i])) return known.text
  const text = canonical(all)
  definitions.set(tool, { all, text })
  return text
}

/** A changed input, wherever the client put it; an echo equals the model's input or the filled one. */
function edited(d: Decision, inputs: unknown[], known: boolean): { input: unknown } | undefined {
  const input = d.editedInput === undefined && known ? d.input : d.editedInput
  const same = (one: unknown) => canonical(one) === canonical(input)
  return input === undefined || inputs.some(same) ? undefined : { input }
}

function signable(value: unknown): boolean {
  try {
    return canonical(value) !== ''
  } catch {
    return false // a number that is none, a ring, thousands of levels
  }
}

/** How the model is told of an edit. */
export function changedTo(input: unknown): string {
  return `A person changed the input to ${JSON.stringify(input)}.`
}
function error(content: string): Ended {
  return { outcome: 'error', content }
}
function refused(open: string): Answer {
  return { open, refused: true }
}
export function words(error: unknown): string {
  try {
    return error instanceof Error ? `${error.message}` : String(error)
  } catch {
    return 'an unprintable error'
  }
}

/** The first field whose characters an approver could not see, in the input as it came or as it was filled. */
function unseen(tool: Tool, ...inputs: unknown[]): string | undefined {
  const open = tool.allowInvisible
  if (open === true) return undefined
  for (const input of inputs)
    for (const [key, value] of Object.entries(input ?? {}))
      if (invisible(key) || (!open.includes(key) && hides(value)))
        return `The field ${JSON.stringify(key)} of ${tool.name} holds invisible or control characters, which whoever approves could not see. Write it without them.`
  return undefined
}
function hides(value: unknown): boolean {
  if (typeof value === 'string') return invisible(value)
  return typeof value === 'object' && value !== null && Object.entries(value).flat().some(hides)
}

/** `next` now, or when there is a value. */
function soon<T, R>(value: Soon<T>, next: (value: T) => Soon<R>): Soon<R> {
  return isThenable(value) ? Promise.resolve(value).then(next) : next(value)
}
/** Promises of other makes too. */
function isThenable<T>(value: T | PromiseLike<T>): value is PromiseLike<T> {
  const open = typeof value === 'object' ? value !== null : typeof value === 'function'
  return open && 'then' in (value as object)
}

/** No secret, however encoded, is longer in one piece: a cut may leave so much of one unknown. */
const torn = 4_096

/**
 * At most `limit` bytes of UTF-8: the head, a marker, the tail; no character is cut, and no large copy is made. Masked
 * first, but of a far longer text only what is kept, less what the cut may have torn.
 */
export function cap(text: string, limit: number, mask?: (text: string) => string): string {
  const far = mask && text.length > 2 * (limit + torn)
  if (mask && !far) return cap(mask(text), limit)
  const bytes = text.length * 3 > limit ? Buffer.byteLength(text) : 0
  if (bytes <= limit) return text
  const marker = `\n[... ${bytes} bytes, cut to ${limit} ...]\n`
  const room = Math.max(0, limit - marker.length)
  const tail = Math.floor(room / 4)
  const first = far ? mask(text.slice(0, room + torn)).slice(0, -torn) : text.slice(0, room)
  const final = far ? mask(text.slice(-tail - torn)).slice(torn) : text.slice(text.length - tail)
  const head = Buffer.from(first).subarray(0, room - tail)
  const end = Buffer.from(final)
  const last = end.subarray(Math.max(0, end.length - tail))
  return `${head}`.replace(/\uFFFD$/, '') + marker + `${last}`.replace(/^\uFFFD+/, '') // what the cut tore
}
