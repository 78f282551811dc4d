#!/usr/bin/env node
// The `dcaf` command: talk to a service, see what would be sent to a model, read an audit trail, renew AWS credentials.
// Each command is a file of src/cli/, loaded when it is asked for. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 waits
// for an approval that nobody was there to give.

import { realpathSync } from 'node:fs'
import { parseArgs } from 'node:util'

/** What a command gets of the world, so that tests can give it another. */
export interface Terminal {
  stdin: NodeJS.ReadStream
  stdout: NodeJS.WriteStream
  stderr: NodeJS.WriteStream
  env: NodeJS.ProcessEnv
}
export interface Command {
  help: string
  /** Names of options as `parseArgs` takes them. */
  options: NonNullable<Parameters<typeof parseArgs>[0]>['options']
  run(
    args: { positionals: string[]; values: Record<string, unknown> },
    terminal: Terminal,
  ): Promise<number>
}

const commands: Record<string, { summary: string; load: () => Promise<{ default: Command }> }> = {
  chat: { summary: 'talk to a service in the terminal', load: () => import('./cli/chat.ts') },
  explain: {
    summary: 'print what would be sent to the provider',
    load: () => import('./cli/explain.ts'),
  },
  audit: {
    summary: 'check an audit trail and show who approved what',
    load: () => import('./cli/audit.ts'),
  },
  'env-update-aws-creds': {
    summary: 'put fresh AWS credentials into .env',
    load: () => import('./cli/aws-creds.ts'),
  },
}

const usage = `Usage: dcaf COMMAND [options]

${Object.entries(commands)
  .map(([name, { summary }]) => `  ${name.padEnd(22)}${summary}`)
  .join('\n')}

dcaf COMMAND --help tells more of each.
`

/** Runs one command line; resolves to the exit code. */
export async function main(argv: string[], terminal: Terminal): Promise<number> {
  const [name = '', ...rest] = argv
  if (name === '--help' || name === '-h' || name === 'help') {
    terminal.stdout.write(usage)
    return 0
  }
  const known = Object.hasOwn(commands, name) ? commands[name] : undefined
  if (!known) {
    terminal.stderr.write(name ? `dcaf: there is no command ${name}\n\n${usage}` : usage)
    return 2
  }
  const { default: command } = await known.load()
  let parsed: { positionals: string[]; values: Record<string, unknown> }
  try {
    const options = { ...command.options, help: { type: 'boolean', short: 'h' } } as const
    parsed = parseArgs({ args: rest, options, allowPositionals: true })
  } catch (error) {
    terminal.stderr.write(`dcaf ${name}: ${(error as Error).message}\n\n${command.help}`)
    return 2
  }
  if (parsed.values.help) {
    terminal.stdout.write(command.help)
    return 0
  }
  try {
    return await command.run(parsed, terminal)
  } catch (error) {
    terminal.stderr.write(`dcaf ${name}: ${(error as Error).message}\n`)
    return 1
  }
}

// npm starts it through a link in node_modules/.bin.
if (process.argv[1] && realpathSync(process.argv[1]) === import.meta.filename)
  process.exitCode = await main(process.argv.slice(2), process)
