// The state of a run that waits, as a client carries it: only we can read it, only for the same agent and audience. What
// is too long for that is kept in the store under a name. Loaded when something waits or comes back.

import { randomBytes } from 'node:crypto'
import { type Run, type RunState, waiting } from './agent.ts'
import type { Call, Scope } from './approval.ts'
import { audience } from './proof.ts'
import { seal, unseal } from './seal.ts'
import { MemoryStore } from './store.ts'

type Sealing = Pick<Scope, 'agent' | 'authority' | 'who'>

/** The first letter says for whom: the requester alone, or others too, where an open call's tool lets them approve. */
const audienceOf = { r: 'requester', o: 'anyone' } as const

/** `undefined` where it is too long to carry and the store is no durable one. */
export async function sealRun(self: Run, calls: Call[]): Promise<string | undefined> {
  const { scope, state, limits } = self
  const { authority } = scope
  const approvers = [...waiting(self)].map(({ at, call }) => at.tools.get(call.name)?.approver)
  const letter = approvers.every((a = 'requester') => a === 'requester') ? 'r' : 'o'
  const epoch = await authority.epoch()
  const sealed = letter + seal(authority, JSON.stringify(state), bound(scope, letter), epoch, 'run')
  if (sealed.length <= limits.runBytes) return sealed
  if (authority.store instanceof MemoryStore) return undefined
  const ref = randomBytes(16).toString('base64url')
  const latest = Math.max(...calls.map((call) => call.expiresAt ?? 0))
  await authority.store.set(`run:${ref}`, sealed, latest - Date.now() + 86_400_000)
  return `ref:${ref}`
}

export async function openRun(scope: Sealing, text: string): Promise<RunState | undefined> {
  const { authority } = scope
  const sealed = text.startsWith('ref:') ? await authority.store.get(`run:${text.slice(4)}`) : text
  if (!sealed) return undefined
  const letter = sealed.startsWith('o') ? 'o' : 'r'
  const epoch = await authority.epoch()
  const opened = unseal(authority, sealed.slice(1), bound(scope, letter), epoch, 'run')
  return opened ? (JSON.parse(opened) as RunState) : undefined
}

function bound({ agent, who }: Sealing, letter: 'r' | 'o'): unknown[] {
  return ['run', 1, agent, audience(who, audienceOf[letter])]
}
