// The ops desk from the outside: its model that is none, its workers, its configuration, and the whole thing served.

import assert from 'node:assert/strict'
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { request as httpRequest } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it, type TestContext } from 'node:test'
import { fileURLToPath } from 'node:url'
import { readConfig } from '../examples/ops-desk/config.ts'
import { jsonLog } from '../examples/ops-desk/log.ts'
import { diskUsage, processUsage, systemLoad } from '../examples/ops-desk/machine.ts'
import { offline } from '../examples/ops-desk/offline.ts'
import {
  approve,
  reject,
  type Message as Said,
  Thread,
} from '../examples/ops-desk/public/client.js'
import { startWorkers, type Workers, workerNames } from '../examples/ops-desk/workers.ts'
import type { Message, ModelRequest, ToolResult, ToolSpec } from '../src/providers/provider.ts'
import {
  missing,
  postgresPool,
  postgresUrl,
  redisClient,
  redisUrl,
  uniqueName,
} from './services.ts'

// ---- the offline model

const namedWorker = { type: 'object', properties: { name: { enum: workerNames } } }
const offered: ToolSpec[] = [
  'list_processes tail_log disk_usage system_load restart_process stop_process note_in_log',
  'remember_favourite favourite',
].flatMap((names) =>
  names.split(' ').map((name) => ({ name, description: name, input: namedWorker })),
)

const user = (text: string): Message => ({ role: 'user', parts: [{ type: 'text', text }] })

function asked(...calls: [name: string, input: object, result: Omit<ToolResult, 'callId'>][]) {
  return {
    role: 'assistant' as const,
    parts: calls.map(([name, input], i) => ({
      type: 'tool_call' as const,
      id: `c${i}`,
      name,
      input,
    })),
    results: calls.map(([, , result], i) => ({ callId: `c${i}`, ...result })),
  }
}

async function model(messages: Message[], request: Partial<ModelRequest> = {}) {
  const reply = await offline({ delayMs: 0 }).complete({
    system: [],
    messages,
    tools: offered,
    ...request,
  })
  const calls = reply.parts.flatMap((part) =>
    part.type === 'tool_call' ? [{ name: part.name, input: part.input }] : [],
  )
  const text = reply.parts.map((part) => (part.type === 'text' ? part.text : '')).join('')
  return { text, calls, reply }
}

describe('the offline model', () => {
  const restart = (name: string) => ({ name: 'restart_process', input: { name } })
  const stop = (name: string) => ({ name: 'stop_process', input: { name } })
  const list = { name: 'list_processes', input: {} }
  const rows: [said: string, calls: { name: string; input: object }[]][] = [
    ['list processes', [list]],
    ['What is running?', [list]],
    ['is web-1 stopped?', [list]],
    [
      'show the log of web-1, last 20 lines',
      [{ name: 'tail_log', input: { name: 'web-1', lines: 20 } }],
    ],
    ['web 2 logs', [{ name: 'tail_log', input: { name: 'web-2' } }]],
    ['How full is the disk?', [{ name: 'disk_usage', input: {} }]],
    ['system load', [{ name: 'system_load', input: {} }]],
    ['restart web-1 and web-2', [restart('web-1'), restart('web-2')]],
    ['Restart WEB1, then stop db-1', [restart('web-1'), stop('db-1')]],
    ['list the processes and restart web-2', [list, restart('web-2')]],
    ['restart everything', workerNames.map(restart)],
    ['kill the worker db-1 please', [stop('db-1')]],
    ['web-1: restart it', [restart('web-1')]],
    ['start db-1 again', [restart('db-1')]],
    ['restart nginx', [restart('nginx')]],
    ['do not restart web-1', []],
    ["don't stop db-1 but restart web-1", [restart('web-1')]],
    ['No, restart web-2 instead', [restart('web-2')]],
    [
      'note on web-1: deploying at five',
      [{ name: 'note_in_log', input: { name: 'web-1', text: 'deploying at five' } }],
    ],
    ['my favourite is web-2', [{ name: 'remember_favourite', input: { name: 'web-2' } }]],
    ['restart my favourite', [{ name: 'favourite', input: {} }]],
    ['tell me a joke', []],
  ]
  for (const [said, calls] of rows)
    it(`hears "${said}"`, async () => assert.deepEqual((await model([user(said)])).calls, calls))

  it('says that it is no LLM: in its name, in the first answer of a thread, and in its help', async () => {
    assert.match(offline().name, /no LLM/)
    assert.match((await model([user('stop db-1')])).text, /no LLM/)
    assert.match((await model([user('tell me a joke')])).text, /no LLM/)
    const later = await model([
      user('hi'),
      { role: 'assistant', parts: [{ type: 'text', text: 'Hello.' }], results: [] },
      user('stop db-1'),
    ])
    assert.doesNotMatch(later.text, /no LLM/)
  })

  it('puts results into words: a table of processes, pids before and after', async () => {
    const workers = [
      { name: 'web-1', pid: 7, state: 'running', cpu: 0.5, memory: 2 ** 20, uptime: 3 },
      { name: 'db-1', pid: null, state: 'stopped', cpu: null, memory: null, uptime: null },
    ]
    const { text, calls } = await model([
      user('list, and restart web-2'),
      asked(
        ['list_processes', {}, { outcome: 'ok', content: JSON.stringify(workers) }],
        [
          'restart_process',
          { name: 'web-2' },
          { outcome: 'ok', content: '{"name":"web-2","old_pid":1,"new_pid":2}' },
        ],
      ),
    ])
    assert.deepEqual(calls, [])
    assert.match(text, /\| web-1 \| 7 \| running \| 0.5 % \| 1.00 MiB \| 3 s \|/)
    assert.match(text, /\| db-1 \| - \| stopped \|/)
    assert.match(text, /Restarted \*\*web-2\*\*: pid 1 before, 2 now\./)
  })

  it('tells what was rejected, and does not ask for it again', async () => {
    const { text, calls } = await model([
      user('restart web-1'),
      asked([
        'restart_process',
        { name: 'web-1' },
        { outcome: 'rejected', content: 'Tool rejected: too busy' },
      ]),
      user('No, do not restart web-1; restart web-1 tomorrow'),
    ])
    assert.deepEqual(calls, [])
    assert.match(text, /Not done: restart_process web-1\. Tool rejected: too busy/)
  })

  it('says that words do not approve', async () => {
    const { text } = await model([
      user('restart web-1'),
      asked([
        'restart_process',
        { name: 'web-1' },
        { outcome: 'rejected', content: 'Tool rejected: yes' },
      ]),
      user('yes'),
    ])
    assert.match(text, /Words do not approve/)
  })

  it('does what else was asked along with a decision', async () => {
    const { calls } = await model([
      user('restart web-1'),
      asked([
        'restart_process',
        { name: 'web-1' },
        { outcome: 'rejected', content: 'Tool rejected: no' },
      ]),
      user('no, stop db-1 instead'),
    ])
    assert.deepEqual(calls, [stop('db-1')])
  })

  it('restarts the favourite that the session tells', async () => {
    const { calls } = await model([
      user('restart my favourite'),
      asked(['favourite', {}, { outcome: 'ok', content: '{"favourite":"db-1"}' }]),
    ])
    assert.deepEqual(calls, [restart('db-1')])
  })

  it('asks for no tool that is not offered', async () => {
    assert.deepEqual((await model([user('restart web-1')], { tools: [] })).calls, [])
    assert.deepEqual((await model([user('restart web-1')], { toolChoice: 'none' })).calls, [])
  })

  it('streams word by word what it then replies, and stops when it is aborted', async () => {
    const request = { system: [], messages: [user('stop db-1')], tools: offered }
    const words: string[] = []
    const reply = await offline({ delayMs: 1 }).complete(request, {
      onDelta: ({ text }) => void words.push(text),
    })
    assert.ok(words.length > 5)
    assert.deepEqual(reply.parts[0], { type: 'text', text: words.join('') })
    const abort = new AbortController()
    const aborted = offline({ delayMs: 60_000 }).complete(request, {
      signal: abort.signal,
      onDelta: () => abort.abort(new Error('gone')),
    })
    await assert.rejects(aborted, /gone/)
  })

  it('answers the same request the same', async () => {
    const messages = [user('restart web-1 and list')]
    assert.deepEqual((await model(messages)).reply, (await model(messages)).reply)
  })
})

// ---- the workers

async function workers(t: TestContext, options?: { graceMs?: number }): Promise<Workers> {
  const started = await startWorkers(workerNames, options)
  t.after(() => started.end())
  return started
}

/** One that has ended and waits for its parent to notice (a zombie) is not alive. */
function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return !/^\d+ \(.*\) Z/.test(readFileSync(`/proc/${pid}/stat`, 'utf8'))
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'ENOENT' && process.platform !== 'linux'
  }
}

async function until(what: () => boolean | Promise<boolean>): Promise<void> {
  for (let tries = 0; !(await what()); tries++) {
    assert.ok(tries < 200, `not within 10 s: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
}

describe('the workers', () => {
  it('are real processes; a restart ends the old one and starts a new one', async (t) => {
    const desk = await workers(t)
    const { pid } = desk.find('web-1')
    assert.ok(pid && isAlive(pid))
    const change = await desk.restart('web-1')
    assert.deepEqual(change, { name: 'web-1', old_pid: pid, new_pid: desk.find('web-1').pid })
    assert.ok(!isAlive(pid) && change.new_pid && isAlive(change.new_pid))
  })

  it('stay stopped until they are restarted', async (t) => {
    const desk = await workers(t)
    const { pid } = desk.find('db-1')
    assert.deepEqual(await desk.stop('db-1'), { name: 'db-1', old_pid: pid, new_pid: null })
    assert.equal(desk.find('db-1').pid, null)
    assert.deepEqual(await desk.stop('db-1'), { name: 'db-1', old_pid: null, new_pid: null })
    const { old_pid, new_pid } = await desk.restart('db-1')
    assert.ok(old_pid === null && new_pid && isAlive(new_pid))
  })

  it('that do not end in time are killed', async (t) => {
    const desk = await workers(t, { graceMs: 50 })
    const { pid } = desk.find('web-2')
    process.kill(pid as number, 'SIGSTOP') // deaf to SIGTERM
    assert.equal((await desk.stop('web-2')).old_pid, pid)
    assert.ok(!isAlive(pid as number))
  })

  it('are the only ones that can be named', async (t) => {
    const desk = await workers(t)
    const allowed = /There is no worker nginx\. The workers are web-1, web-2, db-1\./
    assert.throws(() => desk.find('nginx'), allowed)
    assert.throws(() => desk.find('__proto__'), /no worker/)
    await assert.rejects(async () => desk.restart('nginx'), allowed)
    await assert.rejects(async () => desk.stop('nginx'), allowed)
    await assert.rejects(async () => desk.tail('nginx', 1), allowed)
  })

  it('are changed one at a time, and only the process that was there when it was asked', async (t) => {
    const desk = await workers(t)
    const [first, second] = await Promise.allSettled([desk.restart('web-1'), desk.restart('web-1')])
    assert.equal(first.status, 'fulfilled')
    assert.match(second.status === 'rejected' ? second.reason.message : '', /web-1 changed while/)
  })

  it('write a log that can be read from its end', async (t) => {
    const desk = await workers(t)
    await until(async () => /ready/.test(await desk.tail('web-1', 10)))
    desk.note('web-1', 'first\nline')
    desk.note('web-1', 'x'.repeat(100_000))
    desk.note('web-1', 'last line')
    assert.match(await desk.tail('web-1', 1), /^\S+ web-1 last line$/)
    assert.match(await desk.tail('web-1', 200), /^\S+ web-1 last line$/) // whole lines of the last 64 KiB
  })

  it('end with whoever started them', async (t) => {
    const desk = await workers(t)
    const pids = desk.list().map(({ pid }) => pid as number)
    desk.end()
    await until(() => !pids.some(isAlive))
    await assert.rejects(desk.restart('web-1'), /shutting down/)
  })
})

describe('the machine', () => {
  it('tells cpu and memory of a process, and nothing of one that is gone', async () => {
    const usage = await processUsage(process.pid, process.uptime())
    assert.ok(usage && usage.cpu > 0 && usage.memory > 2 ** 20, JSON.stringify(usage))
    assert.equal(await processUsage(2 ** 22 + 1, 1), undefined)
  })

  it('tells disks and load', async () => {
    const [disk] = await diskUsage()
    assert.ok(disk && disk.path === '/' && disk.size > disk.free && disk.used <= 100)
    assert.equal(systemLoad().load.length, 3)
  })
})

// ---- the configuration

describe('the configuration', () => {
  const key = Buffer.alloc(32, 7).toString('base64')

  it('has a default for everything', () => {
    assert.deepEqual(readConfig({ PORT: '', DCAF_STORE: '' }), {
      host: '127.0.0.1',
      port: 8000,
      logLevel: 'info',
      provider: 'offline',
      store: { kind: 'memory' },
      keys: [],
      effects: undefined,
    })
  })

  it('takes a log level also in the words of Python', () => {
    const levels = ['DEBUG', 'Warning', 'critical'].map(
      (text) => readConfig({ LOG_LEVEL: text }).logLevel,
    )
    assert.deepEqual(levels, ['debug', 'warn', 'error'])
  })

  it('takes each kind of store, and several keys', () => {
    const store = (text: string) => readConfig({ DCAF_STORE: text, DCAF_KEY: key }).store
    assert.deepEqual(store('sqlite:/tmp/desk.db'), { kind: 'sqlite', file: '/tmp/desk.db' })
    assert.deepEqual(store('redis://h:1/2'), { kind: 'redis', url: 'redis://h:1/2' })
    assert.deepEqual(store('postgres://u:p@h/d'), { kind: 'postgres', url: 'postgres://u:p@h/d' })
    assert.deepEqual(readConfig({ DCAF_KEY: `${key}, ${key}` }).keys, [key, key])
  })

  const wrong: [env: Record<string, string>, message: RegExp][] = [
    [{ PORT: '80a' }, /^PORT must be a whole number from 0 to 65535, got "80a"$/],
    [{ PORT: '65536' }, /0 to 65535/],
    [
      { DCAF_PROVIDER: 'gpt' },
      /^DCAF_PROVIDER must be one of offline, bedrock, anthropic, .* got "gpt"$/,
    ],
    [{ LOG_LEVEL: 'loud' }, /^LOG_LEVEL must be one of error, warn, info, debug, got "loud"$/],
    [
      { DCAF_STORE: 'mysql://root:secret@h' },
      /^DCAF_STORE must be memory, sqlite:FILE, .* got "mysql:..."$/,
    ],
    [{ DCAF_STORE: 'sqlite:' }, /sqlite:FILE/],
    [
      { DCAF_STORE: 'sqlite:/nowhere/x.db', DCAF_KEY: key },
      /\/nowhere, a folder that cannot be written/,
    ],
    [{ DCAF_STORE: 'sqlite:/tmp/x.db' }, /set DCAF_KEY to 32 bytes in base64/],
    [{ DCAF_KEY: 'dG9vIHNob3J0' }, /key 1 of DCAF_KEY is not 32 bytes in base64 \(9 bytes\)/],
    [{ DCAF_KEY: `${key},x` }, /key 2 of DCAF_KEY/],
    [{ DCAF_EFFECTS: '/nowhere/effects' }, /^DCAF_EFFECTS names a file in \/nowhere/],
    [{ DCAF_EFFECTS: '/tmp' }, /^DCAF_EFFECTS=\/tmp cannot be written: EISDIR/],
  ]
  for (const [env, message] of wrong)
    it(`refuses ${JSON.stringify(env)} and says what is allowed, not what was secret`, () => {
      assert.throws(
        () => readConfig(env),
        (error: Error) => {
          assert.match(error.message, message)
          assert.doesNotMatch(error.message, /secret/)
          return error.name === 'ConfigError'
        },
      )
    })

  it('logs one JSON line a fact, and nothing below the level', () => {
    const lines: string[] = []
    const log = jsonLog('warn', (line) => lines.push(line))
    log({ level: 'info', event: 'dropped' })
    log({ level: 'error', event: 'kept\nwhole', port: 1 })
    const { time, ...fact } = JSON.parse(lines.join(''))
    assert.deepEqual(fact, { level: 'error', event: 'kept\nwhole', port: 1 })
    assert.equal(new Date(time).toISOString(), time)
  })
})

// ---- the whole desk

const folder = mkdtempSync(join(tmpdir(), 'ops-desk-test-'))
after(() => rmSync(folder, { recursive: true, force: true }))
const key = Buffer.alloc(32, 5).toString('base64')
const program = fileURLToPath(new URL('../examples/ops-desk/main.ts', import.meta.url))

interface Desk {
  url: string
  child: ChildProcess
  /** All of stdout and stderr so far. */
  out(): string
  err(): string
  /** Each real restart or stop. */
  effects(): { call_id: string; name: string; old_pid: number; new_pid: number; time: string }[]
  thread(): Thread
  end(signal?: NodeJS.Signals): Promise<number | null>
}

let count = 0

/** `main.ts` as a process of its own, on a free port, with nothing in its environment but `env`. */
async function desk(env: Record<string, string> = {}): Promise<Desk> {
  const file = env.DCAF_EFFECTS ?? join(folder, `effects-${++count}`)
  const given = { PATH: process.env.PATH, PORT: '0', DCAF_EFFECTS: file, LOG_LEVEL: 'warn', ...env }
  const child = spawn(process.execPath, [program], {
    env: given,
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let out = ''
  let err = ''
  child.stdout.on('data', (bytes) => (out += bytes))
  child.stderr.on('data', (bytes) => (err += bytes))
  const exit = once(child, 'exit')
  await Promise.race([once(child.stdout, 'data'), exit])
  const url = /http:\S+/.exec(out)?.[0] ?? ''
  return {
    url,
    child,
    out: () => out,
    err: () => err,
    effects: () => {
      const lines = existsSync(file) ? readFileSync(file, 'utf8').split('\n').filter(Boolean) : []
      return lines.map((line) => JSON.parse(line))
    },
    thread: () => new Thread({ base: url }),
    async end(signal = 'SIGKILL') {
      if (child.exitCode === null && child.signalCode === null) child.kill(signal)
      return (await exit)[0]
    },
  }
}

/** The pids that the desk tells, by name. */
async function pids(of: Desk): Promise<Record<string, number | null>> {
  const { data } = await of.thread().send('list processes')
  const [list] = data.executed_tool_calls ?? []
  const workers: { name: string; pid: number | null }[] = JSON.parse(list?.output ?? '[]')
  return Object.fromEntries(workers.map(({ name, pid }) => [name, pid]))
}

const outputs = ({ data }: Said) => data.executed_approvals?.map(({ output }) => output) ?? []

describe('the ops desk', () => {
  let shared: Desk
  before(async () => {
    shared = await desk()
  })
  after(() => shared.end())

  it('says in one line where it is, what its model is, and what to try', async () => {
    assert.match(
      shared.out(),
      /^Ops desk on http:\/\/127\.0\.0\.1:\d+ \(model: offline \(no LLM\), .*\)\. .*try "list processes".*\n$/,
    )
    assert.equal((await fetch(`${shared.url}/health`)).status, 200)
  })

  it('restarts a real process only after a person approved exactly that', async () => {
    const before = await pids(shared)
    const thread = shared.thread()
    await thread.send('restart web-1')
    const [call] = thread.pending
    assert.deepEqual([call?.name, call?.input], ['restart_process', { name: 'web-1' }])
    assert.match(call?.preview ?? '', new RegExp(`now pid ${before['web-1']},`))
    assert.deepEqual(await pids(shared), before)

    const answer = await thread.decide(thread.pending.map((one) => approve(one)))
    const now = await pids(shared)
    const change = { name: 'web-1', old_pid: before['web-1'], new_pid: now['web-1'] }
    assert.deepEqual(
      outputs(answer).map((output) => JSON.parse(output)),
      [change],
    )
    assert.notEqual(now['web-1'], before['web-1'])
    assert.ok(isAlive(now['web-1'] as number) && !isAlive(before['web-1'] as number))
    assert.match(answer.content, /Restarted \*\*web-1\*\*/)
    const { time, ...effect } = shared.effects().at(-1) ?? { time: '' }
    assert.deepEqual(effect, {
      call_id: call?.id.split('.')[0],
      tool: 'restart_process',
      ...change,
    })
    assert.equal(new Date(time).toISOString(), time)
  })

  it('leaves alone what was rejected, says why, and asks again when asked again', async () => {
    const before = await pids(shared)
    const thread = shared.thread()
    await thread.send('stop db-1')
    const answer = await thread.decide(thread.pending.map((call) => reject(call, 'payday')))
    assert.deepEqual(outputs(answer), ['Rejected: payday'])
    assert.match(answer.content, /Not done: stop_process db-1.*payday/)
    assert.deepEqual(await pids(shared), before)
    await thread.send('stop db-1')
    assert.equal(thread.pending.length, 1)
    await thread.send("no, don't") // words that decide nothing else reject
    assert.deepEqual([thread.pending, await pids(shared)], [[], before])
  })

  it('stops a worker, lists it as stopped, and starts it again', async () => {
    const thread = shared.thread()
    await thread.send('stop web-2')
    await thread.decide(thread.pending.map((call) => approve(call)))
    assert.equal((await pids(shared))['web-2'], null)
    await thread.send('start web-2')
    assert.match(thread.pending[0]?.preview ?? '', /web-2 is stopped\. Starts it\./)
    await thread.decide(thread.pending.map((call) => approve(call)))
    assert.ok(isAlive((await pids(shared))['web-2'] as number))
  })

  it('decides several calls one by one, and tells the model when none is left', async () => {
    const thread = shared.thread()
    await thread.send('restart web-1 and stop db-1')
    const [first, second] = thread.pending
    assert.ok(first && second)
    await thread.decide([approve(first)])
    assert.deepEqual(
      thread.pending.map(({ id }) => id),
      [second.id],
    )
    const answer = await thread.decide([reject(second)])
    assert.match(answer.content, /Restarted \*\*web-1\*\*.*Not done: stop_process db-1/s)
    assert.deepEqual(thread.pending, [])
  })

  it('touches none but its own workers, and says which they are', async () => {
    const thread = shared.thread()
    const { content } = await thread.send('restart nginx')
    assert.deepEqual(thread.pending, [])
    assert.match(content, /"web-1", "web-2", "db-1"/)
  })

  it('asks again where the process that was shown has been replaced', async () => {
    const thread = shared.thread()
    await thread.send('restart web-2')
    const effects = shared.effects().length
    process.kill((await pids(shared))['web-2'] as number, 'SIGKILL')
    await until(async () => (await pids(shared))['web-2'] === null)
    const answer = await thread.decide(thread.pending.map((call) => approve(call)))
    assert.match(outputs(answer).join(), /^Not executed: the tool or what it would do changed/)
    assert.equal(shared.effects().length, effects)
    assert.match(thread.pending[0]?.preview ?? '', /web-2 is stopped/)
    await thread.decide(thread.pending.map((call) => approve(call)))
    assert.ok((await pids(shared))['web-2'])
  })

  it('runs a call once, however often and from wherever its approval is sent', async () => {
    const effects = shared.effects().length
    const thread = shared.thread()
    await thread.send('restart web-1')
    const decisions = thread.pending.map((call) => approve(call))
    const saved = JSON.parse(JSON.stringify(thread))
    const clients = Array.from(
      { length: 8 },
      (_, i) => new Thread({ base: shared.url, ...saved, messages: i % 2 ? saved.messages : [] }),
    )
    const answers = await Promise.all(clients.map((client) => client.decide(decisions)))
    assert.equal(new Set(answers.flatMap(outputs)).size, 1)
    assert.equal(shared.effects().length, effects + 1)
  })

  it('runs what a person changed in one step where the tool is editable', async () => {
    const thread = shared.thread()
    await thread.send('note on web-1: deploying at five')
    const [call] = thread.pending
    assert.ok(call)
    const changed = { ...approve(call), edited_input: { name: 'web-1', text: 'deploying at six' } }
    await thread.decide([changed])
    const { content } = await thread.send('show the log of web-1')
    assert.match(content, /note: deploying at six/)
    assert.doesNotMatch(content, /deploying at five/)
  })

  it('remembers in the session, which travels with the client', async () => {
    const thread = shared.thread()
    await thread.send('remember db-1 as my favourite')
    assert.deepEqual(thread.session, { favourite: 'db-1' })
    await thread.send('restart my favourite')
    assert.deepEqual(
      thread.pending.map(({ input }) => input),
      [{ name: 'db-1' }],
    )
    await thread.send('never mind')
    const cleared = await thread.send('what is my favourite?', { session: {} })
    assert.match(cleared.content, /You have not told me a favourite yet/)
  })

  it('tells disks, load and logs, streaming word by word', async () => {
    const deltas: string[] = []
    const { content } = await shared.thread().send('disk usage and system load', {
      onEvent: (event) => event.type === 'text_delta' && deltas.push(String(event.text)),
    })
    assert.match(content, /\| \/ \|.*Load [\d.]+, [\d.]+, [\d.]+ /s)
    assert.ok(deltas.length > 20)
    assert.equal(deltas.join(''), content)
    assert.match((await shared.thread().send('log of web-1, 3 lines')).content, /The log of web-1/)
  })

  it('serves its page, to pages of this machine only, and no other file', async () => {
    const page = await fetch(shared.url)
    assert.match(await page.text(), /<title>Ops desk<\/title>/)
    assert.equal(page.headers.get('content-type'), 'text/html; charset=utf-8')
    assert.match(
      page.headers.get('content-security-policy') ?? '',
      /^default-src 'none'; script-src 'self'/,
    )
    const script = await fetch(`${shared.url}/client.js`)
    assert.equal(script.headers.get('content-type'), 'text/javascript; charset=utf-8')
    await script.body?.cancel()
    const etag = page.headers.get('etag') ?? ''
    assert.equal((await fetch(shared.url, { headers: { 'if-none-match': etag } })).status, 304)
    assert.equal(await (await fetch(`${shared.url}/app.js`, { method: 'HEAD' })).text(), '')
    const post = await fetch(`${shared.url}/app.js`, { method: 'POST' })
    assert.deepEqual([post.status, post.headers.get('allow')], [405, 'GET, HEAD'])

    const { port } = new URL(shared.url)
    const status = (path: string, headers = {}) =>
      new Promise((resolve, reject) => {
        const asked = httpRequest({ host: '127.0.0.1', port, path, headers, agent: false }, (res) =>
          resolve(res.resume().statusCode),
        )
        asked.on('error', reject).end()
      })
    for (const path of [
      '/../config.ts',
      '/%2e%2e/config.ts',
      '/public/index.html',
      '//etc/passwd',
      '/client.d.ts',
      '/index.html/',
    ])
      assert.equal(await status(path), 404, path)
    assert.equal(await status('/', { host: 'evil.example' }), 403)
    assert.equal(await status('/', { origin: 'https://evil.example' }), 403)
  })

  it('tells its tools, for forms', async () => {
    const { agent, tools } = (await (await fetch(`${shared.url}/tools`)).json()) as {
      agent: { provider: string }
      // biome-ignore lint/suspicious/noExplicitAny: JSON, as the page reads it
      tools: any[]
    }
    assert.equal(agent.provider, 'offline (no LLM)')
    const restart = tools.find(({ name }) => name === 'restart_process')
    assert.deepEqual(
      [restart.requires_approval, restart.editable, restart.input.properties.name.enum],
      [true, false, [...workerNames]],
    )
  })
})

describe('two ops desks over one store', () => {
  it('run a call once between them, and go on where one was killed', async (t) => {
    const env = {
      DCAF_STORE: `sqlite:${join(folder, 'shared.db')}`,
      DCAF_KEY: key,
      DCAF_EFFECTS: join(folder, 'shared-effects'),
    }
    const [one, two] = await Promise.all([desk(env), desk(env)])
    t.after(() => Promise.all([one.end(), two.end()]))
    const thread = one.thread()
    await thread.send('restart web-1')
    const decisions = thread.pending.map((call) => approve(call))
    const saved = JSON.parse(JSON.stringify(thread))
    const clients = [one, two, one, two].map(({ url }) => new Thread({ base: url, ...saved }))
    await Promise.all(clients.map((client) => client.decide(decisions)))
    assert.equal(one.effects().length, 1)

    await thread.send('stop db-1') // undecided as far as this client knows: its first proposal is closed by now
    const later = JSON.parse(JSON.stringify(thread))
    await one.end('SIGKILL')
    const other = new Thread({ base: two.url, ...later })
    await other.decide(other.pending.map((call) => approve(call)))
    assert.deepEqual(
      one.effects().map(({ name }) => name),
      ['web-1', 'db-1'],
    )
  })
})

describe('the ends of an ops desk', { concurrency: 3 }, () => {
  it('SIGTERM: what streams is finished, the exit is 0, and no worker survives', async (t) => {
    const ending = await desk()
    t.after(() => ending.end())
    const workers = Object.values(await pids(ending)) as number[]
    let started = () => {}
    const streaming = new Promise<void>((resolve) => (started = resolve))
    const answer = ending.thread().send('tell me a joke', { onEvent: () => started() })
    await streaming
    const exit = ending.end('SIGTERM')
    assert.match((await answer).content, /restart my favourite$/)
    assert.equal(await exit, 0)
    await until(() => !workers.some(isAlive))
  })

  it('a second signal: the exit is at once and no worker survives', async (t) => {
    const ending = await desk()
    t.after(() => ending.end())
    const workers = Object.values(await pids(ending)) as number[]
    let started = () => {}
    const streaming = new Promise<void>((resolve) => (started = resolve))
    const answer = ending.thread().send('tell me a joke', {
      onEvent: ({ type }) => type === 'text_delta' && started(),
    })
    await streaming
    ending.child.kill('SIGINT')
    ending.child.kill('SIGTERM')
    await assert.rejects(answer, { code: 'connection_lost' })
    assert.equal(await ending.end(), 1)
    await until(() => !workers.some(isAlive))
  })

  it('SIGKILL: no worker survives', async (t) => {
    const ending = await desk()
    t.after(() => ending.end())
    const workers = Object.values(await pids(ending)) as number[]
    await ending.end('SIGKILL')
    await until(() => !workers.some(isAlive))
  })
})

describe('a wrong start', { concurrency: 3 }, () => {
  const wrong: [name: string, env: Record<string, string>, sentence: RegExp][] = [
    ['a port', { PORT: 'eighty' }, /^PORT must be a whole number from 0 to 65535, got "eighty"\n$/],
    ['a provider without a model', { DCAF_PROVIDER: 'anthropic' }, /^Set DCAF_MODEL to .*\n$/],
    [
      'a durable store without a key',
      { DCAF_STORE: `sqlite:${folder}/x` },
      /^.*set DCAF_KEY to 32 bytes in base64.*\n$/,
    ],
    [
      'an address of another machine',
      { HOST: '192.0.2.1' },
      /^Cannot listen on 192\.0\.2\.1:0: HOST must be .*\n$/,
    ],
  ]
  for (const [name, env, sentence] of wrong)
    it(`with ${name} ends with one sentence and exit code 1`, async () => {
      const failed = await desk(env)
      assert.equal(await failed.end(), 1)
      assert.match(failed.err(), sentence)
      assert.equal(failed.out(), '')
    })

  it('on a port in use says so', async (t) => {
    const first = await desk()
    t.after(() => first.end())
    const second = await desk({ PORT: new URL(first.url).port })
    assert.equal(await second.end(), 1)
    assert.match(
      second.err(),
      /^Cannot listen on 127\.0\.0\.1:\d+: port \d+ is in use; set PORT to another one.*\n$/,
    )
  })
})

const noRedis = await missing(redisClient)
const noPostgres = await missing(postgresPool)

describe('an ops desk over a server', { concurrency: 3 }, () => {
  it('that is down starts, chats, and runs nothing that needs an approval', async (t) => {
    const down = await desk({ DCAF_STORE: 'redis://127.0.0.1:9', DCAF_KEY: key })
    t.after(() => down.end())
    assert.match(down.err(), /"level":"warn","event":"store"/)
    assert.ok((await pids(down))['web-1'])
    await assert.rejects(down.thread().send('restart web-1'), { code: 'store_unavailable' })
    assert.deepEqual(down.effects(), [])
  })

  it('approves once over Redis', { skip: noRedis }, async (t) => {
    const over = await desk({ DCAF_STORE: `${redisUrl}/9`, DCAF_KEY: key })
    t.after(() => over.end())
    await approvesOnce(over)
  })

  it('approves once over PostgreSQL', { skip: noPostgres }, async (t) => {
    const service = await postgresPool()
    const schema = uniqueName()
    await service.query(`CREATE SCHEMA ${schema}`, [])
    t.after(async () => {
      await service.query(`DROP SCHEMA ${schema} CASCADE`, [])
      await service.close()
    })
    const url = new URL(postgresUrl)
    url.searchParams.set('options', `-c search_path=${schema}`)
    const over = await desk({ DCAF_STORE: url.href, DCAF_KEY: key })
    t.after(() => over.end())
    await approvesOnce(over)
  })

  async function approvesOnce(over: Desk) {
    const thread = over.thread()
    await thread.send('restart web-1')
    const decisions = thread.pending.map((call) => approve(call))
    await thread.decide(decisions)
    await thread.decide(decisions)
    assert.equal(over.effects().length, 1)
  }
})
