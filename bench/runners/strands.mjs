// Strands Agents: OpenAI over Chat Completions, and Bedrock, its home. It always asks for the streaming wire.

import { Agent, NullConversationManager, tool } from '@strands-agents/sdk'
import { lookup, model as modelId, prompt, system } from '../lib/scenario.mjs'

export const name = '@strands-agents/sdk'
export const wires = ['openai', 'bedrock']
export const streamsOnly = true
export const packages = ['@strands-agents/sdk', 'openai']

export async function create({ wire, base, execute, onToken }) {
  const model = await modelOf(wire, base)
  const lookupTool = tool({
    name: lookup.name,
    description: lookup.description,
    inputSchema: lookup.schema,
    callback: execute,
  })
  return async () => {
    // The default manager forgets all but the last forty messages.
    const conversationManager = new NullConversationManager()
    const agent = new Agent({
      model,
      systemPrompt: system,
      tools: [lookupTool],
      printer: false,
      conversationManager,
      retryStrategy: null,
    })
    let text = ''
    for await (const { type, event } of agent.stream(prompt)) {
      const delta = type === 'modelStreamUpdateEvent' && event.delta
      if (delta?.type !== 'textDelta') continue
      text += delta.text
      onToken(delta.text)
    }
    return text
  }
}

async function modelOf(wire, base) {
  if (wire === 'bedrock') {
    const { BedrockModel } = await import('@strands-agents/sdk')
    const { NodeHttpHandler } = await import('@smithy/node-http-handler')
    return new BedrockModel({
      modelId,
      region: 'us-east-1',
      clientConfig: {
        endpoint: base,
        credentials: { accessKeyId: 'test', secretAccessKey: 'test-key' },
        requestHandler: new NodeHttpHandler(),
      },
    })
  }
  const { OpenAIModel } = await import('@strands-agents/sdk/models/openai')
  return new OpenAIModel({
    api: 'chat',
    modelId,
    apiKey: 'test-key',
    clientConfig: { baseURL: `${base}/v1`, maxRetries: 0 },
  })
}
