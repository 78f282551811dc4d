// README holds what it says: the service it opens with serves, its commands run, its tree is the files, its tables are
// the code. UPDATE_README=1 writes the figures anew in place of comparing them.

import assert from 'node:assert/strict'
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import type { Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { basename, join, relative } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { pathToFileURL } from 'node:url'
import { promisify } from 'node:util'
import { coreFiles, count, lateFiles, reaches } from '../scripts/lines.ts'
import { serverOptions } from '../src/door.ts'
import { runLimits } from '../src/index.ts'
import { defaultTimeouts } from '../src/providers/limits.ts'
import type { Json } from './harness.ts'
import { root, snippetsOf, textOf, written } from './snippets.ts'

const readme = textOf('README.md')
const snippets = snippetsOf('README.md')
const read = (path: string) => readFileSync(join(root, path), 'utf8')
const section = (title: string) => readme.split(`\n## ${title}\n`)[1]?.split('\n## ')[0] ?? ''

/** What a user's shell would have: nothing of npm's and the test runner's, and no configuration but the desk's defaults. */
const env = {
  ...Object.fromEntries(
    Object.entries(process.env).filter(([name]) => !/^(npm_|NODE_|DCAF_|INIT_CWD)/i.test(name)),
  ),
  DCAF_PROVIDER: 'offline',
  DCAF_STORE: 'memory',
  DCAF_KEY: '',
  LOG_LEVEL: 'error',
  HOST: '127.0.0.1',
  PORT: '0',
}

test('begins with one sentence, the command, the service, five bullets and how to take it', () => {
  const [start, service] = snippets
  const heads = readme.split('\n').filter((line) => line.startsWith('#'))
  assert.equal(readme.split('\n')[0], heads[0])
  assert.equal(start?.text, 'npm ci && npm start\n')
  assert.ok(service && service.line < 15, 'the service begins before line 15')
  assert.ok(service.text.trimEnd().split('\n').length < 25, 'and has under 25 lines')
  const bullets = readme
    .split(service.text)[1]
    ?.split('\n## ')[0]
    ?.match(/^- \*\*/gm)
  assert.equal(bullets?.length, 5)
  assert.equal(heads[1], '## Take it')
})

test('the service it opens with holds a call until it is approved, then runs it once', async (t) => {
  const [, service] = snippets
  assert.ok(service)
  const text = service.text
    .replace(/bedrock\(\{.*\}\)/, 'globalThis.offline')
    .replace(/^createServer/m, 'export const server = createServer')
    .replace('listen(8000,', 'listen(0,')
  const { folder, modules } = written([{ ...service, text }])
  const { scripted } = await import('../src/providers/scripted.ts')
  const call = { name: 'delete_pod', input: { name: 'nginx' } }
  const replies = [{ calls: [call] }, 'nginx is gone.', 'It was gone.']
  Object.assign(globalThis, { offline: scripted(replies) })
  const { server } = (await import(pathToFileURL(modules[0]?.path ?? '').href)) as {
    server: Server
  }
  t.after(() => {
    server.close()
    server.closeAllConnections()
    rmSync(folder, { recursive: true })
  })
  if (!server.listening) await once(server, 'listening')
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  const headers = { 'content-type': 'application/json' }
  const chat = async (...messages: object[]): Promise<Json> => {
    const body = JSON.stringify({ messages })
    const answer = await fetch(`${url}/api/chat`, { method: 'POST', headers, body })
    return (await answer.json()) as Json
  }
  const question = { role: 'user', content: 'Delete the pod nginx' }
  const asked = await chat(question)
  assert.deepEqual(
    [asked.data.tool_calls[0].input, asked.data.executed_tool_calls],
    [call.input, []],
  )
  const yes = {
    role: 'user',
    content: '',
    data: { tool_calls: [{ ...asked.data.tool_calls[0], execute: true }] },
  }
  for (const times of ['once', 'again']) {
    const done = await chat(question, asked, yes)
    assert.equal(done.data.executed_tool_calls[0].output, 'deleted default/nginx', times)
  }
  assert.equal((await fetch(`${url}/health`)).status, 200)
  assert.equal((await fetch(`${url}/elsewhere`)).status, 404)
})

test('what one copies is enough: the core, the shared words and one provider', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'dcaf-copy-'))
  t.after(() => rmSync(folder, { recursive: true }))
  const provider = ['provider', 'scripted'].map((name) => join(root, `src/providers/${name}.ts`))
  for (const file of [...coreFiles(), ...lateFiles(), ...provider])
    cpSync(file, join(folder, relative(root, file)))
  mkdirSync(join(folder, 'node_modules'))
  symlinkSync(join(root, 'node_modules/typebox'), join(folder, 'node_modules/typebox'))
  writeFileSync(join(folder, 'package.json'), '{ "type": "module" }')
  writeFileSync(
    join(folder, 'main.ts'),
    `import { createServer } from 'node:http'
import { chatHandler } from './src/http.ts'
import { tool } from './src/tool.ts'
import { scripted } from './src/providers/scripted.ts'
const stop = tool({ name: 'stop', description: 'Stop', input: '{}', requiresApproval: true, execute: () => 'stopped' })
const provider = scripted([{ calls: [{ name: 'stop', input: {} }] }, 'It is stopped.'])
const chat = chatHandler({ name: 'ops', provider, tools: [stop] }, { log: () => {} })
const server = createServer(chat).listen(0, '127.0.0.1', async () => {
  const ask = async (...messages) => {
    const headers = { 'content-type': 'application/json' }
    const url = 'http://127.0.0.1:' + server.address().port + '/api/chat'
    return (await fetch(url, { method: 'POST', headers, body: JSON.stringify({ messages }) })).json()
  }
  const user = { role: 'user', content: 'Stop it' }
  const asked = await ask(user)
  const [call] = asked.data.tool_calls
  const yes = { role: 'user', content: '', data: { tool_calls: [{ ...call, execute: true }] } }
  console.log((await ask(user, asked, yes)).content)
  server.close()
})`,
  )
  const { stdout } = await promisify(execFile)(process.execPath, ['main.ts'], { cwd: folder, env })
  assert.equal(stdout, 'It is stopped.\n')
})

describe('every command it shows', () => {
  const folder = mkdtempSync(join(tmpdir(), 'dcaf-readme-'))
  after(() => rmSync(folder, { recursive: true }))
  let desk: ChildProcess
  let url = ''
  before(async () => {
    // `npm ci` was: the tests run in an installed checkout, and `.ci/run` begins with it.
    desk = spawn('npm', ['start'], { cwd: root, env, stdio: ['ignore', 'pipe', 'inherit'] })
    let said = ''
    for await (const chunk of desk.stdout ?? []) {
      said += chunk
      url = /http:\/\/127\.0\.0\.1:\d+/.exec(said)?.[0] ?? ''
      if (url) break
    }
    assert.ok(url, `npm start said no address: ${said}`)
  })
  after(async () => {
    if (desk.exitCode !== null) return
    desk.kill('SIGTERM')
    await once(desk, 'exit')
  })

  const sh = async (command: string) => {
    const here = command
      .replaceAll('/tmp/asked.json', join(folder, 'asked.json'))
      .replaceAll('http://127.0.0.1:8000', url)
      .replace('npm run --silent chat', `npm run --silent chat -- ${url}`)
    return (await promisify(execFile)('sh', ['-c', here], { cwd: root, env })).stdout
  }
  const commands: Record<string, (command: string) => Promise<unknown> | unknown> = {
    'npm ci && npm start': () => fetch(`${url}/health`).then((r) => assert.equal(r.status, 200)),
    'npm ci && npm test': () => assert.match(read('.ci/run'), /^npm ci\n(.*\n)*npm test$/m),
    'npx node examples/01-quickstart.ts': async (command) =>
      assert.match(await sh(command), /sent again: deleted default\/nginx \(1\)/),
    'npm run bench': () => assert.match(read('package.json'), /"bench": "node scripts/),
    curl: async (command) => {
      const answer = JSON.parse(await sh(command))
      assert.equal(answer.data.tool_calls[0].name, 'restart_process')
      assert.equal(answer.meta_data.stop_reason, 'approval')
    },
    node: async (command) => {
      const answer = JSON.parse(await sh(command))
      assert.match(
        answer.data.executed_tool_calls[0].output,
        /^\{"name":"web-1","old_pid":\d+,"new_pid":\d+\}$/,
      )
      assert.equal(answer.meta_data.stop_reason, 'end')
    },
    echo: async (command) => assert.match(await sh(command), /web-1.*running/),
  }
  for (const { text, line } of snippets.filter(({ language }) => language === 'sh'))
    test(`line ${line}: ${text.trim().split('\n')[0]}`, async () => {
      const act = commands[text.trim()] ?? commands[text.split(' ')[0] ?? '']
      assert.ok(act, 'nothing here runs this command')
      await act(text.trim())
    })

  test('npm scripts that the text names exist', () => {
    const { scripts } = JSON.parse(read('package.json'))
    for (const [, name = ''] of readme.matchAll(/npm run (?:--silent )?([\w:]+)/g))
      assert.ok(scripts[name], name)
  })
})

test('the tree is the files of src/, each with a caption', async () => {
  const tree = section('The tree').split('```')[1] ?? ''
  const shown: string[] = []
  let folder = ''
  for (const [, indent = '', name = '', caption = ''] of tree.matchAll(
    /^( {2,4})([\w-]+(?:\.ts|\/))(?: {2,}(.*))?$/gm,
  )) {
    if (indent.length === 2) folder = ''
    if (name.endsWith('/')) folder = name
    else {
      shown.push(`src/${folder}${name}`)
      assert.ok(caption.length > 10, `${name} has no caption`)
    }
  }
  const { stdout } = await promisify(execFile)('git', ['ls-files', 'src'], { cwd: root })
  assert.deepEqual(shown.sort(), stdout.trim().split('\n').sort())
})

test('the limits are the defaults of the code', () => {
  const block = /^const doorLimits = \{\n([^}]*)\}/m.exec(read('src/http.ts'))?.[1] ?? ''
  const door = read('src/door.ts')
  const code: Record<string, number> = { ...runLimits, ...defaultTimeouts }
  for (const [, name = '', value = ''] of block.matchAll(/^ {2}(\w+): ([\d_]+),$/gm))
    code[name] = Number(value.replaceAll('_', ''))
  for (const [name, value] of Object.entries(serverOptions))
    if (typeof value === 'number') code[name] = value
  for (const name of ['graceMs', 'hardMs'])
    code[name] = Number(
      new RegExp(`${name} = (?:Math\\.max\\()?([\\d_]+)`).exec(door)?.[1]?.replace('_', ''),
    )
  const shown: Record<string, number> = {}
  for (const [, names = '', values = ''] of section('Limits').matchAll(
    /^\| (`.*?) \| (\d.*?) \|/gm,
  )) {
    const numbers = values.split(', ').map((text) => Number(text.replaceAll(',', '')))
    const listed = names.replace(/\(.*\)/, '').match(/\w+/g) ?? []
    assert.equal(listed.length, numbers.length, names)
    for (const [i, name] of listed.entries()) shown[name] = numbers[i] as number
  }
  assert.deepEqual(shown, code)
})

test('the figures are those of npm run lines, give or take a hundred', () => {
  const providers = ['anthropic', 'azure', 'chat-reply', 'google', 'ollama', 'openai']
  const all = (names: string[]) => names.map((name) => join(root, 'src/providers', `${name}.ts`))
  const bedrock = all(
    ['', '-client', '-errors', '-handler', '-reply', '-request'].map((n) => `bedrock${n}`),
  )
  const shared = [...reaches(join(root, 'src/providers/wire.ts'))]
  const sum = (files: string[]) => files.reduce((lines, file) => lines + count(file), 0)
  const most = Math.max(...[...all(providers), ...bedrock].map(count))
  assert.ok(most <= 200, `a file of a provider has ${most} lines`)
  const core = sum(coreFiles())
  assert.ok(core <= 3_600, `the core has ${core} lines; what only some need is a file of its own`)
  const rows: [string, number][] = [
    ['the core: what `src/http.ts` imports, without providers', core],
    ['what the core loads when something first needs it', sum(lateFiles())],
    ['what the HTTP providers share: `wire.ts` and what it imports', sum(shared)],
    ['a file of a provider, at most', 200],
    ['Bedrock, its six files together', sum(bedrock)],
  ]
  const about = (lines: number) => (Math.round(lines / 100) * 100).toLocaleString('en')
  if (process.env.UPDATE_README) {
    const width = Math.max(...rows.map(([what]) => what.length))
    const line = (a: string, b: string, c = ' ') => `| ${a.padEnd(width, c)} | ${b.padEnd(13, c)} |`
    const heads = [line('', 'lines of code'), line('', '', '-')]
    const table = [...heads, ...rows.map(([what, lines]) => line(what, about(lines)))].join('\n')
    const block = /(?<=<!-- lines -->\n)[\s\S]*?(?=<!-- lines -->)/
    const now = readme.replace(block, `\n${table}\n\n`)
    return writeFileSync(join(root, 'README.md'), now)
  }
  for (const [what, lines] of rows) {
    const cell = readme.split(`| ${what} `)[1]?.split('|')[1]?.trim() ?? 'nothing'
    const off = Math.abs(Number(cell.replaceAll(',', '')) - lines)
    const fix = 'UPDATE_README=1 node --test test/readme.test.ts writes them anew'
    assert.ok(off <= 100, `${what}: README says ${cell}, it has ${lines}. ${fix}`)
  }
})

test('the figures of the bench have their place', () => {
  assert.equal(section('As fast as the hand-written loop').match(/^<!-- bench -->$/gm)?.length, 2)
})

test('the variables of npm start are those of .env.example', () => {
  const example = read('.env.example')
  const table =
    section('Configuration of `npm start`')
      .match(/^\| .*? \|/gm)
      ?.join('') ?? ''
  const shown = new Set([...table.matchAll(/`([A-Z][A-Z0-9_]+)`/g)].map((match) => match[1]))
  for (const [, name] of example.matchAll(/^# ([A-Z][A-Z0-9_]+)=/gm))
    assert.ok(shown.has(name), name)
  for (const name of shown) assert.match(example, new RegExp(`\\b${name}\\b`))
})

for (const [row] of section('Providers').matchAll(/^\| `\w+` \|.*$/gm)) {
  const [name = '', , , , , , variables = ''] = row
    .split(' | ')
    .map((cell) => cell.replace(/^\| /, ''))
  const provider = basename(name.replaceAll('`', ''))
  test(`the table of providers names the variables that ${provider} reads`, () => {
    const files = provider === 'bedrock' ? ['bedrock', 'bedrock-client'] : [provider]
    const text = files.map((file) => read(`src/providers/${file}.ts`)).join('')
    const code = text
      .replace(/\/\/.*|\/\*[\s\S]*?\*\//g, '')
      .replace(/const sources = \[[\s\S]*?\]/, '')
    const found = code.match(
      /\b(?:AWS|BOTO3|ANTHROPIC|OPENAI|AZURE|GOOGLE|GEMINI|OLLAMA)_[A-Z_]+\b/g,
    )
    assert.deepEqual(
      [...new Set(variables.match(/[A-Z][A-Z0-9]+_[A-Z_]+/g))].sort(),
      [...new Set(found)].sort(),
    )
  })
}
