// This project's chat endpoint.

import { createServer } from 'node:http'
import { ours } from '../lib/root.mjs'
import { lookUp, lookup, model, system } from '../lib/scenario.mjs'

const { chatHandler } = await ours('http')
const { openai } = await ours('providers/openai')
const { tool } = await ours('tool')

export function serve(base) {
  const { name, description, schema } = lookup
  const agent = {
    name: 'bench',
    provider: openai({ model, apiKey: 'test-key', baseUrl: `${base}/v1` }),
    system,
    tools: [tool({ name, description, input: schema, execute: lookUp })],
  }
  const chat = chatHandler(agent)
  return createServer(async (req, res) => {
    if (await chat(req, res)) return
    res.writeHead(404).end()
  })
}
