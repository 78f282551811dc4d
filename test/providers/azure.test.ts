// Azure's wire: the shared table, and what Azure does otherwise than OpenAI. The official SDK reads the same bytes.

import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { AzureOpenAI } from 'openai'
import { azure } from '../../src/providers/azure.ts'
import type { ChatBody } from '../../src/providers/openai.ts'
import type { ModelReply } from '../../src/providers/provider.ts'
import {
  approvalConversation,
  chatWire,
  delta,
  type Json,
  message,
  sse,
  stream,
  whole,
} from './chat.ts'
import { type FakeAnswer, type FakeVendor, fakeVendor } from './fake.ts'
import { conformance, instant, user } from './table.ts'

const name = 'azure.ai.openai'
conformance(
  chatWire(
    {
      name,
      make: ({ url, key, ...options }) =>
        azure({ deployment: 'gpt-test', apiKey: key, endpoint: url, ...options }),
    },
    name,
  ),
)

let vendor: FakeVendor
const saved = { ...process.env }
before(async () => {
  vendor = await fakeVendor()
})
after(() => vendor.close())

const ask = { system: [], messages: [user('hi')], tools: [] }
type Options = Partial<Parameters<typeof azure>[0]>

function make(options: Options = {}) {
  return azure({
    deployment: 'prod gpt',
    endpoint: vendor.url,
    apiKey: 'test-key',
    apiVersion: '2024-10-21',
    retries: 0,
    ...options,
  })
}

async function streamed(chunks: Json[]): Promise<{ reply: ModelReply; deltas: string[] }> {
  vendor.answer(stream(sse(chunks)))
  const deltas: string[] = []
  const reply = await make().complete(ask, { onDelta: ({ text }) => void deltas.push(text) })
  return { reply, deltas }
}

async function answered(answer: FakeAnswer): Promise<ModelReply> {
  vendor.answer(answer)
  return make().complete(ask)
}

const safe = { hate: { filtered: false, severity: 'safe' } }
const filtered = { violence: { filtered: true, severity: 'high' } }
/** The first thing most streams say. */
const prompted = {
  choices: [],
  created: 0,
  id: '',
  model: '',
  object: '',
  prompt_filter_results: [{ prompt_index: 0, content_filter_results: safe }],
}

describe('azure: where and as whom', () => {
  after(() => {
    process.env = saved
  })

  async function asked(options: Options): Promise<[string | undefined, Record<string, string>]> {
    vendor.answer(whole(message({ content: 'x' })))
    await make(options).complete(ask)
    const { path, headers } = vendor.asked.at(-1) ?? {}
    return [path, headers ?? {}]
  }

  test('the deployment is in the path, the version in the query, the key in api-key', async () => {
    const [path, headers] = await asked({})
    assert.equal(path, '/openai/deployments/prod%20gpt/chat/completions?api-version=2024-10-21')
    assert.equal(headers['api-key'], 'test-key')
    assert.equal(headers.authorization, undefined)
    assert.equal(vendor.asked.at(-1)?.body.model, 'prod gpt')
  })

  test('an endpoint with /openai or a slash at its end is the same one', async () => {
    for (const end of ['/', '/openai', '/openai/']) {
      const [path] = await asked({ endpoint: vendor.url + end })
      assert.match(path ?? '', /^\/openai\/deployments\/prod%20gpt\/chat/)
    }
  })

  test('the API without versions names the deployment in the body alone', async () => {
    const endpoint = `${vendor.url}/openai/v1/`
    assert.equal((await asked({ endpoint, apiVersion: '' }))[0], '/openai/v1/chat/completions')
    const [path] = await asked({ endpoint, apiVersion: 'preview' })
    assert.equal(path, '/openai/v1/chat/completions?api-version=preview')
    assert.equal(vendor.asked.at(-1)?.body.model, 'prod gpt')
  })

  test('a token function is asked for every request, and its token goes in place of a key', async () => {
    let n = 0
    const token = async () => `token-${++n}`
    const provider = make({ token })
    vendor.answer(whole(message({ content: 'x' })))
    for (const expected of ['Bearer token-1', 'Bearer token-2']) {
      await provider.complete(ask)
      assert.equal(vendor.asked.at(-1)?.headers.authorization, expected)
      assert.equal(vendor.asked.at(-1)?.headers['api-key'], undefined)
    }
    const failing = make({ token: () => Promise.reject(new Error('no identity')) })
    await assert.rejects(failing.complete(ask), { name: 'ProviderError', code: 'provider_auth' })
  })

  test('variables are read when called, and what is missing is named with its fix', async () => {
    process.env = {
      ...saved,
      AZURE_OPENAI_ENDPOINT: vendor.url,
      AZURE_OPENAI_API_KEY: 'env-key',
      OPENAI_API_VERSION: '2025-04-01-preview',
    }
    vendor.answer(whole(message({ content: 'x' })))
    await azure({ model: 'dep' }).complete(ask)
    assert.equal(
      vendor.asked.at(-1)?.path,
      '/openai/deployments/dep/chat/completions?api-version=2025-04-01-preview',
    )
    assert.equal(vendor.asked.at(-1)?.headers['api-key'], 'env-key')
    process.env = { ...saved, AZURE_OPENAI_ENDPOINT: '', AZURE_OPENAI_API_KEY: '' }
    const config = (pattern: RegExp) => ({ code: 'provider_config', message: pattern })
    assert.throws(() => azure({ model: 'm' }), config(/set AZURE_OPENAI_ENDPOINT/))
    assert.throws(() => azure({ model: 'm', endpoint: vendor.url }), config(/AZURE_OPENAI_API_KEY/))
    assert.throws(() => azure({ endpoint: vendor.url }), config(/pass deployment or model/))
    assert.throws(() => make({ endpoint: 'http://example.com' }), config(/https/))
  })

  test('maxTokens goes under the word that version and model know', () => {
    const field = (options: Options) => {
      const body = make(options).render({ ...ask, maxTokens: 7 }) as Json
      return Object.keys(body).find((key) => body[key] === 7)
    }
    assert.equal(field({}), 'max_tokens')
    assert.equal(field({ deployment: 'o3-mini' }), 'max_completion_tokens')
    assert.equal(field({ model: 'gpt-5' }), 'max_completion_tokens')
    assert.equal(field({ endpoint: `${vendor.url}/openai/v1` }), 'max_completion_tokens')
    assert.equal(field({ maxTokensField: 'max_completion_tokens' }), 'max_completion_tokens')
  })
})

describe('azure: what comes back', () => {
  test('a first chunk about the prompt, without choices, id and model, is nothing', async () => {
    const { reply, deltas } = await streamed([
      prompted,
      delta({ role: 'assistant', content: '' }, null, { content_filter_results: {} }),
      delta({ content: 'hi' }),
      {
        ...delta({}),
        choices: [
          {
            index: 0,
            content_filter_offsets: {},
            content_filter_results: safe,
            finish_reason: null,
          },
        ],
      },
      delta({}, 'stop'),
      {
        ...prompted,
        prompt_filter_results: undefined,
        usage: { prompt_tokens: 3, completion_tokens: 1 },
      },
    ])
    assert.deepEqual(deltas, ['hi'])
    assert.deepEqual(reply.parts, [{ type: 'text', text: 'hi' }])
    assert.equal((reply.raw as Json).id, 'chatcmpl-1')
    assert.equal(reply.usage.inputTokens, 3)
  })

  test('a filtered answer is said to be one, whatever shape the message has', async () => {
    for (const fields of [{}, { content: null, tool_calls: null }, { content: '' }]) {
      const body = message(fields, 'content_filter', { prompt_filter_results: [] })
      body.choices[0].content_filter_results = filtered
      const reply = await answered(whole(body))
      assert.equal(reply.finishReason, 'content_filter')
      assert.deepEqual(reply.parts, [])
    }
    const { reply } = await streamed([
      prompted,
      delta({ content: 'Once' }),
      delta({}, 'content_filter'),
    ])
    assert.equal(reply.finishReason, 'content_filter')
    assert.deepEqual(reply.parts, [{ type: 'text', text: 'Once' }])
    const { choices: _, ...bare } = message({}, null)
    const noMessage = { ...bare, choices: [{ index: 0, finish_reason: 'content_filter' }] }
    assert.equal((await answered(whole(noMessage))).finishReason, 'content_filter')
  })

  test('a filtered prompt is an error that says so, under 400 and under 200, and is not tried again', async () => {
    const error = {
      code: 'content_filter',
      message: 'The response was filtered due to the prompt triggering the content policy',
      param: 'prompt',
      status: 400,
      innererror: { code: 'ResponsibleAIPolicyViolation', content_filter_result: filtered },
    }
    for (const status of [400, 200]) {
      const before = vendor.asked.length
      vendor.answer(whole({ error }, status))
      const thrown = await make({ retries: 2, clock: instant() })
        .complete(ask)
        .catch((e) => e)
      assert.equal(thrown.name, 'ProviderError')
      assert.match(thrown.message, /content policy/)
      assert.equal(thrown.retryable, false, `${status}`)
      assert.equal(vendor.asked.length, before + 1)
    }
  })

  test('retry-after-ms 0 beside retry-after 1 waits the second, and a code may be text', async () => {
    const clock = instant()
    const busy = whole({ error: { code: '429', message: 'slow down' } }, 429)
    const headers = { ...busy.headers, 'retry-after': '1', 'retry-after-ms': '0' }
    const from = vendor.asked.length
    vendor.answer((_, n) => (n === from ? { ...busy, headers } : whole(message({ content: 'x' }))))
    await make({ retries: 2, clock }).complete(ask)
    assert.deepEqual(clock.waits, [1000])
    vendor.answer(whole({ error: { code: '401', message: 'Access denied' } }, 401))
    await assert.rejects(make().complete(ask), { code: 'provider_auth', status: 401 })
  })
})

describe('azure: a second opinion', () => {
  test('the official SDK asks at the same place for the same body, and reads the same answer', async () => {
    const sdk = new AzureOpenAI({
      apiKey: 'test-key',
      endpoint: vendor.url,
      apiVersion: '2024-10-21',
      deployment: 'prod gpt',
      maxRetries: 0,
    })
    const tool_calls = [
      { id: 'a', type: 'function', function: { name: 'get', arguments: '{"x":1}' } },
    ]
    vendor.answer(whole(message({ content: null, tool_calls }, 'tool_calls')))
    const provider = make()
    const body = provider.render({ ...ask, maxTokens: 5 }) as ChatBody
    const theirs = await sdk.chat.completions.create({ ...body, stream: false })
    const reply = await provider.complete({ ...ask, maxTokens: 5 })
    const [sent, ours] = vendor.asked.slice(-2)
    assert.equal(ours?.path, sent?.path)
    assert.equal(ours?.headers['api-key'], sent?.headers['api-key'])
    assert.deepEqual({ ...ours?.body, stream: false }, sent?.body)
    assert.equal(theirs.choices[0]?.message.tool_calls?.[0]?.id, 'a')
    assert.deepEqual(reply.parts, [{ type: 'tool_call', id: 'a', name: 'get', input: { x: 1 } }])
  })

  test('an approval goes its whole way against an independent mock of Azure, and again from a cassette', async () => {
    await approvalConversation((url) =>
      azure({ deployment: 'gpt-4o', endpoint: url, apiKey: 'test-key' }),
    )
  })
})
