// A model that is none: keyword rules, written as an ordinary Provider, so that everything else can be tried without
// an account. It reads the last user message, asks for tools by their names, and puts their results into words.
// Deterministic: the same request gets the same reply. It says what it is.

import { setTimeout as sleep } from 'node:timers/promises'
import type {
  CompleteOptions,
  Message,
  ModelReply,
  ModelRequest,
  Part,
  Provider,
} from '../../src/index.ts'

const label = 'Offline model: keyword rules, no LLM.'

/** Words; a row of a table is one. */
const pieces = /^\|.*\n?|\S+\s*/gm

export interface OfflineOptions {
  /** Milliseconds between two streamed words; default 12. */
  delayMs?: number
}

export function offline({ delayMs = 12 }: OfflineOptions = {}): Provider {
  const render = (request: ModelRequest) => ({ model: 'keyword-rules', ...request })
  return {
    name: 'offline (no LLM)',
    model: 'keyword-rules',
    render,
    async complete(request: ModelRequest, { signal, onDelta }: CompleteOptions = {}) {
      signal?.throwIfAborted()
      const { text, calls } = answer(request)
      for (const word of (onDelta && text.match(pieces)) ?? []) {
        await onDelta?.({ type: 'text_delta', text: word })
        await pause(delayMs, signal)
      }
      return reply(request, text, calls)
    },
  }
}

/** Its ids name the place in the conversation: unique in it, and the same when the same is asked again. */
function reply(request: ModelRequest, text: string, calls: Call[]): ModelReply {
  const turn = request.messages.length
  const parts: Part[] = text ? [{ type: 'text', text }] : []
  for (const [index, call] of calls.entries())
    parts.push({ type: 'tool_call', id: `offline_${turn}_${index}`, ...call })
  return {
    parts,
    finishReason: calls.length > 0 ? 'tool_call' : 'stop',
    usage: {
      inputTokens: words(JSON.stringify([request.system, request.messages])),
      outputTokens: words(JSON.stringify(parts)),
      cacheReadTokens: 0,
      cacheWriteTokens: 0,
    },
  }
}

/** What it counts as tokens. */
function words(text: string): number {
  return text.split(/\W+/).filter(Boolean).length
}

/** Rejects with the signal's reason. */
async function pause(ms: number, signal?: AbortSignal): Promise<void> {
  if (ms > 0) await sleep(ms, undefined, { signal }).catch(() => {})
  signal?.throwIfAborted()
}

// ---- what to answer

interface Call {
  name: string
  input: Record<string, unknown>
}

/** A call of an earlier turn and what came of it. */
interface Done extends Call {
  outcome: string
  content: string
}

function answer(request: ModelRequest): { text: string; calls: Call[] } {
  const { messages, tools, toolChoice } = request
  const { said, reported } = newest(messages)
  const resumed = messages.at(-1)?.role === 'assistant'
  const done = [...results(messages.at(resumed ? -1 : -2)), ...reported]
  const told = done.find(({ name }) => name === 'favourite')?.content
  const favourite = /"favourite":"([^"]+)"/.exec(told ?? '')?.[1]
  const known = workerNames(request)
  let wish: Wish = { calls: [], unclear: [] }
  if (!resumed) wish = understand(said, known)
  else if (favourite) wish = understand(said.replace(/\b(my )?favou?rite\b/gi, favourite), known)
  const calls = wish.calls.filter(
    (call) =>
      toolChoice !== 'none' &&
      tools.some(({ name }) => name === call.name) &&
      // Words that come along with a decision repeat what was decided; they do not ask for it once more.
      !done.some(
        (other) =>
          JSON.stringify([other.name, other.input]) === JSON.stringify([call.name, call.input]),
      ),
  )
  const sentences = [...done.map(inWords), announce(calls, known)]
  if (saysYes(said) && done.some(({ outcome }) => outcome === 'rejected'))
    sentences.push('Words do not approve. Ask again, and decide on the call itself.')
  if (calls.length === 0 && done.length === 0) sentences.push(help(said, wish, known))
  const text = sentences.filter(Boolean).join('\n\n')
  const first = text !== '' && !messages.some((m) => m.role === 'assistant' && textOf(m) !== '')
  return { text: first && !text.includes(label) ? `${label}\n\n${text}` : text, calls }
}

/** The newest user message: the person's own words, and what the library reports in it as fenced JSON. */
function newest(messages: Message[]): { said: string; reported: Done[] } {
  const reported: Done[] = []
  const said = textOf(messages.findLast((message) => message.role === 'user')).replace(
    /^(?:(.*)\(data, not instructions\):\n)?(`{3,}|~{3,})[^\n]*\n([\s\S]*?)^\2[^\n]*$/gm,
    (_, title = '', _fence, block: string) => {
      if (/^Outcome of the calls/.test(title)) reported.push(...fromBlock(block))
      return ''
    },
  )
  return { said: said.trim(), reported }
}

function fromBlock(block: string): Done[] {
  try {
    return [JSON.parse(block)].flat().map((item) => ({
      name: String(item.tool),
      input: item.input ?? {},
      outcome: String(item.outcome ?? 'ok'),
      content: String(item.output),
    }))
  } catch {
    return [] // a block of the person's own
  }
}

function results(message: Message | undefined): Done[] {
  if (message?.role !== 'assistant') return []
  return message.parts.flatMap((part) => {
    const result = part.type === 'tool_call' && message.results.find((r) => r.callId === part.id)
    if (!result) return []
    return [{ name: part.name, input: part.input as Call['input'], ...result }]
  })
}

function textOf(message: Message | undefined): string {
  const texts = message?.parts.map((part) => (part.type === 'text' ? part.text : '')) ?? []
  return texts.join('\n').trim()
}

// ---- from words to calls

/** `unclear`: verbs whose worker was not named. */
interface Wish {
  calls: Call[]
  unclear: string[]
}

const verbs = dictionary({
  restart_process: 'restart reboot bounce start',
  stop_process: 'stop kill terminate shut',
  tail_log: 'log logs tail',
  remember_favourite: 'remember',
})
/** These end what a verb refers to ... */
const topics = dictionary({
  list_processes: 'list ps status',
  disk_usage: 'disk disks storage',
  system_load: 'load',
  '': 'show check what how is are',
})
/** ... and these belong to it: "restart the worker web-1". */
const weakTopics = dictionary({
  list_processes: 'process processes worker workers service services running stopped up',
  disk_usage: 'space',
  system_load: 'cpu memory system',
})
const filler = new Set(
  'a again an and as down for from in it last line lines me my name named now of off on once pid please that the then them this to too with you'.split(
    ' ',
  ),
)

function dictionary(entries: Record<string, string>): Map<string, string> {
  const words = Object.entries(entries)
  return new Map(words.flatMap(([tool, list]) => list.split(' ').map((word) => [word, tool])))
}

/** The workers, as a model learns of them: from the schema of a tool. */
function workerNames({ tools }: ModelRequest): string[] {
  const schema = tools.find(({ name }) => name === 'restart_process')?.input.properties
  return (schema as { name?: { enum?: string[] } } | undefined)?.name?.enum ?? []
}

/** A worker's name that is none of `known` goes to the tool all the same: its answer lists those there are. */
function understand(said: string, known: string[]): Wish {
  const note = /\bnote\b[^:]*?([\w-]+)\s*:\s*(\S.*)$/is.exec(said)
  if (note) return only('note_in_log', { name: note[1], text: note[2]?.trim() })

  const wish: Wish = { calls: [], unclear: [] }
  const named: string[] = []
  let verb: { tool: string; names: string[]; other?: string } | undefined
  let negated = false
  for (const token of tokens(said, known)) {
    const tool = verbs.get(token)
    const topic = topics.get(token) ?? (verb ? undefined : weakTopics.get(token))
    if (/^([.,:;!?]|but|instead)$/.test(token)) negated = false
    else if (/^(don't|dont|not|never|without)$/.test(token)) negated = true
    else if (tool !== undefined) {
      close()
      verb = negated ? undefined : { tool, names: [] }
    } else if (topic !== undefined) {
      close()
      if (topic) add({ name: topic, input: {} })
    } else if (known.includes(token)) (verb?.names ?? named).push(token)
    else if (/^(all|both|each|every|everything)$/.test(token)) verb?.names.push(...known)
    else if (verb && !filler.has(token) && !weakTopics.has(token)) verb.other ??= token
  }
  close()

  if (!/\bfavou?rite\b/i.test(said)) return wish
  const name = wish.calls.find((call) => call.name === 'remember_favourite')?.input.name ?? named[0]
  return known.includes(String(name)) ? only('remember_favourite', { name }) : only('favourite', {})

  function only(tool: string, input: Call['input']): Wish {
    return { calls: [{ name: tool, input }], unclear: [] }
  }
  function add(call: Call) {
    const same = (other: Call) => JSON.stringify(other) === JSON.stringify(call)
    if (!wish.calls.some(same)) wish.calls.push(call)
  }
  function close() {
    if (!verb) return
    const { tool, names, other } = verb
    verb = undefined
    const targets = names.length > 0 ? names : named.length > 0 ? named : other ? [other] : []
    if (targets.length === 0) wish.unclear.push(tool)
    const lines = /(\d+)\s+lines?\b|\blast\s+(\d+)/i.exec(said)
    const extra = tool === 'tail_log' && lines ? { lines: Number(lines[1] ?? lines[2]) } : {}
    for (const name of targets) add({ name: tool, input: { name, ...extra } })
  }
}

/** Lower-case words and punctuation; a known name in any spelling ("web 1", "WEB1") is one token. */
function tokens(said: string, known: string[]): string[] {
  let text = said.toLowerCase().replaceAll('’', "'")
  for (const name of known)
    text = text.replace(new RegExp(`\\b${name.split('-').join('[\\s_-]?')}\\b`, 'g'), name)
  return text.match(/[\w][\w.'-]*\w|\w|[.,:;!?]/g) ?? []
}

// ---- from results to words

function inWords({ name, input, outcome, content }: Done): string {
  const what = [name, input.name].filter(Boolean).join(' ')
  if (outcome === 'rejected') return `Not done: ${what}. ${content}`
  if (outcome !== 'ok') return `${what}: ${content}`
  const changed = /^A person changed the input to .*?\}\.\s*/s.exec(content)?.[0] ?? ''
  const edited = changed.replace(/\{.*\}/s, '`$&`')
  const output = content.slice(changed.length)
  if (name === 'tail_log') return `The log of ${input.name}:\n\n\`\`\`\n${output}\n\`\`\``
  try {
    return edited + (wording[name]?.(JSON.parse(output)) ?? output)
  } catch {
    return edited + output
  }
}

// biome-ignore lint/suspicious/noExplicitAny: each reads what the tool of its name gives
const wording: Record<string, (value: any) => string> = {
  list_processes: (workers) =>
    table(
      ['name', 'pid', 'state', 'cpu', 'memory', 'uptime'],
      workers.map((w: Record<string, number | string | null>) =>
        w.pid === null
          ? [w.name, '-', w.state, '-', '-', '-']
          : [w.name, w.pid, w.state, `${w.cpu} %`, size(w.memory), `${w.uptime} s`],
      ),
    ),
  disk_usage: (disks) =>
    table(
      ['disk', 'size', 'free', 'used'],
      disks.map((d: Record<string, number | string>) => [
        d.path,
        size(d.size),
        size(d.free),
        `${d.used} %`,
      ]),
    ),
  system_load: ({ load, cpus, memory, uptime }) =>
    `Load ${load.join(', ')} (1, 5, 15 minutes) on ${cpus} cpus. ` +
    `Memory: ${size(memory.free)} free of ${size(memory.size)}. Up ${Math.round(uptime / 3600)} h.`,
  restart_process: ({ name, old_pid, new_pid }) =>
    old_pid === null
      ? `Started **${name}**, pid ${new_pid}.`
      : `Restarted **${name}**: pid ${old_pid} before, ${new_pid} now.`,
  stop_process: ({ name, old_pid }) =>
    old_pid === null ? `**${name}** was stopped already.` : `Stopped **${name}** (pid ${old_pid}).`,
  favourite: ({ favourite }) =>
    favourite ? `Your favourite is **${favourite}**.` : 'You have not told me a favourite yet.',
}

function table(head: string[], rows: unknown[][]): string {
  const line = (cells: unknown[]) => `| ${cells.join(' | ')} |`
  return [line(head), line(head.map(() => '---')), ...rows.map(line)].join('\n')
}

function size(bytes: unknown): string {
  const exponent = Math.min(4, Math.floor(Math.log2(Math.max(Number(bytes), 1)) / 10))
  return `${(Number(bytes) / 1024 ** exponent).toPrecision(3)} ${'B KiB MiB GiB TiB'.split(' ')[exponent]}`
}

/** Only for what will wait for a person: after an automatic call there is something better to say. */
function announce(calls: Call[], known: string[]): string {
  const verb: Record<string, string> = {
    restart_process: 'restart',
    stop_process: 'stop',
    note_in_log: 'write a note into the log of',
  }
  const waiting = calls.filter(({ name, input }) => verb[name] && known.includes(`${input.name}`))
  if (waiting.length === 0) return ''
  const acts = waiting.map(({ name, input }) => `${verb[name]} ${input.name}`)
  return `Once you approve, I ${acts.join(', and ')}.`
}

function saysYes(said: string): boolean {
  return /^\W*(yes|ok|okay|approve|approved|go ahead|do it)\b/i.test(said)
}

function help(said: string, { unclear }: Wish, known: string[]): string {
  const choice = known.join(', ').replace(/, ([^,]*)$/, ' or $1')
  if (unclear.length > 0) return `Which one: ${choice}?`
  const start = saysYes(said)
    ? 'Nothing waits for an approval, and words do not approve: decide on the call itself.'
    : `${label} I match words and understand nothing else. Try one of these:`
  return `${start}

- list processes
- show the log of web-1, last 20 lines
- disk usage
- system load
- restart web-1 and web-2
- stop db-1
- note on web-1: deploying at five
- remember web-1 as my favourite, then: restart my favourite`
}
