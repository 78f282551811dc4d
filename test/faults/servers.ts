// A Redis and a PostgreSQL of our own, on a port and in a folder that nobody else uses, to be killed and started again.
// Where the programs are missing, `undefined`.

import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { chownSync, mkdtempSync, rmSync } from 'node:fs'
import { type AddressInfo, connect, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { postgresStore } from '../../src/stores/postgres.ts'
import type { Where } from './worlds.ts'

export interface OwnServer {
  where: Where
  /** As a crash: it writes nothing any more. */
  crash(): Promise<void>
  start(): Promise<void>
  close(): Promise<void>
}

export async function ownRedis(): Promise<OwnServer | undefined> {
  if (spawnSync('redis-server', ['--version']).error) return undefined
  const port = await freePort()
  const args = ['--port', `${port}`, '--bind', '127.0.0.1', '--save', '', '--appendonly', 'yes']
  const safe = ['--appendfsync', 'always', '--maxmemory-policy', 'noeviction']
  const where: Where = { kind: 'redis', url: `redis://127.0.0.1:${port}`, prefix: 'dcaf:' }
  return ownServer(port, where, 'SIGKILL', (folder) =>
    spawn('redis-server', [...args, ...safe, '--dir', folder], { stdio: 'ignore' }),
  )
}

/** Run as its own user: it refuses to be run by root. */
export async function ownPostgres(): Promise<OwnServer | undefined> {
  const bin = spawnSync('pg_config', ['--bindir'], { encoding: 'utf8' }).stdout?.trim()
  const env = { ...process.env, LC_ALL: 'C', PATH: [bin, process.env.PATH].join(delimiter) }
  if (spawnSync('initdb', ['--version'], { env }).error) return undefined
  const isRoot = process.getuid?.() === 0
  const ids = idsOf('postgres')
  if (isRoot && !ids) return undefined
  const user: Partial<Ids> = isRoot && ids ? ids : {}
  const port = await freePort()
  const url = `postgres://dcaf@127.0.0.1:${port}/postgres`
  const init = (folder: string) => {
    if (isRoot && ids) chownSync(folder, ids.uid, ids.gid)
    const args = ['-D', join(folder, 'db'), '-A', 'trust', '-U', 'dcaf', '--no-sync']
    const { status, stderr } = spawnSync('initdb', args, { env, cwd: folder, ...user })
    if (status !== 0) throw new Error(`initdb: ${stderr}`)
  }
  const flags = ['-p', `${port}`, '-h', '127.0.0.1', '-k', '']
  const where: Where = { kind: 'postgres', url, table: 'dcaf_store' }
  // SIGQUIT: ends without a checkpoint, and with its children, which kill -9 would leave behind
  const server = await ownServer(
    port,
    where,
    'SIGQUIT',
    (folder) =>
      spawn('postgres', ['-D', join(folder, 'db'), ...flags], {
        env,
        cwd: folder,
        stdio: 'ignore',
        ...user,
      }),
    init,
  )
  const { Pool } = await import('pg')
  const pool = new Pool({ connectionString: url })
  for (let tries = 0; ; tries++) {
    try {
      await postgresStore((text, values) => pool.query(text, values)).createTable()
      break
    } catch (error) {
      if (tries === 50) throw error
      await sleep(100) // it listens before it takes anybody
    }
  }
  await pool.end()
  return server
}

async function ownServer(
  port: number,
  where: Where,
  crashBy: NodeJS.Signals,
  spawned: (folder: string) => ChildProcess,
  init: (folder: string) => void = () => {},
): Promise<OwnServer> {
  const folder = mkdtempSync(join(tmpdir(), 'dcaf-server-'))
  let child: ChildProcess | undefined
  const crash = async () => {
    if (!child) return
    const exit = once(child, 'exit')
    child.kill(crashBy)
    child = undefined
    await exit
  }
  const start = async () => {
    child = spawned(folder)
    while (!(await accepts(port))) await sleep(20)
  }
  const close = async () => {
    await crash()
    rmSync(folder, { recursive: true, force: true })
  }
  process.on('exit', () => child?.kill('SIGKILL'))
  try {
    init(folder)
    await start()
  } catch (error) {
    await close()
    throw error
  }
  return { where, crash, start, close }
}

function accepts(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1')
    socket.on('connect', () => resolve(true)).on('error', () => resolve(false))
    socket.on('connect', () => socket.destroy())
  })
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  return port
}

type Ids = { uid: number; gid: number }
function idsOf(name: string): Ids | undefined {
  const [uid, gid] = ['-u', '-g'].map((flag) =>
    Number.parseInt(spawnSync('id', [flag, name], { encoding: 'utf8' }).stdout, 10),
  ) as [number, number]
  return Number.isNaN(uid) ? undefined : { uid, gid }
}
