// The same agent on any of the six providers, named on the command line; nothing else changes. Keys
// and addresses come from the vendor's own variables, such as ANTHROPIC_API_KEY (.env.example lists
// them).
//   node examples/providers.ts bedrock us.anthropic.claude-sonnet-4-5-20250929-v1:0
//   node examples/providers.ts ollama qwen3 "Wake me at 6 in Lima"

import { type Agent, approveAll, DcafError, resume, run, tool } from '../src/index.ts'
import { providerFromEnv } from '../src/providers/env.ts'

const [name, model, messages = 'Wake me at 7 in Oslo'] = process.argv.slice(2)

const setAlarm = tool({
  name: 'set_alarm',
  description: 'Set an alarm',
  input: '{ city: string, hour: number }',
  requiresApproval: true,
  execute: ({ city, hour }) => `the alarm rings at ${hour} in ${city}`,
})

async function wake(): Promise<void> {
  const env = { ...process.env, DCAF_PROVIDER: name, DCAF_MODEL: model }
  const provider = await providerFromEnv(env)
  const system = 'You set alarms with your tool, at once, and answer in one sentence.'
  const agent: Agent = { name: 'clock', provider, system, tools: [setAlarm] }

  let result = await run(agent, { messages })
  for (const call of result.pending) console.log('approved:', call.name, call.input)
  if (result.needsApproval) result = await resume(agent, result, approveAll(result))
  if (result.error) throw result.error
  console.log(`${provider.name}, ${provider.model}:`, result.text)
}

if (!name || !model) {
  console.error('Name a provider and a model: bedrock, anthropic, openai, azure, google or ollama')
  process.exitCode = 2
} else
  await wake().catch((error: unknown) => {
    if (!(error instanceof DcafError)) throw error
    console.error(error.message)
    process.exitCode = 1
  })
