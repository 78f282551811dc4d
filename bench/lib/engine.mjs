// Starts mock and runners, and measures what figures.mjs lists: repetitions interleaved between the runners, so that
// whatever else the machine does meets all of them; medians over the repetitions.

import { execFileSync, fork, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { dependenciesOf, footprint, sizeOf } from './footprint.mjs'
import { load, unchunked } from './raw.mjs'
import { benchDir, rootDir } from './root.mjs'
import { answerOf, prompt } from './scenario.mjs'

export const everyRunner = ['limit', 'ours', 'ai', 'openai-agents', 'strands', 'langgraph', 'pi']

/** A process that answers one message at a time; whatever it says that is an error rejects. */
class Child {
  #process
  constructor(file, args, execArgv = ['--expose-gc'], env = {}) {
    const stdio = ['ignore', 'inherit', 'inherit', 'ipc']
    const options = { execArgv, stdio, env: { ...process.env, ...env } }
    this.#process = fork(join(benchDir, 'lib', file), args, options)
  }
  async hear() {
    const died = new AbortController()
    const { signal } = died
    const exited = once(this.#process, 'exit', { signal }).then(([code]) => {
      throw new Error(`a process of the bench ended (${code})`)
    })
    exited.catch(() => {})
    try {
      const [message] = await Promise.race([once(this.#process, 'message', { signal }), exited])
      if (message.error) throw new Error(message.error)
      return message
    } finally {
      died.abort()
    }
  }
  ask(message) {
    const heard = this.hear()
    this.#process.send(message)
    return heard
  }
  kill() {
    this.#process.kill()
  }
}

export class Bench {
  #mock
  #runners = new Map()
  #checked = new Map()
  #warm = new Set()
  mockUrl = ''

  /** `quick` shortens; `cold` spares services no burst; `say(text)` hears what is going on. */
  constructor({ names, quick, cold, repetitions = quick ? 1 : 5, say = () => {} }) {
    Object.assign(this, { names, quick, cold, repetitions, say })
  }

  async start() {
    this.#mock = new Child('mock.mjs', [])
    const { port } = await this.#mock.hear()
    this.mockPort = port
    this.mockUrl = `http://127.0.0.1:${port}`
  }

  stop() {
    this.#mock?.kill()
    for (const { child } of this.#runners.values()) child.kill()
  }

  /** Answers a second that the mock gives to raw sockets: no client may come near. */
  async ceiling() {
    const found = {}
    for (const [what, stream] of [
      ['JSON', false],
      ['streamed', true],
    ]) {
      const body = JSON.stringify({ stream })
      const check = (answer) => {
        if (!answer.includes(' wrs')) throw new Error('the mock answers something else')
      }
      const given = {
        port: this.mockPort,
        path: '/t12/v1/chat/completions',
        body,
        connections: 64,
        check,
      }
      await load({ ...given, ms: 200 })
      const { requests, wallMs } = await load({ ...given, ms: this.quick ? 300 : 1000 })
      found[what] = Math.round((requests / wallMs) * 1000)
    }
    return found
  }

  async #runner(name) {
    let runner = this.#runners.get(name)
    if (!runner) {
      const child = new Child('child.mjs', [name])
      runner = { child, ...(await child.hear()) }
      this.#runners.set(name, runner)
    }
    return runner
  }

  /** One entry of figures.mjs to its rows: `{ title, unit, budget, cells: Map(name -> { values, why }) }`. */
  async measure(entry) {
    const how = { cold: coldFigures, http: httpFigures, approvals: approvalFigures }[entry.kind]
    return how ? how(this, entry) : this.#compare(entry)
  }

  /** Why a runner cannot do this, or undefined after it showed that it can. */
  async #unable(name, { wire, stream, task }) {
    const runner = await this.#runner(name)
    if (!runner.wires.includes(wire)) return 'has no such wire here'
    if (!stream && runner.streamsOnly) return 'always streams'
    const scenarios = task.scenario === 'p4' ? ['p4'] : ['k3']
    for (const scenario of scenarios) {
      const key = [name, wire, stream, scenario].join()
      if (!this.#checked.has(key)) {
        const mock = this.mockUrl
        const checked = runner.child.ask({ task: 'check', mock, wire, stream, scenario }).then(
          () => undefined,
          (error) => error.message.split('\n', 1)[0],
        )
        this.#checked.set(key, checked)
      }
      const why = await this.#checked.get(key)
      if (why && (name === 'limit' || name === 'ours')) throw new Error(why)
      if (why) return `fails: ${why}`
    }
    return undefined
  }

  async #compare(entry) {
    const { quick } = this
    const cells = new Map()
    const able = []
    for (const name of this.names) {
      const isMeasured = entry.only?.includes(name) ?? true
      const why = isMeasured ? await this.#unable(name, entry) : 'is not measured here'
      if (why) cells.set(name, { why })
      else able.push(name)
    }
    const taken = new Map(able.map((name) => [name, []]))
    const repetitions = entry.repetitions ?? this.repetitions
    for (let i = 0; i < repetitions; i++) {
      const order = i % 2 ? able.toReversed() : able
      // The pair that budgets are about is measured in slices, turn by turn, within one repetition.
      const slices = entry.task.task === 'cpu' && entry.pair.full > 1 && !quick ? 4 : 1
      const sums = new Map()
      for (let slice = 0; slice < slices; slice++)
        for (const name of order) {
          const isPair = name === 'limit' || name === 'ours'
          if (!isPair && slice > 0) continue
          const ms =
            entry.pair &&
            (isPair ? entry.pair : entry.rival)[quick ? 'quick' : 'full'] / (isPair ? slices : 1)
          const figures = await this.#ask(name, entry, ms)
          sums.set(name, sums.has(name) ? added(sums.get(name), figures) : figures)
        }
      for (const [name, figures] of sums) taken.get(name).push(figures)
    }
    return entry.rows.map((row) => ({
      ...row,
      group: entry.group,
      cells: new Map(
        this.names.map((name) => {
          const all = taken.get(name)
          const why = cells.get(name)?.why ?? all?.find((f) => f.why)?.why
          return [name, { values: all?.map(row.value) ?? [], ...(why && { why }) }]
        }),
      ),
    }))
  }

  async #ask(name, entry, ms) {
    if (entry.fresh) {
      const child = new Child('child.mjs', [name])
      try {
        await child.hear()
        return (await child.ask({ ...entry.task, mock: this.mockUrl })).figures
      } finally {
        child.kill()
      }
    }
    const { child } = await this.#runner(name)
    const key = `${name} ${JSON.stringify(entry.task)}`
    const isWarm = this.#warm.has(key)
    this.#warm.add(key)
    // V8 is done with optimizing some three seconds in. A paced run is short of work, and while the others have their turn
    // V8 collects what is idle and forgets its shapes: it is warmed by a run of its own each time.
    const isPaced = entry.pair?.full === 1
    const warmMs = isPaced ? 1 : isWarm ? 0 : this.quick ? Math.max(ms * 2, 1) : 3000
    const isRival = name !== 'limit' && name !== 'ours'
    const lanes = this.quick && isRival && entry.pair?.full > 1 ? 2 : 8
    const { figures } = await child.ask({ ...entry.task, mock: this.mockUrl, lanes, ms, warmMs })
    return figures
  }
}

function added(a, b) {
  return Object.fromEntries(Object.keys(a).map((key) => [key, a[key] + b[key]]))
}

// ---- Cold start --------------------------------------------------------------------------------------------------

/** What to import, and from where: the project as installed, so `dist`. */
function importsOf(name) {
  if (name === 'limit') return { cwd: rootDir, first: ['typebox'], all: ['typebox', 'undici'] }
  if (name === 'ours')
    return {
      cwd: rootDir,
      first: ['./dist/index.js'],
      all: ['./dist/index.js', './dist/providers/openai.js'],
    }
  const all = {
    ai: ['ai', '@ai-sdk/openai'],
    'openai-agents': ['@openai/agents'],
    strands: ['@strands-agents/sdk', '@strands-agents/sdk/models/openai'],
    langgraph: ['@langchain/langgraph/prebuilt', '@langchain/openai'],
    pi: ['@earendil-works/pi-agent-core', '@earendil-works/pi-ai/api/openai-completions'],
  }[name]
  return { cwd: benchDir, first: all.slice(0, 1), all }
}

const packagesOf = {
  ai: ['ai', '@ai-sdk/openai'],
  'openai-agents': ['@openai/agents'],
  strands: ['@strands-agents/sdk', 'openai'],
  langgraph: ['@langchain/langgraph', '@langchain/openai', '@langchain/core'],
  pi: ['@earendil-works/pi-agent-core'],
}

async function coldFigures(bench, entry) {
  if (bench.names.includes('ours')) build(bench.say)
  const repetitions = bench.quick ? 1 : bench.repetitions * 2 - 1
  // `provider` is a part of `ours`: it is not installed, and imports nothing that `ours` does not.
  const names = bench.names.filter((name) => everyRunner.includes(name))
  const none = { values: [], why: 'has no such figure' }
  const cellOf = (name) => (names.includes(name) ? { values: [] } : none)
  const cells = new Map(
    entry.rows.map(({ id }) => [id, new Map(bench.names.map((name) => [name, cellOf(name)]))]),
  )
  const put = (id, name, value) => cells.get(id).get(name).values.push(value)
  for (let i = 0; i < repetitions; i++)
    for (const name of i % 2 ? names.toReversed() : names) {
      const { cwd, first, all } = importsOf(name)
      put('import', name, imported(first, cwd).cpuMs)
      const whole = imported(all, cwd)
      put('importAll', name, whole.cpuMs)
      put('memory', name, whole.megabytes)
      const child = new Child('first-answer.mjs', [name, bench.mockUrl], [], {
        DCAF_BENCH_DIST: '1',
      })
      put('answer', name, (await child.hear()).cpuMs)
      child.kill()
    }
  for (const name of names) {
    const { bytes, packages } = installed(name)
    put('size', name, bytes / 1e6)
    put('packages', name, packages)
  }
  return entry.rows.map((row) => ({ ...row, group: entry.group, cells: cells.get(row.id) }))
}

/** In a fresh process. The CPU time of import alone: neither node's own start nor its end. */
function imported(specifiers, cwd) {
  const code = `
    const rss = process.memoryUsage.rss()
    const cpu = process.cpuUsage()
    ${specifiers.map((name) => `await import(${JSON.stringify(name)})`).join('\n')}
    const { user, system } = process.cpuUsage(cpu)
    const megabytes = (process.memoryUsage.rss() - rss) / 1e6
    console.log(JSON.stringify({ cpuMs: (user + system) / 1000, megabytes }))
    process.exit()`
  const text = execFileSync(process.execPath, ['--input-type=module', '-e', code], {
    cwd,
    encoding: 'utf8',
  })
  return JSON.parse(text.trim().split('\n').at(-1))
}

function installed(name) {
  if (name === 'limit') return footprint(['typebox', 'undici'], rootDir)
  if (name !== 'ours') return footprint(packagesOf[name], benchDir)
  const { bytes, packages } = footprint(dependenciesOf(rootDir), rootDir)
  const own = ['dist', 'src'].map((dir) => sizeOf(join(rootDir, dir))).reduce((a, b) => a + b)
  return { bytes: bytes + own, packages: packages + 1 }
}

/** `dist` is what users import; made anew where a source is newer. */
export function build(say = () => {}) {
  const made = join(rootDir, 'dist', 'index.js')
  const newest = Math.max(
    ...readdirSync(join(rootDir, 'src'), { recursive: true }).map(
      (f) => statSync(join(rootDir, 'src', f)).mtimeMs,
    ),
  )
  if (existsSync(made) && statSync(made).mtimeMs > newest) return
  say('npm run build, since dist is older than src')
  const { status, stdout, stderr } = spawnSync('npm', ['run', 'build'], {
    cwd: rootDir,
    encoding: 'utf8',
  })
  if (status !== 0) throw new Error(`npm run build failed:\n${stdout}${stderr}`)
}

// ---- HTTP service ------------------------------------------------------------------------------------------------

const services = ['limit', 'ours']

async function httpFigures(bench, entry) {
  const names = bench.names.filter((name) => services.includes(name))
  const running = new Map()
  const { stream, ms } = entry
  const body = JSON.stringify({
    messages: [
      {
        role: 'user',
        content: prompt,
        platform_context: { tenant_name: 'bench', k8s_namespace: 'default' },
      },
    ],
    thread_id: 'thread-1',
  })
  try {
    for (const name of names) {
      const child = new Child('service.mjs', [name, `${bench.mockUrl}/t50`])
      running.set(name, { child, port: (await child.hear()).port, taken: [] })
    }
    const path = stream ? '/api/chat-stream' : '/api/chat'
    await sameOnTheWire([...running.values()], path, body)
    // The first two rounds warm up, as a service does: few connections, then all. Hit by 64 in its first millisecond, V8
    // takes what lives through that burst for long-lived, and pays for it ever after.
    for (let i = bench.cold ? -1 : -2; i < bench.repetitions; i++)
      for (const name of i % 2 ? names.toReversed() : names) {
        const { child, port, taken } = running.get(name)
        await child.ask('begin')
        const { requests, wallMs } = await load({
          port,
          path,
          body,
          connections: i === -2 ? 4 : 64,
          ms,
          check: chatCheck(stream),
        })
        const { cpuUs } = await child.ask('end')
        if (i >= 0) taken.push({ requests, wallMs, cpuUs })
      }
  } finally {
    for (const { child } of running.values()) child.kill()
  }
  return entry.rows.map((row) => ({
    ...row,
    group: entry.group,
    cells: new Map(
      bench.names.map((name) => {
        const taken = running.get(name)?.taken
        return [
          name,
          taken ? { values: taken.map(row.value) } : { values: [], why: 'is not measured here' },
        ]
      }),
    ),
  }))
}

/** Whoever says less would be cheaper: headers and fields of all services must be the same. */
async function sameOnTheWire(services, path, body) {
  const seen = []
  for (const { port } of services) {
    const headers = { 'content-type': 'application/json' }
    const url = `http://127.0.0.1:${port}${path}`
    const answer = await fetch(url, { method: 'POST', headers, body })
    const lines = (await answer.text()).trim().split('\n')
    const names = [...answer.headers.keys()].sort()
    seen.push(JSON.stringify([names, ...lines.map((line) => shapeOf(JSON.parse(line)))]))
  }
  if (seen.some((shape) => shape !== seen[0]))
    throw new Error(`the services do not answer alike:\n${seen.join('\n')}`)
}

/** Its keys, however deep, in alphabetical order; lists with what is in them, of all else the type. */
function shapeOf(value) {
  if (Array.isArray(value)) return value.map(shapeOf)
  if (typeof value !== 'object' || value === null) return typeof value
  return Object.fromEntries(
    Object.keys(value)
      .sort()
      .map((key) => [key, shapeOf(value[key])]),
  )
}

/** Every answer is looked at, every 16th is read in full. */
function chatCheck(stream) {
  const answer = answerOf('t50')
  let seen = 0
  return (body) => {
    if (seen++ % 16) {
      if (!body.includes(stream ? '"type":"done"' : answer))
        throw new Error(`a wrong answer: ${body.slice(0, 500)}`)
      return
    }
    const text = stream
      ? unchunked(body)
          .trim()
          .split('\n')
          .map((line) => JSON.parse(line))
          .map(({ type, text }) => (type === 'text_delta' ? text : ''))
          .join('')
      : JSON.parse(body.startsWith('{') ? body : unchunked(body)).content
    if (text !== answer) throw new Error(`a wrong answer: ${text}`)
  }
}

// ---- Approvals ---------------------------------------------------------------------------------------------------

async function approvalFigures(bench, entry) {
  const names = bench.names.filter((name) => services.includes(name))
  const taken = new Map(names.map((name) => [name, []]))
  let why
  for (let i = 0; i < Math.min(bench.repetitions, 3) && !why; i++)
    for (const name of i % 2 ? names.toReversed() : names) {
      const child = new Child('approvals-child.mjs', [
        JSON.stringify({ who: name, store: entry.store, ms: entry.ms }),
      ])
      try {
        taken.get(name).push((await child.hear()).figures)
      } catch (error) {
        why = `no ${entry.store} here: ${error.message.split('\n', 1)[0]}`
      } finally {
        child.kill()
      }
    }
  return entry.rows.map((row) => ({
    ...row,
    group: entry.group,
    cells: new Map(
      bench.names.map((name) => [
        name,
        { values: taken.get(name)?.map(row.value) ?? [], why: why ?? 'is not measured here' },
      ]),
    ),
  }))
}

// ---- Reading the result ------------------------------------------------------------------------------------------

export function median(values) {
  const sorted = values.toSorted((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
}

/** Repetition by repetition beside the limit, then the median: what slowed both down drops out. */
export function ratioOf(row, name) {
  const limit = row.cells.get('limit')?.values ?? []
  const values = row.cells.get(name)?.values ?? []
  const ratios = values
    .map((value, i) => value / limit[i])
    .filter((ratio) => Number.isFinite(ratio))
  return ratios.length ? median(ratios) : undefined
}

export function addedOf(row, name) {
  const limit = row.cells.get('limit')?.values ?? []
  const values = row.cells.get(name)?.values ?? []
  return values.length && limit.length
    ? median(values.map((value, i) => value - limit[i]))
    : undefined
}

/** `{ value, allowed, text }` of ours against the row's budget; undefined without one. */
export function verdict(row) {
  const values = row.cells.get('ours')?.values ?? []
  if (!row.budget || values.length === 0) return undefined
  const { ratio, max } = row.budget
  const value =
    ratio !== undefined ? ratioOf(row, 'ours') : row.added ? addedOf(row, 'ours') : median(values)
  if (value === undefined) return undefined
  const allowed = ratio ?? max
  return { value, allowed, isOver: value > allowed, unit: ratio === undefined ? row.unit : 'x' }
}
