import assert from 'node:assert/strict'
import { test } from 'node:test'
import { inspect } from 'node:util'
import fc from 'fast-check'
import {
  invisible,
  masker,
  maskJson,
  maskOf,
  measured,
  platformContext,
  secretKeys,
  secretsOf,
  tracing,
  unsound,
} from '../src/mask.ts'
import { DcafError } from '../src/providers/provider.ts'

const base64 = (text: string) => Buffer.from(text).toString('base64')
const json = (text: string) => JSON.stringify(text).slice(1, -1)
const sorted = (values: string[]) => values.toSorted()

test('finds every string of 4 or more characters under the secret keys, and nothing elsewhere', () => {
  const context = {
    tenant_name: 'acme-prod',
    aws_region: 'eu-central-1',
    user_roles: ['admin'],
    kubeconfig_path: '/home/me/.kube/config',
    duplo_token: 'duplo-secret',
    aws_credentials: { AccessKeyId: 'AKIA-1', deep: [{ more: 'aws-secret' }], no: 'abc', n: 12345 },
  }
  assert.deepEqual(sorted(secretsOf(context)), ['AKIA-1', 'aws-secret', 'duplo-secret'])
})

test('makes the mask of a context once, and anew when its secrets change', () => {
  const context = { duplo_token: 'first-secret' }
  const mask = maskOf(context)
  assert.equal(maskOf(context), mask)
  context.duplo_token = 'second-secret'
  assert.equal(maskOf(context)('first-secret second-secret'), 'first-secret [redacted]')
  assert.equal(maskOf({ ...context })('second-secret'), '[redacted]')
})

test('takes 4 characters for a secret, and the words null, true and false for none', () => {
  const values = ['abcd', 'abc', ' ab ', 'null', 'true', 'false', ' true ']
  assert.deepEqual(secretsOf({ aws_credentials: values }), ['abcd'])
})

test('finds what a scope holds under credential or credentials in any case, but no names and types', () => {
  const context = {
    scopes: [
      {
        Name: 'scope-name',
        ProviderType: 'kubernetes',
        Credential: { Name: 'cred-name', CredentialType: 'k8s', Data: { Token: 'data-token' } },
      },
      { name: 'second', credentials: [{ user: 'robot-1', password: 'pass-1' }] },
      { nested: { CREDENTIAL: 'bare-secret' } },
    ],
  }
  const expected = ['bare-secret', 'data-token', 'pass-1', 'robot-1']
  assert.deepEqual(sorted(secretsOf(context)), expected)
})

const yaml = `apiVersion: v1
kind: Config
current-context: default
clusters:
- name: default
  cluster:
    server: https://k8s.example:6443
    certificate-authority-data: ${base64('-----BEGIN CERTIFICATE-----\nCA-TEXT\n')}
users:
- name: default
  user:
    client-certificate-data: ${base64('-----BEGIN CERTIFICATE-----\nCERT-TEXT\n')}
    client-key-data: "${base64('-----BEGIN KEY-----\nKEY-TEXT\n')}"
    token: plain-token # of the robot
    username: robot
    password: 'it''s, {mine}'
    tokenFile: /var/run/token
- name: oidc
  user: {auth-provider: {config: {id-token: flow-id-token, refresh-token: "flow\\"refresh"}}}
- name: block
  user:
    access-token: |-
      block-token-line
    secret: null
`

test('finds in a kubeconfig its text, its tokens and certificates, but no ordinary word', () => {
  const found = secretsOf({ kubeconfig: base64(yaml) })
  const expected = [
    base64(yaml),
    yaml.trim(),
    '-----BEGIN CERTIFICATE-----\nCA-TEXT',
    '-----BEGIN CERTIFICATE-----\nCERT-TEXT',
    '-----BEGIN KEY-----\nKEY-TEXT',
    base64('-----BEGIN CERTIFICATE-----\nCERT-TEXT\n'),
    base64('-----BEGIN KEY-----\nKEY-TEXT\n'),
    'plain-token',
    "it's, {mine}",
    'flow-id-token',
    'flow"refresh',
    'block-token-line',
  ]
  for (const secret of expected) assert.ok(found.includes(secret), secret)
  for (const word of ['default', 'Config', 'v1', 'robot', 'null', 'oidc', '/var/run/token'])
    assert.ok(!found.includes(word), word)
})

test('finds the same in a kubeconfig that is JSON, plain YAML, URL-safe or wrapped base64', () => {
  const config = { users: [{ user: { token: 'json-token', 'client-key-data': 'json-key' } }] }
  const url = Buffer.from(`${yaml}>>>???`).toString('base64url')
  const wrapped = base64(yaml).replace(/.{76}/g, '$&\n')
  assert.ok(secretsOf({ kubeconfig: base64(JSON.stringify(config)) }).includes('json-token'))
  assert.ok(secretsOf({ kubeconfig: base64(JSON.stringify(config, null, 2)) }).includes('json-key'))
  assert.ok(secretsOf({ kubeconfig: config }).includes('json-token'))
  for (const kubeconfig of [yaml, url, wrapped])
    assert.ok(secretsOf({ kubeconfig }).includes('plain-token'))
})

test('finds the secret fields in other texts that a credential holds', () => {
  const ini = '[default]\naws_access_key_id = AKIA-INI\naws_secret_access_key=ini/secret+key\n'
  const service = JSON.stringify({ type: 'service_account', private_key: '-----BEGIN\nGCP-----' })
  const found = secretsOf({ scopes: [{ Credential: { Data: { ini, service, k: base64(yaml) } } }] })
  for (const secret of ['AKIA-INI', 'ini/secret+key', '-----BEGIN\nGCP-----', 'plain-token'])
    assert.ok(found.includes(secret), secret)
  assert.ok(!found.includes('service_account'))
})

test('takes values of the caller, too', () => {
  assert.deepEqual(secretsOf(undefined, ['from-vault', 'abc', undefined]), ['from-vault'])
})

test('takes 1,000 values and refuses 1,001', () => {
  const many = (n: number) => ({ aws_credentials: Array.from({ length: n }, (_, i) => `key-${i}`) })
  assert.equal(secretsOf(many(1000)).length, 1000)
  const tooMany = (error: unknown) =>
    error instanceof DcafError &&
    error.code === 'invalid_request' &&
    error.message === 'platform_context holds over 1000 secret values'
  assert.throws(() => secretsOf(many(1001)), tooMany)
  assert.throws(() => secretsOf(many(1000), ['one more']), tooMany)
  assert.throws(() => secretsOf({ kubeconfig: tokens(10_000) }), tooMany)
})
function tokens(count: number) {
  return Array.from({ length: count }, (_, i) => `token: value-${i}\n`).join('')
}

test('ends soon on texts made to make it slow', () => {
  const long = 60_000
  const texts = [
    'token: '.repeat(long / 7),
    'a'.repeat(long),
    `${'a'.repeat(long)}!`,
    `a${' '.repeat(long)}!`,
    'token'.repeat(long / 5),
    `token${' '.repeat(long)}`,
    'token:"'.repeat(long / 7),
    `token:${"'".repeat(long)}`,
    `token: |\n${'  \n'.repeat(long / 3)}`,
    `%${'25'.repeat(long / 2)}`,
    `token:"${'\\'.repeat(long)}`,
  ]
  for (const text of texts) masker(secretsOf({ kubeconfig: text }))(text.repeat(10))
})

const secret = 'p/s+w"d \\n%41é<&>\u{1f511}~'
const forms: Record<string, string> = {
  'as it is': secret,
  'in base64': base64(secret),
  'in base64 without padding': base64(secret).replace(/=+$/, ''),
  'in URL-safe base64': Buffer.from(secret).toString('base64url'),
  'JSON-escaped': json(secret),
  'JSON-escaped twice': json(json(secret)),
  'JSON-escaped in ASCII': json(secret).replace(/[^ -~]/g, (c) => unicode(c)),
  'JSON-escaped as Go does': json(secret).replace(/[<&>]/g, unicode),
  'JSON-escaped as .NET does': secret.replace(/[^\w ~./%]/gu, (c) =>
    [...c.split('')].map(unicode).join(''),
  ),
  'JSON-escaped as PHP does': json(secret).replaceAll('/', '\\/'),
  'URL-encoded': encodeURIComponent(secret),
  'URL-encoded in lower case': encodeURIComponent(secret).replace(/%../g, (h) => h.toLowerCase()),
  'as a form does': new URLSearchParams({ s: secret }).toString().slice(2),
  'URL-encoded to the last character': [...Buffer.from(secret)]
    .map((b) => `%${b.toString(16).padStart(2, '0')}`)
    .join(''),
  'in base64, URL-encoded': encodeURIComponent(base64(secret)),
  'in base64, URL-encoded, in JSON': json(encodeURIComponent(base64(secret))),
  'URL-encoded twice': encodeURIComponent(encodeURIComponent(secret)),
}
function unicode(character: string) {
  return `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`
}
for (const [name, form] of Object.entries(forms)) {
  test(`masks a value ${name}, and nothing around it`, () => {
    assert.equal(masker([secret])(`before ${form} after`), 'before [redacted] after')
    assert.equal(masker([secret])(`"${form}":\n${form}\n`), '"[redacted]":\n[redacted]\n')
  })
}

test('masks the base64 of a value wherever it stands in a longer encoded text', () => {
  const mask = masker(['the-secret-token'])
  for (const before of ['', 'u', 'us', 'use', 'user:'])
    for (const after of ['', '\n', '@host', '@host/']) {
      const masked = mask(base64(`${before}the-secret-token${after}`))
      assert.ok(masked.includes('[redacted]'), masked)
      // what may be left of it: the bits it shares with a neighbour in one base64 character
      const left = Buffer.from(masked.replace('[redacted]', ''), 'base64').toString('latin1')
      assert.ok(!/secret|token|the/.test(left), left)
    }
})

test('masks a value that is broken over lines, plain or in base64', () => {
  const value = 'abcdefghijklmnopqrstuvwxyz0123456789'.repeat(4)
  const mask = masker([value])
  const wrap = (text: string, by: string) => text.replace(/.{76}/g, `$&${by}`)
  assert.equal(mask(wrap(base64(value), '\n')), '[redacted]')
  assert.equal(mask(`key: |\n  ${wrap(base64(value), '\n  ')}\nend`), 'key: |\n  [redacted]\nend')
  assert.equal(mask(JSON.stringify({ key: wrap(base64(value), '\r\n') })), '{"key":"[redacted]"}')
  assert.equal(mask(`${value.slice(0, 20)}\n${value.slice(20)}`), '[redacted]')
})

test('keeps the line ends around a value', () => {
  const mask = masker(['first-secret', 'second-secret'])
  assert.equal(mask('a\nfirst-secret\nb\n  second-secret\n'), 'a\n[redacted]\nb\n  [redacted]\n')
})

test('masks the longest value, and what overlaps as one', () => {
  assert.equal(masker(['token', 'token-of-mine'])('token-of-mine token'), '[redacted] [redacted]')
  assert.equal(masker(['abcdef', 'defghi'])('xabcdefghix'), 'x[redacted]x')
  assert.equal(masker(['abcdefgh', 'cdef', 'cdefghijkl'])('abcdefghijkl'), '[redacted]')
  assert.equal(masker(['abcd'])('abcdabcd'), '[redacted]')
})

test('masks a value whose text is itself encoded', () => {
  for (const value of ['C:\\new\\u0041', '100%25', 'a\\"b%41"', '%7B"x"%7D'])
    for (const form of [value, json(value), json(json(value)), encodeURIComponent(value)])
      assert.equal(masker([value])(`<${form}>`), '<[redacted]>', form)
})

test('masks lone surrogates as they are and as they are written', () => {
  assert.equal(masker(['ab\ud800cd'])('ab\ud800cd ab\ufffdcd'), '[redacted] [redacted]')
})

test('leaves text alone that only looks like a value', () => {
  const mask = masker(['secret'])
  for (const text of ['secre', 'Secret', 'se cret', 'se\\tcret', '%', '\\', '100% \\ %zz', ''])
    assert.equal(mask(text), text)
})

test('does nothing without values, or with values of three characters', () => {
  const text = 'abc'
  assert.equal(masker([])(text), text)
  assert.equal(masker(['abc', ''])(text), text)
})

test('leaves no value of any kind in a text, whatever stands around it', () => {
  const part = fc.string({ unit: 'binary', maxLength: 12 })
  const value = fc.string({ unit: 'binary', minLength: 4, maxLength: 20 })
  const forms = [
    (s: string) => s,
    json,
    (s: string) => json(json(s)),
    (s: string) => encodeURIComponent(s.toWellFormed()),
  ]
  fc.assert(
    fc.property(part, value, part, fc.constantFrom(...forms), (before, value, after, form) => {
      const masked = masker([value])(`${before}${form(value)}${after}`)
      assert.ok(masked.includes('[redacted]'))
      if (!'[redacted]'.includes(value) && !`${before} ${after}`.includes(value.slice(0, 1)))
        assert.ok(!masked.includes(value))
    }),
    { numRuns: 2_000 },
  )
})

test('masks 200 values in a long text as one by one', () => {
  const values = Array.from({ length: 200 }, (_, i) => `value-${i}-${(i * 7919) % 1000}`)
  const text = values.map((value, i) => `line ${i} has ${value};\\n`).join('')
  const expected = values.map((_, i) => `line ${i} has [redacted];\\n`).join('')
  assert.equal(masker(values)(text), expected)
})

test('masks a value wherever it stands in a text of several steps', () => {
  const value = '"the" secret'
  const mask = masker([value])
  for (const form of [value, json(value), encodeURIComponent(value)])
    for (const offset of [-20, -9, -1, 0, 1]) {
      const before = '.'.repeat(2 ** 18 + offset)
      assert.ok(mask(`${before}${form}!`) === `${before}[redacted]!`, `${form} ${offset}`)
    }
})

test('masks every string, key and number of a JSON value in a copy', () => {
  const value = {
    'my-secret': ['x my-secret', { a: 'my-secret', n: 12345, ok: true, none: null }],
    at: new Date(0),
  }
  const mask = masker(['my-secret', '12345'])
  assert.deepEqual(maskJson(value, mask), {
    '[redacted]': ['x [redacted]', { a: '[redacted]', n: '[redacted]', ok: true, none: null }],
    at: '1970-01-01T00:00:00.000Z',
  })
  assert.equal(value.at.getTime(), 0)
  assert.equal(maskJson(undefined, mask), undefined)
})

test('copies no JSON value where there is nothing to mask', () => {
  const value = { a: [1] }
  assert.equal(maskJson(value, masker([])), value)
})

test('a __proto__ key stays a key when masked', () => {
  const masked = maskJson(JSON.parse('{"__proto__":{"isAdmin":true}}'), masker(['secret']))
  assert.deepEqual(Object.keys(masked as object), ['__proto__'])
  assert.equal((masked as { isAdmin?: boolean }).isAdmin, undefined)
})

test('shows of a platform context its tracing ids alone', () => {
  const data = { duplo_token: 'CANARY', user_id: 'u1', run_id: 'r1', nested: { token: 'CANARY' } }
  const context = platformContext(data)
  assert.deepEqual(Object.entries(context), Object.entries(data))
  assert.equal(JSON.stringify({ context }), '{"context":{"user_id":"u1","run_id":"r1"}}')
  for (const shown of [inspect(context), inspect({ context }, { depth: 9 }), `${context}`])
    assert.ok(!shown.includes('CANARY'), shown)
  assert.match(inspect(context), /u1/)
})

test('a client cannot unlock a platform context by sending toJSON or __proto__', () => {
  const context = platformContext(
    JSON.parse('{"toJSON":1,"__proto__":{"toJSON":null},"duplo_token":"CANARY"}'),
  )
  assert.equal(JSON.stringify(context), '{}')
  assert.equal(context.duplo_token, 'CANARY')
})

test('traces the four ids that are set to text', () => {
  const context = { user_id: 'u', session_id: '', run_id: 7, request_id: 'q', thread_id: 't' }
  assert.deepEqual(tracing(context), { user_id: 'u', session_id: '', request_id: 'q' })
  assert.deepEqual(tracing(undefined), {})
})

test('names the secret keys', () => {
  assert.deepEqual([...secretKeys], ['aws_credentials', 'duplo_token', 'kubeconfig', 'scopes'])
})

const hidden: Record<string, number[]> = {
  'C0 controls': [0x00, 0x01, 0x08, 0x0b, 0x0c, 0x0e, 0x1b, 0x1f],
  'DEL and C1 controls': [0x7f, 0x80, 0x85, 0x9f],
  bidi: [0x061c, 0x200e, 0x200f, 0x202a, 0x202b, 0x202c, 0x202d, 0x202e, 0x2066, 0x2067, 0x2069],
  'zero width': [0x200b, 0x200c, 0x200d, 0x2060, 0xfeff, 0x180e, 0x00ad, 0x034f, 0x2061],
  tags: [0xe0001, 0xe0020, 0xe0041, 0xe007f],
  'line separators': [0x2028, 0x2029],
  fillers: [0x115f, 0x1160, 0x3164, 0xffa0, 0x17b4],
  'variation selectors': [0xfe00, 0xfe0e, 0xfe0f, 0xe0100, 0xe01ef],
}
for (const [name, points] of Object.entries(hidden)) {
  test(`sees what is invisible: ${name}`, () => {
    for (const point of points)
      for (const text of [String.fromCodePoint(point), `a${String.fromCodePoint(point)}b`])
        assert.equal(invisible(text), true, point.toString(16))
  })
}

test('takes ordinary text of any script, emoji, tab, LF and CR for visible', () => {
  const texts = [
    'kubectl get pods\n\t-n a\r\n',
    'é ü ß',
    '日本語',
    'עברית',
    'العربية',
    '❤️ 🔑 1️⃣',
    '',
  ]
  for (const text of texts) assert.equal(invisible(text), false, text)
})

test('refuses JSON that is too deep, too large, or names a prototype', () => {
  const deep = (levels: number) => JSON.parse('['.repeat(levels) + ']'.repeat(levels))
  assert.equal(unsound(deep(64), 64, 1000), undefined)
  assert.equal(
    unsound(deep(65), 64, 1000),
    'it is nested more than 64 levels deep (limit jsonDepth)',
  )
  assert.equal(
    unsound(deep(100_000), 64, 1000),
    'it is nested more than 64 levels deep (limit jsonDepth)',
  )
  assert.equal(unsound([1, { a: 2 }], 64, 4), undefined)
  assert.equal(unsound([1, { a: 2 }], 64, 3), 'it has more than 3 values (limit jsonNodes)')
  for (const key of ['__proto__', 'constructor', 'prototype'])
    assert.equal(unsound(JSON.parse(`[{"a":{"${key}":1}}]`), 64, 99), `the key ${key} is refused`)
  for (const scalar of ['text', 1, null, true]) assert.equal(unsound(scalar, 0, 1), undefined)
})

test('says of any value how many bytes its JSON has at the most, and of plain JSON not much more', () => {
  const bytes = (value: unknown) => Buffer.byteLength(JSON.stringify(value) ?? '')
  const most = (value: unknown) => measured(value, 99, 1e6)
  for (const worst of [
    '\0'.repeat(9),
    '\ud800',
    -1.2345678901234567e-100,
    { '\x01': [null, false] },
  ])
    assert.ok(most(worst).bytes >= bytes(worst), JSON.stringify(worst))
  fc.assert(
    fc.property(fc.jsonValue(), (value) => {
      const { problem, bytes: atMost } = most(value)
      assert.ok(problem !== undefined || atMost >= bytes(value))
      assert.ok(atMost <= 30 * bytes(value))
    }),
  )
  for (const hidden of [new Date(0), [{ toJSON: () => 'x'.repeat(99) }]])
    assert.equal(most(hidden).bytes, Number.POSITIVE_INFINITY)
})
