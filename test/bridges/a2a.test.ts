// Both ends through the official SDK: its request handler and JSON-RPC door over a socket, and its client.

import assert from 'node:assert/strict'
import type { AddressInfo } from 'node:net'
import { type TestContext, test } from 'node:test'
import { type AgentCard, type Message, type Task, TaskState } from '@a2a-js/sdk'
import { ClientFactory } from '@a2a-js/sdk/client'
import { type AgentExecutor, DefaultRequestHandler, InMemoryTaskStore } from '@a2a-js/sdk/server'
import { agentCardHandler, jsonRpcHandler, UserBuilder } from '@a2a-js/sdk/server/express'
import express from 'express'
import { type A2aClient, a2aCard, a2aExecutor, a2aTool } from '../../src/bridges/a2a.ts'
import { type Agent, run } from '../../src/index.ts'
import { type ScriptEntry, scripted } from '../../src/providers/scripted.ts'
import { tool } from '../../src/tool.ts'

async function remote(t: TestContext, replies: ScriptEntry[], more: Partial<Agent> = {}) {
  const ran: unknown[] = []
  const drop = tool({
    name: 'drop',
    description: 'Drop a table',
    input: '{ table: string }',
    requiresApproval: true,
    execute: (input) => {
      ran.push(input)
      return `dropped ${input.table}`
    },
  })
  const provider = scripted(replies)
  const agent: Agent = {
    name: 'db',
    description: 'Runs the database',
    provider,
    tools: [drop],
    ...more,
  }
  const app = express()
  const server = app.listen(0, '127.0.0.1')
  await new Promise((resolve) => server.once('listening', resolve))
  t.after(
    () =>
      new Promise((resolve) => {
        server.closeAllConnections()
        server.close(resolve)
      }),
  )
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  const card = a2aCard(agent, { url: `${url}/rpc` }) as AgentCard
  const handler = new DefaultRequestHandler(
    card,
    new InMemoryTaskStore(),
    a2aExecutor(agent) as unknown as AgentExecutor,
  )
  app.use('/.well-known/agent-card.json', agentCardHandler({ agentCardProvider: handler }))
  app.use(
    '/rpc',
    jsonRpcHandler({ requestHandler: handler, userBuilder: UserBuilder.noAuthentication }),
  )
  const client = await new ClientFactory().createFromUrl(url)
  return { client, ran, provider, agent }
}

const said = (
  content: NonNullable<Message['parts'][number]['content']>,
  task?: Task,
): { tenant: string; message: Message; configuration: undefined; metadata: undefined } => ({
  tenant: '',
  message: {
    messageId: crypto.randomUUID(),
    role: 1,
    taskId: task?.id ?? '',
    contextId: task?.contextId ?? '',
    parts: [{ content, metadata: undefined, filename: '', mediaType: '' }],
    metadata: undefined,
    extensions: [],
    referenceTaskIds: [],
  },
  configuration: undefined,
  metadata: undefined,
})
const words = (value: string, task?: Task) => said({ $case: 'text', value }, task)
const dataOf = (task: Task) =>
  task.status?.message?.parts.flatMap((p) =>
    p.content?.$case === 'data' ? [p.content.value] : [],
  )[0]
const textOf = (task: Task) =>
  task.status?.message?.parts
    .map((p) => (p.content?.$case === 'text' ? p.content.value : ''))
    .join('')

const drops: ScriptEntry = { calls: [{ name: 'drop', input: { table: 'a' } }] }

test('the card names the agent and how to reach it', async (t) => {
  const { client } = await remote(t, [])
  const card = await client.getAgentCard()
  assert.deepEqual(
    [card.name, card.description, card.skills[0]?.id, card.supportedInterfaces[0]?.protocolBinding],
    ['db', 'Runs the database', 'db', 'JSONRPC'],
  )
})

test('a message is answered by a completed task', async (t) => {
  const { client } = await remote(t, [['Hel', 'lo']])
  const task = (await client.sendMessage(words('hi'))) as Task
  assert.deepEqual([task.status?.state, textOf(task)], [TaskState.TASK_STATE_COMPLETED, 'Hello'])
})

test('an answer streams as pieces of one artifact', async (t) => {
  const { client } = await remote(t, [['Hel', 'lo']])
  const pieces: unknown[] = []
  for await (const { payload } of client.sendMessageStream(words('hi')))
    if (payload?.$case === 'artifactUpdate')
      pieces.push([payload.value.append, payload.value.artifact?.parts[0]?.content?.value])
  assert.deepEqual(pieces, [
    [false, 'Hel'],
    [true, 'lo'],
  ])
})

test('a pending call is input-required; its approval comes back as a message and runs it once', async (t) => {
  const { client, ran, provider } = await remote(t, [drops, 'gone'])
  const waiting = (await client.sendMessage(words('drop a'))) as Task
  assert.equal(waiting.status?.state, TaskState.TASK_STATE_INPUT_REQUIRED)
  const [{ id, name, input }] = dataOf(waiting).approvals
  assert.deepEqual([name, input, ran], ['drop', { table: 'a' }, []])
  const decision = said({ $case: 'data', value: { decisions: [{ id, execute: true }] } }, waiting)
  const done = (await client.sendMessage(decision)) as Task
  assert.deepEqual(
    [done.status?.state, textOf(done), ran],
    [TaskState.TASK_STATE_COMPLETED, 'gone', [{ table: 'a' }]],
  )
  assert.match(JSON.stringify(provider.requests[1]), /dropped a/)
})

test('a forged approval runs nothing, and the task goes on waiting', async (t) => {
  const { client, ran } = await remote(t, [drops])
  const waiting = (await client.sendMessage(words('drop a'))) as Task
  const id = dataOf(waiting).approvals[0].id.replace(/.$/, 'x')
  const still = (await client.sendMessage(
    said({ $case: 'data', value: { decisions: [{ id, execute: true }] } }, waiting),
  )) as Task
  assert.deepEqual([still.status?.state, ran], [TaskState.TASK_STATE_INPUT_REQUIRED, []])
})

test('words while a call waits are a no', async (t) => {
  const { client, ran } = await remote(t, [drops, 'as you wish'])
  const waiting = (await client.sendMessage(words('drop a'))) as Task
  const task = (await client.sendMessage(words('better not', waiting))) as Task
  assert.deepEqual([textOf(task), ran], ['as you wish', []])
})

test('a failing model is a failed task that says nothing of why', async (t) => {
  const { client } = await remote(t, [new Error('secret host')])
  const task = (await client.sendMessage(words('hi'))) as Task
  assert.deepEqual(
    [task.status?.state, textOf(task)],
    [TaskState.TASK_STATE_FAILED, 'The agent could not answer.'],
  )
})

test('a cancelled task stops the model', async (t) => {
  const began = Promise.withResolvers<string>()
  const provider = scripted(async (_, { signal }) => {
    began.resolve('')
    await new Promise((_, reject) => signal?.addEventListener('abort', () => reject(signal.reason)))
    return ''
  })
  const { client } = await remote(t, [], { provider })
  let id = ''
  const states: (number | undefined)[] = []
  for await (const { payload } of client.sendMessageStream(words('hi'))) {
    if (payload?.$case === 'task') {
      id = payload.value.id
      void began.promise.then(() => client.cancelTask({ tenant: '', id, metadata: undefined }))
    }
    if (payload?.$case === 'statusUpdate') states.push(payload.value.status?.state)
  }
  assert.equal(states.at(-1), TaskState.TASK_STATE_CANCELED)
})

test('a remote agent is a tool; one that waits for its own person is an error', async (t) => {
  const { client } = await remote(t, ['done there', drops])
  const ask = a2aTool(client as unknown as A2aClient, {
    name: 'db_agent',
    description: 'The database team',
    requiresApproval: false,
  })
  const call: ScriptEntry = { calls: [{ name: 'db_agent', input: { task: 'look' } }] }
  const { state } = await run(
    { name: 'a', provider: scripted([call, call, 'end']), tools: [ask] },
    { messages: 'go' },
  )
  const results = state.messages.flatMap((m) => (m.role === 'assistant' ? m.results : []))
  assert.deepEqual(
    results.map((r) => r.outcome),
    ['ok', 'error'],
  )
  assert.equal(results[0]?.content, 'done there')
  assert.match(results[1]?.content ?? '', /waits for its own approval/)
})
