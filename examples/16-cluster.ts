// Several processes over one store: whichever of them gets an approval can redeem it, and it runs
// once. Three workers share a port and one SQLite file; the same approval is then sent nine times
// at once. On several machines the store is Redis or PostgreSQL (dcaf/stores/*), and nothing else
// changes.

import cluster from 'node:cluster'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { chatHandler, tool } from '../src/index.ts'
import { scripted } from '../src/providers/scripted.ts'
import { sqliteStore } from '../src/stores/sqlite.ts'

const { FOLDER = '', DCAF_KEY } = process.env

function work(): void {
  const reboot = tool({
    name: 'reboot',
    description: 'Reboot the machine',
    input: '{}',
    requiresApproval: true,
    async execute() {
      console.log('rebooting')
      await sleep(100) // meanwhile the other eight come in
      return 'rebooted'
    },
  })
  const provider = scripted(({ messages }) =>
    messages.length === 1 ? { calls: [{ name: 'reboot' }] } : 'It is back.',
  )
  const store = sqliteStore(join(FOLDER, 'dcaf.db'))
  const chat = chatHandler({ name: 'ops', provider, tools: [reboot] }, { store, keys: [DCAF_KEY] })
  createServer(async (req, res) => {
    res.setHeader('x-worker', `${cluster.worker?.id}`)
    if (!(await chat(req, res))) res.writeHead(404).end()
  }).listen(0, '127.0.0.1')
}

async function lead(): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'dcaf-'))
  const env = { FOLDER: folder, DCAF_KEY: randomBytes(32).toString('base64') }
  const workers = [cluster.fork(env), cluster.fork(env), cluster.fork(env)]
  const [[address] = []] = await Promise.all(workers.map((worker) => once(worker, 'listening')))

  const post = async (...messages: object[]) => {
    const response = await fetch(`http://127.0.0.1:${address.port}/api/chat`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ messages }),
    })
    type Answer = { data: { tool_calls: object[] } }
    return [(await response.json()) as Answer, response.headers.get('x-worker')] as const
  }
  const question = { role: 'user', content: 'Reboot' }
  const [answer] = await post(question)
  const tool_calls = answer.data.tool_calls.map((call) => ({ ...call, execute: true }))
  const yes = { role: 'user', content: '', data: { tool_calls } }
  const answers = await Promise.all(Array.from({ length: 9 }, () => post(question, answer, yes)))

  console.log('sent 9 times, to workers:', new Set(answers.map(([, worker]) => worker)).size)
  for (const worker of workers) worker.kill()
  await Promise.all(workers.map((worker) => once(worker, 'exit')))
  await rm(folder, { recursive: true })
}

await (cluster.isPrimary ? lead() : work())

// Prints:
//
// rebooting
// sent 9 times, to workers: 3
