// Propose and approve, over and over, sixteen at a time: a scripted model asks for a gated tool, a person approves it, the
// tool runs, the model answers. The limit: a proof by hand, and what any "at most once" asks of the same store.

import { createHmac, randomBytes, timingSafeEqual } from 'node:crypto'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { run } from '../../src/agent.ts'
import { approveAll, resume } from '../../src/decide.ts'
import { memoryStore } from '../../src/store.ts'
import { tool } from '../../src/tool.ts'
import { lookup } from './scenario.mjs'

export async function approvals({ who, store: kind, ms }) {
  const { store, close } = await stores[kind]()
  try {
    const once = who === 'limit' ? byHand(store) : withAgent(store)
    await drive(once, ms / 4)
    return await drive(once, ms)
  } finally {
    await close()
  }
}

async function drive(once, ms) {
  let done = 0
  const cpu = process.cpuUsage()
  const began = performance.now()
  const lane = async () => {
    do {
      await once()
      done++
    } while (performance.now() < began + ms)
  }
  await Promise.all(Array.from({ length: 16 }, lane))
  const { user, system } = process.cpuUsage(cpu)
  return { done, cpuUs: user + system, wallMs: performance.now() - began }
}

/** Sign, verify, read the epoch, claim, record. */
function byHand(store) {
  const secret = randomBytes(32)
  const sign = (text) => createHmac('sha256', secret).update(text).digest()
  const record = JSON.stringify({ state: 'done', outcome: 'ok', output: 'x'.repeat(160) })
  const ttlMs = 90_000_000
  return async () => {
    const key = `hand:${randomBytes(12).toString('base64url')}`
    const text = JSON.stringify(['v1', 'bench', key, lookup.name, { n: 1, key: 'a' }, 'alice'])
    const proof = sign(text)
    if (!timingSafeEqual(proof, sign(text))) throw new Error('not proven')
    await store.get('epoch')
    if (!(await store.swap(key, undefined, '{"state":"running"}', ttlMs)))
      throw new Error('not ours')
    await store.set(key, record, ttlMs)
  }
}

function withAgent(store) {
  let executed = 0
  let wanted = 0
  const { name, description, schema } = lookup
  const reply = (parts, finishReason) => ({
    parts,
    finishReason,
    usage: { inputTokens: 1, outputTokens: 1, cacheReadTokens: 0, cacheWriteTokens: 0 },
  })
  const agent = {
    name: 'bench',
    provider: {
      name: 'scripted',
      model: 'scripted',
      render: (request) => request,
      async complete({ messages }) {
        if (messages.at(-1).role === 'assistant')
          return reply([{ type: 'text', text: 'done' }], 'stop')
        const call = { type: 'tool_call', id: 'call_1', name, input: { n: 1, key: 'a' } }
        return reply([call], 'tool_call')
      },
    },
    tools: [
      tool({
        name,
        description,
        input: schema,
        requiresApproval: true,
        execute: () => {
          executed++
          return 'looked up'
        },
      }),
    ],
  }
  const options = { store, keys: [Buffer.alloc(32, 7).toString('base64')], principal: 'alice' }
  return async () => {
    const asked = await run(agent, { messages: 'Look it up' }, options)
    if (!asked.needsApproval) throw asked.error ?? new Error(`no approval: ${asked.stop}`)
    const result = await resume(agent, asked, approveAll(asked), options)
    wanted++
    if (result.text !== 'done') throw result.error ?? new Error(`no answer: ${result.stop}`)
    if (executed < wanted - 16 || executed > wanted + 16)
      throw new Error('executions do not add up')
  }
}

const stores = {
  async memory() {
    return { store: memoryStore(), close: async () => {} }
  },
  async sqlite() {
    const { sqliteStore } = await import('../../src/stores/sqlite.ts')
    const dir = mkdtempSync(join(tmpdir(), 'dcaf-bench-'))
    const store = sqliteStore(join(dir, 'store.db'))
    return {
      store,
      async close() {
        store.close()
        rmSync(dir, { recursive: true })
      },
    }
  },
  async redis() {
    const { createClient } = await import('redis')
    const { redisStore } = await import('../../src/stores/redis.ts')
    const url = process.env.REDIS_URL ?? 'redis://127.0.0.1:6379'
    const client = createClient({ url, socket: { connectTimeout: 2000, reconnectStrategy: false } })
    client.on('error', () => {})
    await client.connect()
    const prefix = `dcaf_bench_${randomBytes(6).toString('hex')}:`
    return {
      store: redisStore((args) => client.sendCommand(args), { prefix }),
      async close() {
        for await (const keys of client.scanIterator({ MATCH: `${prefix}*`, COUNT: 1000 }))
          if (keys.length) await client.del(keys)
        client.destroy()
      },
    }
  },
  async postgres() {
    const { default: pg } = await import('pg')
    const { postgresStore } = await import('../../src/stores/postgres.ts')
    const connectionString = process.env.POSTGRES_URL ?? 'postgres://postgres@127.0.0.1:5432/test'
    const pool = new pg.Pool({ connectionString, max: 8, connectionTimeoutMillis: 2000 })
    const table = `dcaf_bench_${randomBytes(6).toString('hex')}`
    const store = postgresStore((text, values) => pool.query(text, values), { table })
    try {
      await store.createTable()
    } catch (error) {
      await pool.end()
      throw error
    }
    return {
      store,
      async close() {
        await pool.query(`DROP TABLE IF EXISTS ${table}`)
        await pool.end()
      },
    }
  },
}
