// The test command: every test/**/*.test.ts with the coverage gate over src/; `--faults` runs the long counts instead.
import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

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
  ...(faults
    ? ['test/faults/**/*.test.ts', 'test/model.test.ts']
    : files.length > 0
      ? files
      : ['test/**/*.test.ts']),
]
const table = join(tmpdir(), `dcaf-faults-${process.pid}.ndjson`)
const env = {
  ...process.env,
  ...(faults && { DCAF_FAULTS: process.env.DCAF_FAULTS ?? '1', DCAF_FAULTS_TABLE: table }),
}
delete env.NODE_OPTIONS
const { status, error } = spawnSync(process.execPath, args, { stdio: 'inherit', env })
if (existsSync(table)) {
  const rows = readFileSync(table, 'utf8')
    .trim()
    .split('\n')
    .map((text) => JSON.parse(text))
  rmSync(table)
  const width = Math.max(...rows.map((row) => row.name.length))
  const line = (name, tried, failed, more) =>
    console.log(`${name.padEnd(width)}  ${tried.padStart(8)}  ${failed.padStart(6)}  ${more}`)
  line('case', 'tried', 'failed', '')
  for (const { name, tried, failed, more } of rows) line(name, `${tried}`, `${failed}`, more)
}
if (error) throw error
process.exitCode = status ?? 1
