// Gemini's wire: the shared table, and what only this wire does. The official SDK reads the same bytes.

import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import {
  type Content,
  FunctionCallingConfigMode,
  type GenerateContentConfig,
  type GenerationConfig,
  GoogleGenAI,
} from '@google/genai'
import type { Dispatcher } from 'undici'
import { type GoogleOptions, google } from '../../src/providers/google.ts'
import type { Message, ModelReply, Part } from '../../src/providers/provider.ts'
import type { ProviderError } from '../../src/providers/wire.ts'
import { approvalConversation } from './chat.ts'
import { type FakeAnswer, type FakeVendor, fakeVendor } from './fake.ts'
import {
  conformance,
  instant,
  outcomeOf,
  type Read,
  type ReadTurn,
  request,
  type Said,
  user,
  type WireUnderTest,
} from './table.ts'

// biome-ignore lint/suspicious/noExplicitAny: the vendor's JSON
type Json = any

/** As the service sends them: CRLF, and no name. */
function sse(...events: Json[]): Buffer[] {
  return events.map((event) => Buffer.from(`data: ${JSON.stringify(event)}\r\n\r\n`))
}

const reasons = { stop: 'STOP', length: 'MAX_TOKENS', tool_call: 'STOP', content_filter: 'SAFETY' }

/** Thoughts are 2 of the output tokens; what is zero is absent. */
function usageOf({ usage }: Said): Json {
  return {
    promptTokenCount: usage.inputTokens,
    candidatesTokenCount: usage.outputTokens - 2,
    thoughtsTokenCount: 2,
    totalTokenCount: usage.inputTokens + usage.outputTokens,
    ...(usage.cacheReadTokens ? { cachedContentTokenCount: usage.cacheReadTokens } : {}),
  }
}

function chunk(parts: Json[], more: Json = {}, usageMetadata?: Json): Json {
  const { finishReason } = more
  const candidate = { content: { parts, role: 'model' }, ...(finishReason ? more : {}), index: 0 }
  const about = { modelVersion: 'gemini-test', responseId: 'r1' }
  return { candidates: [candidate], ...(usageMetadata ? { usageMetadata } : {}), ...about }
}

function partsOf(part: Said['parts'][number]): Json[] {
  if ('text' in part) return part.text.map((text) => ({ text }))
  if ('opaque' in part) return [part.opaque]
  const json = part.args.join('').trim()
  const args = json === '' ? {} : { args: JSON.parse(json) }
  return [{ functionCall: { name: part.call, ...args } }]
}

const wire: WireUnderTest = {
  name: 'gcp.gemini',
  make: ({ url, key, ...options }) =>
    google({ model: 'gemini-2.5-flash', apiKey: key, baseUrl: url, ...options }),
  whole(said) {
    const parts = said.parts.flatMap((part) =>
      'text' in part ? [{ text: part.text.join('') }] : partsOf(part),
    )
    const body = chunk(parts, { finishReason: reasons[said.finish] }, usageOf(said))
    return { type: 'application/json; charset=UTF-8', body: JSON.stringify(body) }
  },
  events(said) {
    const counted = { promptTokenCount: said.usage.inputTokens }
    const chunks = said.parts.flatMap(partsOf).map((part) => chunk([part], {}, counted))
    const last = chunk([{ text: '' }], { finishReason: reasons[said.finish] }, usageOf(said))
    const events = sse(...chunks, last)
    // A CR ends a line, so the very last byte adds nothing.
    const end = events.pop() as Buffer
    return { type: 'text/event-stream', events: [...events, end.subarray(0, -1), end.subarray(-1)] }
  },
  optionalTail: 1,
  read: (body) => read(body as Json),
  failure: (code, message) => ({
    body: JSON.stringify({ error: { code, message, status: 'SOME_STATUS' } }),
  }),
  errorEvent: (message) =>
    sse({ error: { code: 503, message, status: 'UNAVAILABLE' } })[0] as Buffer,
  ids: false,
  opaques: [
    { text: 'Pods first. 🎉', thought: true },
    { text: 'Signed.', thought: true, thoughtSignature: 'c2ln+/=' },
    { text: '', thoughtSignature: 'only' },
    { executableCode: { language: 'PYTHON', code: '1' }, thoughtSignature: 'x' },
  ].map((data) => ({
    said: { opaque: data },
    part: { type: 'opaque', provider: 'gcp.gemini', data },
  })),
  marksErrors: true,
  media: [
    'image/png',
    'image/jpeg',
    'image/webp',
    'application/pdf',
    'audio/wav',
    'video/mp4',
    'text/plain',
  ],
  halfCall: undefined,
}

function read(body: Json): Read {
  const turns: ReadTurn[] = body.contents.map(({ role, parts }: Json) => {
    const of = (kind: string) => parts.filter((part: Json) => part[kind] !== undefined)
    const texts = of('text').filter((part: Json) => Object.keys(part).length === 1)
    const known = ['inlineData', 'functionCall', 'functionResponse']
    return {
      role: role === 'model' ? 'assistant' : 'user',
      text: texts.map((part: Json) => part.text).join('\n'),
      calls: of('functionCall').map(({ functionCall: { id, name, args } }: Json) => ({
        ...(id ? { id } : {}),
        name,
        input: args,
      })),
      results: of('functionResponse').map(({ functionResponse: { id, name, response } }: Json) => ({
        ...(id ? { id } : {}),
        name,
        content: response.output ?? response.error,
        isError: response.error !== undefined,
      })),
      opaque: parts.filter(
        (part: Json) => !texts.includes(part) && !known.some((kind) => part[kind]),
      ),
      files: of('inlineData').length,
    }
  })
  const { mode, allowedFunctionNames } = body.toolConfig?.functionCallingConfig ?? {}
  const choice = allowedFunctionNames ? { name: allowedFunctionNames[0] } : mode?.toLowerCase()
  return {
    system: (body.systemInstruction?.parts ?? []).map((part: Json) => part.text).join('\n'),
    turns,
    tools: (body.tools?.[0].functionDeclarations ?? []).map((tool: Json) => ({
      name: tool.name,
      description: tool.description,
      input: tool.parametersJsonSchema,
    })),
    ...(choice ? { toolChoice: choice } : {}),
    maxTokens: body.generationConfig?.maxOutputTokens,
    temperature: body.generationConfig?.temperature,
  }
}

conformance(wire)

// ---- What only this wire does

let vendor: FakeVendor
before(async () => {
  vendor = await fakeVendor()
})
after(() => vendor.close())

function make(options: Partial<GoogleOptions> = {}): ReturnType<typeof google> {
  const { url: baseUrl } = vendor
  return google({ model: 'gemini-2.5-flash', apiKey: 'test-key', baseUrl, retries: 0, ...options })
}

function answer(...chunks: Json[]): FakeAnswer {
  return { headers: { 'content-type': 'text/event-stream' }, pieces: sse(...chunks) }
}

function json(body: Json, status = 200): FakeAnswer {
  const headers = { 'content-type': 'application/json; charset=UTF-8' }
  return { status, headers, pieces: [JSON.stringify(body)], framing: 'length' }
}

async function streamed(...chunks: Json[]): Promise<{ reply: ModelReply; text: string }> {
  vendor.answer(answer(...chunks))
  const { reply, error, text } = await outcomeOf(make())
  assert.equal(error, undefined)
  return { reply: reply as ModelReply, text }
}

const stop = { finishReason: 'STOP' }

/** The turn as it goes back: a person has looked at it, so it was stored and its calls have ids of ours. */
function sentBack(reply: ModelReply, options: Partial<GoogleOptions> = {}): Json[] {
  let n = 0
  const renamed = (part: Part) =>
    part.type === 'tool_call' ? { ...part, id: `tc_${`${++n}`.padStart(16, '0')}` } : part
  const parts: Part[] = JSON.parse(JSON.stringify(reply.parts)).map(renamed)
  const results = parts.flatMap((part) =>
    part.type === 'tool_call' ? [{ callId: part.id, outcome: 'ok' as const, content: 'done' }] : [],
  )
  const turn: Message = { role: 'assistant', parts, results }
  return (make(options).render(request({ messages: [user('go'), turn] })) as Json).contents.slice(1)
}

/** Without signatures it does not matter how a text was cut. */
function joined(parts: Json[]): Json[] {
  const out: Json[] = []
  for (const part of parts) {
    const isPlain = (one: Json) => one?.text !== undefined && Object.keys(one).length === 1
    if (!isPlain(part) || !isPlain(out.at(-1))) out.push(part)
    else out.push({ text: out.pop().text + part.text })
  }
  return out
}

const signed = { functionCall: { name: 'get', args: { n: 1 } }, thoughtSignature: 'c2lnbmVk' }
const unsigned = { functionCall: { name: 'get', args: { n: 2 } } }
const withId = { functionCall: { id: 'fc-1', name: 'get', args: {} }, thoughtSignature: 's+/=' }
const withIdAlone = { functionCall: { id: 'fc-2', name: 'get', args: {} } }

for (const [claim, chunks, parts] of [
  ['of a call', [[signed]], [signed]],
  ['of the first of parallel calls, which alone has one', [[signed, unsigned]], [signed, unsigned]],
  ['of a call that is not the first', [[unsigned], [signed]], [unsigned, signed]],
  ['of calls with ids', [[withId, withIdAlone]], [withId, withIdAlone]],
  [
    'of a text',
    [[{ text: 'a b', thoughtSignature: 'x' }]],
    [{ text: 'a b', thoughtSignature: 'x' }],
  ],
  [
    'of the last piece of a text',
    [[{ text: 'a ' }], [{ text: 'b ' }], [{ text: 'c', thoughtSignature: 'x' }]],
    [{ text: 'a b ' }, { text: 'c', thoughtSignature: 'x' }],
  ],
  [
    'of a piece in the middle',
    [[{ text: 'a' }], [{ text: 'b', thoughtSignature: 'x' }], [{ text: 'c' }]],
    [{ text: 'a' }, { text: 'b', thoughtSignature: 'x' }, { text: 'c' }],
  ],
  [
    'of two pieces that are alike',
    [[{ text: 'a', thoughtSignature: 'x' }], [{ text: 'a', thoughtSignature: 'y' }]],
    [
      { text: 'a', thoughtSignature: 'x' },
      { text: 'a', thoughtSignature: 'y' },
    ],
  ],
  [
    'on an empty text at the end',
    [[{ text: 'a' }], [{ text: '', thoughtSignature: 'x' }]],
    [{ text: 'a' }, { text: '', thoughtSignature: 'x' }],
  ],
  [
    'of thoughts, text and call in one turn',
    [[{ text: 'hm', thought: true }], [{ text: 'I look' }], [signed, unsigned]],
    [{ text: 'hm', thought: true }, { text: 'I look' }, signed, unsigned],
  ],
] as [string, Json[][], Json[]][]) {
  test(`a signature goes back on exactly its part: ${claim}`, async () => {
    const said = chunks.map((parts) => chunk(parts))
    const { reply } = await streamed(...said, chunk([], stop))
    assert.deepEqual(sentBack(reply)[0], { role: 'model', parts })
    vendor.answer(json(chunk(chunks.flat(), stop)))
    const whole = await make().complete(request())
    assert.deepEqual(joined(sentBack(whole)[0].parts), joined(parts))
  })
}

test('an id that the model gave goes back with its call and its result, where the loop has its own', async () => {
  const { reply } = await streamed(chunk([withId, unsigned, withIdAlone], stop))
  const response = { output: 'done' }
  assert.deepEqual(sentBack(reply)[1], {
    role: 'user',
    parts: [
      { functionResponse: { id: 'fc-1', name: 'get', response } },
      { functionResponse: { name: 'get', response } },
      { functionResponse: { id: 'fc-2', name: 'get', response } },
    ],
  })
})

test('a signature whose part was taken away stands on an empty text', async () => {
  const { reply } = await streamed(chunk([{ text: 'a', thoughtSignature: 'x' }, signed], stop))
  const parts = reply.parts.filter((part) => part.type === 'opaque')
  assert.deepEqual(sentBack({ ...reply, parts })[0].parts, [
    { text: '', thoughtSignature: 'x' },
    { text: '', thoughtSignature: 'c2lnbmVk' },
  ])
  const changed = reply.parts.map((part) =>
    part.type === 'text' ? { ...part, text: 'masked' } : part,
  )
  assert.deepEqual(sentBack({ ...reply, parts: changed })[0].parts, [
    { text: 'masked' },
    { text: '', thoughtSignature: 'x' },
    signed,
  ])
})

test('an id whose call was taken away goes to no other call', async () => {
  const { reply } = await streamed(
    chunk([withIdAlone, { functionCall: { id: 'fc-3', name: 'put' } }], stop),
  )
  const parts = reply.parts.filter((part) => part.type !== 'tool_call' || part.name !== 'put')
  assert.deepEqual(sentBack({ ...reply, parts })[0].parts, [withIdAlone])
})

test('Gemini 3 and later get Google’s own word for a turn that has no signature, others nothing', async () => {
  const { reply } = await streamed(chunk([unsigned, unsigned], stop))
  for (const model of ['gemini-3-pro-preview', 'models/gemini-3.1-flash', 'gemini-12-x']) {
    const thoughtSignature = 'skip_thought_signature_validator'
    assert.deepEqual(sentBack(reply, { model })[0].parts, [
      { ...unsigned, thoughtSignature },
      unsigned,
    ])
  }
  assert.deepEqual(sentBack(reply, { model: 'gemini-2.5-pro' })[0].parts, [unsigned, unsigned])
  const own = await streamed(chunk([signed, unsigned], stop))
  assert.deepEqual(sentBack(own.reply, { model: 'gemini-3-pro' })[0].parts, [signed, unsigned])
})

test('what one route signed does not go back on the other: it could not verify it', async () => {
  const { reply } = await streamed(chunk([{ text: 'hm', thought: true }, withId], stop))
  const vertex = { project: 'p', token: () => 'test-token' }
  const { id: _, ...call } = withId.functionCall
  assert.deepEqual(sentBack(reply, { vertex })[0].parts, [{ functionCall: call }])
})

test('thoughts are never text, neither streamed nor in the reply', async () => {
  const { reply, text } = await streamed(
    chunk([{ text: 'secretly', thought: true }]),
    chunk([{ text: 'hm', thought: true, thoughtSignature: 'x' }, { text: 'openly' }], stop),
  )
  assert.equal(text, 'openly')
  const texts = reply.parts.filter((part) => part.type === 'text')
  assert.deepEqual(texts, [{ type: 'text', text: 'openly' }])
})

test('calls without ids get unique ones, in one chunk, over chunks and beside the end', async () => {
  for (const chunks of [
    [chunk([unsigned, unsigned], stop)],
    [chunk([unsigned]), chunk([unsigned], stop)],
    [chunk([unsigned]), chunk([unsigned]), chunk([], stop)],
  ]) {
    const { reply } = await streamed(...chunks)
    const ids = reply.parts.map((part) => (part.type === 'tool_call' ? part.id : ''))
    assert.equal(new Set(ids).size, 2)
    assert.ok(ids.every((id) => /^tc_/.test(id)))
    assert.equal(reply.finishReason, 'tool_call')
  }
})

test('text goes on after a first STOP', async () => {
  const { reply, text } = await streamed(
    chunk([{ text: 'a' }], stop, { promptTokenCount: 4, candidatesTokenCount: 1 }),
    chunk([{ text: 'b' }], stop, { promptTokenCount: 4, candidatesTokenCount: 2 }),
  )
  assert.equal(text, 'ab')
  assert.deepEqual(reply.parts, [{ type: 'text', text: 'ab' }])
  assert.equal(reply.usage.outputTokens, 2)
})

test('only the first of several candidates is read', async () => {
  const second = { content: { parts: [{ text: 'no' }] }, finishReason: 'STOP', index: 1 }
  const both = chunk([{ text: 'yes' }], stop)
  both.candidates.unshift(second)
  const { reply, text } = await streamed({ candidates: [second] }, both)
  assert.equal(text, 'yes')
  assert.deepEqual(reply.parts, [{ type: 'text', text: 'yes' }])
})

test('usage is the last, not the sum; thoughts are output, tool prompts input, and what is absent is zero', async () => {
  const counts = (usage: Json) => chunk([{ text: 'x' }], stop, usage)
  const first = { promptTokenCount: 9, candidatesTokenCount: 1, thoughtsTokenCount: 5 }
  const last = {
    ...first,
    candidatesTokenCount: 3,
    toolUsePromptTokenCount: 2,
    cachedContentTokenCount: 8,
  }
  assert.deepEqual((await streamed(counts(first), counts(last))).reply.usage, {
    inputTokens: 11,
    outputTokens: 8,
    cacheReadTokens: 8,
    cacheWriteTokens: 0,
  })
  const cut = chunk(
    [],
    { finishReason: 'MAX_TOKENS' },
    { promptTokenCount: 3, thoughtsTokenCount: 7 },
  )
  delete cut.candidates[0].content.parts
  const { reply } = await streamed(cut)
  assert.deepEqual([reply.finishReason, reply.parts], ['length', []])
  assert.deepEqual([reply.usage.inputTokens, reply.usage.outputTokens], [3, 7])
})

test('a blocked prompt and a blocked answer are content_filter, with the reason in raw', async () => {
  const prompt = { promptFeedback: { blockReason: 'PROHIBITED_CONTENT' }, modelVersion: 'm' }
  for (const blocked of [prompt, { ...prompt, candidates: [] }]) {
    for (const sent of [answer(blocked), json(blocked)]) {
      vendor.answer(sent)
      const stream = sent.framing === undefined
      const { reply } = await outcomeOf(make(), { stream })
      assert.equal(reply?.finishReason, 'content_filter')
      assert.deepEqual(reply?.parts, [])
      assert.equal((reply as Json).raw.promptFeedback.blockReason, 'PROHIBITED_CONTENT')
    }
  }
  for (const content of [{ content: {} }, { content: { role: 'model' } }, {}]) {
    const { reply } = await streamed({ candidates: [{ ...content, finishReason: 'MODEL_ARMOR' }] })
    assert.equal(reply.finishReason, 'content_filter')
    assert.equal((reply.raw as Json).finishReason, 'MODEL_ARMOR')
  }
})

test('every reason has one of our four words', async () => {
  for (const [theirs, ours] of Object.entries({
    STOP: 'stop',
    MAX_TOKENS: 'length',
    SAFETY: 'content_filter',
    RECITATION: 'content_filter',
    LANGUAGE: 'content_filter',
    BLOCKLIST: 'content_filter',
    PROHIBITED_CONTENT: 'content_filter',
    SPII: 'content_filter',
    IMAGE_SAFETY: 'content_filter',
    OTHER: 'stop',
    A_REASON_TO_COME: 'stop',
  })) {
    const { reply } = await streamed(chunk([{ text: 'x' }], { finishReason: theirs }))
    assert.equal(reply.finishReason, ours, theirs)
  }
})

test('a call is a call, whatever the reason says about it', async () => {
  for (const finishReason of ['UNEXPECTED_TOOL_CALL', 'OTHER']) {
    const { reply } = await streamed(chunk([unsigned], { finishReason }))
    assert.equal(reply.finishReason, 'tool_call')
  }
})

test('finishMessage is no error', async () => {
  const finishMessage = 'Model generated function call(s).'
  const { reply } = await streamed(chunk([unsigned], { ...stop, finishMessage }))
  assert.equal(reply.finishReason, 'tool_call')
  assert.equal((reply.raw as Json).finishMessage, finishMessage)
})

test('a call that the model could not write is tried again, then an error, never an empty answer', async () => {
  for (const finishReason of [
    'MALFORMED_FUNCTION_CALL',
    'UNEXPECTED_TOOL_CALL',
    'MALFORMED_RESPONSE',
  ]) {
    const broken = { candidates: [{ finishReason, finishMessage: 'Malformed: print(x)' }] }
    const before = vendor.asked.length
    vendor.answer((_, n) => answer(n === before ? broken : chunk([{ text: 'ok' }], stop)))
    const { reply } = await outcomeOf(make({ retries: 2, clock: instant() }))
    assert.deepEqual(reply?.parts, [{ type: 'text', text: 'ok' }])
    vendor.answer(answer(broken))
    const { error } = await outcomeOf(make({ retries: 2, clock: instant() }))
    assert.equal(error?.code, 'provider_invalid')
    assert.match(error?.message ?? '', new RegExp(`ended with ${finishReason}`))
    assert.doesNotMatch(error?.message ?? '', /print/)
    assert.equal(vendor.asked.length - before, 2 + 3)
  }
})

test('a call without arguments has {}, and one without a name is no call', async () => {
  const { reply } = await streamed(chunk([{ functionCall: { name: 'get' } }], stop))
  assert.deepEqual(
    reply.parts.map((part) => part.type === 'tool_call' && part.input),
    [{}],
  )
  vendor.answer(answer(chunk([{ functionCall: { args: {} } }], stop)))
  assert.equal((await outcomeOf(make())).error?.code, 'provider_invalid')
})

test('a gateway that answers a stream with one JSON is understood', async () => {
  vendor.answer(json(chunk([{ text: 'whole' }], stop)))
  const { reply, text } = await outcomeOf(make())
  assert.equal(text, 'whole')
  assert.deepEqual(reply?.parts, [{ type: 'text', text: 'whole' }])
})

// ---- Failures

function googleError(code: number, message: string, ...details: Json[]): Json {
  return { error: { code, message, status: 'X', ...(details.length ? { details } : {}) } }
}

const retryInfo = (retryDelay: string) => ({
  '@type': 'type.googleapis.com/google.rpc.RetryInfo',
  retryDelay,
})

async function failed(
  body: Json,
  status: number,
  retries = 0,
): Promise<ProviderError & { waits: number[] }> {
  vendor.answer(json(body, status))
  const clock = instant()
  const { error } = await outcomeOf(make({ retries, clock }))
  return Object.assign(error as ProviderError, { waits: clock.waits })
}

test('a bad key is provider_auth although it comes as 400, and is not tried again', async () => {
  const words = 'API key not valid. Please pass a valid API key.'
  const info = { '@type': 'type.googleapis.com/google.rpc.ErrorInfo', reason: 'API_KEY_INVALID' }
  for (const body of [
    googleError(400, words, info),
    googleError(400, words),
    [googleError(400, words)],
  ]) {
    const { code, status, waits } = await failed(body, 400, 2)
    assert.deepEqual([code, status, waits], ['provider_auth', 400, []])
  }
  assert.equal((await failed(googleError(400, 'no such field'), 400)).code, 'provider_error')
})

test('the pause that a 429 asks for is in the body', async () => {
  const { waits, code } = await failed(googleError(429, 'quota', retryInfo('2.5s')), 429, 1)
  assert.deepEqual([waits, code], [[2500], 'provider_overloaded'])
  const long = await failed(googleError(429, 'quota', { x: 1 }, retryInfo('3600s')), 429, 2)
  assert.deepEqual([long.waits, long.retryAfterMs], [[], 3_600_000])
})

test('a prompt that is too long is said to be', async () => {
  const words =
    'The input token count (2000000) exceeds the maximum number of tokens allowed (1048576).'
  assert.equal((await failed(googleError(400, words), 400)).code, 'context_too_long')
})

test('an error in a stream is told by its code', async () => {
  for (const [status, code] of [
    [429, 'provider_overloaded'],
    [503, 'provider_overloaded'],
    [400, 'provider_error'],
    [403, 'provider_auth'],
  ] as const) {
    vendor.answer(answer(googleError(status, 'so it is')))
    const { error } = await outcomeOf(make())
    assert.deepEqual([error?.code, error?.status], [code, status])
    assert.match(error?.message ?? '', /broke off: so it is|answered \d+: so it is/)
  }
})

// ---- Where and as whom

/** Notes where a request would go, and lets none out. */
function noting(): { seen: string[]; dispatcher: Dispatcher } {
  const seen: string[] = []
  const dispatch = (options: Dispatcher.DispatchOptions, handler: Dispatcher.DispatchHandler) => {
    const { authorization, 'x-goog-api-key': key } = options.headers as Record<string, string>
    seen.push(`${options.origin}${options.path} ${authorization ?? key}`)
    handler.onResponseError?.(
      undefined as unknown as Dispatcher.DispatchController,
      new Error('no'),
    )
    return true
  }
  return { seen, dispatcher: { dispatch } as unknown as Dispatcher }
}

async function whereTo(options: Partial<GoogleOptions>, stream = false): Promise<string> {
  const { seen, dispatcher } = noting()
  const provider = google({ model: 'm', apiKey: 'test-key', retries: 0, ...options, dispatcher })
  await outcomeOf(provider, { stream })
  return seen[0] ?? 'nowhere'
}

test('the key is in a header, never in the URL', async () => {
  const base = 'https://generativelanguage.googleapis.com/v1beta'
  assert.equal(await whereTo({}), `${base}/models/m:generateContent test-key`)
  assert.equal(await whereTo({}, true), `${base}/models/m:streamGenerateContent?alt=sse test-key`)
  assert.equal(
    await whereTo({ model: 'tunedModels/t-1' }),
    `${base}/tunedModels/t-1:generateContent test-key`,
  )
  assert.equal(await whereTo({ model: 'models/m' }), `${base}/models/m:generateContent test-key`)
})

test('a base URL may name the version or leave it out', async () => {
  for (const [baseUrl, root] of [
    ['https://proxy.example', 'https://proxy.example/v1beta'],
    ['https://proxy.example/gemini/', 'https://proxy.example/gemini/v1beta'],
    ['https://proxy.example/v1', 'https://proxy.example/v1'],
    ['https://proxy.example/v1beta/', 'https://proxy.example/v1beta'],
  ] as const) {
    assert.equal(await whereTo({ baseUrl }), `${root}/models/m:generateContent test-key`)
  }
})

test('Vertex AI is reached by project and location with a token that is asked for every call', async () => {
  let n = 0
  const token = async () => `test-token-${++n}`
  const vertex = (location?: string) => ({ project: 'p', token, ...(location ? { location } : {}) })
  const path = (location: string, model: string) =>
    `/v1beta1/projects/p/locations/${location}/${model}:generateContent`
  assert.equal(
    await whereTo({ vertex: vertex('us-central1') }),
    `https://us-central1-aiplatform.googleapis.com${path('us-central1', 'publishers/google/models/m')} Bearer test-token-1`,
  )
  assert.equal(
    await whereTo({ vertex: vertex() }),
    `https://aiplatform.googleapis.com${path('global', 'publishers/google/models/m')} Bearer test-token-2`,
  )
  assert.equal(
    await whereTo({ vertex: vertex('eu'), model: 'publishers/meta/models/llama@1' }),
    `https://aiplatform.eu.rep.googleapis.com${path('eu', 'publishers/meta/models/llama@1')} Bearer test-token-3`,
  )
  assert.equal(google({ model: 'm', vertex: vertex() }).name, 'gcp.vertex_ai')
})

test('a token function that fails is provider_auth, with its error as cause', async () => {
  const cause = new Error('metadata server is away')
  for (const token of [
    () => Promise.reject(cause),
    () => {
      throw cause
    },
  ]) {
    const { error } = await outcomeOf(make({ vertex: { project: 'p', token } }))
    assert.deepEqual([error?.code, error?.cause], ['provider_auth', cause])
  }
})

test('variables are read when called, and GOOGLE_API_KEY goes before GEMINI_API_KEY', async () => {
  const kept = { ...process.env }
  try {
    for (const name of Object.keys(kept))
      if (/^(GOOGLE|GEMINI)_/.test(name)) delete process.env[name]
    const { seen, dispatcher } = noting()
    process.env.GOOGLE_GEMINI_BASE_URL = 'https://from.env.example'
    const provider = google({ model: 'm', retries: 0, dispatcher })
    const { error } = await outcomeOf(provider)
    assert.equal(error?.code, 'provider_config')
    assert.match(error?.message ?? '', /GOOGLE_API_KEY or GEMINI_API_KEY/)
    process.env.GEMINI_API_KEY = 'test-gemini\n'
    await outcomeOf(provider, { stream: false })
    process.env.GOOGLE_API_KEY = 'test-google'
    await outcomeOf(provider, { stream: false })
    const url = 'https://from.env.example/v1beta/models/m:generateContent'
    assert.deepEqual(seen, [`${url} test-gemini`, `${url} test-google`])
    const token = () => 't'
    assert.throws(() => google({ model: 'm', vertex: { token } }), /GOOGLE_CLOUD_PROJECT/)
    process.env.GOOGLE_CLOUD_PROJECT = 'env-project'
    process.env.GOOGLE_CLOUD_LOCATION = 'asia-east1'
    const where = await whereTo({ vertex: { token } })
    assert.match(where, /^https:\/\/asia-east1-.*\/projects\/env-project\/locations\/asia-east1\//)
  } finally {
    process.env = kept
  }
})

test('a model name that would leave its place in the path is refused', () => {
  for (const model of ['../x', 'm?key=1', 'a b', 'm#', 'x/../y', '']) {
    assert.throws(() => make({ model }), { code: 'provider_config' }, model)
  }
})

// ---- What is sent

function body(more: Parameters<typeof request>[0], options: Partial<GoogleOptions> = {}): Json {
  return make(options).render(request(more))
}

test('the body is a GenerateContentRequest', () => {
  const expected = {
    systemInstruction: { parts: [{ text: 'Static.' }, { text: 'Dynamic.' }] },
    tools: [
      {
        functionDeclarations: [
          {
            name: 'get',
            description: 'Gets',
            parametersJsonSchema: { type: 'object', properties: { n: { type: 'number' } } },
          },
        ],
      },
    ],
    toolConfig: {
      functionCallingConfig: { mode: FunctionCallingConfigMode.ANY, allowedFunctionNames: ['get'] },
    },
    contents: [
      {
        role: 'user',
        parts: [{ text: 'see' }, { inlineData: { mimeType: 'image/png', data: 'aGk=' } }],
      },
      {
        role: 'model',
        parts: [{ text: 'I look' }, { functionCall: { name: 'get', args: { n: 1 } } }],
      },
      {
        role: 'user',
        parts: [
          { functionResponse: { name: 'get', response: { error: 'no such thing' } } },
          { text: 'and now?' },
        ],
      },
    ],
    generationConfig: { topP: 0.5, maxOutputTokens: 9, temperature: 0 },
  }
  // The SDK's own types: the fields that it takes apart, `contents` and what it calls `config`.
  const { contents, generationConfig, ...config } = expected
  const typed: [Content[], GenerationConfig, GenerateContentConfig] = [
    contents,
    generationConfig,
    config,
  ]
  assert.equal(typed.length, 3)
  const call: Part = { type: 'tool_call', id: 'tc_0000000000000001', name: 'get', input: { n: 1 } }
  const asked = {
    system: [{ text: 'Static.', cache: true }, { text: '' }, { text: 'Dynamic.' }],
    tools: [
      {
        name: 'get',
        description: 'Gets',
        input: { type: 'object', properties: { n: { type: 'number' } } },
      },
    ],
    toolChoice: { name: 'get' },
    maxTokens: 9,
    temperature: 0,
    cache: true,
    messages: [
      {
        role: 'user' as const,
        parts: [
          { type: 'text' as const, text: 'see' },
          { type: 'file' as const, mediaType: 'image/png', data: 'aGk=', name: 'a.png' },
        ],
      },
      {
        role: 'assistant' as const,
        parts: [{ type: 'text' as const, text: 'I look' }, call],
        results: [{ callId: call.id, outcome: 'error' as const, content: 'no such thing' }],
      },
      user('and now?'),
    ],
  }
  assert.deepEqual(body(asked, { extra: { generationConfig: { topP: 0.5 } } }), expected)
})

test('results stand in the order of the calls, whatever order they came in', () => {
  const ids = ['tc_000000000000000a', 'tc_000000000000000b', 'tc_000000000000000c']
  const calls = ids.map((id, n) => ({
    type: 'tool_call' as const,
    id,
    name: `tool_${n}`,
    input: {},
  }))
  const results = ids
    .map((callId) => ({ callId, outcome: 'ok' as const, content: callId }))
    .reverse()
  const { contents } = body({
    messages: [user('go'), { role: 'assistant', parts: calls, results }],
  })
  assert.deepEqual(
    contents[2].parts,
    ids.map((id, n) => ({ functionResponse: { name: `tool_${n}`, response: { output: id } } })),
  )
})

test('a result stays text: an object with a $ref in it would be refused', () => {
  const call = { type: 'tool_call' as const, id: 'tc_000000000000000a', name: 'get', input: {} }
  const content = '{"$ref":"#/x"}'
  const results = [{ callId: call.id, outcome: 'ok' as const, content }]
  const { contents } = body({
    messages: [user('go'), { role: 'assistant', parts: [call], results }],
  })
  assert.deepEqual(contents[2].parts[0].functionResponse.response, { output: content })
})

test('a tool name that the model made up does not make the service refuse the talk', () => {
  const call = { type: 'tool_call' as const, id: 'tc_000000000000000a', name: 'a b/ü', input: {} }
  const results = [{ callId: call.id, outcome: 'error' as const, content: 'Unknown tool' }]
  const { contents } = body({
    messages: [user('go'), { role: 'assistant', parts: [call], results }],
  })
  assert.equal(contents[1].parts[0].functionCall.name, 'a_b__')
  assert.equal(contents[2].parts[0].functionResponse.name, 'a_b__')
})

test('what is not set is not sent', () => {
  const messages = [user('go')]
  const contents = [{ role: 'user', parts: [{ text: 'go' }] }]
  assert.deepEqual(body({ messages, system: [], tools: [], toolChoice: 'none' }), { contents })
})

test('fields of the API’s own go along', () => {
  const safetySettings = [{ category: 'HARM_CATEGORY_HARASSMENT', threshold: 'BLOCK_NONE' }]
  const generationConfig = { thinkingConfig: { includeThoughts: true } }
  const sent = body({ maxTokens: 5 }, { extra: { safetySettings, generationConfig } })
  assert.deepEqual(sent.safetySettings, safetySettings)
  const searching = body({}, { extra: { tools: [{ googleSearch: {} }] } }).tools
  assert.deepEqual(
    searching.map((tool: Json) => Object.keys(tool)),
    [['googleSearch'], ['functionDeclarations']],
  )
  assert.deepEqual(sent.generationConfig, { ...generationConfig, maxOutputTokens: 5 })
})

for (const [claim, input, expected] of [
  [
    'const becomes an enum of one',
    { const: 'a', type: 'string', description: 'A' },
    { enum: ['a'], type: 'string', description: 'A' },
  ],
  ['a bare const gets its type', { const: 'a' }, { enum: ['a'], type: 'string' }],
  ['an enum of texts gets its type', { enum: ['a', 'b'] }, { enum: ['a', 'b'], type: 'string' }],
  [
    'a union of literals is anyOf of enums',
    { anyOf: [{ type: 'string', const: 'a' }, { type: 'number', const: 1 }, { type: 'null' }] },
    { anyOf: [{ type: 'string', enum: ['a'] }, { type: 'number', enum: [1] }, { type: 'null' }] },
  ],
  ['a boolean const keeps its type alone', { type: 'boolean', const: true }, { type: 'boolean' }],
  [
    'a $ref has no neighbours',
    { $ref: '#/$defs/City', description: 'Where' },
    { anyOf: [{ $ref: '#/$defs/City' }], description: 'Where' },
  ],
  ['a $ref alone stays', { $ref: '#/$defs/City' }, { $ref: '#/$defs/City' }],
  ['an old reference is a new one', { $ref: '#/definitions/City' }, { $ref: '#/$defs/City' }],
  [
    'what is understood stays as it is',
    { type: ['string', 'null'], format: 'date-time', minLength: 1, title: 'T', default: 'x' },
    { type: ['string', 'null'], format: 'date-time', minLength: 1, title: 'T', default: 'x' },
  ],
  [
    'closed and nested objects stay',
    {
      type: 'object',
      properties: { a: { type: 'array', items: {} } },
      additionalProperties: false,
    },
    {
      type: 'object',
      properties: { a: { type: 'array', items: {} } },
      additionalProperties: false,
    },
  ],
  [
    'a property may be called const, enum or $ref',
    { type: 'object', properties: { const: { type: 'string' }, enum: {}, $ref: { const: 'x' } } },
    {
      type: 'object',
      properties: { const: { type: 'string' }, enum: {}, $ref: { enum: ['x'], type: 'string' } },
    },
  ],
] as [string, Json, Json][]) {
  test(`of a tool's schema ${claim}`, () => {
    const $schema = 'http://json-schema.org/draft-07/schema#'
    const of = (property: Json) => ({
      type: 'object',
      properties: { x: property },
      required: ['x'],
    })
    const city = { type: 'object', properties: { name: { type: 'string' } } }
    const schema = { $schema, ...of(input), definitions: { City: city } }
    const kept = structuredClone(schema)
    const tools = [{ name: 'get', description: 'Gets', input: schema }]
    const [sent] = body({ tools }).tools[0].functionDeclarations
    assert.deepEqual(sent.parametersJsonSchema, { ...of(expected), $defs: { City: city } })
    assert.equal(sent.parameters, undefined)
    assert.deepEqual(schema, kept, 'the caller’s schema is not changed')
  })
}

// ---- The official SDK over the same bytes

const usageMetadata = { promptTokenCount: 12, candidatesTokenCount: 5, thoughtsTokenCount: 30 }
const thinking = { text: 'The person wants pods.', thought: true }
const recordings: Record<string, Json[]> = {
  'text in pieces': [
    chunk([{ text: 'Zażółć' }], {}, { promptTokenCount: 12, candidatesTokenCount: 1 }),
    chunk([{ text: ' gęślą 🎉' }], {}, { promptTokenCount: 12, candidatesTokenCount: 3 }),
    chunk([{ text: '' }], stop, { promptTokenCount: 12, candidatesTokenCount: 5 }),
  ],
  'thoughts, then text': [chunk([thinking]), chunk([{ text: 'Two pods.' }], stop, usageMetadata)],
  'parallel calls in the last chunk': [chunk([signed, unsigned], stop, usageMetadata)],
  'calls over chunks, with ids': [
    chunk([withId]),
    chunk([withIdAlone]),
    chunk([], stop, usageMetadata),
  ],
  'a call without arguments': [chunk([{ functionCall: { name: 'get' } }], stop, usageMetadata)],
  'a signature at the end': [
    chunk([{ text: 'Done.' }]),
    chunk([{ text: '', thoughtSignature: 'c2ln' }], stop, usageMetadata),
  ],
  'two STOPs': [chunk([{ text: 'a' }], stop), chunk([{ text: 'b' }], stop, usageMetadata)],
  'no word before the limit': [
    {
      candidates: [{ content: { role: 'model' }, finishReason: 'MAX_TOKENS' }],
      usageMetadata: { promptTokenCount: 3, thoughtsTokenCount: 99 },
    },
  ],
  'a blocked answer': [
    {
      candidates: [{ content: {}, finishReason: 'SAFETY', index: 0 }],
      usageMetadata: { promptTokenCount: 3 },
    },
  ],
  'a call that was not expected': [
    chunk(
      [unsigned],
      { finishReason: 'UNEXPECTED_TOOL_CALL', finishMessage: 'Unexpected.' },
      usageMetadata,
    ),
  ],
}

/** What the SDK's objects say, in words that both can be put into. */
function common(responses: Json[]): Json {
  const candidates = responses.flatMap((response) => response.candidates ?? [])
  const parts = candidates.flatMap((candidate) => candidate.content?.parts ?? [])
  const usage = responses.findLast((response) => response.usageMetadata)?.usageMetadata ?? {}
  return {
    text: parts.map((part: Json) => (part.thought ? '' : (part.text ?? ''))).join(''),
    calls: responses
      .flatMap((response) => response.functionCalls ?? [])
      .map(({ name, args }) => [name, args ?? {}]),
    finishReason: candidates.findLast((candidate) => candidate.finishReason)?.finishReason,
    usage: [
      usage.promptTokenCount ?? 0,
      (usage.candidatesTokenCount ?? 0) + (usage.thoughtsTokenCount ?? 0),
    ],
  }
}

function ours({ parts, usage, raw }: ModelReply): Json {
  return {
    text: parts.map((part) => (part.type === 'text' ? part.text : '')).join(''),
    calls: parts.flatMap((part) => (part.type === 'tool_call' ? [[part.name, part.input]] : [])),
    finishReason: (raw as Json).finishReason,
    usage: [usage.inputTokens, usage.outputTokens],
  }
}

function sdk(): GoogleGenAI {
  return new GoogleGenAI({
    apiKey: 'test-key',
    httpOptions: { baseUrl: vendor.url, apiVersion: 'v1beta' },
  })
}

for (const [name, chunks] of Object.entries(recordings)) {
  test(`the official SDK reads the same from ${name}`, async () => {
    const params = { model: 'gemini-2.5-flash', contents: 'go' }
    vendor.answer(answer(...chunks))
    const responses: Json[] = []
    for await (const response of await sdk().models.generateContentStream(params))
      responses.push(response)
    const { reply } = await outcomeOf(make())
    assert.deepEqual(ours(reply as ModelReply), common(responses))

    const last = chunks.at(-1)
    const parts = chunks.flatMap((one) => one.candidates[0].content?.parts ?? [])
    const [candidate] = last.candidates
    const whole = { ...last, candidates: [{ ...candidate, content: { role: 'model', parts } }] }
    vendor.answer(json(whole))
    const response = await sdk().models.generateContent(params)
    const { reply: ourWhole } = await outcomeOf(make(), { stream: false })
    assert.deepEqual(ours(ourWhole as ModelReply), common([response]))
  })
}

test('the official SDK sends the same request for the same words', async () => {
  const asked = request({ maxTokens: 5, toolChoice: { name: 'get_node' }, temperature: 0.5 })
  vendor.answer(json(chunk([{ text: 'x' }], stop)))
  await make().complete(asked)
  const { contents, generationConfig, ...config } = body(asked)
  await sdk().models.generateContent({
    model: 'gemini-2.5-flash',
    contents,
    config: { ...config, ...generationConfig },
  })
  const [mine, theirs] = vendor.asked.slice(-2)
  assert.deepEqual(mine?.body, theirs?.body)
  assert.equal(mine?.path, theirs?.path)
  assert.equal(mine?.headers['x-goog-api-key'], theirs?.headers['x-goog-api-key'])
})

// ---- A whole conversation

test('an approval goes its whole way against an independent mock, and again from a cassette of it', async () => {
  await approvalConversation((baseUrl) =>
    google({ model: 'gemini-2.5-flash', apiKey: 'test-key', baseUrl }),
  )
})
