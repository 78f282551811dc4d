// The ops desk: an agent in charge of three harmless processes, served on http://127.0.0.1:8000, with a page to talk
// to it. It restarts or stops one only after a person approved exactly that call. `npm start`; variables: .env.example

import { once } from 'node:events'
import { createServer, type Server } from 'node:http'
import { type AddressInfo, isIPv6 } from 'node:net'
import { inspect } from 'node:util'
import { drain, onSignals, serverOptions, withHeaderLimit, withHostCheck } from '../../src/door.ts'
import { chatHandler } from '../../src/http.ts'
import { type Agent, DcafError, type Provider } from '../../src/index.ts'
import { providerFromEnv } from '../../src/providers/env.ts'
import { type Config, ConfigError, readConfig } from './config.ts'
import { jsonLog } from './log.ts'
import { offline } from './offline.ts'
import { pages } from './pages.ts'
import { openStore } from './stores.ts'
import { deskTools } from './tools.ts'
import { startWorkers } from './workers.ts'

async function start(): Promise<void> {
  const config = readConfig(process.env)
  const provider: Provider =
    config.provider === 'offline' ? offline() : await providerFromEnv(process.env)
  const log = jsonLog(config.logLevel, (line) => process.stderr.write(line))
  const { store, close } = await openStore(config.store, log)
  const workers = await startWorkers()
  process.on('exit', () => workers.end()) // however this process ends, they end with it

  const tools = deskTools(workers, {
    effects: config.effects,
    pinPid: config.store.kind === 'memory',
  })
  const ops: Agent = {
    name: 'ops-desk',
    description: 'Looks after the worker processes of this machine.',
    provider,
    system:
      'You operate the worker processes of one machine with the tools you have. Look before you act. ' +
      'Restarting and stopping wait for a person: call the tool, do not ask for permission in words. ' +
      'What was rejected stays undone. Answer briefly.',
    tools,
  }
  const chat = chatHandler(ops, { keys: config.keys, store, log })
  const page = pages(ops)
  const routes = withHeaderLimit(async (req, res) => page(req, res) || (await chat(req, res)))
  // On the loopback only pages of the loopback may call: no other site can point its name here.
  const isLocal = /^(127\.|::1$|localhost$)/.test(config.host)
  const handle = isLocal ? withHostCheck(routes) : routes
  const server = createServer(serverOptions, async (req, res) => {
    if (await handle(req, res)) return
    res.writeHead(404, { 'content-type': 'text/plain' }).end('Not found. The page is at /\n')
  })
  await listen(server, config)

  onSignals(server, chat, {
    finish: async (drained) => {
      log({ level: 'info', event: 'stopped', ...drained })
      await close()
    },
  })
  endWithNpm()
  // Nobody knows what state this is: finish what runs, and let whoever watches over the process start it again.
  process.once('uncaughtException', async (error) => {
    log({ level: 'error', event: 'uncaught', message: inspect(error) })
    await drain(server, chat)
    process.exit(1)
  })
  if (!isLocal)
    log({ level: 'warn', event: 'open', message: `Whoever reaches ${config.host} can approve` })
  tellReady(server, config, provider)
}

/** A SIGTERM to npm ends the shell between npm and us, which tells nobody: being orphaned is our signal then. */
function endWithNpm(): void {
  if (process.env.npm_lifecycle_event === undefined) return
  const parent = process.ppid
  const watch = setInterval(() => {
    if (process.ppid === parent) return
    clearInterval(watch)
    process.kill(process.pid, 'SIGTERM')
  }, 250)
  watch.unref()
}

async function listen(server: Server, { host, port }: Config): Promise<void> {
  try {
    await once(server.listen(port, host), 'listening')
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    const why =
      code === 'EADDRINUSE'
        ? `port ${port} is in use; set PORT to another one, or to 0 for any`
        : code === 'EACCES'
          ? `port ${port} needs more rights; set PORT to one from 1024`
          : `HOST must be an address of this machine (${code})`
    throw new ConfigError(`Cannot listen on ${host}:${port}: ${why}`)
  }
}

/** The one line on stdout. */
function tellReady(server: Server, { host }: Config, provider: Provider): void {
  const { port } = server.address() as AddressInfo
  const reachable = host === '0.0.0.0' ? '127.0.0.1' : host === '::' ? '[::1]' : host
  const name = isIPv6(reachable) ? `[${reachable}]` : reachable
  process.stdout.write(
    `Ops desk on http://${name}:${port} (model: ${provider.name}, ${provider.model}). ` +
      'Open it and try "list processes", then "restart web-1".\n',
  )
}

start().catch((error: unknown) => {
  // What whoever started it can mend is one sentence; all else is a fault of ours, and shown whole.
  const isTheirs = error instanceof ConfigError || error instanceof DcafError
  process.stderr.write(`${isTheirs ? error.message : inspect(error)}\n`)
  process.exit(1)
})
