// Several processes over one store that are asked the same thing at once, and processes that share no store at all: a call
// runs once wherever it was approved, and an approval is worth nothing where it would not be recorded.

import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import type { Decision } from '../../src/approval.ts'
import { keepClean } from './clean.ts'
import {
  decide,
  effectLog,
  isRunning,
  isUnverified,
  propose,
  type Replica,
  startReplica,
  styles,
} from './fleet.ts'
import { isFull, row, times, tried } from './table.ts'
import { type World, worlds } from './worlds.ts'

const effects = effectLog()
keepClean()

const fleet = (count: number, world: Pick<World, 'where'>, more: object = {}) =>
  Promise.all(
    Array.from({ length: count }, () =>
      startReplica({ where: world.where, effects: effects.file, ...more }),
    ),
  )
const at = <T>(list: T[], index: number): T => list[index % list.length] as T

for (const { name, open, skip } of worlds)
  describe(`replicas over one store, ${name}`, { skip }, () => {
    let world: World
    let replicas: Replica[]
    before(async () => {
      world = await open()
      replicas = await fleet(4, world, { workMs: 30, timeoutMs: 20_000 })
    })
    after(async () => {
      await Promise.all((replicas ?? []).map((replica) => replica.kill()))
      await world?.close()
    })

    test('four asked the same at once run it once; each answer is the outcome, or says that it runs', (t) =>
      tried(t, `${name}, identical approvals at once`, times(2, 10), async (index) => {
        const call = await propose(at(replicas, index).url, 'web-1')
        const answers = await Promise.all(
          Array.from({ length: times(24, 200) }, (_, i) =>
            decide(at(replicas, i).url, call, at(styles, i >> 2)),
          ),
        )
        const done = effects.of(call.callId)
        assert.equal(done.length, 1)
        const outputs = answers.map(({ output }) => output)
        assert.ok(outputs.includes(done[0]))
        const others = outputs.filter((output) => output !== done[0])
        for (const output of others) assert.match(output ?? '', isRunning)
        for (const [i, style] of styles.entries()) {
          const { output, replayed } = await decide(at(replicas, i).url, call, style)
          assert.deepEqual([output, replayed], [done[0], true])
        }
      }))

    test('two asked many times in a row: once each', async (t) => {
      const count = times(10, 100)
      for (let index = 0; index < count; index++) {
        const call = await propose(at(replicas, index).url, 'web-1')
        const twice = [at(replicas, index), at(replicas, index + 1)]
        const answers = await Promise.all(twice.map(({ url }) => decide(url, call, 'old')))
        const done = effects.of(call.callId)
        assert.equal(done.length, 1)
        assert.ok(answers.some(({ output }) => output === done[0]))
      }
      row(t, `${name}, two at once`, count, 0)
    })

    test('approved and rejected at once: the first decision wins, and everybody is told which', (t) =>
      tried(t, `${name}, approved and rejected at once`, times(3, 50), async (index) => {
        const call = await propose(at(replicas, index).url, 'web-1')
        const said = [{ execute: true }, { execute: false, rejection_reason: 'no' }]
        await Promise.all(
          replicas.map(({ url }, i) => decide(url, call, 'old', at(said, i + index))),
        )
        const [effect, ...more] = effects.of(call.callId)
        assert.deepEqual(more, [])
        for (const { url } of replicas)
          assert.equal((await decide(url, call)).output, effect ?? 'Tool rejected: no')
      }))

    test('a tool that outlives its time: unknown, then running, then what it really did', async (t) => {
      const [slow] = (await fleet(1, world, { timeoutMs: 60 })) as [Replica]
      const [other] = replicas as [Replica]
      const count = times(1, 20)
      for (let index = 0; index < count; index++) {
        const call = await propose(other.url, 'web-1')
        const there = await slow.stopAt('effect')
        const answer = decide(slow.url, call)
        await there()
        const words =
          'Outcome unknown: restart did not finish within 60 ms. It was NOT run again. Check the target before asking again.'
        assert.equal((await answer).output, words)
        for (const replica of [slow, other])
          assert.match((await decide(replica.url, call)).output ?? '', isRunning)
        const recorded = await slow.stopAt('finished')
        await recorded()
        slow.go()
        const [effect] = effects.of(call.callId)
        for (const replica of [slow, other]) {
          const { output, replayed } = await decide(replica.url, call)
          assert.deepEqual([output, replayed], [effect, true])
        }
        assert.equal(effects.of(call.callId).length, 1)
      }
      row(t, `${name}, settled late`, count, 0)
      await slow.kill()
    })

    test('a store that forgot everything, under running replicas: what was approved before is refused', async (t) => {
      const count = times(5, 100)
      const calls = []
      for (let index = 0; index < count; index++)
        calls.push(await propose(at(replicas, index).url, `web-${index}`))
      const [ran] = calls as [(typeof calls)[0]]
      await decide(at(replicas, 0).url, ran)
      await world.forget()
      for (const [index, call] of calls.entries()) {
        const { status, output } = await decide(at(replicas, index).url, call, at(styles, index))
        assert.equal(status, 200)
        assert.match(output ?? '', isUnverified)
        assert.equal(effects.of(call.callId).length, call === ran ? 1 : 0)
      }
      row(t, `${name}, approved before the store was lost`, count, 0)
      const fresh = await propose(at(replicas, 0).url, 'web-1')
      assert.equal((await decide(at(replicas, 1).url, fresh)).output, effects.of(fresh.callId)[0])
    })

    test('many processes with the same approvals run each once', async (t) => {
      const [processes, keys] = [times(2, 8), times(20, isFull && name === 'SQLite' ? 2_000 : 300)]
      const fast = await fleet(processes, world)
      const calls: Decision[] = []
      const ids = []
      for (let index = 0; index < keys; index++) {
        const { id, callId, name, input } = await propose(at(fast, index).url, `web-${index}`)
        calls.push({ id, approve: true, name, input })
        ids.push(callId)
      }
      const outputs = await Promise.all(fast.map((replica) => replica.decideAll(calls)))
      const all = effects.all()
      for (const [index, id] of ids.entries()) {
        const [effect, ...more] = all.get(id) ?? []
        assert.deepEqual(more, [])
        assert.ok(effect)
        const told = outputs.map((list) => list[index])
        assert.ok(told.includes(effect), JSON.stringify(told))
        for (const output of told) if (output !== effect) assert.match(output ?? '', isRunning)
      }
      row(t, `${name}, ${processes} processes with the same approvals`, keys, 0)
      await Promise.all(fast.map((replica) => replica.kill()))
    })
  })

test('an approval is worth nothing to a server with a ledger of its own, or with none from before', async (t) => {
  const [one, two] = (await fleet(2, { where: { kind: 'memory' } })) as [Replica, Replica]
  const { open } = worlds[0] as (typeof worlds)[0]
  const [here, there] = await Promise.all([open(), open()])
  const [three] = (await fleet(1, here)) as [Replica]
  const [four] = (await fleet(1, there)) as [Replica]
  const count = times(5, 100)
  for (let index = 0; index < count; index++)
    for (const [issued, other] of [
      [one, two],
      [three, four],
      [three, one],
    ] as const) {
      const call = await propose(issued.url, 'web-1')
      const { output } = await decide(other.url, call, at(styles, index))
      assert.match(output ?? '', isUnverified)
      assert.deepEqual(effects.of(call.callId), [])
    }
  const call = await propose(one.url, 'web-1')
  await one.kill()
  const [restarted] = (await fleet(1, { where: { kind: 'memory' } })) as [Replica]
  assert.match((await decide(restarted.url, call)).output ?? '', isUnverified)
  assert.deepEqual(effects.of(call.callId), [])
  row(t, 'approved elsewhere', 3 * count + 1, 0)
  await Promise.all([two, three, four, restarted].map((replica) => replica.kill()))
  await Promise.all([here.close(), there.close()])
})
