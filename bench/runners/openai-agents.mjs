// The OpenAI Agents SDK over Chat Completions. Tracing is off: it would send every run to its maker.

import { Agent, OpenAIChatCompletionsModel, run, setTracingDisabled, tool } from '@openai/agents'
import { OpenAI } from 'openai'
import { lookup, model, prompt, system } from '../lib/scenario.mjs'

export const name = '@openai/agents'
export const wires = ['openai']
export const packages = ['@openai/agents', 'zod']

setTracingDisabled(true)

export function create({ base, stream, execute, onToken }) {
  const client = new OpenAI({ baseURL: `${base}/v1`, apiKey: 'test-key', maxRetries: 0 })
  const agent = new Agent({
    name: 'bench',
    instructions: system,
    model: new OpenAIChatCompletionsModel(client, model),
    tools: [
      tool({
        name: lookup.name,
        description: lookup.description,
        parameters: { ...lookup.schema, additionalProperties: true },
        strict: false,
        execute,
      }),
    ],
  })
  if (!stream) return async () => (await run(agent, prompt, { maxTurns: 200 })).finalOutput
  return async () => {
    const result = await run(agent, prompt, { maxTurns: 200, stream: true })
    for await (const { type, data } of result)
      if (type === 'raw_model_stream_event' && data.type === 'output_text_delta')
        onToken(data.delta)
    await result.completed
    return result.finalOutput
  }
}
