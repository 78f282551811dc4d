// The end of a run that waits for a person, or has something to say yet: what is pending as clients are shown it. Loaded by
// the first such run.

import {
  type Agent,
  fail,
  type PendingCall,
  pendingIn,
  type Run,
  type RunResult,
  resultOf,
  toolsOf,
  utter,
  waiting,
} from './agent.ts'
import type { Call } from './approval.ts'
import { sayLines } from './hearing.ts'
import { loader } from './load.ts'

const sealing = loader(() => import('./sealing.ts'))

const atLimit = 'I stopped before I was done: this run reached a limit.'
const needApproval = 'I need your approval to execute the following tools:'

/** The result of a run that has something to say yet, or that waits. */
export async function conclude(self: Run): Promise<RunResult> {
  const { desk, state, agent } = self
  if (desk.lines.length > 0) await sayLines(self).catch((error) => fail(self, error))
  const calls = pendingIn(state) ? [...waiting(self)].map(({ call }) => call) : []
  const pending = [...calls, ...self.loose].map((call) => shown(agent, call))
  if (pending.length > 0 && self.stop === 'approval') {
    await ask(self, pending).catch((error) => fail(self, error))
    self.fact('ApprovalRequested', { calls: pending })
  }
  // An empty answer would look like a fault of the client's.
  if (self.stop === 'limit' && !self.text)
    await Promise.resolve(utter(self, atLimit)).catch(() => {})
  const result = resultOf(self, pending)
  const seal = async () => (await sealing()).sealRun(self, calls)
  const paused = calls.length > 0 ? await seal().catch(() => undefined) : undefined
  if (paused) result.paused = paused
  return result
}

async function ask(self: Run, pending: PendingCall[]): Promise<void> {
  const { desk } = self
  if (!self.text) await utter(self, needApproval)
  const commands = pending.filter((call) => call.type === 'command')
  const toolCalls = pending.filter((call) => call.type !== 'command')
  if (commands.length > 0) await desk.emit({ type: 'commands', commands })
  await desk.emit({ type: 'approvals', approvals: pending })
  if (toolCalls.length > 0) await desk.emit({ type: 'tool_calls', toolCalls })
}

/** The agent that the names of agent tools lead to. */
export function agentAt(agent: Agent, path: string[] = []): Agent | undefined {
  let at: Agent | undefined = agent
  for (const name of path) at = at && (toolsOf(at).tools.get(name)?.agent as Agent | undefined)
  return at
}

function shown(agent: Agent, call: Call): PendingCall {
  const owner = agentAt(agent, call.path)
  const tool = owner && toolsOf(owner).tools.get(call.name)
  const inputDescription: Record<string, string> = {}
  const properties = Object.entries(Object(tool?.input.properties) as Record<string, unknown>)
  for (const [key, { description }] of properties as [string, { description?: unknown }][])
    if (typeof description === 'string') inputDescription[key] = description
  const { name, input, effectiveInput, preview, reasons, path, votes, expiresAt = 0 } = call
  const pending: PendingCall = {
    id: call.proof ?? call.id,
    type: tool?.type ?? 'tool_call',
    name,
    input,
    description: tool?.description ?? '',
    inputDescription,
    expiresAt: new Date(expiresAt).toISOString(),
  }
  for (const [key, value] of Object.entries({ effectiveInput, preview, reasons, path, votes }))
    if (value !== undefined) Object.assign(pending, { [key]: value })
  return pending
}
