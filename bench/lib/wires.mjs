// The answers of three vendors as bytes on the socket, HTTP head included: what the mock sends, made once per turn.
// Shapes follow recorded answers of the real services, fields nobody reads included, since a client parses those too.

import { crc32 } from 'node:zlib'
import { inputOf, lookup, model, tokensOf } from './scenario.mjs'

/** Stands in every id until an answer is sent. */
const unnumbered = '0123456789abcdefghij'
let sent = 0

/** As `answer` made it, with a number of its own: ids of real answers differ, and clients may keep messages by them. */
export function numbered({ head, pieces, tail }) {
  const number = Buffer.from(String(++sent).padStart(unnumbered.length, '0'))
  // A paced stream's pieces are numbered when it is their turn: all of them at once would hold up all others.
  const own = (bytes) => {
    const places = placesIn(bytes)
    if (places.length === 0) return bytes
    const copy = Buffer.from(bytes)
    for (const at of places) copy.set(number, at)
    return copy
  }
  return { head: own(head), pieces, tail: tail && own(tail), own }
}

const known = new WeakMap()
function placesIn(bytes) {
  let places = known.get(bytes)
  if (places) return places
  places = []
  for (let at = bytes.indexOf(unnumbered); at >= 0; at = bytes.indexOf(unnumbered, at + 1))
    places.push(at)
  known.set(bytes, places)
  return places
}

/** `{ head, pieces, tail }`: in a paced answer each piece is a write of its own, else all go at once. */
export function answer(wire, stream, scenario, turn) {
  const last = turn * scenario.atOnce >= scenario.calls
  const calls = last
    ? []
    : Array.from({ length: scenario.atOnce }, (_, i) => turn * scenario.atOnce + i)
  const tokens = last ? tokensOf(scenario.tokens) : []
  const id = `${unnumbered}${String(turn).padStart(4, '0')}`
  if (!stream) return whole(JSON.stringify(bodies[wire](id, calls, tokens)))
  const { type, first, pieces, rest } = streams[wire](id, calls, tokens)
  const head = Buffer.from(
    `HTTP/1.1 200 OK\r\ncontent-type: ${type}\r\nx-request-id: req_bench\r\ntransfer-encoding: chunked\r\n\r\n`,
  )
  if (scenario.everyMs) {
    const [begin, ...others] = pieces
    return {
      head: Buffer.concat([head, ...[...first, begin].map(chunk)]),
      pieces: others.map(chunk),
      tail: Buffer.concat([...rest.map(chunk), end]),
    }
  }
  // All at once comes as proxies hand it on: in blocks of 16 KB that end wherever they end.
  const all = Buffer.concat([...first, ...pieces, ...rest])
  const blocks = []
  for (let at = 0; at < all.length; at += 16_000) blocks.push(chunk(all.subarray(at, at + 16_000)))
  return { head: Buffer.concat([head, ...blocks, end]), pieces: [], tail: undefined }
}

function whole(json) {
  const head = `HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: req_bench\r\ncontent-length: ${Buffer.byteLength(json)}\r\n\r\n`
  return { head: Buffer.from(head + json), pieces: [], tail: undefined }
}

const end = Buffer.from('0\r\n\r\n')
function chunk(bytes) {
  return Buffer.concat([
    Buffer.from(`${bytes.length.toString(16)}\r\n`),
    bytes,
    Buffer.from('\r\n'),
  ])
}

const sse = (name, data) => Buffer.from(`${name ? `event: ${name}\n` : ''}data: ${data}\n\n`)
const thirds = (text) => [text.slice(0, 8), text.slice(8, 16), text.slice(16)]
const callId = (n) => `call_${String(n).padStart(6, '0')}`

const bodies = {
  openai: (id, calls, tokens) => ({
    id: `chatcmpl-${id}`,
    object: 'chat.completion',
    created: 1_760_000_000,
    model,
    choices: [
      {
        index: 0,
        message: {
          role: 'assistant',
          content: calls.length ? null : tokens.join(''),
          ...(calls.length && {
            tool_calls: calls.map((n) => ({
              id: callId(n),
              type: 'function',
              function: { name: lookup.name, arguments: JSON.stringify(inputOf(n)) },
            })),
          }),
          refusal: null,
          annotations: [],
        },
        logprobs: null,
        finish_reason: calls.length ? 'tool_calls' : 'stop',
      },
    ],
    usage: openaiUsage,
    service_tier: 'default',
    system_fingerprint: 'fp_0123456789',
  }),
  anthropic: (id, calls, tokens) => ({
    id: `msg_${id}`,
    type: 'message',
    role: 'assistant',
    model,
    content: calls.length
      ? calls.map((n) => ({
          type: 'tool_use',
          id: callId(n),
          name: lookup.name,
          input: inputOf(n),
        }))
      : [{ type: 'text', text: tokens.join('') }],
    stop_reason: calls.length ? 'tool_use' : 'end_turn',
    stop_sequence: null,
    usage: anthropicUsage,
  }),
  bedrock: (_, calls, tokens) => ({
    metrics: { latencyMs: 400 },
    output: {
      message: {
        role: 'assistant',
        content: calls.length
          ? calls.map((n) => ({
              toolUse: { toolUseId: callId(n), name: lookup.name, input: inputOf(n) },
            }))
          : [{ text: tokens.join('') }],
      },
    },
    stopReason: calls.length ? 'tool_use' : 'end_turn',
    usage: bedrockUsage,
  }),
}

const openaiUsage = {
  prompt_tokens: 220,
  completion_tokens: 30,
  total_tokens: 250,
  prompt_tokens_details: { cached_tokens: 0, audio_tokens: 0 },
  completion_tokens_details: { reasoning_tokens: 0, audio_tokens: 0 },
}
const anthropicUsage = {
  input_tokens: 220,
  cache_creation_input_tokens: 0,
  cache_read_input_tokens: 0,
  output_tokens: 30,
  service_tier: 'standard',
}
const bedrockUsage = { inputTokens: 220, outputTokens: 30, totalTokens: 250 }

const streams = {
  openai(id, calls, tokens) {
    const event = (delta, finish = null) =>
      sse(
        '',
        JSON.stringify({
          id: `chatcmpl-${id}`,
          object: 'chat.completion.chunk',
          created: 1_760_000_000,
          model,
          service_tier: 'default',
          system_fingerprint: 'fp_0123456789',
          choices: [{ index: 0, delta, logprobs: null, finish_reason: finish }],
          usage: null,
          obfuscation: 'aB3dE5',
        }),
      )
    const call = (n, index) => [
      event({
        tool_calls: [
          {
            index,
            id: callId(n),
            type: 'function',
            function: { name: lookup.name, arguments: '' },
          },
        ],
      }),
      ...thirds(JSON.stringify(inputOf(n))).map((piece) =>
        event({ tool_calls: [{ index, function: { arguments: piece } }] }),
      ),
    ]
    const usage = {
      id: `chatcmpl-${id}`,
      object: 'chat.completion.chunk',
      created: 1_760_000_000,
      model,
      choices: [],
      usage: openaiUsage,
    }
    return {
      type: 'text/event-stream; charset=utf-8',
      first: [event({ role: 'assistant', content: calls.length ? null : '', refusal: null })],
      pieces: calls.length ? calls.flatMap(call) : tokens.map((token) => event({ content: token })),
      rest: [
        event({}, calls.length ? 'tool_calls' : 'stop'),
        sse('', JSON.stringify(usage)),
        sse('', '[DONE]'),
      ],
    }
  },

  anthropic(id, calls, tokens) {
    const event = (data) => sse(data.type, JSON.stringify(data))
    const delta = (index, delta) => event({ type: 'content_block_delta', index, delta })
    const stop = (index) => event({ type: 'content_block_stop', index })
    const call = (n, index) => [
      event({
        type: 'content_block_start',
        index,
        content_block: { type: 'tool_use', id: callId(n), name: lookup.name, input: {} },
      }),
      ...['', ...thirds(JSON.stringify(inputOf(n)))].map((partial_json) =>
        delta(index, { type: 'input_json_delta', partial_json }),
      ),
      stop(index),
    ]
    const message = {
      id: `msg_${id}`,
      type: 'message',
      role: 'assistant',
      model,
      content: [],
      stop_reason: null,
      stop_sequence: null,
      usage: { ...anthropicUsage, output_tokens: 1 },
    }
    const text = event({
      type: 'content_block_start',
      index: 0,
      content_block: { type: 'text', text: '' },
    })
    return {
      type: 'text/event-stream; charset=utf-8',
      first: [
        event({ type: 'message_start', message }),
        ...(calls.length ? [] : [text]),
        event({ type: 'ping' }),
      ],
      pieces: calls.length
        ? calls.flatMap(call)
        : tokens.map((token) => delta(0, { type: 'text_delta', text: token })),
      rest: [
        ...(calls.length ? [] : [stop(0)]),
        event({
          type: 'message_delta',
          delta: { stop_reason: calls.length ? 'tool_use' : 'end_turn', stop_sequence: null },
          usage: anthropicUsage,
        }),
        event({ type: 'message_stop' }),
      ],
    }
  },

  bedrock(_, calls, tokens) {
    const p = 'abcdefghijklmnop'
    const delta = (contentBlockIndex, delta) =>
      frame('contentBlockDelta', { contentBlockIndex, delta, p })
    const stop = (contentBlockIndex) => frame('contentBlockStop', { contentBlockIndex, p })
    const call = (n, contentBlockIndex) => [
      frame('contentBlockStart', {
        contentBlockIndex,
        start: { toolUse: { name: lookup.name, toolUseId: callId(n) } },
        p,
      }),
      ...['', ...thirds(JSON.stringify(inputOf(n)))].map((input) =>
        delta(contentBlockIndex, { toolUse: { input } }),
      ),
      stop(contentBlockIndex),
    ]
    return {
      type: 'application/vnd.amazon.eventstream',
      first: [frame('messageStart', { p, role: 'assistant' })],
      pieces: calls.length ? calls.flatMap(call) : tokens.map((text) => delta(0, { text })),
      rest: [
        ...(calls.length ? [] : [stop(0)]),
        frame('messageStop', { p, stopReason: calls.length ? 'tool_use' : 'end_turn' }),
        frame('metadata', { metrics: { latencyMs: 400 }, p, usage: bedrockUsage }),
      ],
    }
  },
}

/** One message of https://smithy.io/2.0/aws/amazon-eventstream.html */
function frame(type, payload) {
  const header = (name, value) => {
    const bytes = Buffer.alloc(4 + name.length + value.length)
    bytes.writeUInt8(name.length, 0)
    bytes.write(name, 1)
    bytes.writeUInt8(7, 1 + name.length)
    bytes.writeUInt16BE(value.length, 2 + name.length)
    bytes.write(value, 4 + name.length)
    return bytes
  }
  const headers = Buffer.concat([
    header(':event-type', type),
    header(':content-type', 'application/json'),
    header(':message-type', 'event'),
  ])
  const body = Buffer.from(JSON.stringify(payload))
  const bytes = Buffer.alloc(12 + headers.length + body.length + 4)
  bytes.writeUInt32BE(bytes.length, 0)
  bytes.writeUInt32BE(headers.length, 4)
  bytes.writeUInt32BE(crc32(bytes.subarray(0, 8)), 8)
  headers.copy(bytes, 12)
  body.copy(bytes, 12 + headers.length)
  bytes.writeUInt32BE(crc32(bytes.subarray(0, bytes.length - 4)), bytes.length - 4)
  return bytes
}
