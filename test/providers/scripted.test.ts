import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { ModelRequest } from '../../src/providers/provider.ts'
import { noUsage } from '../../src/providers/provider.ts'
import { scripted } from '../../src/providers/scripted.ts'

function ask(text: string): ModelRequest {
  return { system: [], tools: [], messages: [{ role: 'user', parts: [{ type: 'text', text }] }] }
}

test('each entry answers one call, in order', async () => {
  const model = scripted([
    'one',
    { text: 'two', finishReason: 'length', usage: { inputTokens: 7 } },
  ])
  assert.deepEqual(await model.complete(ask('a')), {
    parts: [{ type: 'text', text: 'one' }],
    finishReason: 'stop',
    usage: noUsage,
  })
  assert.deepEqual(await model.complete(ask('b')), {
    parts: [{ type: 'text', text: 'two' }],
    finishReason: 'length',
    usage: { ...noUsage, inputTokens: 7 },
  })
})

test('opaque data comes before the text, calls after it, and calls without ids get unique ones', async () => {
  const calls = [{ name: 'get', input: { n: 1 } }, { name: 'get' }, { id: 'mine', name: 'put' }]
  const model = scripted([{ text: 'I will', calls, opaque: { signature: 's' } }], { name: 'x' })
  const { parts, finishReason } = await model.complete(ask('a'))
  const ids = parts.flatMap((part) => (part.type === 'tool_call' ? [part.id] : []))
  assert.equal(new Set(ids).size, 3)
  assert.deepEqual(parts, [
    { type: 'opaque', provider: 'x', data: { signature: 's' } },
    { type: 'text', text: 'I will' },
    { type: 'tool_call', id: ids[0], name: 'get', input: { n: 1 } },
    { type: 'tool_call', id: ids[1], name: 'get', input: {} },
    { type: 'tool_call', id: 'mine', name: 'put', input: {} },
  ])
  assert.equal(finishReason, 'tool_call')
})

test('given parts are the reply as they are; an empty text is no part', async () => {
  const parts = [
    { type: 'text' as const, text: 'a' },
    { type: 'tool_call' as const, id: 'c', name: 'get', input: {} },
    { type: 'opaque' as const, provider: 'other', data: { signature: 's' } },
  ]
  const model = scripted([{ parts }, ''])
  const reply = await model.complete(ask('a'))
  assert.deepEqual([reply.parts, reply.finishReason], [parts, 'tool_call'])
  assert.deepEqual((await model.complete(ask('a'))).parts, [])
})

test('pieces stream one by one, the next only after the promise of the one before', async () => {
  const seen: string[] = []
  const reply = await scripted([['a', '', 'b']]).complete(ask('x'), {
    onDelta: async ({ text }) => {
      seen.push(`${text} begins`)
      await new Promise((resolve) => setImmediate(resolve))
      seen.push(`${text} ends`)
    },
  })
  assert.deepEqual(seen, ['a begins', 'a ends', 'b begins', 'b ends'])
  assert.deepEqual(reply.parts, [{ type: 'text', text: 'ab' }])
})

test('an Error is thrown as it is; one in a reply comes after its pieces', async () => {
  const boom = new Error('boom')
  const model = scripted([boom, { pieces: ['par'], error: boom }])
  await assert.rejects(model.complete(ask('a')), boom)
  const seen: string[] = []
  const streaming = model.complete(ask('a'), { onDelta: ({ text }) => void seen.push(text) })
  await assert.rejects(streaming, boom)
  assert.deepEqual(seen, ['par'])
})

test('a function sees the request and may answer later; one in place of the list never runs out', async () => {
  const list = scripted([async (request) => `${request.messages.length} message`])
  assert.deepEqual((await list.complete(ask('a'))).parts, [{ type: 'text', text: '1 message' }])
  const endless = scripted((_request, _options, index) => [`call ${index}`])
  await endless.complete(ask('a'))
  assert.deepEqual((await endless.complete(ask('a'))).parts, [{ type: 'text', text: 'call 1' }])
})

test('a call beyond the script says how many replies there were', async () => {
  const model = scripted(['only'])
  await model.complete(ask('a'))
  await assert.rejects(model.complete(ask('b')), {
    code: 'provider_error',
    message: /The script had 1 reply, and this is model call 2/,
  })
})

test('an entry that is no reply is named', async () => {
  const model = scripted([5 as unknown as string])
  await assert.rejects(model.complete(ask('a')), { code: 'invalid_argument', message: /got 5/ })
})

test('requests are copies: what the caller changes later does not show', async () => {
  const model = scripted(['a'])
  const request = ask('before')
  await model.complete(request)
  request.messages.push({ role: 'assistant', parts: [], results: [] })
  assert.deepEqual(model.requests, [ask('before')])
})

test('an abort ends a hanging script and a hanging reader with the reason of the signal', async () => {
  const hang = () => new Promise<never>(() => {})
  for (const model of [scripted([hang]), scripted(['text'])]) {
    const controller = new AbortController()
    const call = model.complete(ask('a'), { signal: controller.signal, onDelta: hang })
    controller.abort(new Error('gone'))
    await assert.rejects(call, { message: 'gone' })
    await assert.rejects(model.complete(ask('a'), { signal: controller.signal }), {
      message: 'gone',
    })
    assert.equal(model.requests.length, 1, 'a call aborted before it began asks nothing')
  }
})

test('an abort between pieces stops the stream', async () => {
  const controller = new AbortController()
  const seen: string[] = []
  const call = scripted([['a', 'b']]).complete(ask('x'), {
    signal: controller.signal,
    onDelta: ({ text }) => {
      seen.push(text)
      controller.abort(new Error('enough'))
    },
  })
  await assert.rejects(call, { message: 'enough' })
  await new Promise((resolve) => setImmediate(resolve))
  assert.deepEqual(seen, ['a'])
})
