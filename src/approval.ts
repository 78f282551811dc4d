// May it run: policy, proof and once. The only caller of a tool's `execute` is in this file, and it demands a
// Permit that only the Gate can make. Knows no model, no messages and no HTTP.
// Covers: forged, moved, altered, expired, replayed and doubled approvals; drift of tool, input and preview; crashes
// between begin and finish. Does not cover: a stolen key, a store that loses acknowledged writes, what a tool does.

import { randomBytes } from 'node:crypto'
import { readlinkSync } from 'node:fs'
import { hostname } from 'node:os'
import { invisible, maskJson, unsound } from './mask.ts'
import {
  type Authority,
  audience,
  canonical,
  type Id,
  nonce,
  parseId,
  sha256,
  type Who,
} from './proof.ts'
import { DcafError, type Outcome } from './providers/provider.ts'
import type { Store } from './store.ts'
import { outputText, type Tool, type ToolContext, type Verdict, type Word } from './tool.ts'

/** Asked for every call, at the proposal and again at execution. `undefined` has no opinion; throwing asks. */
export type Policy = (
  call: { name: string; input: unknown; tool: Tool },
  ctx: ToolContext,
) => Verdict | undefined | Promise<Verdict | undefined>

export type Status =
  | 'pending'
  | 'approved'
  | 'rejected'
  | 'executing'
  | 'completed'
  | 'failed'
  | 'expired'
  | 'unknown'

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
export type GrantCall = {
  agent: string
  path?: string[]
  name: string
  input: unknown
  audience: unknown[]
}
/** What grants.ts makes over a store. Both reject when the store is down. */
export interface Grants {
  /** The id of a grant that covers the call, its use counted; `undefined` where none does. */
  use(call: GrantCall): Promise<string | undefined>
  add(call: GrantCall, grant: GrantRequest, by: string | undefined): Promise<string>
}

/** What became of a call: it ended (with an outcome), or it is still open, perhaps as a fresh call or a child's. */
export type Answer =
  | {
      outcome: Outcome
      content: string
      replayed?: boolean
      reason?: string
      /** The content says already that a person changed the input. */
      changed?: true
    }
  | { open: string; fresh?: Call; votes?: number; child?: unknown; refused?: boolean }

export type Proposal =
  | Answer
  | { run: () => Answer | Promise<Answer> }
  | { ask: () => Promise<Answer>; input: unknown }

/** Everything of one run that its gates need. */
export interface Scope {
  /** The served agent's name. */
  agent: string
  authority: Authority
  who: Who
  /** The principals whose words led here; shared by the gates of a run. */
  askers: Set<string>
  /** The epochs that were read in this run. */
  fresh: Set<string>
  limits: { toolMs: number; approvalTtlMs: number; inputBytes: number; outputBytes: number }
  mask: (text: string) => string
  /** Client gone, deadline, shutdown: stops automatic calls. */
  signal: AbortSignal | undefined
  /** Whether any listener hears facts. */
  watched: boolean
  /** The hard end of a shutdown: beside its own timeout the only thing that stops an approved call. */
  hardSignal: AbortSignal | undefined
  context(call: { id: string; name: string }, signal: () => AbortSignal): ToolContext
  fact(type: string, data: Record<string, unknown>): void
  /** The agent's `afterTool`; never rejects. */
  after:
    | ((
        call: { id: string; name: string; input: unknown },
        result: Result,
        ctx: ToolContext,
      ) => Promise<Result>)
    | undefined
  trustClient: boolean
  grants: Grants | undefined
}
export type Result = { outcome: Outcome; content: string }

type Said = { name: string; input: unknown; preview?: string; changed?: boolean }
/** A decision under examination: `before` is the ledger's text when it was read, which `begin` expects to find. */
type Case = Id & { epoch: string; said: Said; tool: Tool | undefined; before?: string }
type Checked = { value: unknown; verdict: Word; reasons: string[] }
type Done = { outcome: Outcome; output: string; by?: string | undefined; fresh?: Call }
type Work = (
  finish: (record: Done) => unknown,
) => Promise<{ record: Done | undefined; answer: Answer }>
type Entry = Partial<Done> & {
  state: 'running' | 'done'
  owner: string
  /** Which of its owner's: no two begins write the same text. */
  run: number
  since: number
  timeoutMs?: number
}

const skewMs = 60_000
const dayMs = 86_400_000
/** A client's echo holds the input some levels down in a body that may be 64 deep. */
const maxDepth = 48
export const unverified =
  'Not executed: this approval could not be verified (altered, moved, or issued by another server).'
const tooLate = 'Not executed: the request was over before it began.'
const drifted = 'Not executed: the tool or what it would do changed since this was shown.'
const running = new WeakMap<Store, Map<string, Promise<Answer>>>()

/** One agent's calls in one run: who may run, on whose word, once. */
export class Gate {
  readonly #scope: Scope
  readonly #tools: ReadonlyMap<string, Tool>
  readonly #policies: Policy[]
  readonly #frozen: () => string | false
  readonly #path: string[]

  constructor(
    scope: Scope,
    tools: ReadonlyMap<string, Tool>,
    policies: Policy[],
    frozen: () => string | false,
    path: string[],
  ) {
    this.#scope = scope
    this.#tools = tools
    this.#policies = policies
    this.#frozen = frozen
    this.#path = path
  }

  /**
   * A call the model just made: its answer, or what is left to do for one: run it now, or ask a person. `grantable`:
   * whether a person did not reject just this, the filled input. `input` is that.
   */
  async propose(
    call: Call,
    grantable: (input: unknown) => boolean = () => true,
  ): Promise<Proposal> {
    const tool = this.#tools.get(call.name)
    const stop = (reason: string): Answer => {
      this.#scope.fact('ToolCallRefused', { callId: call.id, name: call.name, reason })
      return failed(reason)
    }
    if (!tool)
      return stop(`Unknown tool: ${call.name}. There is: ${[...this.#tools.keys()].join(', ')}.`)
    const checked = await this.#check(tool, call.input)
    if (typeof checked === 'string') return stop(checked)
    const { value, verdict } = checked
    if (verdict === 'deny') {
      const { content, reason } = denied(checked)
      this.#scope.fact('ToolCallRejected', {
        callId: call.id,
        name: call.name,
        rejectedBy: 'policy',
        reason,
      })
      return { outcome: 'rejected', content, reason }
    }
    const frozen = this.#frozenBy()
    if (verdict === 'allow' && frozen) return stop(frozen)
    if (verdict === 'allow')
      return { run: () => this.#execute(new Permit(mint, tool, value, call, false)) }
    if (tool.agent)
      return stop(`A policy asks for ${tool.name}, which is an agent: let its tools ask instead.`)
    const hidden = unseen(tool, call.input, value)
    if (hidden) return stop(hidden)
    const { grants, authority } = this.#scope
    const mayUse = grants && !frozen && takesGrants(tool) && grantable(value)
    const grant = mayUse ? await grants.use(this.#grantCall(tool, value)) : undefined
    if (grant === undefined)
      return {
        input: value,
        ask: async () => ({ open: '', fresh: await this.#present(tool, call, checked) }),
      }
    const now = {
      nonce: call.id,
      kid: '',
      expires: Date.now(),
      shown: '',
      mac: '',
      said: call,
      tool,
    }
    const one = { ...now, epoch: await authority.epoch() }
    const permit = new Permit(mint, tool, value, { ...call, grant }, true)
    return {
      run: async () => {
        const answer = await this.#once(one, permit, '')
        return 'open' in answer && !answer.fresh ? failed(answer.open || tooLate) : answer
      },
    }
  }

  /** A person's word on a call. The order of checks is the protocol's: change nothing here without its tests. */
  async decide(found: Said | undefined, d: Decision): Promise<Answer> {
    const answer = await this.#weigh(found, d)
    const call = { callId: d.id.split('.', 1)[0], name: found?.name ?? d.known?.name ?? d.name }
    if ('open' in answer && answer.open)
      this.#scope.fact('ToolCallRefused', { ...call, reason: answer.open })
    if ('open' in answer && answer.votes) {
      const approvedBy = this.#scope.who.principal
      this.#scope.fact('ToolCallApproved', { ...call, approvedBy, votes: answer.votes })
    }
    if ('outcome' in answer && answer.outcome === 'expired')
      this.#scope.fact('ToolCallExpired', call)
    return answer
  }

  async #weigh(found: Said | undefined, d: Decision): Promise<Answer> {
    const id = parseId(d.id)
    const thread = d.known ?? (d.name === undefined ? undefined : { name: d.name, input: d.input })
    const said = found ?? (thread && { name: thread.name, input: thread.input }) // no preview: others read it
    const altered =
      (said && d.name !== undefined && d.name !== said.name) ||
      ![said?.input, d.input, d.editedInput].every(signable)
    if (said && !altered && d.approve && this.#scope.trustClient && !d.id.startsWith('tc_'))
      return this.#trusted(said, d)
    const one = id && said && !altered ? await this.#verify(id, said) : undefined
    const reason = cap(d.reason ?? 'not approved', this.#scope.limits.outputBytes)
    if (!one || !said) return refused(d.approve ? unverified : `Tool rejected: ${reason}`)
    const { tool } = one
    const past = await this.#past(one)
    if (past) return past
    if (!d.approve) return this.#close(one, 'rejected', `Tool rejected: ${reason}`, reason)
    const stranger = tool ? await this.#stranger(tool, one.nonce) : undefined
    if (stranger) return refused(stranger)
    if (Date.now() > one.expires + skewMs) return expired(one.expires)
    const frozen = this.#frozenBy()
    if (frozen) return { open: frozen }
    if (!tool) return this.#close(one, 'error', `The tool ${said.name} is no longer offered.`)
    const proposed = await this.#check(tool, said.input)
    if (typeof proposed === 'string') return this.#close(one, 'error', proposed)
    const edit = edited(d, said.input, proposed.value, (found ?? d.known) !== undefined)
    if (edit && !(tool.editable && d.editedInput !== undefined))
      return this.#replace(one, tool, edit, said)
    if ((await this.#shown(tool, proposed.value)).digest !== one.shown)
      return this.#replace(one, tool, undefined, said)
    const run = edit ? await this.#check(tool, edit.input) : proposed
    const hidden =
      typeof run === 'string' ? run : unseen(tool, edit?.input ?? said.input, run.value)
    if (typeof run === 'string' || hidden) return { open: `Not executed: ${hidden}` }
    if (run.verdict === 'deny') return this.#deny(one, run)
    const votes = tool.quorum > 1 ? await this.#vote(tool, one) : undefined
    if (votes !== undefined) return { open: '', votes }
    const permit = new Permit(mint, tool, run.value, { id: one.nonce, name: tool.name }, true)
    const granted = d.grant && this.#grantCall(tool, copy(run.value)) // the tool may change its input
    const answer = await this.#once(one, permit, edit ? `${changedTo(edit.input)}\n` : '')
    const ran = 'outcome' in answer && answer.outcome === 'ok' && !answer.replayed
    if (d.grant && granted && ran) await this.#grant(tool, granted, one.nonce, d.grant)
    return answer
  }

  /** Never rejects: the call ran, whatever becomes of the grant. */
  async #grant(tool: Tool, one: GrantCall, callId: string, asked: GrantRequest): Promise<void> {
    const { grants, who, fact } = this.#scope
    const call = { callId, name: tool.name, grantedBy: who.principal }
    const none = grants ? `${tool.name} takes no grants` : 'no grants were handed over to this run'
    if (!grants || !takesGrants(tool)) return fact('GrantRefused', { ...call, reason: none })
    try {
      const grant = await grants.add(one, asked, who.principal)
      fact('GrantAdded', { ...call, grant })
    } catch (error) {
      fact('GrantRefused', { ...call, reason: words(error) })
    }
  }

  /** What ledger and clock say of an open call nobody named; `undefined` while it waits. */
  async recall(said: Said, proof: string): Promise<Answer | undefined> {
    const id = parseId(proof)
    const one = id && (await this.#verify(id, said))
    const past = one && (await this.#past(one))
    if (past || !id || Date.now() <= id.expires + skewMs) return past
    this.#scope.fact('ToolCallExpired', { callId: id.nonce, name: said.name })
    return expired(id.expires)
  }

  /** The input as the tool would get it; as it came, where the tool does not take it. */
  async filled(name: string, input: unknown): Promise<unknown> {
    const result = await this.#tools.get(name)?.validate(copy(input))
    return result && 'value' in result ? result.value : input
  }

  /** A call that only the thread remembers, as a person must see it again; `undefined` where its id does not hold. */
  async restore(said: Said, proof: string): Promise<Call | undefined> {
    const id = parseId(proof)
    const one = id && (await this.#verify(id, said))
    if (!one?.tool) return undefined
    const { name, input } = said
    const checked = await this.#check(one.tool, input)
    const call: Call = {
      id: one.nonce,
      name,
      input,
      status: 'pending',
      requiresApproval: true,
      proof,
      expiresAt: one.expires,
    }
    if (typeof checked === 'string') return call
    const { digest: _, ...view } = await this.#view(one.tool, input, checked)
    return { ...call, ...view }
  }

  // ------------------------------------------------------------ judging

  /** The filled input and the strictest verdict on it, or a sentence on what is wrong with it. */
  async #check(tool: Tool, input: unknown): Promise<Checked | string> {
    const size = Buffer.byteLength(JSON.stringify(input) ?? '')
    const { inputBytes } = this.#scope.limits
    if (size > inputBytes)
      return `The input of ${tool.name} has ${size} bytes; the limit inputBytes is ${inputBytes}.`
    const problem = unsound(input, maxDepth, 100_000)
    const result = problem ? { problem } : await tool.validate(copy(input))
    const wrong = 'problem' in result ? result.problem : unsound(result.value, maxDepth, 100_000)
    if (wrong || 'problem' in result)
      return `Invalid input for ${tool.name}: ${this.#scope.mask(`${wrong}`)}`
    return { value: result.value, ...(await this.#judge(tool, result.value)) }
  }

  /** The strictest of the tool's own word and every policy, with the reasons of that verdict. */
  async #judge(tool: Tool, input: unknown): Promise<{ verdict: Word; reasons: string[] }> {
    const { requiresApproval } = tool
    if (this.#policies.length === 0 && typeof requiresApproval === 'boolean')
      return { verdict: requiresApproval || tool.type === 'command' ? 'ask' : 'allow', reasons: [] }
    const ctx = this.#scope.context(
      { id: '', name: tool.name },
      () => this.#scope.signal ?? new AbortController().signal,
    )
    const own = () =>
      typeof requiresApproval === 'function' ? requiresApproval(copy(input), ctx) : requiresApproval
    const always = () => tool.type === 'command'
    const asked = [own, always, ...this.#policies].map(async (policy) => {
      try {
        const said = policy({ name: tool.name, input: copy(input), tool }, ctx)
        const later = typeof said === 'object' && said !== null && 'then' in said
        const word = later ? await within(this.#timeout(tool), said) : said
        return asVerdict(policy === own ? (word ?? true) : word) // a tool's own word forgot its return
      } catch (error) {
        return asVerdict({
          verdict: 'ask',
          reason: `A policy failed, so a person is asked: ${words(error)}`,
        })
      }
    })
    const verdicts = await Promise.all(asked)
    const worst = Math.max(...verdicts.map((v) => strictness.get(v.verdict) ?? 1))
    const verdict = (['allow', 'ask', 'deny'] as const)[worst] ?? 'ask'
    const reasons = verdicts.flatMap((v) =>
      v.verdict === verdict && v.reason ? [this.#scope.mask(`${v.reason}`)] : [],
    )
    return { verdict, reasons }
  }

  #frozenBy(): string | undefined {
    try {
      const reason = this.#frozen()
      return reason === false ? undefined : `Not executed: frozen: ${reason}`
    } catch (error) {
      return `Not executed: frozen: its switch failed: ${words(error)}`
    }
  }

  // ------------------------------------------------------------ what is shown and signed

  async #present(tool: Tool, call: Call, checked: Checked, asked?: string): Promise<Call> {
    const { authority, limits, who, askers } = this.#scope
    const { digest, ...view } = await this.#view(tool, call.input, checked)
    const expiresAt =
      Math.ceil((Date.now() + (tool.approvalTtlMs ?? limits.approvalTtlMs)) / 1000) * 1000
    const id = { nonce: call.id, expires: expiresAt, shown: digest }
    const proof = await authority.sign(id, this.#bound(call, tool.approver))
    if (tool.approver !== 'requester') {
      const by = askers.size > 0 ? [...askers] : [who.principal].filter((p) => p !== undefined)
      if (tool.approver === 'other' && !asked && by.length === 0)
        throw new DcafError(
          'invalid_argument',
          `${tool.name} has approver: 'other', so a principal is needed`,
        )
      const ttl = expiresAt - Date.now() + dayMs
      await authority.store.swap(`asked:${call.id}`, undefined, asked ?? JSON.stringify(by), ttl)
    }
    return { ...call, status: 'pending', requiresApproval: true, proof, expiresAt, ...view }
  }

  /** What the approver sees besides name and input. */
  async #view(tool: Tool, input: unknown, { value, reasons }: Checked) {
    const view: Pick<Call, 'effectiveInput' | 'preview' | 'reasons' | 'path'> = {}
    if (canonical(value) !== canonical(input)) view.effectiveInput = JSON.parse(canonical(value))
    if (reasons.length > 0) view.reasons = reasons
    if (this.#path.length > 0) view.path = this.#path
    return { ...view, ...(await this.#shown(tool, value)) }
  }

  /** The digest of definition, filled input and preview key as they are now. A preview that fails never repeats. */
  async #shown(tool: Tool, input: unknown): Promise<{ preview?: string; digest: string }> {
    const { name, description, input: schema, type, approver, quorum, editable, idempotent } = tool
    const definition = [name, description, schema, type, approver, quorum, editable, idempotent]
    const digest = (key: string | null) => sha256(canonical([definition, input, key])).slice(0, 16)
    if (!tool.preview) return { digest: digest(null) }
    try {
      const clock = new AbortController() // not AbortSignal.timeout: it would live on for all of its time
      const outer = this.#scope.signal
      const signal = outer ? AbortSignal.any([outer, clock.signal]) : clock.signal
      const ctx = this.#scope.context({ id: '', name }, () => signal)
      const made = await within(this.#timeout(tool), tool.preview(copy(input), ctx), clock)
      const { text, key = text } = typeof made === 'string' ? { text: made } : made
      return { preview: this.#clean(text), digest: digest(key) }
    } catch (error) {
      return {
        preview: this.#clean(`The preview failed: ${words(error)}`),
        digest: digest(nonce()),
      }
    }
  }

  #clean(text: string): string {
    return cap(text, this.#scope.limits.outputBytes, this.#scope.mask)
  }

  #timeout(tool: Tool | undefined): number {
    return Math.min(tool?.timeoutMs ?? this.#scope.limits.toolMs, 2 ** 31 - 1) // more would fire at once
  }

  #bound(said: Said, approver: Tool['approver']) {
    const { agent, who } = this.#scope
    return {
      agent,
      path: this.#path,
      name: said.name,
      input: said.input,
      who: audience(who, approver),
    }
  }

  /** Whose word it is; a tool that is gone may have had any approver. */
  async #verify(id: Id, said: Said): Promise<Case | undefined> {
    const { authority, fresh } = this.#scope
    const tool = this.#tools.get(said.name)
    for (const approver of tool ? [tool.approver] : (['requester', 'anyone'] as const)) {
      const epoch = await authority.verify(id, this.#bound(said, approver), fresh)
      if (epoch !== undefined) return { ...id, epoch, said, tool }
    }
    return undefined
  }

  /** Why this principal may not approve. */
  async #stranger(tool: Tool, nonce: string): Promise<string | undefined> {
    const { who, authority, askers } = this.#scope
    if ((tool.approver === 'other' || tool.quorum > 1) && who.principal === undefined)
      return unverified
    if (tool.approver === 'requester') return undefined
    const asked = await authority.store.get(`asked:${nonce}`)
    const by = new Set<unknown>(JSON.parse(asked ?? '[]'))
    for (const principal of by) askers.add(`${principal}`) // what follows from this call they asked for too
    if (tool.approver !== 'other') return undefined
    if (asked === undefined) return unverified
    return by.has(who.principal)
      ? `Not executed: someone other than who asked must approve ${tool.name}.`
      : undefined
  }

  /** Counts this principal once; how many there are while the quorum is not reached. */
  async #vote(tool: Tool, one: Case): Promise<number | undefined> {
    const { authority, who } = this.#scope
    for (;;) {
      const text = await authority.store.get(`votes:${one.nonce}`)
      const votes = new Set(JSON.parse(text ?? '[]')).add(who.principal)
      const ttl = one.expires - Date.now() + dayMs
      if (await authority.store.swap(`votes:${one.nonce}`, text, JSON.stringify([...votes]), ttl))
        return votes.size < tool.quorum ? votes.size : undefined
    }
  }

  // ------------------------------------------------------------ once

  /** What was decided before, or is being done in this process now. */
  async #past(one: Case): Promise<Answer | undefined> {
    return running.get(this.#scope.authority.store)?.get(one.nonce) ?? this.#record(one)
  }

  /** The ledger's word; `undefined` when nobody decided, or an idempotent call may run over its record. */
  async #record(one: Case): Promise<Answer | undefined> {
    const text = await this.#scope.authority.store.get(`call:${one.nonce}`)
    if (text === undefined) return undefined
    one.before = text
    const entry = JSON.parse(text) as Entry
    const { outcome = 'unknown', output = '', fresh } = entry
    if (fresh) return (await this.#recordOf(fresh)) ?? { open: output, fresh }
    if (entry.state === 'done') return { outcome, content: output, replayed: true }
    if (one.tool?.idempotent && gone(entry)) return undefined
    const since = time(entry.since)
    const content = gone(entry)
      ? `Outcome unknown: the server stopped while this was running (${since}). It was NOT run again. Check the target before asking again.`
      : `Already running since ${since}. It was not started again.`
    return { outcome: 'unknown', content }
  }

  /** A fresh call is our own record's, so its id needs no proof here. */
  async #recordOf(fresh: Call): Promise<Answer | undefined> {
    const id = parseId(fresh.proof ?? '')
    if (!id) return undefined
    const tool = this.#tools.get(fresh.name)
    const past = await this.#past({ ...id, epoch: '', said: fresh, tool })
    const answer = past ?? (Date.now() > id.expires + skewMs ? expired(id.expires) : undefined)
    if (!answer || !('outcome' in answer) || !fresh.changed || answer.changed) return answer
    return { ...answer, content: `${changedTo(fresh.input)}\n${answer.content}`, changed: true }
  }

  /** Supersedes a call by a fresh one, for a person's `edit` or for drift; the original's record holds it. */
  async #replace(
    one: Case,
    tool: Tool,
    edit: { input: unknown } | undefined,
    said: Said,
  ): Promise<Answer> {
    const { authority, who } = this.#scope
    const input = edit ? edit.input : said.input
    const checked = await this.#check(tool, input)
    const hidden = typeof checked === 'string' ? checked : unseen(tool, input, checked.value)
    if (typeof checked === 'string' || hidden) return { open: `Not executed: ${hidden}` }
    if (checked.verdict === 'deny') return this.#deny(one, checked)
    const asked = edit
      ? who.principal && JSON.stringify([who.principal])
      : await authority.store.get(`asked:${one.nonce}`)
    const call: Call = {
      id: nonce(),
      name: tool.name,
      input,
      status: 'pending',
      requiresApproval: true,
      replaces: one.nonce,
    }
    if (edit || said.changed) call.changed = true
    const fresh = await this.#present(tool, call, checked, asked)
    if (!edit && said.preview !== undefined && said.preview !== fresh.preview)
      fresh.reasons = [
        ...(fresh.reasons ?? []),
        this.#clean(`It changed. Shown before: ${said.preview}`),
      ]
    const open = edit ? 'Not executed: the changed input needs an approval of its own.' : drifted
    const record: Done = { outcome: 'unknown', output: open, fresh, by: who.principal }
    return this.#alone(one, async () => ({ record, answer: { open, fresh } }))
  }

  /** Records the end of a call that does not run. */
  #close(
    one: Case,
    outcome: Outcome,
    content: string,
    reason?: string,
    by = this.#scope.who.principal,
  ): Promise<Answer> {
    const answer = { outcome, content, ...(reason ? { reason } : {}) }
    return this.#alone(one, async () => {
      const call = { callId: one.nonce, name: one.said.name, reason: reason ?? content }
      const [type, who] =
        outcome === 'rejected' ? ['ToolCallRejected', { rejectedBy: by }] : ['ToolCallRefused', {}]
      this.#scope.fact(type, { ...call, ...who })
      return { record: { outcome, output: content, by }, answer }
    })
  }

  #deny(one: Case, checked: Checked): Promise<Answer> {
    const { content, reason } = denied(checked)
    return this.#close(one, 'rejected', content, reason, 'policy')
  }

  async #once(one: Case, permit: Permit, prefix: string): Promise<Answer> {
    const { who, fact, signal, hardSignal } = this.#scope
    if (hardSignal?.aborted) return { open: 'Not executed: the server is shutting down.' }
    // Asked again here: a slow preview, policy or store came after it was asked first.
    const stop = () => this.#frozenBy() ?? (signal?.aborted ? '' : undefined)
    const { id, name, grant } = permit.call
    const by = grant ? `grant:${grant}` : who.principal
    const work: Work = async (finish) => {
      fact('ToolCallApproved', { callId: id, name, approvedBy: by, ...(grant && { grant }) })
      const record = (answer: Answer): Done | undefined =>
        'outcome' in answer
          ? { outcome: answer.outcome, output: prefix + answer.content, by }
          : undefined
      let late = false
      const answer = await this.#execute(permit, (work) => {
        late = true
        void work.then((end) => finish(record(end) ?? { outcome: 'error', output: prefix, by }))
      })
      if (!('outcome' in answer)) return { record: undefined, answer }
      return {
        record: late ? undefined : record(answer),
        answer: { ...answer, content: prefix + answer.content },
      }
    }
    return this.#alone(one, work, stop)
  }

  /** begin, the work, finish; nothing where `stop` says why. A second caller in this process gets the first one's answer. */
  #alone(one: Case, work: Work, stop?: () => string | undefined): Promise<Answer> {
    const { authority, limits, fact } = this.#scope
    const act = async (): Promise<Answer> => {
      const entry: Entry = {
        state: 'running',
        owner,
        run: ++runs,
        since: Date.now(),
        timeoutMs: this.#timeout(one.tool),
      }
      const begun = JSON.stringify(entry)
      const lives = Math.max(
        one.expires,
        entry.since + (one.tool?.approvalTtlMs ?? limits.approvalTtlMs),
      )
      const ttl = lives - entry.since + dayMs
      if (!(await authority.stillIn(one.epoch))) return refused(unverified)
      const open = stop?.()
      if (open !== undefined) return { open }
      underWay.add(entry.run) // before the store can show it to anyone
      const key = `call:${one.nonce}`
      let mine = false
      try {
        mine = await authority.store.swap(key, one.before, begun, ttl)
        const decided = 'Not executed: another request is deciding this call.'
        if (!mine) return (await this.#record(one)) ?? { open: decided }
        mine = false // until it is known to have stayed
        mine = await authority.stillIn(one.epoch)
        if (!mine) return refused(unverified) // forgotten in between
      } finally {
        if (!mine) underWay.delete(entry.run)
      }
      const finish = async (record: Done) => {
        try {
          const done = JSON.stringify({ ...entry, state: 'done', ...record })
          await authority.store.swap(key, begun, done, ttl)
        } catch (error) {
          fact('LedgerFailed', { callId: one.nonce, name: one.said.name, error: words(error) })
        }
        underWay.delete(entry.run)
      }
      const { record, answer } = await work(finish)
      if (record) await finish(record)
      return answer
    }
    const here = running.get(authority.store) ?? new Map<string, Promise<Answer>>()
    running.set(authority.store, here)
    const joined = here.get(one.nonce)
    if (joined) return joined
    const answer = act().finally(() => here.delete(one.nonce))
    here.set(one.nonce, answer)
    return answer
  }

  /** The migration path: no proof, but the tool must ask for this input, and policy, freeze and ledger still hold. */
  async #trusted(said: Said, d: Decision): Promise<Answer> {
    const { agent, authority, who } = this.#scope
    const tool = this.#tools.get(said.name)
    if (
      !tool ||
      !d.id ||
      tool.approver !== 'requester' ||
      tool.quorum > 1 ||
      tool.type === 'command'
    )
      return refused(unverified)
    const key = sha256(
      canonical([agent, this.#path, audience(who, 'requester'), d.id, said.name, said.input]),
    )
    const now = { nonce: key, kid: '', expires: Date.now(), shown: '', mac: '', said, tool }
    const one: Case = { ...now, epoch: await authority.epoch() }
    const past = await this.#past(one)
    if (past) return past
    const checked = await this.#check(tool, said.input)
    const hidden = typeof checked === 'string' ? checked : unseen(tool, said.input, checked.value)
    if (typeof checked === 'string' || hidden) return refused(`Not executed: ${hidden}`)
    if (edited(d, said.input, checked.value, true)) return refused(unverified)
    if (checked.verdict !== 'ask')
      return refused(checked.verdict === 'deny' ? denied(checked).content : unverified)
    const frozen = this.#frozenBy()
    if (frozen) return { open: frozen }
    return this.#once(
      one,
      new Permit(mint, tool, checked.value, { id: d.id, name: tool.name }, true),
      '',
    )
  }

  #grantCall(tool: Tool, input: unknown): GrantCall {
    const { agent, who } = this.#scope
    const path = this.#path
    return { agent, path, name: tool.name, input, audience: audience(who, tool.approver) }
  }
  // ------------------------------------------------------------ the one caller of execute

  /** Runs the tool against its clock and never rejects. `outlived` gets the work of a gated call past its clock. */
  async #execute(permit: Permit, outlived?: (work: Promise<Answer>) => void): Promise<Answer> {
    const { tool, call, gated } = permit
    const input = copy(permit.input) // as it was begun with: a tool may change what it is given
    const { context, signal, hardSignal, after, fact, mask } = this.#scope
    const controller = new AbortController()
    const started = performance.now()
    const ended = (result: Result, more?: { late: true }): Result => {
      const { outcome, content } = result
      const data = {
        callId: call.id,
        name: call.name,
        input: maskJson(input, mask),
        outcome,
        durationMs: performance.now() - started,
        ...(call.grant && { grant: call.grant }),
        ...more,
      }
      if (outcome === 'ok') fact('ToolExecuted', { ...data, output: content })
      else fact('ToolExecutionFailed', { ...data, error: content })
      return result
    }
    const fail = (why: string): Result => ({
      outcome: 'error',
      content: this.#clean(`Error executing ${tool.name}: ${why}`),
    })
    const outer = gated ? hardSignal : signal
    if (outer?.aborted) return ended(fail(`${tool.name} was stopped before it began`))
    let given = false
    const work = (async (): Promise<Answer> => {
      const ctx = context(call, () => controller.signal)
      let result: Result
      try {
        const value = await tool.execute(permit.input, ctx)
        if (value instanceof Paused) {
          if (tool.agent) return { open: '', child: value.state }
          throw new Error('the agent behind it waits for a person: make such a tool with agentTool')
        }
        result = { outcome: 'ok', content: this.#clean(outputText(tool, value)) }
      } catch (error) {
        result = fail(words(error))
      }
      if (after) {
        result = await after({ id: call.id, name: call.name, input: copy(input) }, result, ctx)
        result = { ...result, content: this.#clean(result.content) }
      }
      return ended(result, given ? { late: true } : undefined)
    })()
    const stopped = Promise.withResolvers<Answer>()
    const giveUp = (why: string): void => {
      given = true
      controller.abort(new DcafError('aborted', why))
      const unknown = `Outcome unknown: ${why}. It was NOT run again. Check the target before asking again.`
      const sure = !gated || tool.idempotent
      if (!sure) outlived?.(work)
      stopped.resolve(ended(sure ? fail(why) : { outcome: 'unknown', content: unknown }))
    }
    const onAbort = () => giveUp(`${tool.name} was stopped before it finished`)
    const ms = this.#timeout(tool)
    const timer = tool.agent
      ? undefined
      : setTimeout(giveUp, ms, `${tool.name} did not finish within ${ms} ms`)
    outer?.addEventListener('abort', onAbort)
    if (outer?.aborted) onAbort() // the tool itself may have done it
    const answer = await Promise.race([work, stopped.promise])
    clearTimeout(timer)
    outer?.removeEventListener('abort', onAbort)
    return answer
  }
}

const mint = Symbol('permit')

type Called = { id: string; name: string; grant?: string }

/** Leave to run one tool once with one input. Made by the Gate alone: `mint` does not leave this file. */
class Permit {
  readonly tool: Tool
  readonly input: unknown
  readonly call: Called
  readonly gated: boolean
  constructor(secret: symbol, tool: Tool, input: unknown, call: Called, gated: boolean) {
    if (secret !== mint) throw new TypeError('a Permit is made by the Gate alone')
    this.tool = tool
    this.input = input
    this.call = call
    this.gated = gated
  }
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

/** Begun by this process and not ended, the late ones included. */
const underWay = new Set<number>()
let runs = 0
/** Two containers may share a host name and a pid, but not the namespace that pids are counted in. */
const namespace = pidNamespace()
const owner = `${hostname()}:${process.pid}:${randomBytes(6).toString('hex')}${namespace}`

function pidNamespace(): string {
  try {
    return `@${readlinkSync('/proc/self/ns/pid').replace(/\D/g, '')}`
  } catch {
    return '' // not Linux
  }
}

/** True when whoever began it cannot finish it any more: dead on this host, done with it here, or far past its clock. */
function gone(entry: Entry): boolean {
  if (Date.now() > entry.since + (entry.timeoutMs ?? 0) + skewMs) return true
  const [, host, pid, where = namespace] = /^(.*):(\d+):\w+(@\d+)?$/.exec(entry.owner) ?? []
  if (entry.owner === owner) return !underWay.has(entry.run)
  if (host !== hostname() || where !== namespace) return false
  if (Number(pid) === process.pid) return true
  try {
    return !process.kill(Number(pid), 0)
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'ESRCH'
  }
}

const strictness = new Map<unknown, number>([
  ['allow', 0],
  ['ask', 1],
  ['deny', 2],
])

function asVerdict(answer: unknown): { verdict: Word; reason?: string } {
  if (answer === undefined || answer === false) return { verdict: 'allow' }
  if (answer === true) return { verdict: 'ask' }
  const said = (typeof answer === 'object' && answer ? answer : { verdict: answer }) as {
    verdict: Word
    reason?: string
  }
  if (strictness.has(said.verdict)) return said
  return {
    verdict: 'ask',
    reason: `A policy answered ${JSON.stringify(answer)}, which is no verdict, so a person is asked.`,
  }
}

/** A changed input, wherever the client put it; an echo equals the model's input or the filled one. */
function edited(
  d: Decision,
  input: unknown,
  filled: unknown,
  known: boolean,
): { input: unknown } | undefined {
  const next = d.editedInput === undefined && known ? d.input : d.editedInput
  if (next === undefined || [input, filled].some((v) => canonical(v) === canonical(next)))
    return undefined
  return { input: next }
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
function failed(content: string): Answer {
  return { outcome: 'error', content }
}
function refused(open: string): Answer {
  return { open, refused: true }
}
function denied({ reasons }: Checked): { content: string; reason: string } {
  const reason = reasons.join('; ') || 'no reason given'
  return { content: `Denied by policy: ${reason}`, reason }
}
function expired(at: number): Answer {
  return { outcome: 'expired', content: `Not executed: this approval expired at ${time(at)}.` }
}
function time(at: number): string {
  return `${new Date(at).toISOString().slice(0, 19)}Z`
}
export function words(error: unknown): string {
  try {
    return error instanceof Error ? `${error.message}` : String(error)
  } catch {
    return 'an unprintable error'
  }
}
/** What a policy or a preview does to its input must not reach the tool. JSON by hand: a tenth of structuredClone. */
function copy(input: unknown): unknown {
  if (typeof input !== 'object' || input === null) return input === 0 ? 0 : input // signed as 0, so no -0
  if (Array.isArray(input)) return input.map(copy)
  if (Object.getPrototypeOf(input) !== Object.prototype) return cloned(input)
  return Object.fromEntries(Object.entries(input).map(([key, value]) => [key, copy(value)]))
}
function cloned(value: object): unknown {
  try {
    return structuredClone(value)
  } catch {
    return JSON.parse(JSON.stringify(value))
  }
}

/** For a grant answers in a person's place: not where it takes several, or one who did not ask. */
function takesGrants({ grantable, quorum, approver }: Tool): boolean {
  return grantable && quorum === 1 && approver !== 'other'
}

/** The first field whose characters an approver could not see, in the input as it came or as it was filled. */
function unseen(tool: Tool, ...inputs: unknown[]): string | undefined {
  const open = tool.allowInvisible
  if (open === true) return undefined
  const entries = inputs.flatMap((input) => Object.entries(input ?? {}))
  const field = entries.find(
    ([key, value]) => invisible(key) || (!open.includes(key) && hides(value)),
  )?.[0]
  return field === undefined
    ? undefined
    : `The field ${JSON.stringify(field)} of ${tool.name} holds invisible or control characters, which whoever approves could not see. Write it without them.`
}
function hides(value: unknown): boolean {
  if (typeof value === 'string') return invisible(value)
  return typeof value === 'object' && value !== null && Object.entries(value).flat().some(hides)
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

async function within<T>(ms: number, work: T | Promise<T>, clock?: AbortController): Promise<T> {
  const late = Promise.withResolvers<never>()
  const end = () => {
    const error = new Error(`no answer within ${ms} ms`)
    clock?.abort(error)
    late.reject(error)
  }
  const timer = setTimeout(end, ms)
  return Promise.race([work, late.promise]).finally(() => clearTimeout(timer))
}
