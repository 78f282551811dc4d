// A desk in a process of its own, and how to start and ask one: memory, event loop and handles are measured where nothing
// of the client is. As a program it serves `desk` and drains at a signal.

import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import type { TestContext } from 'node:test'
import { onSignals, serverOptions } from '../../src/door.ts'
import { type ChatLimits, chatHandler } from '../../src/http.ts'
import { sqliteStore } from '../../src/stores/sqlite.ts'
import { type Counts, desk } from './desk.ts'

export interface ChildOptions {
  limits?: Partial<ChatLimits>
  /** Over `serverOptions`. */
  server?: object
  drain?: { graceMs?: number; hardMs?: number }
  toolMs?: number
  /** A SQLite file for ledger and sessions; default: in memory. */
  file?: string
}
export interface Stats {
  rss: number
  /** Bytes of objects and buffers. */
  heap: number
  /** Milliseconds that the event loop was late, since the last `reset`. */
  lateMax: number
  lateP99: number
  /** Milliseconds of the processor. */
  cpu: number
  handles: number
  connections: number
  active: number
  counts: Counts
}
type Order = 'stats' | 'reset' | 'gc' | 'abort'

export interface Child {
  process: ChildProcess
  port: number
  url: string
  /** What it wrote to stdout and stderr. */
  output(): string
  ask(order: Order): Promise<Stats>
  /** Its exit code, or the signal that ended it. */
  exit: Promise<number | string>
}

export async function child(
  t: Pick<TestContext, 'after'>,
  options: ChildOptions = {},
): Promise<Child> {
  const process = fork(import.meta.filename, [JSON.stringify(options)], {
    execArgv: ['--expose-gc'],
    silent: true,
  })
  let output = ''
  for (const stream of [process.stdout, process.stderr])
    stream?.on('data', (chunk) => {
      output += chunk
    })
  const exit = once(process, 'exit').then(([code, signal]) => code ?? signal)
  t.after(async () => {
    process.kill('SIGKILL')
    await exit
  })
  const [port] = (await Promise.race([
    once(process, 'message'),
    exit.then((code) => {
      throw new Error(`the child ended with ${code}: ${output}`)
    }),
  ])) as [number]
  const ask = async (order: Order): Promise<Stats> => {
    const answer = once(process, 'message')
    process.send(order)
    return (await answer)[0]
  }
  return { process, port, url: `http://127.0.0.1:${port}`, output: () => output, ask, exit }
}

function main(options: ChildOptions): void {
  const { limits = {}, server: more = {}, drain = {}, toolMs = 0, file } = options
  const { agent, counts } = desk({}, toolMs)
  const chat = chatHandler(agent, {
    limits,
    ...(file && { store: sqliteStore(file), keys: [Buffer.alloc(32, 9).toString('base64')] }),
    log: ({ level, event, message }) => {
      if (level === 'error' || level === 'warn') console.error(event, message)
    },
  })
  const echo = Array.from({ length: 200 }, (_, i) => `{"type":"text_delta","text":"w${i} "}\n`)
  const server = createServer({ ...serverOptions, ...more }, async (req, res) => {
    if (await chat(req, res)) return
    req.resume() // beside it, the least that a server can do
    res.writeHead(200, { 'content-type': 'application/x-ndjson' })
    for (const line of echo) res.write(line)
    res.end()
  })
  onSignals(server, chat, { ...drain, finish: (drained) => console.log(JSON.stringify(drained)) })
  const loop = monitorEventLoopDelay({ resolution: 5 })
  loop.enable()
  process.on('message', (order: Order) => {
    if (order === 'gc') for (let i = 0; i < 3; i++) globalThis.gc?.()
    if (order === 'reset') loop.reset()
    if (order === 'abort') chat.abortAll()
    server.getConnections((_, connections) => {
      const { rss, heapUsed, external } = process.memoryUsage()
      const stats: Stats = {
        rss,
        heap: heapUsed + external,
        lateMax: loop.max / 1e6,
        lateP99: loop.percentile(99) / 1e6,
        cpu: (process.cpuUsage().user + process.cpuUsage().system) / 1e3,
        handles: process.getActiveResourcesInfo().filter((kind) => !/Timeout|Immediate/.test(kind))
          .length,
        connections,
        active: chat.active,
        counts,
      }
      process.send?.(stats)
    })
  })
  process.on('disconnect', () => process.exit(3)) // the test is gone
  server.listen(0, '127.0.0.1', () => process.send?.((server.address() as AddressInfo).port))
}

if (process.argv[1] === import.meta.filename) main(JSON.parse(process.argv[2] ?? '{}'))
