// This project: `run` with the provider of each wire.

import { ours } from '../lib/root.mjs'
import { lookup, model, prompt, system } from '../lib/scenario.mjs'

const { run } = await ours('agent')
const { tool } = await ours('tool')

export const name = 'dcaf'
export const wires = ['openai', 'anthropic', 'bedrock']

const providers = {
  async openai(base) {
    const { openai } = await ours('providers/openai')
    return openai({ model, apiKey: 'test-key', baseUrl: `${base}/v1` })
  },
  async anthropic(base) {
    const { anthropic } = await ours('providers/anthropic')
    return anthropic({ model, apiKey: 'test-key', baseUrl: base })
  },
  async bedrock(base) {
    process.env.AWS_ACCESS_KEY_ID = 'test'
    process.env.AWS_SECRET_ACCESS_KEY = 'test-key'
    const { bedrock } = await ours('providers/bedrock')
    return bedrock({ model, region: 'us-east-1', endpoint: base })
  },
}

export async function create({ wire, base, stream, execute, onToken }) {
  const { name, description, schema } = lookup
  const agent = {
    name: 'bench',
    provider: await providers[wire](base),
    system,
    tools: [tool({ name, description, input: schema, execute })],
    limits: { turns: 200, toolCalls: 200 },
  }
  const emit = (event) => {
    if (event.type === 'text_delta') onToken(event.text)
  }
  const options = stream ? { emit } : {}
  return async () => {
    const result = await run(agent, { messages: prompt }, options)
    if (result.error) throw result.error
    return result.text
  }
}
