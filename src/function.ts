// A function served in an agent's place. Loaded when `chatHandler` is given one. What it says through `emit` counts over
// what it returns, so that the stream and the answer in one piece are the same; all of it is masked like a tool's output.

import type { ExecutedCall, RunEvent, RunInput, RunOptions } from './agent.ts'
import type { AgentFunction } from './http.ts'
import { type Mask, maskJson } from './mask.ts'

/** What the function came to; `error` beside what it did before it failed. Throws where it did nothing. */
export async function heard(
  agent: AgentFunction,
  input: RunInput,
  options: RunOptions,
  mask: Mask,
) {
  let text = ''
  const lines = new Set<ExecutedCall>()
  const known = new WeakMap<ExecutedCall, ExecutedCall>() // what is told twice stays one
  const clean = (call: ExecutedCall): ExecutedCall => {
    const masked = known.get(call) ?? { ...call, output: mask(`${call.output}`) }
    known.set(call, masked).set(masked, masked)
    return masked
  }
  const told = (calls: ExecutedCall[]): ExecutedCall[] => {
    const masked = calls.map(clean)
    for (const call of masked) lines.add(call)
    return masked
  }
  const emit = (given: RunEvent) => {
    const event = { ...given }
    switch (event.type) {
      case 'text_delta':
        event.text = mask(event.text)
        text += event.text
        break
      case 'intermittent_update':
        event.text = mask(event.text)
        event.content = maskJson(event.content, mask) as Record<string, unknown>
        break
      case 'executed_tool_calls':
        event.executedToolCalls = told(event.executedToolCalls)
        break
      case 'executed_commands':
        event.executedCmds = told(event.executedCmds)
        break
      case 'executed_approvals':
        event.executedApprovals = told(event.executedApprovals)
    }
    return options.emit?.(event)
  }
  try {
    const answer = await agent(input, { ...options, emit })
    if (typeof answer?.text !== 'string')
      throw new TypeError('the function in place of an agent must return { text }')
    told(('executed' in answer && answer.executed) || [])
    return { ...answer, executed: [...lines], text: text || mask(answer.text) }
  } catch (error) {
    if (lines.size === 0) throw error
    return { text, executed: [...lines], error, session: options.session }
  }
}
