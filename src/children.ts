// Agents as tools of agents: a child is a run of its own, with its own gate, in the same request. Loaded when a tool
// delegates (subagent.ts makes such tools) or a state comes back whose child waits.

import {
  type Agent,
  checkAgent,
  childOf,
  converse,
  InterceptorError,
  newState,
  type Run,
  type RunState,
  toError,
} from './agent.ts'
import { paused, words } from './approval.ts'
import { normalized } from './messages.ts'
import { DcafError } from './providers/provider.ts'

/** No answer of a child's: the run has the same failure. */
const fatal = new Set(['store_unavailable', 'deadline', 'aborted', 'shutting_down'])

/** What the child answers, or `paused(state)` while a person must decide one of its calls. */
export async function delegate(
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
  const children = childrenOf(parent)
  let child = children.get(call.id)
  children.delete(call.id) // from here on it is this call's alone
  try {
    child ??= await childOf(agent, state, { ...parent, path })
    await converse(child)
  } catch (error) {
    const { mask } = (child ?? parent).scope
    if (error instanceof InterceptorError) return mask(error.userMessage)
    const { code } = toError(error, 'internal_error')
    if (error instanceof DcafError && fatal.has(code)) parent.desk.fatal ??= error
    parent.fact('AgentFailed', { callId: call.id, name: call.name, error: mask(words(error)) })
    throw new Error(`the agent ${agent.name} failed: ${code}`) // the rest is not for model and client
  }
  if (child.state.calls.some((open) => open.status === 'pending')) {
    children.set(call.id, child)
    return paused(child.state)
  }
  if (child.stop === 'end') return child.text
  return `${child.text}\n(${agent.name} stopped: ${child.stop})`.trim()
}

/** The paused children of a state that came back. */
export async function reopen(parent: Run): Promise<void> {
  for (const call of parent.state.calls) {
    if (call.status !== 'pending' || call.child === undefined) continue
    const agent = parent.tools.get(call.name)?.agent as Agent | undefined
    if (!agent) continue
    const state = call.child as RunState
    state.rejected = parent.state.rejected
    const path = [...parent.path, call.name]
    childrenOf(parent).set(call.id, await childOf(agent, state, { ...parent, path }))
  }
}

function childrenOf({ desk }: Run): Map<string, Run> {
  desk.children ??= new Map()
  return desk.children
}
