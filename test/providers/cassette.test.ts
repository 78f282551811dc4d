import assert from 'node:assert/strict'
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { record, replay } from '../../src/providers/cassette.ts'
import type { Message, ModelRequest, Provider } from '../../src/providers/provider.ts'
import { DcafError, noUsage } from '../../src/providers/provider.ts'
import type { ScriptEntry } from '../../src/providers/scripted.ts'
import { scripted } from '../../src/providers/scripted.ts'

let directory = ''
let count = 0
before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'cassette-'))
})
after(() => rm(directory, { recursive: true }))

function fresh(): string {
  return join(directory, `${++count}`, 'cassette.json')
}

function ask(text: string, ...more: Message[]): ModelRequest {
  const first: Message = { role: 'user', parts: [{ type: 'text', text }] }
  return { system: [{ text: 'You help' }], tools: [], messages: [first, ...more] }
}

/** A turn that called `get` under an id of the loop's, and its result. */
function called(id: string, text = `ran ${id}`): Message {
  return {
    role: 'assistant',
    parts: [{ type: 'tool_call', id, name: 'get', input: {} }],
    results: [{ callId: id, outcome: 'ok', content: text }],
  }
}

async function recorded(replies: ScriptEntry[], requests: ModelRequest[]): Promise<string> {
  const file = fresh()
  const provider = record(scripted(replies), file)
  for (const request of requests) await provider.complete(request)
  return file
}

const idA = 'tc_AAAAAAAAAAAAAAAA'
const idB = 'tc_bbbbbbbb-bbb_bbb'
const idC = 'tc_cccccccccccccccc'

test('what was recorded is replayed: replies, usage, calls, opaque parts, name and model', async () => {
  const calls = [{ id: 'c1', name: 'get', input: { n: 1 } }]
  const script = [
    { text: 'I will', calls, opaque: { s: 'x' }, usage: { inputTokens: 3 }, raw: { r: 1 } },
  ]
  const file = fresh()
  const recording = record(scripted(script, { name: 'vendor', model: 'm1' }), file)
  const first = await recording.complete(ask('a'))
  const replaying = replay(file)
  assert.deepEqual([replaying.name, replaying.model], ['vendor', 'm1'])
  assert.deepEqual(await replaying.complete(ask('a')), first)
})

test('the file is readable JSON with provider, model, body and reply', async () => {
  const file = await recorded(['hello'], [ask('a')])
  const text = await readFile(file, 'utf8')
  assert.match(text, /\n {4}\{\n {6}"request"/, 'it is printed on many lines')
  assert.deepEqual(JSON.parse(text), {
    cassette: 1,
    provider: 'scripted',
    model: 'scripted',
    calls: [
      {
        request: ask('a'),
        reply: { parts: [{ type: 'text', text: 'hello' }], finishReason: 'stop', usage: noUsage },
      },
    ],
  })
})

/** A provider whose body is not our request. */
function vendor(entries: ScriptEntry[]): Provider {
  const render = (request: ModelRequest, { stream = false } = {}) => ({
    stream,
    contents: request.messages.map((message) => message.parts),
  })
  return { ...scripted(entries), render }
}

test('a vendor’s body is kept beside what was asked, and replay renders it without the vendor', async () => {
  const file = fresh()
  const provider = record(vendor(['hello']), file)
  await provider.complete(ask('a', called(idA)), { onDelta: () => {} })
  const body = { stream: true, contents: [ask('a').messages[0]?.parts, called(idA).parts] }
  const [call] = JSON.parse(await readFile(file, 'utf8')).calls
  assert.deepEqual(call.request, body)
  assert.deepEqual(call.asked, ask('a', called(idA)))
  const replaying = replay(file)
  assert.deepEqual(
    replaying.render(ask('a', called(idB))),
    JSON.parse(JSON.stringify(body).replaceAll(idA, idB)),
  )
  assert.throws(() => replaying.render(ask('other')), /differs at \/messages/)
  await replaying.complete(ask('a', called(idB)))
})

test('a stream is replayed in its pieces, each awaited; a record that did not stream gives its texts', async () => {
  const file = fresh()
  const provider = record(scripted([['a', 'b'], 'whole']), file)
  const seen: string[] = []
  const onDelta = async ({ text }: { text: string }) => {
    seen.push(`${text} begins`)
    await new Promise((resolve) => setImmediate(resolve))
    seen.push(`${text} ends`)
  }
  await provider.complete(ask('1'), { onDelta })
  await provider.complete(ask('2'))
  const live = seen.splice(0)
  const replaying = replay(file)
  await replaying.complete(ask('1'), { onDelta })
  assert.deepEqual(seen.splice(0), live)
  await replaying.complete(ask('2'), { onDelta })
  assert.deepEqual(seen, ['whole begins', 'whole ends'])
})

test('random call ids may differ between recording and replay, and the reply speaks of today’s', async () => {
  const file = await recorded([`done ${idA} and ${idB}`], [ask('go', called(idA), called(idB))])
  const reply = await replay(file).complete(ask('go', called(idC), called(idA)))
  assert.deepEqual(reply.parts, [{ type: 'text', text: `done ${idC} and ${idA}` }])
})

test('ids that are not renamed consistently are a miss', async () => {
  const file = await recorded(['done'], [ask('go', called(idA, `ran ${idA}`), called(idB))])
  const swapped = ask('go', called(idA, `ran ${idB}`), called(idB))
  await assert.rejects(replay(file).complete(swapped), {
    message: /differs at \/messages\/1\/results\/0\/content: expected "ran tc_#1", got "ran tc_#2"/,
  })
})

test('text that only looks like an id is compared as it is', async () => {
  const file = await recorded(['done'], [ask(`see ${idA}xyz`)])
  await assert.rejects(replay(file).complete(ask(`see ${idB}xyz`)), /differs at/)
})

test('a miss names the first difference by its JSON pointer, shortened', async () => {
  const long = 'x'.repeat(500)
  const file = await recorded(['a', 'b'], [ask(`${long} old ${long}`), ask('second')])
  await assert.rejects(replay(file).complete(ask(`${long} new ${long}`)), (error: DcafError) => {
    assert.equal(error.code, 'provider_error')
    assert.match(
      error.message,
      /Call 1 of 2 calls differs at \/messages\/0\/parts\/0\/text: expected "?…x+ old x+…, got "?…x+ new x+…/,
    )
    assert.ok(error.message.length < 700)
    return true
  })
  const fewer = { ...ask('second'), system: [] }
  const replaying = replay(file)
  await replaying.complete(ask(`${long} old ${long}`))
  await assert.rejects(
    replaying.complete(fewer),
    /\/system\/0: expected \{"text":"You help"\}, got nothing/,
  )
  const more = { ...ask('second'), temperature: 0 }
  await assert.rejects(replaying.complete(more), /\/temperature: expected nothing, got 0/)
})

test('each record answers once; after the last one the error says so', async () => {
  const file = await recorded(['one', 'two'], [ask('same'), ask('same')])
  const replaying = replay(file)
  const texts = []
  for (let i = 0; i < 2; i++) texts.push((await replaying.complete(ask('same'))).parts)
  assert.deepEqual(texts, [[{ type: 'text', text: 'one' }], [{ type: 'text', text: 'two' }]])
  await assert.rejects(
    replaying.complete(ask('same')),
    /has 2 calls, and all of them were replayed already/,
  )
})

test('calls made at once are kept in the order they began, and found by what they ask', async () => {
  const file = fresh()
  let free = () => {}
  const first = () => new Promise<string>((resolve) => (free = () => resolve('slow')))
  const provider = record(scripted([first, 'fast']), file)
  const slow = provider.complete(ask('slow'))
  await provider.complete(ask('fast'))
  free()
  await slow
  const { calls } = JSON.parse(await readFile(file, 'utf8'))
  assert.deepEqual(
    calls.map((call: { reply: { parts: unknown } }) => call.reply.parts),
    [[{ type: 'text', text: 'slow' }], [{ type: 'text', text: 'fast' }]],
  )
  const replaying = replay(file)
  const replies = [await replaying.complete(ask('fast')), await replaying.complete(ask('slow'))]
  assert.deepEqual(
    replies.map((reply) => reply.parts),
    [[{ type: 'text', text: 'fast' }], [{ type: 'text', text: 'slow' }]],
  )
})

test('a failure is kept and thrown again with its code, after the pieces that came before it', async () => {
  const file = fresh()
  const options = { retryable: true, retryAfterMs: 2000 }
  const overloaded = Object.assign(
    new DcafError('provider_overloaded', 'x answered 429', options),
    {
      status: 429,
      requestId: 'r1',
    },
  )
  const provider = record(
    scripted([{ pieces: ['par'], error: overloaded }, new TypeError('kaput')]),
    file,
  )
  await assert.rejects(provider.complete(ask('a'), { onDelta: () => {} }), overloaded)
  await assert.rejects(provider.complete(ask('b')), TypeError)
  const seen: string[] = []
  const replaying = replay(file)
  const call = replaying.complete(ask('a'), { onDelta: ({ text }) => void seen.push(text) })
  await assert.rejects(call, {
    name: 'DcafError',
    message: 'x answered 429',
    code: 'provider_overloaded',
    ...options,
    status: 429,
    requestId: 'r1',
  })
  assert.deepEqual(seen, ['par'])
  await assert.rejects(replaying.complete(ask('b')), { name: 'TypeError', message: 'kaput' })
})

test('an aborted call and a failed reader are not kept: neither is the model’s answer', async () => {
  const file = fresh()
  const hang = () => new Promise<never>(() => {})
  const provider = record(scripted([hang, 'text', 'kept']), file)
  const controller = new AbortController()
  const aborted = provider.complete(ask('a'), { signal: controller.signal })
  controller.abort(new Error('gone'))
  await assert.rejects(aborted, { message: 'gone' })
  const onDelta = () => Promise.reject(new Error('reader'))
  await assert.rejects(provider.complete(ask('b'), { onDelta }), { message: 'reader' })
  await provider.complete(ask('c'))
  const { calls } = JSON.parse(await readFile(file, 'utf8'))
  assert.deepEqual(calls.length, 1)
})

test('an abort ends a replay with the reason of the signal', async () => {
  const file = await recorded(['text'], [ask('a')])
  const controller = new AbortController()
  const onDelta = () => new Promise<never>(() => {})
  const call = replay(file).complete(ask('a'), { signal: controller.signal, onDelta })
  controller.abort(new Error('gone'))
  await assert.rejects(call, { message: 'gone' })
})

const secret = 'p@ss "w/rd"'
const spellings = {
  plain: secret,
  base64: Buffer.from(secret).toString('base64'),
  url: encodeURIComponent(secret),
  json: JSON.stringify(secret),
  'json twice': JSON.stringify({ token: secret }),
}

test('secret values are masked in what is asked, sent, streamed, answered and thrown', async () => {
  const file = fresh()
  const all = Object.values(spellings).join(' ')
  const calls = [{ id: 'c', name: 'login', input: { token: secret, [secret]: 1 } }]
  const script = [{ text: all, calls, opaque: { secret } }, new Error(`no ${secret}`)]
  const provider = record(vendor(script), file, { secrets: [secret, undefined, ''] })
  const reply = await provider.complete(ask(all))
  assert.deepEqual(reply.parts[1], { type: 'text', text: all }, 'the caller gets the true reply')
  await assert.rejects(provider.complete(ask(all)), { message: `no ${secret}` })
  const text = await readFile(file, 'utf8')
  for (const [name, spelling] of Object.entries(spellings)) {
    assert.ok(!text.includes(spelling), name)
    assert.ok(!text.includes(JSON.stringify(spelling).slice(1, -1)), `${name}, as a JSON text`)
  }
  assert.match(text, /\[redacted\]/)
})

test('a secret cut in two by the stream is masked in one piece', async () => {
  const file = fresh()
  const provider = record(scripted([['the sec', 'ret-value is', ' here']]), file, {
    secrets: ['secret-value'],
  })
  await provider.complete(ask('a'), { onDelta: () => {} })
  const [call] = JSON.parse(await readFile(file, 'utf8')).calls
  assert.deepEqual(call.deltas, ['the [redacted] is here'])
})

test('a request with secrets is found again when replay is given the secrets', async () => {
  const file = fresh()
  await record(scripted(['a']), file, { secrets: ['old-secret'] }).complete(ask('use old-secret'))
  await replay(file, { secrets: ['new-secret'] }).complete(ask('use new-secret'))
  await assert.rejects(replay(file).complete(ask('use new-secret')), /expected "use \[redacted\]"/)
})

test('fields named like secret headers never get in', async () => {
  const file = fresh()
  const headers = { Authorization: 'Bearer abcd', 'X-Api-Key': ['k1'], accept: 'text/plain' }
  const calls = [{ id: 'c', name: 'fetch', input: { headers } }]
  await record(scripted([{ calls }]), file).complete(ask('a'))
  const [call] = JSON.parse(await readFile(file, 'utf8')).calls
  assert.deepEqual(call.reply.parts[0].input.headers, {
    Authorization: '[redacted]',
    'X-Api-Key': ['[redacted]'],
    accept: 'text/plain',
  })
})

test('a secret too short to mask is refused', () => {
  assert.throws(() => record(scripted([]), fresh(), { secrets: ['abc'] }), {
    code: 'invalid_argument',
  })
})

test('what the caller changes after the call does not show in the file', async () => {
  const file = fresh()
  const request = ask('before')
  const changing = () => {
    request.messages.length = 0
    return 'ok'
  }
  await record(scripted([changing]), file).complete(request)
  await replay(file).complete(ask('before'))
})

test('a recording begins anew, and leaves no temporary file', async () => {
  const file = await recorded(['old', 'older'], [ask('1'), ask('2')])
  await record(scripted(['new']), file).complete(ask('3'))
  assert.equal(JSON.parse(await readFile(file, 'utf8')).calls.length, 1)
  assert.deepEqual(await readdir(join(file, '..')), ['cassette.json'])
})

test('a file that cannot be written rejects the call', async () => {
  const file = await recorded(['a'], [ask('1')])
  const below = record(scripted(['b']), join(file, 'below.json'))
  await assert.rejects(below.complete(ask('2')), { code: 'EEXIST' })
})

test('a file that is missing or no cassette is said when the provider is made', async () => {
  assert.throws(() => replay(join(directory, 'none.json')), {
    code: 'invalid_argument',
    message: /Cannot read the cassette .*none.json. Make one with record/,
  })
  assert.throws(() => replay(join(import.meta.dirname, '../../package.json')), {
    message: /Cannot read the cassette/,
  })
})
