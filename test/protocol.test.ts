import assert from 'node:assert/strict'
import { test } from 'node:test'
import {
  isRecord,
  line,
  proposedIn,
  readItems,
  readThread,
  reportedIn,
  WireError,
  type WireMessage,
} from '../src/protocol.ts'
import { a, type Json, u } from './harness.ts'

const thread = (...messages: unknown[]) => readThread({ messages }, 1_000)
const user = (data: Json) => u('', data) as WireMessage
const items = (data: Json, limit = 32) => readItems(user(data), 4, limit)

/** The code, and the places and words of a refusal. */
function refusal(act: () => unknown): unknown[] {
  try {
    act()
  } catch (error) {
    assert.ok(error instanceof WireError, String(error))
    return [error.code, ...(error.problems ?? []).map((p) => `${p.path} ${p.message}`)]
  }
  assert.fail('nothing was refused')
}

// ---------------------------------------------------------------- the thread

for (const [body, code] of [
  [{ foo: 1 }, 'messages_missing'],
  [{}, 'messages_missing'],
  [[], 'messages_missing'],
  ['messages', 'messages_missing'],
  [null, 'messages_missing'],
  [7, 'messages_missing'],
  [{ messages: [] }, 'messages_empty'],
  [{ messages: [{ role: 'system', content: 'x' }] }, 'messages_empty'],
] as const)
  test(`${JSON.stringify(body)} is ${code}`, () =>
    assert.deepEqual(
      refusal(() => readThread(body, 10)),
      [code],
    ))

test('says what the original said of messages that are missing or empty', () => {
  assert.throws(() => readThread({}, 1), {
    message: "'messages' field missing from request body",
  })
  assert.throws(() => readThread({ messages: [] }, 1), { message: 'No messages provided' })
})

test('messages that are no array are refused at their place', () => {
  for (const messages of [null, 'x', {}, 5])
    assert.deepEqual(
      refusal(() => readThread({ messages }, 1)),
      ['invalid_request', '/messages must be array'],
    )
})

test('takes as many messages as the limit says, and names it beyond', () => {
  const many = (n: number) => () => readThread({ messages: Array(n).fill(u('x')) }, 5)
  assert.equal(many(4)().length, 4)
  assert.equal(many(5)().length, 5)
  assert.deepEqual(refusal(many(6)), [
    'invalid_request',
    '/messages must have at most 5 messages (limit messages)',
  ])
})

test('other roles are dropped, and the rest keeps its place on the wire', () => {
  const foreign = ['system', 'tool', 'developer', 'User', '', '__proto__'].map((role) => ({
    role,
    content: 5,
  }))
  const read = thread(...foreign, u('a'), { role: 'tool', data: null }, a('b'), u('c'))
  assert.deepEqual(
    read.map(({ message, index }) => [message.role, message.content, index]),
    [
      ['user', 'a', 6],
      ['assistant', 'b', 8],
      ['user', 'c', 9],
    ],
  )
})

test('the last message must be of a user', () => {
  assert.deepEqual(
    refusal(() => thread(u('x'), a('y'))),
    ['invalid_request', '/messages/1/role the last message must be a user message'],
  )
  assert.equal(thread(u('x'), { role: 'system', content: 'y' }).length, 1)
})

test('a message without a role, or with one that is no text, is refused', () => {
  assert.deepEqual(
    refusal(() => thread({ content: 'x' }, u('y'))),
    ['invalid_request', '/messages/0/role is missing'],
  )
  for (const role of [null, 5, ['user'], {}])
    assert.deepEqual(
      refusal(() => thread({ role, content: 'x' })),
      ['invalid_request', '/messages/0/role must be string'],
    )
  for (const message of [null, 5, 'user', []])
    assert.equal(refusal(() => thread(message))[0], 'invalid_request')
})

test('null is as good as absent, for fields, data and each of its lists', () => {
  const fields = [
    'content',
    'data',
    'meta_data',
    'timestamp',
    'user',
    'agent',
    'platform_context',
    'ambient_context',
  ]
  const lists = [
    'tool_calls',
    'executed_tool_calls',
    'approvals',
    'executed_approvals',
    'cmds',
    'executed_cmds',
    'url_configs',
    'user_file_uploads',
    'session',
  ]
  const nulls = (keys: string[]) => Object.fromEntries(keys.map((key) => [key, null]))
  const read = thread({ role: 'user', ...nulls(fields) }, { role: 'user', data: nulls(lists) })
  assert.equal(read.length, 2)
  for (const { message } of read) assert.deepEqual(readItems(message, 0, 32), [])
  for (const { message } of read) assert.deepEqual(reportedIn(message), [])
})

for (const [path, message] of [
  ['/content', { content: 5 }],
  ['/content', { content: ['x'] }],
  ['/data', { data: [] }],
  ['/data', { data: 'x' }],
  ['/data/tool_calls', { data: { tool_calls: {} } }],
  ['/data/tool_calls/0', { data: { tool_calls: ['tc_1'] } }],
  ['/data/tool_calls/0/execute', { data: { tool_calls: [{ id: 'x', execute: 'true' }] } }],
  ['/data/tool_calls/0/execute', { data: { tool_calls: [{ id: 'x', execute: 1 }] } }],
  ['/data/tool_calls/0/id', { data: { tool_calls: [{ id: 5 }] } }],
  ['/data/tool_calls/0/input', { data: { tool_calls: [{ input: 'x' }] } }],
  ['/data/tool_calls/0/input', { data: { tool_calls: [{ input: [] }] } }],
  ['/data/tool_calls/0/edited_input', { data: { tool_calls: [{ edited_input: 5 }] } }],
  ['/data/tool_calls/0/rejection_reason', { data: { tool_calls: [{ rejection_reason: true }] } }],
  ['/data/tool_calls/0/path', { data: { tool_calls: [{ path: 'child' }] } }],
  ['/data/tool_calls/0/grant/max_uses', { data: { tool_calls: [{ grant: { max_uses: 0 } }] } }],
  ['/data/approvals/1/execute', { data: { approvals: [{ id: 'a' }, { execute: {} }] } }],
  ['/data/cmds/0/command', { data: { cmds: [{ command: 5 }] } }],
  ['/data/cmds/0/files/0/file_content', { data: { cmds: [{ files: [{ file_path: 'x' }] }] } }],
  ['/data/executed_cmds/0/command', { data: { executed_cmds: [{}] } }],
  ['/data/user_file_uploads/0/file_path', { data: { user_file_uploads: [{}] } }],
  ['/data/session', { data: { session: 'x' } }],
  ['/platform_context', { platform_context: 'x' }],
  ['/platform_context', { platform_context: [] }],
  ['/meta_data', { meta_data: 'x' }],
  ['/timestamp', { timestamp: 5 }],
  ['/user', { user: 'ann' }],
] as [string, Json][])
  test(`${JSON.stringify(message)} is refused at ${path}`, () => {
    const secret = 'sesame-opens-it'
    const found = refusal(() => thread({ role: 'user', extra: secret, ...message })) as string[]
    assert.ok(
      found.some((problem) => problem.startsWith(`/messages/0${path} `)),
      found.join('\n'),
    )
    assert.ok(!found.join().includes(secret))
  })

test('lists what is wrong with every message, twenty places at the most', () => {
  const bad = { role: 'user', content: 5 }
  const two = refusal(() => thread(bad, u('x'), bad)) as string[]
  assert.deepEqual(two.slice(1), [
    '/messages/0/content must be string',
    '/messages/2/content must be string',
  ])
  assert.equal(refusal(() => thread(...Array(500).fill(bad))).length, 21)
})

test('unknown keys are taken everywhere, and kept in session, context and data', () => {
  const message = {
    role: 'user',
    content: 'x',
    later: 1,
    data: { session: { x: { y: 1 } }, novelty: [1], tool_calls: [{ id: 'i', score: 7 }] },
    platform_context: { fleet: { id: 4 } },
    user: { name: 'ann', id: '1', mail: 'a@b' },
    ambient_context: { user_terminal_cmds: [{ command: 'ls', output: '' }] },
    timestamp: '2026-01-01T00:00:00Z',
  }
  assert.deepEqual(thread(message)[0]?.message, message)
})

// ---------------------------------------------------------------- what an item says

test('the lists of a message are read together, and each id is one item', () => {
  const read = items({
    tool_calls: [{ id: 'a', execute: true }],
    approvals: [{ id: 'a', type: 'tool_call', execute: true }, { id: 'b' }],
    cmds: [{ id: 'c', command: 'ls', execute: true }],
  })
  assert.deepEqual(
    read.map(({ id, lists, approve, at }) => [id, lists, approve, at]),
    [
      ['a', ['tool_calls', 'approvals'], true, '/messages/4/data/tool_calls/0'],
      ['b', ['approvals'], false, '/messages/4/data/approvals/1'],
      ['c', ['cmds'], true, '/messages/4/data/cmds/0'],
    ],
  )
})

test('a blank reason is none', () => {
  for (const rejection_reason of ['', ' ', '\n\t ', null]) {
    const [item] = items({ tool_calls: [{ id: 'a', rejection_reason, execute: true }] })
    assert.deepEqual([item?.approve, item?.reason], [true, undefined])
  }
})

test('a reason is kept as it was written', () =>
  assert.equal(items({ tool_calls: [{ id: 'a', rejection_reason: ' no ' }] })[0]?.reason, ' no '))

test('approving with a reason to reject is refused', () =>
  assert.deepEqual(
    refusal(() => items({ cmds: [{ id: 'a', execute: true, rejection_reason: 'no' }] })),
    ['invalid_request', '/messages/4/data/cmds/0 has execute: true and a rejection_reason'],
  ))

test('an edit needs an approval', () =>
  assert.deepEqual(
    refusal(() => items({ tool_calls: [{ id: 'a', execute: false, edited_input: { n: 1 } }] })),
    ['invalid_request', '/messages/4/data/tool_calls/0/edited_input needs execute: true'],
  ))

test('of a command the input is command and files, absent and null files left out', () => {
  const files = [{ file_path: 'x', file_content: 'y' }]
  const read = items({
    cmds: [
      { id: 'a', command: 'ls', files },
      { id: 'b', command: 'ls', files: null },
      { id: 'c', command: 'ls' },
      { id: 'd', execute: true },
    ],
  })
  assert.deepEqual(
    read.map((item) => item.input),
    [{ command: 'ls', files }, { command: 'ls' }, { command: 'ls' }, undefined],
  )
})

const entry = { id: 'a', name: 'drop', input: { t: 1, u: [2, { v: 3 }] }, execute: true }

for (const [claim, first, second] of [
  ['approve and reject', entry, { id: 'a', rejection_reason: 'no' }],
  ['reject and approve', { id: 'a', rejection_reason: 'no' }, entry],
  ['two reasons', { id: 'a', rejection_reason: 'x' }, { id: 'a', rejection_reason: 'y' }],
  ['two inputs', entry, { ...entry, input: { t: 2 } }],
  ['two inputs deep inside', entry, { ...entry, input: { t: 1, u: [2, { v: 4 }] } }],
  ['an input with one key more', entry, { ...entry, input: { ...entry.input, w: 1 } }],
  ['two names', entry, { ...entry, name: 'look' }],
  ['two edits', { ...entry, edited_input: { t: 1 } }, { ...entry, edited_input: { t: 2 } }],
  ['two grants', { ...entry, grant: { max_uses: 1 } }, { ...entry, grant: { max_uses: 2 } }],
  ['two paths', { ...entry, path: ['a'] }, { ...entry, path: ['b'] }],
] as const)
  for (const second_ of ['tool_calls', 'approvals'] as const)
    test(`${claim} is a contradiction at the later entry (in ${second_})`, () => {
      const lists =
        second_ === 'approvals'
          ? { tool_calls: [first], approvals: [second] }
          : { tool_calls: [first, second] }
      assert.deepEqual(
        refusal(() => items(lists)),
        [
          'invalid_request',
          `/messages/4/data/${second_}/${second_ === 'approvals' ? 0 : 1} contradicts another entry of the same id`,
        ],
      )
    })

for (const [claim, first, second] of [
  ['the same entry', entry, entry],
  ['other key order', entry, { ...entry, input: { u: [2, { v: 3 }], t: 1 } }],
  ['an entry that says no input', entry, { id: 'a', execute: true }],
  ['execute false without a reason', entry, { id: 'a', execute: false, input: { t: 9 } }],
  ['execute false before', { id: 'a', execute: false, input: { t: 9 } }, entry],
  ['a bare echo', entry, { id: 'a' }],
] as const)
  test(`${claim} adds no contradiction`, () => {
    const read = items({ tool_calls: [first], approvals: [second] })
    assert.equal(read.length, 1)
    const { approve, name, input, lists } = read[0] as (typeof read)[0]
    assert.deepEqual(
      [approve, name, input, lists],
      [true, 'drop', entry.input, ['tool_calls', 'approvals']],
    )
  })

test('what one entry leaves out another may say', () => {
  const grant = { max_uses: 3 }
  const [item] = items({
    tool_calls: [{ id: 'a', execute: true }],
    approvals: [{ ...entry, edited_input: { t: 5 }, grant, path: ['c'] }],
  })
  const { name, input, editedInput: edited, path, grant: granted } = item ?? assert.fail()
  assert.deepEqual(
    [name, input, edited, granted, path],
    ['drop', entry.input, { t: 5 }, grant, ['c']],
  )
})

test('entries without an id are items of their own', () => {
  const read = items({
    cmds: [
      { command: 'ls', execute: true },
      { command: 'rm', execute: true },
    ],
  })
  assert.deepEqual(
    read.map((item) => [item.id, item.input]),
    [
      ['', { command: 'ls' }],
      ['', { command: 'rm' }],
    ],
  )
})

test('takes as many decisions as the limit says, counts an id once, and names it beyond', () => {
  const many = (n: number) => ({
    tool_calls: Array.from({ length: n }, (_, i) => ({ id: `i${i}`, execute: true })),
  })
  assert.equal(items(many(2), 3).length, 2)
  assert.equal(items({ ...many(3), approvals: many(3).tool_calls }, 3).length, 3)
  assert.deepEqual(
    refusal(() => items(many(4), 3)),
    ['invalid_request', '/messages/4/data must decide at most 3 calls (limit decisions)'],
  )
})

// ---------------------------------------------------------------- what a thread remembers

test('finds what was proposed in tool_calls and approvals, by id', () => {
  const found = proposedIn(
    user({
      tool_calls: [{ id: 'a', name: 'drop', input: { t: 1 }, preview: 'p', path: ['c'] }],
      approvals: [{ id: 'b', name: 'look', input: null }, { id: 'c' }, { name: 'x' }],
      cmds: [{ id: 'd', command: 'ls' }],
    }),
  )
  assert.deepEqual(
    [...found],
    [
      ['a', { name: 'drop', input: { t: 1 }, path: ['c'], preview: 'p' }],
      ['b', { name: 'look', input: {} }],
    ],
  )
})

test('a call that a client reports in several lists is reported once', () => {
  const call = { id: 'a', name: 'drop', input: {}, output: { gone: true } }
  const command = { id: 'c', command: 'ls', output: 'x' }
  const reported = reportedIn(
    user({
      executed_tool_calls: [call, { name: 'look', output: 'y' }],
      executed_approvals: [call, { id: 'c', name: 'shell', input: {}, output: 'x' }],
      executed_cmds: [command, { command: 'pwd', output: '/' }],
    }),
  )
  assert.deepEqual(reported, [
    { tool: 'drop', input: {}, output: { gone: true } },
    { tool: 'look', input: undefined, output: 'y' },
    { tool: 'shell', input: {}, output: 'x' },
    { command: 'pwd', output: '/' },
  ])
})

// ---------------------------------------------------------------- NDJSON

test('one event is one line, whatever a client splits lines on', () => {
  const text = 'a\nb\r\nc\u0085d\u2028e\u2029f\u000bg\u000ch\u001ci\ud800j"\\'
  const written = line({ type: 'text_delta', text })
  assert.match(written, /^[^\n\r\u0085\u2028\u2029\u000b\u000c\u001c-\u001e]+\n$/)
  assert.ok(['\\u0085', '\\u2028', '\\u2029'].every((escaped) => written.includes(escaped)))
  assert.deepEqual(JSON.parse(written), { type: 'text_delta', text })
})

test('knows an object from an array and from nothing', () => {
  assert.deepEqual([{}, { a: 1 }, [], null, undefined, 'x', 5].map(isRecord), [
    true,
    true,
    false,
    false,
    false,
    false,
    false,
  ])
})
