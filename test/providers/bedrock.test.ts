// Bedrock: the real SDK over a real socket against frames made by hand. What every provider must do is in table.ts;
// here are this wire's own ways, and the SDK by hand, which reads the same bytes and writes the same body.

import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { pathToFileURL } from 'node:url'
import { inspect } from 'node:util'
import {
  ConverseCommand,
  type ConverseCommandInput,
  ConverseStreamCommand,
} from '@aws-sdk/client-bedrock-runtime'
import { LLMock } from '@copilotkit/aimock'
import { type BedrockOptions, bedrock } from '../../src/providers/bedrock.ts'
import type { Message, ModelReply, ModelRequest, Part } from '../../src/providers/provider.ts'
import { ProviderError } from '../../src/providers/wire.ts'
import {
  answerOf,
  bedrockWire,
  clientOf,
  event,
  eventStream,
  exception,
  frame,
  frameOf,
  model,
  streamOf,
} from './bedrock-wire.ts'
import { approvalConversation } from './chat.ts'
import { type Answering, type FakeAnswer, type FakeVendor, fakeVendor } from './fake.ts'
import { conformance, instant, outcomeOf, request, type Said, user } from './table.ts'

// biome-ignore lint/suspicious/noExplicitAny: the vendor's JSON
type Json = any

const usage = { inputTokens: 30, outputTokens: 7, cacheReadTokens: 0, cacheWriteTokens: 0 }
const hello: Said = { parts: [{ text: ['Hel', 'lo'] }], finish: 'stop', usage }
const counts = { inputTokens: 30, outputTokens: 7, totalTokens: 37 }

conformance(bedrockWire)
// ---- What is sent

test('bedrock sends what the SDK would, and its types hold for it', async () => {
  const image = Buffer.from([137, 80, 78, 71]).toString('base64')
  const asked: ModelRequest = {
    system: [{ text: 'Static.', cache: true }, { text: ' ' }, { text: 'Dynamic.' }],
    messages: [
      {
        role: 'user',
        parts: [
          { type: 'text', text: 'Look — żółć' },
          { type: 'text', text: '' },
          { type: 'file', mediaType: 'image/PNG', data: image },
          { type: 'file', mediaType: 'application/pdf', data: 'aGk=', name: 'Q1_report.v2.pdf' },
          { type: 'file', mediaType: 'text/plain; charset=utf-8', data: 'aGk=', name: '報告.txt' },
        ],
      },
      {
        role: 'assistant',
        parts: [
          opaque({ reasoningContent: { reasoningText: { text: 'Hm.', signature: 'c2ln' } } }),
          opaque({ reasoningContent: { redactedContent: 'AP+A' } }),
          { type: 'text', text: 'I look.' },
          { type: 'tool_call', id: 'tc_1', name: 'list_pods', input: { namespace: 'prod' } },
          { type: 'tool_call', id: 'call|2', name: 'no such!', input: '{"half' },
        ],
        results: [
          { callId: 'tc_1', outcome: 'ok', content: '' },
          { callId: 'call|2', outcome: 'rejected', content: 'Rejected: no' },
        ],
      },
      {
        role: 'user',
        parts: [{ type: 'file', mediaType: 'text/csv', data: 'aGk=', name: 'q1 report v2' }],
      },
    ],
    tools: [{ name: 'list_pods', description: 'Lists pods', input: { type: 'object' } }],
    toolChoice: { name: 'list_pods' },
    maxTokens: 99,
    temperature: 0,
    cache: { ttl: '1h' },
  }
  const point = { cachePoint: { type: 'default', ttl: '1h' } } as const
  const bytes = (base64: string) => Buffer.from(base64, 'base64')
  const thinking = { thinking: { type: 'enabled', budget_tokens: 1024 } }
  const expected: ConverseCommandInput = {
    modelId: model,
    additionalModelRequestFields: thinking,
    toolConfig: {
      tools: [
        {
          toolSpec: {
            name: 'list_pods',
            description: 'Lists pods',
            inputSchema: { json: { type: 'object' } },
          },
        },
        point,
      ],
      toolChoice: { tool: { name: 'list_pods' } },
    },
    system: [{ text: 'Static.' }, point, { text: 'Dynamic.' }],
    messages: [
      {
        role: 'user',
        content: [
          { text: 'Look — żółć' },
          { image: { format: 'png', source: { bytes: bytes(image) } } },
          { document: { format: 'pdf', name: 'Q1 report v2', source: { bytes: bytes('aGk=') } } },
          { document: { format: 'txt', name: 'document', source: { bytes: bytes('aGk=') } } },
        ],
      },
      {
        role: 'assistant',
        content: [
          { reasoningContent: { reasoningText: { text: 'Hm.', signature: 'c2ln' } } },
          { reasoningContent: { redactedContent: bytes('AP+A') } },
          { text: 'I look.' },
          { toolUse: { toolUseId: 'tc_1', name: 'list_pods', input: { namespace: 'prod' } } },
          {
            toolUse: {
              toolUseId: 'tc_odWYwfZh9HMolUpBgdUzTE4J8ebO-BQM',
              name: 'no_such_',
              input: { malformed_input: '{"half' },
            },
          },
        ],
      },
      {
        role: 'user',
        content: [
          { toolResult: { toolUseId: 'tc_1', content: [{ text: '(no output)' }] } },
          {
            toolResult: {
              toolUseId: 'tc_odWYwfZh9HMolUpBgdUzTE4J8ebO-BQM',
              content: [{ text: 'Rejected: no' }],
              status: 'error',
            },
          },
          { text: 'See the attached document.' },
          {
            document: { format: 'csv', name: 'q1 report v2 (2)', source: { bytes: bytes('aGk=') } },
          },
          point,
        ],
      },
    ],
    inferenceConfig: { topP: 0.9, maxTokens: 99, temperature: 0 },
  }

  await withVendor(json(hello), async (vendor) => {
    const inferenceConfig = { topP: 0.9, maxTokens: 5 }
    const extra = { additionalModelRequestFields: thinking, inferenceConfig }
    const provider = providerFor(vendor, { extra })
    await provider.complete(asked)
    await clientOf(vendor.url).send(new ConverseCommand(expected))
    await providerBySdk(vendor, { extra }).complete(asked)
    const [ours, theirs, between] = vendor.asked
    assert.deepEqual(ours?.body, theirs?.body)
    assert.equal(between?.text, theirs?.text)
    assert.deepEqual(provider.render(asked), ours?.body)
    assert.equal(ours?.path, theirs?.path)
    for (const name of ['content-type', 'host', 'x-amz-user-agent']) {
      assert.equal(ours?.headers[name], theirs?.headers[name], name)
    }
    assert.equal(ours?.headers['content-length'], String(Buffer.byteLength(ours?.text ?? '')))
  })
})

test('bedrock offers no tool where none may be chosen, and tells past calls in words', () => {
  const messages: Message[] = [
    user('go'),
    {
      role: 'assistant',
      parts: [{ type: 'tool_call', id: 'tc_1', name: 'list_pods', input: { n: 1 } }],
      results: [{ callId: 'tc_1', outcome: 'error', content: 'down' }],
    },
    user('on'),
  ]
  const provider = bedrock({ model })
  for (const more of [{ tools: [] }, { toolChoice: 'none' as const }]) {
    const body = provider.render(request({ messages, ...more })) as Json
    assert.deepEqual(Object.keys(body), ['system', 'messages'])
    assert.deepEqual(body.messages, [
      { role: 'user', content: [{ text: 'go' }] },
      { role: 'assistant', content: [{ text: '[Called list_pods with {"n":1}]' }] },
      { role: 'user', content: [{ text: '[It gave an error: down]' }, { text: 'on' }] },
    ])
  }
})

test('bedrock sets no more than four cache points, none unless asked, and spares Nova some', () => {
  const blocks = ['A', 'B', 'C', 'D'].map((text) => ({ text, cache: true }))
  const points = (body: unknown) => JSON.stringify(body).split('"cachePoint"').length - 1
  const count = (id: string, more: Partial<ModelRequest>) =>
    points(bedrock({ model: id }).render(request(more)))
  assert.equal(count(model, {}), 0)
  assert.equal(count(model, { system: blocks, cache: true }), 4)
  assert.equal(count(model, { system: [{ text: 'A', cache: true }, { text: 'B' }] }), 1)
  assert.equal(count(model, { cache: true }), 3)
  const body = bedrock({ model }).render(request({ cache: true })) as Json
  assert.deepEqual(body.system, [{ text: 'You operate.' }, { cachePoint: { type: 'default' } }])
  const done: Message = {
    role: 'assistant',
    parts: [{ type: 'tool_call', id: 'tc_1', name: 'get_node', input: {} }],
    results: [{ callId: 'tc_1', outcome: 'ok', content: 'fine' }],
  }
  assert.equal(count('us.amazon.nova-pro-v1:0', { cache: true }), 2)
  assert.equal(count('us.amazon.nova-pro-v1:0', { cache: true, messages: [user('go'), done] }), 1)
  assert.equal(count(model, { cache: true, messages: [user('go'), done] }), 3)
})

test("bedrock adds server-side tools of the caller's to its own", () => {
  const systemTool = { systemTool: { name: 'nova_grounding' } }
  const provider = bedrock({ model, extra: { toolConfig: { tools: [systemTool] } } })
  const { toolConfig } = provider.render(request()) as Json
  assert.deepEqual(toolConfig.tools[0], systemTool)
  assert.equal(toolConfig.tools.length, 3)
})

test('bedrock names every document of a request otherwise, the same way each time', () => {
  const file: Part = { type: 'file', mediaType: 'application/pdf', data: 'aGk=', name: 'a/b.pdf' }
  const messages: Message[] = [
    { role: 'user', parts: [{ type: 'text', text: 'x' }, file, file] },
    { role: 'assistant', parts: [{ type: 'text', text: 'y' }], results: [] },
    {
      role: 'user',
      parts: [
        { ...file, name: 'A B' },
        { type: 'text', text: 'z' },
      ],
    },
  ]
  const provider = bedrock({ model })
  for (let i = 0; i < 2; i++) {
    const body = provider.render(request({ messages })) as Json
    const names = body.messages.flatMap((turn: Json) =>
      turn.content.flatMap((block: Json) => block.document?.name ?? []),
    )
    assert.deepEqual(names, ['a b', 'a b (2)', 'A B (3)'])
  }
})

test('bedrock refuses a file of the assistant and names what it takes', () => {
  const file: Part = { type: 'file', mediaType: 'image/png', data: 'aGk=' }
  const messages: Message[] = [user('x'), { role: 'assistant', parts: [file], results: [] }]
  const refused = {
    code: 'unsupported_media_type',
    message: /pdf.* in a user's message.*image\/png/,
  }
  assert.throws(() => bedrock({ model }).render(request({ messages })), refused)
})

test('bedrock drops a turn that holds nothing but thoughts', () => {
  const thought = opaque({ reasoningContent: { reasoningText: { text: 'Hm', signature: 's' } } })
  const messages: Message[] = [
    user('a'),
    { role: 'assistant', parts: [thought], results: [] },
    user('b'),
  ]
  const body = bedrock({ model }).render(request({ messages })) as Json
  assert.deepEqual(body.messages, [{ role: 'user', content: [{ text: 'a' }, { text: 'b' }] }])
})

test('bedrock loads neither SDK nor undici until it is called', () => {
  const code = `
    import { createRequire } from 'node:module'
    const [file] = process.argv.slice(1)
    const loaded = () => Object.keys(createRequire(file).cache).filter((path) => path.includes('node_modules')).length
    const { bedrock } = await import(file)
    bedrock({ model: 'm' }).render({ system: [], messages: [], tools: [] })
    const before = loaded()
    await import(createRequire(file).resolve('@aws-sdk/client-bedrock-runtime'))
    console.log(before, loaded() > 0)`
  const args = ['--input-type=module', '-e', code, pathToFileURL('src/providers/bedrock.ts').href]
  assert.equal(execFileSync(process.execPath, args, { encoding: 'utf8' }), '0 true\n')
})

// ---- What comes back

test('bedrock reads what the SDK reads from the same bytes, whole and streamed', async () => {
  const said: Said = {
    parts: [
      { opaque: { reasoningContent: { reasoningText: { text: 'I think', signature: 'c2ln' } } } },
      { text: ['Zażółć', ' 🎉'] },
      { call: 'list_pods', id: 'tooluse_1', args: ['', '{"a":', '1}'] },
      { call: 'get_node', id: 'tooluse_2', args: ['{}'] },
    ],
    finish: 'tool_call',
    usage: { ...usage, cacheReadTokens: 8, cacheWriteTokens: 4 },
  }
  await withVendor(
    (asked) => (isStream(asked) ? streamed(said) : json(said)),
    async (vendor) => {
      const sdk = clientOf(vendor.url)
      const input = { modelId: model, messages: [] }
      const whole = await sdk.send(new ConverseCommand(input))
      const events: Json[] = []
      const { stream = [] as Json } = await sdk.send(new ConverseStreamCommand(input))
      for await (const next of stream) events.push(next)
      for (const stream of [false, true]) {
        const { reply, text } = await outcomeOf(providerFor(vendor), { stream })
        assert.deepEqual(reply?.parts.slice(1), [
          { type: 'text', text: whole.output?.message?.content?.[1]?.text },
          { type: 'tool_call', id: 'tooluse_1', name: 'list_pods', input: { a: 1 } },
          { type: 'tool_call', id: 'tooluse_2', name: 'get_node', input: {} },
        ])
        assert.deepEqual(reply?.parts[0], opaque(whole.output?.message?.content?.[0]))
        assert.equal(rawOf(reply).finishReason, whole.stopReason)
        assert.deepEqual(reply?.usage, { ...said.usage })
        assert.equal(reply?.usage.inputTokens, (whole.usage?.inputTokens ?? 0) + 12)
        const deltas = events.map((next) => next.contentBlockDelta?.delta?.text ?? '').join('')
        assert.equal(text, stream ? deltas : '')
      }
    },
  )
})

test('bedrock reads usage after the stop reason or before it, and waits for it', async () => {
  const [start, ...rest] = streamOf(hello)
  const [stop, metadata] = rest.splice(-2)
  for (const tail of [
    [stop, metadata],
    [metadata, stop],
  ] as Buffer[][]) {
    const { reply } = await outcomeFrom([start as Buffer, ...rest, ...tail])
    assert.deepEqual(reply?.usage, usage)
    assert.equal(reply?.finishReason, 'stop')
  }
})

test('bedrock begins a text with its first delta', async () => {
  const { reply, text } = await outcomeFrom([
    event('contentBlockDelta', { contentBlockIndex: 0, delta: { text: 'A' } }),
    event('contentBlockStop', { contentBlockIndex: 0 }),
    event('contentBlockDelta', { contentBlockIndex: 1, delta: { text: 'B' } }),
    ...tail('end_turn'),
  ])
  assert.deepEqual(reply?.parts, [{ type: 'text', text: 'AB' }])
  assert.equal(text, 'AB')
})

test('bedrock takes tool_use for a call, and server_tool_use with its result for its own', async () => {
  const call = { toolUseId: 'tooluse_1', name: 'get_node', type: 'tool_use' }
  const search = { toolUseId: 'srv_1', name: 'nova_grounding', type: 'server_tool_use' }
  const result = { toolUseId: 'srv_1', type: 'nova_grounding_result', status: 'success' }
  const found = [{ text: 'found' }, { json: { n: 1 } }]
  const events = [
    event('contentBlockStart', { contentBlockIndex: 0, start: { toolUse: search } }),
    event('contentBlockDelta', { contentBlockIndex: 0, delta: { toolUse: { input: '{"q":' } } }),
    event('contentBlockDelta', { contentBlockIndex: 0, delta: { toolUse: { input: '"x"}' } } }),
    event('contentBlockStart', { contentBlockIndex: 1, start: { toolResult: result } }),
    event('contentBlockDelta', { contentBlockIndex: 1, delta: { toolResult: found } }),
    event('contentBlockStart', { contentBlockIndex: 2, start: { toolUse: call } }),
    ...tail('tool_use'),
  ]
  const content = [
    { toolUse: { ...search, input: { q: 'x' } } },
    { toolResult: { ...result, content: found } },
    { toolUse: { ...call, input: {} } },
  ]
  const replies = [
    (await outcomeFrom(events)).reply,
    (await outcomeFrom({ output: { message: { content } }, stopReason: 'tool_use', usage: counts }))
      .reply,
  ]
  for (const reply of replies) {
    assert.deepEqual(reply?.parts, [
      opaque(content[0]),
      opaque(content[1]),
      { type: 'tool_call', id: 'tooluse_1', name: 'get_node', input: {} },
    ])
    assert.equal(reply?.finishReason, 'tool_call')
    const parts = JSON.parse(JSON.stringify(reply?.parts))
    const messages: Message[] = [user('x'), { role: 'assistant', parts, results: [] }]
    const sent = bedrock({ model }).render(request({ messages })) as Json
    assert.deepEqual(sent.messages[1].content.slice(0, 2), content.slice(0, 2))
  }
})

test('bedrock finds the words of an answer with citations', async () => {
  const citation = { title: 'Doc', location: { documentPage: { documentIndex: 0, start: 1 } } }
  const content = [
    { text: 'It says ' },
    { citationsContent: { content: [{ text: 'forty' }, { text: '-two' }], citations: [citation] } },
    { text: '.' },
  ]
  const whole = await outcomeFrom({
    output: { message: { content } },
    stopReason: 'end_turn',
    usage: counts,
  })
  const delta = (contentBlockIndex: number, delta: object) =>
    event('contentBlockDelta', { contentBlockIndex, delta })
  const streamed = await outcomeFrom([
    delta(0, { text: 'It says ' }),
    delta(1, { text: 'forty' }),
    delta(1, { citation }),
    delta(1, { text: '-two' }),
    delta(2, { text: '.' }),
    ...tail('end_turn'),
  ])
  for (const { reply } of [whole, streamed]) {
    assert.deepEqual(reply?.parts, [{ type: 'text', text: 'It says forty-two.' }])
    assert.deepEqual(rawOf(reply).citations, [citation])
  }
})

test('bedrock skips events and blocks to come, whatever they carry', async () => {
  const { reply } = await outcomeFrom([
    frame({ ':message-type': 'event', ':event-type': 'initial-response' }, '{}'),
    frame({ ':message-type': 'event', ':event-type': 'kindToCome' }, 'not JSON'),
    event('contentBlockStart', { contentBlockIndex: 0, start: { kindToCome: {} } }),
    event('contentBlockDelta', { contentBlockIndex: 0, delta: { kindToCome: { x: 1 } } }),
    event('contentBlockDelta', { contentBlockIndex: 1, delta: { text: 'Hi' } }),
    ...tail('end_turn'),
  ])
  assert.deepEqual(reply?.parts, [{ type: 'text', text: 'Hi' }])
})

test('bedrock reads frames whose headers have any type', async () => {
  const header = (name: string, type: number, value: Buffer) =>
    Buffer.concat([Buffer.from([name.length]), Buffer.from(name), Buffer.from([type]), value])
  const string = (text: string) => Buffer.concat([Buffer.from([0, text.length]), Buffer.from(text)])
  const headers = Buffer.concat([
    ...[0, 0, 1, 2, 4, 8].map((size, type) => header(`h${type}`, type, Buffer.alloc(size))),
    header('bytes', 6, string('xyz')),
    header(':message-type', 7, string('event')),
    header('time', 8, Buffer.alloc(8)),
    header('uuid', 9, Buffer.alloc(16)),
    header(':event-type', 7, string('contentBlockDelta')),
  ])
  const body = Buffer.from('{"contentBlockIndex":0,"delta":{"text":"Hi"}}')
  const { reply } = await outcomeFrom([frameOf(headers, body), ...tail('end_turn')])
  assert.deepEqual(reply?.parts, [{ type: 'text', text: 'Hi' }])
})

test("bedrock leaves a model's <thinking> in the text that it is", async () => {
  const text = '<thinking>Pods first.</thinking>\nThree.'
  const { reply } = await outcomeFrom(streamOf({ ...hello, parts: [{ text: [text] }] }))
  assert.deepEqual(reply?.parts, [{ type: 'text', text }])
})

test('bedrock keeps a thought without signature, and sends it back to all but DeepSeek', async () => {
  const block = { reasoningContent: { reasoningText: { text: 'Let me see' } } }
  const { reply } = await outcomeFrom([
    event('contentBlockDelta', {
      contentBlockIndex: 0,
      delta: { reasoningContent: { text: 'Let me' } },
    }),
    event('contentBlockDelta', {
      contentBlockIndex: 0,
      delta: { reasoningContent: { text: ' see' } },
    }),
    event('contentBlockDelta', { contentBlockIndex: 1, delta: { text: 'Hi' } }),
    ...tail('end_turn'),
  ])
  assert.deepEqual(reply?.parts, [opaque(block), { type: 'text', text: 'Hi' }])
  const messages: Message[] = [
    user('x'),
    { role: 'assistant', parts: reply?.parts ?? [], results: [] },
  ]
  const sent = (id: string) =>
    (bedrock({ model: id }).render(request({ messages })) as Json).messages[1].content
  assert.deepEqual(sent('us.deepseek.r1-v1:0'), [{ text: 'Hi' }])
  assert.deepEqual(sent('openai.gpt-oss-120b-1:0'), [block, { text: 'Hi' }])
})

test('bedrock joins redacted thinking and signatures that come in pieces', async () => {
  const bytes = Buffer.from([0, 1, 2, 253, 254, 255, 10])
  const delta = (contentBlockIndex: number, reasoningContent: object) =>
    event('contentBlockDelta', { contentBlockIndex, delta: { reasoningContent } })
  const { reply } = await outcomeFrom([
    delta(0, { redactedContent: bytes.subarray(0, 2).toString('base64') }),
    delta(0, { redactedContent: bytes.subarray(2).toString('base64') }),
    event('contentBlockStop', { contentBlockIndex: 0 }),
    delta(1, { signature: 'abc' }),
    delta(1, { signature: 'def=' }),
    ...tail('end_turn'),
  ])
  assert.deepEqual(reply?.parts, [
    opaque({ reasoningContent: { redactedContent: bytes.toString('base64') } }),
    opaque({ reasoningContent: { reasoningText: { text: '', signature: 'abcdef=' } } }),
  ])
})

test('bedrock says what a guardrail or a filter did, and keeps its words', async () => {
  for (const reason of ['guardrail_intervened', 'content_filtered', 'refusal']) {
    const trace = { guardrail: { actionReason: 'blocked' } }
    const events = [
      event('contentBlockDelta', { contentBlockIndex: 0, delta: { text: 'Sorry, no.' } }),
      event('messageStop', { stopReason: reason }),
      event('metadata', { usage: counts, trace }),
    ]
    const { reply } = await outcomeFrom(events)
    assert.equal(reply?.finishReason, 'content_filter')
    assert.deepEqual(reply?.parts, [{ type: 'text', text: 'Sorry, no.' }])
    assert.deepEqual(rawOf(reply), {
      finishReason: reason,
      stopReason: reason,
      requestId: 'req-1',
      usage: counts,
      trace,
    })
  }
})

test('bedrock maps the other reasons, and one to come to a stop', async () => {
  for (const [reason, finish] of [
    ['max_tokens', 'length'],
    ['model_context_window_exceeded', 'length'],
    ['stop_sequence', 'stop'],
    ['reason_to_come', 'stop'],
  ]) {
    const { reply } = await outcomeFrom(tail(reason as string))
    assert.equal(reply?.finishReason, finish, reason)
  }
})

test('bedrock tries again what the model garbled', async () => {
  for (const reason of ['malformed_tool_use', 'malformed_model_output']) {
    await withVendor(
      (_, n) => (n === 0 ? stream(tail(reason)) : streamed(hello)),
      async (vendor) => {
        const { reply } = await outcomeOf(providerFor(vendor, { clock: instant() }))
        assert.equal(vendor.asked.length, 2)
        assert.deepEqual(reply?.parts, [{ type: 'text', text: 'Hello' }])
        const { error } = await outcomeOf(providerFor(vendor, { retries: 0 }))
        assert.equal(error, undefined)
        vendor.answer(stream(tail(reason)))
        const { error: last } = await outcomeOf(providerFor(vendor, { retries: 0 }))
        assert.equal(last?.code, 'provider_invalid')
        assert.match(last?.message ?? '', new RegExp(reason))
      },
    )
  }
})

test('bedrock reads numbers that no double holds alike, whole and streamed', async () => {
  const args = '{"big":12345678901234567890,"fine":0.1234567890123456789,"n":[1e400,-0.5]}'
  const content = `[{"toolUse":{"toolUseId":"t","name":"f","input":${args}}}]`
  const body = `{"output":{"message":{"content":${content}}},"stopReason":"tool_use","usage":{}}`
  const call = { call: 'f', id: 't', args: [args] }
  const streamed = await outcomeFrom(streamOf({ parts: [call], finish: 'tool_call', usage }))
  await withVendor(
    { headers: { 'content-type': 'application/json' }, pieces: [body] },
    async (vendor) => {
      const { reply } = await outcomeOf(providerFor(vendor), { stream: false })
      const [first] = (reply?.parts ?? []) as (Part & { type: 'tool_call' })[]
      assert.equal(JSON.stringify(first?.input), JSON.stringify(JSON.parse(args)))
      assert.equal(JSON.stringify(streamed.reply?.parts[0]), JSON.stringify(first))
    },
  )
})

test('bedrock leaves as text an input with keys that reach prototypes', async () => {
  const args = '{"a":{"__proto__":{"isAdmin":true}}}'
  const content = `[{"toolUse":{"toolUseId":"t","name":"f","input":${args}}}]`
  const body = `{"output":{"message":{"content":${content}}},"stopReason":"tool_use","usage":{}}`
  const headers = { 'content-type': 'application/json' }
  await withVendor({ headers, pieces: [body] }, async (vendor) => {
    const { reply } = await outcomeOf(providerFor(vendor), { stream: false })
    const [call] = (reply?.parts ?? []) as (Part & { type: 'tool_call' })[]
    assert.equal(call?.input, '{"a":{"__proto__":null}}')
  })
  const call = { call: 'f', id: 't', args: [args] }
  const { reply } = await outcomeFrom(streamOf({ parts: [call], finish: 'tool_call', usage }))
  assert.deepEqual(reply?.parts, [{ type: 'tool_call', id: 't', name: 'f', input: args }])
})

// ---- Streams that go wrong

const members = [
  'internalServerException',
  'modelStreamErrorException',
  'serviceUnavailableException',
  'throttlingException',
  'validationException',
]

for (const member of members) {
  test(`bedrock tries a stream again that begins with ${member}, and none that goes on with it`, async () => {
    const failing = stream([exception(member, 'try later')])
    for (const make of [providerFor, providerBySdk]) {
      const clock = instant()
      await withVendor(
        (_, n) => (n < 2 ? failing : streamed(hello)),
        async (vendor) => {
          const { reply, text } = await outcomeOf(make(vendor, { clock }))
          assert.equal(reply?.finishReason, 'stop')
          assert.equal(text, 'Hello')
          assert.equal(vendor.asked.length, 3)
          assert.equal(clock.waits.length, 2)
          const [start, first] = streamOf(hello) as [Buffer, Buffer]
          vendor.answer(stream([start, first, exception(member, 'too late')]))
          const after = await outcomeOf(make(vendor, { clock }))
          assert.equal(after.text, 'Hel')
          assert.match(after.error?.message ?? '', /broke off: too late/)
          assert.equal(vendor.asked.length, 4)
        },
      )
    }
  })
}

test('bedrock names an exception to come, and one that only the protocol knows', async () => {
  const headers = {
    ':message-type': 'error',
    ':error-code': 'BadThing',
    ':error-message': 'so bad',
  }
  for (const [bytes, words] of [
    [exception('exceptionToCome', 'who knows'), /broke off: who knows/],
    [
      frame({ ':message-type': 'exception', ':exception-type': 'fooException' }, '{}'),
      /broke off$/,
    ],
    [frame(headers, ''), /\(BadThing\)|so bad/],
  ] as const) {
    for (const make of [providerFor, providerBySdk]) {
      await withVendor(stream([bytes]), async (vendor) => {
        const { error } = await outcomeOf(make(vendor, { clock: instant() }))
        assert.ok(error instanceof ProviderError, inspect(error))
        assert.equal(vendor.asked.length, 3, error.message)
        if (make === providerFor) assert.match(error.message, words)
      })
    }
  }
})

test('bedrock says that the context is too long, whether as an answer or as an event', async () => {
  for (const words of [
    'Input is too long for requested model.',
    'The model returned the following errors: prompt is too long: 903884 tokens > 200000 maximum',
    'Input Tokens Exceeded: Number of input tokens exceeds maximum length.',
    'input length and `max_tokens` exceed context limit: 197202 + 21333 > 200000',
    "This model's maximum context length is 202752 tokens.",
    'too many total text bytes: 34404810 > 25000000',
  ]) {
    for (const answer of [
      refusal(400, 'ValidationException', words),
      stream([exception('validationException', words)]),
    ]) {
      await withVendor(answer, async (vendor) => {
        const { error } = await outcomeOf(providerFor(vendor, { clock: instant() }))
        assert.equal(error?.code, 'context_too_long', words)
        assert.equal(vendor.asked.length, 1)
      })
    }
  }
})

test('bedrock does not take throttling for a long context', async () => {
  for (const [status, type, words] of [
    [429, 'ThrottlingException', 'Too many tokens, please wait before trying again.'],
    [400, 'ThrottlingException', 'Too many tokens per day, please wait before trying again.'],
    [400, 'ValidationException', 'Too many requests, please wait before trying again.'],
  ] as const) {
    await withVendor(refusal(status, type, words), async (vendor) => {
      const { error } = await outcomeOf(providerFor(vendor, { clock: instant() }), {
        stream: false,
      })
      assert.equal(error?.code, 'provider_overloaded')
      assert.equal(vendor.asked.length, 3)
    })
  }
})

test('bedrock believes no event whose checksums or lengths are wrong', async () => {
  const whole = event('contentBlockDelta', { contentBlockIndex: 0, delta: { text: 'four' } })
  const at = whole.indexOf('four')
  const changed = (change: (bytes: Buffer) => void) => {
    const bytes = Buffer.from(whole)
    change(bytes)
    return bytes
  }
  for (const bytes of [
    changed((b) => b.write('five', at)),
    changed((b) => b.writeUInt32BE(b.readUInt32BE(8) ^ 1, 8)),
    changed((b) => b.writeUInt32BE(b.readUInt32BE(b.length - 4) ^ 1, b.length - 4)),
    frameOf(Buffer.from([1, 65, 7, 255, 255]), Buffer.from('{}')),
    frameOf(Buffer.from([1, 65, 99]), Buffer.from('{}')),
  ]) {
    for (const make of [providerFor, providerBySdk]) {
      await withVendor(stream([bytes, ...tail('end_turn')]), async (vendor) => {
        const { reply, error } = await outcomeOf(make(vendor, { retries: 0 }))
        assert.equal(reply, undefined)
        assert.equal(error?.code, 'provider_invalid', error?.message)
      })
    }
  }
})

test('bedrock refuses an event of more than 1 MiB before it has read it, and a stream of more than 16', async () => {
  const huge = event('contentBlockDelta', { delta: { text: 'x'.repeat(1024 * 1024) } })
  const { error } = await outcomeFrom([huge.subarray(0, 20)], { end: 'hang' })
  assert.equal(error?.code, 'provider_invalid')
  assert.match(error?.message ?? '', /event of more than 1 MiB/)
  const big = event('contentBlockDelta', { contentBlockIndex: 0, delta: { text: 'x'.repeat(1e6) } })
  const { error: second } = await outcomeFrom(Array(17).fill(big))
  assert.equal(second?.code, 'provider_invalid')
  assert.match(second?.message ?? '', /more than 16 MiB/)
})

test('bedrock does not wait for a connection that stays open after the last event', async () => {
  const vendor = await fakeVendor(streamed(hello, { end: 'hang' }))
  try {
    const { reply } = await outcomeOf(providerFor(vendor))
    assert.equal(reply?.finishReason, 'stop')
    await vendor.asked[0]?.closed
  } finally {
    await vendor.close()
  }
})

test('bedrock takes an answer without usage for whole only where HTTP says so', async () => {
  const events = streamOf(hello).slice(0, -1)
  const { reply } = await outcomeFrom(events)
  assert.deepEqual([reply?.finishReason, reply?.usage.inputTokens], ['stop', 0])
  const { error } = await outcomeFrom(events, { framing: 'close' })
  assert.equal(error?.code, 'provider_truncated')
})

// ---- Errors and their cures

const cures: [string, FakeAnswer, string, RegExp][] = [
  [
    'an expired token',
    refusal(403, 'ExpiredTokenException', 'The security token included in the request is expired'),
    'provider_auth',
    /expired\. The credentials have expired\. Sign in again \(aws sso login/,
  ],
  [
    'keys that AWS does not know',
    refusal(
      403,
      'UnrecognizedClientException',
      'The security token included in the request is invalid.',
    ),
    'provider_auth',
    /check the keys, and that the clock is right/,
  ],
  [
    'a signature that does not fit',
    refusal(
      403,
      'InvalidSignatureException',
      'No match.\n\nThe Canonical String for this request should have been\nx-amz-security-token:abc',
    ),
    'provider_auth',
    /answered 403: No match\. AWS does not accept/,
  ],
  [
    'no access to the model',
    refusal(
      403,
      'AccessDeniedException',
      "You don't have access to the model with the specified model ID.",
    ),
    'provider_auth',
    /Allow bedrock:InvokeModel and bedrock:InvokeModelWithResponseStream on eu\.anthropic.* in eu-central-1/,
  ],
  [
    'a model that needs an inference profile',
    refusal(
      400,
      'ValidationException',
      'Invocation of model ID x with on-demand throughput isn’t supported. Retry your request with the ID or ARN of an inference profile that contains this model.',
    ),
    'provider_config',
    /Call it by an inference profile, e\.g\. eu\.anthropic/,
  ],
  [
    'a model that the region does not have',
    refusal(400, 'ValidationException', 'The provided model identifier is invalid.'),
    'provider_config',
    /spelled right, and offered in eu-central-1/,
  ],
  [
    'a model that is not there',
    refusal(
      404,
      'ResourceNotFoundException',
      'Could not resolve the foundation model from the provided model identifier.',
    ),
    'provider_config',
    /list-foundation-models/,
  ],
  [
    'a cache point that a model does not take',
    refusal(
      400,
      'ValidationException',
      '#/toolConfig/tools/1: extraneous key [cachePoint] is not permitted',
    ),
    'provider_config',
    /switch the cache off/,
  ],
  [
    'throttling',
    refusal(429, 'ThrottlingException', 'Too many requests, please wait before trying again.'),
    'provider_overloaded',
    /quota for eu\.anthropic.* is used up for now/,
  ],
  [
    'a role that cannot be assumed',
    refusal(403, 'AccessDenied', 'User: x may not perform: sts:AssumeRole on resource: y'),
    'provider_auth',
    /cannot be assumed: see its trust policy/,
  ],
  [
    'a sign-in that is over',
    refusal(401, 'UnauthorizedException', 'Session token not found or invalid'),
    'provider_auth',
    /Sign in again \(aws sso login/,
  ],
  [
    'a quota',
    refusal(400, 'ServiceQuotaExceededException', 'Quota'),
    'provider_config',
    /400: Quota$/,
  ],
  [
    'a model that is not ready',
    refusal(429, 'ModelNotReadyException', 'Wait'),
    'provider_overloaded',
    /: Wait$/,
  ],
  [
    'a model that was too slow',
    refusal(408, 'ModelTimeoutException', 'Slow'),
    'provider_timeout',
    /: Slow$/,
  ],
  [
    'a model that failed',
    refusal(424, 'ModelErrorException', 'Failed'),
    'provider_error',
    /: Failed$/,
  ],
  [
    "a proxy's page",
    { status: 502, pieces: ['<html>Bad gateway</html>'] },
    'provider_error',
    /answered 502$/,
  ],
]

for (const [what, answer, code, message] of cures) {
  test(`bedrock answers ${what} with its cure`, async () => {
    await withVendor(answer, async (vendor) => {
      for (const stream of [false, true]) {
        for (const make of [providerFor, providerBySdk]) {
          const { error } = await outcomeOf(make(vendor, { retries: 0 }), { stream })
          assert.ok(error instanceof ProviderError, inspect(error))
          assert.equal(error.code, code)
          assert.match(error.message, message)
          assert.equal(error.provider, 'aws.bedrock')
          if (answer.headers) assert.equal(error.requestId, 'req-1')
        }
      }
    })
  })
}

test('bedrock tells of missing credentials without asking anybody', async () => {
  await withEnv({ AWS_ACCESS_KEY_ID: undefined, AWS_SECRET_ACCESS_KEY: undefined }, async () => {
    await withVendor(json(hello), async (vendor) => {
      const { error } = await outcomeOf(providerFor(vendor))
      assert.equal(error?.code, 'provider_auth')
      assert.match(error?.message ?? '', /No AWS credentials\. Set AWS_PROFILE/)
      assert.equal(vendor.asked.length, 0)
    })
  })
})

test('bedrock tells of a profile that is not there', async () => {
  await withVendor(json(hello), async (vendor) => {
    const { error } = await outcomeOf(providerFor(vendor, { profile: 'nobody' }))
    assert.equal(error?.code, 'provider_auth')
    assert.match(error?.message ?? '', /nobody/)
    assert.equal(vendor.asked.length, 0)
  })
})

test('bedrock tells of a missing region', async () => {
  await withEnv({ AWS_REGION: undefined }, async () => {
    const { error } = await outcomeOf(bedrock({ model }))
    assert.equal(error?.code, 'provider_config')
    assert.match(error?.message ?? '', /Region is missing.*AWS_REGION/)
  })
})

test('bedrock looks for credentials anew once they were refused', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'bedrock-'))
  const file = join(folder, 'credentials')
  const put = (key: string) =>
    writeFileSync(file, `[ops]\naws_access_key_id=${key}\naws_secret_access_key=s\n`)
  const env = {
    AWS_SHARED_CREDENTIALS_FILE: file,
    AWS_PROFILE: 'ops',
    AWS_ACCESS_KEY_ID: undefined,
  }
  try {
    await withEnv(env, async () => {
      const expired = refusal(403, 'ExpiredTokenException', 'expired')
      await withVendor(
        (_, n) => (n === 1 ? expired : json(hello)),
        async (vendor) => {
          const provider = providerFor(vendor)
          const call = () => outcomeOf(provider, { stream: false })
          put('KEYONE')
          await call()
          put('KEYTWO')
          assert.match((await call()).error?.message ?? '', /aws sso login --profile ops/)
          await call()
          const keys = vendor.asked.map(
            (asked) => /Credential=(\w+)/.exec(asked.headers.authorization ?? '')?.[1],
          )
          assert.deepEqual(keys, ['KEYONE', 'KEYONE', 'KEYTWO'])
        },
      )
    })
  } finally {
    rmSync(folder, { recursive: true })
  }
})

test('bedrock corrects a clock that is wrong and asks again', async () => {
  const date = new Date(Date.now() + 3_600_000).toUTCString()
  const skewed = refusal(403, 'InvalidSignatureException', 'Signature expired')
  const answer = { ...skewed, headers: { ...skewed.headers, date } }
  await withVendor(
    (_, n) => (n === 0 ? answer : json(hello)),
    async (vendor) => {
      const provider = providerFor(vendor, { clock: instant() })
      const { reply } = await outcomeOf(provider, { stream: false })
      assert.equal(reply?.finishReason, 'stop')
      const [wrong = '', right = ''] = vendor.asked.map((asked) => asked.headers['x-amz-date'])
      assert.ok(right > wrong)
    },
  )
})

// ---- Region, credentials, clients

test('bedrock signs for the region and as the profile it is given', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'bedrock-'))
  const file = join(folder, 'credentials')
  writeFileSync(file, '[ops]\naws_access_key_id=OPSKEY\naws_secret_access_key=s\n')
  try {
    await withEnv({ AWS_SHARED_CREDENTIALS_FILE: file, AWS_ACCESS_KEY_ID: undefined }, async () => {
      await withVendor(json(hello), async (vendor) => {
        const scopeOf = async (options: Partial<BedrockOptions>) => {
          await outcomeOf(providerFor(vendor, options), { stream: false })
          const { authorization = '' } = vendor.asked.at(-1)?.headers ?? {}
          const [, key, region] =
            /Credential=(\w+)\/\d+\/([\w-]+)\/bedrock/.exec(authorization) ?? []
          return [key, region]
        }
        const profile = 'ops'
        assert.deepEqual(await scopeOf({ profile }), ['OPSKEY', 'eu-central-1'])
        assert.deepEqual(await scopeOf({ profile, region: 'us-west-2' }), ['OPSKEY', 'us-west-2'])
        await withEnv({ AWS_REGION: undefined, AWS_DEFAULT_REGION: 'ap-south-1' }, async () => {
          assert.deepEqual(await scopeOf({ profile }), ['OPSKEY', 'ap-south-1'])
        })
      })
    })
  } finally {
    rmSync(folder, { recursive: true })
  }
})

test('bedrock goes where the environment says that Bedrock is', async () => {
  await withVendor(refusal(400, 'ValidationException', 'no'), async (vendor) => {
    await withEnv({ AWS_ENDPOINT_URL_BEDROCK_RUNTIME: vendor.url }, async () => {
      const { error } = await outcomeOf(bedrock({ model, region: 'sa-east-1' }))
      assert.equal(error?.message, `${new URL(vendor.url).host} answered 400: no`)
    })
  })
})

test('bedrock takes a bearer token, and shows it to nobody', async () => {
  await withEnv({ AWS_BEARER_TOKEN_BEDROCK: 'bearer-canary' }, async () => {
    await withVendor(refusal(403, 'AccessDeniedException', 'no bearer-canary'), async (vendor) => {
      const { error } = await outcomeOf(providerFor(vendor), { stream: false })
      assert.equal(vendor.asked[0]?.headers.authorization, 'Bearer bearer-canary')
      assert.ok(!inspect(error, { depth: 9, showHidden: true }).includes('bearer-canary'))
    })
  })
})

test('bedrock puts an ARN into the path as one segment', async () => {
  const arn = 'arn:aws:bedrock:eu-central-1:123456789012:application-inference-profile/abc'
  await withVendor(json(hello), async (vendor) => {
    await outcomeOf(providerFor(vendor, { model: arn }), { stream: false })
    assert.equal(vendor.asked[0]?.path, `/model/${encodeURIComponent(arn)}/converse`)
    await outcomeOf(providerFor(vendor, { model: arn }))
    assert.equal(vendor.asked[1]?.path, `/model/${encodeURIComponent(arn)}/converse-stream`)
  })
})

test('bedrock keeps its connections for all providers, over HTTP/1.1', async () => {
  const answering: Answering = (asked) => (isStream(asked) ? streamed(hello) : json(hello))
  await withVendor(answering, async (vendor) => {
    for (let i = 0; i < 9; i++) await outcomeOf(providerFor(vendor), { stream: i % 2 === 0 })
    assert.equal(vendor.asked.length, 9)
    assert.ok(new Set(vendor.asked.map((asked) => asked.closed)).size <= 2)
  })
})

test("bedrock switches off the retries of a client of the caller's", async () => {
  await withVendor(refusal(503, 'ServiceUnavailableException', 'later'), async (vendor) => {
    const client = clientOf(vendor.url, { maxAttempts: 5 })
    const clock = instant()
    const { error } = await outcomeOf(bedrock({ model, client, clock }), { stream: false })
    assert.equal(error?.code, 'provider_overloaded')
    assert.equal(vendor.asked.length, 3)
    assert.equal(clock.waits.length, 2)
  })
})

test("bedrock leaves the request to the middleware of a client of the caller's", async () => {
  const guardrailConfig = { guardrailIdentifier: 'g', guardrailVersion: '1' }
  await withVendor(json(hello), async (vendor) => {
    const client = clientOf(vendor.url)
    const guarded = (next: Json) => (args: Json) =>
      next({ ...args, input: { ...args.input, guardrailConfig } })
    client.middlewareStack.add(guarded, { step: 'initialize' })
    await outcomeOf(bedrock({ model, client }), { stream: false })
    assert.deepEqual(vendor.asked[0]?.body.guardrailConfig, guardrailConfig)
    assert.deepEqual(vendor.asked[0]?.body.messages, [{ role: 'user', content: [{ text: 'go' }] }])
  })
})

test('bedrock works through anything that sends commands', async () => {
  const sent: Json[] = []
  const events = [
    { messageStart: { role: 'assistant' } },
    {
      contentBlockDelta: {
        contentBlockIndex: 0,
        delta: { reasoningContent: { redactedContent: new Uint8Array([0, 255]) } },
      },
    },
    { contentBlockDelta: { contentBlockIndex: 1, delta: { text: 'Hi' } } },
    { messageStop: { stopReason: 'end_turn' } },
  ]
  const client = {
    async send(command: Json) {
      sent.push(command.input)
      return {
        stream: (async function* () {
          yield* events
        })(),
      }
    },
  }
  const { reply } = await outcomeOf(bedrock({ model, client }))
  const redacted = opaque({ reasoningContent: { redactedContent: 'AP8=' } })
  assert.deepEqual(reply?.parts, [redacted, { type: 'text', text: 'Hi' }])
  assert.deepEqual(sent, [{ modelId: model, ...(bedrock({ model }).render(request()) as object) }])
})

test('bedrock aborts and keeps its clocks though a client heeds neither', async () => {
  const never = new Promise<never>(() => {})
  const stuck = { send: () => never }
  const silent = {
    send: async () => ({ stream: { [Symbol.asyncIterator]: () => ({ next: () => never }) } }),
  }
  for (const client of [stuck, silent]) {
    const controller = new AbortController()
    const reason = new Error('enough')
    setTimeout(() => controller.abort(reason), 10)
    const { error } = await outcomeOf(bedrock({ model, client }), { signal: controller.signal })
    assert.equal(error, reason)
    const timeouts = { firstEventMs: 20 }
    const late = await outcomeOf(bedrock({ model, client, timeouts, retries: 0 }))
    assert.equal(late.error?.code, 'provider_timeout')
  }
})

test('bedrock refuses to send in clear, but to this host or where it is told to', async () => {
  const endpoint = 'http://bedrock.internal:8080'
  const refused = {
    code: 'provider_config',
    message: /bedrock\.internal:8080 must be reached over https/,
  }
  assert.throws(() => bedrock({ model, endpoint }), refused)
  assert.equal(bedrock({ model, endpoint, allowHttp: true }).model, model)
  assert.throws(() => bedrock({ model, endpoint: 'no url' }), { code: 'provider_config' })
  assert.throws(() => bedrock({ model: '' }), { code: 'provider_config', message: /pass model/ })
})

test('bedrock reads the clocks of the original, in seconds', async () => {
  await withVendor({ end: 'mute' }, async (vendor) => {
    await withEnv({ BOTO3_READ_TIMEOUT: '0.05', BOTO3_CONNECT_TIMEOUT: '7' }, async () => {
      const { error } = await outcomeOf(providerFor(vendor, { retries: 0 }))
      assert.match(error?.message ?? '', /sent nothing within 50 ms \(timeouts\.firstEventMs\)/)
      const given = { firstEventMs: 70, idleMs: 1000 }
      const { error: own } = await outcomeOf(providerFor(vendor, { retries: 0, timeouts: given }))
      assert.match(own?.message ?? '', /within 70 ms/)
    })
    for (const wrong of ['soon', '-1', 'NaN']) {
      await withEnv({ BOTO3_READ_TIMEOUT: wrong }, async () => {
        const named = {
          code: 'provider_config',
          message: /BOTO3_READ_TIMEOUT must be a number of seconds/,
        }
        assert.throws(() => bedrock({ model }), named)
      })
    }
  })
})

for (const stream of [false, true]) {
  test(`bedrock takes a whole conversation with tools through aimock, ${stream ? 'streamed' : 'whole'}`, async () => {
    const mock = new LLMock({ port: 0 })
    const toolCalls = [
      { name: 'list_pods', arguments: '{"namespace":"prod"}', id: 'tooluse_1' },
      { name: 'get_node', arguments: '{}', id: 'tooluse_2' },
    ]
    const asked = { content: 'I look.', toolCalls, reasoning: 'Pods first.' }
    mock.on({ userMessage: /pods/, hasToolResult: false }, asked)
    mock.on({ userMessage: /pods/, hasToolResult: true }, { content: 'Three pods run.' })
    await mock.start()
    try {
      const provider = bedrock({ model, endpoint: mock.url })
      const messages: Message[] = [user('which pods?')]
      const ran: string[] = []
      let reply: ModelReply
      for (;;) {
        const outcome = await outcomeOf(provider, { stream, request: request({ messages }) })
        assert.ok(outcome.reply, String(outcome.error))
        reply = outcome.reply
        const calls = reply.parts.filter((part) => part.type === 'tool_call')
        const results = calls.map(({ id, name }) => {
          return { callId: id, outcome: 'ok' as const, content: `${name} done` }
        })
        ran.push(...calls.map(({ name, input }) => `${name} ${JSON.stringify(input)}`))
        messages.push({ role: 'assistant', parts: reply.parts, results })
        if (calls.length === 0) break
      }
      assert.deepEqual(ran, ['list_pods {"namespace":"prod"}', 'get_node {}'])
      assert.deepEqual(reply.parts, [{ type: 'text', text: 'Three pods run.' }])
      assert.equal(mock.getRequests().length, 2)
    } finally {
      await mock.stop()
    }
  })
}

// ---- Helpers

function providerFor(vendor: FakeVendor, options: Partial<BedrockOptions> = {}) {
  return bedrock({ model, endpoint: vendor.url, ...options })
}

/** Through a client as the SDK's documentation makes one, with its own handler and its own reader of streams. */
function providerBySdk(vendor: FakeVendor, options: Partial<BedrockOptions> = {}) {
  return bedrock({ model, client: clientOf(vendor.url), region: 'eu-central-1', ...options })
}

async function withVendor(answer: Answering, run: (vendor: FakeVendor) => Promise<void>) {
  const vendor = await fakeVendor(answer)
  try {
    await run(vendor)
  } finally {
    await vendor.close()
  }
}

async function withEnv(env: Record<string, string | undefined>, run: () => Promise<void>) {
  const before = { ...process.env }
  for (const [name, value] of Object.entries(env)) {
    if (value === undefined) delete process.env[name]
    else process.env[name] = value
  }
  try {
    await run()
  } finally {
    process.env = before
  }
}

/** What the provider makes of these events, or of this whole answer. */
async function outcomeFrom(said: Buffer[] | object, more: FakeAnswer = {}) {
  const vendor = await fakeVendor(
    Array.isArray(said)
      ? stream(said, more)
      : {
          headers: { 'content-type': 'application/json' },
          pieces: [JSON.stringify(said)],
          ...more,
        },
  )
  try {
    return await outcomeOf(providerFor(vendor, { retries: 0 }), { stream: Array.isArray(said) })
  } finally {
    await vendor.close()
  }
}

function isStream({ path }: { path: string }): boolean {
  return path.endsWith('/converse-stream')
}

function stream(pieces: Buffer[], more: FakeAnswer = {}): FakeAnswer {
  return { headers: { 'content-type': eventStream, 'x-amzn-requestid': 'req-1' }, pieces, ...more }
}

function streamed(said: Said, more: FakeAnswer = {}): FakeAnswer {
  return stream(streamOf(said), more)
}

function json(said: Said): FakeAnswer {
  const headers = { 'content-type': 'application/json', 'x-amzn-requestid': 'req-1' }
  return { headers, pieces: [answerOf(said)], framing: 'length' }
}

function tail(stopReason: string): Buffer[] {
  return [event('messageStop', { stopReason }), event('metadata', { usage: counts })]
}

/** As the service says it: the type in a header, with a URL after it. */
function refusal(status: number, type: string, message: string): FakeAnswer {
  const headers = {
    'content-type': 'application/json',
    'x-amzn-requestid': 'req-1',
    'x-amzn-errortype': `${type}:http://internal.amazon.com/coral/com.amazon.bedrock/`,
  }
  return { status, headers, pieces: [JSON.stringify({ message })], framing: 'length' }
}

function rawOf(reply: ModelReply | undefined): Json {
  return reply?.raw
}

function opaque(data: unknown): Part {
  return { type: 'opaque', provider: 'aws.bedrock', data }
}

test('an approval goes its whole way against an independent mock, and again from a cassette of it', async () => {
  await approvalConversation((endpoint) => bedrock({ model, endpoint }))
})
