// A stand-in for Anthropic's Messages API on the loopback, so that caching.ts and diagram.ts run
// without an account: it answers what it is told to, and accounts for prompt caching as the real
// service documents it. Whole answers only.
// https://docs.claude.com/en/docs/build-with-claude/prompt-caching

import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { json } from 'node:stream/consumers'

// biome-ignore lint/suspicious/noExplicitAny: the vendor's JSON
type Block = Record<string, any>
export type Turn = { role: 'user' | 'assistant'; content: Block[] }
export interface Body {
  tools?: Block[]
  system?: Block[]
  messages: Turn[]
}

/** Tokens; a shorter prefix is not cached. So it is for Claude Sonnet; other models want more. */
const minimum = 1024
/** How far before a cache point an earlier prefix is looked for. */
const lookBack = 20
const lifetimeMs = 300_000

/** `answer` gives a reply's blocks: `{ type: 'text', text }`, `{ type: 'tool_use', name, input }`. */
export async function localAnthropic(answer: (body: Body) => Block[]) {
  const kept = new Map<string, number>()

  const server = createServer(async (req, res) => {
    const body = (await json(req)) as Body
    const content = answer(body).map((block): Block => {
      return block.type === 'tool_use' ? { id: `toolu_${crypto.randomUUID()}`, ...block } : block
    })
    const { usage, points } = account(body, kept)
    const isCall = content.some(({ type }) => type === 'tool_use')
    const stop_reason = isCall ? 'tool_use' : 'end_turn'
    const output_tokens = tokens(JSON.stringify(content))
    const reply = { type: 'message', role: 'assistant', content, stop_reason }
    const error = { type: 'invalid_request_error', message: `${points} cache points, at most 4` }
    const isRight = points <= 4
    res.writeHead(isRight ? 200 : 400, { 'content-type': 'application/json' })
    const told = isRight
      ? { ...reply, usage: { ...usage, output_tokens } }
      : { type: 'error', error }
    res.end(JSON.stringify(told))
  })
  await once(server.listen(0, '127.0.0.1'), 'listening')
  const { port } = server.address() as AddressInfo
  return { url: `http://127.0.0.1:${port}`, close: () => server.close() }
}

/**
 * Tools, then system, then messages. Read is the longest prefix that was kept, written what follows
 * up to the last cache point, and what comes after that is plain input.
 */
function account({ tools = [], system = [], messages }: Body, kept: Map<string, number>) {
  const blocks = [...tools, ...system, ...messages.flatMap(({ content }) => content)]
  const hash = createHash('sha256')
  let total = 0
  const prefixes = blocks.map(({ cache_control, ...block }) => {
    const text = JSON.stringify(block)
    total += tokens(text)
    hash.update(text)
    return { key: hash.copy().digest('hex'), end: total, isPoint: cache_control !== undefined }
  })
  const isKept = (key: string) => (kept.get(key) ?? 0) > Date.now()
  const points = prefixes.flatMap(({ isPoint }, index) => (isPoint ? [index] : []))
  const usable = points.filter((index) => (prefixes[index]?.end ?? 0) >= minimum)
  const found = usable.flatMap((index) =>
    prefixes.slice(Math.max(0, index - lookBack), index + 1).filter(({ key }) => isKept(key)),
  )
  const read = Math.max(0, ...found.map(({ end }) => end))
  const end = Math.max(read, ...usable.map((index) => prefixes[index]?.end ?? 0))
  for (const index of usable) kept.set(prefixes[index]?.key ?? '', Date.now() + lifetimeMs)
  const usage = {
    input_tokens: total - end,
    cache_read_input_tokens: read,
    cache_creation_input_tokens: end - read,
  }
  return { usage, points: points.length }
}

/** Good enough for English: four characters are one token. */
function tokens(text: string): number {
  return Math.ceil(text.length / 4)
}
