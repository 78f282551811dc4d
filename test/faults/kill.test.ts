// Processes killed at every point of an approval, over SQLite, a real Redis and a real PostgreSQL. What was really done is
// read from a file outside: never twice; and what a client is told afterwards is true, wherever it asks.

import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { keepClean } from './clean.ts'
import {
  type Answered,
  decide,
  effectLog,
  isRunning,
  isUnknown,
  type Proposed,
  propose,
  type Replica,
  startReplica,
  styles,
} from './fleet.ts'
import type { Point } from './replica.ts'
import { isFull, row, times, tried } from './table.ts'
import { type World, worlds } from './worlds.ts'

const effects = effectLog()
keepClean()

/** Ten minutes of it instead of one. */
const isNightly = Boolean(process.env.DCAF_NIGHTLY)

const start = (world: World, more: object = {}) =>
  startReplica({ where: world.where, effects: effects.file, ...more })

/** `asked`: what another replica says while the first one hangs there; `later`: what everybody says once it was killed. */
const points: {
  point: Point
  runs: 0 | 1
  asked: 'runs' | 'running' | 'replays'
  later: string
}[] = [
  { point: 'begun', runs: 0, asked: 'running', later: 'is unknown' },
  { point: 'effect', runs: 1, asked: 'running', later: 'is unknown' },
  { point: 'finishing', runs: 1, asked: 'running', later: 'is unknown' },
  { point: 'finished', runs: 1, asked: 'replays', later: 'replays' },
  { point: 'answering', runs: 1, asked: 'replays', later: 'replays' },
]

for (const { name, open, skip } of worlds)
  describe(`kill -9, ${name}`, { skip }, () => {
    let world: World
    let survivor: Replica
    let next: Replica
    before(async () => {
      world = await open()
      ;[survivor, next] = await Promise.all([start(world), start(world)])
    })
    after(async () => {
      await Promise.all([survivor?.kill(), next?.kill()])
      await world?.close()
    })

    const assertTrue = (answer: Answered, call: Proposed, then: string) => {
      const { status, output = '', replayed } = answer
      const expected = then === 'replays' ? effects.of(call.callId)[0] : undefined
      assert.equal(status, 200, answer.text)
      if (then === 'is unknown') assert.match(output, isUnknown)
      if (then === 'running') assert.match(output, isRunning)
      if (then === 'replays') assert.deepEqual([output, replayed], [expected, true])
    }

    const briefly = ['begun', 'finishing', 'finished']
    const chosen =
      isFull || name === 'SQLite' ? points : points.filter((p) => briefly.includes(p.point))
    for (const { point, runs, asked, later } of chosen)
      test(`${point}: the tool ran ${runs ? 'once' : 'not at all'}, and the answer ${later} afterwards`, (t) =>
        tried(t, `${name}, ${point}`, times(1, 20), async (index) => {
          const victim = next
          const call = await propose(index % 2 ? survivor.url : victim.url, `web-${index}`)
          const there = await victim.stopAt(point)
          const lost = decide(victim.url, call, styles[index % 4]).catch(() => undefined)
          await there(lost)
          assertTrue(await decide(survivor.url, call, styles[(index + 1) % 4]), call, asked)
          const restarted = start(world)
          await victim.kill()
          assert.equal(await lost, undefined)
          next = await restarted
          const answers = []
          for (const [i, style] of styles.entries())
            answers.push(await decide(i % 2 ? survivor.url : next.url, call, style))
          for (const answer of answers) assertTrue(answer, call, later)
          assert.equal(new Set(answers.map(({ output }) => output)).size, 1)
          assert.equal(effects.of(call.callId).length, runs)
        }))

    test('before it has begun: the next replica runs it, once', (t) =>
      tried(t, `${name}, before begin`, times(1, 20), async () => {
        const victim = next
        const call = await propose(victim.url, 'web-1')
        const there = await victim.stopAt('beginning')
        const lost = decide(victim.url, call).catch(() => undefined)
        await there(lost)
        const restarted = start(world)
        await victim.kill()
        await lost
        next = await restarted
        const first = await decide(next.url, call)
        const again = await decide(survivor.url, call, 'old')
        const [effect] = effects.of(call.callId)
        assert.deepEqual([first.output, first.replayed], [effect, false])
        assert.deepEqual([again.output, again.replayed], [effect, true])
        assert.equal(effects.of(call.callId).length, 1)
      }))
  })

describe('the end of a process, SQLite', () => {
  let world: World
  let other: Replica
  before(async () => {
    world = await (worlds[0] as (typeof worlds)[0]).open()
    other = await start(world)
  })
  after(async () => {
    await other?.kill()
    await world?.close()
  })

  async function underWay(more: object) {
    const replica = await start(world, more)
    const call = await propose(replica.url, 'web-1')
    const there = await replica.stopAt('effect')
    const answer = decide(replica.url, call).catch(() => undefined)
    await there(answer)
    return { replica, call, answer }
  }

  test('SIGTERM while an approved tool runs: recorded before the exit, and told', (t) =>
    tried(t, 'SIGTERM within the grace', times(1, 20), async () => {
      const { replica, call, answer } = await underWay({})
      replica.signal('SIGTERM')
      await sleep(100)
      replica.go()
      const [effect] = effects.of(call.callId)
      assert.equal((await answer)?.output, effect)
      assert.deepEqual(await replica.exited, { code: 0, signal: null })
      const replay = await decide(other.url, call)
      assert.deepEqual([replay.output, replay.replayed], [effect, true])
    }))

  test('SIGTERM, and a tool that ends after the grace: recorded before the exit', (t) =>
    tried(t, 'SIGTERM beyond the grace', times(1, 20), async () => {
      const { replica, call, answer } = await underWay({ graceMs: 20, hardMs: 20_000 })
      replica.signal('SIGTERM')
      await sleep(200)
      replica.go()
      await answer
      assert.deepEqual(await replica.exited, { code: 0, signal: null })
      assert.equal((await decide(other.url, call, 'old')).output, effects.of(call.callId)[0])
      assert.equal(effects.of(call.callId).length, 1)
    }))

  test('SIGTERM, and a tool that never ends: unknown after the hard deadline', (t) =>
    tried(t, 'SIGTERM, a tool without end', times(1, 20), async () => {
      const { replica, call, answer } = await underWay({ graceMs: 20, hardMs: 100 })
      replica.signal('SIGTERM')
      const told = await answer
      if (told) assert.match(told.output ?? '', /^Outcome unknown: restart was stopped before/)
      await replica.exited
      assert.match((await decide(other.url, call)).output ?? '', isUnknown)
      assert.equal(effects.of(call.callId).length, 1)
    }))

  test('a tool that throws where nobody can catch it: exit 1, and unknown', (t) =>
    tried(t, 'process.nextTick throw', times(1, 20), async () => {
      const replica = await start(world)
      const call = await propose(replica.url, 'crash')
      await decide(replica.url, call).catch(() => undefined)
      assert.deepEqual(await replica.exited, { code: 1, signal: null })
      assert.match(replica.stderr(), /thrown by nobody’s call/)
      assert.match((await decide(other.url, call)).output ?? '', isUnknown)
    }))
})

/** Approvals without end from many clients, each twice at once, while replicas are killed at random. */
async function storm(world: World, approvals: number, pauseMs: () => number, endsAt: number) {
  const replicas = await Promise.all([1, 2, 3].map(() => start(world, { workMs: 20 })))
  const one = () => replicas[Math.floor(Math.random() * replicas.length)] as Replica
  const calls: Proposed[] = []
  let kills = 0
  let working = 4
  const patiently = async <T>(act: () => Promise<T>): Promise<T> => {
    for (let tries = 0; ; tries++) {
      try {
        return await act()
      } catch (error) {
        if (tries > 500) throw error
        await sleep(20)
      }
    }
  }
  const worker = async () => {
    while (calls.length < approvals && Date.now() < endsAt) {
      const call = await patiently(() => propose(one().url, 'web-1'))
      calls.push(call)
      const twice = [styles[calls.length % 4], 'old' as const]
      await Promise.all(twice.map((style) => patiently(() => decide(one().url, call, style))))
    }
    working--
  }
  const killer = async () => {
    while (working > 0) {
      await sleep(pauseMs())
      const index = Math.floor(Math.random() * replicas.length)
      const victim = replicas[index] as Replica
      const replacement = start(world, { workMs: 20 })
      await victim.kill()
      replicas[index] = await replacement
      kills++
    }
  }
  await Promise.all([killer(), ...[1, 2, 3, 4].map(worker)])
  const judge = replicas[0] as Replica
  let unknown = 0
  for (const call of calls) {
    const { output, replayed, text } = await decide(judge.url, call, 'old')
    const done = effects.of(call.callId)
    assert.ok(done.length <= 1, `${call.callId} ran ${done.length} times`)
    if (replayed) assert.equal(output, done[0], text)
    else assert.match(output ?? '', isUnknown, text)
    if (!replayed) unknown++
  }
  await Promise.all(replicas.map((replica) => replica.kill()))
  return { calls: calls.length, kills, unknown }
}

for (const { name, open, skip } of isFull ? worlds : worlds.slice(0, 1))
  test(`replicas killed at random under load, ${name}: every call ran once or is unknown`, {
    skip,
    timeout: 1_200_000,
  }, async (t) => {
    const world = await open()
    try {
      const [count, ms] = isNightly ? [20_000, 600_000] : [times(12, 5_000), times(5_000, 25_000)]
      const pause = () => 200 + Math.random() * (isNightly ? 1_800 : 200)
      const { calls, kills, unknown } = await storm(world, count, pause, Date.now() + ms)
      row(t, `${name}, killed at random`, calls, 0, `${kills} kills, ${unknown} unknown`)
    } finally {
      await world.close()
    }
  })
