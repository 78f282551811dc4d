// Pure functions over a RunState, for those who keep conversations themselves: each returns a new state and changes
// nothing. The loop does not need them; they hold the rules of the original's Conversation, wording of errors included.

import { newState, type RunState } from './agent.ts'
import type { Call, Status } from './approval.ts'
import { nonce } from './proof.ts'
import { DcafError, type Message, type ToolResult } from './providers/provider.ts'

export class InvalidTransition extends DcafError {
  override name = 'InvalidTransition'
  constructor(id: string, from: Status, to: Status) {
    super('invalid_transition', `tool call ${id} is ${from} and cannot become ${to}`)
  }
}
export class ToolCallNotFound extends DcafError {
  override name = 'ToolCallNotFound'
  constructor(id: string) {
    super('tool_call_not_found', `the state holds no tool call ${id}`)
  }
}
export class ConversationBlocked extends DcafError {
  override name = 'ConversationBlocked'
  constructor(waiting: number) {
    super(
      'conversation_blocked',
      `${waiting} tool calls wait for a decision; decide them before the next user message`,
    )
  }
}

const next: Record<Status, Status[]> = {
  pending: ['approved', 'rejected', 'expired'],
  approved: ['executing', 'expired'],
  executing: ['completed', 'failed', 'unknown'],
  unknown: ['completed', 'failed'], // a late result is still recorded
  completed: [],
  failed: [],
  rejected: [],
  expired: [],
}
const outcomes = {
  completed: 'ok',
  failed: 'error',
  rejected: 'rejected',
  expired: 'expired',
  unknown: 'unknown',
} as const

export { newState }

export function pendingCalls(state: RunState): Call[] {
  return state.calls.filter((call) => call.status === 'pending')
}

/** True while a person must decide before the conversation can go on. */
export function isBlocked(state: RunState): boolean {
  return pendingCalls(state).length > 0
}

/** True when nothing can happen to the call any more. */
export function isTerminal(status: Status): boolean {
  return next[status].length === 0
}

/** Throws `ConversationBlocked` while calls are pending. */
export function addUserMessage(state: RunState, text: string): RunState {
  const waiting = pendingCalls(state).length
  if (waiting > 0) throw new ConversationBlocked(waiting)
  return {
    ...state,
    messages: [...state.messages, { role: 'user', parts: [{ type: 'text', text }] }],
  }
}

/** `calls`: what the model asked; those that require approval begin as pending, the others as executing. */
export function addAssistantMessage(
  state: RunState,
  text: string,
  calls: { name: string; input: unknown; id?: string; requiresApproval?: boolean }[] = [],
): RunState {
  const made = calls.map(
    ({ name, input, id = nonce(), requiresApproval = false }): Call => ({
      id,
      name,
      input,
      requiresApproval,
      status: requiresApproval ? 'pending' : 'executing',
    }),
  )
  const asked = made.map(({ id, name, input }) => ({ type: 'tool_call' as const, id, name, input }))
  const message: Message = {
    role: 'assistant',
    parts: [...(text ? [{ type: 'text' as const, text }] : []), ...asked],
    results: [],
  }
  return { ...state, messages: [...state.messages, message], calls: [...state.calls, ...made] }
}

/**
 * The state with one call moved on; `detail` is its result, its error, or the reason of a rejection. An end writes the
 * call's one result into the message that asked. Throws `ToolCallNotFound` and `InvalidTransition`.
 */
export function transition(state: RunState, id: string, to: Status, detail = ''): RunState {
  const call = state.calls.find((c) => c.id === id)
  if (!call) throw new ToolCallNotFound(id)
  if (!next[call.status].includes(to)) throw new InvalidTransition(id, call.status, to)
  const moved: Call = { ...call, status: to }
  if (to === 'rejected') moved.rejectionReason = detail
  if (to === 'failed') moved.error = detail
  if (to in outcomes) moved.outcome = outcomes[to as keyof typeof outcomes]
  if (moved.outcome) moved.result = to === 'rejected' ? `Tool rejected: ${detail}` : detail
  const calls = state.calls.map((c) => (c === call ? moved : c))
  return {
    ...state,
    calls,
    messages: moved.outcome ? state.messages.map((m) => answered(m, moved)) : state.messages,
  }
}

function answered(
  message: Message,
  { id, part = id, outcome = 'ok', result: content = '' }: Call,
): Message {
  if (
    message.role !== 'assistant' ||
    !message.parts.some((p) => p.type === 'tool_call' && p.id === part)
  )
    return message
  const order = message.parts.flatMap((p) => (p.type === 'tool_call' ? [p.id] : []))
  const result: ToolResult = { callId: part, outcome, content }
  const results = [...message.results.filter((r) => r.callId !== part), result]
  return {
    ...message,
    results: results.sort((a, b) => order.indexOf(a.callId) - order.indexOf(b.callId)),
  }
}
