import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { appendFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { audit, linesOf, verifyAudit } from '../src/audit.ts'
import { approveAll, type RunFact, reject } from '../src/index.ts'
import { desk, idOf, type Json } from './desk.ts'

function trail(t: TestContext): string {
  const folder = mkdtempSync(join(tmpdir(), 'dcaf-audit-'))
  t.after(() => rmSync(folder, { recursive: true }))
  return join(folder, 'audit.ndjson')
}
const sha256 = (text: string) => createHash('sha256').update(text).digest('hex')
const fact = (type: string, more: Json = {}): RunFact => ({
  type,
  timestamp: '2026-01-02T03:04:05.678Z',
  runId: 'r1',
  ...more,
})
async function written(t: TestContext, count = 5) {
  const file = trail(t)
  const { listener, flush } = await audit(file)
  for (let i = 0; i < count; i++) listener(fact(`Event${i}`))
  await flush()
  return file
}
const rewrite = (file: string, change: (lines: string[]) => string[]) =>
  writeFileSync(file, `${change(readFileSync(file, 'utf8').trimEnd().split('\n')).join('\n')}\n`)

test('each event is a line that holds the digest of the line before', async (t) => {
  const file = await written(t, 3)
  const lines = readFileSync(file, 'utf8')
    .trimEnd()
    .split('\n')
    .map((l) => JSON.parse(l))
  let prev = '0'.repeat(64)
  for (const [index, line] of lines.entries()) {
    const { hash, ...rest } = line
    assert.deepEqual(rest, {
      seq: index + 1,
      time: '2026-01-02T03:04:05.678Z',
      type: `Event${index}`,
      runId: 'r1',
      prev,
    })
    assert.equal(hash, sha256(JSON.stringify(rest)))
    prev = hash
  }
  assert.deepEqual([await verifyAudit(file), await linesOf(file)], [[], lines])
})

test('of what was asked and answered it keeps digests, never the values', async (t) => {
  const file = trail(t)
  const { listener, flush } = await audit(file)
  const it = desk(
    { execute: () => 'the secret output' },
    { onEvent: listener },
    { principal: 'ann' },
  )
  const first = await it.propose()
  await it.decide(first, approveAll(first))
  const second = await it.propose()
  assert.equal(second.pending.length, 0, 'the script is over')
  await flush()
  const text = readFileSync(file, 'utf8')
  assert.doesNotMatch(text, /secret output|"table"|\.[\w-]{4}\.[0-9a-z]{6,8}\./)
  const lines = await linesOf(file)
  const requested = lines.find((l) => l.type === 'ApprovalRequested') as Json
  const call = {
    callId: idOf(first).split('.')[0],
    name: 'drop',
    inputSha256: sha256('{"table":"a"}'),
  }
  assert.deepEqual(requested.calls, [call])
  const approved = lines.find((l) => l.type === 'ToolCallApproved')
  assert.deepEqual([approved?.callId, approved?.approvedBy], [call.callId, 'ann'])
  const executed = lines.find((l) => l.type === 'ToolExecuted')
  assert.deepEqual(
    [executed?.callId, executed?.outcome, executed?.outputSha256, executed?.inputSha256],
    [call.callId, 'ok', sha256('the secret output'), sha256('{"table":"a","cascade":false}')],
  )
  assert.deepEqual(await verifyAudit(file), [])
})

test('who rejected, why, and which grant, are kept in words', async (t) => {
  const file = trail(t)
  const { listener, flush } = await audit(file)
  const it = desk({}, { onEvent: listener }, { principal: 'ann' })
  const first = await it.propose()
  await it.decide(first, [reject(idOf(first), 'not on a Friday')])
  listener(fact('GrantAdded', { grant: 'gr_1', grantedBy: 'ann', name: 'drop', callId: 'tc_1' }))
  listener(fact('ToolExecuted', { grant: 'gr_1', path: ['db'], late: true }))
  listener(fact('ToolExecutionFailed', { error: { message: 'x' } }))
  await flush()
  const lines = await linesOf(file)
  const rejected = lines.find((l) => l.type === 'ToolCallRejected')
  assert.deepEqual([rejected?.rejectedBy, rejected?.reason], ['ann', 'not on a Friday'])
  const [given, used, failed] = lines.slice(-3)
  assert.deepEqual([given?.grant, given?.grantedBy, given?.callId], ['gr_1', 'ann', 'tc_1'])
  assert.deepEqual([used?.grant, used?.path, used?.late], ['gr_1', ['db'], true])
  assert.equal(failed?.errorSha256, sha256('{"message":"x"}'))
})

for (const [claim, change, at, words] of [
  ['a changed line', (l: string[]) => l.with(2, (l[2] as string).replace('Event2', 'Event9')), 3, /was changed/],
  ['a missing line', (l: string[]) => l.toSpliced(2, 1), 3, /does not follow line 2/],
  ['a missing first line', (l: string[]) => l.slice(1), 1, /does not follow line 0/],
  ['two lines in each other’s place', (l: string[]) => l.with(1, l[2] as string).with(2, l[1] as string), 2, /does not follow/],
  ['a line that stands twice', (l: string[]) => l.toSpliced(2, 0, l[1] as string), 3, /does not follow/],
  ['a line made anew with its own digest', (l: string[]) => {
    const { hash: _, ...line } = { ...JSON.parse(l[2] as string), type: 'Event9' }
    return l.with(2, JSON.stringify({ ...line, hash: sha256(JSON.stringify(line)) }))
  }, 4, /does not follow line 3/],
  ['what is no JSON', (l: string[]) => l.with(2, 'x'), 3, /is not JSON/],
  ['what is no line of a trail', (l: string[]) => l.with(2, 'null'), 3, /is not JSON/],
] as [string, (lines: string[]) => string[], number, RegExp][]) // biome-ignore format: a table
  test(`${claim} shows`, async (t) => {
    const file = await written(t)
    rewrite(file, change)
    const [first] = await verifyAudit(file)
    assert.equal(first?.line, at)
    assert.match(first?.problem ?? '', words)
  })

test('an end that was cut inside a line shows', async (t) => {
  const file = await written(t, 2)
  const text = readFileSync(file, 'utf8')
  writeFileSync(file, text.slice(0, -5))
  assert.deepEqual(await verifyAudit(file), [{ line: 2, problem: 'the last line is not finished' }])
})

test('a trail goes on from its last line', async (t) => {
  const file = await written(t, 2)
  const { listener, flush } = await audit(file)
  listener(fact('More'))
  await flush()
  assert.deepEqual(await verifyAudit(file), [])
  assert.deepEqual(
    (await linesOf(file)).map((l) => l.seq),
    [1, 2, 3],
  )
})

test('a trail goes on after a line that a crash cut, and only that line shows', async (t) => {
  const file = await written(t, 2)
  appendFileSync(file, '{"seq":3,"ti')
  const { listener, flush } = await audit(file)
  listener(fact('More'))
  listener(fact('Again'))
  await flush()
  assert.deepEqual(await verifyAudit(file), [{ line: 3, problem: 'is not JSON' }])
  assert.deepEqual(
    (await linesOf(file)).map((l) => l.type),
    ['Event0', 'Event1', 'More', 'Again'],
  )
})

test('events that come at once are written in their order', async (t) => {
  const file = await written(t, 200)
  const lines = await linesOf(file)
  assert.deepEqual(
    lines.map((l) => l.type),
    Array.from({ length: 200 }, (_, i) => `Event${i}`),
  )
  assert.deepEqual(await verifyAudit(file), [])
})

test('a file that cannot be written is told by flush, and hurts no run', async (t) => {
  const { listener, flush } = await audit(join(trail(t), 'no', 'such', 'folder'))
  const it = desk({}, { onEvent: listener })
  assert.equal((await it.propose()).pending.length, 1)
  await assert.rejects(flush(), { code: 'ENOENT' })
})

test('a file that is not there is an empty trail; one that cannot be read is not', async (t) => {
  const file = trail(t)
  assert.deepEqual(await linesOf(file), [])
  await assert.rejects(linesOf(join(file, '..')), { code: 'EISDIR' })
})
