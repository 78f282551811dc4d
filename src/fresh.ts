// A call that a person must see anew: in place of one that changed, by them or by drift, or one that only the thread
// remembers. Loaded when the first such call is met. Runs nothing: what it makes waits for a person.

import type { Answer, Call, Case, Gate } from './approval.ts'
import { begin, close } from './ledger.ts'
import { nonce } from './proof.ts'
import type { Tool } from './tool.ts'

/** Supersedes a call by a fresh one, for a person's `edit` or for drift; the original's record holds it. */
export async function replaced(
  gate: Gate,
  one: Case,
  tool: Tool,
  edit?: { input: unknown },
): Promise<Answer> {
  const { said } = one
  const { authority, who } = gate.scope
  const { input } = edit ?? said
  const checked = await gate.legible(tool, input)
  if (typeof checked === 'string') return { open: `Not executed: ${checked}` }
  if (checked.denied) return close(gate, one, checked.denied, 'policy')
  const asked = edit
    ? who.principal && JSON.stringify([who.principal])
    : await authority.store.get(`asked:${one.nonce}`)
  const call = { ...pending(nonce(), tool.name, input), replaces: one.nonce }
  const changed = edit || said.changed ? { changed: true } : {}
  const fresh = await gate.present(tool, { ...call, ...changed }, checked, asked)
  if (!edit && said.preview !== undefined && said.preview !== fresh.preview) {
    const before = gate.clean(`It changed. Shown before: ${said.preview}`)
    fresh.reasons = [...(fresh.reasons ?? []), before]
  }
  const open = edit
    ? 'Not executed: the changed input needs an approval of its own.'
    : 'Not executed: the tool or what it would do changed since this was shown.'
  return begin(gate, one, async (finish) => {
    await finish({ outcome: 'unknown', output: open, fresh, by: who.principal })
    return { open, fresh }
  })
}

/** The same call under the same id, as it would be shown today. */
export async function restored(gate: Gate, one: Case, tool: Tool, proof: string): Promise<Call> {
  const { name, input } = one.said
  const call = { ...pending(one.nonce, name, input), proof, expiresAt: one.expires }
  const checked = await gate.check(tool, input)
  if (typeof checked === 'string') return call
  const { digest: _, ...view } = await gate.view(tool, input, checked)
  return { ...call, ...view }
}

function pending(id: string, name: string, input: unknown): Call {
  return { id, name, input, status: 'pending', requiresApproval: true }
}
