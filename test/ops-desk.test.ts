// The ops desk from the outside: its model that is none, its workers, its configuration, and the whole thing served.

import assert from 'node:assert/strict'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, it, type TestContext } from 'node:test'
import { readConfig } from '../examples/ops-desk/config.ts'
import { jsonLog } from '../examples/ops-desk/log.ts'
import { diskUsage, processUsage, systemLoad } from '../examples/ops-desk/machine.ts'
import { offline } from '../examples/ops-desk/offline.ts'
import { startWorkers, type Workers, workerNames } from '../examples/ops-desk/workers.ts'
import type { Message, ModelRequest, ToolResult, ToolSpec } from '../src/providers/provider.ts'

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

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0)
  } catch {
    return false
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
    assert.equal((await desk.tail('web-1', 200)).split('\n').length, 2) // 64 KiB from the end
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

void existsSync
void mkdtempSync
void rmSync
void tmpdir
void join
