// The Redis store: the table through both clients, the network cut in every place, and replies that are none.

import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { inspect } from 'node:util'
import type { Store } from '../../src/store.ts'
import { type RedisSend, redisStore } from '../../src/stores/redis.ts'
import {
  ioredisClient,
  missing,
  type NetworkProxy,
  proxyOf,
  type RedisService,
  redisClient,
  redisUrl,
} from '../services.ts'
import { testStore } from './table.ts'

const patience = 30_000
const skip = await missing(redisClient)

const unavailable = (message: RegExp) => ({
  name: 'DcafError',
  code: 'store_unavailable',
  retryable: true,
  message,
})

for (const [name, open] of [
  ['redis', redisClient],
  ['ioredis', ioredisClient],
] as const) {
  describe(`redisStore through ${name}`, { skip }, () => {
    let service: RedisService
    let store: Store
    before(async () => {
      service = await open()
      store = redisStore(service.send, { prefix: service.prefix, timeoutMs: patience })
    })
    after(() => service.close())

    testStore(() => store)

    test('two connections on one server see each other at once', async () => {
      const second = await open()
      const other = redisStore(second.send, { prefix: service.prefix })
      const won = await Promise.all(
        Array.from({ length: 100 }, (_, n) => (n % 2 ? store : other).swap('k', undefined, `${n}`)),
      )
      assert.deepEqual(won.filter(Boolean), [true])
      assert.equal(await other.get('k'), String(won.indexOf(true)))
      await second.close()
    })

    test('a key is under its prefix, its ttl the server’s', async () => {
      const { send, prefix } = service
      const plain = async (key: string) => [
        await send(['GET', prefix + key]),
        Number(await send(['PTTL', prefix + key])) > 500_000,
      ]
      await store.set('set', 'x', 600_000)
      await store.swap('claimed', undefined, 'x', 600_000)
      await store.set('swapped', 'w')
      await store.swap('swapped', 'w', 'x', 600_000)
      for (const key of ['set', 'claimed', 'swapped'])
        assert.deepEqual(await plain(key), ['x', true])
      await store.swap('swapped', 'x', 'y')
      assert.deepEqual(await plain('swapped'), ['y', false])
    })

    test('what the server refuses is unavailable, and keeps no value in what a log would show', async () => {
      await service.send(['LPUSH', `${service.prefix}list`, 'x'])
      for (const attempt of [
        () => store.get('list'),
        () => store.swap('list', 'canary-old', 'canary-new'),
      ])
        await assert.rejects(attempt(), (error: Error) => {
          assert.match(error.message, /^Redis (GET|EVAL): .*WRONGTYPE/)
          assert.ok(error.cause instanceof Error)
          assert.doesNotMatch(inspect(error, { depth: 10 }), /canary/)
          return true
        })
    })

    describe('through a network that fails', () => {
      let proxy: NetworkProxy
      let remote: RedisService
      let far: Store
      before(async () => {
        proxy = await proxyOf(redisUrl, 6379)
        remote = await open(proxy.url)
        far = redisStore(remote.send, { prefix: service.prefix, timeoutMs: patience })
      })
      after(async () => {
        await remote.close()
        await proxy.close()
      })

      test('that hangs: refuses after its time, and works again', async () => {
        const hasty = redisStore(remote.send, { prefix: service.prefix, timeoutMs: 100 })
        const refused = unavailable(/^Redis (GET|SET|EVAL|DEL): no answer within 100 ms$/)
        proxy.hang()
        await Promise.all([
          assert.rejects(hasty.get('h'), refused),
          assert.rejects(hasty.set('h', 'x'), refused),
          assert.rejects(hasty.swap('h', undefined, 'x'), refused),
          assert.rejects(hasty.swap('h', 'x', 'y'), refused),
          assert.rejects(hasty.delete('h2'), refused),
        ])
        proxy.heal()
        await eventually(() => far.get('h'))
      })

      test('that is cut: refuses at once, and works again without a restart', async () => {
        await far.set('c', 'x')
        proxy.cut()
        await assert.rejects(far.swap('c', 'x', 'y'), unavailable(/^Redis EVAL: /))
        await assert.rejects(far.get('c'), unavailable(/^Redis GET: /))
        proxy.heal()
        assert.equal(await eventually(() => far.get('c')), 'x')
        assert.equal(await far.swap('c', 'x', 'y'), true)
      })

      test('that loses the reply: refuses what was done, and it is done once', async () => {
        proxy.loseReply()
        await assert.rejects(far.swap('l', undefined, 'mine'), unavailable(/^Redis SET: /))
        proxy.heal()
        assert.equal(await eventually(() => far.get('l')), 'mine')
        assert.equal(await far.swap('l', undefined, 'again'), false)
      })
    })
  })
}

describe('redisStore', () => {
  const answering = (reply: unknown) => redisStore(async () => reply)

  test('sends one command a call, under dcaf: by default', async () => {
    const sent: string[][] = []
    const store = redisStore(async (args) => {
      sent.push(args)
      return args[0] === 'EVAL' || args[0] === 'DEL' ? 1 : 'OK'
    })
    await store.get('k')
    await store.set('k', 'v')
    await store.set('k', 'v', 5.5)
    await store.swap('k', undefined, 'v')
    await store.swap('k', undefined, 'v', 7)
    await store.swap('k', 'v', 'w')
    await store.swap('k', 'w', 'x', 8)
    await store.delete('k')
    const script = sent[5]?.[1]
    assert.deepEqual(sent, [
      ['GET', 'dcaf:k'],
      ['SET', 'dcaf:k', 'v'],
      ['SET', 'dcaf:k', 'v', 'PX', '6'],
      ['SET', 'dcaf:k', 'v', 'NX'],
      ['SET', 'dcaf:k', 'v', 'NX', 'PX', '7'],
      ['EVAL', script, '1', 'dcaf:k', 'v', 'w', ''],
      ['EVAL', script, '1', 'dcaf:k', 'w', 'x', '8'],
      ['DEL', 'dcaf:k'],
    ])
  })

  test('takes bytes for text, and undefined for nothing, as some clients give them', async () => {
    assert.equal(await answering(Buffer.from('ü\x010000')).get('k'), 'ü\0')
    assert.equal(await answering(undefined).get('k'), undefined)
    assert.equal(await answering(Buffer.from('OK')).swap('k', undefined, 'v'), true)
    assert.equal(await answering(1n).swap('k', 'v', 'w'), true)
    assert.equal(await answering('0').swap('k', 'v', 'w'), false)
  })

  for (const reply of ['QUEUED', 'canary', 7, {}, [], true])
    test(`takes a reply that is not the command’s for a failure: ${inspect(reply)}`, async () => {
      const refused = unavailable(/^Redis \w+: unexpected reply, (a string of 6 characters|\w+)$/)
      const store = answering(reply)
      await assert.rejects(store.set('k', 'v'), refused)
      await assert.rejects(store.swap('k', undefined, 'v'), refused)
      await assert.rejects(store.swap('k', 'v', 'w'), refused)
      await assert.rejects(store.delete('k'), refused)
      if (typeof reply !== 'string') await assert.rejects(store.get('k'), refused)
    })

  test('a set that was not made is a failure', async () => {
    await assert.rejects(answering(null).set('k', 'v'), unavailable(/unexpected reply, null/))
  })

  test('a client that throws instead of rejecting is a failure like any other', async () => {
    const closed = new Error('the client is closed')
    const store = redisStore(() => {
      throw closed
    })
    await assert.rejects(store.get('k'), { code: 'store_unavailable', cause: closed })
  })

  test('a client that never answers is waited for no longer than told, however many ask', async (t) => {
    t.mock.timers.enable({ apis: ['setTimeout'] })
    const store = redisStore(() => new Promise(() => {}))
    const answers = Promise.allSettled(Array.from({ length: 100 }, () => store.get('k')))
    t.mock.timers.tick(4_999)
    assert.equal(await Promise.race([answers, 'waiting']), 'waiting')
    t.mock.timers.tick(1)
    for (const { status } of await answers) assert.equal(status, 'rejected')
  })

  test('a late answer changes nothing, a late failure is nobody’s', async () => {
    const late: ((error: Error) => void)[] = []
    const store = redisStore(() => new Promise((_, reject) => late.push(reject)), { timeoutMs: 5 })
    await assert.rejects(store.get('k'), unavailable(/no answer within 5 ms/))
    late[0]?.(new Error('too late')) // an unhandled rejection would fail this file
  })

  test('leaves no timer behind', async () => {
    const timers = () =>
      process.getActiveResourcesInfo().filter((name) => name === 'Timeout').length
    const earlier = timers()
    await answering('x').get('k')
    await assert.rejects(answering(7).get('k'))
    assert.equal(timers(), earlier)
  })

  for (const timeoutMs of [0, -1, Number.NaN, 2 ** 31, Number.POSITIVE_INFINITY])
    test(`refuses ${timeoutMs} as a time to wait`, () => {
      const send: RedisSend = async () => null
      assert.throws(() => redisStore(send, { timeoutMs }), {
        code: 'invalid_argument',
        message: /^timeoutMs must be/,
      })
    })
})

/** Until the client has found its way back; bounded by the test runner's patience and 100 attempts. */
async function eventually<T>(attempt: () => Promise<T>): Promise<T> {
  for (let left = 100; ; left--)
    try {
      return await attempt()
    } catch (error) {
      if (left === 0) throw error
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
}
