// Not in the table: this project's providers under a loop by hand, to tell what a provider costs from what `run` costs.

import { ours } from '../lib/root.mjs'
import { lookup, model, prompt, system } from '../lib/scenario.mjs'

export const name = 'provider'
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
  const provider = await providers[wire](base)
  const { name, description, schema } = lookup
  const tools = [{ name, description, input: schema }]
  const options = stream ? { onDelta: ({ text }) => onToken(text) } : {}
  return async () => {
    const messages = [{ role: 'user', parts: [{ type: 'text', text: prompt }] }]
    for (;;) {
      const { parts } = await provider.complete(
        { system: [{ text: system }], messages, tools },
        options,
      )
      const calls = parts.filter((part) => part.type === 'tool_call')
      if (calls.length === 0) return parts.map((part) => part.text).join('')
      const results = await Promise.all(
        calls.map(async ({ id, input }) => ({
          callId: id,
          outcome: 'ok',
          content: await execute(input),
        })),
      )
      messages.push({ role: 'assistant', parts, results })
    }
  }
}
