// The `dcaf` command as a child process against a served agent; the talking terminal through a pseudo-terminal.

import assert from 'node:assert/strict'
import { spawn, spawnSync } from 'node:child_process'
import { chmodSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { audit } from '../src/audit.ts'
import type { Agent } from '../src/index.ts'
import { scripted } from '../src/providers/scripted.ts'
import { tool } from '../src/tool.ts'
import { serve } from './harness.ts'

const cli = join(import.meta.dirname, '../src/cli.ts')

function folder(t: TestContext): string {
  const path = mkdtempSync(join(tmpdir(), 'dcaf-cli-'))
  t.after(() => rmSync(path, { recursive: true }))
  return path
}

function dcaf(
  args: string[],
  options: { input?: string; env?: NodeJS.ProcessEnv; cwd?: string } = {},
) {
  return new Promise<{ code: number | null; out: string; err: string }>((resolve) => {
    const child = spawn(process.execPath, [cli, ...args], {
      env: { ...process.env, ...options.env },
      cwd: options.cwd,
    })
    let out = ''
    let err = ''
    child.stdout.on('data', (chunk) => {
      out += chunk
    })
    child.stderr.on('data', (chunk) => {
      err += chunk
    })
    child.on('close', (code) => resolve({ code, out, err }))
    child.stdin.end(options.input ?? '')
  })
}

function ops(replies: Parameters<typeof scripted>[0]): Agent & { ran: unknown[] } {
  const ran: unknown[] = []
  const drop = tool({
    name: 'drop',
    description: 'Drop a table',
    input: '{ table: string }',
    requiresApproval: true,
    editable: true,
    execute: (input) => {
      ran.push(input)
      return `dropped ${input.table}`
    },
  })
  return { name: 'db', provider: scripted(replies), tools: [drop], ran }
}
const drops = { calls: [{ name: 'drop', input: { table: 'a' } }] }

test('help of the command and of each of its commands', async () => {
  const { code, out } = await dcaf(['--help'])
  assert.equal(code, 0)
  for (const name of ['chat', 'explain', 'audit', 'env-update-aws-creds']) {
    assert.match(out, new RegExp(name))
    const help = await dcaf([name, '--help'])
    assert.deepEqual([help.code, help.out.startsWith(`Usage: dcaf ${name}`)], [0, true])
  }
})

for (const [claim, args] of [
  ['no command', []],
  ['an unknown command', ['fly']],
  ['an unknown option', ['chat', '--fast']],
  ['a missing file', ['audit']],
] as const)
  test(`${claim} is wrong usage: exit code 2, said on stderr`, async () => {
    const { code, out, err } = await dcaf([...args])
    assert.deepEqual([code, out, err.length > 0], [2, '', true])
  })

test('piped, it prints the answer and exits 0', async (t) => {
  const { url } = await serve(t, ops([['Hel', 'lo']]))
  assert.deepEqual(await dcaf(['chat', url], { input: 'hi\n' }), {
    code: 0,
    out: 'Hello\n',
    err: '',
  })
})

test('piped with --json, an answer that waits is one object and exit code 3', async (t) => {
  const { url } = await serve(t, ops([drops]))
  const { code, out } = await dcaf(['chat', url, '--json'], { input: 'drop a' })
  const answer = JSON.parse(out)
  assert.deepEqual([code, answer.role, answer.data.approvals[0].name], [3, 'assistant', 'drop'])
})

test('a service that is not there is one sentence and exit code 1', async () => {
  const { code, err } = await dcaf(['chat', 'http://127.0.0.1:9'], { input: 'hi' })
  assert.deepEqual([code, err.split('\n').length], [1, 2])
  assert.match(err, /cannot reach http:\/\/127\.0\.0\.1:9/)
})

/** python3's pty gives the child a real terminal; what it prints is matched before the next line is typed. */
function typed(
  t: TestContext,
  url: string,
  steps: [wait: string, type: string][],
  env: NodeJS.ProcessEnv = {},
) {
  const script = `
import os, pty, sys, select, json, time
steps = json.loads(sys.argv[1]); args = sys.argv[2:]
pid, fd = pty.fork()
if pid == 0: os.execvp(args[0], args)
seen = ''; at = 0; end = time.time() + 20
for wait, text in steps:
    while seen.find(wait, at) < 0:
        if time.time() > end: sys.stderr.write('no ' + wait + ' in ' + seen); sys.exit(9)
        if select.select([fd], [], [], 0.1)[0]:
            try: seen += os.read(fd, 65536).decode('utf8', 'replace')
            except OSError: sys.stderr.write('ended before ' + wait); sys.exit(9)
    at = seen.find(wait, at) + len(wait)
    os.write(fd, text.encode())
while True:
    try: data = os.read(fd, 65536)
    except OSError: break
    if not data: break
    seen += data.decode('utf8', 'replace')
sys.stdout.write(seen)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
`
  const args = ['-c', script, JSON.stringify(steps), process.execPath, cli, 'chat', url]
  return new Promise<{ code: number | null; out: string; err: string }>((resolve) => {
    const child = spawn('python3', args, { env: { ...process.env, TERM: 'xterm', ...env } })
    let out = ''
    let err = ''
    child.stdout.on('data', (chunk) => {
      out += chunk
    })
    child.stderr.on('data', (chunk) => {
      err += chunk
    })
    child.on('close', (code) => resolve({ code, out, err }))
    t.after(() => child.kill())
  })
}
const noTerminal =
  spawnSync('python3', ['-c', 'import pty']).status === 0
    ? false
    : 'needs python3 for a pseudo-terminal'
if (noTerminal && process.env.CI) throw new Error(noTerminal)

test('in a terminal it asks, runs what was approved, shows the session, saves and quits', {
  skip: noTerminal,
}, async (t) => {
  const agent = ops([drops, ['gone']])
  const { url } = await serve(t, agent)
  const file = join(folder(t), 'thread.json')
  const { code, out, err } = await typed(t, url, [
    ['> ', 'drop a\r'],
    ['[y/n/e/a/s]', 'y\r'],
    ['gone', ''],
    ['> ', '/session\r'],
    ['> ', `/save ${file}\r`],
    ['Saved', '/quit\r'],
  ])
  assert.equal(code, 0, err)
  assert.match(out, /Drop a table/)
  assert.deepEqual(agent.ran, [{ table: 'a' }])
  assert.equal(JSON.parse(readFileSync(file, 'utf8')).messages.length, 4)
})

test('in a terminal a rejection asks why, and an edit opens the editor', {
  skip: noTerminal,
}, async (t) => {
  const agent = ops([drops, drops, ['done']])
  const { url } = await serve(t, agent)
  const path = folder(t)
  const editor = join(path, 'editor')
  writeFileSync(editor, '#!/bin/sh\necho \'{"table":"z"}\' > "$1"\n')
  chmodSync(editor, 0o755)
  const agent2 = ops([drops, 'ok'])
  const second = await serve(t, agent2)
  const rejected = await typed(t, url, [
    ['> ', 'drop a\r'],
    ['[y/n/e/a/s]', 'n\r'],
    ['Why not?', 'not now\r'],
    ['> ', '/quit\r'],
  ])
  const edited = await typed(
    t,
    second.url,
    [
      ['> ', 'drop a\r'],
      ['[y/n/e/a/s]', 'e\r'],
      ['dropped z', ''],
      ['> ', '/quit\r'],
    ],
    { EDITOR: editor },
  )
  assert.deepEqual(
    [rejected.code, agent.ran, edited.code, agent2.ran],
    [0, [], 0, [{ table: 'z' }]],
    rejected.err + edited.err,
  )
  assert.match(rejected.out, /Rejected: not now/)
})

test('explain prints the body that would be sent, and sends nothing', async (t) => {
  const file = join(folder(t), 'agent.ts')
  const src = join(import.meta.dirname, '../src')
  writeFileSync(
    file,
    `import { anthropic } from '${src}/providers/anthropic.ts'
export default { name: 'a', provider: anthropic({ model: 'm', apiKey: 'k', baseUrl: 'http://127.0.0.1:9' }), system: 'Be brief.',
  requestInterceptors: [(request) => request.addSystemContext('It is Friday.')] }`,
  )
  const { code, out, err } = await dcaf(['explain', file, '--message', 'hi'])
  assert.equal(code, 0, err)
  const body = JSON.parse(out)
  assert.equal(body.model, 'm')
  assert.match(out, /Be brief[\s\S]*It is Friday[\s\S]*hi/)
})

test('audit shows who approved what, and fails on a changed line', async (t) => {
  const file = join(folder(t), 'audit.ndjson')
  const trail = await audit(file)
  const { chat } = await serve(
    t,
    { ...ops([drops, 'gone']), onEvent: trail.listener },
    { authenticate: () => 'ann' },
  )
  const { body } = await chat({ messages: [{ role: 'user', content: 'drop' }] })
  await chat({
    messages: [
      {
        role: 'user',
        content: '',
        data: { tool_calls: [{ ...body.data.tool_calls[0], execute: true }] },
      },
    ],
  })
  await trail.flush()
  const good = await dcaf(['audit', file])
  assert.equal(good.code, 0)
  assert.match(good.out, /drop\s+approved\s+ann\s+ok/)
  writeFileSync(
    file,
    readFileSync(file, 'utf8').replace('"approvedBy":"ann"', '"approvedBy":"bob"'),
  )
  const bad = await dcaf(['audit', file])
  assert.deepEqual([bad.code, /line \d+ was changed/.test(bad.out)], [1, true])
  assert.equal(JSON.parse((await dcaf(['audit', file, '--json'])).out).problems.length, 1)
})

test('fresh credentials keep the comments of .env and are not printed', async (t) => {
  const path = folder(t)
  const secret = ['a', 's', 't'].map((c) => c.repeat(20))
  writeFileSync(
    join(path, 'duplo-jit'),
    `#!/bin/sh\necho "$@" > "${path}/args"\necho '{"Version":1,"AccessKeyId":"${secret[0]}","SecretAccessKey":"${secret[1]}","SessionToken":"${secret[2]}"}'\n`,
  )
  chmodSync(join(path, 'duplo-jit'), 0o755)
  writeFileSync(
    join(path, '.env'),
    '# mine\nAWS_ACCESS_KEY_ID=old\nexport AWS_REGION=eu-west-1 # stays\n',
  )
  const env = { PATH: `${path}:${process.env.PATH}` }
  const { code, out, err } = await dcaf(
    ['env-update-aws-creds', '--tenant', 'dev', '--host', 'https://h'],
    { env, cwd: path },
  )
  assert.equal(code, 0, err)
  assert.deepEqual(readFileSync(join(path, '.env'), 'utf8').split('\n'), [
    '# mine',
    `AWS_ACCESS_KEY_ID=${secret[0]}`,
    'export AWS_REGION=eu-west-1 # stays',
    `AWS_SECRET_ACCESS_KEY=${secret[1]}`,
    `AWS_SESSION_TOKEN=${secret[2]}`,
    '',
  ])
  assert.equal(statSync(join(path, '.env')).mode & 0o777, 0o600)
  assert.ok(secret.every((s) => !(out + err).includes(s)))
  assert.match(
    readFileSync(join(path, 'args'), 'utf8'),
    /^aws --no-cache --tenant dev --host https:\/\/h --interactive/,
  )
})

test('without duplo-jit it says how to get it', async (t) => {
  const path = folder(t)
  const { code, err } = await dcaf(
    ['env-update-aws-creds', '--tenant', 'dev', '--host', 'https://h'],
    { env: { PATH: path }, cwd: path },
  )
  assert.equal(code, 1)
  assert.match(err, /duplo-jit is not on the PATH/)
})
