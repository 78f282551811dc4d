// The documents are true: every snippet compiles, every one that can runs and prints what it says, every link leads
// somewhere, every error has its page.

import assert from 'node:assert/strict'
import { existsSync, globSync, rmSync } from 'node:fs'
import { dirname, join, normalize } from 'node:path'
import { after, describe, test } from 'node:test'
import { pathToFileURL } from 'node:url'
import { format } from 'node:util'
import {
  type Checked,
  complaints,
  pages,
  promisesOf,
  proseOf,
  root,
  snippetsOf,
  textOf,
  written,
} from './snippets.ts'

const all = pages.flatMap(snippetsOf)
const code = all.filter(({ language }) => language === 'ts' || language === 'js')
const { folder, modules } = written(code)
after(() => rmSync(folder, { recursive: true, force: true }))

test('every snippet compiles', async () => {
  assert.deepEqual(await complaints(folder, modules), [])
})

describe('a snippet does what it says', () => {
  for (const snippet of modules.filter(({ words }) => !words.includes('no-run')))
    test(`${snippet.file}:${snippet.line}`, { timeout: 60_000 }, () => runs(snippet))
})

/** Runs it here, with the console listening. */
async function runs(snippet: Checked): Promise<void> {
  const printed: string[] = []
  const { log } = console
  console.log = (...args) => void printed.push(format(...args))
  try {
    await import(pathToFileURL(snippet.path).href)
  } finally {
    console.log = log
  }
  const promised = promisesOf(snippet)
  assert.deepEqual(printed, promised)
}

test('every test that the threats name is there', () => {
  const threats = textOf('docs/approvals.md').split('## Threats')[1] ?? ''
  const named = [...threats.matchAll(/`([\w/-]+)`: "(.*?)"/g)]
  assert.ok(named.length >= 24)
  for (const [, file, claim = ''] of named) {
    const found = globSync(`test/${file}{.test,}.ts`, { cwd: root })
    assert.ok(
      found.some((path) => textOf(path).includes(claim)),
      `${file}: ${claim}`,
    )
  }
})

test('every error code has its place in the troubleshooting page, and there is no other', () => {
  const union = /export type ErrorCode =\n([\s\S]*?)\n\n/.exec(textOf('src/providers/provider.ts'))
  const codes = [...(union?.[1] ?? '').matchAll(/'(\w+)'/g)].map((match) => match[1])
  const heads = [...textOf('docs/troubleshooting.md').matchAll(/^### `(\w+)`$/gm)]
  assert.deepEqual(heads.map((match) => match[1]).sort(), codes.sort())
})

test('every message that the troubleshooting page explains is one that can be printed', () => {
  const sources = globSync('{src,examples/ops-desk,scripts}/**/*.{ts,mjs}', { cwd: root })
  const code = sources
    .map(textOf)
    .join('\n')
    .replace(/' \+\s*[`']/g, '')
    .replaceAll('\\', '')
  const page = textOf('docs/troubleshooting.md').replace(/\n(?=\S)/g, ' ')
  // Of what stands in backticks: whatever has three words and is no code to type.
  const told = [...page.matchAll(/`([^`]*)`/g)].map((match) => match[1] as string)
  const messages = told.filter(
    (text) => /\S \S+ \S/.test(text) && !/^(aws|await|npm|PORT|openssl|'|\{)/.test(text),
  )
  assert.ok(messages.length > 70, `${messages.length}`)
  for (const message of messages)
    for (const piece of message.split(/\b[A-Z_]+\b|\b\d{3,}\b|"|\.\.\.|\(length\)/))
      assert.ok(code.includes(piece.trim()), `${message}: ${piece}`)
})

test('every event that is told has a row in the table, and there is no other', () => {
  const told = globSync('src/*.ts', { cwd: root }).flatMap((file) => [
    ...textOf(file).matchAll(/fact\(\s*'([A-Z]\w+)'|'(ToolCallRe\w+)'/g),
  ])
  const table = textOf('docs/tracing.md')
    .split('## Audit')[0]
    ?.match(/^\| `[^|]*\|/gm)
    ?.join('')
  const shown = [...(table ?? '').matchAll(/`([A-Z]\w+)`/g)].map((match) => match[1])
  assert.deepEqual(shown.sort(), [...new Set(told.map((m) => m[1] ?? m[2]))].sort())
})

describe('every link leads somewhere:', () => {
  for (const page of [...pages, 'examples/README.md', 'bench/README.md'])
    test(page, () => {
      for (const [, target = ''] of proseOf(page).matchAll(/\]\(([^)\s]+)\)/g)) {
        if (/^https?:/.test(target)) continue
        const [path = '', anchor] = target.split('#')
        const file = path ? normalize(join(dirname(page), path)) : page
        assert.ok(existsSync(join(root, file)), `${target}: no such file`)
        if (anchor) assert.ok(anchorsOf(file).includes(anchor), `${target}: no such heading`)
      }
    })
})

/** As GitHub makes them of headings. */
function anchorsOf(file: string): string[] {
  const heads = textOf(file)
    .replace(/^```[\s\S]*?^```$/gm, '')
    .matchAll(/^#+ (.*)$/gm)
  return [...heads].map(([, head = '']) =>
    head
      .toLowerCase()
      .replace(/[^\p{L}\p{N} _-]/gu, '')
      .replaceAll(' ', '-'),
  )
}

test('npm scripts and commands of dcaf that the pages name exist', () => {
  const { scripts } = JSON.parse(textOf('package.json'))
  const commands = textOf('src/cli.ts')
  for (const page of pages) {
    for (const [, name = ''] of textOf(page).matchAll(/npm run (?:--silent )?([\w:]+)/g))
      assert.ok(scripts[name], `${page}: npm run ${name}`)
    if (page === 'docs/from-python.md') continue // it names those of the original
    for (const [, name = ''] of textOf(page).matchAll(/(?:npx |`)dcaf ([a-z-]+)/g))
      assert.match(commands, new RegExp(`^ {2}'?${name}'?: \\{ ?`, 'm'), `${page}: dcaf ${name}`)
  }
})

test('what the image copies is there, and let through by its ignore file', () => {
  const kept = textOf('deploy/Dockerfile.dockerignore').split('\n')
  for (const [, names = ''] of textOf('deploy/Dockerfile').matchAll(/^COPY (?!--from)(.*) \S+$/gm))
    for (const name of names.split(' ')) {
      assert.ok(existsSync(join(root, name)), name)
      assert.ok(kept.includes(`!${name}`), `${name} is ignored`)
    }
})

test('what is shown as JSON is JSON, whole or line by line', () => {
  for (const { file, line, text } of all.filter(({ language }) => language === 'json')) {
    const isLines = /^\{.*\}$/m.test(text)
    for (const piece of isLines ? text.trim().split('\n') : [text])
      assert.doesNotThrow(() => JSON.parse(piece), `${file}:${line}`)
  }
})

test('Kubernetes waits longer than a drain may take', () => {
  const seconds = /terminationGracePeriodSeconds: (\d+)/.exec(textOf('deploy/kubernetes.yaml'))?.[1]
  const hardMs = /hardMs = Math\.max\(([\d_]+)/.exec(textOf('src/door.ts'))?.[1]?.replace('_', '')
  assert.ok(Number(seconds) * 1000 > Number(hardMs))
})
