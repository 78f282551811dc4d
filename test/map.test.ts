// Imports point down. The map is in README; an arrow that is not in it fails here.

import assert from 'node:assert/strict'
import { globSync, readFileSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import { test } from 'node:test'

const src = join(import.meta.dirname, '../src')
const free = [
  'providers/provider',
  'mask',
  'store',
  'schema',
  'session',
  'tool',
  'proof',
  'approval',
  'messages',
  'agent',
]
const allowed: Record<string, string[]> = {
  'providers/provider': [],
  store: ['providers/provider'],
  load: [],
  schema: [],
  session: ['providers/provider', 'schema'],
  mask: ['providers/provider'],
  tool: ['providers/provider', 'schema', 'session'],
  proof: ['providers/provider', 'store', 'tool'],
  approval: [
    'providers/provider',
    'approvers',
    'fresh',
    'ledger',
    'load',
    'mask',
    'opinions',
    'proof',
    'schema',
    'tool',
    'trust',
  ],
  approvers: ['providers/provider', 'approval', 'ledger', 'proof', 'tool'],
  fresh: ['approval', 'ledger', 'proof', 'tool'],
  ledger: ['approval', 'proof', 'store'],
  opinions: ['approval', 'proof', 'tool'],
  trust: ['approval', 'ledger', 'proof', 'tool'],
  messages: ['providers/provider', 'approval', 'proof'],
  agent: [
    ...['providers/provider', 'approval', 'mask', 'messages', 'proof', 'session', 'store', 'tool'],
    ...['children', 'ending', 'facts', 'hearing', 'interceptors', 'load', 'sealing'],
  ],
  protocol: ['providers/provider', 'schema', 'tool'],
  http: [
    'providers/provider',
    'agent',
    'approval',
    'function',
    'log',
    'mask',
    'messages',
    'proof',
    'protocol',
    'router',
    'session',
    'sessions',
    'store',
    'tool',
  ],
  strays: ['agent', 'approval', 'ending', 'hearing', 'messages'],
  ending: ['agent', 'approval', 'hearing', 'load', 'sealing'],
  hearing: ['agent', 'approval', 'load', 'messages', 'strays'],
  function: ['agent', 'http', 'mask'],
  log: ['providers/provider', 'agent', 'http', 'mask', 'tool'],
  router: ['http', 'protocol', 'tool'],
  seal: ['proof'],
  sealing: ['agent', 'approval', 'proof', 'seal', 'store'],
  sessions: ['http', 'mask', 'proof', 'protocol', 'seal', 'session'],
}
/** What one may leave out stands on the core and on nothing beside it. */
const optional = [...free, 'http', 'protocol']

const files = globSync('**/*.ts', { cwd: src }).map((file) => file.replace(/\.ts$/, ''))

function importsOf(file: string): { path: string; typeOnly: boolean }[] {
  const text = readFileSync(join(src, `${file}.ts`), 'utf8')
  const found = text.matchAll(
    /^(import|export)( type)?[^;]*?from '(\.[^']+)\.ts'|import\('(\.[^']+)\.ts'\)/gms,
  )
  return [...found].map(([, , type, path, dynamic]) => ({
    path: relative(src, join(src, dirname(file), path ?? dynamic ?? '')),
    typeOnly: type !== undefined,
  }))
}

for (const file of files.filter((name) => name !== 'index' && !name.startsWith('cli')))
  test(`src/${file}.ts imports only what lies below it`, () => {
    for (const { path, typeOnly } of importsOf(file)) {
      const inside = dirname(file)
      const ours =
        allowed[file]?.includes(path) ??
        (inside === 'providers'
          ? path.startsWith('providers/') || (typeOnly && path === 'tool')
          : path === 'providers/provider' ||
            path.startsWith(`${inside}/`) ||
            optional.includes(path))
      assert.ok(ours, `${file} -> ${path}`)
    }
  })

test('only bedrock loads the AWS SDK, only the wire loads undici, and only by name', () => {
  const users = (name: string) =>
    files.filter((file) =>
      new RegExp(`(from|import\\() ?'${name}`).test(readFileSync(join(src, `${file}.ts`), 'utf8')),
    )
  assert.ok(users('@aws-sdk/').every((file) => file.startsWith('providers/bedrock')))
  assert.ok(users('undici').every((file) => file.startsWith('providers/')))
})

test('index.ts is the only barrel, and it loads no provider', () => {
  const barrels = files.filter((file) =>
    /^export \*/m.test(readFileSync(join(src, `${file}.ts`), 'utf8')),
  )
  assert.deepEqual(barrels, ['index'])
  const reached = importsOf('index').map(({ path }) => path)
  assert.deepEqual(
    reached.filter((path) => /^(providers|stores|bridges)\//.test(path)),
    ['providers/provider'],
  )
})
