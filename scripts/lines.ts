// Counts lines of code (no comments, no blanks): the core is what http.ts reaches by imports, without providers; beside
// it stands what the core loads by `import()` when something first needs it.

import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'

const root = join(import.meta.dirname, '..')

/** Lines that hold something else than a comment. Block comments in our sources start and end on lines of their own. */
export function linesOfCode(text: string): number {
  let inComment = false
  return text.split('\n').filter((raw) => {
    const line = raw.trim()
    const starts = !inComment && line.startsWith('/*')
    const comment = inComment || starts || line.startsWith('//')
    if (starts) inComment = true
    if (inComment && line.includes('*/')) inComment = false
    return line !== '' && !comment
  }).length
}

const statically = /^(?:import|export)[^;]*? from '(\.[^']+)'/gms
const later = /import\('(\.[^']+)'\)/g

/** Files under src/ that `file` reaches by static imports, itself included. Types count: they must be read too. */
export function reaches(file: string, seen = new Set<string>(), by = [statically]): Set<string> {
  if (seen.has(file)) return seen
  seen.add(file)
  const text = readFileSync(file, 'utf8')
  for (const imports of by)
    for (const [, path = ''] of text.matchAll(imports)) reaches(join(dirname(file), path), seen, by)
  return seen
}

const door = join(root, 'src/http.ts')
const ours = (files: Set<string>) => [...files].filter((f) => !f.includes('/providers/')).sort()

export function coreFiles(): string[] {
  return ours(reaches(door))
}
/** What the core loads when something first needs it. Whoever copies the core copies it too. */
export function lateFiles(): string[] {
  const core = coreFiles()
  return ours(reaches(door, new Set(), [statically, later])).filter((f) => !core.includes(f))
}

export function count(file: string): number {
  return linesOfCode(readFileSync(file, 'utf8'))
}

if (process.argv[1] === import.meta.filename) {
  const show = (title: string, files: string[]) => {
    console.log(title)
    for (const file of files)
      console.log(`${String(count(file)).padStart(6)}  ${relative(root, file)}`)
  }
  const total = (files: string[]) => {
    const sum = files.reduce((lines, file) => lines + count(file), 0)
    console.log(`${String(sum).padStart(6)}  in all\n`)
  }
  show('The core (what src/http.ts imports, without providers):', coreFiles())
  total(coreFiles())
  show('What the core loads when something first needs it:', lateFiles())
  total(lateFiles())
  const folder = join(root, 'src/providers')
  const providers = readdirSync(folder).map((name) => join(folder, name))
  show('Each file of the providers:', providers)
}
