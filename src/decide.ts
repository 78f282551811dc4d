// What a program says to a run instead of a person at a screen: messages, decisions, and that a paused run goes on.

import { type Agent, type RunOptions, type RunResult, run } from './agent.ts'
import type { Decision } from './approval.ts'
import type { ChatMessage } from './messages.ts'

/** The run goes on where `paused` stopped. */
export function resume(
  agent: Agent,
  paused: RunResult,
  decisions: Decision[],
  options: RunOptions = {},
): Promise<RunResult> {
  const { state, session } = paused
  return run(agent, { messages: [], decisions, paused: state }, { session, ...options })
}

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
  return { ...named(call), approve: false, ...(reason !== undefined && { reason }) }
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
