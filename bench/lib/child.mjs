// One runner in a process of its own: `child.mjs limit`. Does what it is told over IPC, one thing at a time, and answers
// with figures. Checks every answer and counts every execution of the tool: a figure of a wrong run does not exist.

import { monitorEventLoopDelay } from 'node:perf_hooks'
import { setImmediate as nextTick, setTimeout as sleep } from 'node:timers/promises'
import { answerOf, lookUp, parse } from './scenario.mjs'

const runner = await import(`../runners/${process.argv[2]}.mjs`)
const runs = new Map()
let executed = 0
let streamedLength = 0
let firstToken = 0

function execute(input) {
  executed++
  return lookUp(input)
}

function onToken(text) {
  if (firstToken === 0) firstToken = performance.now()
  streamedLength += text.length
}

/** `once()` does one checked run. */
async function prepare({ mock, wire, stream, scenario, check = false }) {
  const key = [wire, stream, scenario, check].join()
  const known = runs.get(key)
  if (known) return known
  const base = `${mock}${check ? '/check' : ''}/${scenario}`
  const run = await runner.create({ wire, base, stream, execute, onToken })
  const answer = answerOf(scenario)
  const once = async () => {
    const text = await run()
    if (text !== answer)
      throw new Error(`${scenario}: wrong answer ${JSON.stringify(text)?.slice(0, 200)}`)
  }
  runs.set(key, once)
  return once
}

/** `lanes` runs at a time until `ms` have passed, and what that took. */
async function drive(once, scenario, stream, lanes, ms) {
  const { calls, tokens } = parse(scenario)
  executed = 0
  streamedLength = 0
  let done = 0
  const cpu = process.cpuUsage()
  const began = performance.now()
  const end = began + ms
  const lane = async () => {
    do {
      await once()
      done++
    } while (performance.now() < end)
  }
  await Promise.all(Array.from({ length: lanes }, lane))
  const { user, system } = process.cpuUsage(cpu)
  const wallMs = performance.now() - began
  if (executed !== done * calls)
    throw new Error(`${executed} executions instead of ${done * calls}`)
  const length = done * answerOf(scenario).length
  if (stream && streamedLength !== length)
    throw new Error(`${streamedLength} streamed, ${length} wanted`)
  return { runs: done, tokens: done * tokens, cpuUs: user + system, wallMs }
}

const tasks = {
  /** The history is checked by the mock; the cheap check of timed runs relies on it. */
  async check(given) {
    await (await prepare({ ...given, check: true }))()
    return {}
  },

  async cpu({ lanes = 8, ms, warmMs = 0, ...given }) {
    const once = await prepare(given)
    const { scenario, stream } = given
    if (warmMs) await drive(once, scenario, stream, lanes, warmMs)
    return drive(once, scenario, stream, lanes, ms)
  },

  /** Milliseconds from the call of the agent to its first token, one run at a time. */
  async firstToken({ count, ...given }) {
    const once = await prepare(given)
    globalThis.gc?.()
    const times = []
    for (let i = 0; i < count; i++) {
      firstToken = 0
      const began = performance.now()
      await once()
      times.push(firstToken - began)
      await nextTick()
    }
    times.sort((a, b) => a - b)
    return { p50: times[times.length >> 1] }
  },

  /**
   * Many slow streams at once, in a fresh process: memory that was once used is not given back. Memory while all are
   * open, after a collection; lag and CPU over what follows.
   */
  async streams({ count, ...given }) {
    const once = await prepare(given)
    const { tokens, everyMs } = parse(given.scenario)
    await drive(await prepare({ ...given, scenario: 't200' }), 't200', given.stream, 1, 300)
    globalThis.gc?.()
    await sleep(20)
    globalThis.gc?.()
    const before = process.memoryUsage.rss()
    streamedLength = 0
    const all = Promise.allSettled(Array.from({ length: count }, once))
    const half = (tokens * everyMs) / 2
    await sleep(half - 100)
    globalThis.gc?.()
    const open = process.memoryUsage.rss() - before
    await sleep(100)
    const lag = monitorEventLoopDelay({ resolution: 2 })
    lag.enable()
    const cpu = process.cpuUsage()
    const began = performance.now()
    await sleep(half * 0.8)
    const { user, system } = process.cpuUsage(cpu)
    const wallMs = performance.now() - began
    lag.disable()
    const ended = await all
    const broken = ended.filter((one) => one.status === 'rejected')
    const lost = count * answerOf(given.scenario).length - streamedLength
    return {
      bytesPerStream: open / count,
      lagMs: lag.percentile(99) / 1e6 - 2,
      core: (user + system) / 1000 / wallMs,
      lost: Math.ceil(lost / 5),
      broken: broken.length,
      ...(broken.length && { why: String(broken[0].reason?.message) }),
    }
  },
}

process.on('message', async ({ task, ...given }) => {
  try {
    process.send({ figures: await tasks[task](given) })
  } catch (error) {
    process.send({ error: `${runner.name}: ${error?.stack ?? error}` })
  }
})
process.on('disconnect', () => process.exit())
process.send({ name: runner.name, wires: runner.wires, streamsOnly: runner.streamsOnly })
