// The agent of the fault tests: `restart NAME and NAME` makes its model propose calls that need approval, `look` one that
// needs none; everything else is answered `ok`. What was done is told before anything else can happen.

import { randomBytes } from 'node:crypto'
import type { Agent } from '../../src/index.ts'
import { type ScriptEntry, scripted } from '../../src/providers/scripted.ts'
import { type ToolContext, tool } from '../../src/tool.ts'

export interface Ops {
  /** What was done, once it was, and awaited before the tool goes on. */
  onEffect(callId: string, effect: string, ctx: ToolContext): unknown
  /** In place of the effect, where it gives a promise. */
  instead?(service: string): Promise<string> | undefined
  /** When the model is asked to go on after a decision; what it gives is its answer. */
  onAnswer?(): ScriptEntry | Promise<ScriptEntry>
}

export function opsAgent(ops: Ops, more: Partial<Parameters<typeof tool>[0]> = {}): Agent {
  const restart = tool({
    name: 'restart',
    description: 'Restart a service',
    input: '{ service: string }',
    requiresApproval: true,
    async execute({ service }, ctx) {
      const instead = ops.instead?.(service)
      if (instead) return instead
      const effect = `restarted ${service}, ${randomBytes(6).toString('hex')}`
      await ops.onEffect(ctx.callId, effect, ctx)
      return effect
    },
    ...(more as object),
  })
  const look = tool({
    name: 'look',
    description: 'Look at everything',
    input: '{}',
    execute: () => 'seen',
  })
  const provider = scripted(({ messages }) => {
    const last = messages.at(-1)
    const text = last?.parts.map((part) => (part.type === 'text' ? part.text : '')).join('') ?? ''
    const services = last?.role === 'user' && /^restart (.+)$/.exec(text)?.[1]?.split(' and ')
    if (services)
      return { calls: services.map((service) => ({ name: 'restart', input: { service } })) }
    if (text === 'look' && last?.role === 'user') return { calls: [{ name: 'look' }] }
    return text === 'look' || text === 'hello' ? 'ok' : (ops.onAnswer?.() ?? 'ok')
  })
  return { name: 'ops', provider, tools: [restart, look] }
}
