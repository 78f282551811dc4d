// What the person said, carried out: decisions on the calls that wait, one after another, and words for the model. Loaded
// when a request brings either to a run that waits, or decisions at all. strays.ts: calls that no state holds.

import { apply, type ExecutedCall, pendingIn, type Run, type RunInput, waiting } from './agent.ts'
import type { Answer, Decision, List } from './approval.ts'
import { loader } from './load.ts'
import * as talk from './messages.ts'

const strays = loader(() => import('./strays.ts'))

/** Carries out the decisions, one after another, then hands the person's words to the model or keeps them. */
export async function hear(self: Run, { messages, proposed = [] }: RunInput): Promise<void> {
  const { desk, state, resumed, told, loose, scope } = self
  for (const { at, call } of [...waiting(self)]) {
    const proof = call.proof ?? ''
    const decision = desk.decisions.get(proof)
    desk.decisions.delete(proof)
    if (desk.signal?.aborted) continue
    const answer = decision
      ? await at.gate.decide(call, decision)
      : await undecided(at, call, proof)
    if (decision && answer) report(at, decision, call, answer)
    if (answer) apply(at, call, answer)
  }
  if (desk.decisions.size > 0 || (!resumed && proposed.length > 0))
    await (await strays()).hearStrays(self, proposed)
  if (desk.lines.length > 0) await sayLines(self)
  desk.signal?.throwIfAborted()
  const title = 'Outcome of the calls a person decided'
  const block = told.length > 0 && loose.length === 0 && talk.dataBlock(title, told, scope.mask)
  desk.asked = [...waiting(self)].length + loose.length
  if (resumed && desk.asked > loose.length) {
    state.kept.push(...[desk.words, block || ''].filter(Boolean))
    return
  }
  const more = state.kept.splice(0).map(talk.textPart)
  // Of a run that goes on, the earlier messages are known: only what the last one brings is new.
  const last =
    resumed && talk.normalized(typeof messages === 'string' ? messages : messages.slice(-1))[0]
  if (last && last.role === 'user') more.push(...last.parts)
  if (block) more.push(talk.textPart(block))
  const end = state.messages.at(-1)
  if (more.length === 0) return
  if (end?.role === 'user')
    state.messages[state.messages.length - 1] = { role: 'user', parts: [...end.parts, ...more] }
  else if (!pendingIn(state)) state.messages.push({ role: 'user', parts: more })
}

/** What became of an open call that nobody named: the ledger knows, or the person's words close it. */
export async function undecided(
  { gate, desk }: Run,
  said: { name: string; input: unknown },
  proof: string,
): Promise<Answer | undefined> {
  const known = await gate.recall(said, proof)
  if (known || !desk.closes) return known
  return gate.decide(said, { id: proof, approve: false, implicit: true, reason: desk.words })
}

/** The line a client reads for its decision. A vote that did not make the quorum has none. */
export function report(
  { tools, desk, scope }: Run,
  decision: Decision,
  said: { name: string; input: unknown; path?: string[] },
  answer: Answer,
): void {
  const closed = 'outcome' in answer
  const output = closed ? answer.content : answer.open
  if (!output && !closed) return
  const { id, lists = ['tool_calls'], path = said.path } = decision
  const { name, input } = said
  const type = tools.get(name)?.type ?? 'tool_call'
  const outcome = closed ? answer.outcome : 'rejected'
  const line: ExecutedCall = { id, type, name, input, output: scope.mask(output), outcome, lists }
  if (closed && answer.replayed) line.replayed = true
  if (path) line.path = path
  desk.lines.push(line)
  desk.executed.push(line)
}

/** What became of the decided calls, once, in the lists they came in. */
export async function sayLines({ desk }: Run): Promise<void> {
  const said = desk.lines.splice(0)
  const of = (list: List) => said.filter((line) => line.lists?.includes(list))
  const [calls, commands, approvals] = [of('tool_calls'), of('cmds'), of('approvals')]
  if (calls[0]) await desk.emit({ type: 'executed_tool_calls', executedToolCalls: calls })
  if (commands[0]) await desk.emit({ type: 'executed_commands', executedCmds: commands })
  if (approvals[0]) await desk.emit({ type: 'executed_approvals', executedApprovals: approvals })
}
