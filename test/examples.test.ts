// The course of examples, each as a program of its own that must print what its last comment says; and what the whole
// agents among them promise, beyond what they print.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { PassThrough, type Writable } from 'node:stream'
import { describe, type TestContext, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import express from 'express'
import { bucketStore, memoryBucket } from '../examples/15-own-store.ts'
import { kubernetesAgent } from '../examples/kubernetes.ts'
import { type Body, localAnthropic } from '../examples/local-anthropic.ts'
import { linesOfCode } from '../scripts/lines.ts'
import { approveAll, chatHandler, resume, run } from '../src/index.ts'
import { scripted } from '../src/providers/scripted.ts'
import { a, type Json, u } from './harness.ts'
import { fakeKubectl } from './kubectl.ts'
import { ended, printed, promised, runProgram, start } from './program.ts'
import { testStore } from './stores/table.ts'

const folder = join(import.meta.dirname, '../examples')
const course = readdirSync(folder).filter((name) => /^\d\d-.*\.ts$/.test(name))

function temporary(t: TestContext): string {
  const made = mkdtempSync(join(tmpdir(), 'dcaf-examples-'))
  t.after(() => rmSync(made, { recursive: true, force: true }))
  return made
}

describe('prints what its last comment says:', { concurrency: 2 }, () => {
  for (const name of [...course, 'caching.ts', 'diagram.ts'])
    test(name, async () => {
      const { code, stdout, stderr } = await runProgram(`examples/${name}`)
      const promise = promised(`examples/${name}`)
      assert.equal(printed(stdout, promise), promise, stderr)
      assert.equal(code, 0, stderr)
    })
})

test('the programs of these tests reach nothing but this machine', async () => {
  const env = { ANTHROPIC_API_KEY: 'test-key', ANTHROPIC_BASE_URL: 'https://192.0.2.1' }
  const { code, stderr } = await runProgram('examples/providers.ts', ['anthropic', 'm'], env)
  assert.equal(code, 70)
  assert.match(stderr, /^loopback only: 192\.0\.2\.1$/m)
})

test('the course counts from 01 without a gap, each under 60 lines of code', () => {
  assert.ok(course.length >= 20)
  for (const [index, name] of course.entries()) {
    assert.equal(Number(name.slice(0, 2)), index + 1)
    const lines = linesOfCode(readFileSync(join(folder, name), 'utf8'))
    assert.ok(lines < 60, `${name} has ${lines} lines of code`)
  }
})

test('README names every example, and none that is not there', () => {
  const text = readFileSync(join(folder, 'README.md'), 'utf8')
  const named = [...text.matchAll(/\]\(([\w/.-]+)\)/g)].map(([, path]) => path)
  const there = readdirSync(folder).filter((name) => /\.ts$/.test(name))
  const expected = [...there.filter((n) => n !== 'local-anthropic.ts'), 'ops-desk/main.ts']
  assert.deepEqual(named.toSorted(), expected.toSorted())
})

const bucket = bucketStore(memoryBucket())
testStore(() => bucket)

test('behind express.json() a request is refused at once, and the log says what to do', async (t) => {
  const told: Json[] = []
  const chat = chatHandler({ name: 'g', provider: scripted(['Hi']) }, { log: (e) => told.push(e) })
  const app = express()
  app.use(express.json())
  app.use(async (req, res, next) => {
    if (!(await chat(req, res))) next()
  })
  const server = app.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.after(() => server.close())
  const response = await fetch(
    `http://127.0.0.1:${(server.address() as AddressInfo).port}/api/chat`,
    {
      method: 'POST',
      headers: { 'content-type': 'application/json', connection: 'close' },
      body: JSON.stringify({ messages: [u('Hi')] }),
    },
  )
  assert.equal(response.status, 500)
  const failure = told.find(({ event }) => event === 'failure')
  assert.match(failure?.message, /express\.json\(\)\) must come after/)
})

test('a cassette recorded over a real wire replays without it', async (t) => {
  const local = await localAnthropic(({ messages }) => {
    const isDecided = messages.at(-1)?.content[0]?.type === 'tool_result'
    if (isDecided) return [{ type: 'text', text: 'crm was not restarted.' }]
    return [{ type: 'tool_use', name: 'restart', input: { service: 'crm' } }]
  })
  t.after(() => local.close())
  const CASSETTE = join(temporary(t), 'cassette.json')
  const wire = { ANTHROPIC_API_KEY: 'test-key', ANTHROPIC_BASE_URL: local.url }
  const model = { DCAF_PROVIDER: 'anthropic', DCAF_MODEL: 'stand-in' }
  const recorded = await runProgram('examples/19-cassette.ts', [], {
    ...{ RECORD: '1', CASSETTE },
    ...wire,
    ...model,
  })
  assert.equal(recorded.code, 0, recorded.stdout)
  const kept = JSON.parse(readFileSync(CASSETTE, 'utf8'))
  assert.deepEqual([kept.provider, kept.calls.length], ['anthropic', 2])
  const replayed = await runProgram('examples/19-cassette.ts', [], { CASSETTE })
  assert.equal(replayed.code, 0, replayed.stdout)
})

describe('on AWS Lambda', () => {
  type Event = Record<string, unknown>
  type Handler = (event: Event, stream: Writable) => Promise<void>
  const nul = Buffer.alloc(8)

  /** As Lambda's runtime has it: what streams is JSON of status and headers, eight NUL bytes, and the body. */
  async function lambda(t: TestContext): Promise<(event: Event) => Promise<Json>> {
    const awslambda = {
      streamifyResponse: (handler: Handler) => handler,
      HttpResponseStream: {
        from(stream: Writable, prelude: object) {
          stream.write(Buffer.concat([Buffer.from(JSON.stringify(prelude)), nul]))
          return stream
        },
      },
    }
    Object.assign(globalThis, { awslambda })
    t.after(() => Reflect.deleteProperty(globalThis, 'awslambda'))
    const { handler } = (await import('../examples/18-lambda.ts')) as unknown as {
      handler: Handler
    }
    return async (event) => {
      const stream = new PassThrough()
      const bytes = stream.toArray()
      await handler(event, stream)
      const sent = Buffer.concat(await bytes)
      const split = sent.indexOf(nul)
      const body = sent.subarray(split + nul.length).toString()
      return { ...JSON.parse(sent.subarray(0, split).toString()), body }
    }
  }
  const post = (rawPath: string, body: string, more: Event = {}) => ({
    rawPath,
    rawQueryString: '',
    headers: { 'content-type': 'application/json', 'content-length': '999', host: 'x.lambda-url' },
    requestContext: { http: { method: 'POST' } },
    body,
    ...more,
  })

  test('answers and streams what node:http does, headers and all', async (t) => {
    const call = await lambda(t)
    const body = JSON.stringify({ messages: [u('Grüße')] })
    const chat = await call(post('/api/chat', body, { cookies: ['a=1', 'b=2'] }))
    assert.equal(chat.statusCode, 200)
    assert.equal(JSON.parse(chat.body).content, 'Hello from Lambda')
    const base64 = Buffer.from(body).toString('base64')
    const streamed = await call(post('/api/chat-stream', base64, { isBase64Encoded: true }))
    assert.equal(streamed.headers['content-type'], 'application/x-ndjson')
    assert.equal(streamed.headers['cache-control'], 'no-store')
    for (const hop of ['connection', 'transfer-encoding', 'keep-alive'])
      assert.equal(streamed.headers[hop], undefined)
    const lines = streamed.body.trimEnd().split('\n')
    const types = lines.map((line: string) => JSON.parse(line).type)
    assert.deepEqual(types, ['text_delta', 'text_delta', 'text_delta', 'done'])
  })

  test('keeps the status of what is refused, and asks with the query', async (t) => {
    const call = await lambda(t)
    const get = { requestContext: { http: { method: 'GET' } }, headers: {}, body: undefined }
    assert.equal((await call(post('/api/chat', '{'))).statusCode, 400)
    assert.equal((await call(post('/nowhere', '{}'))).statusCode, 404)
    const health = await call(post('/health', '', { ...get, rawQueryString: 'ready' }))
    assert.deepEqual([health.statusCode, health.body], [200, '{"status":"ok"}'])
  })
})

describe('the same agent on each provider', { concurrency: 2 }, () => {
  type Reply = (result: boolean) => unknown
  const name = 'set_alarm'
  const input = { city: 'Oslo', hour: 7 }
  const text = 'It rings at 7.'
  const openai: Reply = (result) => {
    const called = {
      id: 'c',
      type: 'function',
      function: { name, arguments: JSON.stringify(input) },
    }
    const message = result ? { content: text } : { content: null, tool_calls: [called] }
    const choice = { index: 0, message, finish_reason: result ? 'stop' : 'tool_calls' }
    return { choices: [choice], usage: { prompt_tokens: 9, completion_tokens: 4 } }
  }
  const key = 'test-key'
  const wires: Record<string, [path: RegExp, env: (url: string) => Json, reply: Reply]> = {
    bedrock: [
      /^\/model\/m\/converse$/,
      (url) => ({
        ...{ AWS_ENDPOINT_URL_BEDROCK_RUNTIME: url, AWS_REGION: 'eu-central-1' },
        ...{ AWS_ACCESS_KEY_ID: 'TESTKEYID', AWS_SECRET_ACCESS_KEY: 'test-secret' },
      }),
      (result) => {
        const content = result ? [{ text }] : [{ toolUse: { toolUseId: 'c', name, input } }]
        const usage = { inputTokens: 9, outputTokens: 4, totalTokens: 13 }
        const stopReason = result ? 'end_turn' : 'tool_use'
        return { output: { message: { role: 'assistant', content } }, stopReason, usage }
      },
    ],
    anthropic: [
      /^\/v1\/messages$/,
      (url) => ({ ANTHROPIC_BASE_URL: url, ANTHROPIC_API_KEY: key }),
      (result) => {
        const content = result
          ? [{ type: 'text', text }]
          : [{ type: 'tool_use', id: 'c', name, input }]
        const usage = { input_tokens: 9, output_tokens: 4 }
        const stop_reason = result ? 'end_turn' : 'tool_use'
        return { type: 'message', role: 'assistant', content, stop_reason, usage }
      },
    ],
    openai: [
      /^\/v1\/chat\/completions$/,
      (url) => ({ OPENAI_BASE_URL: `${url}/v1`, OPENAI_API_KEY: key }),
      openai,
    ],
    azure: [
      /^\/openai\/deployments\/m\/chat\/completions\?api-version=/,
      (url) => ({ AZURE_OPENAI_ENDPOINT: url, AZURE_OPENAI_API_KEY: key }),
      openai,
    ],
    google: [
      /^\/v1beta\/models\/m:generateContent$/,
      (url) => ({ GOOGLE_GEMINI_BASE_URL: url, GOOGLE_API_KEY: key }),
      (result) => {
        const parts = result ? [{ text }] : [{ functionCall: { name, args: input } }]
        const candidates = [{ content: { role: 'model', parts }, finishReason: 'STOP' }]
        return { candidates, usageMetadata: { promptTokenCount: 9, candidatesTokenCount: 4 } }
      },
    ],
    ollama: [
      /^\/api\/chat$/,
      (url) => ({ OLLAMA_HOST: url }),
      (result) => {
        const calls = { content: '', tool_calls: [{ function: { name, arguments: input } }] }
        const message = { role: 'assistant', ...(result ? { content: text } : calls) }
        return { message, done: true, done_reason: 'stop', prompt_eval_count: 9, eval_count: 4 }
      },
    ],
  }

  for (const [provider, [path, env, reply]] of Object.entries(wires))
    test(`asks, is approved and answers on ${provider}`, async (t) => {
      const asked: { url: string; text: string }[] = []
      const server = createServer(async (req, res) => {
        const text = Buffer.concat(await req.toArray()).toString()
        asked.push({ url: req.url ?? '', text })
        res.writeHead(200, { 'content-type': 'application/json' })
        res.end(JSON.stringify(reply(asked.length > 1)))
      })
      await once(server.listen(0, '127.0.0.1'), 'listening')
      t.after(() => server.closeAllConnections())
      t.after(() => server.close())
      const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
      const { code, stdout, stderr } = await runProgram('examples/providers.ts', [provider, 'm'], {
        ...env(url),
        AWS_EC2_METADATA_DISABLED: 'true',
      })
      assert.equal(code, 0, stderr)
      assert.match(stdout, /^approved: set_alarm \{ city: 'Oslo', hour: 7 \}$/m)
      assert.match(stdout, /, m: It rings at 7\.$/m)
      assert.equal(asked.length, 2)
      for (const { url } of asked) assert.match(url, path)
      assert.match(asked[1]?.text ?? '', /the alarm rings at 7 in Oslo/)
    })

  test('says what to name when nothing is named', async () => {
    const { code, stderr } = await runProgram('examples/providers.ts')
    assert.deepEqual([code, /bedrock, anthropic, openai/.test(stderr)], [2, true])
  })
})

describe('the stand-in for Anthropic', () => {
  const long = 'x'.repeat(4 * 1024)
  const point = { cache_control: { type: 'ephemeral' } }
  const said = (text: string, more = {}) => ({
    role: 'user' as const,
    content: [{ type: 'text', text, ...more }],
  })
  async function ask(t: TestContext) {
    const local = await localAnthropic(() => [{ type: 'text', text: 'ok' }])
    t.after(() => local.close())
    return async (body: Body) => {
      const headers = { connection: 'close' }
      const options = { method: 'POST', headers, body: JSON.stringify(body) }
      const response = await fetch(`${local.url}/v1/messages`, options)
      const { usage, error } = (await response.json()) as Json
      if (error) return [response.status, error.message]
      return [usage.cache_read_input_tokens > 0, usage.cache_creation_input_tokens > 0]
    }
  }

  test('reads the longest prefix it kept, and writes what follows up to the last point', async (t) => {
    const call = await ask(t)
    const system = [{ type: 'text', text: long, ...point }]
    assert.deepEqual(await call({ system, messages: [said('a')] }), [false, true])
    assert.deepEqual(await call({ system, messages: [said('b')] }), [true, false])
    assert.deepEqual(await call({ system, messages: [said('b', point)] }), [true, true])
    const other = [{ type: 'text', text: `${long}!`, ...point }]
    assert.deepEqual(await call({ system: other, messages: [said('b')] }), [false, true])
  })

  test('keeps no prefix that is short, and refuses five points', async (t) => {
    const call = await ask(t)
    const short = { system: [{ type: 'text', text: 'short', ...point }], messages: [said('a')] }
    assert.deepEqual(await call(short), [false, false])
    assert.deepEqual(await call(short), [false, false])
    const five = Array.from({ length: 5 }, () => ({ type: 'text', text: 'x', ...point }))
    const refused = [400, '5 cache points, at most 4']
    assert.deepEqual(await call({ system: five, messages: [said('a')] }), refused)
  })
})

describe('the Kubernetes agent', () => {
  const cluster = { pods: { 'web-1': { uid: 'u1', phase: 'Running' } }, generation: 3 }
  const kubeconfig = (user: object = { token: 'test-token-of-ann' }, more: object = {}) => {
    const server = 'https://cluster.example'
    const config = { clusters: [{ cluster: { server, ...more } }], users: [{ user }] }
    return Buffer.from(JSON.stringify(config)).toString('base64')
  }
  type Call = { name: string; input?: object }
  const deletePod = { name: 'delete_pod', input: { name: 'web-1' } }

  /** A cluster for one test; `act` runs an agent whose model makes these calls. */
  function desk(t: TestContext) {
    const kubectl = fakeKubectl(temporary(t))
    kubectl.cluster = cluster
    const before = { PATH: process.env.PATH, TMPDIR: process.env.TMPDIR }
    Object.assign(process.env, kubectl.env)
    t.after(() => {
      for (const [key, value] of Object.entries(before))
        if (value === undefined) delete process.env[key]
        else process.env[key] = value
    })
    const options = { context: { k8s_namespace: 'shop', kubeconfig: kubeconfig() } }
    const act = async (calls: Call[], more: object = {}, limits = {}) => {
      const provider = scripted([{ calls }, 'Done.'])
      const agent = { ...kubernetesAgent(provider), limits }
      const context = { ...options.context, ...more }
      const result = await run(agent, { messages: 'Go' }, { context })
      const approve = () => resume(agent, result, approveAll(result), { context })
      return { result, approve, call: result.state.calls[0], provider }
    }
    return { kubectl, act }
  }

  test('deletes over HTTP, after a person saw what the cluster said, and leaves no kubeconfig', async (t) => {
    const kubectl = fakeKubectl(temporary(t))
    kubectl.cluster = cluster
    const local = await localAnthropic(({ messages }) => {
      const [block = {}] = messages.at(-1)?.content ?? []
      if (block.type === 'tool_result') return [{ type: 'text', text: `It said ${block.content}` }]
      return [{ type: 'tool_use', ...deletePod }]
    })
    t.after(() => local.close())
    const child = start('examples/kubernetes.ts', [], {
      ...kubectl.env,
      ...{ PORT: '0', DCAF_PROVIDER: 'anthropic', DCAF_MODEL: 'm' },
      ...{ ANTHROPIC_BASE_URL: local.url, ANTHROPIC_API_KEY: 'test-key' },
    })
    t.after(() => child.kill('SIGKILL'))
    const end = ended(child)
    const [line] = await once(child.stdout, 'data')
    const post = async (...messages: object[]): Promise<Json> => {
      const headers = { 'content-type': 'application/json' }
      const body = JSON.stringify({ messages })
      return (
        await fetch(`${line}`.trim(), { method: 'POST', headers, body })
      ).json() as Promise<Json>
    }
    const platform_context = { k8s_namespace: 'shop', kubeconfig: kubeconfig() }
    const question = u('Delete web-1', undefined, { platform_context })
    const asked = await post(question)
    const [pending] = asked.data.tool_calls
    assert.equal(
      pending.preview,
      'pod "web-1" deleted (server dry run)\nin namespace shop, Running',
    )
    assert.ok(kubectl.cluster.pods['web-1'])

    const yes = { tool_calls: [{ ...pending, execute: true }] }
    const done = await post(question, a('', asked.data), u('', yes, { platform_context }))
    assert.equal(done.content, 'It said pod "web-1" deleted')
    assert.deepEqual(kubectl.cluster.pods, {})
    const look = 'get pod/web-1 --namespace shop --output json'
    const dryRun = 'delete pod/web-1 --namespace shop --dry-run=server'
    const real = 'delete pod/web-1 --namespace shop --wait=false'
    assert.deepEqual(kubectl.lines, [look, dryRun, look, dryRun, real])
    for (const { env, file, folder, token } of kubectl.calls) {
      assert.deepEqual([file, folder, token], ['600', '700', 'test-token-of-ann'])
      assert.deepEqual(
        env.filter((name) => name !== 'NODE_V8_COVERAGE'),
        ['HOME', 'KUBECONFIG', 'PATH'],
      )
    }
    assert.deepEqual(readdirSync(kubectl.tmp), [])
    child.kill('SIGTERM')
    assert.equal((await end).code, 0)
  })

  test('lists what is there and restarts a deployment, telling the model no credential', async (t) => {
    const { kubectl, act } = desk(t)
    const calls = [{ name: 'list_pods' }, { name: 'restart_deployment', input: { name: 'web' } }]
    const { result, approve, provider } = await act(calls)
    assert.deepEqual(JSON.parse(result.executed[0]?.output ?? ''), [
      { name: 'web-1', phase: 'Running', restarts: 2 },
    ])
    assert.equal(result.pending[0]?.preview, 'replaces 3 pods in namespace shop')
    assert.equal((await approve()).executed[0]?.output, 'deployment.apps/web restarted')
    assert.equal(kubectl.lines.at(-1), 'rollout restart deployment/web --namespace shop')
    const heard = JSON.stringify(provider.requests)
    assert.ok(heard.includes('shop') && !heard.includes('test-token'))
  })

  test('asks again where another pod has the name by now, and deletes neither', async (t) => {
    const { kubectl, act } = desk(t)
    const { approve } = await act([deletePod])
    kubectl.cluster = { ...cluster, pods: { 'web-1': { uid: 'u2', phase: 'Pending' } } }
    const done = await approve()
    assert.match(done.executed[0]?.output ?? '', /changed since this was shown/)
    assert.match(done.pending[0]?.preview ?? '', /Pending/)
    assert.ok(kubectl.cluster.pods['web-1'])
  })

  test('removes the kubeconfig where kubectl fails or hangs, and masks what it says', {
    timeout: 30_000,
  }, async (t) => {
    const { kubectl, act } = desk(t)
    const leaky = await act([{ name: 'list_pods', input: { namespace: 'shop' } }, deletePod])
    assert.equal(leaky.result.pending.length, 1)
    const { result } = await act([{ name: 'delete_pod', input: { name: 'leaky' } }])
    assert.equal(result.pending[0]?.preview, 'The preview failed: Unauthorized: [redacted]')
    const slow = await act([{ name: 'delete_pod', input: { name: 'slow' } }], {}, { toolMs: 200 })
    assert.match(slow.result.pending[0]?.preview ?? '', /no answer within 200 ms|aborted/)
    while (readdirSync(kubectl.tmp).length > 0) await sleep(5) // kubectl is being ended
    assert.equal(kubectl.cluster.pods['web-1']?.uid, 'u1')
  })

  test('refuses a kubeconfig that runs a program or reads a file of the server', async (t) => {
    const { kubectl, act } = desk(t)
    const token = 'test-token-of-ann'
    for (const bad of [
      kubeconfig({ exec: { command: 'touch' } }),
      kubeconfig({ token, tokenFile: '/etc/hostname' }),
      kubeconfig({ 'auth-provider': { name: 'oidc' } }),
      kubeconfig({ token }, { 'certificate-authority': '/etc/passwd' }),
      kubeconfig({ token }, { 'proxy-url': 'http://other.example' }),
    ]) {
      const { result } = await act([{ name: 'list_pods' }], { kubeconfig: bad })
      assert.match(result.executed[0]?.output ?? '', /only data is accepted/)
    }
    assert.deepEqual(kubectl.lines, [])
    const none = await act([{ name: 'list_pods' }], { kubeconfig: undefined })
    assert.match(none.result.executed[0]?.output ?? '', /brought no kubeconfig/)
  })

  test('takes no option, no path and no shell for a name', async (t) => {
    const { kubectl, act } = desk(t)
    for (const name of [
      '--all',
      '-l',
      'web-1 --all',
      'a;b',
      '$(id)',
      '../x',
      'pod/web-1',
      'Web',
      '',
    ])
      for (const input of [{ name }, { name: 'web-1', namespace: name }]) {
        const { result, call } = await act([{ name: 'delete_pod', input }])
        assert.match(call?.error ?? '', /^Invalid input for delete_pod: \/name(space)? must match/)
        assert.deepEqual(result.pending, [])
      }
    assert.deepEqual(kubectl.calls, [])
  })

  test('never touches the namespaces of the cluster itself, named or from the context', async (t) => {
    const { kubectl, act } = desk(t)
    const named = { name: 'list_pods', input: { namespace: 'kube-system' } }
    for (const [call, more] of [[named], [deletePod, { k8s_namespace: 'kube-public' }]] as const) {
      const { result } = await act([call], more)
      assert.match(result.state.calls[0]?.rejectionReason ?? '', /belongs to the cluster itself/)
    }
    assert.deepEqual(kubectl.calls, [])
  })
})
