// The desk's own routes beside the handler: the files of public/, and GET /tools. Plain node:http. A request can
// name only what was in the folder at the start: no path is ever made from a URL.

import { createHash } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { extname } from 'node:path'
import type { Agent } from '../../src/index.ts'

const types: Record<string, string> = {
  '.html': 'text/html; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.svg': 'image/svg+xml',
}

const headers = {
  'cache-control': 'no-cache',
  'content-security-policy':
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; " +
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  'cross-origin-opener-policy': 'same-origin',
  'cross-origin-resource-policy': 'same-origin',
  'referrer-policy': 'no-referrer',
  'x-content-type-options': 'nosniff',
}

/** GET /tools gives `{ agent: { name, description, provider, model }, tools: [{ name, description, input, ... }] }`. */
export function pages({ name, description, provider, tools = [] }: Agent) {
  const folder = new URL('public/', import.meta.url)
  const answers = new Map<string, { type: string; body: Buffer; etag: string }>()
  const serve = (path: string, type: string, body: Buffer) => {
    const etag = `"${createHash('sha256').update(body).digest('base64url').slice(0, 22)}"`
    answers.set(path, { type, body, etag })
  }
  for (const name of readdirSync(folder)) {
    const type = types[extname(name)]
    if (type) serve(`/${name}`, type, readFileSync(new URL(name, folder)))
  }
  const index = answers.get('/index.html')
  if (index) answers.set('/', index)
  const shown = tools.map(({ name, description, input, editable, requiresApproval }) => {
    return { name, description, input, editable, requires_approval: requiresApproval !== false }
  })
  const agent = { name, description, provider: provider.name, model: provider.model }
  const told = JSON.stringify({ agent, tools: shown })
  serve('/tools', 'application/json; charset=utf-8', Buffer.from(told))

  /** False, and nothing touched, for a path that is not one of its own. */
  return (req: IncomingMessage, res: ServerResponse): boolean => {
    const answer = answers.get((req.url ?? '').split('?', 1)[0] ?? '')
    if (!answer) return false
    if (req.method !== 'GET' && req.method !== 'HEAD') {
      res.writeHead(405, { allow: 'GET, HEAD', 'content-length': 0 }).end()
      return true
    }
    const { type, body, etag } = answer
    if (req.headers['if-none-match'] === etag) {
      res.writeHead(304, { ...headers, etag }).end()
      return true
    }
    res.writeHead(200, { ...headers, etag, 'content-type': type, 'content-length': body.length })
    res.end(req.method === 'HEAD' ? undefined : body)
    return true
  }
}
