// Decisions on calls that the state does not hold: an old one, a forged one, or all of them where a client echoes no
// state. Nothing is rebuilt as tool calls then: the model is told what became of them in the next message of the
// person's. Loaded when there is such a decision or such a call.

import {
  type Agent,
  childOf,
  digest,
  newState,
  type Run,
  type RunInput,
  type RunState,
  waiting,
} from './agent.ts'
import { type Answer, cap, type Decision, unverified } from './approval.ts'
import { agentAt } from './ending.ts'
import { report, undecided } from './hearing.ts'
import { callsOf } from './messages.ts'

type Said = { name: string; input: unknown; path?: string[] }

/** `proposed`: what the thread shows as pending. What stays open of it is `loose` in the run. */
export async function hearStrays(
  self: Run,
  proposed: NonNullable<RunInput['proposed']>,
): Promise<void> {
  const { desk } = self
  const known = new Set([...waiting(self)].map(({ call }) => call.id))
  const place = (id: string) => proposed.findIndex((said) => said.id === id) >>> 0
  for (const decision of [...desk.decisions.values()].sort((a, b) => place(a.id) - place(b.id))) {
    if (desk.signal?.aborted) return
    await hearStray(self, decision, known)
  }
  for (const said of self.resumed ? [] : proposed) {
    if (desk.decisions.has(said.id) || desk.signal?.aborted) continue
    const at = await runAt(self, said.path)
    const call = await at?.gate.restore(said, said.id)
    if (!at || !call) continue
    const answer = await undecided(at, said, said.id)
    if (answer) await tell(self, at, said, answer, known)
    else self.loose.push(call)
  }
}

async function hearStray(self: Run, decision: Decision, known: Set<string>): Promise<void> {
  const { agent, state, limits } = self
  // An item of `cmds` has no name: it can only be the agent's one command tool, or nothing.
  const shells = (agentAt(agent, decision.path)?.tools ?? []).filter((t) => t.type === 'command')
  if (decision.name === undefined && decision.lists?.includes('cmds') && shells.length === 1)
    decision = { ...decision, name: shells[0]?.name ?? '' }
  const held = heldIn(state, decision.id.split('.', 1)[0] ?? '')
  const said = held ?? decision.known ?? { name: decision.name ?? '', input: decision.input }
  const at = await runAt(self, decision.path ?? held?.path)
  const why = cap(decision.reason ?? 'not approved', limits.outputBytes)
  const no = { open: decision.approve ? unverified : `Tool rejected: ${why}`, refused: true }
  const answer: Answer = at ? await at.gate.decide(held, decision) : no
  report(at ?? self, decision, said, answer)
  // What the state holds as done the model knows already.
  if (!held || 'open' in answer) await tell(self, at, said, answer, known)
  if (!('open' in answer) || answer.fresh || answer.refused) return
  const call = await at?.gate.restore(said, decision.id)
  if (!call || known.has(call.id)) return
  if (answer.votes) call.votes = answer.votes
  self.loose.push(call)
}

async function tell(
  self: Run,
  at: Run | undefined,
  said: Said,
  answer: Answer,
  known: Set<string>,
): Promise<void> {
  const { name, input } = said
  if ('outcome' in answer) {
    const { outcome, content: output, reason = output } = answer
    if (outcome === 'rejected' && at) {
      const filled = await at.gate.filled(name, input)
      self.state.rejected[digest({ name, input: filled }, at.path)] ??= reason
    }
    self.told.push({ tool: name, input, outcome, output })
    return
  }
  if (answer.fresh && !known.has(answer.fresh.id)) self.loose.push(answer.fresh)
  if (answer.refused)
    self.told.push({ tool: name, input, outcome: 'rejected', output: answer.open })
}

/** A run of the child that the names of agent tools lead to, for a call that no state holds. */
async function runAt(self: Run, path: string[] = []): Promise<Run | undefined> {
  let at = self
  for (const name of path) {
    const child = at.tools.get(name)?.agent as Agent | undefined
    if (!child) return undefined
    const state = newState([], at.state.runId)
    at = await childOf(child, state, { ...at, path: [...at.path, name] })
  }
  return at
}

/** What the state knows of a call, decided and superseded ones too. */
function heldIn(state: RunState, id: string, path: string[] = []): Said | undefined {
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
