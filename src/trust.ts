// The migration path, `trustClient: 'unsafe'`: an approval by a client that knows no signed ids yet. No proof, but the
// tool must ask for this very input, and policy, freeze and ledger still hold. Loaded when the first one comes. Runs nothing.

import type { Answer, Case, Decision, Gate, Said } from './approval.ts'
import { unverified } from './approval.ts'
import { past } from './ledger.ts'
import { audience, canonical, sha256 } from './proof.ts'
import type { Tool } from './tool.ts'

/** What may run, and under which name in the ledger; else why not. */
export async function trusted(
  gate: Gate,
  said: Said,
  d: Decision,
): Promise<Answer | { one: Case; tool: Tool; input: unknown }> {
  const { scope, tools, path } = gate
  const { agent, authority, who } = scope
  const { name, input } = said
  const tool = tools.get(name)
  if (!tool || !d.id || tool.approver !== 'requester' || tool.quorum > 1 || tool.type === 'command')
    return { open: unverified, refused: true }
  const among = audience(who, 'requester')
  const nonce = sha256(canonical([agent, path, among, d.id, name, input]))
  const epoch = await authority.epoch()
  const one = { nonce, expires: Date.now(), shown: '', said, tool, epoch }
  const before = await past(gate, one)
  if (before) return before
  const checked = await gate.legible(tool, input)
  if (typeof checked === 'string') return { open: `Not executed: ${checked}`, refused: true }
  const echo = d.editedInput === undefined ? d.input : d.editedInput
  const same = [input, checked.value].some((known) => canonical(known) === canonical(echo))
  if (echo !== undefined && !same) return { open: unverified, refused: true }
  if (checked.denied) return { open: checked.denied.content, refused: true }
  if (checked.verdict !== 'ask') return { open: unverified, refused: true }
  const frozen = gate.frozenBy()
  return frozen ? { open: frozen } : { one, tool, input: checked.value }
}
