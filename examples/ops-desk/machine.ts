// What the machine says of itself: processes, disks, load. Read only, on Linux and macOS, by /proc, `ps` and node:os.
// Linux: https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html (images without `ps` have /proc).

import { execFile } from 'node:child_process'
import { readFile, statfs } from 'node:fs/promises'
import os from 'node:os'
import { promisify } from 'node:util'

/** `cpu`: percent of one core, on Linux over the process's life. `memory`: resident bytes. */
export interface ProcessUsage {
  cpu: number
  memory: number
}

/** Undefined where the process has just ended. `uptime`: seconds since it started. */
export async function processUsage(pid: number, uptime: number): Promise<ProcessUsage | undefined> {
  try {
    return process.platform === 'linux' ? await fromProc(pid, uptime) : await fromPs(pid)
  } catch {
    return undefined
  }
}

async function fromProc(pid: number, uptime: number): Promise<ProcessUsage> {
  const [stat, status] = await Promise.all([
    readFile(`/proc/${pid}/stat`, 'utf8'),
    readFile(`/proc/${pid}/status`, 'utf8'),
  ])
  // After the name, which is in parentheses and may hold anything: utime and stime are the 12th and 13th.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  const seconds = (Number(fields[11]) + Number(fields[12])) / 100 // in ticks, 100 a second on every Linux
  const memory = Number(/^VmRSS:\s+(\d+) kB/m.exec(status)?.[1] ?? 0) * 1024
  return { cpu: round((100 * seconds) / Math.max(uptime, 0.01)), memory }
}

async function fromPs(pid: number): Promise<ProcessUsage> {
  const { stdout } = await promisify(execFile)('ps', ['-o', 'pcpu=,rss=', '-p', String(pid)])
  const [cpu, kilobytes] = stdout.trim().split(/\s+/)
  return { cpu: Number((cpu ?? '').replace(',', '.')), memory: Number(kilobytes) * 1024 }
}

/** Sizes in bytes. `used` in percent, of what a normal user could use, as `df` counts. */
export interface Disk {
  path: string
  size: number
  free: number
  used: number
}

export async function diskUsage(paths = ['/', os.tmpdir()]): Promise<Disk[]> {
  const disks: Disk[] = []
  for (const path of paths) {
    const { bsize, blocks, bfree, bavail } = await statfs(path)
    const inUse = blocks - bfree
    const disk = {
      path,
      size: blocks * bsize,
      free: bavail * bsize,
      used: round((100 * inUse) / Math.max(inUse + bavail, 1)),
    }
    if (!disks.some((other) => other.size === disk.size && other.free === disk.free))
      disks.push(disk)
  }
  return disks
}

export interface Load {
  /** Over 1, 5 and 15 minutes. */
  load: number[]
  cpus: number
  /** Bytes. */
  memory: { size: number; free: number }
  /** Seconds. */
  uptime: number
}

export function systemLoad(): Load {
  return {
    load: os.loadavg().map(round),
    cpus: os.availableParallelism(),
    memory: { size: os.totalmem(), free: os.freemem() },
    uptime: Math.round(os.uptime()),
  }
}

function round(value: number): number {
  return Math.round(value * 100) / 100
}
