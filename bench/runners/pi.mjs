// pi's agent core with its Chat Completions client. It always asks for the streaming wire.

import { Agent } from '@earendil-works/pi-agent-core'
import { streamSimple } from '@earendil-works/pi-ai/api/openai-completions'
import { model as id, lookup, prompt, system } from '../lib/scenario.mjs'

export const name = 'pi-agent-core'
export const wires = ['openai']
export const streamsOnly = true
export const packages = ['@earendil-works/pi-agent-core']

export function create({ base, execute, onToken }) {
  const model = {
    id,
    name: id,
    api: 'openai-completions',
    provider: 'openai',
    baseUrl: `${base}/v1`,
    reasoning: false,
    input: ['text'],
    cost: { input: 0, output: 0, cacheRead: 0, cacheWrite: 0 },
    contextWindow: 1_000_000,
    maxTokens: 4096,
  }
  const { name, description, schema } = lookup
  const lookupTool = {
    name,
    label: name,
    description,
    parameters: schema,
    execute: async (_, input) => ({ content: [{ type: 'text', text: execute(input) }] }),
  }
  return async () => {
    const agent = new Agent({
      initialState: { systemPrompt: system, model, tools: [lookupTool], thinkingLevel: 'off' },
      streamFn: streamSimple,
      getApiKey: () => 'test-key',
    })
    let text = ''
    agent.subscribe((event) => {
      const delta = event.type === 'message_update' && event.assistantMessageEvent
      if (delta?.type !== 'text_delta') return
      text += delta.delta
      onToken(delta.delta)
    })
    await agent.prompt(prompt)
    if (agent.state.errorMessage) throw new Error(agent.state.errorMessage)
    return text
  }
}
