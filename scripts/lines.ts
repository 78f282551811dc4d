// Counts lines of code (no comments, no blanks): the core is what http.ts reaches by imports, without providers.

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

/** Files under src/ that `file` reaches by static imports, itself included. Types count: they must be read too. */
export function reaches(file: string, seen = new Set<string>()): Set<string> {
  if (seen.has(file)) return seen
  seen.add(file)
  for (const [, path = ''] of readFileSync(file, 'utf8').matchAll(
    /^(?:import|export)[^;]*? from '(\.[^']+)'/gms,
  ))
    reaches(join(dirname(file), path), seen)
  return seen
}

export function coreFiles(): string[] {
  return [...reaches(join(root, 'src/http.ts'))]
    .filter((file) => !file.includes('/providers/'))
    .sort()
}

export function count(file: string): number {
  return linesOfCode(readFileSync(file, 'utf8'))
}

if (process.argv[1] === import.meta.filename) {
  const show = (files: string[]) => {
    for (const file of files)
      console.log(`${String(count(file)).padStart(6)}  ${relative(root, file)}`)
  }
  console.log('The core (what src/http.ts reaches, without providers):')
  const core = coreFiles()
  show(core)
  console.log(
    `${String(core.reduce((sum, file) => sum + count(file), 0)).padStart(6)}  in all\n\nEach provider:`,
  )
  const folder = join(root, 'src/providers')
  show(readdirSync(folder).map((name) => join(folder, name)))
}
