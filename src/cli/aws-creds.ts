// dcaf env-update-aws-creds: fresh AWS credentials of a DuploCloud tenant into .env, through the duplo-jit program
// (https://github.com/duplocloud/duplo-jit). Every other line of the file, comments too, stays as it is.

import { execFile } from 'node:child_process'
import { chmod, readFile, rename, writeFile } from 'node:fs/promises'
import { promisify } from 'node:util'
import type { Command } from '../cli.ts'

const command: Command = {
  help: `Usage: dcaf env-update-aws-creds --tenant TENANT --host URL [--file .env]

Asks duplo-jit for credentials (it may open your browser) and writes AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and
AWS_SESSION_TOKEN into the file. Prints none of them. DUPLO_TENANT and DUPLO_HOST stand in for the options.
`,
  options: {
    tenant: { type: 'string' },
    host: { type: 'string' },
    file: { type: 'string', default: '.env' },
  },
  async run({ values }, { stdout, stderr, env }) {
    const tenant = (values.tenant as string | undefined) ?? env.DUPLO_TENANT
    const host = (values.host as string | undefined) ?? env.DUPLO_HOST
    const file = values.file as string
    if (!tenant || !host) {
      stderr.write(
        `dcaf env-update-aws-creds: --${tenant ? 'host' : 'tenant'} is missing\n\n${command.help}`,
      )
      return 2
    }
    const found = await credentials(tenant, host, env)
    const text = await readFile(file, 'utf8').catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return ''
      throw error
    })
    // Written beside and renamed: a crash leaves the old file or the new one, and nobody else may read either.
    const beside = `${file}.${process.pid}.tmp`
    await writeFile(beside, withValues(text, found), { mode: 0o600 })
    await chmod(beside, 0o600)
    await rename(beside, file)
    stdout.write(`Updated ${Object.keys(found).join(', ')} in ${file}.\n`)
    return 0
  },
}
export default command

async function credentials(
  tenant: string,
  host: string,
  env: NodeJS.ProcessEnv,
): Promise<Record<string, string>> {
  const args = ['aws', '--no-cache', '--tenant', tenant, '--host', host, '--interactive']
  const { stdout } = await promisify(execFile)('duplo-jit', args, { env }).catch((error) => {
    if (error.code === 'ENOENT')
      throw new Error(
        'duplo-jit is not on the PATH. Install it: brew install duplocloud/tap/duplo-jit',
      )
    throw new Error(`duplo-jit failed: ${String(error.stderr || error.message).trim()}`)
  })
  const said = JSON.parse(stdout) as {
    AccessKeyId?: string
    SecretAccessKey?: string
    SessionToken?: string
  }
  const { AccessKeyId, SecretAccessKey, SessionToken } = said
  if (!AccessKeyId || !SecretAccessKey || !SessionToken)
    throw new Error('duplo-jit answered without credentials')
  return {
    AWS_ACCESS_KEY_ID: AccessKeyId,
    AWS_SECRET_ACCESS_KEY: SecretAccessKey,
    AWS_SESSION_TOKEN: SessionToken,
  }
}

/** The file's text with these values set where they stood, or at its end. */
export function withValues(text: string, values: Record<string, string>): string {
  const left = new Map(Object.entries(values))
  const lines = text === '' ? [] : text.replace(/\n$/, '').split('\n')
  const kept = lines.map((line) => {
    const [, before = '', key = ''] = /^(\s*(?:export\s+)?)([A-Z_]+)\s*=/.exec(line) ?? []
    const value = left.get(key)
    if (value === undefined) return line
    left.delete(key)
    return `${before}${key}=${value}`
  })
  return `${[...kept, ...[...left].map(([key, value]) => `${key}=${value}`)].join('\n')}\n`
}
