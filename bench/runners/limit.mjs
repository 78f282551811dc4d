// The limit: what somebody who knows the wire writes by hand, with nothing between them and undici. No retries, no
// clocks, no validation, no approvals. Bedrock: the AWS SDK by hand over its keep-alive HTTP/1.1 handler.

import { Agent as HttpAgent } from 'node:http'
import { fromRoot } from '../lib/root.mjs'
import { lookup, model, prompt, system } from '../lib/scenario.mjs'

export const name = 'limit'
export const wires = ['openai', 'anthropic', 'bedrock']

export function create({ wire, base, stream, execute, onToken }) {
  return { openai, anthropic, bedrock }[wire]({ base, stream, execute, onToken })
}

/** Its own dispatcher: the global one is the undici inside node, another version. */
async function poster() {
  const { Agent, request } = await fromRoot('undici')
  const dispatcher = new Agent()
  return (url, headers, body) => post(request, dispatcher, url, headers, body)
}

async function post(request, dispatcher, url, headers, body) {
  const answer = await request(url, {
    dispatcher,
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body: JSON.stringify(body),
  })
  if (answer.statusCode === 200) return answer.body
  throw new Error(`${answer.statusCode}: ${await answer.body.text()}`)
}

async function readEvents(body, each) {
  body.setEncoding('utf8')
  let rest = ''
  for await (const text of body) {
    const lines = (rest + text).split('\n')
    rest = lines.pop()
    for (const line of lines)
      if (line.startsWith('data: ') && line !== 'data: [DONE]') each(JSON.parse(line.slice(6)))
  }
}

async function openai({ base, stream, execute, onToken }) {
  const send = await poster()
  const url = `${base}/v1/chat/completions`
  const headers = { authorization: 'Bearer test-key' }
  const { name, description, schema } = lookup
  const tools = [{ type: 'function', function: { name, description, parameters: schema } }]

  async function reply(messages) {
    if (!stream) {
      const json = await (await send(url, headers, { model, messages, tools })).json()
      return json.choices[0].message
    }
    const body = { model, messages, tools, stream: true, stream_options: { include_usage: true } }
    const message = { role: 'assistant', content: '' }
    await readEvents(await send(url, headers, body), ({ choices }) => {
      const delta = choices[0]?.delta
      if (delta?.content) {
        message.content += delta.content
        onToken(delta.content)
      }
      for (const { index, id, function: f } of delta?.tool_calls ?? []) {
        message.tool_calls ??= []
        if (id) message.tool_calls[index] = { id, type: 'function', function: f }
        else message.tool_calls[index].function.arguments += f.arguments
      }
    })
    return message
  }

  return async () => {
    const messages = [
      { role: 'system', content: system },
      { role: 'user', content: prompt },
    ]
    for (;;) {
      const message = await reply(messages)
      if (!message.tool_calls) return message.content
      const results = await Promise.all(
        message.tool_calls.map(async ({ id, function: f }) => ({
          role: 'tool',
          tool_call_id: id,
          content: await execute(JSON.parse(f.arguments)),
        })),
      )
      messages.push(message, ...results)
    }
  }
}

async function anthropic({ base, stream, execute, onToken }) {
  const send = await poster()
  const url = `${base}/v1/messages`
  const headers = { 'x-api-key': 'test-key', 'anthropic-version': '2023-06-01' }
  const { name, description, schema } = lookup
  const tools = [{ name, description, input_schema: schema }]
  const common = { model, max_tokens: 4096, system, tools }

  async function reply(messages) {
    if (!stream) return (await (await send(url, headers, { ...common, messages })).json()).content
    const blocks = []
    const body = { ...common, messages, stream: true }
    await readEvents(await send(url, headers, body), (event) => {
      const { type, index, delta } = event
      if (type === 'content_block_start') blocks[index] = { ...event.content_block, json: '' }
      else if (type === 'content_block_delta' && delta.type === 'text_delta') {
        blocks[index].text += delta.text
        onToken(delta.text)
      } else if (type === 'content_block_delta') blocks[index].json += delta.partial_json
      else if (type === 'content_block_stop') {
        const { json, ...block } = blocks[index]
        blocks[index] = json ? { ...block, input: JSON.parse(json) } : block
      }
    })
    return blocks
  }

  return async () => {
    const messages = [{ role: 'user', content: prompt }]
    for (;;) {
      const content = await reply(messages)
      const calls = content.filter((block) => block.type === 'tool_use')
      if (calls.length === 0) return content.map((block) => block.text).join('')
      const results = await Promise.all(
        calls.map(async ({ id, input }) => ({
          type: 'tool_result',
          tool_use_id: id,
          content: await execute(input),
        })),
      )
      messages.push({ role: 'assistant', content }, { role: 'user', content: results })
    }
  }
}

async function bedrock({ base, stream, execute, onToken }) {
  const sdk = await fromRoot('@aws-sdk/client-bedrock-runtime')
  const { NodeHttpHandler } = await fromRoot('@smithy/node-http-handler')
  const client = new sdk.BedrockRuntimeClient({
    region: 'us-east-1',
    endpoint: base,
    credentials: { accessKeyId: 'test', secretAccessKey: 'test-key' },
    maxAttempts: 1,
    requestHandler: new NodeHttpHandler({
      httpAgent: new HttpAgent({ keepAlive: true, maxSockets: 2000 }),
    }),
  })
  const { name, description, schema } = lookup
  const tools = [{ toolSpec: { name, description, inputSchema: { json: schema } } }]
  const common = { modelId: model, system: [{ text: system }], toolConfig: { tools } }

  async function reply(messages) {
    if (!stream)
      return (await client.send(new sdk.ConverseCommand({ ...common, messages }))).output.message
    const content = []
    const output = await client.send(new sdk.ConverseStreamCommand({ ...common, messages }))
    for await (const event of output.stream) {
      const { contentBlockStart: begin, contentBlockDelta: piece } = event
      if (begin)
        content[begin.contentBlockIndex] = { toolUse: { ...begin.start.toolUse, input: '' } }
      if (!piece) continue
      const { contentBlockIndex: index, delta } = piece
      if (delta.toolUse) content[index].toolUse.input += delta.toolUse.input
      else {
        content[index] ??= { text: '' }
        content[index].text += delta.text
        onToken(delta.text)
      }
    }
    for (const { toolUse } of content) if (toolUse) toolUse.input = JSON.parse(toolUse.input)
    return { role: 'assistant', content }
  }

  return async () => {
    const messages = [{ role: 'user', content: [{ text: prompt }] }]
    for (;;) {
      const message = await reply(messages)
      const calls = message.content.filter((block) => block.toolUse)
      if (calls.length === 0) return message.content.map((block) => block.text).join('')
      const results = await Promise.all(
        calls.map(async ({ toolUse: { toolUseId, input } }) => ({
          toolResult: { toolUseId, content: [{ text: await execute(input) }] },
        })),
      )
      messages.push(message, { role: 'user', content: results })
    }
  }
}
