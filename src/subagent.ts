// An agent as a tool of another agent. What a child may do is judged by the child's own gate; its pending calls surface
// in the parent with their `path`, and a decision goes back down it. Knows no more of a run than `ctx.delegate`.

import type { Agent } from './agent.ts'
import { type Tool, tool } from './tool.ts'

export interface AgentToolOptions {
  /** Default: the agent's name. */
  name?: string
  /** What the parent's model reads. Default: the agent's description; one of the two is needed. */
  description?: string
}

/**
 * A tool that hands its `task` to `agent` and answers with what the agent said. It has no approval flag and no timeout
 * of its own: risk lives on the child's tools, and a person may take an hour. A parent's policy may deny it, never ask.
 */
export function agentTool(agent: Agent, options: AgentToolOptions = {}): Tool {
  const made = tool({
    name: options.name ?? agent.name,
    description: options.description ?? agent.description ?? '',
    input: '{ task: string }',
    execute: ({ task }, ctx) => ctx.delegate(agent, task),
  })
  return { ...made, agent }
}
