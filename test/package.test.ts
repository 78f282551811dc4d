// What somebody gets who installs it: from a tarball and from git, in an empty folder, with plain JavaScript and with
// TypeScript. Two installs in all; where the registry cannot be reached they are skipped, but never in CI.

import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import {
  cpSync,
  globSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { promisify } from 'node:util'

const root = join(import.meta.dirname, '..')
const { exports, bin, files, dependencies } = JSON.parse(
  readFileSync(join(root, 'package.json'), 'utf8'),
)
/** A user's environment: none of what npm and the test runner started us with, but for how the registry is reached. */
const env = Object.fromEntries(
  Object.entries(process.env).filter(
    ([name]) =>
      /^npm_config_(registry|cache|userconfig|cafile|.*proxy)$/i.test(name) ||
      !/^(npm_|NODE_(V8|OPTIONS|TEST)|INIT_CWD|CI$)/i.test(name),
  ),
)

async function sh(cwd: string, command: string, args: string[]): Promise<string> {
  const run = promisify(execFile)
  const { stdout } = await run(command, args, { cwd, env, maxBuffer: 1 << 26 }).catch((error) => {
    throw new Error(`${command} ${args.join(' ')}\n${error.stdout}${error.stderr}`)
  })
  return stdout
}

async function reaches(): Promise<boolean> {
  try {
    await sh(root, 'npm', ['view', 'typebox', 'version', '--prefer-online', '--fetch-retries=0'])
    return true
  } catch (error) {
    if (/E(NOTFOUND|AI_AGAIN|CONN\w+|TIMEDOUT|NETUNREACH|HOSTUNREACH)/.test(`${error}`))
      return false
    throw error
  }
}

const registry = await reaches()
const skip =
  registry || process.env.CI ? false : 'the registry cannot be reached, so nothing can be installed'

const quiet = ['--no-audit', '--no-fund', '--prefer-offline', '--loglevel=error']

/** Every module that `exports` offers, by the name one imports. */
const modules = [
  'dcaf',
  ...['providers', 'stores', 'bridges'].flatMap((folder) =>
    globSync('*.ts', { cwd: join(root, 'src', folder) })
      .map((file) => `dcaf/${folder}/${file.replace(/\.ts$/, '')}`)
      .sort(),
  ),
]

/** Plain JavaScript, as somebody new would write it: serves one approval and says what came of it. */
const service = `
import { createServer } from 'node:http'
import { chatHandler, drain, serverOptions, tool } from 'dcaf'
import { scripted } from 'dcaf/providers/scripted'

let ran = 0
const stop = tool({
  name: 'stop', description: 'Stop it', input: '{ name: string }', requiresApproval: true,
  execute: ({ name }) => 'stopped ' + name + ', run ' + ++ran,
})
const provider = scripted([{ calls: [{ name: 'stop', input: { name: 'x' } }] }, 'Done.', 'Done before.'])
const chat = chatHandler({ name: 'ops', provider, tools: [stop] })
const server = createServer(serverOptions, async (req, res) => {
  if (!(await chat(req, res))) res.writeHead(404).end()
})
await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
const ask = async (...messages) => {
  const url = 'http://127.0.0.1:' + server.address().port + '/api/chat'
  const headers = { 'content-type': 'application/json' }
  return (await fetch(url, { method: 'POST', headers, body: JSON.stringify({ messages }) })).json()
}
const question = { role: 'user', content: 'stop x' }
const asked = await ask(question)
const [call] = asked.data.tool_calls
const yes = { role: 'user', content: '', data: { tool_calls: [{ ...call, execute: true }] } }
const done = await ask(question, asked, yes)
const again = await ask(question, asked, yes)
console.log(JSON.stringify({
  pending: call.name,
  before: asked.data.executed_tool_calls.length,
  output: done.data.executed_tool_calls[0].output,
  again: again.data.executed_tool_calls[0].output,
  content: done.content,
  ran,
}))
await drain(server, chat)
`

/** What types must hold, and what they must refuse. */
const typed = `
import { approveAll, chatHandler, resume, run, tool, type Agent, type Store } from 'dcaf'
${modules.map((name, i) => `import * as m${i} from '${name}'`).join('\n')}
const one = tool({
  name: 'one', description: 'One', input: '{ n: number, unit?: "c" | "f" }',
  execute: ({ n, unit }) => {
    const right: [number, 'c' | 'f' | undefined] = [n, unit]
    // @ts-expect-error
    const wrong: string = n
    return [right, wrong]
  },
})
const agent: Agent = { name: 'x', provider: m0.noUsage as never, tools: [one] }
let result = await run(agent, { messages: 'x' })
if (result.needsApproval) result = await resume(agent, result, approveAll(result))
// @ts-expect-error
const wrong: number = result.text
export const store: Store = m0.memoryStore()
export default [chatHandler, wrong, ${modules.map((_, i) => `m${i}`).join(', ')}]
`

describe('installed from a tarball', { skip }, () => {
  let folder = ''
  let home = ''
  before(async () => {
    home = mkdtempSync(join(tmpdir(), 'dcaf-pack-'))
    const copy = join(home, 'copy')
    for (const name of [
      'package.json',
      'README.md',
      'LICENSE',
      'scripts',
      'src',
      ...files.slice(2),
    ])
      cpSync(join(root, name), join(copy, name), { recursive: true })
    for (const name of globSync('tsconfig*.json', { cwd: root }))
      cpSync(join(root, name), join(copy, name))
    symlinkSync(join(root, 'node_modules'), join(copy, 'node_modules'))
    await sh(copy, 'npm', ['pack', '--loglevel=error', '--pack-destination', home])
    folder = join(home, 'app')
    cpSync(join(copy, 'LICENSE'), join(folder, 'LICENSE')) // makes the folder
    writeFileSync(join(folder, 'package.json'), '{ "type": "module", "private": true }')
    const [tarball = ''] = globSync('*.tgz', { cwd: home })
    await sh(folder, 'npm', ['install', ...quiet, join(home, tarball)])
  })
  after(() => rmSync(home, { recursive: true, force: true }))

  test('serves one approval from plain JavaScript, and runs it once', async () => {
    writeFileSync(join(folder, 'service.js'), service)
    assert.deepEqual(JSON.parse(await sh(folder, process.execPath, ['service.js'])), {
      pending: 'stop',
      before: 0,
      output: 'stopped x, run 1',
      again: 'stopped x, run 1',
      content: 'Done.',
      ran: 1,
    })
  })

  test('every module of the exports map can be imported, and nothing beside them', async () => {
    const names = JSON.stringify([...modules, 'dcaf/package.json', 'dcaf/dist/index.js'])
    writeFileSync(
      join(folder, 'all.js'),
      `const said = {}
for (const name of ${names}) {
  const json = name.endsWith('.json') ? { with: { type: 'json' } } : undefined
  said[name] = await import(name, json).then((m) => Object.keys(m).length > 0 ? 'ok' : 'empty', (e) => e.code)
}
console.log(JSON.stringify(said))`,
    )
    const said = JSON.parse(await sh(folder, process.execPath, ['all.js']))
    const wanted = [...modules, 'dcaf/package.json'].map((name) => [name, 'ok'])
    assert.deepEqual(said, {
      ...Object.fromEntries(wanted),
      'dcaf/dist/index.js': 'ERR_PACKAGE_PATH_NOT_EXPORTED',
    })
  })

  test('exports name every folder of src/ that holds what one imports by itself', () => {
    assert.deepEqual(Object.keys(exports), [
      '.',
      './providers/*',
      './stores/*',
      './bridges/*',
      './package.json',
    ])
    const folders = new Set(globSync('*/', { cwd: join(root, 'src') }))
    assert.deepEqual([...folders].sort(), ['bridges', 'cli', 'providers', 'stores'])
  })

  for (const resolution of ['nodenext', 'bundler'])
    test(`a TypeScript program compiles against it (${resolution})`, async () => {
      writeFileSync(join(folder, 'typed.ts'), typed)
      const options = {
        target: 'esnext',
        module: resolution === 'bundler' ? 'esnext' : 'nodenext',
        moduleResolution: resolution,
        strict: true,
        noEmit: true,
        skipLibCheck: resolution === 'bundler', // once is enough for the library's own declarations
        types: ['node'],
        typeRoots: [join(root, 'node_modules/@types')],
      }
      const config = join(folder, `tsconfig.${resolution}.json`)
      writeFileSync(config, JSON.stringify({ compilerOptions: options, files: ['typed.ts'] }))
      await sh(folder, join(root, 'node_modules/.bin/tsc'), ['-p', config])
    })

  test('has the command, the three dependencies and no other package of ours', async () => {
    assert.match(await sh(folder, 'node_modules/.bin/dcaf', ['--help']), /^Usage: dcaf COMMAND/)
    assert.deepEqual(Object.keys(bin), ['dcaf'])
    assert.deepEqual(Object.keys(dependencies).sort(), [
      '@aws-sdk/client-bedrock-runtime',
      'typebox',
      'undici',
    ])
    const installed = JSON.parse(
      readFileSync(join(folder, 'node_modules/.package-lock.json'), 'utf8'),
    )
    assert.ok(Object.keys(installed.packages).length <= 35, 'more than 35 packages')
  })

  test('ships the sources that its source maps point to', () => {
    const inside = join(folder, 'node_modules/dcaf')
    for (const map of globSync('dist/**/*.map', { cwd: inside }))
      for (const source of JSON.parse(readFileSync(join(inside, map), 'utf8')).sources)
        assert.ok(globSync(join(inside, map, '..', source)).length === 1, `${map}: ${source}`)
  })
})

test('installed from a git URL it builds itself and serves one approval', { skip }, async (t) => {
  const home = mkdtempSync(join(tmpdir(), 'dcaf-git-'))
  t.after(() => rmSync(home, { recursive: true, force: true }))
  const clone = join(home, 'clone')
  const folder = join(home, 'app')
  await sh(home, 'git', [
    'clone',
    '--quiet',
    '--no-hardlinks',
    '--depth',
    '1',
    `file://${root}`,
    clone,
  ])
  cpSync(join(root, 'LICENSE'), join(folder, 'LICENSE'))
  writeFileSync(join(folder, 'package.json'), '{ "type": "module", "private": true }')
  await sh(folder, 'npm', ['install', ...quiet, `git+file://${clone}`])
  writeFileSync(join(folder, 'service.js'), service)
  const { output, ran } = JSON.parse(await sh(folder, process.execPath, ['service.js']))
  assert.deepEqual({ output, ran }, { output: 'stopped x, run 1', ran: 1 })
})
