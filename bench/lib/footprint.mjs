// What `npm install` of a package brings: the closure of its dependencies on disk, as bytes of files and as packages.

import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs'
import { dirname, join } from 'node:path'

/** `from`: a directory with node_modules. The names' peers count where npm would install them too. */
export function footprint(names, from) {
  const seen = new Map()
  for (const name of names) visit(name, from, seen, false)
  let bytes = 0
  for (const dir of seen.values()) bytes += sizeOf(dir)
  return { bytes, packages: seen.size }
}

export function dependenciesOf(dir) {
  return Object.keys(JSON.parse(readFileSync(join(dir, 'package.json'), 'utf8')).dependencies ?? {})
}

function visit(name, from, seen, optional) {
  const dir = find(name, from)
  if (!dir) {
    if (optional) return
    throw new Error(`${name} is not installed in ${from}`)
  }
  const json = JSON.parse(readFileSync(join(dir, 'package.json'), 'utf8'))
  // Copies are there because rivals share one folder: alone, npm would install one.
  const copy = `${json.name}@${json.version}`
  if (seen.has(copy)) return
  seen.set(copy, dir)
  for (const dependency of Object.keys(json.dependencies ?? {}))
    visit(dependency, dir, seen, json.optionalDependencies?.[dependency])
  for (const dependency of Object.keys(json.optionalDependencies ?? {}))
    visit(dependency, dir, seen, true)
  for (const peer of Object.keys(json.peerDependencies ?? {}))
    if (!json.peerDependenciesMeta?.[peer]?.optional) visit(peer, dir, seen, true)
}

function find(name, from) {
  for (let dir = from; ; dir = dirname(dir)) {
    const path = join(dir, 'node_modules', name)
    if (existsSync(join(path, 'package.json'))) return path
    if (dir === dirname(dir)) return undefined
  }
}

/** Without what is nested in it: that is counted where it is needed. */
export function sizeOf(dir) {
  let bytes = 0
  for (const entry of readdirSync(dir, { withFileTypes: true })) {
    if (entry.name === 'node_modules') continue
    const path = join(dir, entry.name)
    if (entry.isDirectory()) bytes += sizeOf(path)
    else if (entry.isFile()) bytes += statSync(path).size
  }
  return bytes
}
