// Approval without HTTP: `run` stops where a person must decide, `resume` goes on with their word.
// Approve, reject, edit, and a call that two different people must approve. A decision is redeemed
// once, whoever sends it again.

import {
  approve,
  type Decision,
  edit,
  type PendingCall,
  reject,
  resume,
  run,
  tool,
} from '../src/index.ts'
import { scripted } from '../src/providers/scripted.ts'

const refund = tool({
  name: 'refund',
  description: 'Pay money back',
  input: '{ order: string, euro: number }',
  requiresApproval: ({ euro }) => euro > 10, // smaller ones run unasked
  editable: true, // an approver may change the input and run it in one step
  execute: ({ order, euro }) => `${euro} EUR for ${order}`,
})
const close = tool({
  name: 'close_shop',
  description: 'Take the shop off the net',
  input: '{}',
  requiresApproval: true,
  approver: 'anyone',
  quorum: 2,
  execute: () => 'the shop is closed',
})

const calls = [
  { name: 'refund', input: { order: 'A', euro: 5 } },
  { name: 'refund', input: { order: 'B', euro: 20 } },
  { name: 'refund', input: { order: 'C', euro: 900 } },
  { name: 'refund', input: { order: 'D', euro: 4000 } },
  { name: 'close_shop' },
]
const shop = {
  name: 'shop',
  provider: scripted([{ calls }, 'All is settled.']),
  tools: [refund, close],
}

/** A person, as a function. */
function decide({ id, input }: PendingCall): Decision {
  const { order, euro = 0 } = input as { order?: string; euro?: number }
  if (euro > 1000) return reject(id, 'Far too much')
  return euro > 100 ? edit(id, { order, euro: 90 }) : approve(id)
}

let result = await run(shop, { messages: 'Settle it all' }, { principal: 'ann' })
console.log('ran unasked:', result.executed[0]?.output)
for (const { name, input } of result.pending) console.log('waits:', name, input)

result = await resume(shop, result, result.pending.map(decide), { principal: 'ann' })
for (const { output, outcome } of result.executed) console.log(`${outcome}:`, output)
for (const { name, votes } of result.pending) console.log('still waits:', name, 'votes:', votes)

result = await resume(shop, result, result.pending.map(decide), { principal: 'ben' })
console.log(`${result.executed[0]?.outcome}:`, result.executed[0]?.output)
console.log(result.text)

// Prints:
//
// ran unasked: 5 EUR for A
// waits: refund { order: 'B', euro: 20 }
// waits: refund { order: 'C', euro: 900 }
// waits: refund { order: 'D', euro: 4000 }
// waits: close_shop {}
// ok: 20 EUR for B
// ok: A person changed the input to {"order":"C","euro":90}.
// 90 EUR for C
// rejected: Tool rejected: Far too much
// still waits: close_shop votes: 1
// ok: the shop is closed
// All is settled.
