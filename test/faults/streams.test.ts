// Whatever a model says and a person decides: a stream keeps its grammar, every client reads the same lines in it, and it
// sums up to what the answer in one piece says.

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import fc from 'fast-check'
import type { ScriptEntry, ScriptedReply } from '../../src/providers/scripted.ts'
import { scripted } from '../../src/providers/scripted.ts'
import { type Json, serve, u } from '../harness.ts'
import { context, keepClean, see } from './clean.ts'
import { desk } from './desk.ts'
import { holds, row, times } from './table.ts'

keepClean()

/** One request id, so that what tools say of it is the same. */
const here = { ...context, request_id: 'r1' }

/** A server whose model answers from a script that each run sets anew. */
async function stage(t: TestContext) {
  const script = { replies: [] as ScriptEntry[], at: 0 }
  const provider = scripted(() => {
    provider.requests.length = 0
    return script.replies[script.at++] ?? 'over'
  })
  const { agent } = desk({ provider, limits: { turns: 6 } })
  const it = await serve(t, agent, { log: see, onEvent: see, logPayloads: true })
  const set = (replies: ScriptEntry[]) => Object.assign(script, { replies, at: 0 })
  return { ...it, set }
}

// ---------------------------------------------------------------- grammar and sum

const call = fc.constantFrom(
  { name: 'look', input: {} },
  { name: 'look', input: { at: 5 } },
  { name: 'drop', input: { table: 'a' } },
  { name: 'drop', input: { table: 'b', cascade: true } },
  { name: 'drop', input: { table: 'hid\u202eden' } },
  { name: 'shell', input: { command: 'ls' } },
  { name: 'nope', input: {} },
  { name: 'drop', input: 'no object' },
)
const reply: fc.Arbitrary<ScriptedReply> = fc
  .record({
    pieces: fc.array(fc.constantFrom('a', ' b\n', '\u2028', '\ud83d', '\ude00', ''), {
      maxLength: 4,
    }),
    calls: fc.array(call, { maxLength: 4 }),
    finishReason: fc.constantFrom(
      undefined,
      undefined,
      undefined,
      undefined,
      'length',
      'content_filter',
    ),
    fails: fc.constantFrom(false, false, false, false, false, true),
    usage: fc.record({ inputTokens: fc.nat(99), outputTokens: fc.nat(99) }),
  })
  .map(({ fails, finishReason, ...rest }) => ({
    ...rest,
    ...(finishReason && { finishReason: finishReason as 'length' }),
    ...(fails && { error: new Error('the wire broke') }),
  }))
type Turn = {
  replies: ScriptedReply[]
  verdicts: string[]
  list: string
  words: string
  echo: boolean
}
const turn: fc.Arbitrary<Turn> = fc.record({
  replies: fc.array(reply, { minLength: 1, maxLength: 3 }),
  verdicts: fc.array(fc.constantFrom('approve', 'reject', 'wait', 'forge', 'nothing'), {
    minLength: 5,
    maxLength: 5,
  }),
  list: fc.constantFrom('tool_calls', 'approvals', 'both'),
  words: fc.constantFrom('', '', 'go on', 'No, never'),
  echo: fc.boolean(),
})

/** The next message of a person who answers what is pending, as each of two servers showed it. */
function decide(data: Json, { verdicts, list, words }: Turn): Json {
  const items = (key: 'tool_calls' | 'approvals') =>
    (data[key] as Json[]).flatMap((item, i): Json[] => {
      const verdict = verdicts[i % verdicts.length]
      if (verdict === 'nothing') return []
      if (verdict === 'reject') return [{ ...item, rejection_reason: 'no' }]
      if (verdict === 'forge')
        return [
          {
            ...item,
            id: item.id.replace(/.$/, (c: string) => (c === '_' ? 'x' : '_')),
            execute: true,
          },
        ]
      return [{ ...item, execute: verdict === 'approve' }]
    })
  const lists: Json = {}
  if (list !== 'approvals') lists.tool_calls = items('tool_calls')
  if (list !== 'tool_calls') lists.approvals = items('approvals')
  return { role: 'user', content: words, data: lists, platform_context: here }
}

const letters: Record<string, string> = {
  intermittent_update: 'u',
  text_delta: 't',
  executed_tool_calls: 'e',
  executed_commands: 'c',
  executed_approvals: 'a',
  commands: 'C',
  approvals: 'A',
  tool_calls: 'T',
  done: 'd',
  error: 'x',
}
const grammar = /^u*e?c?a?[tue]*(C?AT?)?[dx]$/

/** Ids as the order in which they appear, what changes from run to run left out. */
function plain(value: unknown): unknown {
  const ids = new Map<string, string>()
  return JSON.parse(
    JSON.stringify(value, (key, v) => {
      if (['run_id', 'expires_at', 'request_id'].includes(key)) return undefined
      if (key === '$run') return 'sealed'
      if (typeof v !== 'string' || !/^tc_[\w-]{16}/.test(v)) return v
      const known = ids.get(v) ?? `id${ids.size}`
      ids.set(v, known)
      return known
    }),
  )
}
const lists = [
  'tool_calls',
  'approvals',
  'cmds',
  'executed_tool_calls',
  'executed_approvals',
  'executed_cmds',
]

function sumOf(lines: Json[]): Json {
  const all = (type: string, field = type) =>
    lines.filter((l) => l.type === type).flatMap((l) => l[field])
  const last = lines.at(-1) ?? {}
  const data = {
    tool_calls: all('tool_calls'),
    approvals: all('approvals'),
    cmds: all('commands'),
    executed_tool_calls: all('executed_tool_calls'),
    executed_approvals: all('executed_approvals'),
    executed_cmds: all('executed_commands', 'executed_cmds'),
    session: last.meta_data?.session,
  }
  const content = lines
    .filter((l) => l.type === 'text_delta')
    .map((l) => l.text)
    .join('')
  return { content, data, code: last.code, stop: last.stop_reason ?? 'error', meta: last.meta_data }
}

test('every stream keeps the grammar and sums up to the answer, decisions included', async (t) => {
  const [one, two] = [await stage(t), await stage(t)]
  const ends: Record<string, number> = {}
  const property = fc.asyncProperty(
    fc.array(turn, { minLength: 1, maxLength: 3 }),
    async (turns) => {
      const threads = [[], []] as [Json[], Json[]]
      let pending: [Json, Json] | undefined
      for (const each of turns) {
        for (const [i, server] of [one, two].entries()) {
          server.set(structuredClone(each.replies))
          const shown = pending?.[i]
          threads[i]?.push(shown ? decide(shown, each) : { ...u('go'), platform_context: here })
        }
        const chat = await one.chat({
          messages: each.echo ? threads[0] : threads[0].slice(-1),
        })
        const streamed = await two.stream({
          messages: each.echo ? threads[1] : threads[1].slice(-1),
        })
        see(chat.text)
        see(streamed.text)
        if (chat.status !== 200 && streamed.status !== 200) {
          assert.deepEqual(
            [chat.status, chat.body.code],
            [streamed.status, streamed.lines[0]?.code],
          )
          return
        }
        const word = streamed.lines.map((l) => letters[l.type] ?? '?').join('')
        assert.match(word, grammar)
        const sum = sumOf(streamed.lines)
        ends[sum.stop] = (ends[sum.stop] ?? 0) + 1
        if (chat.status !== 200 || chat.body.meta_data.error) {
          const error = chat.body.meta_data?.error ?? chat.body
          assert.equal(sum.code, error.code)
          if (chat.status !== 200) return
          assert.equal(sum.meta !== undefined, true)
        } else assert.equal(sum.content, chat.body.content)
        const { data, meta_data } = chat.body
        for (const list of lists) assert.deepEqual(plain(sum.data[list]), plain(data[list]), list)
        assert.deepEqual(plain(sum.data.session), plain(data.session))
        assert.equal(sum.stop, meta_data.stop_reason)
        assert.deepEqual(sum.meta.usage, meta_data.usage)
        assert.equal(sum.meta.has_pending_approvals, data.approvals.length > 0)
        assert.equal(meta_data.is_complete, data.approvals.length === 0 && !meta_data.error)
        assert.deepEqual(
          data.approvals.map((a: Json) => a.id).sort(),
          [...data.tool_calls, ...data.cmds].map((c: Json) => c.id).sort(),
        )
        threads[0].push(chat.body)
        threads[1].push({ role: 'assistant', content: sum.content, data: sum.data })
        pending = data.approvals.length > 0 ? [data, sum.data] : undefined
      }
    },
  )
  await holds(t, 'grammar and sum of streams', times(250, 5_000), property, () =>
    JSON.stringify(ends),
  )
})

// ---------------------------------------------------------------- every character, every reader

const hex = (text: string) => Buffer.from(text, 'utf16le').swap16().toString('hex')
const python = spawnSync('python3', ['--version']).status === 0

test('every code unit arrives, whatever a client splits lines on', async (t) => {
  const it = await stage(t)
  const units = Array.from({ length: 65_536 }, (_, i) => String.fromCharCode(i))
  const pieces: string[] = []
  for (let at = 0; at < units.length; ) {
    const size = 1 + Math.floor(Math.random() * times(400, 8))
    pieces.push(units.slice(at, at + size).join(''))
    at += size
  }
  it.set([pieces])
  const { text, lines } = await it.stream({ messages: [u('go')] })
  assert.equal(
    lines
      .filter((l) => l.type === 'text_delta')
      .map((l) => l.text)
      .join(''),
    units.join(''),
  )
  const expected = lines.map((l) => `${l.type} ${hex(l.text ?? '')}`)
  const folder = mkdtempSync(join(tmpdir(), 'dcaf-lines-'))
  t.after(() => rmSync(folder, { recursive: true }))
  const file = join(folder, 'stream.ndjson')
  writeFileSync(file, text)
  const ways = python ? ['bytes', 'text', 'decoder'] : []
  let failed = 0
  for (const way of ways) {
    const { stdout, stderr } = spawnSync(
      'python3',
      [join(import.meta.dirname, 'lines.py'), file, way, '7'],
      {
        encoding: 'utf8',
        maxBuffer: 1 << 26,
      },
    )
    const same = stdout.trimEnd() === expected.map((l) => l.trimEnd()).join('\n')
    if (!same && !/ $/m.test(stdout)) failed++
    assert.equal(stderr, '')
    assert.deepEqual(
      stdout
        .trimEnd()
        .split('\n')
        .map((l) => l.trimEnd()),
      expected.map((l) => l.trimEnd()),
      way,
    )
  }
  row(
    t,
    'code units, read by each parser',
    65_536 * (ways.length + 1),
    failed,
    `node${python ? ', bytes.splitlines, str.splitlines, chunked decoder' : ' alone: no python3 here'}`,
  )
})
