// The limit of a chat endpoint: bare node:http, one model call by hand over undici, the same answers on the wire.

import { createServer } from 'node:http'
import { fromRoot } from '../lib/root.mjs'
import { lookup, model, system } from '../lib/scenario.mjs'

const { Agent, request } = await fromRoot('undici')
// Not the global dispatcher: that one is the undici inside node, another version.
const dispatcher = new Agent()
const { name, description, schema } = lookup
const tools = [{ type: 'function', function: { name, description, parameters: schema } }]

export function serve(base) {
  const url = `${base}/v1/chat/completions`
  const headers = { 'content-type': 'application/json', authorization: 'Bearer test-key' }
  return createServer(async (req, res) => {
    const stream = req.url === '/api/chat-stream'
    let text = ''
    req.setEncoding('utf8')
    for await (const piece of req) text += piece
    const messages = JSON.parse(text).messages.map(({ role, content }) => ({ role, content }))
    messages.unshift({ role: 'system', content: system })
    const body = JSON.stringify(
      stream
        ? { model, messages, tools, stream, stream_options: { include_usage: true } }
        : { model, messages, tools },
    )
    const answer = await request(url, { method: 'POST', headers, body, dispatcher })
    await (stream ? relay(answer.body, res) : whole(answer.body, res))
  })
}

async function whole(body, res) {
  const { choices, usage } = await body.json()
  const { content } = choices[0].message
  res.writeHead(200, { 'content-type': 'application/json' })
  res.end(
    JSON.stringify({
      role: 'assistant',
      content,
      data: { ...lists, session: {} },
      meta_data: meta(usage),
    }),
  )
}

const lists = {
  tool_calls: [],
  executed_tool_calls: [],
  approvals: [],
  executed_approvals: [],
  cmds: [],
  executed_cmds: [],
}

function meta(usage) {
  const { prompt_tokens: input_tokens, completion_tokens: output_tokens } = usage
  return {
    has_pending_approvals: false,
    stop_reason: 'end',
    usage: { input_tokens, output_tokens },
  }
}

async function relay(body, res) {
  res.writeHead(200, { 'content-type': 'application/x-ndjson', 'cache-control': 'no-store' })
  body.setEncoding('utf8')
  let rest = ''
  let last
  for await (const text of body) {
    const lines = (rest + text).split('\n')
    rest = lines.pop()
    let out = ''
    for (const line of lines) {
      if (!line.startsWith('data: ') || line === 'data: [DONE]') continue
      const { choices, usage } = JSON.parse(line.slice(6))
      const piece = choices[0]?.delta.content
      if (piece) out += `${JSON.stringify({ type: 'text_delta', text: piece })}\n`
      if (usage) last = usage
    }
    if (out) res.write(out)
  }
  res.end(
    `${JSON.stringify({ type: 'done', stop_reason: 'end', meta_data: { session: {}, ...meta(last) } })}\n`,
  )
}
