// The tools of an MCP server as tools of ours, over a connected client of the official SDK. What
// the server does not call read-only asks a person. The server is in memory here;
// StdioClientTransport and StreamableHTTPClientTransport reach real ones in the same way.

import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { InMemoryTransport } from '@modelcontextprotocol/sdk/inMemory.js'
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js'
import * as z from 'zod'
import { mcpTools } from '../src/bridges/mcp.ts'
import { approveAll, resume, run } from '../src/index.ts'
import { scripted } from '../src/providers/scripted.ts'

const server = new McpServer({ name: 'files', version: '1.0.0' })
const inputSchema = { path: z.string() }
server.registerTool(
  'read',
  { description: 'Read a file', inputSchema, annotations: { readOnlyHint: true } },
  ({ path }) => ({ content: [{ type: 'text', text: `${path}: 3 lines` }] }),
)
server.registerTool('remove', { description: 'Remove a file', inputSchema }, ({ path }) => ({
  content: [{ type: 'text', text: `${path} removed` }],
}))
server.registerTool('format_disk', { description: 'Format the disk' }, () => ({ content: [] }))

const [here, there] = InMemoryTransport.createLinkedPair()
const client = new Client({ name: 'dcaf', version: '1.0.0' })
await Promise.all([server.connect(there), client.connect(here)])

const tools = await mcpTools(client, { exclude: ['format_*'], prefix: 'files_' })
for (const { name, requiresApproval } of tools) console.log(name, 'asks:', requiresApproval)

const input = { path: 'old.log' }
const calls = [
  { name: 'files_read', input },
  { name: 'files_remove', input },
]
const agent = { name: 'files', provider: scripted([{ calls }, 'old.log is gone.']), tools }

const asked = await run(agent, { messages: 'Read and remove old.log' })
console.log('ran unasked:', asked.executed[0]?.output)
const done = await resume(agent, asked, approveAll(asked))
console.log('approved:', done.executed[0]?.output)
console.log(done.text)
await client.close()

// Prints:
//
// files_read asks: false
// files_remove asks: true
// ran unasked: old.log: 3 lines
// approved: old.log removed
// old.log is gone.
