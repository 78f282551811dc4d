// The official client on both ends: the official server-everything over stdio and streamable HTTP, and servers of the
// official SDK in memory for what it does not do.

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { createRequire } from 'node:module'
import { createServer } from 'node:net'
import { type TestContext, test } from 'node:test'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'
import { InMemoryTransport } from '@modelcontextprotocol/sdk/inMemory.js'
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js'
import * as z from 'zod'
import { type McpClient, type McpOptions, mcpTools } from '../../src/bridges/mcp.ts'
import { type Agent, approveAll, resume, run } from '../../src/index.ts'
import { scripted } from '../../src/providers/scripted.ts'

const everything = createRequire(import.meta.url).resolve(
  '@modelcontextprotocol/server-everything/dist/index.js',
)

async function overStdio(t: TestContext): Promise<Client> {
  const client = new Client({ name: 'test', version: '1' })
  await client.connect(
    new StdioClientTransport({
      command: process.execPath,
      args: [everything, 'stdio'],
      stderr: 'ignore',
    }),
  )
  t.after(() => client.close())
  return client
}

async function overHttp(t: TestContext): Promise<Client> {
  const port = await new Promise<number>((resolve) => {
    const probe = createServer().listen(0, '127.0.0.1', () => {
      const { port } = probe.address() as { port: number }
      probe.close(() => resolve(port))
    })
  })
  const child = spawn(process.execPath, [everything, 'streamableHttp'], {
    env: { ...process.env, PORT: String(port) },
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  t.after(() => child.kill())
  await new Promise<void>((resolve, reject) => {
    child.stderr.on('data', (chunk) => String(chunk).includes(String(port)) && resolve())
    child.on('exit', () => reject(new Error('server-everything ended')))
  })
  const client = new Client({ name: 'test', version: '1' })
  await client.connect(
    new StreamableHTTPClientTransport(new URL(`http://127.0.0.1:${port}/mcp`)) as never,
  )
  t.after(() => client.close())
  return client
}

for (const [name, connect] of [
  ['stdio', overStdio],
  ['streamable HTTP', overHttp],
] as const)
  test(`an agent uses the official server over ${name}, asking for what is not read-only`, async (t) => {
    const client = await connect(t)
    const tools = await mcpTools(client as McpClient, {
      include: ['echo', 'get-sum'],
      prefix: 'ev_',
    })
    assert.deepEqual(tools.map((x) => x.name).sort(), ['ev_echo', 'ev_get-sum'])
    const provider = scripted([
      {
        calls: [
          { name: 'ev_get-sum', input: { a: 2, b: 40 } },
          { name: 'ev_echo', input: { message: 'hi' } },
        ],
      },
      'done',
    ])
    const agent: Agent = { name: 'a', provider, tools }
    const first = await run(agent, { messages: 'go' })
    const asked = tools.filter((x) => x.requiresApproval).length
    assert.equal(first.pending.length, asked)
    const end = asked > 0 ? await resume(agent, first, approveAll(first)) : first
    assert.match(JSON.stringify(end.state.messages), /42/)
    assert.match(JSON.stringify(end.state.messages), /Echo: hi/)
  })

/** A server of the official SDK, joined in memory. */
async function joined(t: TestContext, define: (server: McpServer) => void, options?: McpOptions) {
  const server = new McpServer({ name: 's', version: '1' })
  define(server)
  const [near, far] = InMemoryTransport.createLinkedPair()
  const client = new Client({ name: 'c', version: '1' })
  await Promise.all([server.connect(far), client.connect(near)])
  t.after(() => client.close())
  return { server, client, tools: await mcpTools(client as McpClient, options) }
}
const text = (said: string, isError = false) => ({
  content: [{ type: 'text' as const, text: said }],
  isError,
})
const context = (signal = new AbortController().signal) => ({ signal, update() {} }) as never

test('annotated read-only runs unasked; with autoApprove only what it names does', async (t) => {
  const define = (server: McpServer) => {
    server.registerTool('read', { annotations: { readOnlyHint: true } }, () => text('r'))
    server.registerTool('write', {}, () => text('w'))
  }
  const flags = (tools: { name: string; requiresApproval: unknown }[]) =>
    Object.fromEntries(tools.map((x) => [x.name, x.requiresApproval]))
  assert.deepEqual(flags((await joined(t, define)).tools), { read: false, write: true })
  assert.deepEqual(flags((await joined(t, define, { autoApprove: ['wr*'] })).tools), {
    read: true,
    write: false,
  })
})

test('globs choose whole names', async (t) => {
  const define = (server: McpServer) => {
    for (const name of ['get_a', 'get_b', 'get_ab', 'xget_a', 'put.a'])
      server.registerTool(name, {}, () => text(''))
  }
  const names = async (options: McpOptions) =>
    (await joined(t, define, options)).tools.map((x) => x.name)
  assert.deepEqual(await names({ include: ['get_?'] }), ['get_a', 'get_b'])
  assert.deepEqual(await names({ include: ['get_[!b]'] }), ['get_a'])
  assert.deepEqual(await names({ exclude: ['*get_*'] }), ['put_a'])
})

test('two names that become one are refused', async (t) => {
  const define = (server: McpServer) => {
    server.registerTool('a.b', {}, () => text(''))
    server.registerTool('a_b', {}, () => text(''))
  }
  await assert.rejects(joined(t, define), /two tools .* become a_b/)
})

test('text, structured content, resources and images become text; an error becomes an error', async (t) => {
  const { tools } = await joined(t, (server) => {
    server.registerTool('structured', { outputSchema: { n: z.number() } }, () => ({
      content: [],
      structuredContent: { n: 1 },
    }))
    server.registerTool('image', {}, () => ({
      content: [
        { type: 'image', mimeType: 'image/png', data: 'AAAA' },
        { type: 'resource', resource: { uri: 'a:b', text: 'inside' } },
      ],
    }))
    server.registerTool('fails', {}, () => text('no such pod', true))
  })
  const of = (name: string) => tools.find((x) => x.name === name)
  assert.equal(await of('structured')?.execute({}, context()), '{"n":1}')
  assert.equal(await of('image')?.execute({}, context()), '[image image/png, 3 bytes]\ninside')
  await assert.rejects(of('fails')?.execute({}, context()) as Promise<unknown>, /no such pod/)
})

test('an input that the server would refuse goes back to the model first', async (t) => {
  const { tools } = await joined(t, (server) =>
    server.registerTool('add', { inputSchema: { n: z.number() } }, ({ n }) => text(String(n))),
  )
  assert.deepEqual(Object.keys((await tools[0]?.validate({ n: 'x' })) ?? {}), ['problem'])
  assert.equal(await tools[0]?.execute({ n: 3 }, context()), '3')
})

test('a changed list is loaded anew, and whoever listened before still hears of it', async (t) => {
  const seen: string[] = []
  const changed = Promise.withResolvers<string[]>()
  const server = new McpServer({ name: 's', version: '1' })
  server.registerTool('one', {}, () => text(''))
  const [near, far] = InMemoryTransport.createLinkedPair()
  const client = new Client({ name: 'c', version: '1' })
  client.fallbackNotificationHandler = async ({ method }) => void seen.push(method)
  await Promise.all([server.connect(far), client.connect(near)])
  t.after(() => client.close())
  await mcpTools(client as McpClient, {
    onChange: (tools) => changed.resolve(tools.map((x) => x.name)),
  })
  server.registerTool('two', {}, () => text(''))
  assert.deepEqual(await changed.promise, ['one', 'two'])
  await new Promise(setImmediate)
  assert.deepEqual(seen, ['notifications/tools/list_changed'])
})

test('a timeout and an abort end the call on the server', async (t) => {
  const stopped: string[] = []
  const { tools } = await joined(
    t,
    (server) =>
      server.registerTool(
        'slow',
        {},
        ({ signal }) =>
          new Promise(() => signal.addEventListener('abort', () => stopped.push('abort'))),
      ),
    { timeoutMs: 50, autoApprove: ['*'] },
  )
  const agent: Agent = {
    name: 'a',
    provider: scripted([{ calls: [{ name: 'slow' }] }, 'end']),
    tools,
  }
  const { state } = await run(agent, { messages: 'go' })
  assert.match(JSON.stringify(state.messages), /slow did not finish within 50 ms/)
  assert.deepEqual(stopped, ['abort'])
})

test('progress is told while the tool runs', async (t) => {
  const { tools } = await joined(t, (server) =>
    server.registerTool('steps', {}, async ({ sendNotification, _meta }) => {
      await sendNotification({
        method: 'notifications/progress',
        params: { progressToken: _meta?.progressToken ?? '', progress: 1, total: 2 },
      })
      return text('ok')
    }),
  )
  const told: string[] = []
  await tools[0]?.execute({}, {
    signal: new AbortController().signal,
    update: (said: string) => told.push(said),
  } as never)
  assert.deepEqual(told, ['steps: 1 of 2'])
})
