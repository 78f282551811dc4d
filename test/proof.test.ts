import assert from 'node:assert/strict'
import { createHash, createHmac, hkdfSync, randomBytes } from 'node:crypto'
import { test } from 'node:test'
import {
  Authority,
  audience,
  type Bound,
  canonical,
  type Id,
  nonce,
  parseId,
  type Who,
} from '../src/proof.ts'
import { DcafError } from '../src/providers/provider.ts'
import { seal, unseal } from '../src/seal.ts'
import { MemoryStore, memoryStore } from '../src/store.ts'
import { faultyStore } from './faulty-store.ts'

const key = (byte: number) => Buffer.alloc(32, byte).toString('base64')
const who = (more: Partial<Who> = {}): Who => ({
  principal: 'ann',
  threadId: 't1',
  context: {},
  bound: null,
  ...more,
})
const bound = (more: Partial<Bound> = {}): Bound => ({
  agent: 'ops',
  path: [],
  name: 'delete_pod',
  input: { name: 'x' },
  who: audience(who(), 'requester'),
  ...more,
})
async function signed(store = memoryStore(), keys = [key(1)]) {
  const authority = new Authority(store, keys)
  const given = { nonce: nonce(), expires: 1_800_000_000_000, shown: 's'.repeat(16) }
  const id = await authority.sign(given, bound())
  return { store, authority, given, id, parsed: parseId(id) as Id }
}

// ------------------------------------------------------------ ids

test('an id is its nonce, key, expiry, what was shown, and a MAC, as documented', async () => {
  const { store, given, id } = await signed()
  const epoch = (await store.get('epoch')) ?? ''
  assert.match(epoch, /^[\w-]{22}$/)
  const secret = hkdfSync('sha256', Buffer.alloc(32, 1), epoch, 'dcaf approval v1', 32)
  const expires = 1_800_000_000
  const said = JSON.stringify([
    1,
    'ops',
    [],
    given.nonce,
    expires,
    given.shown,
    'delete_pod',
    { name: 'x' },
    ['ann', 't1', null, null, null, null, null, null, null, null, null, null],
  ])
  const kid = createHash('sha256').update(Buffer.alloc(32, 1)).digest('base64url').slice(0, 4)
  const mac = createHmac('sha256', Buffer.from(secret)).update(said).digest('base64url')
  assert.equal(
    id,
    [given.nonce, kid, expires.toString(36), given.shown, mac.slice(0, 22)].join('.'),
  )
})

test('a nonce is tc_ and 12 random bytes, so 19 characters', () => {
  const made = new Set(Array.from({ length: 1_000 }, nonce))
  assert.equal(made.size, 1_000)
  for (const one of made) assert.match(one, /^tc_[\w-]{16}$/)
})

test('an id taken apart is what was signed', async () => {
  const { given, parsed } = await signed()
  const { kid, mac, ...rest } = parsed
  assert.deepEqual([rest, kid.length, mac.length], [given, 4, 22])
})

test('what is no id of ours takes nothing apart, whatever it is', async () => {
  const { id } = await signed()
  const odd = [
    '',
    'tc_',
    'tooluse_abc',
    ` ${id}`,
    `${id}\n`,
    `${id}.`,
    `${id}A`,
    id.slice(0, -1),
    id.split('.', 1)[0],
    id.replace('.', '..'),
    id.toUpperCase(),
  ]
  const foreign = [undefined, null, 7, {}, [id], { toString: () => id }, Object.create(null)]
  for (const text of [...odd, ...foreign, Symbol('x')])
    assert.equal(parseId(text as string), undefined, String(text?.toString?.()))
})

test('an expiry is written in one way only', async () => {
  const { id } = await signed()
  const [first, kid, expires, shown, mac] = id.split('.')
  const written = (as: string) => [first, kid, as, shown, mac].join('.')
  assert.ok(parseId(written(expires as string)))
  for (const as of [`0${expires}`, `00${expires}`, '0', '00000000'])
    assert.equal(parseId(written(as)), undefined, as)
})

test('holds for exactly what was signed', async () => {
  const { authority, store, parsed } = await signed()
  assert.equal(await authority.verify(parsed, bound()), await store.get('epoch'))
  assert.ok(await new Authority(store, [key(1)]).verify(parsed, bound()))
  for (const [claim, id, more] of [
    ['nonce', { nonce: nonce() }, {}],
    ['key', { kid: 'AAAA' }, {}],
    ['expiry', { expires: parsed.expires + 1000 }, {}],
    ['shown', { shown: 'z'.repeat(16) }, {}],
    ['agent', {}, { agent: 'other' }],
    ['path', {}, { path: ['child'] }],
    ['tool', {}, { name: 'delete_node' }],
    ['input', {}, { input: { name: 'y' } }],
    ['more input', {}, { input: { name: 'x', force: true } }],
    ['no input', {}, { input: undefined }],
    ['audience', {}, { who: audience(who({ principal: 'bob' }), 'requester') }],
  ] as [string, Partial<Id>, Partial<Bound>][])
    assert.equal(
      await authority.verify({ ...parsed, ...id }, bound(more)),
      undefined,
      `another ${claim}`,
    )
})

test('the order of keys and an explicit undefined are no difference, the order of a list is', async () => {
  const authority = new Authority(memoryStore(), [key(1)])
  const id = { nonce: nonce(), expires: 1_800_000_000_000, shown: 's'.repeat(16) }
  const input = { a: 1, b: { c: [1, 2], d: 'é' } }
  const parsed = parseId(await authority.sign(id, bound({ input }))) as Id
  const holds = async (other: unknown) =>
    (await authority.verify(parsed, bound({ input: other }))) !== undefined
  assert.equal(await holds({ b: { d: 'é', c: [1, 2] }, a: 1 }), true)
  assert.equal(await holds({ ...input, e: undefined }), true)
  assert.equal(await holds({ a: 1, b: { c: [2, 1], d: 'é' } }), false)
  assert.equal(await holds({ a: '1', b: { c: [1, 2], d: 'é' } }), false)
  assert.equal(await holds({ a: 1, b: { c: [1, 2], d: 'e\u0301' } }), false)
})

// ------------------------------------------------------------ keys

test('the first key signs, every key verifies, none that is not there', async () => {
  const store = memoryStore()
  const { parsed } = await signed(store, [key(1)])
  assert.ok(await new Authority(store, [key(2), undefined, key(1)]).verify(parsed, bound()))
  assert.equal(await new Authority(store, [key(2)]).verify(parsed, bound()), undefined)
})

test('without keys a store in memory is served under a key of this process', async () => {
  const store = memoryStore()
  const { parsed } = await signed(store, [])
  assert.ok(await new Authority(store, [undefined]).verify(parsed, bound()))
  assert.equal(await new Authority(store, [key(1)]).verify(parsed, bound()), undefined)
})

test('a durable store without keys refuses to start and says how to make one', () => {
  for (const keys of [undefined, [], [undefined], ['']])
    assert.throws(
      () => new Authority(faultyStore(), keys),
      /needs keys: \[process\.env\.DCAF_KEY\]\. Make one with: openssl rand -base64 32/,
    )
})

test('a key that is not 32 bytes is refused by its place', () => {
  for (const bytes of [16, 31, 33])
    assert.throws(
      () => new Authority(memoryStore(), [key(1), randomBytes(bytes).toString('base64')]),
      (error) =>
        error instanceof DcafError &&
        error.code === 'invalid_argument' &&
        error.message.startsWith(`keys[1] must be 32 bytes in base64, got ${bytes}`),
    )
})

// ------------------------------------------------------------ the epoch

test('an epoch is made once, whoever asks first', async () => {
  const store = memoryStore()
  const many = Array.from({ length: 8 }, () => new Authority(store, [key(1)]).epoch())
  assert.deepEqual(new Set(await Promise.all(many)), new Set([await store.get('epoch')]))
})

test('an epoch stays: it has no lifetime', async (t) => {
  t.mock.timers.enable({ apis: ['Date'], now: 0 })
  const { store, authority, parsed } = await signed()
  t.mock.timers.tick(100 * 365 * 86_400_000)
  assert.equal(await authority.stillIn((await store.get('epoch')) as string), true)
  assert.ok(await new Authority(store, [key(1)]).verify(parsed, bound()))
})

test('a store that lost its epoch redeems nothing signed before, and gets a new one', async () => {
  const { store, authority, parsed } = await signed()
  const old = (await store.get('epoch')) as string
  await store.delete('epoch')
  assert.equal(await authority.stillIn(old), false)
  assert.equal(await authority.verify(parsed, bound()), undefined)
  assert.notEqual(await store.get('epoch'), old)
})

test('a replica that made the epoch anew is followed without a restart', async () => {
  const { store, authority } = await signed()
  await authority.epoch()
  await store.delete('epoch')
  const other = new Authority(store, [key(1)])
  const id = { nonce: nonce(), expires: 1_800_000_000_000, shown: 's'.repeat(16) }
  const parsed = parseId(await other.sign(id, bound())) as Id
  assert.equal(await authority.verify(parsed, bound()), await store.get('epoch'))
})

test('a forged id does not hold while the epoch changes either', async () => {
  const { store, authority, parsed } = await signed()
  await store.delete('epoch')
  const forged = { ...parsed, mac: 'A'.repeat(22) }
  assert.equal(await authority.verify(forged, bound()), undefined)
})

test('the epoch is read once to sign, and once to refuse', async () => {
  const store = faultyStore()
  const reads = () => store.calls.filter(({ method }) => method === 'get').length
  const id = { nonce: nonce(), expires: 1_800_000_000_000, shown: 's'.repeat(16) }
  const authority = new Authority(store, [key(1)])
  const signedId = parseId(await authority.sign(id, bound())) as Id
  for (let n = 0; n < 3; n++) await authority.sign(id, bound())
  assert.equal(reads(), 1)
  const other = new Authority(store, [key(1)])
  assert.equal(await other.verify({ ...signedId, mac: 'A'.repeat(22) }, bound()), undefined)
  assert.equal(reads(), 2)
})

test('a store that failed once is asked again', async () => {
  const store = faultyStore()
  store.fault = { kind: 'down', times: 1 }
  const authority = new Authority(store, [key(1)])
  await assert.rejects(authority.epoch(), { code: 'store_unavailable' })
  assert.equal(await authority.epoch(), await store.get('epoch'))
})

test('whatever a store rejects with means that it is not available', async () => {
  const fail = () => Promise.reject(new Error('ECONNREFUSED'))
  const down = { get: fail, set: fail, swap: fail, delete: fail }
  await assert.rejects(new Authority(down, [key(1)]).epoch(), {
    code: 'store_unavailable',
    retryable: true,
  })
})

// ------------------------------------------------------------ the audience

const all = {
  tenant_id: 'ti',
  tenant_name: 'tn',
  user_id: 'ui',
  k8s_namespace: 'ns',
  duplo_base_url: 'https://d',
  aws_region: 'r',
  scopes: [{ Name: 'b' }, { name: 'a', credential: 'secret' }],
  kubeconfig_path: '/k',
  duplo_token: 'secret',
  user_roles: ['admin'],
  session_id: 's',
  request_id: 'q',
}

test('an audience is identities in a fixed order, never tokens', () => {
  const list = audience(who({ context: all, bound: { cell: 3 } }), 'requester')
  assert.deepEqual(list, [
    'ann',
    't1',
    'ti',
    'tn',
    'ui',
    'ns',
    'https://d',
    'r',
    ['a', 'b'],
    '/k',
    null,
    { cell: 3 },
  ])
})

test('what is absent is null', () => {
  const nobody = { principal: undefined, threadId: undefined, context: {}, bound: undefined }
  assert.deepEqual(audience(nobody, 'requester'), Array(12).fill(null))
})

test('an approval for others leaves principal and user out, and nothing else', () => {
  const one = audience(who({ context: all }), 'requester')
  for (const approver of ['anyone', 'other'] as const)
    assert.deepEqual(
      audience(who({ context: all }), approver),
      one.map((value) => (value === 'ann' || value === 'ui' ? null : value)),
    )
})

test('scopes are told apart, whether they are objects or names, in any order', () => {
  const of = (scopes: unknown) =>
    canonical(audience(who({ context: { scopes } as never }), 'anyone'))
  assert.equal(of([{ name: 'a' }, { name: 'b' }]), of([{ Name: 'b' }, { Name: 'a' }]))
  assert.equal(of(['a', 'b']), of(['b', 'a']))
  const lists = [undefined, [], ['a'], ['b'], ['a', 'b'], [{ name: 'c' }], [{}]]
  assert.equal(new Set(lists.map(of)).size, lists.length)
  assert.equal(of([null]), of([{}]))
})

test('an audience is made once a request', () => {
  const one = who({ context: all })
  assert.equal(audience(one, 'requester'), audience(one, 'requester'))
})

const config = (text: string) => Buffer.from(text).toString('base64')
const cluster = (kubeconfig: string) =>
  audience(who({ context: { kubeconfig } }), 'requester')[10] as unknown

test('of a kubeconfig all counts but tokens and certificates', () => {
  const text = `apiVersion: v1
clusters:
- cluster: {server: "https://b:6443", certificate-authority-data: AAAA}
- cluster:
    server: https://a
current-context: prod
users: [{user: {token: one}}]
`
  const known = cluster(config(text))
  for (const [was, is] of [
    ['one', 'two'],
    ['AAAA', 'BBBB'],
  ] as const)
    assert.equal(cluster(config(text.replace(was, is))), known)
  for (const [was, is] of [
    ['prod', 'dev'],
    ['b:6443', 'c:6443'],
    ['user:', 'exec:'],
  ] as const)
    assert.notEqual(cluster(config(text.replace(was, is))), known)
  const json = (server: string, token: string) =>
    config(JSON.stringify({ clusters: [{ cluster: { server } }], users: [{ user: { token } }] }))
  assert.equal(cluster(json('a', 'x')), cluster(json('a', "y'")))
  assert.notEqual(cluster(json('a', 'x')), cluster(json('b', 'x')))
})

test('a kubeconfig that cannot be read by lines counts as a whole', () => {
  for (const text of [
    '',
    'no cluster here',
    'clusters: &c\n- cluster:\n    server: https://a\nother: *c',
    'cluster:\n  server: |\n    https://a',
    'cluster:\n  server: >-\n    https://a',
    'cluster: {"server": "https:\\u002f\\u002fa"}',
  ]) {
    const one = cluster(config(text))
    assert.equal(typeof one, 'string', text)
    assert.notEqual(one, cluster(config(`${text} `)), text)
  }
  assert.deepEqual(cluster({ server: 'https://a' } as never), { server: 'https://a' })
})

// ------------------------------------------------------------ canonical JSON

test('canonical JSON is RFC 8785, by its own example', () => {
  // https://www.rfc-editor.org/rfc/rfc8785#section-3.2.2
  const value = {
    numbers: [JSON.parse('333333333.33333329'), 1e30, 4.5, 2e-3, 0.000000000000000000000000001],
    string: "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\u0022/",
    literals: [null, true, false],
  }
  assert.equal(
    canonical(value),
    '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}',
  )
})

test('canonical JSON sorts keys by UTF-16 code units, at every depth', () => {
  // https://www.rfc-editor.org/rfc/rfc8785#section-3.2.3
  const keys = ['\u20ac', '\r', '\ufb33', '1', '\ud83d\ude00', '\u0080', '\u00f6']
  const sorted = ['\r', '1', '\u0080', '\u00f6', '\u20ac', '\ud83d\ude00', '\ufb33']
  const made = canonical([Object.fromEntries(keys.map((k) => [k, 0]))])
  assert.deepEqual(Object.keys(JSON.parse(made)[0]).sort(), sorted.slice().sort())
  assert.equal(made, `[{${sorted.map((k) => `${JSON.stringify(k)}:0`).join(',')}}]`)
})

test('canonical JSON says what JSON would: dates, undefined, no number', () => {
  assert.equal(canonical({ at: new Date(0), no: undefined }), '{"at":"1970-01-01T00:00:00.000Z"}')
  assert.equal(canonical([undefined, -0, () => 1]), '[null,0,null]')
  assert.equal(canonical({ toJSON: 'data' }), '{"toJSON":"data"}')
  for (const none of [Number.NaN, Number.POSITIVE_INFINITY])
    assert.throws(() => canonical([none]), { code: 'invalid_argument' })
})

// ------------------------------------------------------------ sealed texts

test('what was sealed opens under the same words, key and salt', () => {
  const authority = new Authority(memoryStore(), [key(1)])
  for (const text of ['', 'x', '{"a":"é\\ud83d"}', 'y'.repeat(100_000)]) {
    const sealed = seal(authority, text, ['run', 1, { b: 1, a: 2 }], 'epoch', 'run')
    assert.match(sealed, /^[\w-]+$/)
    assert.equal(unseal(authority, sealed, ['run', 1, { a: 2, b: 1 }], 'epoch', 'run'), text)
  }
})

test('what was sealed for something else does not open', () => {
  const authority = new Authority(memoryStore(), [key(1)])
  const sealed = seal(authority, 'text', ['ops'], 'epoch', 'run')
  assert.equal(unseal(authority, sealed, ['other'], 'epoch', 'run'), undefined)
  assert.equal(unseal(authority, sealed, ['ops'], 'other', 'run'), undefined)
  assert.equal(unseal(authority, sealed, ['ops'], 'epoch', 'session'), undefined)
  assert.equal(
    unseal(new Authority(memoryStore(), [key(2)]), sealed, ['ops'], 'epoch', 'run'),
    undefined,
  )
  const rotated = new Authority(memoryStore(), [key(2), key(1)])
  assert.equal(unseal(rotated, sealed, ['ops'], 'epoch', 'run'), 'text')
})

test('what was sealed is written in one way only', () => {
  const authority = new Authority(memoryStore(), [key(1)])
  const sealed = seal(authority, 'text', [], '', 'run')
  for (const more of ['=', ' ', '\n', '.'])
    for (const other of [sealed + more, more + sealed])
      assert.equal(unseal(authority, other, [], '', 'run'), undefined)
})

test('no text is sealed the same way twice, and no byte of one may change', () => {
  const authority = new Authority(memoryStore(), [key(1)])
  const sealed = seal(authority, 'text', [], '', 'run')
  assert.notEqual(sealed, seal(authority, 'text', [], '', 'run'))
  const bytes = Buffer.from(sealed, 'base64url')
  assert.equal(bytes.length, 12 + 16 + 4)
  for (const index of bytes.keys()) {
    const other = Buffer.from(bytes)
    other.writeUInt8((other[index] as number) ^ 1, index)
    assert.equal(unseal(authority, other.toString('base64url'), [], '', 'run'), undefined)
  }
  for (let end = 0; end < bytes.length; end++)
    assert.equal(unseal(authority, bytes.toString('base64url', 0, end), [], '', 'run'), undefined)
})

test('a store of a class of its own is durable, MemoryStore and what extends it are not', () => {
  class Mine extends MemoryStore {}
  assert.ok(new Authority(new Mine()))
})
