// Who may say yes besides the person who asked: others, several, a grant. Loaded when the first call needs one of them.
// What it keeps of a call it keeps in the store, as long as the call's record. Runs nothing.

import type { Call, Case, Gate, GrantCall, GrantRequest } from './approval.ts'
import { unverified, words } from './approval.ts'
import { keptMs } from './ledger.ts'
import { audience } from './proof.ts'
import { DcafError } from './providers/provider.ts'
import type { Tool } from './tool.ts'

/** Records who asked, before the id is sent: `asked`, or whose words led here. */
export async function keepAskers(
  { scope: { authority, askers, who } }: Gate,
  { name, approver }: Tool,
  call: { nonce: string; expires: number },
  asked: string | undefined,
): Promise<void> {
  const by = askers.length > 0 ? askers : [who.principal].filter((p) => p !== undefined)
  if (approver === 'other' && !asked && by.length === 0)
    throw new DcafError(
      'invalid_argument',
      `${name} has approver: 'other', so a principal is needed`,
    )
  const text = asked ?? JSON.stringify(by)
  await authority.store.swap(`asked:${call.nonce}`, undefined, text, keptMs(call.expires))
}

/** Why this principal may not approve. */
export async function stranger(
  { scope: { who, authority, askers } }: Gate,
  { name, approver, quorum }: Tool,
  nonce: string,
): Promise<string | undefined> {
  if ((approver === 'other' || quorum > 1) && who.principal === undefined) return unverified
  if (approver === 'requester') return undefined
  const asked = await authority.store.get(`asked:${nonce}`)
  const by = new Set<unknown>(JSON.parse(asked ?? '[]'))
  for (const principal of by) if (!askers.includes(`${principal}`)) askers.push(`${principal}`) // of what follows too
  if (approver !== 'other') return undefined
  if (asked === undefined) return unverified
  return by.has(who.principal)
    ? `Not executed: someone other than who asked must approve ${name}.`
    : undefined
}

/** Counts this principal once; how many there are while the quorum is not reached. */
export async function vote(
  { scope: { authority, who } }: Gate,
  { quorum }: Tool,
  { nonce, expires }: Case,
): Promise<number | undefined> {
  const { store } = authority
  for (;;) {
    const text = await store.get(`votes:${nonce}`)
    const votes = new Set(JSON.parse(text ?? '[]')).add(who.principal)
    if (await store.swap(`votes:${nonce}`, text, JSON.stringify([...votes]), keptMs(expires)))
      return votes.size < quorum ? votes.size : undefined
  }
}

function grantCall({ scope, path }: Gate, { name, approver }: Tool, input: unknown) {
  const { agent, who } = scope
  return { agent, path, name, input, audience: audience(who, approver) } satisfies GrantCall
}

/** The grant that covers a call a person would be asked about, its use counted, and the call as one that is decided. */
export async function covered(gate: Gate, tool: Tool, call: Call, input: unknown) {
  const { grants, authority } = gate.scope
  const grant = takesGrants(tool) ? await grants?.use(grantCall(gate, tool, input)) : undefined
  if (grant === undefined) return undefined
  const epoch = await authority.epoch()
  const one: Case = { nonce: call.id, expires: Date.now(), shown: '', said: call, tool, epoch }
  return { one, grant }
}

/** What keeps the grant that an approval asked for, once its call ran. Never rejects: it ran, whatever becomes of this. */
export function giving(gate: Gate, tool: Tool, input: unknown, one: Case, asked: GrantRequest) {
  const { grants, who, fact } = gate.scope
  const call = { callId: one.nonce, name: tool.name, grantedBy: who.principal }
  const covered = grantCall(gate, tool, input)
  const takes = takesGrants(tool)
  return async (): Promise<void> => {
    const none = grants ? `${tool.name} takes no grants` : 'no grants were handed over to this run'
    if (!grants || !takes) return fact('GrantRefused', { ...call, reason: none })
    try {
      const grant = await grants.add(covered, asked, who.principal)
      fact('GrantAdded', { ...call, grant })
    } catch (error) {
      fact('GrantRefused', { ...call, reason: words(error) })
    }
  }
}

/** For a grant answers in a person's place: not where it takes several, or one who did not ask. */
function takesGrants({ grantable, quorum, approver }: Tool): boolean {
  return grantable && quorum === 1 && approver !== 'other'
}
