import assert from 'node:assert/strict'
import { hostname } from 'node:os'
import { type TestContext, test } from 'node:test'
import { z } from 'zod'
import { cap, type Policy, paused } from '../src/approval.ts'
import { approve, approveAll, edit, reject, resume, run } from '../src/index.ts'
import { parseId } from '../src/proof.ts'
import { scripted } from '../src/providers/scripted.ts'
import { memoryStore } from '../src/store.ts'
import type { Tool, Verdict, Word } from '../src/tool.ts'
import { desk, dropTool, idOf, type Json, outputs, testKey, told } from './desk.ts'
import { faultyStore } from './faulty-store.ts'

const unverified =
  'Not executed: this approval could not be verified (altered, moved, or issued by another server).'
const drifted = 'Not executed: the tool or what it would do changed since this was shown.'
const now = 1_800_000_000_000
const clock = (t: TestContext, at = now) => t.mock.timers.enable({ apis: ['Date'], now: at })
const nonceOf = (id: string) => id.split('.', 1)[0] as string
const never = () => new Promise<never>(() => {})

// ------------------------------------------------------------ policy

const words: Word[] = ['allow', 'ask', 'deny']
test('of the tool and every policy the strictest word wins, in any order', async () => {
  for (const own of [false, true, ...words])
    for (const one of [undefined, ...words])
      for (const two of [undefined, ...words]) {
        const said = [own === true ? 'ask' : own === false ? 'allow' : own, one, two]
        const strictest = Math.max(...said.map((word) => words.indexOf(word as Word)))
        const requiresApproval = typeof own === 'boolean' ? own : () => own
        const it = desk({ requiresApproval }, { policy: [() => one, async () => two] })
        const result = await it.propose()
        const expected = ['ran', 'asked', 'denied'][Math.max(strictest, 0)]
        const happened = it.ran.length ? 'ran' : result.pending.length ? 'asked' : 'denied'
        assert.equal(happened, expected, `${own} ${one} ${two}`)
      }
})

test('one policy may stand alone, without a list', async () => {
  const it = desk({}, { policy: () => 'deny' })
  assert.deepEqual(told(await it.propose()), ['Denied by policy: no reason given'])
})

test('the reasons of the verdict add up and are shown', async () => {
  const ask =
    (reason: string): Policy =>
    () => ({ verdict: 'ask', reason })
  const asked = desk(
    { requiresApproval: () => ({ verdict: 'ask', reason: 'it is a table' }) },
    { policy: [ask('production'), () => ({ verdict: 'allow', reason: 'fine' }), ask('at night')] },
  )
  const [call] = (await asked.propose()).pending
  assert.deepEqual(call?.reasons, ['it is a table', 'production', 'at night'])
  const deny =
    (reason: string): Policy =>
    () => ({ verdict: 'deny', reason })
  const denied = desk({}, { policy: [ask('production'), deny('frozen'), deny('not yours')] })
  assert.deepEqual(told(await denied.propose()), ['Denied by policy: frozen; not yours'])
})

test('a denial is a rejection by policy', async () => {
  const it = desk({}, { policy: () => ({ verdict: 'deny', reason: 'no' }) })
  const result = await it.propose()
  const [call] = result.state.calls
  assert.deepEqual([call?.status, call?.outcome, it.ran], ['rejected', 'rejected', []])
  const [{ type, name, callId, rejectedBy, reason } = {}] = it.of('ToolCallRejected') as Json[]
  assert.deepEqual(
    [type, name, callId, rejectedBy, reason],
    ['ToolCallRejected', 'drop', call?.id, 'policy', 'no'],
  )
})

for (const [claim, policy] of [
  ['throws', () => { throw new Error('no cluster') }],
  ['rejects', () => Promise.reject(new Error('no cluster'))],
  ['says what is no verdict', () => 'no cluster'],
  ['says a verdict that is none', () => ({ verdict: 'constructor', reason: 'no cluster' })],
  ['says an object that is no verdict', () => ({ answer: 'no cluster' })],
  ['says null', () => null],
] as unknown as [string, Policy][]) // biome-ignore format: a table
  test(`a policy that ${claim} asks, with a reason, and softens no denial`, async () => {
    const asked = desk({ requiresApproval: false }, { policy })
    const [call] = (await asked.propose()).pending
    assert.match(call?.reasons?.join() ?? '', /a person is asked/)
    assert.equal(asked.ran.length, 0)
    const denied = desk({}, { policy: [policy, () => 'deny'] })
    assert.deepEqual((await denied.propose()).pending, [])
  })

test('a policy that never answers asks when the time of the tool is over', async () => {
  const it = desk({ requiresApproval: false, timeoutMs: 20 }, { policy: never })
  const [call] = (await it.propose()).pending
  assert.match(
    call?.reasons?.join() ?? '',
    /A policy failed, so a person is asked: no answer within 20 ms/,
  )
})

test('a promise of any make is waited for', async () => {
  // biome-ignore lint/suspicious/noThenProperty: a promise of another make is what this is about
  const thenable = { then: (done: (word: string) => void) => done('deny') }
  const it = desk({}, { policy: () => thenable as never })
  assert.deepEqual(told(await it.propose()), ['Denied by policy: no reason given'])
})

test('a tool function that throws asks', async () => {
  const it = desk({
    requiresApproval: () => {
      throw new Error('kaput')
    },
  })
  assert.match((await it.propose()).pending[0]?.reasons?.join() ?? '', /kaput/)
})

test('a policy sees the filled input and the context; what it does to the input stays there', async () => {
  const seen: unknown[] = []
  const policy: Policy = ({ name, input, tool }, { platform, session }) => {
    seen.push([name, { ...(input as object) }, tool.name, platform.tenant_name, session.get('n')])
    Object.assign(input as object, { table: 'b' })
    return 'allow'
  }
  const it = desk({ requiresApproval: false }, { policy: [policy, policy] })
  await it.propose({ context: { tenant_name: 'acme' }, session: { n: 1 } })
  const once = ['drop', { table: 'a', cascade: false }, 'drop', 'acme', 1]
  assert.deepEqual([seen, it.ran], [[once, once], [{ table: 'a', cascade: false }]])
})

test('a command always asks, and its own function may still deny', async () => {
  const of = async (said: Verdict) => {
    const it = desk({ type: 'command', requiresApproval: () => said })
    const result = await it.propose()
    assert.deepEqual(it.ran, [])
    return result.pending.length ? 'asked' : told(result)[0]
  }
  assert.equal(await of('allow'), 'asked')
  assert.equal(await of('ask'), 'asked')
  assert.equal(await of({ verdict: 'deny', reason: 'rm' }), 'Denied by policy: rm')
})

test('policy is asked again at execution: a denial then closes the call, by policy', async () => {
  let said: Verdict = 'ask'
  const it = desk({}, { policy: () => said })
  const first = await it.propose()
  said = { verdict: 'deny', reason: 'too late' }
  const result = await it.decide(first, approveAll(first), { principal: undefined })
  assert.deepEqual([outputs(result), it.ran], [['Denied by policy: too late'], []])
  assert.deepEqual([told(result), result.stop], [['Denied by policy: too late'], 'end'])
  const [fact] = it.of('ToolCallRejected')
  assert.deepEqual([fact?.rejectedBy, fact?.reason], ['policy', 'too late'])
})

test('an approved call runs though no policy would ask any more', async () => {
  let ask = true
  const it = desk({ requiresApproval: () => ask })
  const first = await it.propose()
  ask = false
  assert.deepEqual(outputs(await it.decide(first, approveAll(first))), ['dropped a'])
})

// ------------------------------------------------------------ what a call may hold

const proposes = (input: unknown) =>
  scripted((_, __, index) => (index === 0 ? { calls: [{ name: 'drop', input }] } : 'ok'))

test('an input may have inputBytes bytes and not one more', async () => {
  const input = { table: 'é' }
  const size = Buffer.byteLength(JSON.stringify(input))
  for (const [limit, words] of [
    [size - 1, `The input of drop has ${size} bytes; the limit inputBytes is ${size - 1}.`],
    [size, 'dropped é'],
    [size + 1, 'dropped é'],
  ] as const) {
    const it = desk({ requiresApproval: false }, { provider: proposes(input) })
    assert.deepEqual(told(await it.propose({ limits: { inputBytes: limit } })), [words])
  }
})

test('an input too deep, or with a key that changes objects, is answered as invalid', async () => {
  let deep: unknown = 1
  for (let i = 0; i < 70; i++) deep = [deep]
  for (const [more, words] of [
    [deep, /nested more than 48 levels/],
    [JSON.parse('{"__proto__":{"admin":true}}'), /the key __proto__ is refused/],
    [{ constructor: { prototype: 1 } }, /the key constructor is refused/],
  ] as const) {
    const it = desk({ requiresApproval: false }, { provider: proposes({ table: 'a', more }) })
    const [answer] = told(await it.propose())
    assert.match(answer ?? '', words)
    assert.match(answer ?? '', /^Invalid input for drop: /)
    assert.deepEqual(it.ran, [])
  }
})

for (const input of ['{"table":"a"', '', null, 7, ['a'], { table: 7 }, {}])
  test(`the input ${JSON.stringify(input)} runs nothing and is answered`, async () => {
    const it = desk({ requiresApproval: false }, { provider: proposes(input) })
    const result = await it.propose()
    assert.match(told(result)[0] ?? '', /^Invalid input for drop: /)
    assert.deepEqual([it.ran, result.text], [[], 'ok'])
    assert.equal(it.of('ToolCallRefused').length, 1)
  })

test('an input nested ten thousand deep is answered as invalid', async () => {
  const text = `{"table":${'['.repeat(10_000)}1${']'.repeat(10_000)}}`
  const it = desk({}, {})
  it.agent.provider = {
    ...it.provider,
    complete: async (request) => {
      const reply = await it.provider.complete(request)
      for (const part of reply.parts) if (part.type === 'tool_call') part.input = JSON.parse(text)
      return reply
    },
  }
  const result = await it.propose()
  assert.match(told(result)[0] ?? '', /^Invalid input for drop: /)
  assert.deepEqual([result.stop, it.ran], ['end', []])
})

const hidden = {
  'a bidi override': '\u202e',
  'a bidi isolate': '\u2066',
  'a zero-width space': '\u200b',
  'a zero-width joiner': '\u200d',
  'a byte order mark': '\ufeff',
  'a soft hyphen': '\u00ad',
  'a tag': '\u{e0041}',
  NUL: '\0',
  escape: '\x1b',
  'a C1 control': '\u0085',
  'a line separator': '\u2028',
}
for (const [claim, char] of Object.entries(hidden))
  test(`a call that needs approval may not hold ${claim}, anywhere`, async () => {
    const inputs = [
      { table: `a${char}b` },
      { table: 'a', [`k${char}`]: 1 },
      { table: 'a', list: [{ deep: [`${char}`] }] },
      { table: 'a', more: { [`k${char}`]: 1 } },
    ]
    for (const input of inputs) {
      const it = desk({}, { provider: proposes(input) })
      const result = await it.propose()
      assert.match(told(result)[0] ?? '', /^The field ".*" of drop holds invisible or control/s)
      assert.deepEqual([result.pending, it.ran], [[], []])
    }
  })

test('tab, line feed, carriage return and all that has a shape may be shown', async () => {
  const table = 'a\tb\nc\r\nd é 漢字 👩 ✔️ ٣'
  const it = desk({}, { provider: proposes({ table }) })
  const first = await it.propose()
  assert.deepEqual(first.pending[0]?.input, { table })
  assert.deepEqual(outputs(await it.decide(first, approveAll(first))), [`dropped ${table}`])
})

test('allowInvisible opens the fields it names, or all, and no field name', async () => {
  const input = { table: 'a\u200bb' }
  const asks = async (allowInvisible: unknown, given: Json = input) =>
    (await desk({ allowInvisible }, { provider: proposes(given) }).propose()).pending.length
  assert.deepEqual(
    [await asks(['table']), await asks(true), await asks(['other']), await asks([])],
    [1, 1, 0, 0],
  )
  assert.equal(await asks(['t\u200b'], { table: 'a', 't\u200b': 'x' }), 0)
})

test('a call that needs no approval may hold what it likes', async () => {
  const it = desk({ requiresApproval: false }, { provider: proposes({ table: 'a\u200b' }) })
  await it.propose()
  assert.equal(it.ran.length, 1)
})

test('what the person sees counts, whatever a schema makes of it', async () => {
  const input = z.object({ table: z.string().transform((t) => t.replace(/\u202e/g, '')) })
  const it = desk({ input }, { provider: proposes({ table: 'a\u202e', more: 'b' }) })
  assert.match(told(await it.propose())[0] ?? '', /"table" of drop holds invisible/)
  const more = desk({ input }, { provider: proposes({ table: 'a', more: '\u202e' }) })
  assert.match(told(await more.propose())[0] ?? '', /"more" of drop holds invisible/)
})

test('an edit may not hide anything either, and leaves the call as it was', async () => {
  for (const editable of [true, false]) {
    const it = desk({ editable })
    const first = await it.propose()
    const next = await it.decide(first, [edit(idOf(first), { table: 'a\u202e' })])
    assert.match(outputs(next)[0] ?? '', /^Not executed: The field "table" of drop holds/)
    assert.deepEqual([idOf(next), it.ran], [idOf(first), []])
  }
})

// ------------------------------------------------------------ what a person sees

test('a pending call shows the tool’s own words, never the model’s', async () => {
  const provider = scripted([
    { text: 'Harmless, just say yes', calls: [{ name: 'drop', input: { table: 'a' } }] },
  ])
  const it = desk({ type: 'sql' }, { provider })
  const { pending, text } = await it.propose()
  const { id, expiresAt, ...shown } = pending[0] as (typeof pending)[0]
  assert.equal(text, 'Harmless, just say yes')
  assert.deepEqual(shown, {
    type: 'sql',
    name: 'drop',
    input: { table: 'a' },
    effectiveInput: { table: 'a', cascade: false },
    description: 'Drop a table',
    inputDescription: {},
  })
  assert.equal(Date.parse(expiresAt), parseId(id)?.expires)
})

test('a filled input is shown only where filling changed it', async () => {
  const given = { cascade: false, table: 'a' }
  const it = desk({}, { provider: proposes(given) })
  assert.equal(Object.hasOwn((await it.propose()).pending[0] ?? {}, 'effectiveInput'), false)
})

test('an approval lives as long as its tool says, else as long as the limit', async (t) => {
  clock(t)
  const lives = async (more: Json, limits = {}) => {
    const [call] = (await desk(more).propose({ limits })).pending
    return Date.parse(call?.expiresAt ?? '') - now
  }
  assert.equal(await lives({}), 3_600_000)
  assert.equal(await lives({}, { approvalTtlMs: 90_000 }), 90_000)
  assert.equal(await lives({ approvalTtlMs: 30_500 }, { approvalTtlMs: 90_000 }), 31_000)
})

test('a preview is asked with a copy of the filled input, masked and cut as an output', async () => {
  const it = desk(
    {
      preview: (input: Json, ctx: { platform: Json }) => {
        const text = `${JSON.stringify(input)} ${ctx.platform.duplo_token} ${'x'.repeat(999)}`
        input.table = 'b'
        return text
      },
    },
    {},
    { limits: { outputBytes: 300 } },
  )
  const first = await it.propose({ context: { duplo_token: 'sesame-open' } })
  const { preview = '' } = first.pending[0] ?? {}
  assert.match(preview, /^\{"table":"a","cascade":false\} \[redacted\] x+\n\[\.\.\. \d+ bytes, cut/)
  assert.equal(Buffer.byteLength(preview) <= 300, true)
  const next = await it.decide(first, approveAll(first), {
    context: { duplo_token: 'sesame-open' },
  })
  assert.deepEqual([outputs(next), it.ran.length], [['dropped a'], 1])
})

test('a preview’s key is what is compared, not its text', async () => {
  let made = { text: '5 rows at 12:00', key: '5' }
  const it = desk({ preview: async () => made })
  const first = await it.propose()
  made = { text: '5 rows at 12:01', key: '5' }
  assert.deepEqual(outputs(await it.decide(first, approveAll(first))), ['dropped a'])
  const again = desk({ preview: async () => made })
  const second = await again.propose()
  made = { text: '5 rows at 12:01', key: '6' }
  const drift = await again.decide(second, approveAll(second))
  assert.deepEqual([outputs(drift), again.ran], [[drifted], []])
})

test('a preview that never answers is a change, every time', async () => {
  const it = desk({ preview: never, timeoutMs: 20 })
  const first = await it.propose()
  assert.equal(first.pending[0]?.preview, 'The preview failed: no answer within 20 ms')
  const next = await it.decide(first, approveAll(first))
  assert.deepEqual([outputs(next), it.ran, next.pending.length], [[drifted], [], 1])
})

for (const [claim, change] of [
  ['description', { description: 'Drop a table for good' }],
  ['schema', { input: { type: 'object', properties: { table: {} } } }],
  ['type', { type: 'sql' }],
  ['approver', { approver: 'anyone' }],
  ['quorum', { approver: 'anyone', quorum: 2 }],
  ['editable flag', { editable: true }],
  ['idempotent flag', { idempotent: true }],
  ['defaults', { input: { type: 'object', properties: { table: { type: 'string' }, cascade: { default: true } } } }],
] as [string, Json][]) // biome-ignore format: a table
  test(`a tool whose ${claim} changed since it was shown does not run`, async () => {
    const one = desk()
    const first = await one.propose({ principal: 'ann' })
    const two = desk(change, {}, one.options)
    const next = await two.decide(first, approveAll(first), { principal: 'ann' })
    assert.deepEqual(two.ran, [])
    const approver = 'approver' in change
    assert.deepEqual(outputs(next), [approver ? unverified : drifted])
    assert.equal(next.pending.length, 1)
  })

test('a timeout, a lifetime or the code of a tool may change without asking again', async () => {
  const one = desk()
  const first = await one.propose()
  const two = desk({ timeoutMs: 5, approvalTtlMs: 5, execute: () => 'other' }, {}, one.options)
  assert.deepEqual(outputs(await two.decide(first, approveAll(first))), ['other'])
})

test('a tool that is gone, or takes this input no more, closes the call as an error', async () => {
  const one = desk()
  const first = await one.propose()
  const gone = await resume({ ...one.agent, tools: [] }, first, approveAll(first), one.options)
  assert.deepEqual(outputs(gone), ['The tool drop is no longer offered.'])
  assert.deepEqual([gone.state.calls[0]?.status, gone.text], ['failed', 'ok'])
  const again = await one.decide(first, approveAll(first))
  assert.deepEqual([outputs(again), one.ran], [['The tool drop is no longer offered.'], []])
  const two = desk()
  const second = await two.propose()
  const narrow = { type: 'object', properties: { table: { const: 'b' } } }
  const other = desk({ input: narrow }, {}, two.options)
  const next = await other.decide(second, approveAll(second))
  assert.match(outputs(next)[0] ?? '', /^Invalid input for drop: \/table/)
  assert.deepEqual([next.state.calls[0]?.status, other.ran], ['failed', []])
})

// ------------------------------------------------------------ fresh calls

test('drift asks again under a fresh id, and shows what was shown before', async () => {
  let rows = 5
  const it = desk({ preview: () => `${rows} rows` })
  const first = await it.propose()
  rows = 9
  const next = await it.decide(first, approveAll(first))
  const [call] = next.pending
  assert.deepEqual(
    [call?.preview, call?.reasons, call?.input],
    ['9 rows', ['It changed. Shown before: 5 rows'], { table: 'a' }],
  )
  const [state] = next.state.calls
  assert.deepEqual(
    [state?.id, state?.replaces, state?.part],
    [nonceOf(idOf(next)), nonceOf(idOf(first)), nonceOf(idOf(first))],
  )
  const last = await it.decide(next, approveAll(next))
  assert.deepEqual([outputs(last), told(last), it.ran.length], [['dropped a'], ['dropped a'], 1])
})

test('an edit asks again unless the tool is editable; the assistant’s part stays', async () => {
  const it = desk()
  const first = await it.propose()
  const next = await it.decide(first, [edit(idOf(first), { table: 'b' })])
  assert.deepEqual(outputs(next), ['Not executed: the changed input needs an approval of its own.'])
  assert.deepEqual([next.pending[0]?.input, it.ran], [{ table: 'b' }, []])
  const last = await it.decide(next, approveAll(next))
  assert.deepEqual(
    [outputs(last), told(last)],
    [['dropped b'], ['A person changed the input to {"table":"b"}.\ndropped b']],
  )
  const part = last.state.messages[1]?.parts[0]
  assert.deepEqual(part?.type === 'tool_call' && part.input, { table: 'a' })
})

test('the original, sent again, shows the same fresh call, then its outcome, never a second one', async () => {
  const it = desk()
  const first = await it.propose()
  const next = await it.decide(first, [edit(idOf(first), { table: 'b' })])
  for (const decisions of [approveAll(first), [edit(idOf(first), { table: 'c' })]])
    assert.equal(idOf(await it.decide(first, decisions)), idOf(next))
  const kept = await it.decide(next, approveAll(first))
  assert.deepEqual([idOf(kept), it.ran], [idOf(next), []])
  await it.decide(next, approveAll(next))
  const late = await it.decide(first, approveAll(first))
  assert.deepEqual(
    [outputs(late), late.executed[0]?.replayed],
    [['A person changed the input to {"table":"b"}.\ndropped b'], true],
  )
  assert.deepEqual(told(late), ['A person changed the input to {"table":"b"}.\ndropped b'])
  assert.equal(it.ran.length, 1)
})

test('an edit that drifts is still told as a person’s change, once', async () => {
  let rows = 5
  const it = desk({ preview: () => `${rows} rows` })
  const first = await it.propose()
  const second = await it.decide(first, [edit(idOf(first), { table: 'b' })])
  rows = 9
  const third = await it.decide(second, approveAll(second))
  assert.deepEqual([outputs(third), third.pending[0]?.input], [[drifted], { table: 'b' }])
  const last = await it.decide(third, approveAll(third))
  const told_ = 'A person changed the input to {"table":"b"}.\ndropped b'
  assert.deepEqual([outputs(last), told(last)], [['dropped b'], [told_]])
  for (const before of [first, second])
    assert.deepEqual(told(await it.decide(before, approveAll(before))), [told_])
  assert.equal(it.ran.length, 1)
})

test('an edit of an edit is told as the last one', async () => {
  const it = desk()
  const first = await it.propose()
  const second = await it.decide(first, [edit(idOf(first), { table: 'b' })])
  const third = await it.decide(second, [edit(idOf(second), { table: 'c' })])
  const last = await it.decide(third, approveAll(third))
  const words = 'A person changed the input to {"table":"c"}.\ndropped c'
  assert.deepEqual(told(last), [words])
  for (const before of [first, second])
    assert.deepEqual(told(await it.decide(before, approveAll(before))), [words])
})

test('a fresh call of an edit is pending even if policy would allow it, and rejected if it denies', async () => {
  const asks = (i: Json) => (i.table === 'a' ? 'ask' : i.table === 'b' ? 'allow' : 'deny')
  const it = desk({ requiresApproval: asks })
  const first = await it.propose()
  const next = await it.decide(first, [edit(idOf(first), { table: 'b' })])
  assert.deepEqual([next.pending[0]?.input, it.ran], [{ table: 'b' }, []])
  const other = desk({ requiresApproval: asks })
  const second = await other.propose()
  const denied = await other.decide(second, [edit(idOf(second), { table: 'c' })])
  assert.deepEqual(
    [outputs(denied), denied.pending, other.ran],
    [['Denied by policy: no reason given'], [], []],
  )
})

test('an echo of the filled input, or of the model’s with other key order, is no edit', async () => {
  for (const input of [{ table: 'a' }, { cascade: false, table: 'a' }]) {
    const it = desk()
    const first = await it.propose()
    const [decision] = approveAll(first)
    const next = await it.decide(first, [{ ...decision, input } as never])
    assert.deepEqual(outputs(next), ['dropped a'])
    const two = desk()
    const second = await two.propose()
    assert.deepEqual(outputs(await two.decide(second, [edit(idOf(second), input)])), ['dropped a'])
  }
})

test('of an editable tool an edit runs in one step, and person and model are told', async () => {
  const it = desk({ editable: true })
  const first = await it.propose()
  const next = await it.decide(first, [edit(idOf(first), { table: 'b' })])
  const words = 'A person changed the input to {"table":"b"}.\ndropped b'
  assert.deepEqual([outputs(next), told(next)], [[words], [words]])
  const again = await it.decide(first, approveAll(first))
  assert.deepEqual([outputs(again), it.ran.length], [[words], 1])
})

test('an edit of an editable tool is judged: a denial rejects, a bad input changes nothing', async () => {
  const policy: Policy = ({ input }) => ((input as Json).table === 'b' ? 'deny' : 'ask')
  const it = desk({ editable: true }, { policy })
  const first = await it.propose()
  const bad = await it.decide(first, [edit(idOf(first), { table: 7 })])
  assert.match(outputs(bad)[0] ?? '', /^Not executed: Invalid input for drop: \/table/)
  assert.equal(idOf(bad), idOf(first))
  const denied = await it.decide(bad, [edit(idOf(first), { table: 'b' })])
  assert.deepEqual(
    [outputs(denied), denied.pending, it.ran],
    [['Denied by policy: no reason given'], [], []],
  )
})

// ------------------------------------------------------------ the order of checks

test('what ran answers with what it did before expiry, freeze or drift is looked at', async (t) => {
  clock(t)
  let frozen: string | false = false
  const it = desk({ preview: () => `at ${Date.now() > now}` }, { frozen: () => frozen })
  const first = await it.propose()
  await it.decide(first, approveAll(first))
  t.mock.timers.tick(86_400_000)
  frozen = 'night'
  const again = await it.decide(first, approveAll(first))
  assert.deepEqual([outputs(again), again.executed[0]?.replayed], [['dropped a'], true])
})

test('expiry is looked at before the freeze, the freeze before drift', async (t) => {
  clock(t)
  let changed = false
  const frozen = () => 'night'
  const one = desk({ preview: () => `${changed}` })
  const first = await one.propose()
  changed = true
  const at = { ...one.agent, frozen }
  const stopped = await resume(at, first, approveAll(first), one.options)
  assert.deepEqual(outputs(stopped), ['Not executed: frozen: night'])
  assert.equal(idOf(stopped), idOf(first))
  t.mock.timers.tick(3_600_000 + 61_000)
  const late = await resume(at, first, approveAll(first), one.options)
  assert.deepEqual(outputs(late), ['Not executed: this approval expired at 2027-01-15T09:00:00Z.'])
})

test('drift is looked at before policy, policy before the quorum', async () => {
  let rows = 1
  let deny = false
  const it = desk(
    { preview: () => `${rows}`, approver: 'anyone', quorum: 2 },
    { policy: () => (deny ? 'deny' : 'ask') },
    { principal: 'ann' },
  )
  const first = await it.propose()
  rows = 2
  const drift = await it.decide(first, approveAll(first))
  assert.deepEqual(outputs(drift), [drifted])
  deny = true
  const denied = await it.decide(drift, approveAll(drift))
  assert.deepEqual([outputs(denied), it.ran], [['Denied by policy: no reason given'], []])
})

for (const [claim, more, agent] of [
  ['expiry', {}, {}],
  ['a freeze', {}, { frozen: () => 'night' }],
  ['drift', { description: 'Other' }, {}],
  ['a schema', { input: { type: 'object', properties: { table: { const: 'z' } } } }, {}],
  ['a denial', {}, { policy: () => 'deny' }],
] as [string, Json, Json][])
  test(`${claim} does not stop a rejection`, async (t) => {
    clock(t)
    const one = desk()
    const first = await one.propose()
    if (claim === 'expiry') t.mock.timers.tick(3_600_000 + 61_000)
    const two = desk(more, agent, one.options)
    const next = await two.decide(first, [reject(idOf(first), 'no')])
    assert.deepEqual(outputs(next), ['Tool rejected: no'])
    const again = await one.decide(first, approveAll(first))
    assert.deepEqual([outputs(again), one.ran], [['Tool rejected: no'], []])
  })

test('a rejection without a reason says so', async () => {
  const it = desk()
  const first = await it.propose()
  assert.deepEqual(outputs(await it.decide(first, [reject(idOf(first))])), [
    'Tool rejected: not approved',
  ])
})

test('frozen without words still freezes, and a freeze that throws runs nothing', async () => {
  const it = desk()
  const first = await it.propose()
  const empty = { ...it.agent, frozen: () => '' }
  assert.deepEqual(outputs(await resume(empty, first, approveAll(first), it.options)), [
    'Not executed: frozen: ',
  ])
  const broken = {
    ...it.agent,
    frozen: () => {
      throw new Error('no flag server')
    },
  }
  const result = await resume(broken, first, approveAll(first), it.options)
  assert.deepEqual(outputs(result), ['Not executed: frozen: its switch failed: no flag server'])
  assert.deepEqual([it.ran, idOf(result)], [[], idOf(first)])
})

test('frozen stops automatic calls too; calls that ask are still shown', async () => {
  const frozen = () => 'night'
  const it = desk({ requiresApproval: false }, { frozen })
  assert.deepEqual([told(await it.propose()), it.ran], [['Not executed: frozen: night'], []])
  assert.equal((await desk({}, { frozen }).propose()).pending.length, 1)
})

// ------------------------------------------------------------ once

const recordOf = async (it: ReturnType<typeof desk>, id: string) =>
  JSON.parse((await it.store.get(`call:${nonceOf(id)}`)) ?? 'null') as Json

test('a call has begun in the store before its tool runs, and ended after', async (t) => {
  clock(t)
  const during: unknown[] = []
  const store = memoryStore()
  const it = desk(
    {
      execute: async (_: unknown, ctx: { callId: string }) => {
        during.push(JSON.parse((await store.get(`call:${ctx.callId}`)) ?? 'null'))
        return 'x'
      },
    },
    {},
    { store, principal: 'ann' },
  )
  const first = await it.propose()
  assert.equal(await recordOf(it, idOf(first)), null)
  await it.decide(first, approveAll(first))
  const [begun] = during as Json[]
  const owner = new RegExp(`^${hostname()}:${process.pid}:[0-9a-f]{12}(@\\d+)?$`)
  assert.match(begun?.owner, owner)
  const { owner: me, run: which } = begun as Json
  const entry = { state: 'running', owner: me, run: which, since: now, timeoutMs: 60_000 }
  assert.deepEqual(begun, entry)
  assert.deepEqual(await recordOf(it, idOf(first)), {
    ...entry,
    state: 'done',
    outcome: 'ok',
    output: 'x',
    by: 'ann',
  })
})

test('success, failure and rejection are kept until the expiry and a day more', async (t) => {
  clock(t)
  for (const [more, decide, outcome] of [
    [{}, approve, 'ok'],
    [{ execute: () => Promise.reject(new Error('kaput')) }, approve, 'error'],
    [{}, (id: string) => reject(id, 'no'), 'rejected'],
  ] as const) {
    const ttls: (number | undefined)[] = []
    const store = memoryStore()
    const swap = store.swap.bind(store)
    store.swap = (key, expected, value, ttl) => {
      if (key.startsWith('call:')) ttls.push(ttl)
      return swap(key, expected, value, ttl)
    }
    const it = desk({ approvalTtlMs: 100_000, ...more }, {}, { store })
    const first = await it.propose()
    await it.decide(first, [decide(idOf(first))])
    assert.equal((await recordOf(it, idOf(first)))?.outcome, outcome)
    assert.deepEqual(ttls, [100_000 + 86_400_000, 100_000 + 86_400_000])
  }
})

test('a store that is down at begin runs nothing, and the call can be approved later', async () => {
  const store = faultyStore()
  const it = desk({}, {}, { store })
  const first = await it.propose()
  store.fault = { kind: 'down', keys: (key) => key.startsWith('call:'), on: ['swap'] }
  const down = await it.decide(first, approveAll(first))
  assert.deepEqual(
    [down.stop, down.error?.code, down.executed, it.ran],
    ['error', 'store_unavailable', [], []],
  )
  store.heal()
  assert.deepEqual(outputs(await it.decide(first, approveAll(first))), ['dropped a'])
  assert.equal(it.ran.length, 1)
})

test('a begin whose answer was lost runs nothing now, nor later', async (t) => {
  clock(t)
  const store = faultyStore()
  const it = desk({}, {}, { store })
  const first = await it.propose()
  store.fault = { kind: 'lost', keys: (key) => key.startsWith('call:'), on: ['swap'] }
  assert.equal((await it.decide(first, approveAll(first))).error?.code, 'store_unavailable')
  store.heal()
  assert.deepEqual(outputs(await it.decide(first, approveAll(first))), [
    'Outcome unknown: the server stopped while this was running (2027-01-15T08:00:00Z). It was NOT run again. Check the target before asking again.',
  ])
  assert.deepEqual(it.ran, [])
})

test('a store that is down at finish: the outcome is told once, and never run again', async () => {
  const store = faultyStore()
  const it = desk({}, {}, { store })
  const first = await it.propose()
  store.fault = { kind: 'down', keys: (key) => key.startsWith('call:'), on: ['swap'], after: 1 }
  assert.deepEqual(outputs(await it.decide(first, approveAll(first))), ['dropped a'])
  assert.deepEqual(
    it.of('LedgerFailed').map((fact) => [fact.callId, fact.name, fact.error]),
    [[nonceOf(idOf(first)), 'drop', 'faulty store: swap failed as told']],
  )
  store.heal()
  assert.match(outputs(await it.decide(first, approveAll(first)))[0] ?? '', /^Outcome unknown: the/)
  assert.equal(it.ran.length, 1)
})

test('the epoch is read again right before begin', async () => {
  const store = faultyStore(memoryStore(), async (method, key, store) => {
    const verified = method === 'get' && key.startsWith('call:')
    if (verified) await store.inner.delete('epoch')
  })
  const it = desk({}, {}, { store })
  const first = await it.propose()
  const next = await it.decide(first, approveAll(first))
  assert.deepEqual([outputs(next), it.ran], [[unverified], []])
})

test('a store that forgets all it knew between two approvals that began at once runs one of them', async () => {
  const shared = memoryStore()
  const one = desk({}, {}, { store: shared })
  const first = await one.propose()
  const store = faultyStore(shared, async (method, key) => {
    if (method !== 'swap' || !key.startsWith('call:')) return
    await one.decide(first, approveAll(first))
    for (const forgotten of [key, 'epoch']) await shared.delete(forgotten)
  })
  const two = desk({}, {}, { store })
  const late = await two.decide(first, approveAll(first))
  assert.deepEqual([one.ran.length, two.ran, outputs(late)], [1, [], [unverified]])
})

test('two replicas that begin at once run it once; the other says who does', async () => {
  const shared = memoryStore()
  const gate = Promise.withResolvers<void>()
  const one = desk({ execute: () => gate.promise.then(() => 'one') }, {}, { store: shared })
  // Another object over the same entries: in this process nothing joins them, as in another one.
  const other = {
    get: (key: string) => shared.get(key),
    set: (key: string, value: string, ttl?: number) => shared.set(key, value, ttl),
    swap: (key: string, was: string | undefined, value: string, ttl?: number) =>
      shared.swap(key, was, value, ttl),
    delete: (key: string) => shared.delete(key),
  }
  const two = desk({ execute: () => assert.fail('ran twice') }, {}, { store: other })
  const first = await one.propose()
  const running = one.decide(first, approveAll(first))
  while ((await shared.get(`call:${nonceOf(idOf(first))}`)) === undefined)
    await new Promise(setImmediate)
  const elsewhere = await two.decide(first, approveAll(first))
  assert.match(
    outputs(elsewhere)[0] ?? '',
    /^Already running since .*Z\. It was not started again\.$/,
  )
  assert.equal(elsewhere.state.calls[0]?.status, 'unknown')
  gate.resolve()
  assert.deepEqual(outputs(await running), ['one'])
  const after = await two.decide(first, approveAll(first))
  assert.deepEqual([outputs(after), after.executed[0]?.replayed], [['one'], true])
})

test('in one process whoever comes second gets the first one’s outcome', async () => {
  const gate = Promise.withResolvers<string>()
  const begun = Promise.withResolvers<void>()
  let runs = 0
  const it = desk({
    execute: () => {
      runs++
      begun.resolve()
      return gate.promise
    },
  })
  const first = await it.propose()
  const all = [1, 2, 3].map(() => it.decide(first, approveAll(first)))
  await begun.promise
  const rejection = it.decide(first, [reject(idOf(first), 'no')])
  const silence = run(it.agent, { messages: 'and?', paused: first.state }, it.options)
  setImmediate(() => gate.resolve('slowly'))
  assert.deepEqual((await Promise.all([...all, rejection])).map(outputs), Array(4).fill(['slowly']))
  assert.deepEqual(told(await silence), ['slowly'])
  assert.equal(runs, 1)
})

const began = (entry: Json) => JSON.stringify({ state: 'running', timeoutMs: 60_000, ...entry })
const host = hostname()
for (const [claim, entry, gone] of [
  ['a process of this host that is gone', { owner: `${host}:99999999:aa`, since: now }, true],
  ['this process id before it was ours', { owner: `${host}:${process.pid}:aa`, since: now }, true],
  ['a process of this host that lives', { owner: `${host}:${process.ppid}:aa`, since: now }, false],
  ['another host', { owner: `else:1:aa`, since: now }, false],
  ['another host with a colon', { owner: `el:se:1:aa`, since: now }, false],
  ['another host, a minute after its clock', { owner: `else:1:aa`, since: now - 120_001 }, true],
  ['another host, just before that', { owner: `else:1:aa`, since: now - 119_999 }, false],
  ['nobody one can read', { owner: `?`, since: now }, false],
] as [string, Json, boolean][])
  test(`what ${claim} began is ${gone ? 'unknown' : 'running'}, and is not run again`, async (t) => {
    clock(t)
    const it = desk()
    const first = await it.propose()
    await it.store.set(`call:${nonceOf(idOf(first))}`, began(entry))
    const next = await it.decide(first, approveAll(first))
    const since = new Date(entry.since).toISOString().replace('.000', '').replace('.001Z', 'Z')
    const at = `${since.slice(0, 19)}Z`
    assert.deepEqual(outputs(next), [
      gone
        ? `Outcome unknown: the server stopped while this was running (${at}). It was NOT run again. Check the target before asking again.`
        : `Already running since ${at}. It was not started again.`,
    ])
    assert.deepEqual([it.ran, next.state.calls[0]?.status], [[], 'unknown'])
    assert.deepEqual(told(next), outputs(next))
  })

test('what never finished runs again only if its tool is idempotent, over the record', async (t) => {
  clock(t)
  const it = desk({ idempotent: true })
  const first = await it.propose()
  const dead = began({ owner: `${host}:99999999:aa`, since: now - 1 })
  await it.store.set(`call:${nonceOf(idOf(first))}`, dead)
  assert.deepEqual(outputs(await it.decide(first, approveAll(first))), ['dropped a'])
  assert.equal((await recordOf(it, idOf(first))).outcome, 'ok')
  assert.deepEqual(outputs(await it.decide(first, approveAll(first))), ['dropped a'])
  assert.equal(it.ran.length, 1)
})

test('an idempotent call that may still be running elsewhere is not started beside it', async (t) => {
  clock(t)
  const it = desk({ idempotent: true })
  const first = await it.propose()
  await it.store.set(`call:${nonceOf(idOf(first))}`, began({ owner: 'else:1:aa', since: now }))
  assert.match(outputs(await it.decide(first, approveAll(first)))[0] ?? '', /^Already running/)
  assert.deepEqual(it.ran, [])
})

// ------------------------------------------------------------ time, and what a tool does with it

test('a gated tool that outlives its clock is unknown, and its late result is recorded', async () => {
  const gate = Promise.withResolvers<string>()
  let aborted = false
  const it = desk({
    timeoutMs: 20,
    execute: (_: unknown, ctx: { signal: AbortSignal }) => {
      ctx.signal.addEventListener('abort', () => {
        aborted = true
      })
      return gate.promise
    },
  })
  const first = await it.propose()
  const next = await it.decide(first, approveAll(first))
  const words =
    'Outcome unknown: drop did not finish within 20 ms. It was NOT run again. Check the target before asking again.'
  assert.deepEqual([outputs(next), told(next), aborted], [[words], [words], true])
  assert.deepEqual([next.state.calls[0]?.status, next.text], ['unknown', 'ok'])
  assert.match(outputs(await it.decide(first, approveAll(first)))[0] ?? '', /^Already running/)
  gate.resolve('in the end')
  await gate.promise
  await new Promise(setImmediate)
  const after = await it.decide(first, approveAll(first))
  assert.deepEqual([outputs(after), after.executed[0]?.replayed], [['in the end'], true])
  assert.deepEqual(
    it.facts.filter((f) => f.late).map((f) => [f.type, f.output]),
    [['ToolExecuted', 'in the end']],
  )
})

for (const [claim, more] of [
  ['an idempotent gated tool', { idempotent: true }],
  ['a tool that needs no approval', { requiresApproval: false }],
] as [string, Json][])
  test(`${claim} that outlives its clock is an error`, async () => {
    const it = desk({ timeoutMs: 20, execute: never, ...more })
    const first = await it.propose()
    const last = first.needsApproval ? await it.decide(first, approveAll(first)) : first
    assert.deepEqual(told(last), ['Error executing drop: drop did not finish within 20 ms'])
    assert.equal(last.state.calls[0]?.status, 'failed')
  })

test('the tool’s own time counts, else limits.toolMs, however long', async () => {
  const late = { execute: never, requiresApproval: false }
  const limits = { toolMs: 20 }
  assert.match(told(await desk(late).propose({ limits }))[0] ?? '', /within 20 ms/)
  const own = desk({ ...late, timeoutMs: 10 })
  assert.match(told(await own.propose({ limits }))[0] ?? '', /within 10 ms/)
  const slow = { requiresApproval: false, execute: () => new Promise((r) => setTimeout(r, 5, 'x')) }
  const long = desk({ ...slow, timeoutMs: Number.MAX_SAFE_INTEGER })
  assert.deepEqual(told(await long.propose()), ['x'])
})

for (const [claim, thrown, words] of [
  ['an Error', new Error('kaput'), 'kaput'],
  ['a text', 'kaput', 'kaput'],
  ['nothing', undefined, 'undefined'],
  ['an object without a prototype', Object.create(null), 'an unprintable error'],
  ['what cannot be printed', { toString: () => { throw new Error('x') } }, 'an unprintable error'],
  ['a symbol', Symbol('kaput'), 'Symbol(kaput)'],
] as const) // biome-ignore format: a table
  for (const late of [false, true])
    test(`a tool that ${late ? 'rejects with' : 'throws'} ${claim} failed, and is not run again`, async () => {
      let runs = 0
      const it = desk({
        execute: () => {
          runs++
          if (late) return Promise.reject(thrown)
          throw thrown
        },
      })
      const first = await it.propose()
      const next = await it.decide(first, approveAll(first))
      assert.deepEqual(outputs(next), [`Error executing drop: ${words}`])
      const again = await it.decide(first, approveAll(first))
      assert.deepEqual([outputs(again), runs], [outputs(next), 1])
    })

test('an output that is no JSON is a failure', async () => {
  const it = desk({ execute: () => 1n, requiresApproval: false })
  assert.match(told(await it.propose())[0] ?? '', /^Error executing drop: .*BigInt/)
})

test('an automatic call does not start once nobody waits any more', async () => {
  const controller = new AbortController()
  let runs = 0
  const it = desk({
    requiresApproval: false,
    execute: () => {
      runs++
      controller.abort()
    },
  })
  it.agent.provider = scripted([{ calls: Array(20).fill({ name: 'drop', input: { table: 'a' } }) }])
  const result = await it.propose({ signal: controller.signal, limits: { parallel: 1 } })
  assert.deepEqual([runs, result.stop], [1, 'aborted'])
  assert.equal(result.state.calls.filter((call) => call.status === 'failed').length, 20)
})

test('an approved call finishes though the client went away; the hard end stops it as unknown', async () => {
  const soft = new AbortController()
  const it = desk({
    execute: async (input: Json, ctx: { signal: AbortSignal }) => {
      soft.abort()
      await new Promise(setImmediate)
      return `${ctx.signal.aborted} ${input.table}`
    },
  })
  const first = await it.propose()
  const next = await it.decide(first, approveAll(first), { signal: soft.signal })
  assert.deepEqual([outputs(next), next.stop], [['false a'], 'aborted'])
  const hard = new AbortController()
  const two = desk({
    execute: () => {
      setImmediate(() => hard.abort())
      return never()
    },
  })
  const second = await two.propose()
  const stopped = await two.decide(second, approveAll(second), { hardSignal: hard.signal })
  assert.deepEqual(outputs(stopped), [
    'Outcome unknown: drop was stopped before it finished. It was NOT run again. Check the target before asking again.',
  ])
})

test('an approved call does not begin after the hard end, and may be approved again', async () => {
  const hard = new AbortController()
  hard.abort()
  const it = desk()
  const first = await it.propose()
  const next = await it.decide(first, approveAll(first), { hardSignal: hard.signal })
  assert.deepEqual([it.ran, next.executed.map((call) => call.outcome)], [[], ['rejected']])
  assert.deepEqual(outputs(await it.decide(first, approveAll(first))), ['dropped a'])
})

// ------------------------------------------------------------ afterTool

test('afterTool may replace what model, client and ledger see', async () => {
  const seen: unknown[] = []
  const it = desk(
    {},
    {
      afterTool: (call, result, ctx) => {
        seen.push([call.name, call.input, result, ctx.callId === call.id])
        return `short: ${result.content}`
      },
    },
  )
  const first = await it.propose()
  const next = await it.decide(first, approveAll(first))
  assert.deepEqual([outputs(next), told(next)], [['short: dropped a'], ['short: dropped a']])
  assert.equal((await recordOf(it, idOf(first))).output, 'short: dropped a')
  const result = { outcome: 'ok', content: 'dropped a' }
  assert.deepEqual(seen, [['drop', { table: 'a', cascade: false }, result, true]])
})

for (const [claim, answer, content, outcome] of [
  ['nothing', undefined, 'dropped a', 'ok'],
  ['null', null, 'dropped a', 'ok'],
  ['an empty text', '', '', 'ok'],
  ['another outcome', { outcome: 'error', content: 'bad' }, 'bad', 'error'],
  ['a result without an outcome', { content: 'other' }, 'other', 'ok'],
  ['a content that is no text', { content: 7 }, 'The result of drop is withheld: afterTool failed.', 'ok'],
] as [string, unknown, string, string][]) // biome-ignore format: a table
  test(`afterTool that returns ${claim} makes it ${JSON.stringify(content)}, ${outcome}`, async () => {
    const it = desk({ requiresApproval: false }, { afterTool: () => answer as string })
    const result = await it.propose()
    assert.deepEqual([told(result), result.state.calls[0]?.outcome], [[content], outcome])
  })

test('afterTool that fails withholds the result; one that hangs is stopped by the tool’s clock', async () => {
  const fails = desk({ requiresApproval: false }, { afterTool: () => Promise.reject('x') })
  assert.deepEqual(told(await fails.propose()), [
    'The result of drop is withheld: afterTool failed.',
  ])
  const hangs = desk({ requiresApproval: false, timeoutMs: 20 }, { afterTool: never })
  assert.match(told(await hangs.propose())[0] ?? '', /did not finish within 20 ms/)
})

test('what a tool throws is masked, and so is what afterTool makes of it', async () => {
  const context = { duplo_token: 'sesame-open' }
  const it = desk(
    {
      requiresApproval: false,
      execute: () => {
        throw new Error('401 for sesame-open')
      },
    },
    { afterTool: (_, { content }, ctx) => `${content} ${ctx.platform.duplo_token}` },
  )
  assert.deepEqual(told(await it.propose({ context })), [
    'Error executing drop: 401 for [redacted] [redacted]',
  ])
})

// ------------------------------------------------------------ size

test('an output may have outputBytes bytes and not one more', async () => {
  for (const [bytes, cut] of [
    [199, false],
    [200, false],
    [201, true],
  ] as const) {
    const it = desk({ requiresApproval: false, execute: () => 'x'.repeat(bytes) })
    const [content = ''] = told(await it.propose({ limits: { outputBytes: 200 } }))
    assert.equal(content.includes(`\n[... ${bytes} bytes, cut to 200 ...]\n`), cut)
    assert.ok(Buffer.byteLength(content) <= 200)
  }
})

test('a cut keeps head and tail and cuts no character', () => {
  for (let limit = 60; limit < 90; limit++) {
    const made = cap(`head${'é👩'.repeat(100)}tail`, limit)
    assert.ok(Buffer.byteLength(made) <= limit, made)
    assert.match(
      made,
      /^head[é👩]*\n\[\.\.\. 608 bytes, cut to \d\d \.\.\.\]\n[é👩]*(tail|ail|il|l)$/u,
    )
  }
  assert.equal(cap('é', 2), 'é')
  assert.equal(cap('', 0), '')
})

test('a cut of fifty megabytes copies no more than it keeps', () => {
  const before = process.memoryUsage().arrayBuffers
  cap('x'.repeat(50_000_000), 65_536)
  assert.ok(process.memoryUsage().arrayBuffers - before < 4_000_000)
})

// ------------------------------------------------------------ who may approve

const people = (names: Record<string, string | undefined>) => names
test('a tool for anyone is approved by someone else, a tool of the requester is not', async () => {
  for (const [approver, ran] of Object.entries(
    people({ anyone: 'dropped a', requester: unverified }),
  )) {
    const it = desk({ approver })
    const first = await it.propose({ principal: 'ann', context: { user_id: 'u1' } })
    const who = { principal: 'bob', context: { user_id: 'u2' } }
    assert.deepEqual(outputs(await it.decide(first, approveAll(first), who)), [ran])
  }
})

test('a tool for others: whoever asked may not approve, nobody may not, everyone else may', async () => {
  const it = desk({ approver: 'other' })
  const first = await it.propose({ principal: 'ann' })
  const say = async (principal: string | undefined) =>
    outputs(await it.decide(first, approveAll(first), { principal }))
  assert.deepEqual(await say('ann'), [
    'Not executed: someone other than who asked must approve drop.',
  ])
  assert.deepEqual(await say(undefined), [unverified])
  assert.deepEqual(it.ran, [])
  assert.deepEqual(await say('bob'), ['dropped a'])
})

test('a tool for others without a record of who asked is not verified', async () => {
  const it = desk({ approver: 'other' })
  const first = await it.propose({ principal: 'ann' })
  await it.store.delete(`asked:${nonceOf(idOf(first))}`)
  const next = await it.decide(first, approveAll(first), { principal: 'bob' })
  assert.deepEqual([outputs(next), it.ran], [[unverified], []])
})

test('a tool for others cannot be asked for by nobody', async () => {
  const it = desk({ approver: 'other' })
  const result = await it.propose()
  assert.deepEqual([result.error?.code, result.pending], ['invalid_argument', []])
  assert.match(result.error?.message ?? '', /drop has approver: 'other', so a principal is needed/)
})

test('the requester of an edit is who edited it, of a drift who asked first', async () => {
  let rows = 1
  const it = desk({ approver: 'other', preview: () => `${rows}` })
  const as = (principal: string) => ({ principal })
  const first = await it.propose(as('ann'))
  const edited = await it.decide(first, [edit(idOf(first), { table: 'b' })], as('bob'))
  const own = await it.decide(edited, approveAll(edited), as('bob'))
  assert.match(outputs(own)[0] ?? '', /someone other/)
  rows = 2
  const drift = await it.decide(edited, approveAll(edited), as('ann'))
  assert.deepEqual(outputs(drift), [drifted])
  assert.match(
    outputs(await it.decide(drift, approveAll(drift), as('bob')))[0] ?? '',
    /someone other/,
  )
  assert.deepEqual(outputs(await it.decide(drift, approveAll(drift), as('ann'))), ['dropped b'])
})

test('a quorum counts each person once; an edit voids the votes; one rejection closes', async () => {
  const it = desk({ approver: 'anyone', quorum: 2 })
  const as = (principal: string) => ({ principal })
  const first = await it.propose(as('ann'))
  const one = await it.decide(first, approveAll(first), as('ann'))
  assert.deepEqual([outputs(one), one.pending[0]?.votes, idOf(one)], [[], 1, idOf(first)])
  const twice = await it.decide(one, approveAll(one), as('ann'))
  assert.deepEqual([outputs(twice), twice.pending[0]?.votes], [[], 1])
  const [, fact] = it.of('ToolCallApproved')
  assert.deepEqual([fact?.approvedBy, fact?.votes], ['ann', 1])
  const edited = await it.decide(one, [edit(idOf(one), { table: 'b' })], as('bob'))
  assert.equal(edited.pending[0]?.votes, undefined)
  const bob = await it.decide(edited, approveAll(edited), as('bob'))
  assert.deepEqual([bob.pending[0]?.votes, it.ran], [1, []])
  const no = await it.decide(bob, [reject(idOf(bob), 'no')], as('cid'))
  assert.deepEqual([outputs(no), no.pending], [['Tool rejected: no'], []])
  const late = await it.decide(bob, approveAll(bob), as('ann'))
  assert.deepEqual([outputs(late), it.ran], [['Tool rejected: no'], []])
})

test('votes that come at once are all counted, and the quorum runs it once', async () => {
  const it = desk({ approver: 'anyone', quorum: 5 })
  const first = await it.propose({ principal: 'ann' })
  const say = (i: number) => it.decide(first, approveAll(first), { principal: `p${i}` })
  await Promise.all([0, 1, 2, 3].map(say))
  assert.deepEqual(it.ran, [])
  await Promise.all([4, 5, 6].map(say))
  assert.equal(it.ran.length, 1)
})

// ------------------------------------------------------------ trustClient

const trusting = (more: Json = {}, agent: Json = {}, options: Json = {}) => {
  const it = desk(more, { provider: scripted(() => 'ok'), ...agent }, options)
  const send = (item: Json, changed: Json = {}) =>
    run(
      it.agent,
      {
        messages: [{ role: 'user', content: '' }],
        decisions: [{ id: 'toolu_1', approve: true, name: 'drop', input: { table: 'a' }, ...item }],
      },
      { ...it.options, trustClient: 'unsafe', ...changed },
    )
  return { ...it, send }
}

test('trusting the client runs an approval without proof, once', async () => {
  const it = trusting()
  assert.deepEqual(outputs(await it.send({})), ['dropped a'])
  const again = await it.send({})
  assert.deepEqual([outputs(again), again.executed[0]?.replayed], [['dropped a'], true])
  await Promise.all([it.send({ id: 'b' }), it.send({ id: 'b' }), it.send({ id: 'b' })])
  assert.equal(it.ran.length, 2)
})

test('without trust the same is refused', async () => {
  const it = trusting()
  const result = await it.send({}, { trustClient: undefined })
  assert.deepEqual([outputs(result), it.ran], [[unverified], []])
})

for (const [claim, item, more, agent] of [
  ['an id like ours', { id: `tc_${'x'.repeat(16)}` }, {}, {}],
  ['an id that begins like ours', { id: 'tc_1' }, {}, {}],
  ['no id', { id: '' }, {}, {}],
  ['an unknown tool', { name: 'nope' }, {}, {}],
  ['no name', { name: undefined }, {}, {}],
  ['a tool that needs no approval for this input', {}, { requiresApproval: () => false }, {}],
  ['a tool that never needs approval', {}, { requiresApproval: false }, {}],
  ['a tool of type command', {}, { type: 'command' }, {}],
  ['a tool for others', {}, { approver: 'other' }, {}],
  ['a tool for anyone', {}, { approver: 'anyone' }, {}],
  ['a quorum', {}, { approver: 'anyone', quorum: 2 }, {}],
  ['an input that does not fit', { input: { table: 7 } }, {}, {}],
  ['an input that hides something', { input: { table: 'a\u202e' } }, {}, {}],
  ['what policy denies', {}, {}, { policy: () => 'deny' }],
  ['a freeze', {}, {}, { frozen: () => 'night' }],
  ['a name that is not the thread’s', { known: { name: 'other', input: {} } }, {}, {}],
  ['an input that is not the thread’s', { known: { name: 'drop', input: { table: 'b' } } }, {}, {}],
  ['an edit', { editedInput: { table: 'b' } }, {}, {}],
] as [string, Json, Json, Json][])
  test(`trusting the client does not reach to ${claim}`, async () => {
    const it = trusting(more, agent)
    const result = await it.send(item, { principal: 'ann' })
    assert.deepEqual(it.ran, [])
    const words =
      claim === 'a freeze'
        ? /frozen: night/
        : claim.startsWith('what policy')
          ? /^Denied/
          : /^Not executed/
    const [output = ''] = outputs(result)
    assert.match(output, words)
    if (claim === 'a freeze') return // it may be decided again
    const known = JSON.stringify(it.agent.provider).replaceAll('\\', '')
    assert.ok(known.includes(output), 'the model knows')
  })

test('what trust ran is known by agent, audience, id, name and input', async () => {
  const it = trusting()
  const context = (more: Json) => ({ context: more })
  await it.send({})
  await it.send({}, context({ tenant_id: 'b' }))
  await it.send({ input: { table: 'b' } })
  await it.send({ id: 'other' })
  await it.send({}, { threadId: 't' })
  assert.equal(it.ran.length, 5)
  await it.send({ input: { cascade: false, table: 'b' } })
  assert.equal(it.ran.length, 6, 'the input as it was sent, before defaults')
  for (const key of ['name', 'id']) await it.send({ [key]: key === 'id' ? 'other' : 'drop' })
  assert.equal(it.ran.length, 6)
})

test('a rejection without proof is answered as it was put and closes nothing', async () => {
  for (const trustClient of ['unsafe', undefined] as const) {
    const it = trusting()
    const no = await it.send({ approve: false, reason: 'no' }, { trustClient })
    assert.deepEqual(outputs(no), ['Tool rejected: no'])
    assert.equal(outputs(await it.send({}))[0], 'dropped a')
  }
})

// ------------------------------------------------------------ the one door

test('a tool of another agent’s does not run under this one’s id', async () => {
  const it = desk()
  const first = await it.propose()
  const other = { ...it.agent, name: 'other' }
  const next = await resume(other, first, approveAll(first), it.options)
  assert.deepEqual([outputs(next), it.ran, idOf(next)], [[unverified], [], idOf(first)])
})

test('a tool that returns a paused child is no agent: it failed', async () => {
  const it = desk({ requiresApproval: false, execute: () => paused({ secret: 'proof' }) })
  const [answer] = told(await it.propose())
  assert.match(answer ?? '', /^Error executing drop: .*agentTool/)
})

test('no flagged tool runs without a decision, whatever the tool object says', async () => {
  const ran: unknown[] = []
  const made: Tool = dropTool(ran)
  const result = await run(
    {
      name: 'a',
      provider: scripted([{ calls: [{ name: 'drop', input: { table: 'a' } }] }]),
      tools: [made],
    },
    { messages: 'go' },
    { keys: [testKey], store: memoryStore(), grants: undefined as never },
  )
  assert.deepEqual([ran, result.needsApproval], [[], true])
})
