// Bedrock's wire for the fake vendor: frames of `application/vnd.amazon.eventstream` made by hand, so that they can be
// made wrong, and the table's adapter. https://smithy.io/2.0/aws/amazon-eventstream.html

import { createRequire } from 'node:module'
import { crc32 } from 'node:zlib'
import { BedrockRuntimeClient } from '@aws-sdk/client-bedrock-runtime'
import { bedrock } from '../../src/providers/bedrock.ts'
import type { FinishReason, Usage } from '../../src/providers/provider.ts'
import type { Read, ReadTurn, Said, SaidPart, WireUnderTest } from './table.ts'

// Whatever the machine has of AWS, a test sees none of it and asks no metadata service.
process.env.AWS_EC2_METADATA_DISABLED = 'true'
process.env.AWS_CONFIG_FILE = '/nonexistent/config'
process.env.AWS_SHARED_CREDENTIALS_FILE = '/nonexistent/credentials'
for (const name of ['PROFILE', 'DEFAULT_REGION', 'BEARER_TOKEN_BEDROCK', 'SESSION_TOKEN']) {
  delete process.env[`AWS_${name}`]
}
process.env.AWS_REGION = 'eu-central-1'
process.env.AWS_ACCESS_KEY_ID = 'TESTKEYID'
process.env.AWS_SECRET_ACCESS_KEY = 'test-secret'

export const eventStream = 'application/vnd.amazon.eventstream'
export const model = 'eu.anthropic.claude-sonnet-4-5-20250929-v1:0'

// The SDK's own HTTP/1.1 handler, as the SDK finds it: only its own tests depend on it.
const { NodeHttpHandler } = createRequire(import.meta.resolve('@aws-sdk/client-bedrock-runtime'))(
  '@smithy/node-http-handler',
)

/** A client as the SDK's documentation makes one, with the SDK's own network and reader of streams. */
export function clientOf(endpoint: string, more: object = {}): BedrockRuntimeClient {
  return new BedrockRuntimeClient({
    region: 'eu-central-1',
    endpoint,
    credentials: { accessKeyId: 'TESTKEYID', secretAccessKey: 'test-secret' },
    requestHandler: new NodeHttpHandler(),
    ...more,
  })
}

/** One message: string headers, then the body. */
export function frame(headers: Record<string, string>, body: string): Buffer {
  const encoded = Object.entries(headers).map(([name, value]) => {
    const text = Buffer.from(value)
    const length = Buffer.from([7, text.length >> 8, text.length & 255])
    return Buffer.concat([Buffer.from([name.length]), Buffer.from(name), length, text])
  })
  return frameOf(Buffer.concat(encoded), Buffer.from(body))
}

export function frameOf(headers: Buffer, body: Buffer): Buffer {
  const message = Buffer.alloc(16 + headers.length + body.length)
  message.writeUInt32BE(message.length, 0)
  message.writeUInt32BE(headers.length, 4)
  message.writeUInt32BE(crc32(message.subarray(0, 8)), 8)
  headers.copy(message, 12)
  body.copy(message, 12 + headers.length)
  message.writeUInt32BE(crc32(message.subarray(0, -4)), message.length - 4)
  return message
}

/** As Bedrock sends it, with the padding `p` that hides the length of a token. */
export function event(type: string, body: object): Buffer {
  const headers = {
    ':event-type': type,
    ':content-type': 'application/json',
    ':message-type': 'event',
  }
  return frame(headers, JSON.stringify({ ...body, p: 'abcdefghijklmnopqrstuvwxyz'.slice(0, 9) }))
}

export function exception(type: string, message: string): Buffer {
  const headers = {
    ':exception-type': type,
    ':content-type': 'application/json',
    ':message-type': 'exception',
  }
  return frame(headers, JSON.stringify({ message }))
}

const words: Record<FinishReason, string> = {
  stop: 'end_turn',
  length: 'max_tokens',
  tool_call: 'tool_use',
  content_filter: 'content_filtered',
}

function usageOf(usage: Usage): object {
  const inputTokens = usage.inputTokens - usage.cacheReadTokens - usage.cacheWriteTokens
  const cache = {
    cacheReadInputTokens: usage.cacheReadTokens,
    cacheWriteInputTokens: usage.cacheWriteTokens,
  }
  const totalTokens = usage.inputTokens + usage.outputTokens
  return { inputTokens, outputTokens: usage.outputTokens, totalTokens, ...cache }
}

// biome-ignore lint/suspicious/noExplicitAny: the vendor's JSON
type Json = any

function blockOf(part: SaidPart): Json {
  if ('text' in part) return { text: part.text.join('') }
  if ('opaque' in part) return part.opaque
  const input = parsed(part.args.join(''))
  return { toolUse: { toolUseId: part.id, name: part.call, ...(input !== undefined && { input }) } }
}

/** What the service makes of arguments that stop in the middle: an object with what there is. */
function parsed(args: string): unknown {
  if (args.trim() === '') return args === '' ? undefined : {}
  try {
    return JSON.parse(args)
  } catch {
    return { a: 1 }
  }
}

/** Text has no start; a call's input begins with an empty piece; reasoning comes text first, signature last. */
function eventsOf(part: SaidPart, contentBlockIndex: number): Buffer[] {
  const delta = (body: Json) => event('contentBlockDelta', { contentBlockIndex, delta: body })
  const stop = event('contentBlockStop', { contentBlockIndex })
  if ('text' in part) return [...part.text.map((text) => delta({ text })), stop]
  if ('call' in part) {
    const toolUse = { toolUseId: part.id, name: part.call, type: 'tool_use' }
    const start = event('contentBlockStart', { contentBlockIndex, start: { toolUse } })
    const pieces = part.args.map((input) => delta({ toolUse: { input } }))
    return [start, ...pieces, stop]
  }
  const { reasoningContent: thought } = part.opaque as Json
  if (thought.redactedContent) {
    return [delta({ reasoningContent: { redactedContent: thought.redactedContent } }), stop]
  }
  const { text, signature } = thought.reasoningText
  const half = text.length >> 1
  const pieces: Json[] = [{ text: text.slice(0, half) }, { text: text.slice(half) }, { signature }]
  return [...pieces.map((piece) => delta({ reasoningContent: piece })), stop]
}

export function streamOf(said: Said): Buffer[] {
  return [
    event('messageStart', { role: 'assistant' }),
    ...said.parts.flatMap(eventsOf),
    event('messageStop', { stopReason: words[said.finish] }),
    event('metadata', { usage: usageOf(said.usage), metrics: { latencyMs: 12 } }),
  ]
}

export function answerOf(said: Said): string {
  return JSON.stringify({
    metrics: { latencyMs: 12 },
    output: { message: { role: 'assistant', content: said.parts.map(blockOf) } },
    stopReason: words[said.finish],
    usage: usageOf(said.usage),
  })
}

function readTurn({ role, content }: Json): ReadTurn {
  const of = (kind: string): Json[] => content.filter((block: Json) => kind in block)
  return {
    role,
    text: of('text')
      .map((block) => block.text)
      .join('\n'),
    calls: of('toolUse').map(({ toolUse: { toolUseId: id, name, input } }) => ({
      id,
      name,
      input,
    })),
    results: of('toolResult').map(({ toolResult: { toolUseId: id, content, status } }) => ({
      id,
      content: content.map((piece: Json) => piece.text).join(''),
      isError: status === 'error',
    })),
    opaque: of('reasoningContent'),
    files: of('image').length + of('document').length,
  }
}

function read(body: Json): Read {
  const choice = body.toolConfig?.toolChoice?.tool
  return {
    system: (body.system ?? []).flatMap((block: Json) => block.text ?? []).join('\n'),
    turns: body.messages.map(readTurn),
    tools: (body.toolConfig?.tools ?? []).flatMap(({ toolSpec }: Json) =>
      toolSpec
        ? {
            name: toolSpec.name,
            description: toolSpec.description,
            input: toolSpec.inputSchema.json,
          }
        : [],
    ),
    ...(choice && { toolChoice: { name: choice.name } }),
    ...body.inferenceConfig,
  }
}

const thought = {
  reasoningContent: { reasoningText: { text: 'I think — żółć 🎉', signature: 'EqQBCgIYAhIk+/=' } },
}
const redacted = {
  reasoningContent: { redactedContent: Buffer.from([0, 255, 128, 10, 13, 7]).toString('base64') },
}

export const bedrockWire: WireUnderTest = {
  name: 'aws.bedrock',
  make({ url, key, timeouts, retries, clock }) {
    process.env.AWS_SESSION_TOKEN = key
    return bedrock({
      model,
      endpoint: url,
      ...(timeouts && { timeouts }),
      ...(retries !== undefined && { retries }),
      ...(clock && { clock }),
    })
  },
  whole: (said) => ({ type: 'application/json', body: answerOf(said) }),
  events: (said) => ({ type: eventStream, events: streamOf(said) }),
  read,
  failure: (_, message) => ({ body: JSON.stringify({ message }) }),
  errorEvent: (message) => exception('throttlingException', message),
  ids: true,
  opaques: [thought, redacted].map((data) => ({
    said: { opaque: data },
    part: { type: 'opaque', provider: 'aws.bedrock', data },
  })),
  marksErrors: true,
  media: [
    'image/png',
    'image/jpeg',
    'image/gif',
    'image/webp',
    'application/pdf',
    'text/csv',
    'text/markdown',
    'text/plain; charset=utf-8',
    'application/vnd.openxmlformats-officedocument.wordprocessingml.document',
  ],
  optionalTail: 1,
  malformed: broken(),
  choosesTools: false,
}

/** Frames that are wrong in every way a frame can be. */
function broken(): Buffer[] {
  const good = event('contentBlockDelta', { contentBlockIndex: 0, delta: { text: 'x' } })
  const flipped = (at: number) => {
    const bytes = Buffer.from(good)
    bytes[at] = (bytes[at] as number) ^ 1
    return bytes
  }
  const resized = (at: number, value: number) => {
    const bytes = Buffer.from(good)
    bytes.writeUInt32BE(value, at)
    bytes.writeUInt32BE(crc32(bytes.subarray(0, 8)), 8)
    bytes.writeUInt32BE(crc32(bytes.subarray(0, -4)), bytes.length - 4)
    return bytes
  }
  const json = (text: string) =>
    frame({ ':event-type': 'contentBlockDelta', ':message-type': 'event' }, text)
  const body = Buffer.from('{}')
  return [
    flipped(good.length - 1), // the message's checksum
    flipped(8), // the prelude's
    flipped(20),
    flipped(good.length - 10),
    resized(0, 0),
    resized(0, 15),
    resized(0, 0xffffffff),
    resized(0, good.length - 1),
    resized(4, good.length),
    resized(4, 0xffffffff),
    frameOf(Buffer.from([200, 65]), body), // a name longer than the headers
    frameOf(Buffer.from([1, 65, 7, 255, 255]), body), // a value longer than the headers
    frameOf(Buffer.from([1, 65, 99]), body), // no such type
    frameOf(Buffer.alloc(0), body), // no headers at all
    frame({ ':message-type': 'event' }, '{}'),
    frame({ ':message-type': 'exception' }, 'no JSON'),
    frame({ ':message-type': 'error', ':error-code': 'BadThing', ':error-message': 'so bad' }, ''),
    frame({ ':message-type': 'news', ':event-type': 'messageStop' }, '{}'),
    event('kindToCome', { x: [{}] }),
    frame({ ':event-type': 'kindToCome', ':message-type': 'event' }, 'no JSON'),
    ...['{bad', '[]', 'null', '42', '"x"', '{}', '', '{"delta":null}', '{"delta":{"text":7}}'].map(
      json,
    ),
    event('contentBlockDelta', { contentBlockIndex: 9, delta: { toolUse: { input: '{}' } } }),
    event('contentBlockDelta', { contentBlockIndex: 0, delta: { toolUse: { input: 7 } } }),
    event('contentBlockStart', { contentBlockIndex: 0, start: { toolUse: null } }),
    event('contentBlockStart', { contentBlockIndex: 1, start: { toolUse: { name: 7 } } }),
    event('messageStop', { stopReason: null }),
    event('messageStop', { stopReason: 7 }),
    event('metadata', { usage: 'none' }),
  ]
}
