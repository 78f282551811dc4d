// Runs Node with the given arguments in place of this process, so that a signal to npm reaches the server and not a
// shell before it. Checks the version first; plain JavaScript, so that an old Node can say what it misses.
import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import './node-version.mjs'

// `--dotenv` becomes Node's own flag here: given to this process too, Node would read it, wherever it stands, and say on
// stderr that an optional file is not there.
const args = process.argv.slice(2).flatMap((arg) => {
  if (arg !== '--dotenv') return [arg]
  return existsSync('.env') ? ['--env-file-if-exists=.env'] : []
})
if (process.execve && process.platform !== 'win32') {
  process.emitWarning = () => {} // execve is still marked experimental
  process.execve(process.execPath, [process.execPath, ...args], process.env)
}
const child = spawn(process.execPath, args, { stdio: 'inherit' })
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => child.kill(signal))
child.on('exit', (code, signal) => {
  process.exitCode = code ?? (signal ? 1 : 0)
})
