// The limit of a chat endpoint: bare node:http, one model call by hand over undici. It answers with the same words on the
// wire, header by header and field by field (engine.mjs compares them), and checks, limits and knows nothing else.

import { randomUUID } from 'node:crypto'
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
    const { messages: said, thread_id } = JSON.parse(text)
    const messages = said.map(({ role, content }) => ({ role, content }))
    messages.unshift({ role: 'system', content: system })
    const body = JSON.stringify(
      stream
        ? { model, messages, tools, stream, stream_options: { include_usage: true } }
        : { model, messages, tools },
    )
    const answer = await request(url, { method: 'POST', headers, body, dispatcher })
    await (stream ? relay(answer.body, res, { thread_id }) : whole(answer.body, res, { thread_id }))
  })
}

const common = { 'cache-control': 'no-store', 'x-content-type-options': 'nosniff' }

async function whole(body, res, request_context) {
  const { choices, usage } = await body.json()
  const { content } = choices[0].message
  const text = JSON.stringify({
    role: 'assistant',
    content,
    data: { ...lists, url_configs: [], user_file_uploads: [], session: {} },
    meta_data: {
      ...meta(usage, request_context),
      is_complete: true,
      stop_reason: 'end',
    },
    timestamp: new Date().toISOString(),
    user: null,
    agent: { name: 'bench', id: 'bench' },
  })
  res.writeHead(200, {
    'content-type': 'application/json',
    'content-length': Buffer.byteLength(text),
    ...common,
    'x-request-id': randomUUID(),
  })
  res.end(text)
}

const lists = {
  tool_calls: [],
  executed_tool_calls: [],
  approvals: [],
  executed_approvals: [],
  cmds: [],
  executed_cmds: [],
}

function meta({ prompt_tokens, completion_tokens, prompt_tokens_details }, request_context) {
  return {
    run_id: randomUUID(),
    has_pending_approvals: false,
    usage: {
      input_tokens: prompt_tokens,
      output_tokens: completion_tokens,
      cache_read_tokens: prompt_tokens_details.cached_tokens,
      cache_write_tokens: 0,
    },
    request_context,
  }
}

async function relay(body, res, request_context) {
  res.writeHead(200, {
    'content-type': 'application/x-ndjson',
    'x-accel-buffering': 'no',
    ...common,
    'x-request-id': randomUUID(),
  })
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
  const meta_data = { session: {}, ...meta(last, request_context) }
  res.end(`${JSON.stringify({ type: 'done', stop_reason: 'end', meta_data })}\n`)
}
