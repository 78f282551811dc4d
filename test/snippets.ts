// What README and docs show, taken out of the Markdown to be compiled and run. Conventions of a fence: `ts` and `js` are
// compiled, all in one run of tsc, and run unless the word `no-run` follows. A comment behind or below `console.log(...)`
// is a claim about what it prints. `<!-- given ... -->` right before a fence is code that a reader can imagine: it is put before it.

import { execFile } from 'node:child_process'
import { globSync, mkdtempSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

export const root = join(import.meta.dirname, '..')

export interface Snippet {
  /** Relative to the root. */
  file: string
  /** Of the first line of `text`, from 1. */
  line: number
  language: string
  words: string[]
  text: string
  given: string
}

/** What we say of ourselves, relative to the root. The snippets of examples/ and bench/ are their own tests' matter. */
export const pages = [
  'README.md',
  'CHANGELOG.md',
  'CONTRIBUTING.md',
  'SECURITY.md',
  ...globSync('docs/*.md', { cwd: root }).sort(),
]

export function textOf(file: string): string {
  return readFileSync(join(root, file), 'utf8')
}

export function snippetsOf(file: string): Snippet[] {
  const text = textOf(file)
  const fences = text.matchAll(
    /(?:<!-- given\n(?<given>[\s\S]*?)-->\n+)?^```(?<info>[^\n]*)\n(?<body>[\s\S]*?)^```$/gm,
  )
  return [...fences].map(({ index, 0: all, groups = {} }) => {
    const { info = '', body = '', given = '' } = groups
    const [language = '', ...words] = info.trim().split(/\s+/)
    const before = text.slice(0, index + all.length - body.length - 3)
    return { file, line: before.split('\n').length, language, words, text: body, given }
  })
}

/** Prose only: no fences, no comments, no code in backticks. */
export function proseOf(file: string): string {
  return textOf(file)
    .replace(/^```[\s\S]*?^```$/gm, '')
    .replace(/<!--[\s\S]*?-->/g, '')
    .replace(/`[^`\n]*`/g, '')
}

/** What a snippet says it prints: behind a `console.log(...)`, or in the lines of comment that follow it. */
export function promisesOf({ text }: Snippet): string[] {
  const found = text.matchAll(/^.*console\.log\(.*\)(?: \/\/ (.*))?\n((?:\/\/ .*\n)*)/gm)
  return [...found].flatMap(([, beside, below = '']) => [
    ...(beside === undefined ? [] : [beside]),
    ...[...below.matchAll(/^\/\/ (.*)$/gm)].map((match) => match[1] as string),
  ])
}

export interface Checked extends Snippet {
  /** The module that stands for it. */
  path: string
}

/** Writes each snippet as a module of its own into a new folder, with `dcaf` leading to src/. */
export function written(snippets: Snippet[]): { folder: string; modules: Checked[] } {
  const folder = mkdtempSync(join(tmpdir(), 'dcaf-docs-'))
  symlinkSync(join(root, 'node_modules'), join(folder, 'node_modules'))
  writeFileSync(join(folder, 'package.json'), '{ "type": "module" }')
  const modules = snippets.map((snippet) => {
    const { file, line, language, given, text } = snippet
    const path = join(folder, `${file.replace(/\W+/g, '_')}_${line}.${language}`)
    writeFileSync(path, toSource(`${given}${text}\nexport {}\n`))
    return { ...snippet, path }
  })
  return { folder, modules }
}

export function toSource(text: string): string {
  const src = join(root, 'src')
  return text.replace(
    /(from |import\()'dcaf(\/[\w/-]+)?'/g,
    (_, how, path = '/index') => `${how}'${src}${path}.ts'`,
  )
}

/** All complaints of one run of tsc, at the lines of the pages. */
export async function complaints(folder: string, modules: Checked[]): Promise<string[]> {
  const config = {
    extends: join(root, 'tsconfig.json'),
    compilerOptions: {
      allowJs: true,
      checkJs: true,
      lib: ['esnext'],
      noUnusedLocals: false,
      noUnusedParameters: false,
      rewriteRelativeImportExtensions: false,
      typeRoots: [join(root, 'node_modules/@types')],
    },
    include: ['./*.ts', './*.js'],
  }
  writeFileSync(join(folder, 'tsconfig.json'), JSON.stringify(config))
  const out = await new Promise<string>((resolve) => {
    const tsc = join(root, 'node_modules/.bin/tsc')
    const args = ['-p', folder, '--pretty', 'false']
    execFile(tsc, args, { cwd: folder, maxBuffer: 1 << 26 }, (error, stdout, stderr) =>
      resolve(error ? stdout + stderr || String(error) : ''),
    )
  })
  if (out === '') return []
  const lines = out.split('\n').filter((line) => line !== '')
  return lines.map((said) => {
    const [, name = '', line = '', rest = ''] = /^(\S+?)\((\d+),\d+\): (.*)$/.exec(said) ?? []
    const found = modules.find(({ path }) => path.endsWith(`/${name}`))
    if (!found) return said
    const before = found.given.split('\n').length - 1
    return `${found.file}:${found.line - 1 + Number(line) - before}: ${rest}`
  })
}
