// Chat Completions for the shared table and for the tests of OpenAI and Azure: what such a server sends for what a
// model said, and what a body of ours says in neutral words.

import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { LLMock } from '@copilotkit/aimock'
import { type Agent, approveAll, resume, run } from '../../src/index.ts'
import { record, replay } from '../../src/providers/cassette.ts'
import type { Provider } from '../../src/providers/provider.ts'
import { tool } from '../../src/tool.ts'
import type { FakeAnswer } from './fake.ts'
import type { Read, ReadTurn, Said, SaidPart, WireUnderTest } from './table.ts'

// biome-ignore lint/suspicious/noExplicitAny: the vendor's JSON
export type Json = any

/** Events as the wire streams them; a string is sent as it is. */
export function sse(chunks: Json[], end = 'data: [DONE]\n\n'): Buffer[] {
  const lines = chunks.map((chunk) =>
    typeof chunk === 'string' ? chunk : `data: ${JSON.stringify(chunk)}\n\n`,
  )
  return [...lines, end].map((line) => Buffer.from(line))
}

/** A chunk with one piece of the first choice. */
export function delta(fields: Json, finish: string | null = null, more: Json = {}): Json {
  const choices = [{ index: 0, delta: fields, finish_reason: finish }]
  const about = { id: 'chatcmpl-1', object: 'chat.completion.chunk', created: 1, model: 'm-1' }
  return { ...about, choices, ...more }
}

/** A body with one choice. */
export function message(fields: Json, finish: string | null = 'stop', more: Json = {}): Json {
  const choices = [{ index: 0, message: { role: 'assistant', ...fields }, finish_reason: finish }]
  const about = { id: 'chatcmpl-1', object: 'chat.completion', created: 1, model: 'm-1' }
  return { ...about, choices, ...more }
}

export function stream(pieces: Buffer[], more: Partial<FakeAnswer> = {}): FakeAnswer {
  const headers = { 'content-type': 'text/event-stream', 'x-request-id': 'req-1' }
  return { headers, pieces, ...more }
}

export function whole(body: Json, status = 200): FakeAnswer {
  const text = typeof body === 'string' ? body : JSON.stringify(body)
  const headers = { 'content-type': 'application/json', 'x-request-id': 'req-1' }
  return { status, headers, pieces: [text], framing: 'length' }
}

const reasons = {
  stop: 'stop',
  length: 'length',
  tool_call: 'tool_calls',
  content_filter: 'content_filter',
}

function usageOf({ usage }: Said): Json {
  return {
    prompt_tokens: usage.inputTokens,
    completion_tokens: usage.outputTokens,
    total_tokens: usage.inputTokens + usage.outputTokens,
    prompt_tokens_details: {
      cached_tokens: usage.cacheReadTokens,
      cache_write_tokens: usage.cacheWriteTokens,
    },
    completion_tokens_details: { reasoning_tokens: 2 },
  }
}

function callsOf(parts: SaidPart[]): Json[] {
  return parts.filter((part) => 'call' in part)
}

/** `vendor` tags the opaque parts. */
export function chatWire(
  about: Pick<WireUnderTest, 'name' | 'make'>,
  vendor: string,
): WireUnderTest {
  return {
    ...about,
    whole(said) {
      const tool_calls = callsOf(said.parts).map(({ id, call, args }) => ({
        ...(id && { id }),
        type: 'function',
        function: { name: call, arguments: args.join('') },
      }))
      const texts = said.parts.flatMap((part) => ('text' in part ? part.text : []))
      const reasoning = said.parts.flatMap((part) => ('opaque' in part ? [part.opaque] : []))
      const content = texts.length ? texts.join('') : null
      const fields = { content, ...(tool_calls.length && { tool_calls }) }
      const body = message(Object.assign(fields, ...reasoning), reasons[said.finish], {
        usage: usageOf(said),
      })
      return { type: 'application/json', body: JSON.stringify(body) }
    },
    events(said) {
      let next = 0
      const deltas = said.parts.flatMap((part): Json[] => {
        if ('text' in part) return part.text.map((content) => ({ content }))
        if ('opaque' in part) return piecesOf(part.opaque)
        const index = next++
        const begun = {
          index,
          ...(part.id && { id: part.id }),
          type: 'function',
          function: { name: part.call, arguments: '' },
        }
        const pieces = part.args.map((args) => ({ index, function: { arguments: args } }))
        return [begun, ...pieces].map((call) => ({ content: null, tool_calls: [call] }))
      })
      const events = sse([
        delta({ role: 'assistant', content: '', refusal: null }, null, { usage: null }),
        ...deltas.map((fields) => delta(fields, null, { usage: null, obfuscation: 'xY' })),
        delta({}, reasons[said.finish], { usage: null }),
        { ...delta({}), choices: [], usage: usageOf(said) },
      ])
      return { type: 'text/event-stream; charset=utf-8', events }
    },
    // Usage and [DONE]: an end that HTTP vouches for is one without them.
    optionalTail: 2,
    read,
    failure: (_, text) => ({
      body: JSON.stringify({ error: { message: text, type: 'x', param: null, code: null } }),
    }),
    errorEvent: (text) => sse([{ error: { message: text, type: 'server_error' } }])[0] as Buffer,
    ids: true,
    opaques: [
      { reasoning_content: 'Pods first. 🎉' },
      { reasoning: 'Pods first.', reasoning_details: [{ type: 'reasoning.text', text: 'Pods' }] },
      { thinking_blocks: [{ type: 'thinking', thinking: 'Pods first.', signature: 'c2ln+/=' }] },
    ].map((fields) => ({
      said: { opaque: fields },
      part: { type: 'opaque', provider: vendor, data: { message: fields } },
    })),
    marksErrors: true,
    media: [
      'image/png',
      'image/jpeg',
      'image/gif',
      'image/webp',
      'application/pdf',
      'audio/wav',
      'audio/mpeg',
    ],
  }
}

/** Strings in halves, as a stream has them. */
function piecesOf(fields: Json): Json[] {
  return Object.entries(fields).flatMap(([field, value]) => {
    if (typeof value !== 'string') return [{ [field]: value }]
    return [{ [field]: value.slice(0, 4) }, { content: null, [field]: value.slice(4) }]
  })
}

function read(body: Json): Read {
  const turns: ReadTurn[] = []
  const isSystem = ({ role }: Json) => role === 'system' || role === 'developer'
  for (const said of body.messages.filter((said: Json) => !isSystem(said))) {
    const { role, content, tool_calls = [], tool_call_id, ...fields } = said
    const turnRole = role === 'assistant' ? 'assistant' : 'user'
    let turn = turns.at(-1)
    if (turn?.role !== turnRole) {
      turn = { role: turnRole, text: '', calls: [], results: [], opaque: [], files: 0 }
      turns.push(turn)
    }
    if (role === 'tool') {
      const isError = /^Error(:| \()/.test(content)
      turn.results.push({ id: tool_call_id, content, isError })
      continue
    }
    const pieces = Array.isArray(content) ? content : [{ type: 'text', text: content ?? '' }]
    turn.text += pieces.map((piece: Json) => piece.text ?? '').join('')
    turn.files += pieces.filter((piece: Json) => piece.type !== 'text').length
    for (const { id, function: called } of tool_calls) {
      turn.calls.push({ id, name: called.name, input: JSON.parse(called.arguments) })
    }
    if (Object.keys(fields).length) turn.opaque.push({ message: fields })
  }
  const choice = body.tool_choice
  return {
    system: body.messages
      .filter(isSystem)
      .map((said: Json) => said.content.replaceAll('\n\n', '\n'))
      .join('\n'),
    turns,
    tools: (body.tools ?? []).map(({ function: { name, description, parameters } }: Json) => ({
      name,
      description,
      input: parameters,
    })),
    ...(choice && { toolChoice: choice.function ? { name: choice.function.name } : choice }),
    maxTokens: body.max_completion_tokens ?? body.max_tokens,
    temperature: body.temperature,
  }
}

/**
 * List, ask to delete, wait for a person, delete, answer: once whole and once streamed, against the mock and then from
 * the cassette that was recorded there.
 */
export async function approvalConversation(make: (url: string) => Provider): Promise<void> {
  const mock = new LLMock({ port: 0, host: '127.0.0.1' })
  const first = { userMessage: 'Delete the failing pod', turnIndex: 0 }
  mock.on(first, { content: 'I look.', toolCalls: [{ name: 'list_pods', arguments: '{}' }] })
  const call = { name: 'delete_pod', arguments: '{"name":"api-7"}' }
  mock.on({ ...first, turnIndex: 1 }, { toolCalls: [call] })
  mock.on({ ...first, turnIndex: 2 }, { content: 'api-7 is gone.' })
  const folder = await mkdtemp(join(tmpdir(), 'dcaf-chat-'))
  try {
    const file = join(folder, 'approval.json')
    await mock.start()
    await converse(record(make(mock.url), file, { secrets: ['test-key'] })).finally(() =>
      mock.stop(),
    )
    await converse(replay(file))
  } finally {
    await rm(folder, { recursive: true })
  }
}

async function converse(provider: Provider): Promise<void> {
  const deleted: string[] = []
  const listPods = tool({
    name: 'list_pods',
    description: 'Lists pods',
    input: { type: 'object', properties: {} },
    execute: () => 'api-7 failing',
  })
  const deletePod = tool({
    name: 'delete_pod',
    description: 'Deletes a pod',
    input: { type: 'object', properties: { name: { type: 'string' } }, required: ['name'] },
    requiresApproval: true,
    execute: ({ name }: { name: string }) => {
      deleted.push(name)
      return `deleted ${name}`
    },
  })
  const system = 'You operate Kubernetes.'
  const ops: Agent = { name: 'ops', provider, system, tools: [listPods, deletePod] }
  for (const options of [{}, { emit: () => {} }]) {
    const asked = await run(ops, { messages: 'Delete the failing pod' }, options)
    assert.equal(asked.error, undefined)
    assert.equal(asked.stop, 'approval')
    assert.deepEqual(deleted, [])
    const done = await resume(ops, asked, approveAll(asked), options)
    assert.equal(done.stop, 'end')
    assert.equal(done.text, 'api-7 is gone.')
    assert.deepEqual(deleted.splice(0), ['api-7'])
  }
}
