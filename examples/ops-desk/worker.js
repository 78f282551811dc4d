// One harmless worker: it writes a line to its log now and then, and ends when it is told to or when whoever started
// it is gone. Plain JavaScript, so that a restart costs no type stripping. Run by workers.ts: node worker.js NAME

import { fstatSync, ftruncateSync } from 'node:fs'

const name = process.argv[2] ?? 'worker'
const jobs = name.startsWith('db-')
  ? ['checkpoint complete', 'vacuum: nothing to do', 'query took 3 ms', '4 connections open']
  : [
      'GET /health 200 1 ms',
      'GET /orders 200 12 ms',
      'POST /orders 201 24 ms',
      'cache hit rate 97 %',
    ]
let turn = 0

function log(text) {
  // stdout is the log file, opened for appending: emptied at 1 MiB, so that it never fills a disk.
  if (fstatSync(1).isFile() && fstatSync(1).size > 2 ** 20) ftruncateSync(1)
  console.log(`${new Date().toISOString()} ${name}[${process.pid}] ${text}`)
}

// The pipe to whoever started it: it closes when that process ends, however it ends.
process.stdin.on('end', () => process.exit(0)).resume()
process.on('SIGTERM', () => {
  log('SIGTERM: finished, bye')
  process.exit(0)
})
// Ctrl-C in a terminal goes to the whole group; the one who started it decides, by SIGTERM.
process.on('SIGINT', () => {})

log('ready')
setInterval(() => log(jobs[turn++ % jobs.length]), 5_000)
