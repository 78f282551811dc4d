import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Status } from '../src/approval.ts'
import { type Agent, type RunState, run } from '../src/index.ts'
import { DcafError } from '../src/providers/provider.ts'
import { scripted } from '../src/providers/scripted.ts'
import {
  addAssistantMessage,
  addUserMessage,
  ConversationBlocked,
  InvalidTransition,
  isBlocked,
  isTerminal,
  newState,
  pendingCalls,
  ToolCallNotFound,
  transition,
} from '../src/state.ts'
import { dropTool, outputs, told } from './desk.ts'

/** Every function is given a state that cannot be changed. */
function frozen<T>(value: T): T {
  if (typeof value === 'object' && value !== null)
    Object.values(Object.freeze(value)).forEach(frozen)
  return value
}
const drop = { id: 'tc_1', name: 'drop', input: { table: 'a' } }
const asking = (requiresApproval = true) =>
  frozen(addAssistantMessage(frozen(newState()), 'I will', [{ ...drop, requiresApproval }]))
const resultsOf = ({ messages }: RunState) =>
  messages.flatMap((m) => ('results' in m ? m.results : []))

test('a new state is empty, plain JSON, and has a run id of its own', () => {
  const state = newState()
  assert.match(state.runId, /^[0-9a-f]{32}$/)
  assert.notEqual(newState().runId, state.runId)
  assert.deepEqual({ ...state, runId: 'r' }, newState([], 'r'))
  assert.deepEqual(JSON.parse(JSON.stringify(state)), state)
})

test('messages are added to a new state, and the old one stays', () => {
  const empty = frozen(newState())
  const one = frozen(addUserMessage(empty, 'hi'))
  const two = addAssistantMessage(one, 'hello')
  assert.deepEqual([empty.messages, one.messages.length, two.calls], [[], 1, []])
  assert.deepEqual(two.messages, [
    { role: 'user', parts: [{ type: 'text', text: 'hi' }] },
    { role: 'assistant', parts: [{ type: 'text', text: 'hello' }], results: [] },
  ])
})

test('calls that require approval begin as pending, the others as executing', () => {
  const state = addAssistantMessage(newState(), '', [
    { ...drop, requiresApproval: true },
    { name: 'look', input: {} },
  ])
  const [one, two] = state.calls
  assert.deepEqual(one, { ...drop, requiresApproval: true, status: 'pending' })
  assert.deepEqual([two?.status, two?.requiresApproval], ['executing', false])
  assert.match(two?.id ?? '', /^tc_[\w-]{16}$/)
  assert.deepEqual(state.messages[0]?.parts, [
    { type: 'tool_call', ...drop },
    { type: 'tool_call', id: two?.id, name: 'look', input: {} },
  ])
  assert.deepEqual([pendingCalls(state), isBlocked(state)], [[one], true])
})

test('a user message while calls are pending is blocked, after the last decision it is not', () => {
  assert.throws(
    () => addUserMessage(asking(), 'and?'),
    (error) =>
      error instanceof ConversationBlocked &&
      error instanceof DcafError &&
      error.code === 'conversation_blocked' &&
      error.name === 'ConversationBlocked' &&
      /^1 tool calls wait/.test(error.message),
  )
  const decided = transition(asking(), 'tc_1', 'rejected', 'no')
  assert.equal(isBlocked(decided), false)
  assert.equal(addUserMessage(decided, 'and?').messages.length, 2)
})

const all: Status[] = [
  'pending',
  'approved',
  'rejected',
  'executing',
  'completed',
  'failed',
  'expired',
  'unknown',
]
const allowed: Record<Status, Status[]> = {
  pending: ['approved', 'rejected', 'expired'],
  approved: ['executing', 'expired'],
  rejected: [],
  executing: ['completed', 'failed', 'unknown'],
  completed: [],
  failed: [],
  expired: [],
  unknown: ['completed', 'failed'],
}
for (const from of all)
  test(`from ${from} a call goes to ${allowed[from].join(', ') || 'nothing else'}`, () => {
    const state = frozen({
      ...asking(),
      calls: [{ ...drop, requiresApproval: true, status: from }],
    })
    for (const to of all) {
      if (allowed[from].includes(to)) {
        assert.equal(transition(state, 'tc_1', to, 'x').calls[0]?.status, to)
        continue
      }
      assert.throws(
        () => transition(state, 'tc_1', to),
        (error) =>
          error instanceof InvalidTransition &&
          error.code === 'invalid_transition' &&
          error.name === 'InvalidTransition' &&
          error.message === `tool call tc_1 is ${from} and cannot become ${to}`,
      )
    }
    assert.equal(isTerminal(from), allowed[from].length === 0)
  })

test('a call that the state does not hold is not found', () => {
  assert.throws(
    () => transition(asking(), 'tc_2', 'approved'),
    (error) =>
      error instanceof ToolCallNotFound &&
      error.code === 'tool_call_not_found' &&
      error.message === 'the state holds no tool call tc_2',
  )
})

test('an approved call that ended has its one result on the turn that asked', () => {
  const approved = frozen(transition(asking(), 'tc_1', 'approved'))
  assert.deepEqual(resultsOf(approved), [])
  const running = frozen(transition(approved, 'tc_1', 'executing'))
  const done = transition(running, 'tc_1', 'completed', 'dropped a')
  assert.deepEqual(resultsOf(done), [{ callId: 'tc_1', outcome: 'ok', content: 'dropped a' }])
  assert.deepEqual(
    [done.calls[0]?.outcome, done.calls[0]?.result, resultsOf(running)],
    ['ok', 'dropped a', []],
  )
})

for (const [to, from, outcome, more, content] of [
  ['rejected', 'pending', 'rejected', { rejectionReason: 'x' }, 'Tool rejected: x'],
  ['expired', 'pending', 'expired', {}, 'x'],
  ['failed', 'executing', 'error', { error: 'x' }, 'x'],
  ['unknown', 'executing', 'unknown', {}, 'x'],
] as const)
  test(`a call that ${to} says so in call and result`, () => {
    const state = { ...asking(), calls: [{ ...drop, requiresApproval: true, status: from }] }
    const next = transition(state, 'tc_1', to, 'x')
    assert.deepEqual(next.calls[0], {
      ...drop,
      requiresApproval: true,
      status: to,
      outcome,
      result: content,
      ...more,
    })
    assert.deepEqual(resultsOf(next), [{ callId: 'tc_1', outcome, content }])
  })

test('a late result takes the place of unknown', () => {
  const state = {
    ...asking(),
    calls: [{ ...drop, requiresApproval: true, status: 'executing' as const }],
  }
  const unknown = transition(state, 'tc_1', 'unknown', 'no answer')
  const late = transition(unknown, 'tc_1', 'completed', 'dropped a')
  assert.deepEqual(resultsOf(late), [{ callId: 'tc_1', outcome: 'ok', content: 'dropped a' }])
})

test('results are in the order of the calls, whichever ended first, and only on their turn', () => {
  let state = addAssistantMessage(newState(), '', [
    { id: 'tc_1', name: 'a', input: {} },
    { id: 'tc_2', name: 'b', input: {} },
  ])
  state = addAssistantMessage(state, 'later', [{ id: 'tc_3', name: 'c', input: {} }])
  for (const id of ['tc_2', 'tc_3', 'tc_1']) state = transition(state, id, 'completed', id)
  assert.deepEqual(
    state.messages.map((m) => ('results' in m ? m.results.map((r) => r.callId) : [])),
    [['tc_1', 'tc_2'], ['tc_3']],
  )
})

test('a call that stands in for another answers the other’s part', () => {
  const call = {
    ...drop,
    id: 'tc_9',
    part: 'tc_1',
    requiresApproval: true,
    status: 'executing' as const,
  }
  const next = transition({ ...asking(), calls: [call] }, 'tc_9', 'completed', 'x')
  assert.deepEqual(resultsOf(next), [{ callId: 'tc_1', outcome: 'ok', content: 'x' }])
})

test('a state made by hand is a run’s: what it calls approved is still asked', async () => {
  const ran: unknown[] = []
  const agent: Agent = { name: 'db', provider: scripted(['ok']), tools: [dropTool(ran)] }
  const state = addAssistantMessage(addUserMessage(newState(), 'drop a'), '', [
    { name: 'drop', input: { table: 'a' }, requiresApproval: true },
  ])
  const id = state.calls[0]?.id ?? ''
  for (const paused of [state, transition(state, id, 'approved')]) {
    const first = await run(agent, { messages: [], paused })
    assert.deepEqual([ran, first.pending.map((p) => p.name)], [[], ['drop']])
  }
  const first = await run(agent, { messages: [], paused: state })
  const decisions = first.pending.map((p) => ({ id: p.id, approve: true }))
  const last = await run(agent, { messages: [], decisions, paused: first.state })
  assert.deepEqual([outputs(last), told(last), ran.length], [['dropped a'], ['dropped a'], 1])
  assert.equal(isBlocked(last.state), false)
})
