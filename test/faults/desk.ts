// A desk whose model does what the prompt says, so that one server can be put through anything; what it did is counted.
// `say 5`, `flood 5`, `slow 5 10`, `hang`, `fail`, `look`, `drop x`, `run ls`; everything else is answered `ok`.

import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Agent } from '../../src/index.ts'
import type { ModelRequest } from '../../src/providers/provider.ts'
import { type ScriptEntry, scripted } from '../../src/providers/scripted.ts'
import { tool } from '../../src/tool.ts'
import { see } from './clean.ts'

export interface Counts {
  asked: number
  /** Model calls that ended by their signal. */
  aborted: number
  /** 16 KiB pieces that were taken. */
  flooded: number
  looked: number
  /** What the gated tools did, in order. */
  dropped: string[]
  commands: string[]
}

/** `toolMs`: how long the gated tool takes. */
export function desk(agent: Partial<Agent> = {}, toolMs = 0) {
  const counts: Counts = {
    asked: 0,
    aborted: 0,
    flooded: 0,
    looked: 0,
    dropped: [],
    commands: [],
  }
  const look = tool({
    name: 'look',
    description: 'Look around',
    input: '{ at?: string }',
    execute: (_, ctx) => {
      counts.looked++
      ctx.update(`looking for ${ctx.platform.duplo_token}`)
      return `seen ${JSON.stringify(ctx.platform)} ${JSON.stringify({ ...ctx.platform })}`
    },
  })
  const drop = tool({
    name: 'drop',
    description: 'Drop a table',
    input: '{ table: string, cascade?: boolean }',
    defaults: { cascade: false },
    requiresApproval: true,
    execute: async ({ table }) => {
      if (toolMs > 0) await sleep(toolMs)
      counts.dropped.push(table)
      return `dropped ${table}`
    },
  })
  const shell = tool({
    name: 'shell',
    description: 'Run a command',
    type: 'command',
    input: '{ command: string, files?: { file_path: string, file_content: string }[] }',
    execute: ({ command }) => {
      counts.commands.push(command)
      return { stdout: command, exitCode: 0 }
    },
  })
  const answer = async (request: ModelRequest, options: Parameters<typeof obey>[1]) => {
    counts.asked++
    see(request)
    provider.requests.length = 0 // a script remembers all it was asked, and these runs are long
    try {
      return await obey(request, options, counts)
    } catch (error) {
      if (options.signal?.aborted) counts.aborted++
      throw error
    }
  }
  const provider = scripted(answer)
  const served: Agent = { name: 'desk', provider, tools: [look, drop, shell], ...agent }
  return { agent: served, provider, counts }
}

type Options = {
  signal?: AbortSignal
  onDelta?: (delta: { type: 'text_delta'; text: string }) => unknown
}

async function obey(request: ModelRequest, options: Options, counts: Counts): Promise<ScriptEntry> {
  const { signal, onDelta } = options
  const last = request.messages.at(-1)
  if (last?.role !== 'user') return 'ok'
  const [part] = last.parts
  const [verb = '', first = '', second = ''] = (part?.type === 'text' ? part.text : '').split(' ')
  const count = Math.min(Number(first) || 0, 100_000)
  const spoken = (text: string): ScriptEntry => ({ parts: [{ type: 'text', text }] })
  switch (verb) {
    case 'say':
      return Array.from({ length: count }, (_, i) => `w${i} `)
    case 'slow': {
      for (let i = 0; i < count; i++) {
        await sleep(Number(second), undefined, { signal }).catch(() => signal?.throwIfAborted())
        await onDelta?.({ type: 'text_delta', text: `w${i} ` })
      }
      return spoken('slowly')
    }
    case 'flood': {
      for (let i = 0; i < count; i++) {
        signal?.throwIfAborted()
        await onDelta?.({ type: 'text_delta', text: 'x'.repeat(16_384) })
        counts.flooded++
        if (i % 4 === 3) await sleep(0)
      }
      return spoken('flooded')
    }
    case 'hang':
      await onDelta?.({ type: 'text_delta', text: 'begun' })
      if (signal && !signal.aborted) await once(signal, 'abort')
      throw signal?.reason
    case 'fail':
      return new Error('the model failed at 10.0.0.1')
    case 'look':
      return { calls: [{ name: 'look', input: {} }] }
    case 'drop':
      return { calls: [{ name: 'drop', input: { table: first } }] }
    case 'run':
      return { calls: [{ name: 'shell', input: { command: first } }] }
    default:
      return 'ok'
  }
}
