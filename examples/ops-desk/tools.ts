// What the desk can do: look at its workers and the machine, and, after a person approved, restart or stop a worker.
// Real processes, real signals. Knows no model and no wire.

import { appendFileSync } from 'node:fs'
import { type Tool, type ToolContext, tool } from '../../src/index.ts'
import { diskUsage, processUsage, systemLoad } from './machine.ts'
import { type Change, type Workers, workerNames } from './workers.ts'

export interface DeskOptions {
  /** Each real restart or stop adds one line of JSON to this file. */
  effects?: string
  /**
   * Default true: an approval holds for the very process that was shown, and asks again when it has been replaced.
   * False where several desks share one store: each has its own `web-1`, so what counts is whether it runs.
   */
  pinPid?: boolean
}

const worker = { type: 'string', enum: workerNames, description: 'Which worker.' } as const
const noInput = { type: 'object', properties: {}, additionalProperties: false } as const

export function deskTools(workers: Workers, { effects, pinPid = true }: DeskOptions = {}): Tool[] {
  /** What the approver reads; `key` is what must not have changed when the call runs. */
  function preview(verb: string, name: string, act: (pid: number | null) => string) {
    const { pid } = workers.find(name)
    const which = pinPid ? pid : pid !== null
    return { text: act(pid), key: `${verb} ${name} ${which}` }
  }

  function record(toolName: string, { callId }: ToolContext, change: Change): Change {
    // Synchronous: whoever reads the answer finds the line.
    const line = { call_id: callId, tool: toolName, ...change, time: new Date().toISOString() }
    if (effects) appendFileSync(effects, `${JSON.stringify(line)}\n`)
    return change
  }

  return [
    tool({
      name: 'list_processes',
      description:
        'List the worker processes: name, pid (null: stopped), cpu in percent of one core, ' +
        'memory in bytes, uptime in seconds.',
      input: noInput,
      execute: () => Promise.all(workers.list().map(describe)),
    }),
    tool({
      name: 'tail_log',
      description: 'Show the last lines of the log of one worker.',
      input: {
        type: 'object',
        properties: {
          name: worker,
          lines: { type: 'integer', minimum: 1, maximum: 200, default: 10 },
        },
        required: ['name'],
      },
      execute: ({ name, lines }) => workers.tail(name, lines ?? 10),
    }),
    tool({
      name: 'disk_usage',
      description: 'Show size and free space of the disks in bytes, and the percentage used.',
      input: noInput,
      execute: () => diskUsage(),
    }),
    tool({
      name: 'system_load',
      description: 'Show load averages, number of cpus, memory in bytes and uptime in seconds.',
      input: noInput,
      execute: () => systemLoad(),
    }),
    tool({
      name: 'restart_process',
      description: 'Restart one worker: SIGTERM, SIGKILL if it does not end, then a new process.',
      input: { type: 'object', properties: { name: worker }, required: ['name'] },
      requiresApproval: true,
      preview: ({ name }) =>
        preview('restart', name, (pid) =>
          pid === null
            ? `${name} is stopped. Starts it.`
            : `Ends ${name}, now pid ${pid}, by SIGTERM (SIGKILL after 3 s) and starts it again.`,
        ),
      timeoutMs: 15_000,
      execute: async ({ name }, ctx) => {
        ctx.update(`Restarting ${name}`)
        return record('restart_process', ctx, await workers.restart(name))
      },
    }),
    tool({
      name: 'stop_process',
      description: 'Stop one worker: SIGTERM, SIGKILL if it does not end. It stays stopped.',
      input: { type: 'object', properties: { name: worker }, required: ['name'] },
      requiresApproval: true,
      preview: ({ name }) =>
        preview('stop', name, (pid) =>
          pid === null
            ? `${name} is stopped already. Nothing to do.`
            : `Ends ${name}, now pid ${pid}, by SIGTERM (SIGKILL after 3 s). It stays stopped.`,
        ),
      timeoutMs: 15_000,
      execute: async ({ name }, ctx) => {
        ctx.update(`Stopping ${name}`)
        const change = await workers.stop(name)
        return change.old_pid === null ? change : record('stop_process', ctx, change)
      },
    }),
    tool({
      name: 'note_in_log',
      description: 'Write a note for other operators into the log of one worker.',
      input: {
        type: 'object',
        properties: { name: worker, text: { type: 'string', minLength: 1, maxLength: 200 } },
        required: ['name', 'text'],
      },
      requiresApproval: true,
      editable: true, // no preview: what is shown is the input, and a person may put it better in one step
      execute: ({ name, text }) => {
        workers.note(name, `note: ${text}`)
        return `Noted in the log of ${name}.`
      },
    }),
    tool({
      name: 'remember_favourite',
      description: 'Remember which worker is the favourite of this conversation.',
      input: { type: 'object', properties: { name: worker }, required: ['name'] },
      execute: ({ name }, { session }) => {
        session.set('favourite', name)
        return `${name} is the favourite now.`
      },
    }),
    tool({
      name: 'favourite',
      description: 'Tell which worker is the favourite of this conversation.',
      input: noInput,
      execute: (_, { session }) => ({ favourite: session.get('favourite') ?? null }),
    }),
  ]

  async function describe({ name, pid, startedAt }: ReturnType<Workers['find']>) {
    const uptime = (Date.now() - (startedAt ?? 0)) / 1000
    const usage = pid === null ? undefined : await processUsage(pid, uptime)
    if (!usage) return { name, pid: null, state: 'stopped', cpu: null, memory: null, uptime: null }
    return { name, pid, state: 'running', ...usage, uptime: Math.round(uptime) }
  }
}
