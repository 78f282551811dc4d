import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Policy } from '../src/approval.ts'
import { highRisk, matching, onTools, whenContext, whenInput } from '../src/policies.ts'
import { DcafError } from '../src/providers/provider.ts'
import { tool, type Verdict } from '../src/tool.ts'

const ctx = (platform: Record<string, unknown> = {}) => ({ platform })
const call = (name: string, input: unknown = {}) => ({ name, input })
const wordOf = (said: unknown) =>
  typeof said === 'object' && said ? (said as { verdict: string }).verdict : said
const argument = (error: unknown) => error instanceof DcafError && error.code === 'invalid_argument'

test('highRisk asks for names that match as a whole, by glob in any case or by RegExp', () => {
  const policy = highRisk('delete_*', 'get_?', /restart|stop/)
  const asks = ['delete_pod', 'DELETE_POD', 'delete_', 'get_x', 'restart', 'stop']
  const silent = ['undelete_pod', 'delete', 'get_xy', 'restarted', 'nonstop', 'restart\n']
  for (const name of asks)
    assert.deepEqual(policy(call(name), ctx()), { verdict: 'ask', reason: 'high risk' }, name)
  for (const name of silent) assert.equal(policy(call(name), ctx()), undefined, name)
})

test('a RegExp that remembers where it was judges every call alike', () => {
  const policy = highRisk(/delete_.*/gy)
  for (let i = 0; i < 3; i++) assert.ok(policy(call('delete_pod'), ctx()))
})

test('no pattern, or a pattern of another kind, is refused at definition', () => {
  assert.throws(() => highRisk(), argument)
  assert.throws(() => highRisk(7 as never), argument)
  assert.throws(() => whenContext({}, 'ask'), argument)
  assert.throws(() => matching({ allow: [null as never] }), argument)
})

test('whenContext judges by tenant, by role, by a function', () => {
  const policy = whenContext(
    { tenant_name: 'prod*', user_roles: ['viewer', /guest-\d+/], tier: (t) => t === 1 },
    'deny',
    'not here',
  )
  const match = { tenant_name: 'PROD-eu', user_roles: ['editor', 'guest-7'], tier: 1 }
  assert.deepEqual(policy(call('x'), ctx(match)), { verdict: 'deny', reason: 'not here' })
  for (const other of [
    { tenant_name: 'staging' },
    { tenant_name: 'non-prod' },
    { user_roles: ['editor'] },
    { user_roles: [] },
    { tier: 2 },
  ])
    assert.equal(policy(call('x'), ctx({ ...match, ...other })), undefined)
})

test('whenContext asks where a value is absent, no text, or too long to judge', () => {
  const policy = whenContext({ tenant_name: /prod.*/ }, 'deny')
  const reason = 'because of tenant_name: tenant_name could not be judged'
  for (const tenant_name of [undefined, null, { is: 'prod' }, 'x'.repeat(4097)])
    assert.deepEqual(policy(call('x'), ctx({ tenant_name })), { verdict: 'ask', reason })
  assert.deepEqual(policy(call('x'), undefined), { verdict: 'ask', reason })
  assert.equal(policy(call('x'), ctx({ tenant_name: 'x'.repeat(4096) })), undefined)
})

test('whenInput judges the filled input, where an absent field is like nothing', () => {
  const policy = onTools('*', whenInput({ namespace: 'kube-*' }, 'deny', 'off limits'))
  const denied = { verdict: 'deny', reason: 'off limits' }
  assert.deepEqual(policy(call('delete_pod', { namespace: 'kube-system' }), ctx()), denied)
  assert.deepEqual(policy(call('delete_pods', { namespace: ['a', 'kube-x'] }), ctx()), denied)
  for (const input of [{ namespace: 'default' }, { namespace: 'my-kube-x' }, {}, null, 'text'])
    assert.equal(policy(call('delete_pod', input), ctx()), undefined)
  assert.equal(wordOf(policy(call('x', { namespace: ['a', {}] }), ctx())), 'ask')
})

test('a key inherited by every object is no value', () => {
  assert.equal(whenInput({ toString: '*' }, 'deny')({}), undefined)
})

test('a strict production policy is five lines', async () => {
  const policy: Policy[] = [
    highRisk('delete_*', 'restart_*', /(drop|purge)_.+/),
    whenContext({ tenant_name: 'prod*' }, 'ask', 'production'),
    onTools('delete_*', whenContext({ tenant_name: 'prod*', user_roles: 'viewer' }, 'deny', 'no')),
    onTools('*', whenInput({ namespace: 'kube-*' }, 'deny', 'the cluster itself is off limits')),
  ]
  const judge = async (name: string, input: unknown, platform: object) =>
    Promise.all(
      policy.map(async (p) => wordOf(await p({ name, input } as never, { platform } as never))),
    )
  const dev = { tenant_name: 'dev', user_roles: ['viewer'] }
  const prod = { tenant_name: 'prod-1', user_roles: ['viewer'] }
  const none = undefined
  assert.deepEqual(await judge('list_pods', {}, dev), [none, none, none, none])
  assert.deepEqual(await judge('list_pods', {}, prod), [none, 'ask', none, none])
  assert.deepEqual(await judge('delete_pod', {}, dev), ['ask', none, none, none])
  assert.deepEqual(await judge('delete_pod', {}, prod), ['ask', 'ask', 'deny', none])
  const system = { namespace: 'kube-system' }
  assert.deepEqual(await judge('drop_db', system, dev), ['ask', none, none, 'deny'])
})

const kubectl = matching({
  allow: ['kubectl get *', 'kubectl get * -n *', /kubectl (logs|describe) [\w/-]+/],
  deny: ['rm -rf', /--kubeconfig\b/],
})
const say = (command: unknown): Verdict => kubectl({ command })

test('runs unasked only what the list allows as a whole', () => {
  for (const command of [
    'kubectl get pods',
    'kubectl get pods -n default',
    'kubectl logs pod/web-1',
    'kubectl describe node-7',
  ])
    assert.equal(say(command), 'allow', command)
  for (const command of [
    '',
    'kubectl',
    'kubectl delete pods',
    'xkubectl get pods',
    'KUBECTL GET PODS',
  ])
    assert.deepEqual(say(command), {
      verdict: 'ask',
      reason: 'command is not on the list of what runs unasked',
    })
})

test('denies what is forbidden anywhere, behind a line end too', () => {
  for (const command of [
    'rm -rf /',
    'sudo RM -RF /',
    'kubectl get pods;\nrm -rf /',
    'kubectl get pods --kubeconfig=/tmp/x',
  ])
    assert.deepEqual(say(command), { verdict: 'deny', reason: 'command is of a forbidden kind' })
})

const loose = matching({ allow: [/kubectl get .*/, /^kubectl top .*$/m, /kubectl ge./gy] })
const bypasses = [
  ...[';', '&&', '||', '|', '&', '\n', '\r\n', '\r', '\u2028', '\u0085', '\u0000', '\u001b[2K'].map(
    (operator) => `kubectl get x${operator}rm -r y`,
  ),
  ...[
    '$(rm y)',
    '`rm y`',
    `$\{IFS}`,
    '$HOME',
    '<(rm y)',
    '>(rm y)',
    '> /etc/x',
    '>> x',
    '< x',
    '2>&1',
  ].map((operator) => `kubectl get ${operator}`),
  ...[
    '*',
    '?',
    '~',
    '[a-z]',
    '{a,--all}',
    '!x',
    '\\\nrm',
    'x\\',
    '%COMSPEC%',
    '^&',
    '(rm)',
    '#{',
  ].map((operator) => `kubectl get ${operator}`),
  ...[
    '\u202e',
    '\u2066',
    '\u200b',
    '\u200d',
    '\ufeff',
    '\u00ad',
    '\u{e0041}',
    '\u00a0',
    '\u3000',
  ].map((hidden) => `kubectl get x${hidden}y`),
  'kubectl get x；rm',
  'kubectl get x｜rm',
  'kubectl get x＆＆rm',
  'ｋubectl get x',
  'kubectl gеt x', // a Cyrillic е
  'kubectl get x\t',
  'kubectl get x\u000b',
  ' kubectl get x',
  'rm x\nkubectl get x',
  'kubectl top x\nrm y',
  'echo kubectl get x',
  'kubectl\tget x',
  'kubectl  get x',
  'KUBECTL GET x',
  'kubectl getx',
  `kubectl get ${'x'.repeat(4085)}`,
]
test(`asks for each of ${bypasses.length} ways around a loose pattern`, () => {
  assert.ok(bypasses.length >= 58)
  assert.equal(loose({ command: 'kubectl get x' }), 'allow')
  assert.equal(loose({ command: `kubectl get ${'x'.repeat(4084)}` }), 'allow')
  for (const command of bypasses)
    assert.equal(wordOf(loose({ command })), 'ask', JSON.stringify(command))
})

test('a star in an allowed text is one word and no option', () => {
  for (const command of [
    'kubectl get --raw=/api/v1/secrets',
    'kubectl get -A',
    'kubectl get pods --all',
    'kubectl get pods -n',
  ])
    assert.equal(wordOf(say(command)), 'ask', command)
  const one = matching({ allow: ['get pod-?'] })
  assert.equal(one({ command: 'get pod-1' }), 'allow')
  for (const command of ['get pod- ', 'get pod--', 'get pod-12'])
    assert.equal(wordOf(one({ command })), 'ask')
})

test('asks where the field is no text, or files come along', () => {
  for (const input of [
    {},
    null,
    'kubectl get pods',
    { command: ['kubectl get pods'] },
    { command: 7 },
  ])
    assert.deepEqual(kubectl(input), { verdict: 'ask', reason: 'command is no text' })
  const command = 'kubectl get pods'
  assert.equal(kubectl({ command, files: null }), 'allow')
  assert.equal(kubectl({ command, files: [] }), 'allow')
  assert.deepEqual(kubectl({ command, files: [{ file_path: 'a' }] }), {
    verdict: 'ask',
    reason: 'command brings files',
  })
})

test('judges the field that is named', () => {
  const sql = matching({ field: 'query', allow: [/select [\w, ]+ from \w+/i] })
  assert.equal(sql({ query: 'SELECT a, b FROM t' }), 'allow')
  assert.deepEqual(sql({ command: 'SELECT a FROM t' }), {
    verdict: 'ask',
    reason: 'query is no text',
  })
})

const endless: [pattern: RegExp, attack: string][] = [
  [/(a+)+/, 'a'],
  [/(a|a)*/, 'a'],
  [/(a|aa)+/, 'a'],
  [/([a-z]+)*x/, 'a'],
  [/(\w+\s?)*/, 'a'],
  [/(.*)*b/, 'a'],
  [/^(([a-z])+.)+[A-Z]([a-z])+$/, 'a'],
  [/(x+x+)+y/, 'x'],
]
test('asks where a pattern takes forever, and goes on', () => {
  for (const [pattern, attack] of endless) {
    const command = `${attack.repeat(3000)} "`
    assert.equal(wordOf(matching({ allow: [pattern] })({ command })), 'ask', pattern.source)
  }
  const slow = matching({ deny: [/(a+)+$/], allow: [/.*/] })
  assert.deepEqual(slow({ command: `${'a'.repeat(3000)} "` }), {
    verdict: 'ask',
    reason: 'command could not be judged',
  })
  const context = ctx({ tenant_name: `${'a'.repeat(3000)}!` })
  assert.equal(wordOf(whenContext({ tenant_name: /(a+)+/ }, 'deny')(call('x'), context)), 'ask')
})

test('fits requiresApproval and policy as they are', () => {
  const run = tool({
    name: 'run',
    description: 'Runs a command',
    input: { type: 'object', required: ['command'], properties: { command: { type: 'string' } } },
    requiresApproval: matching({ allow: ['ls *'] }),
    execute: () => 'done',
  })
  const policy: Policy = onTools('run_*', matching({ deny: ['rm'] }))
  assert.equal(typeof run.requiresApproval, 'function')
  assert.equal(wordOf(policy(call('run_it', { command: 'rm x' }) as never, ctx() as never)), 'deny')
  assert.equal(policy(call('list', { command: 'rm x' }) as never, ctx() as never), undefined)
})
