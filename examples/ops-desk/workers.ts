// The processes that the desk is in charge of: real ones, harmless, started and ended here. Nothing else can be
// touched: a signal goes through the handle of a child of ours, never to a pid. Knows no agent and no tool.

import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { appendFileSync, closeSync, mkdtempSync, openSync, rmSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

export const workerNames = ['web-1', 'web-2', 'db-1'] as const

/** `pid` is null and `startedAt` undefined while it is stopped. */
export interface WorkerState {
  name: string
  pid: number | null
  /** Milliseconds since 1970. */
  startedAt: number | undefined
}

/** What a restart or stop did. A null pid: it was stopped before, or is now. */
export interface Change {
  name: string
  old_pid: number | null
  new_pid: number | null
}

export interface Workers {
  list(): WorkerState[]
  /** Throws for a name that is no worker's, and lists those that are. So do all that take a name. */
  find(name: string): WorkerState
  /** SIGTERM, SIGKILL after the grace, then a new process. Starts it if it was stopped. */
  restart(name: string): Promise<Change>
  stop(name: string): Promise<Change>
  /** The last `lines` lines of its log, oldest first. */
  tail(name: string, lines: number): Promise<string>
  /** Adds one line to its log. */
  note(name: string, text: string): void
  /** SIGKILL to all, at once and synchronously, and their logs removed: for the exit. */
  end(): void
}

interface Slot {
  name: string
  log: string
  child?: ChildProcess
  startedAt?: number
  /** Ends when every change asked so far has ended: one at a time per worker. */
  busy: Promise<unknown>
}

const program = fileURLToPath(new URL('worker.js', import.meta.url))
const tailBytes = 64 * 1024

/** `graceMs`: how long a worker may take to end after SIGTERM. */
export async function startWorkers(
  names: readonly string[] = workerNames,
  { graceMs = 3_000 } = {},
): Promise<Workers> {
  const folder = mkdtempSync(join(tmpdir(), 'ops-desk-'))
  const slots = new Map<string, Slot>()
  for (const name of names)
    slots.set(name, { name, log: join(folder, `${name}.log`), busy: Promise.resolve() })
  let ended = false

  function end() {
    ended = true
    for (const { child } of slots.values()) child?.kill('SIGKILL')
    rmSync(folder, { recursive: true, force: true })
  }

  function slot(name: string): Slot {
    const found = slots.get(name)
    if (!found) throw new Error(`There is no worker ${name}. The workers are ${names.join(', ')}.`)
    return found
  }

  async function start(worker: Slot): Promise<number> {
    if (ended) throw new Error('The desk is shutting down.')
    const log = openSync(worker.log, 'a', 0o600)
    // No environment: a worker needs none of what the desk was given, least of all its keys.
    const child = spawn(process.execPath, [program, worker.name], {
      stdio: ['pipe', log, log],
      env: {},
    })
    closeSync(log)
    child.stdin?.on('error', () => {}) // it may end first; the exit is what counts
    child.once('exit', (code, signal) => {
      if (worker.child === child) worker.child = undefined
      if (!ended) note(worker.name, `ended (${signal ?? `exit code ${code}`})`)
    })
    await once(child, 'spawn')
    worker.child = child
    worker.startedAt = Date.now()
    return child.pid as number
  }

  async function stop(worker: Slot): Promise<number | null> {
    const { child } = worker
    if (!child) return null
    const exit = once(child, 'exit')
    child.kill('SIGTERM')
    const timer = setTimeout(() => child.kill('SIGKILL'), graceMs)
    await exit
    clearTimeout(timer)
    return child.pid as number
  }

  /** One change at a time; one that meets another process than was there when it was asked for does nothing. */
  function change(name: string, restart: boolean): Promise<Change> {
    const worker = slot(name)
    const asked = worker.child?.pid
    const done = worker.busy.then(async () => {
      if (worker.child?.pid !== asked)
        throw new Error(`${name} changed while this waited its turn; nothing was done to it.`)
      const old_pid = await stop(worker)
      return { name, old_pid, new_pid: restart ? await start(worker) : null }
    })
    worker.busy = done.catch(() => {})
    return done
  }

  function note(name: string, text: string) {
    const line = text.replace(/\s+/g, ' ')
    appendFileSync(slot(name).log, `${new Date().toISOString()} ${name} ${line}\n`)
  }

  function state({ name, child, startedAt }: Slot): WorkerState {
    return { name, pid: child?.pid ?? null, startedAt: child && startedAt }
  }

  try {
    await Promise.all([...slots.values()].map(start))
  } catch (error) {
    end()
    throw error
  }
  return {
    list: () => [...slots.values()].map(state),
    find: (name) => state(slot(name)),
    restart: (name) => change(name, true),
    stop: (name) => change(name, false),
    tail: async (name, lines) => lastLines(slot(name).log, lines),
    note,
    end,
  }
}

async function lastLines(path: string, lines: number): Promise<string> {
  const file = await open(path)
  try {
    const { size } = await file.stat()
    const from = Math.max(0, size - tailBytes)
    const { buffer, bytesRead } = await file.read({
      position: from,
      buffer: Buffer.alloc(size - from),
    })
    const all = buffer.toString('utf8', 0, bytesRead).trimEnd().split('\n')
    if (from > 0 && all.length > 1) all.shift() // the rest of a line
    return all.slice(-lines).join('\n')
  } finally {
    await file.close()
  }
}
