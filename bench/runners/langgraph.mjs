// LangGraph's prebuilt ReAct agent with LangChain's OpenAI chat model.

import { tool } from '@langchain/core/tools'
import { createReactAgent } from '@langchain/langgraph/prebuilt'
import { ChatOpenAI } from '@langchain/openai'
import { lookup, model, prompt, system } from '../lib/scenario.mjs'

export const name = 'LangGraph'
export const wires = ['openai']
export const packages = ['@langchain/langgraph', '@langchain/openai', '@langchain/core']

export function create({ base, stream, execute, onToken }) {
  const llm = new ChatOpenAI({
    model,
    apiKey: 'test-key',
    maxRetries: 0,
    streaming: stream,
    configuration: { baseURL: `${base}/v1` },
  })
  const { name, description, schema } = lookup
  const agent = createReactAgent({
    llm,
    prompt: system,
    tools: [tool((input) => execute(input), { name, description, schema })],
  })
  const input = { messages: [{ role: 'user', content: prompt }] }
  const options = { recursionLimit: 1000 }
  if (!stream) return async () => (await agent.invoke(input, options)).messages.at(-1).content
  return async () => {
    let text = ''
    const pieces = await agent.stream(input, { ...options, streamMode: 'messages' })
    for await (const [message] of pieces) {
      if (message.getType() !== 'ai' || typeof message.content !== 'string' || !message.content)
        continue
      text += message.content
      onToken(message.content)
    }
    return text
  }
}
