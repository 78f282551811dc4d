// Once: what was decided, what is under way, and begin and finish around what is done now, over a Store. Loaded when the
// first person decides. Runs nothing by itself: it is handed what to do once a call is begun.
// Covers: doubled and replayed decisions, here and on replicas; crashes between begin and finish; a store that forgot.

import { randomBytes } from 'node:crypto'
import { readlinkSync } from 'node:fs'
import { hostname } from 'node:os'
import type { Act, Answer, Call, Case, Done, Ended, Gate } from './approval.ts'
import { changedTo, unverified, words } from './approval.ts'
import { parseId } from './proof.ts'
import type { Store } from './store.ts'

type Entry = Partial<Done> & {
  state: 'running' | 'done'
  owner: string
  /** Which of its owner's: no two begins write the same text. */
  run: number
  since: number
  timeoutMs?: number
}

/** How far the clocks of two servers may be apart. */
const skewMs = 60_000

/** Milliseconds that what is kept of a call outlives its approval. */
export function keptMs(expires: number): number {
  return expires - Date.now() + 86_400_000
}

const running = new WeakMap<Store, Map<string, Promise<Answer>>>()
/** Begun by this process and not ended, the late ones included. */
const underWay = new Set<number>()
let runs = 0
/** Two containers may share a host name and a pid, but not the namespace that pids are counted in. */
const namespace = pidNamespace()
const owner = `${hostname()}:${process.pid}:${randomBytes(6).toString('hex')}${namespace}`

function pidNamespace(): string {
  try {
    return `@${readlinkSync('/proc/self/ns/pid').replace(/\D/g, '')}`
  } catch {
    return '' // not Linux
  }
}

/** What was decided before, or is being done in this process now. */
export async function past(gate: Gate, one: Case): Promise<Answer | undefined> {
  return running.get(gate.scope.authority.store)?.get(one.nonce) ?? recorded(gate, one)
}

/** Why an approval is too old; `undefined` while it is not. */
export function late({ expires }: { expires: number }): Ended | undefined {
  if (Date.now() <= expires + skewMs) return undefined
  return { outcome: 'expired', content: `Not executed: this approval expired at ${time(expires)}.` }
}

/** The ledger's word; `undefined` when nobody decided, or an idempotent call may run over its record. */
async function recorded(gate: Gate, one: Case): Promise<Answer | undefined> {
  const text = await gate.scope.authority.store.get(`call:${one.nonce}`)
  if (text === undefined) return undefined
  one.before = text
  const entry = JSON.parse(text) as Entry
  const { outcome = 'unknown', output = '', fresh } = entry
  if (fresh) return (await replacement(gate, fresh)) ?? { open: output, fresh }
  if (entry.state === 'done') return { outcome, content: output, replayed: true }
  if (one.tool?.idempotent && gone(entry)) return undefined
  const since = time(entry.since)
  const content = gone(entry)
    ? `Outcome unknown: the server stopped while this was running (${since}). It was NOT run again. Check the target before asking again.`
    : `Already running since ${since}. It was not started again.`
  return { outcome: 'unknown', content }
}

/** What became of a call that stands in for another. It is our own record's, so its id needs no proof here. */
async function replacement(gate: Gate, fresh: Call): Promise<Answer | undefined> {
  const id = parseId(fresh.proof)
  if (!id) return undefined
  const tool = gate.tools.get(fresh.name)
  const answer = (await past(gate, { ...id, epoch: '', said: fresh, tool })) ?? late(id)
  if (!answer || !('outcome' in answer) || !fresh.changed || answer.changed) return answer
  return { ...answer, content: `${changedTo(fresh.input)}\n${answer.content}`, changed: true }
}

/** Records the end of a call that does not run. */
export function close(
  gate: Gate,
  one: Case,
  end: Ended,
  by = gate.scope.who.principal,
): Promise<Answer> {
  return begin(gate, one, async (finish) => {
    gate.refuse({ id: one.nonce, name: one.said.name }, end, by)
    await finish({ outcome: end.outcome, output: end.content, by })
    return end
  })
}

/** begin, then `act`; nothing where `stop` says why. A second caller in this process gets the first one's answer. */
export function begin(
  gate: Gate,
  one: Case,
  act: Act,
  stop?: () => string | undefined,
): Promise<Answer> {
  const { store } = gate.scope.authority
  const here = running.get(store) ?? new Map<string, Promise<Answer>>()
  running.set(store, here)
  const joined = here.get(one.nonce)
  if (joined) return joined
  const answer = begun(gate, one, act, stop).finally(() => here.delete(one.nonce))
  here.set(one.nonce, answer)
  return answer
}

async function begun(
  gate: Gate,
  one: Case,
  act: Act,
  stop?: () => string | undefined,
): Promise<Answer> {
  const { authority, limits } = gate.scope
  const { tool } = one
  const since = Date.now()
  const timeoutMs = gate.timeoutOf(tool)
  const entry: Entry = { state: 'running', owner, run: ++runs, since, timeoutMs }
  const text = JSON.stringify(entry)
  const ttl = keptMs(Math.max(one.expires, since + (tool?.approvalTtlMs ?? limits.approvalTtlMs)))
  if (!(await authority.stillIn(one.epoch))) return { open: unverified, refused: true }
  const open = stop?.()
  if (open !== undefined) return { open }
  underWay.add(entry.run) // before the store can show it to anyone
  const key = `call:${one.nonce}`
  let mine = false
  try {
    mine = await authority.store.swap(key, one.before, text, ttl)
    const decided = 'Not executed: another request is deciding this call.'
    if (!mine) return (await recorded(gate, one)) ?? { open: decided }
    mine = false // until it is known to have stayed
    mine = await authority.stillIn(one.epoch)
    if (!mine) return { open: unverified, refused: true } // forgotten in between
  } finally {
    if (!mine) underWay.delete(entry.run)
  }
  return act(async (record) => {
    try {
      const done = JSON.stringify({ ...entry, state: 'done', ...record })
      await authority.store.swap(key, text, done, ttl)
    } catch (error) {
      const call = { id: one.nonce, name: one.said.name }
      gate.fact('LedgerFailed', call, { error: words(error) })
    }
    underWay.delete(entry.run)
  })
}

/** True when whoever began it cannot finish it any more: dead on this host, done with it here, or far past its clock. */
function gone(entry: Entry): boolean {
  if (Date.now() > entry.since + (entry.timeoutMs ?? 0) + skewMs) return true
  const [, host, pid, where = namespace] = /^(.*):(\d+):\w+(@\d+)?$/.exec(entry.owner) ?? []
  if (entry.owner === owner) return !underWay.has(entry.run)
  if (host !== hostname() || where !== namespace) return false
  if (Number(pid) === process.pid) return true
  try {
    return !process.kill(Number(pid), 0)
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'ESRCH'
  }
}

function time(at: number): string {
  return `${new Date(at).toISOString().slice(0, 19)}Z`
}
