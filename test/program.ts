// Programs of the repository as child processes, kept from any network but the loopback, and what their last comment says
// they print.

import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'

const root = join(import.meta.dirname, '..')
const guard = new URL('loopback-only.ts', import.meta.url).href

type Env = Record<string, string | undefined>
export interface Ended {
  code: number | null
  stdout: string
  stderr: string
}

/** `file` is relative to the repository. Of this process' environment only what has nothing to do with us. */
export function start(file: string, args: string[] = [], env: Env = {}) {
  const { PATH, HOME, TMPDIR, NODE_V8_COVERAGE } = process.env
  const own = { PATH, HOME, TMPDIR, NODE_V8_COVERAGE, NO_COLOR: '1', ...env }
  const given = Object.fromEntries(Object.entries(own).filter(([, value]) => value !== undefined))
  return spawn(process.execPath, ['--import', guard, join(root, file), ...args], { env: given })
}

export async function ended(child: ChildProcessWithoutNullStreams): Promise<Ended> {
  const said = { stdout: '', stderr: '' }
  child.stdout.setEncoding('utf8').on('data', (text) => (said.stdout += text))
  child.stderr.setEncoding('utf8').on('data', (text) => (said.stderr += text))
  child.stdin.end()
  const timer = setTimeout(() => child.kill('SIGKILL'), 60_000)
  const [code] = await once(child, 'close')
  clearTimeout(timer)
  return { code, ...said }
}

export function runProgram(file: string, args?: string[], env?: Env): Promise<Ended> {
  return ended(start(file, args, env))
}

/** What follows `// Prints:` at the end of a file. */
export function promised(file: string): string {
  const lines = readFileSync(join(root, file), 'utf8').trimEnd().split('\n')
  const at = lines.lastIndexOf('// Prints:')
  if (at < 0) throw new Error(`${file} does not end with what it prints`)
  return lines
    .slice(at + 2)
    .map((line) => line.replace(/^\/\/ ?/, ''))
    .join('\n')
}

/** What was printed, without spaces at the ends of lines, and with `…` for whatever a promise leaves open. */
export function printed(stdout: string, promise: string): string {
  const text = stdout.trimEnd().replace(/[ \t]+$/gm, '')
  const parts = promise.split('…')
  const pattern = parts.map((part) => part.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&'))
  return new RegExp(`^${pattern.join('[^]*?')}$`).test(text) ? promise : text
}
