// What somebody hostile would try of the core: an approver, a requester, a model, a tool, a clock.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { approve } from '../src/agent.ts'
import { grantBook } from '../src/grants.ts'
import { audience } from '../src/proof.ts'
import { memoryStore } from '../src/store.ts'
import { desk, idOf, type Json } from './desk.ts'

// ------------------------------------------------------------ what an approval is bound to

const audienceOf = (context: Json) =>
  JSON.stringify(
    audience({ principal: 'ann', threadId: 't', context, bound: null } as never, 'requester'),
  )
const kubeconfig = (text: string) =>
  audienceOf({ kubeconfig: Buffer.from(text).toString('base64') })
const yaml = (cluster: string, token = 'aaaa') =>
  `current-context: c\nclusters:\n- name: k\n  cluster:\n    ${cluster}\nusers:\n- name: u\n  user:\n    token: ${token}\n`

for (const [claim, one, two] of [
  ['a quoted key beside a comment', yaml("'server': https://s # server: https://x"), yaml("'server': https://p # server: https://x")],
  ['a tag', yaml('server: !!str https://s'), yaml('server: !!str https://p')],
  ['a comma', yaml('server: https://s,@s'), yaml('server: https://s,@p')],
  ['a comment before the value', yaml('server: #\n      https://s'), yaml('server: #\n      https://p')],
  ['a proxy', yaml('server: https://s\n    proxy-url: http://a'), yaml('server: https://s\n    proxy-url: http://b')],
  ['a context of the same name', 'contexts: [{name: c, context: {cluster: a}}]\nservers: [{server: x}]', 'contexts: [{name: c, context: {cluster: b}}]\nservers: [{server: x}]'],
  ['a key that is part of a word', 'current-context: token:a\nserver: x', 'current-context: token:b\nserver: x'],
  ['a key within quotes', 'current-context: "{token: a}"\nserver: x', 'current-context: "{token: b}"\nserver: x'],
  ['a key within quotes over lines', 'current-context: "a\n token: a\n "\nserver: x', 'current-context: "a\n token: b\n "\nserver: x'],
  ['a quoted key in a bare word', 'current-context: a,"token":"a"\nserver: x', 'current-context: a,"token":"b"\nserver: x'],
] as const) // biome-ignore format: a table
  test(`a kubeconfig that points elsewhere by ${claim} is another audience`, () => {
    assert.notEqual(kubeconfig(one), kubeconfig(two))
  })

test('a kubeconfig with renewed credentials is the same audience', () => {
  const [one, two] = ['eyJh.eyJi.c2ln', 'eyJh.eyJj.bmV3'].map((t) => yaml('server: https://s', t))
  assert.equal(kubeconfig(`${one}`), kubeconfig(`${two}`))
  assert.equal(
    kubeconfig(yaml('server: "https://s"', '"a"')),
    kubeconfig(yaml('server: "https://s"', '"b"')),
  )
  const ca = (data: string) => yaml(`server: https://s\n    certificate-authority-data: ${data}`)
  assert.equal(kubeconfig(ca('LS0t')), kubeconfig(ca('LS0u==')))
})

for (const [one, two] of [
  [[{ id: 'dev' }], [{ id: 'prod' }]],
  ['dev', 'prod'],
  [{ name: 'dev' }, { name: 'prod' }],
  [[{ name: 'dev', account: 1 }], [{ name: 'dev', account: 2 }]],
])
  test(`scopes ${JSON.stringify(one)} are not ${JSON.stringify(two)}`, () => {
    assert.notEqual(audienceOf({ scopes: one }), audienceOf({ scopes: two }))
  })

test('a scope with renewed credentials is the same scope', () => {
  const scope = (Data: string) => audienceOf({ scopes: [{ Name: 'a', Credential: { Data } }] })
  assert.equal(scope('x'), scope('y'))
})

// ------------------------------------------------------------ clocks and grants

test('a wall clock that is set forth and back makes a store forget nothing', async (t) => {
  t.mock.timers.enable({ apis: ['Date'], now: Date.now() })
  const store = memoryStore()
  await store.set('k', 'x', 3_600_000)
  t.mock.timers.tick(26 * 3_600_000)
  await store.set('other', 'x')
  assert.equal(await store.get('k'), 'x')
})

for (const [claim, where] of [
  ['an empty where', {}],
  ['no where', undefined],
] as const)
  test(`a grant with ${claim} covers no wider input`, async () => {
    const store = memoryStore()
    const grants = grantBook(store)
    const it = desk({ grantable: true }, {}, { store, grants })
    const first = await it.propose()
    await it.decide(first, [{ ...approve(idOf(first)), grant: { ...(where && { where }) } }])
    const [agent, path, name] = ['db', [], 'drop']
    const among = audience(
      { principal: undefined, threadId: undefined, context: {}, bound: null },
      'requester',
    )
    const use = (input: Json) => grants.use({ agent, path, name, input, audience: among })
    assert.equal(await use({ table: 'b', cascade: false }), undefined)
    assert.equal(await use({ table: 'a', cascade: false, force: true }), undefined)
    assert.equal((await use({ table: 'a', cascade: false })) === undefined, where !== undefined)
  })
