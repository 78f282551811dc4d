// The HelpDesk wire: JSON Schema of what comes in, what a message decides, the shapes that go out, and the one
// writer of NDJSON. Knows no agent and no HTTP. JSON keys are snake_case here and nowhere else.

import { isDeepStrictEqual } from 'node:util'
import type { XStatic } from 'typebox/schema'
import { DcafError } from './providers/provider.ts'
import { compile } from './tool.ts'

// JSON Schema as it is: building it with TypeBox would load all of TypeBox with the package.
const text = { type: 'string' } as const
const flag = { type: 'boolean' } as const
const record = { type: 'object', additionalProperties: true } as const
const any = {} as const
/** What is not in `required` may be absent; this may be null too. */
const maybe = <const T>(type: T) => ({ anyOf: [type, { type: 'null' }] }) as const
const list = <const T>(items: T) => maybe({ type: 'array', items } as const)
const object = <const P, const R extends (keyof P)[] = []>(properties: P, required?: R) =>
  ({ type: 'object', properties, required: required ?? [] }) as const

const count = { type: 'integer', minimum: 1 } as const
const decided = {
  id: maybe(text),
  execute: maybe(flag),
  rejection_reason: maybe(text),
  edited_input: maybe(record),
  grant: maybe(object({ where: maybe(record), until: maybe(text), max_uses: maybe(count) })),
  path: list(text),
}
const named = { name: maybe(text), input: maybe(record), preview: maybe(text) }
const toolCall = object({ ...decided, ...named })
const file = object({ file_path: text, file_content: text }, ['file_path', 'file_content'])
const command = object({ ...decided, command: maybe(text), files: list(file) })
const executed = object({ id: maybe(text), name: maybe(text), input: any, output: any })
const executedCommand = object({ id: maybe(text), command: text, output: any }, ['command'])
const party = maybe(object({ name: maybe(text), id: maybe(text) }))

const messageSchema = object(
  {
    role: text,
    content: maybe(text),
    data: maybe(
      object({
        tool_calls: list(toolCall),
        approvals: list(toolCall),
        cmds: list(command),
        executed_tool_calls: list(executed),
        executed_approvals: list(executed),
        executed_cmds: list(executedCommand),
        url_configs: list(object({ url: text }, ['url'])),
        user_file_uploads: list(file),
        session: maybe(record),
      }),
    ),
    meta_data: maybe(record),
    timestamp: maybe(text),
    user: party,
    agent: party,
    platform_context: maybe(record),
    ambient_context: maybe(record),
  },
  ['role'],
)
export type WireMessage = XStatic<typeof messageSchema> & { role: 'user' | 'assistant' }
export type WireProblem = { path: string; message: string }
export type WireList = 'tool_calls' | 'approvals' | 'cmds'
export const lists: WireList[] = ['tool_calls', 'approvals', 'cmds']

/** A request that cannot be answered; `problems` list JSON Pointers, never values. */
export class WireError extends DcafError {
  override name = 'WireError'
  problems: WireProblem[] | undefined
}
export function invalid(path: string, message: string): WireError {
  return refused([{ path, message }])
}
function refused(problems: WireProblem[]): WireError {
  return Object.assign(new WireError('invalid_request', 'The request is not valid.'), { problems })
}

/** `index`: its place on the wire. */
type Placed = { message: WireMessage; index: number }

/** The thread without messages of other roles, checked as a whole. */
export function readThread(body: unknown, limit: number): Placed[] {
  const messages = isRecord(body) && Object.hasOwn(body, 'messages') ? body.messages : undefined
  if (messages === undefined)
    throw new WireError('messages_missing', "'messages' field missing from request body")
  if (!Array.isArray(messages)) throw invalid('/messages', 'must be array')
  if (messages.length === 0) throw new WireError('messages_empty', 'No messages provided')
  if (messages.length > limit)
    throw invalid('/messages', `must have at most ${limit} messages (limit messages)`)
  check ??= compile(messageSchema)
  const thread: Placed[] = []
  const problems: WireProblem[] = []
  for (const [index, message] of messages.entries()) {
    const role: unknown = isRecord(message) ? message.role : undefined
    if (typeof role === 'string' && role !== 'user' && role !== 'assistant') continue
    if (check.Check(message)) thread.push({ message: message as WireMessage, index })
    else problems.push(...faults(check.Errors(message)[1], `/messages/${index}`))
  }
  if (problems.length > 0) throw refused(problems.slice(0, 20))
  const last = thread.at(-1)
  if (!last) throw new WireError('messages_empty', 'No messages provided')
  if (last.message.role !== 'user')
    throw invalid(`/messages/${last.index}/role`, 'the last message must be a user message')
  return thread
}
let check: ReturnType<typeof compile> | undefined

type Missing = { requiredProperties?: string[] }
type Fault = { keyword: string; instancePath: string; message: string; params?: Missing }

/** Of a union with null only what is wrong with the other branch is worth saying. */
function faults(errors: object[], at: string): WireProblem[] {
  const said = new Map<string, string>()
  for (const { keyword, instancePath, message, params } of errors as Fault[]) {
    if (keyword === 'anyOf' || message === 'must be null') continue
    const missing = keyword === 'required' ? params?.requiredProperties?.[0] : undefined
    if (missing) said.set(`${at}${instancePath}/${missing}`, 'is missing')
    else said.set(at + instancePath, message)
  }
  return [...said].map(([path, message]) => ({ path, message }))
}

/** What the last message says of calls; entries of one id are one item. Throws where they contradict each other. */
export function readItems(message: WireMessage, index: number, limit: number): WireItem[] {
  if (!message.data) return []
  const items = new Map<string, WireItem>()
  for (const list of lists)
    for (const [place, entry] of (message.data[list] ?? []).entries()) {
      const item = itemOf(list, `/messages/${index}/data/${list}/${place}`, entry)
      const known = item.id ? items.get(item.id) : undefined
      if (known) merge(known, item)
      else items.set(item.id || item.at, item)
    }
  if (items.size > limit)
    throw invalid(`/messages/${index}/data`, `must decide at most ${limit} calls (limit decisions)`)
  return [...items.values()]
}

type Entry = Partial<XStatic<typeof toolCall> & XStatic<typeof command>>
type Grant = { where?: Record<string, unknown>; until?: string; max_uses?: number }
/** What one id says in the last message, all its lists taken together. */
export type WireItem = ReturnType<typeof itemOf>

function itemOf(list: WireList, at: string, entry: Entry) {
  const { id, execute, rejection_reason, edited_input, name, grant, path } = entry
  const reason = rejection_reason?.trim() ? rejection_reason : undefined
  const approve = execute === true
  if (approve && reason !== undefined) throw invalid(at, 'has execute: true and a rejection_reason')
  if (edited_input && !approve) throw invalid(`${at}/edited_input`, 'needs execute: true')
  return {
    id: id ?? '',
    lists: [list],
    /** Its first entry. */
    at,
    /** It approves or rejects; without that an entry only echoes. */
    said: approve || reason !== undefined,
    approve,
    reason,
    name: name ?? undefined,
    input: (list === 'cmds' ? commandInput(entry) : entry.input) ?? undefined,
    editedInput: edited_input ?? undefined,
    grant: (grant ?? undefined) as Grant | undefined,
    path: path ?? undefined,
  }
}

function commandInput({ command, files }: Entry): Record<string, unknown> | undefined {
  if (typeof command !== 'string') return undefined
  return files ? { command, files } : { command }
}

const fields = ['approve', 'reason', 'name', 'input', 'editedInput', 'grant', 'path'] as const

/** What decides counts over what echoes, of which only the name is heard; two that decide must agree. */
function merge(known: WireItem, next: WireItem): void {
  const { said } = known
  known.lists = [...new Set([...known.lists, ...next.lists])]
  for (const field of fields) {
    const [before, now] = [known[field], next[field]]
    if (now === undefined || (!next.said && field !== 'name')) continue
    if (before === undefined || (next.said && !said)) Object.assign(known, { [field]: now })
    else if (next.said && !isDeepStrictEqual(before, now))
      throw invalid(next.at, 'contradicts another entry of the same id')
  }
  known.said ||= next.said
}

export type Proposed = { name: string; input: unknown; path?: string[]; preview?: string }

/** What a message's lists say was proposed, by id: the echo of an answer of ours. */
export function proposedIn({ data }: WireMessage): Map<string, Proposed> {
  const found = new Map<string, Proposed>()
  for (const list of [data?.tool_calls, data?.approvals])
    for (const { id, name, input, path, preview } of list ?? []) {
      const more = { ...(path && { path }), ...(preview && { preview }) }
      if (id && name) found.set(id, { name, input: input ?? {}, ...more })
    }
  return found
}

/** What the client reports as done, each call once. */
export function reportedIn({ data }: WireMessage): unknown[] {
  if (!data) return []
  const found = new Map<unknown, unknown>()
  for (const list of [data.executed_tool_calls, data.executed_approvals])
    for (const { id, name, input, output } of list ?? [])
      found.set(id ?? {}, { tool: name, input, output })
  for (const { id, command, output } of data.executed_cmds ?? [])
    if (!id || !found.has(id)) found.set(id ?? {}, { command, output })
  return [...found.values()]
}

export type WireEvent = { type: string; [key: string]: unknown }

/** One line of NDJSON: what some clients would split lines on is escaped. A token's is put together by hand: there are many. */
export function line(event: WireEvent): string {
  const { type, text } = event
  const isToken = type === 'text_delta' && typeof text === 'string'
  if (isToken && sameInJson.test(text)) return `{"type":"text_delta","text":"${text}"}\n`
  const said = JSON.stringify(isToken ? text : event)
  const json = isToken ? `{"type":"text_delta","text":${said}}` : said
  return `${json.replace(/[\u0085\u2028\u2029]/g, escaped)}\n`
}
/** ASCII that JSON writes as it is. */
const sameInJson = /^[ !#-[\]-~]*$/
function escaped(c: string): string {
  return `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`
}

export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}
