// Two agents behind one door: a function in an agent's place decides who answers. It gets the
// conversation and the decisions, and may run agents of its own. An approval is for one agent, so
// what comes back goes to whoever asked.

import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { type Agent, type AgentFunction, chatHandler, run, Session, tool } from '../src/index.ts'
import { scripted } from '../src/providers/scripted.ts'

const refund = tool({
  name: 'refund',
  description: 'Pay an invoice back',
  input: '{ invoice: string }',
  requiresApproval: true,
  execute: ({ invoice }) => `${invoice} paid back`,
})
const billing: Agent = {
  name: 'billing',
  provider: scripted([{ calls: [{ name: 'refund', input: { invoice: 'R-7' } }] }, 'Refunded.']),
  tools: [refund],
}
const support: Agent = { name: 'support', provider: scripted(['Turn it off and on.']) }

const desk: AgentFunction = async ({ messages, ...input }, options) => {
  const session = new Session(options.session)
  const isMoney = /invoice|refund/i.test(JSON.stringify(messages.at(-1)))
  const agent = isMoney || session.get('asked') === 'billing' ? billing : support
  const result = await run(agent, { messages, ...input }, { ...options, session })
  if (result.needsApproval) session.set('asked', agent.name)
  else session.delete('asked')
  return result
}

const chat = chatHandler(desk)
const server = createServer(async (req, res) => {
  if (!(await chat(req, res))) res.writeHead(404).end()
})
await once(server.listen(0, '127.0.0.1'), 'listening')
const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/api/chat`

type Answer = {
  content: string
  data: Record<'tool_calls' | 'executed_tool_calls', { id: string; output?: string }[]>
}
async function say(thread: object[], content: string, data = {}): Promise<Answer['data']> {
  thread.push({ role: 'user', content, data })
  const headers = { 'content-type': 'application/json' }
  const body = JSON.stringify({ messages: thread })
  const answer = (await (await fetch(url, { method: 'POST', headers, body })).json()) as Answer
  thread.push(answer)
  console.log(answer.content)
  return answer.data
}

await say([], 'My screen is black')
const thread: object[] = []
const asked = await say(thread, 'Refund the invoice R-7')
const approved = asked.tool_calls.map((call) => ({ ...call, execute: true }))
const done = await say(thread, '', { tool_calls: approved })
console.log(done.executed_tool_calls[0]?.output)
server.close()

// Prints:
//
// Turn it off and on.
// I need your approval to execute the following tools:
// Refunded.
// R-7 paid back
