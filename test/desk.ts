// An agent with one gated tool, asked through `run` and `resume`; what ran, what was said of it and what is in the store.

import type { Decision } from '../src/approval.ts'
import {
  type Agent,
  type RunFact,
  type RunOptions,
  type RunResult,
  resume,
  run,
} from '../src/index.ts'
import { type ScriptFunction, scripted } from '../src/providers/scripted.ts'
import { memoryStore } from '../src/store.ts'
import { type Tool, type ToolContext, tool } from '../src/tool.ts'
import type { Json } from './harness.ts'

export type { Json } from './harness.ts'

export type Drop = { table: string; cascade?: boolean; [key: string]: unknown }

export const testKey = Buffer.alloc(32, 7).toString('base64')

/** The model proposes `drop {table:"a"}` first, and answers `ok` after. */
export const proposesOnce: ScriptFunction = (_, __, index) =>
  index === 0 ? { calls: [{ name: 'drop', input: { table: 'a' } }] } : 'ok'

export function dropTool(ran: unknown[], more: Json = {}): Tool {
  return tool({
    name: 'drop',
    description: 'Drop a table',
    input: {
      type: 'object',
      properties: {
        table: { type: 'string' },
        cascade: { type: 'boolean', default: false },
      },
      required: ['table'],
    },
    requiresApproval: true,
    execute: (input: Drop, _ctx: ToolContext): unknown => {
      ran.push(input)
      return `dropped ${input.table}`
    },
    ...more,
  } as never)
}

export function desk(more: Json = {}, agent: Partial<Agent> = {}, options: RunOptions = {}) {
  const ran: Drop[] = []
  const facts: RunFact[] = []
  const store = options.store ?? memoryStore()
  const provider = scripted(proposesOnce)
  const served: Agent = {
    name: 'db',
    provider,
    tools: [dropTool(ran, more)],
    onEvent: (fact) => facts.push(fact),
    ...agent,
  }
  const all: RunOptions = { store, keys: [testKey], ...options }
  return {
    ran,
    facts,
    store,
    provider,
    agent: served,
    options: all,
    propose: (changed: RunOptions = {}) =>
      run(served, { messages: 'drop a' }, { ...all, ...changed }),
    decide: (paused: RunResult, decisions: Decision[], changed: RunOptions = {}) =>
      resume(served, paused, decisions, { ...all, ...changed }),
    of: (type: string) => facts.filter((fact) => fact.type === type),
  }
}

export function idOf(result: RunResult, index = 0): string {
  const call = result.pending[index]
  if (!call) throw new Error(`nothing is pending: ${JSON.stringify(result.executed)}`)
  return call.id
}
export const outputs = (result: RunResult) => result.executed.map((call) => call.output)
/** What the model was told of the calls of its last turn. */
export function told(result: RunResult): string[] {
  const turn = result.state.messages.findLast(
    (m) => m.role === 'assistant' && m.parts.some((p) => p.type === 'tool_call'),
  )
  return turn?.role === 'assistant' ? turn.results.map((r) => r.content) : []
}
