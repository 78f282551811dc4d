// A server on a free port for one test, and the client that posts to it. Everything is closed by `close`.

import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import type { TestContext } from 'node:test'
import { request } from 'undici'
import type { Handler } from '../src/door.ts'
import { type AgentFunction, type ChatOptions, chatHandler } from '../src/http.ts'
import type { Agent } from '../src/index.ts'

// biome-ignore lint/suspicious/noExplicitAny: answers of the wire, read field by field
export type Json = Record<string, any>

export async function serve(
  t: TestContext,
  agent: Agent | AgentFunction,
  options: ChatOptions = {},
) {
  const handler = chatHandler(agent, options)
  return { handler, ...(await serveHandler(t, handler)) }
}

export async function serveHandler(t: TestContext, handler: Handler) {
  const server = createServer(async (req, res) => {
    if (!(await handler(req, res))) res.writeHead(404).end('not ours')
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  t.after(() => {
    server.closeAllConnections()
    return new Promise((resolve) => server.close(resolve))
  })
  const { port } = server.address() as AddressInfo
  const url = `http://127.0.0.1:${port}`
  const post = (path: string, body: unknown, headers: Record<string, string> = {}) =>
    request(url + path, {
      method: 'POST',
      headers: { 'content-type': 'application/json', ...headers },
      body: typeof body === 'string' ? body : JSON.stringify(body),
    })
  return {
    url,
    port,
    server,
    async chat(body: unknown, headers?: Record<string, string>) {
      const res = await post('/api/chat', body, headers)
      const text = await res.body.text()
      return { status: res.statusCode, headers: res.headers, text, body: JSON.parse(text) as Json }
    },
    async stream(body: unknown, headers?: Record<string, string>) {
      const res = await post('/api/chat-stream', body, headers)
      const text = await res.body.text()
      const lines = text
        .split('\n')
        .filter(Boolean)
        .map((l) => JSON.parse(l) as Json)
      return { status: res.statusCode, headers: res.headers, text, lines }
    },
    post,
  }
}

export const u = (content: string, data?: Json, more: Json = {}) => ({
  role: 'user',
  content,
  ...(data && { data }),
  ...more,
})
export const a = (content: string, data?: Json) => ({
  role: 'assistant',
  content,
  ...(data && { data }),
})
