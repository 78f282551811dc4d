// What listeners are told: facts, in the past tense, masked. One listener posts them to a webhook,
// another writes an audit trail whose every line holds the digest of the line before, so that a
// changed line shows. A listener that throws or hangs hurts nobody.

import { once } from 'node:events'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { approveAll, audit, type RunFact, resume, run, tool, verifyAudit } from '../src/index.ts'
import { scripted } from '../src/providers/scripted.ts'

// Somebody else's server.
const webhook = createServer(async (req, res) => {
  const { type, name, approvedBy, output } = JSON.parse(await text(req))
  console.log('webhook:', type, [name, approvedBy, output].filter(Boolean).join(' '))
  res.end()
})
await once(webhook.listen(0, '127.0.0.1'), 'listening')
const url = `http://127.0.0.1:${(webhook.address() as AddressInfo).port}`

/** One after another, so that they arrive in order. Nothing waits for them; what fails is lost. */
let sent = Promise.resolve()
function post(event: RunFact): void {
  const body = JSON.stringify(event)
  sent = sent.then(() => fetch(url, { method: 'POST', body })).then(() => {}, console.error)
}

const folder = await mkdtemp(join(tmpdir(), 'dcaf-'))
const file = join(folder, 'audit.ndjson')
const trail = await audit(file)

const restart = tool({
  name: 'restart',
  description: 'Restart a service',
  input: '{ service: string }',
  requiresApproval: true,
  execute: ({ service }) => `${service} restarted`,
})
const agent = {
  name: 'ops',
  provider: scripted([{ calls: [{ name: 'restart', input: { service: 'crm' } }] }, 'Done.']),
  tools: [restart],
  onEvent: [post, trail.listener],
}
const asked = await run(agent, { messages: 'Restart crm' }, { principal: 'ann' })
await resume(agent, asked, approveAll(asked), { principal: 'ann' })

await sent
await trail.flush()
console.log('audit:', await verifyAudit(file))
const lines = await readFile(file, 'utf8')
await writeFile(file, lines.replace('"approvedBy":"ann"', '"approvedBy":"ben"'))
console.log('audit:', await verifyAudit(file))
await rm(folder, { recursive: true })
webhook.close()

// Prints:
//
// webhook: ConversationStarted
// webhook: ModelCalled
// webhook: ApprovalRequested
// webhook: RunFinished
// webhook: ToolCallApproved restart ann
// webhook: ToolExecuted restart crm restarted
// webhook: ModelCalled
// webhook: RunFinished
// audit: []
// audit: [ { line: 5, problem: 'was changed' } ]
