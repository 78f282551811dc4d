// Replicas and their client. Starts `replica.ts` as processes, asks them over HTTP as old and new clients do, and counts
// what was really done in a file that none of them can take back.

import assert from 'node:assert/strict'
import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after } from 'node:test'
import { request } from 'undici'
import type { Decision } from '../../src/approval.ts'
import type { Json } from '../harness.ts'
import type { Order, Point, ReplicaOptions, Said } from './replica.ts'

export const fleetKey = Buffer.alloc(32, 11).toString('base64')

/** A log of effects: for each call what was done, as often as it was done. */
export interface Effects {
  file: string
  of(callId: string): string[]
  all(): Map<string, string[]>
}

/** Removed when the test file ends. */
export function effectLog(): Effects {
  const folder = mkdtempSync(join(tmpdir(), 'dcaf-effects-'))
  after(() => rmSync(folder, { recursive: true, force: true }))
  const file = join(folder, 'effects')
  const all = () => {
    const lines = existsSync(file) ? readFileSync(file, 'utf8').split('\n').filter(Boolean) : []
    const effects = new Map<string, string[]>()
    for (const line of lines) {
      const [callId = '', ...words] = line.split(' ')
      effects.set(callId, [...(effects.get(callId) ?? []), words.join(' ')])
    }
    return effects
  }
  return { file, all, of: (callId) => all().get(callId) ?? [] }
}

/** A call that waits, and all that a client knows of it. */
export interface Proposed {
  id: string
  callId: string
  name: string
  input: Json
  words: string
  answer: Json
}
export interface Answered {
  status: number
  output: string | undefined
  replayed: boolean
  /** Of a refusal, or of an error that came after something ran. */
  code: string | undefined
  /** The id of a call that is still open. */
  pending: string | undefined
  text: string
}
/** `old`: sends the item alone. `new`: echoes the thread and its sealed run. */
export type Style = 'old' | 'new' | 'old stream' | 'new stream'
export const styles: Style[] = ['new', 'old', 'new stream', 'old stream']

const headers = { 'content-type': 'application/json' }

async function post(url: string, path: string, body: unknown) {
  const res = await request(url + path, { method: 'POST', headers, body: JSON.stringify(body) })
  return { status: res.statusCode, text: await res.body.text() }
}

export async function say(url: string, words: string): Promise<{ status: number; body: Json }> {
  const { status, text } = await post(url, '/api/chat', {
    messages: [{ role: 'user', content: words }],
  })
  return { status, body: JSON.parse(text) as Json }
}

export async function propose(url: string, service: string): Promise<Proposed> {
  const words = `restart ${service}`
  const { status, body } = await say(url, words)
  assert.equal(status, 200, JSON.stringify(body))
  const { id, name, input } = body.data.tool_calls[0]
  return { id, callId: id.split('.')[0], name, input, words, answer: body }
}

export function decisionBody(call: Proposed, style: Style, item: Json = { execute: true }): Json {
  const { id, name, input, words, answer } = call
  const data = { tool_calls: [{ id, name, input, ...item }] }
  const last = { role: 'user', content: '', data }
  if (style.startsWith('old')) return { messages: [last] }
  const { role, content, data: shown } = answer
  return { messages: [{ role: 'user', content: words }, { role, content, data: shown }, last] }
}

export async function decide(
  url: string,
  call: Proposed,
  style: Style = 'new',
  item?: Json,
): Promise<Answered> {
  const body = decisionBody(call, style, item)
  const streams = style.endsWith('stream')
  const { status, text } = await post(url, streams ? '/api/chat-stream' : '/api/chat', body)
  const events = text
    .split('\n')
    .filter(Boolean)
    .map((line) => JSON.parse(line) as Json)
  const last = events.at(-1) ?? {}
  const lines = streams
    ? events.flatMap((event) => event.executed_tool_calls ?? [])
    : (last.data?.executed_tool_calls ?? [])
  const pending = streams
    ? events.flatMap((event) => event.tool_calls ?? [])
    : (last.data?.tool_calls ?? [])
  const error = streams ? (last.type === 'error' ? last : {}) : (last.meta_data?.error ?? last)
  return {
    status,
    output: lines[0]?.output,
    replayed: last.meta_data?.approvals?.[call.id] === 'replayed',
    code: error.code,
    pending: pending[0]?.id,
    text,
  }
}

export interface Replica {
  url: string
  pid: number
  /**
   * Goes on, and stops there from now on. What it gives waits for that: `during` is what must not end before.
   * Resolves once the replica knows: a request and this order come by different ways.
   */
  stopAt(point: Point): Promise<(during?: Promise<unknown>) => Promise<void>>
  /** Goes on, and stops nowhere any more. */
  go(): void
  /** Takes decisions without the door, one after another. */
  decideAll(decisions: Decision[]): Promise<string[]>
  signal(name: NodeJS.Signals): void
  /** SIGKILL, and waits until it is gone. */
  kill(): Promise<void>
  exited: Promise<{ code: number | null; signal: string | null }>
  stderr(): string
}

const living = new Set<ChildProcess>()
after(() => [...living].map((child) => child.kill('SIGKILL')))

/** Killed, if it still lives, when the test file ends. */
export async function startReplica(options: ReplicaOptions): Promise<Replica> {
  const { PATH = '', REDIS_URL, POSTGRES_URL } = process.env
  const child = fork(
    join(import.meta.dirname, 'replica.ts'),
    [JSON.stringify({ key: fleetKey, ...options })],
    {
      // Nothing of the runner's: no coverage to write at a moment when it is about to be killed
      env: {
        PATH,
        NODE_COMPILE_CACHE: join(tmpdir(), 'node-compile-cache'),
        ...(REDIS_URL && { REDIS_URL }),
        ...(POSTGRES_URL && { POSTGRES_URL }),
      },
      execArgv: [],
      stdio: ['ignore', 'inherit', 'pipe', 'ipc'],
    },
  )
  living.add(child)
  let errors = ''
  child.stderr?.setEncoding('utf8').on('data', (text) => {
    errors += text
  })
  const exited = once(child, 'exit').then(([code, signal]) => {
    living.delete(child)
    return { code, signal }
  })
  const hear = <T>(pick: (said: Said) => T | undefined): Promise<T> =>
    new Promise((resolve, reject) => {
      const onMessage = (said: Said) => {
        const heard = pick(said)
        if (heard === undefined) return
        child.off('message', onMessage)
        resolve(heard)
      }
      child.on('message', onMessage)
      exited.then((how) => reject(new Error(`it ended: ${JSON.stringify(how)} ${errors}`)))
    })
  let orders = 0
  const order = (what: Order): number => {
    child.send({ ...what, order: ++orders } satisfies Order)
    return orders
  }
  const port = await hear((said) => said.port)
  return {
    url: `http://127.0.0.1:${port}`,
    pid: child.pid as number,
    async stopAt(point) {
      const there = hear((said) => (said.at === point ? true : undefined))
      there.catch(() => {}) // whoever waits for it is told
      const sent = order({ stopAt: point, go: true })
      await hear((said) => (said.known === sent ? true : undefined))
      return async (during = new Promise(() => {})) => {
        const tooSoon = during.then((answer) => {
          throw new Error(`never stopped at ${point}: ${JSON.stringify(answer)} ${errors}`)
        })
        await Promise.race([there, tooSoon])
      }
    },
    go: () => void order({ stopAt: null, go: true }),
    decideAll(decisions) {
      const outputs = hear((said) => said.outputs)
      order({ decide: decisions })
      return outputs
    },
    signal: (name) => void child.kill(name),
    async kill() {
      child.kill('SIGKILL')
      await exited
    },
    exited,
    stderr: () => errors,
  }
}

export const isUnknown =
  /^Outcome unknown: the server stopped while this was running \(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\)\. It was NOT run again\. Check the target before asking again\.$/
export const isRunning =
  /^Already running since \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\. It was not started again\.$/
export const isUnverified =
  /^Not executed: this approval could not be verified \(altered, moved, or issued by another server\)\.$/
