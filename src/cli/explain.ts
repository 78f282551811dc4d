// dcaf explain FILE: the body that an agent's first model call would send, through its own interceptors, sending nothing.

import { readFile } from 'node:fs/promises'
import { resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import { type Agent, run } from '../agent.ts'
import type { Command } from '../cli.ts'
import { DcafError } from '../providers/provider.ts'

const command: Command = {
  help: `Usage: dcaf explain FILE [--message TEXT] [--thread FILE] [--context JSON]

FILE is a module that exports an agent as \`default\` or \`agent\`. Prints what its provider would send for the message
(default: Hello), or for a thread saved by /save, as JSON. Interceptors and systemContext run; the network is not touched.
`,
  options: { message: { type: 'string' }, thread: { type: 'string' }, context: { type: 'string' } },
  async run({ positionals: [file], values }, { stdout, stderr }) {
    if (!file) {
      stderr.write(`dcaf explain: FILE is missing\n\n${command.help}`)
      return 2
    }
    const module = (await import(pathToFileURL(resolve(file)).href)) as {
      default?: Agent
      agent?: Agent
    }
    const agent = module.default ?? module.agent
    if (!agent?.provider?.render)
      throw new Error(`${file} must export an agent, as default or as \`agent\``)
    let body: unknown
    const provider: Agent['provider'] = {
      ...agent.provider,
      name: agent.provider.name,
      model: agent.provider.model,
      render: (request) => agent.provider.render(request),
      async complete(request) {
        body = agent.provider.render(request)
        throw new DcafError('aborted', 'only explained')
      },
    }
    const saved = values.thread
      ? JSON.parse(await readFile(values.thread as string, 'utf8'))
      : undefined
    const thread = (Array.isArray(saved) ? saved : saved?.messages) as
      | { role: 'user' | 'assistant'; content: string }[]
      | undefined
    const messages =
      thread?.map(({ role, content }) => ({ role, content })) ??
      (values.message as string | undefined) ??
      'Hello'
    const context = values.context ? JSON.parse(values.context as string) : {}
    const result = await run({ ...agent, provider }, { messages }, { context })
    if (body === undefined)
      throw result.error ?? new Error(`the run ended before a model call: ${result.stop}`)
    stdout.write(`${JSON.stringify(body, null, 2)}\n`)
    return 0
  },
}
export default command
