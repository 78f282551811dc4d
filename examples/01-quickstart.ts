// A whole service: one agent, one tool that a person must approve, behind plain node:http. It then
// plays the client itself: it asks, sees the pending call, approves it, and sends the approval
// twice to show that it ran once. The model is scripted so that this runs anywhere. A real one:
// provider: bedrock({ model: '...' }).

import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { chatHandler, tool } from '../src/index.ts'
import { scripted } from '../src/providers/scripted.ts'

let deleted = 0
const deletePod = tool({
  name: 'delete_pod',
  description: 'Delete a Kubernetes pod',
  input: '{ name: string, namespace?: string }',
  defaults: { namespace: 'default' },
  requiresApproval: true,
  execute: ({ name, namespace }) => `deleted ${namespace}/${name} (${++deleted})`,
})

const ops = {
  name: 'ops',
  provider: scripted([
    { calls: [{ name: 'delete_pod', input: { name: 'nginx' } }] },
    'The pod nginx is gone.',
    'It was gone already.',
  ]),
  system: 'You operate a Kubernetes cluster.',
  tools: [deletePod],
}

const chat = chatHandler(ops)
const server = createServer(async (req, res) => {
  if (await chat(req, res)) return // /health, /api/chat, /api/chat-stream
  res.writeHead(404).end() // your own routes
})
await once(server.listen(0, '127.0.0.1'), 'listening')

// ---- the client

const { port } = server.address() as AddressInfo
type Calls = { id: string; name: string; input: object; output?: string }[]
type Answer = { content: string; data: { tool_calls: Calls; executed_tool_calls: Calls } }

async function post(...messages: object[]): Promise<Answer> {
  const response = await fetch(`http://127.0.0.1:${port}/api/chat`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ messages }),
  })
  return (await response.json()) as Answer
}

const question = { role: 'user', content: 'Delete the pod nginx' }
const asked = await post(question)
const [call] = asked.data.tool_calls
console.log('waits:', call?.name, call?.input, 'ran so far:', deleted)

const yes = { role: 'user', content: '', data: { tool_calls: [{ ...call, execute: true }] } }
const done = await post(question, asked, yes)
console.log('ran:', done.data.executed_tool_calls[0]?.output)
console.log('says:', done.content)

const again = await post(question, asked, yes)
console.log('sent again:', again.data.executed_tool_calls[0]?.output)
server.close()

// Prints:
//
// waits: delete_pod { name: 'nginx' } ran so far: 0
// ran: deleted default/nginx (1)
// says: The pod nginx is gone.
// sent again: deleted default/nginx (1)
