// The test command: every test/**/*.test.ts with the coverage gate over src/; `--faults` runs the long counts instead.
import { spawnSync } from 'node:child_process'

const faults = process.argv.includes('--faults')
const files = process.argv.slice(2).filter((arg) => !arg.startsWith('--'))
const gate = [
  '--experimental-test-coverage',
  '--test-coverage-include=src/**',
  '--test-coverage-lines=95',
  '--test-coverage-branches=90',
]
const args = [
  '--test',
  '--test-timeout=300000',
  ...(faults || files.length > 0 ? [] : gate),
  ...(faults ? ['test/faults/**/*.test.ts'] : files.length > 0 ? files : ['test/**/*.test.ts']),
]
const env = { ...process.env, ...(faults && { DCAF_FAULTS: process.env.DCAF_FAULTS ?? '1' }) }
delete env.NODE_OPTIONS
const { status, error } = spawnSync(process.execPath, args, { stdio: 'inherit', env })
if (error) throw error
process.exitCode = status ?? 1
