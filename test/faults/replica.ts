// One server of several over one store, as a process of its own: `node replica.ts OPTIONS`. It stops where it is told to
// and says so, to be killed right there; it writes each effect to a file before anything else can happen.

import { appendFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { flushCompileCache } from 'node:module'
import type { AddressInfo } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { inspect } from 'node:util'
import type { Decision } from '../../src/approval.ts'
import { drain, onSignals, serverOptions } from '../../src/door.ts'
import { chatHandler } from '../../src/http.ts'
import { run } from '../../src/index.ts'
import type { Store } from '../../src/store.ts'
import { opsAgent } from './ops.ts'
import { openStore, type Where } from './worlds.ts'

/**
 * Where it may stop: before the ledger knows, after `begin`, after the effect, before `finish`, after `finish`, and when
 * the model is asked to go on.
 */
export type Point = 'beginning' | 'begun' | 'effect' | 'finishing' | 'finished' | 'answering'
export interface ReplicaOptions {
  where: Where
  key?: string
  /** One line an effect: the call's name and what was done. */
  effects: string
  stopAt?: Point
  /** How long the tool takes. */
  workMs?: number
  timeoutMs?: number
  graceMs?: number
  hardMs?: number
}
/** What it hears: where to stop from now on (`null`: nowhere), to go on, or decisions to take without the door. */
export type Order = { order?: number; stopAt?: Point | null; go?: true; decide?: Decision[] }
/** What it says: that it listens, that it knows its order, that it stopped, what became of the decisions. */
export type Said = { port?: number; known?: number; at?: Point; outputs?: string[] }

const options = JSON.parse(process.argv[2] ?? '') as ReplicaOptions
const say = (said: Said) => void process.send?.(said)
let stopAt = options.stopAt
const held: (() => void)[] = []

async function at(point: Point): Promise<void> {
  if (point !== stopAt) return
  const going = new Promise<void>((resolve) => held.push(resolve))
  say({ at: point })
  await going
}

function marked(inner: Store): Store {
  return {
    get: (key) => inner.get(key),
    set: (key, value, ttlMs) => inner.set(key, value, ttlMs),
    delete: (key) => inner.delete(key),
    async swap(key, expected, value, ttlMs) {
      const isCall = key.startsWith('call:')
      const isEnd = isCall && JSON.parse(value).state === 'done'
      if (isCall) await at(isEnd ? 'finishing' : 'beginning')
      const isMade = await inner.swap(key, expected, value, ttlMs)
      if (isCall && isMade) await at(isEnd ? 'finished' : 'begun')
      return isMade
    },
  }
}

const agent = opsAgent(
  {
    async onEffect(callId, effect) {
      appendFileSync(options.effects, `${callId} ${effect}\n`)
      await at('effect')
      if (options.workMs) await sleep(options.workMs)
    },
    instead(service) {
      if (service !== 'crash') return undefined
      process.nextTick(() => {
        throw new Error('thrown by nobody’s call')
      })
      return new Promise(() => {})
    },
    async onAnswer() {
      await at('answering')
      return 'ok'
    },
  },
  { timeoutMs: options.timeoutMs ?? 60_000 },
)
const { store: inner } = await openStore(options.where)
const store = marked(inner)
const keys = [options.key]
const chat = chatHandler(agent, {
  keys,
  store,
  log: (entry) => entry.level === 'error' && console.error(JSON.stringify(entry)),
})
const server = createServer(serverOptions, async (req, res) => {
  if (!(await chat(req, res))) res.writeHead(404).end()
})
onSignals(server, chat, { graceMs: options.graceMs ?? 5_000, hardMs: options.hardMs ?? 8_000 })
process.once('uncaughtException', async (error) => {
  console.error(inspect(error))
  await drain(server, chat, { graceMs: 100, hardMs: 200 })
  process.exit(1)
})
process.on('disconnect', () => process.exit(2)) // whoever started it is gone

process.on('message', async (order: Order) => {
  if (order.stopAt !== undefined) stopAt = order.stopAt ?? undefined
  if (order.order) say({ known: order.order })
  const going = order.go ? held.splice(0) : []
  for (const go of going) go()
  if (!order.decide) return
  const outputs: string[] = []
  for (const decision of order.decide) {
    const result = await run(agent, { messages: [], decisions: [decision] }, { store, keys })
    outputs.push(result.executed[0]?.output ?? `error: ${result.error?.message}`)
  }
  say({ outputs })
})

server.listen(0, '127.0.0.1', () => {
  say({ port: (server.address() as AddressInfo).port })
  flushCompileCache() // for the next one: this one may not live to do it at its exit
})
