// What prompt caching saves: a talk of five turns whose prompt is nine tenths static. Runs against
// a stand-in that counts as Anthropic documents it, or against a real model:
//   DCAF_PROVIDER=anthropic DCAF_MODEL=claude-sonnet-4-5 node examples/caching.ts
// The first turn is dearer than without: writing costs a quarter more than reading plainly. From
// the second turn on what was written is read for a tenth. So cache what is asked again within five
// minutes, and nothing else.

import { type Agent, type Message, run, type Usage, user } from '../src/index.ts'
import { anthropic } from '../src/providers/anthropic.ts'
import { providerFromEnv } from '../src/providers/env.ts'
import { localAnthropic } from './local-anthropic.ts'

const local = await localAnthropic(({ messages }) => [
  { type: 'text', text: `As runbook ${messages.length} says: ${'look, then act. '.repeat(6)}` },
])
const provider = process.env.DCAF_PROVIDER
  ? await providerFromEnv()
  : anthropic({ model: 'claude-sonnet-4-5', apiKey: 'test-key', baseUrl: local.url })

const runbooks = Array.from(
  { length: 110 },
  (_, i) =>
    `Runbook ${i}: if service-${i} is slow, look at its pods, then at its database, then ask.`,
)
let characters = 0
const agent: Agent = {
  name: 'runbooks',
  provider,
  system: `You answer from these runbooks, in a sentence or two.\n${runbooks.join('\n')}`,
  cache: true, // what changes from turn to turn belongs into systemContext, which comes after
  onEvent: (event) => {
    if (event.type === 'ModelCalled')
      characters += JSON.stringify((event.body as () => unknown)()).length
  },
}

/** In tokens at the full price, by the ratios of Anthropic and of Anthropic's models on Bedrock. */
function price({ inputTokens, cacheReadTokens, cacheWriteTokens }: Usage): number {
  const plain = inputTokens - cacheReadTokens - cacheWriteTokens
  return plain + 0.1 * cacheReadTokens + 1.25 * cacheWriteTokens
}

let messages: Message[] = []
let full = 0
let paid = 0
console.log('turn  input   read  written  price')
for (const [turn, service] of ['crm', 'shop', 'mail', 'search', 'login'].entries()) {
  const said = user(`What do I do when ${service} is slow, and whom do I ask?`)
  const { state, usage, error } = await run(agent, { messages: [...messages, said] })
  if (error) throw error
  messages = state.messages
  full += usage.inputTokens
  paid += price(usage)
  const { inputTokens, cacheReadTokens, cacheWriteTokens } = usage
  const row = [turn + 1, inputTokens, cacheReadTokens, cacheWriteTokens]
  const share = `${Math.round((100 * price(usage)) / inputTokens)} %`
  console.log([4, 6, 6, 8].map((n, i) => `${row[i]}`.padStart(n)).join(' '), share.padStart(6))
}
const still = (5 * (agent.system ?? '').length) / characters
console.log(`static: ${Math.round(100 * still)} % of the prompts`)
console.log(`saved: ${Math.round(100 * (1 - paid / full))} % of what the input would have cost`)
local.close()

// Prints:
//
// turn  input   read  written  price
//    1   2404      0     2404  125 %
//    2   2458   2404       54   13 %
//    3   2512   2458       54   12 %
//    4   2567   2512       55   12 %
//    5   2621   2567       54   12 %
// static: 91 % of the prompts
// saved: 66 % of what the input would have cost
