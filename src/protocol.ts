// The HelpDesk wire: JSON Schema of what comes in, what a message decides, the shapes that go out, and the one
// writer of NDJSON. Knows no agent and no HTTP. JSON keys are snake_case here and nowhere else.

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

/** What one id says in the last message, all its lists taken together. `at` points to its first entry. */
export interface WireItem {
  id: string
  lists: WireList[]
  at: string
  name?: string
  input?: Record<string, unknown>
  approve: boolean
  reason?: string
  edited?: Record<string, unknown>
  grant?: { where?: Record<string, unknown>; until?: string; max_uses?: number }
  path?: string[]
}

/** A request that cannot be answered; `problems` list JSON Pointers, never values. */
export class WireError extends DcafError {
  override name = 'WireError'
  readonly problems: WireProblem[] | undefined
  constructor(
    code: 'invalid_request' | 'messages_missing' | 'messages_empty',
    message: string,
    problems?: WireProblem[],
  ) {
    super(code, message)
    this.problems = problems
  }
}

export function invalid(path: string, message: string): WireError {
  return new WireError('invalid_request', 'The request is not valid.', [{ path, message }])
}

/** The thread without messages of other roles, checked as a whole; `index` is each one's place on the wire. */
export function readThread(
  body: unknown,
  limit: number,
): { message: WireMessage; index: number }[] {
  const messages = isRecord(body) && Object.hasOwn(body, 'messages') ? body.messages : undefined
  if (messages === undefined)
    throw new WireError('messages_missing', "'messages' field missing from request body")
  if (!Array.isArray(messages)) throw invalid('/messages', 'must be array')
  if (messages.length === 0) throw new WireError('messages_empty', 'No messages provided')
  if (messages.length > limit)
    throw invalid('/messages', `must have at most ${limit} messages (limit messages)`)
  check ??= compile(messageSchema)
  const thread: { message: WireMessage; index: number }[] = []
  const problems: WireProblem[] = []
  for (const [index, message] of messages.entries()) {
    const foreign =
      isRecord(message) &&
      typeof message.role === 'string' &&
      !['user', 'assistant'].includes(message.role)
    if (foreign) continue
    if (check.Check(message)) thread.push({ message: message as WireMessage, index })
    else problems.push(...faults(check.Errors(message)[1], `/messages/${index}`))
  }
  if (problems.length > 0)
    throw new WireError('invalid_request', 'The request is not valid.', problems.slice(0, 20))
  const last = thread.at(-1)
  if (!last) throw new WireError('messages_empty', 'No messages provided')
  if (last.message.role !== 'user')
    throw invalid(`/messages/${last.index}/role`, 'the last message must be a user message')
  return thread
}
let check: ReturnType<typeof compile> | undefined

type Fault = {
  keyword: string
  instancePath: string
  message: string
  params?: { requiredProperties?: string[] }
}

/** Of a union with null only what is wrong with the other branch is worth saying. */
function faults(errors: object[], at: string): WireProblem[] {
  const said = new Map<string, string>()
  for (const { keyword, instancePath, message, params } of errors as Fault[]) {
    if (keyword === 'anyOf' || message === 'must be null') continue
    const missing = keyword === 'required' ? params?.requiredProperties?.[0] : undefined
    said.set(
      missing ? `${at}${instancePath}/${missing}` : at + instancePath,
      missing ? 'is missing' : message,
    )
  }
  return [...said].map(([path, message]) => ({ path, message }))
}

/** What the last message says of calls; entries of one id are one item. Throws where they contradict each other. */
export function readItems(message: WireMessage, index: number, limit: number): WireItem[] {
  const items = new Map<string, WireItem & { said: boolean }>()
  for (const [key, place, entry] of entriesOf(message)) {
    const at = `/messages/${index}/data/${key}/${place}`
    const next = itemOf(key, at, entry)
    const known = items.get(next.id)
    if (!known || !next.id) {
      items.set(next.id || at, next)
      continue
    }
    if (!known.lists.includes(key)) known.lists.push(key)
    if (!next.said) {
      known.name ??= next.name as string
      continue
    }
    if (known.said && differ(known, next))
      throw invalid(at, 'contradicts another entry of the same id')
    if (!known.said)
      Object.assign(known, { ...next, lists: known.lists, name: next.name ?? known.name })
    else
      for (const field of ['name', 'input', 'path', 'edited', 'grant'] as const)
        if (known[field] === undefined && next[field] !== undefined)
          Object.assign(known, { [field]: next[field] })
  }
  if (items.size > limit)
    throw invalid(`/messages/${index}/data`, `must decide at most ${limit} calls (limit decisions)`)
  return [...items.values()]
}

type Entry = XStatic<typeof toolCall> & XStatic<typeof command>

function entriesOf({ data }: WireMessage): [WireList, number, Entry][] {
  const all = (key: WireList) =>
    (data?.[key] ?? []).map((entry, i): [WireList, number, Entry] => [key, i, entry as Entry])
  return [...all('tool_calls'), ...all('approvals'), ...all('cmds')]
}

/** `said`: it approves or rejects; without that an entry only echoes. */
function itemOf(key: WireList, at: string, entry: Entry): WireItem & { said: boolean } {
  const reason = entry.rejection_reason?.trim() ? entry.rejection_reason : undefined
  const approve = entry.execute === true
  if (approve && reason !== undefined) throw invalid(at, 'has execute: true and a rejection_reason')
  if (entry.edited_input && !approve) throw invalid(`${at}/edited_input`, 'needs execute: true')
  const input = key === 'cmds' ? commandInput(entry) : entry.input
  const item: WireItem & { said: boolean } = {
    id: entry.id ?? '',
    lists: [key],
    at,
    approve,
    said: approve || reason !== undefined,
  }
  const more = {
    name: entry.name,
    input,
    reason,
    edited: entry.edited_input,
    grant: entry.grant,
    path: entry.path,
  }
  for (const [field, value] of Object.entries(more))
    if (value !== undefined && value !== null) Object.assign(item, { [field]: value })
  return item
}

function commandInput({ command, files }: Entry): Record<string, unknown> | undefined {
  if (typeof command !== 'string') return undefined
  return files ? { command, files } : { command }
}

function differ(a: WireItem, b: WireItem): boolean {
  if (a.approve !== b.approve || a.reason !== b.reason) return true
  return (['input', 'edited', 'grant', 'name', 'path'] as const).some((field) => {
    const both = a[field] !== undefined && b[field] !== undefined
    return both && !same(a[field], b[field])
  })
}

function same(a: unknown, b: unknown): boolean {
  if (a === b) return true
  if (typeof a !== 'object' || typeof b !== 'object' || a === null || b === null) return false
  const keys = Object.keys(a)
  if (Array.isArray(a) !== Array.isArray(b) || keys.length !== Object.keys(b).length) return false
  return keys.every((key) => Object.hasOwn(b, key) && same((a as never)[key], (b as never)[key]))
}

/** What a message's lists say was proposed, by id: the echo of an answer of ours. */
export function proposedIn(
  message: WireMessage,
): Map<string, { name: string; input: unknown; path?: string[]; preview?: string }> {
  const found = new Map<
    string,
    { name: string; input: unknown; path?: string[]; preview?: string }
  >()
  for (const [key, , entry] of entriesOf(message)) {
    if (!entry.id || key === 'cmds' || !entry.name) continue
    const { name, input = {}, path, preview } = entry
    found.set(entry.id, {
      name,
      input: input ?? {},
      ...(path && { path }),
      ...(preview && { preview }),
    })
  }
  return found
}

/** What the client reports as done, each call once. */
export function reportedIn({ data }: WireMessage): unknown[] {
  const found = new Map<unknown, unknown>()
  const calls = [...(data?.executed_tool_calls ?? []), ...(data?.executed_approvals ?? [])]
  for (const { id, name, input, output } of calls)
    found.set(id ?? {}, { tool: name, input, output })
  for (const { id, command, output } of data?.executed_cmds ?? [])
    if (!id || !found.has(id)) found.set(id ?? {}, { command, output })
  return [...found.values()]
}

/** One line of NDJSON: what some clients would split lines on is escaped. */
export function line(event: unknown): string {
  return `${JSON.stringify(event).replace(/[\u0085\u2028\u2029]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`)}\n`
}

export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}
