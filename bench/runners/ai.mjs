// The Vercel AI SDK: generateText and streamText with its OpenAI provider.

import { createOpenAI } from '@ai-sdk/openai'
import { generateText, jsonSchema, stepCountIs, streamText, tool } from 'ai'
import { lookup, model, prompt, system } from '../lib/scenario.mjs'

export const name = 'ai'
export const wires = ['openai']
export const packages = ['ai', '@ai-sdk/openai']

globalThis.AI_SDK_LOG_WARNINGS = false

export function create({ base, stream, execute, onToken }) {
  const provider = createOpenAI({ baseURL: `${base}/v1`, apiKey: 'test-key' })
  const tools = {
    [lookup.name]: tool({
      description: lookup.description,
      inputSchema: jsonSchema(lookup.schema),
      execute,
    }),
  }
  const options = {
    model: provider.chat(model),
    instructions: system,
    prompt,
    tools,
    stopWhen: stepCountIs(200),
    maxRetries: 0,
  }
  if (!stream) return async () => (await generateText(options)).text
  return async () => {
    let text = ''
    let failed
    const onError = ({ error }) => {
      failed = error
    }
    for await (const piece of streamText({ ...options, onError }).textStream) {
      text += piece
      onToken(piece)
    }
    if (failed) throw failed
    return text
  }
}
