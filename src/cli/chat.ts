// dcaf chat [URL]: a terminal for any service that speaks the protocol: streams, shows what the agent does, asks for
// approval, keeps thread and session. Piped, it sends its input as one message and prints the answer.

import { spawnSync } from 'node:child_process'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface, type Interface } from 'node:readline/promises'
import { styleText } from 'node:util'
import type { Command, Terminal } from '../cli.ts'
import { plain } from './plain.ts'

// biome-ignore lint/suspicious/noExplicitAny: the wire's JSON, read field by field
type Json = Record<string, any>
type Message = { role: 'user' | 'assistant'; content: string; data?: Json }

const command: Command = {
  help: `Usage: dcaf chat [URL] [--json] [--thread ID] [--header "NAME: VALUE"]...

URL is the service, http://127.0.0.1:8000 where none is given. --json prints the whole answer as one JSON object.
While you talk: /session shows the session, /save FILE writes the thread, /quit ends, /help tells more.
A call that waits is decided with y (approve), n (reject, with a reason), e (edit the input in $EDITOR), a (show all), s (later).
Piped, the input is one message: exit code 3 says that the answer waits for an approval.
`,
  options: {
    json: { type: 'boolean', default: false },
    thread: { type: 'string' },
    header: { type: 'string', multiple: true },
  },
  async run({ positionals: [url = 'http://127.0.0.1:8000'], values }, terminal) {
    const headers = Object.fromEntries(
      ((values.header as string[] | undefined) ?? []).map(headerOf),
    )
    const talk = new Talk(
      new URL(url).href.replace(/\/$/, ''),
      headers,
      values.thread as string | undefined,
    )
    if (terminal.stdin.isTTY && !values.json) return converse(talk, terminal)
    let text = ''
    for await (const chunk of terminal.stdin) text += chunk
    if (!text.trim()) throw new Error('nothing to send: pipe a message in, or run it in a terminal')
    const show = values.json
      ? undefined
      : (event: Json) => void (event.type === 'text_delta' && terminal.stdout.write(event.text))
    const answer = await talk.say(text.trim(), {}, show)
    terminal.stdout.write(values.json ? `${JSON.stringify(answer)}\n` : '\n')
    const waiting = answer.data?.approvals ?? []
    if (waiting.length > 0 && !values.json)
      terminal.stderr.write(
        `${waiting.length === 1 ? '1 call waits' : `${waiting.length} calls wait`} for approval: ${waiting.map((call: Json) => plain(call.name, '')).join(', ')}\n`,
      )
    return waiting.length > 0 ? 3 : 0
  },
}
export default command

function headerOf(text: string): [string, string] {
  const at = text.indexOf(':')
  if (at < 1) throw new Error(`--header must look like "NAME: VALUE", got ${JSON.stringify(text)}`)
  return [text.slice(0, at).trim(), text.slice(at + 1).trim()]
}

/** A thread with a service: every answer is the assistant message that the next request echoes. */
export class Talk {
  readonly messages: Message[] = []
  readonly #url: string
  readonly #headers: Record<string, string>
  readonly #thread: string

  constructor(
    url: string,
    headers: Record<string, string> = {},
    thread: string = crypto.randomUUID(),
  ) {
    this.#url = url
    this.#headers = headers
    this.#thread = thread
  }

  get session(): Json {
    return this.messages.findLast((message) => message.data?.session)?.data?.session ?? {}
  }

  /** Sends words or decisions and folds the stream into the answer. A failure takes the message back, to be sent again. */
  async say(
    content: string,
    data: Json = {},
    show: (event: Json) => void = () => {},
    signal?: AbortSignal,
  ): Promise<Message> {
    const message: Message = {
      role: 'user',
      content,
      ...(Object.keys(data).length > 0 && { data }),
    }
    const body = JSON.stringify({ messages: [...this.messages, message], thread_id: this.#thread })
    const headers = { 'content-type': 'application/json', ...this.#headers }
    const response = await fetch(`${this.#url}/api/chat-stream`, {
      method: 'POST',
      headers,
      body,
      ...(signal && { signal }),
    }).catch((error) => {
      if (signal?.aborted) throw error
      throw new Error(`cannot reach ${this.#url}: ${error.cause?.code ?? error.message}`)
    })
    if (!response.ok || !response.body) throw new Error(await refusal(response))
    const answer: Message = { role: 'assistant', content: '', data: { session: this.session } }
    let ended: Json | undefined
    for await (const event of events(response.body)) {
      fold(answer, event)
      if (event.type === 'done' || event.type === 'error') ended = event
      show(event)
    }
    if (!ended)
      throw new Error('the answer ended too early; sending it again is safe, nothing runs twice')
    if (ended.type === 'error' && !ended.meta_data) throw new Error(ended.error)
    this.messages.push(message, answer)
    if (ended.type === 'error') throw new Error(`${ended.error} (what ran was kept)`)
    return answer
  }
}

async function refusal(response: Response): Promise<string> {
  const text = await response.text()
  try {
    const { detail, errors = [] } = JSON.parse(text) as Json
    return [detail, ...errors.map((e: Json) => `${e.path} ${e.message}`)].join('; ')
  } catch {
    return `${response.status} ${response.statusText}`
  }
}

/** The events of an NDJSON body, cut at LF alone. */
async function* events(body: ReadableStream<Uint8Array>): AsyncGenerator<Json> {
  let rest = ''
  for await (const text of body.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + text).split('\n')
    rest = lines.pop() ?? ''
    for (const line of lines) if (line) yield JSON.parse(line)
  }
}

function fold(answer: Message, event: Json): void {
  const data = answer.data as Json
  const lists = ['executed_tool_calls', 'executed_cmds', 'executed_approvals']
  if (event.type === 'text_delta') answer.content += event.text
  for (const list of lists) if (event[list]) data[list] = [...(data[list] ?? []), ...event[list]]
  if (event.type === 'approvals') data.approvals = event.approvals
  if (event.type === 'tool_calls') data.tool_calls = event.tool_calls
  if (event.type === 'commands') data.cmds = event.commands
  if (event.meta_data?.session) data.session = event.meta_data.session
}

// ---------------------------------------------------------------- in the terminal

async function converse(talk: Talk, terminal: Terminal): Promise<number> {
  const { stdin, stdout, env } = terminal
  const screen = new Screen(stdout)
  const lines = createInterface({ input: stdin, output: stdout })
  let closed = false
  lines.on('close', () => {
    closed = true
  })
  stdout.write(screen.dim('Say what you need. /help for more, /quit to end.\n'))
  while (!closed) {
    const text = (await lines.question(screen.bold('> ')).catch(() => '/quit')).trim()
    if (text === '/quit' || text === '/exit') break
    if (!text) continue
    if (text.startsWith('/')) {
      await meta(text, talk, stdout)
      continue
    }
    await turn(talk, text, {}, screen, lines)
    await decideAll(talk, screen, lines, env)
  }
  lines.close()
  return 0
}

async function meta(text: string, talk: Talk, stdout: Terminal['stdout']): Promise<void> {
  const [name, file] = text.split(/\s+/)
  if (name === '/session') stdout.write(`${JSON.stringify(visible(talk.session), null, 2)}\n`)
  else if (name === '/save' && file) {
    await writeFile(file, `${JSON.stringify({ messages: talk.messages }, null, 2)}\n`)
    stdout.write(`Saved ${talk.messages.length} messages to ${file}.\n`)
  } else stdout.write('/session  the session\n/save FILE  write the thread\n/quit  end\n')
}

function visible(session: Json): Json {
  return Object.fromEntries(Object.entries(session).filter(([key]) => !key.startsWith('$')))
}

/** One exchange; Ctrl-C stops waiting for it and keeps the talk. True when it was answered. */
async function turn(
  talk: Talk,
  text: string,
  data: Json,
  screen: Screen,
  lines: Interface,
): Promise<boolean> {
  const stop = new AbortController()
  const onInterrupt = () => stop.abort()
  lines.once('SIGINT', onInterrupt)
  try {
    screen.spin('Thinking...')
    await talk.say(text, data, (event) => screen.show(event), stop.signal)
    screen.end()
    return true
  } catch (error) {
    screen.end()
    screen.fail(
      stop.signal.aborted
        ? 'Stopped. What was approved goes on and is recorded.'
        : (error as Error).message,
    )
    return false
  } finally {
    lines.off('SIGINT', onInterrupt)
  }
}

/** Asks about everything that waits and sends the decisions together, until nothing waits or all is left for later. */
async function decideAll(
  talk: Talk,
  screen: Screen,
  lines: Interface,
  env: NodeJS.ProcessEnv,
): Promise<void> {
  for (;;) {
    const waiting = (talk.messages.at(-1)?.data?.approvals ?? []) as Json[]
    const decided: Json[] = []
    for (const call of waiting) {
      const decision = await ask(call, screen, lines, env)
      if (decision) decided.push({ ...call, ...decision })
    }
    if (decided.length === 0) return
    if (!(await turn(talk, '', { approvals: decided }, screen, lines))) return
  }
}

async function ask(
  call: Json,
  screen: Screen,
  lines: Interface,
  env: NodeJS.ProcessEnv,
): Promise<Json | undefined> {
  screen.card(call)
  for (;;) {
    const answer = (await lines.question(screen.bold('Run it? [y/n/e/a/s] ')).catch(() => 's'))
      .trim()
      .toLowerCase()
    if (answer === 'y') return { execute: true }
    if (answer === 'n')
      return {
        execute: false,
        rejection_reason: (await lines.question('Why not? ')).trim() || 'not approved',
      }
    if (answer === 'e') {
      const edited = await edit(call.input, env, screen)
      if (edited) return { execute: true, edited_input: edited }
    } else if (answer === 'a') screen.write(`${JSON.stringify(call, null, 2)}\n`)
    else if (answer === 's') return undefined
    else screen.write('y approve, n reject, e edit the input, a show all, s decide later\n')
  }
}

async function edit(
  input: Json,
  env: NodeJS.ProcessEnv,
  screen: Screen,
): Promise<Json | undefined> {
  const folder = await mkdtemp(join(tmpdir(), 'dcaf-edit-'))
  const file = join(folder, 'input.json')
  try {
    await writeFile(file, `${JSON.stringify(input, null, 2)}\n`, { mode: 0o600 })
    const [program = 'vi', ...args] = (env.VISUAL || env.EDITOR || 'vi').split(' ')
    const { status, error } = spawnSync(program, [...args, file], { stdio: 'inherit' })
    if (error || status !== 0)
      throw new Error(`${program} failed: ${error?.message ?? `exit code ${status}`}`)
    return JSON.parse(await readFile(file, 'utf8'))
  } catch (error) {
    screen.fail((error as Error).message)
    return undefined
  } finally {
    await rm(folder, { recursive: true })
  }
}

/** What the person sees. Colour and the spinner only where a terminal is. */
class Screen {
  readonly #out: Terminal['stdout']
  #spinner: NodeJS.Timeout | undefined
  #inText = false

  constructor(out: Terminal['stdout']) {
    this.#out = out
  }

  write(text: string): void {
    this.#out.write(plain(text))
  }
  bold(text: string): string {
    return this.#style('bold', text)
  }
  dim(text: string): string {
    return this.#style('dim', text)
  }
  #style(style: 'bold' | 'dim' | 'red' | 'yellow', text: string): string {
    return this.#out.isTTY ? styleText(style, text, { stream: this.#out }) : text
  }

  spin(text: string): void {
    this.#still()
    if (!this.#out.isTTY) return
    const frames = '⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏'
    let frame = 0
    this.#spinner = setInterval(
      () => this.#out.write(`\r\u001b[K${frames[frame++ % frames.length]} ${plain(text)}`),
      80,
    )
  }
  #still(): void {
    if (!this.#spinner) return
    clearInterval(this.#spinner)
    this.#spinner = undefined
    this.#out.write('\r\u001b[K')
  }

  show(event: Json): void {
    if (event.type === 'text_delta') {
      this.#still()
      this.#inText = true
      this.write(event.text)
    }
    if (event.type === 'intermittent_update') this.spin(event.text)
    for (const call of event.executed_tool_calls ?? event.executed_approvals ?? [])
      this.#line(`${call.name} ${JSON.stringify(call.input)}: ${call.output}`)
    for (const call of event.executed_cmds ?? []) this.#line(`$ ${call.command}\n${call.output}`)
  }
  #line(text: string): void {
    this.end()
    this.#out.write(this.dim(`${plain(text)}\n`))
  }

  end(): void {
    this.#still()
    if (this.#inText) this.#out.write('\n')
    this.#inText = false
  }
  fail(text: string): void {
    this.#out.write(`${this.#style('red', plain(text))}\n`)
  }

  card({
    name,
    description,
    input,
    preview,
    reasons = [],
    expires_at: expires,
    path = [],
  }: Json): void {
    const rows = Object.entries(input ?? {}).map(
      ([key, value]) => `    ${key}: ${typeof value === 'string' ? value : JSON.stringify(value)}`,
    )
    const parts = [
      `${this.#style('yellow', plain([...path, name].join(' > '), ''))}  ${plain(description)}`,
      ...rows.map((row) => plain(row)),
    ]
    if (preview) parts.push(`  ${plain(preview).replaceAll('\n', '\n  ')}`)
    for (const reason of reasons) parts.push(`  because: ${plain(reason)}`)
    if (expires) parts.push(this.dim(`  until ${plain(expires, '')}`))
    this.#out.write(`${parts.join('\n')}\n`)
  }
}
