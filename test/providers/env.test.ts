// providerFromEnv: which provider the environment names, with which model and values.

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { after, before, describe, test } from 'node:test'
import { providerFromEnv } from '../../src/providers/env.ts'
import type { ModelRequest } from '../../src/providers/provider.ts'
import { message, whole } from './chat.ts'
import { type FakeVendor, fakeVendor } from './fake.ts'
import { user } from './table.ts'

const ask: ModelRequest = { system: [], messages: [user('hi')], tools: [] }
const key = 'test-key'
const wrong = (message: RegExp) => ({ name: 'DcafError', code: 'provider_config', message })

describe('which provider', () => {
  const table: [Record<string, string>, string, string][] = [
    [{ DCAF_MODEL: 'm', AWS_REGION: 'eu-west-1' }, 'aws.bedrock', 'm'],
    [{ BEDROCK_MODEL_ID: 'b', AWS_REGION: 'eu-west-1' }, 'aws.bedrock', 'b'],
    [{ DCAF_MODEL: 'm', BEDROCK_MODEL_ID: 'b', AWS_REGION: 'eu-west-1' }, 'aws.bedrock', 'm'],
    [{ DCAF_PROVIDER: 'anthropic', DCAF_MODEL: 'm', ANTHROPIC_API_KEY: key }, 'anthropic', 'm'],
    [{ DCAF_PROVIDER: 'openai', DCAF_MODEL: 'm', OPENAI_API_KEY: key }, 'openai', 'm'],
    [
      {
        DCAF_PROVIDER: 'azure',
        DCAF_MODEL: 'm',
        AZURE_OPENAI_API_KEY: key,
        AZURE_OPENAI_ENDPOINT: 'https://x.openai.azure.com',
      },
      'azure.ai.openai',
      'm',
    ],
    [{ DCAF_PROVIDER: 'google', DCAF_MODEL: 'm', GEMINI_API_KEY: key }, 'gcp.gemini', 'm'],
    [{ DCAF_PROVIDER: 'ollama', DCAF_MODEL: 'm' }, 'ollama', 'm'],
    [{ DCAF_PROVIDER: ' OpenAI ', DCAF_MODEL: ' m ', OPENAI_API_KEY: key }, 'openai', 'm'],
  ]
  for (const [env, name, model] of table) {
    test(`${JSON.stringify(env)} is ${name}`, async () => {
      const provider = await providerFromEnv(env)
      assert.deepEqual([provider.name, provider.model], [name, model])
    })
  }

  test('keys and addresses are those of the environment that is given', async () => {
    const vendor = await fakeVendor({ status: 400 })
    const url = vendor.url
    const table: [string, Record<string, string>, string, string][] = [
      [
        'anthropic',
        { ANTHROPIC_BASE_URL: url, ANTHROPIC_API_KEY: 'k-1' },
        '/v1/messages',
        'x-api-key',
      ],
      [
        'openai',
        { OPENAI_BASE_URL: `${url}/v1`, OPENAI_API_KEY: 'k-1' },
        '/v1/chat/completions',
        'authorization',
      ],
      [
        'azure',
        { AZURE_OPENAI_ENDPOINT: url, AZURE_OPENAI_API_KEY: 'k-1', OPENAI_API_VERSION: 'v' },
        '/openai/deployments/m/chat/completions?api-version=v',
        'api-key',
      ],
      [
        'google',
        { GOOGLE_GEMINI_BASE_URL: url, GEMINI_API_KEY: 'k-1', GOOGLE_API_KEY: ' ' },
        '/v1beta/models/m:generateContent',
        'x-goog-api-key',
      ],
      ['ollama', { OLLAMA_HOST: url }, '/api/chat', ''],
    ]
    try {
      for (const [name, env, path, header] of table) {
        const provider = await providerFromEnv({ DCAF_PROVIDER: name, DCAF_MODEL: 'm', ...env })
        await assert.rejects(provider.complete(ask), { status: 400 })
        assert.equal(vendor.asked.at(-1)?.path, path)
        if (header) {
          assert.match(vendor.asked.at(-1)?.headers[header] ?? '', /^(Bearer )?k-1$/)
        }
      }
    } finally {
      await vendor.close()
    }
  })

  test('another name is refused with all that are allowed', async () => {
    for (const name of ['openia', 'constructor', '__proto__']) {
      await assert.rejects(
        providerFromEnv({ DCAF_PROVIDER: name, DCAF_MODEL: 'm' }),
        wrong(
          /DCAF_PROVIDER must be one of bedrock, anthropic, openai, azure, google, ollama; got/,
        ),
      )
    }
  })

  test('no model is refused with the variable to set, which for Bedrock alone are two', async () => {
    await assert.rejects(providerFromEnv({}), wrong(/Set DCAF_MODEL or BEDROCK_MODEL_ID/))
    await assert.rejects(
      providerFromEnv({ DCAF_PROVIDER: 'openai', BEDROCK_MODEL_ID: 'b', OPENAI_API_KEY: key }),
      wrong(/Set DCAF_MODEL to/),
    )
  })

  test('loads the provider that is named and no other', () => {
    const script = `
      const loaded = []
      const { registerHooks } = await import('node:module')
      registerHooks({ load: (url, context, next) => (loaded.push(url), next(url, context)) })
      const { providerFromEnv } = await import('./src/providers/env.ts')
      await providerFromEnv({ DCAF_PROVIDER: 'openai', DCAF_MODEL: 'm', OPENAI_API_KEY: 'k' })
      const root = new URL('.', 'file://' + process.cwd() + '/').href
      console.log(loaded.filter((url) => !url.startsWith('node:')).map((url) => url.replace(root, '')).join(' '))
    `
    const { stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', script], {
      cwd: new URL('../..', import.meta.url),
      encoding: 'utf8',
    })
    const loaded = stdout.trim().split(' ')
    const providers = ['anthropic', 'azure', 'bedrock', 'google', 'ollama', 'openai']
    assert.deepEqual(
      loaded.filter((file) => providers.some((name) => file.includes(`/${name}`))),
      ['src/providers/openai.ts'],
      stderr,
    )
    assert.deepEqual(
      loaded.filter((file) => !file.startsWith('src/providers/')),
      [],
    )
  })
})

describe('with which values', () => {
  let vendor: FakeVendor
  before(async () => {
    vendor = await fakeVendor(whole(message({ content: 'x' })))
  })
  after(() => vendor.close())

  const fromEnv = (more: Record<string, string>) =>
    providerFromEnv({
      DCAF_PROVIDER: 'openai',
      DCAF_MODEL: 'm',
      OPENAI_API_KEY: key,
      OPENAI_BASE_URL: `${vendor.url}/v1`,
      ...more,
    })

  test('they hold for requests that say nothing else, in what is sent and what is rendered', async () => {
    const provider = await fromEnv({ DCAF_TEMPERATURE: '0', DCAF_MAX_TOKENS: '512' })
    await provider.complete(ask)
    const sent = vendor.asked.at(-1)
    const body = sent?.body
    assert.deepEqual([body.temperature, body.max_tokens], [0, 512])
    assert.deepEqual(provider.render(ask), body)
    assert.equal(sent?.headers.authorization, 'Bearer test-key')
    await provider.complete({ ...ask, temperature: 0.7, maxTokens: 5 })
    const own = vendor.asked.at(-1)?.body
    assert.deepEqual([own.temperature, own.max_tokens], [0.7, 5])
    assert.equal('temperature' in ask, false)
  })

  test('unset and blank ones add nothing', async () => {
    const provider = await fromEnv({ DCAF_TEMPERATURE: ' ', DCAF_MAX_TOKENS: '' })
    assert.deepEqual(Object.keys(provider.render(ask) as object), ['model', 'messages'])
  })

  test('what is no such number is refused by name', async () => {
    for (const value of ['warm', '-1', 'NaN', 'Infinity', '0,5']) {
      await assert.rejects(fromEnv({ DCAF_TEMPERATURE: value }), wrong(/DCAF_TEMPERATURE must be/))
    }
    for (const value of ['many', '0', '-1', '1.5', '1e999']) {
      await assert.rejects(fromEnv({ DCAF_MAX_TOKENS: value }), wrong(/DCAF_MAX_TOKENS must be/))
    }
  })
})
