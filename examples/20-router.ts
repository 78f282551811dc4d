// In a channel full of people an agent should not answer everything. The router of `chatHandler` is
// asked for messages from Slack, never when they carry a decision. This one asks a small model, and
// when in doubt it stays silent: only a clear yes is a yes; anything else, a failure included, is
// silence.

import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { type ChatOptions, chatHandler, type Provider } from '../src/index.ts'
import { scripted } from '../src/providers/scripted.ts'

const question =
  'You read a chat channel. Is the last message a request to the operations bot? ' +
  'Answer with the one word yes or no.'

function modelRouter(provider: Provider): ChatOptions['router'] {
  return async ({ messages }) => {
    const thread = messages.slice(-10).map(({ role, content }) => `${role}: ${content}`)
    const { parts } = await provider.complete(
      {
        system: [{ text: question }],
        messages: [{ role: 'user', parts: [{ type: 'text', text: thread.join('\n') }] }],
        tools: [],
        maxTokens: 5,
        temperature: 0,
      },
      { signal: AbortSignal.timeout(5_000) },
    )
    const text = parts.map((part) => (part.type === 'text' ? part.text : '')).join('')
    return /^\W*yes\W*$/i.test(text)
  }
}

const small = scripted(['Yes.', 'no', 'Yes, or perhaps no', new Error('overloaded')])
const ops = { name: 'ops', provider: scripted(() => 'On it.') }
const chat = chatHandler(ops, { router: modelRouter(small) })
const server = createServer(async (req, res) => {
  if (!(await chat(req, res))) res.writeHead(404).end()
})
await once(server.listen(0, '127.0.0.1'), 'listening')
const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/api/chat`

async function say(source: string, content: string): Promise<void> {
  const headers = { 'content-type': 'application/json' }
  const body = JSON.stringify({ source, messages: [{ role: 'user', content }] })
  const answer = (await (await fetch(url, { method: 'POST', headers, body })).json()) as {
    content: string
  }
  console.log(`${source}: ${content} -> ${answer.content || '(silent)'}`)
}
await say('slack', 'ops, please restart web-1')
await say('slack', 'Anyone for lunch?')
await say('slack', 'web-1 looks slow today')
await say('slack', 'ops?')
await say('help-desk', 'Anyone for lunch?')
server.close()

// Prints:
//
// slack: ops, please restart web-1 -> On it.
// slack: Anyone for lunch? -> (silent)
// slack: web-1 looks slow today -> (silent)
// slack: ops? -> (silent)
// help-desk: Anyone for lunch? -> On it.
