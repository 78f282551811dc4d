// What can be done: one function that turns a definition into a Tool, with its input typed, validated and filled.
// Knows no agent, no approval and no wire; nothing here runs a tool. What an `input` may be: schema.ts.

import type { Static, Type } from 'typebox'
import { DcafError, type ToolSpec } from './providers/provider.ts'
import { inputOf, type Validated } from './schema.ts'
import type { Session, Stored } from './session.ts'

export { compile, type StandardSchema, type Validated } from './schema.ts'

export type Word = 'allow' | 'ask' | 'deny'
export type Verdict = Word | { verdict: Word; reason?: string }

/** What the caller knows of whoever asks. Tools see all of it; the model none of it. Unknown keys are kept. */
export interface PlatformContext {
  tenant_id?: string
  tenant_name?: string
  user_roles?: string[]
  k8s_namespace?: string
  kubeconfig?: string
  kubeconfig_path?: string
  duplo_base_url?: string
  duplo_token?: string
  aws_credentials?: Record<string, string>
  aws_region?: string
  scopes?: Record<string, unknown>[]
  skills?: Record<string, unknown>[]
  user_id?: string
  session_id?: string
  run_id?: string
  request_id?: string
  thread_id?: string
  [key: string]: unknown
}

export interface ToolContext {
  platform: PlatformContext
  session: Session
  /** Aborts at the tool's timeout; for automatic calls also when the client goes, the deadline or a shutdown. */
  signal: AbortSignal
  /** `tc_...`: the call's name in the ledger and in events. A key for idempotent work of yours. */
  callId: string
  /** Tells whoever watches what is going on, while the tool runs. */
  update(text: string, content?: Record<string, unknown>): void
  /** Runs another agent as part of this call; its pending calls surface in this run (see subagent.ts). */
  delegate(child: unknown, messages: string): Promise<unknown>
}

/** The type `execute` gets, from any of the four ways to write `input`. */
export type InputOf<S> = S extends string
  ? string extends S
    ? Record<string, unknown>
    : Static<ReturnType<typeof Type.Script<S>>>
  : Stored<S>
type NoObject = { input: 'is not the text of a TypeScript object type' }
type TextIsObject<S> = S extends string
  ? [InputOf<S>] extends [never] | [readonly unknown[]]
    ? NoObject
    : [InputOf<S>] extends [object]
      ? unknown
      : NoObject
  : unknown

export interface ToolDefinition<S> {
  /** 1 to 64 of letters, digits, `_` and `-`. */
  name: string
  /** For the model and for whoever approves: both see exactly this. */
  description: string
  /** TypeScript text, a TypeBox schema, JSON Schema, or a Standard Schema that gives JSON Schema. */
  input: S & TextIsObject<S>
  /** Defaults beside TypeScript text, or on top of a JSON Schema's own. */
  defaults?: Partial<InputOf<S>>
  /** Default false. A function is asked with the filled input at the proposal and again at execution; one that throws or gives nothing asks. */
  requiresApproval?:
    | boolean
    | ((input: InputOf<S>, ctx: ToolContext) => boolean | Verdict | Promise<boolean | Verdict>)
  /** What would happen, shown to the approver; computed again before execution, and a changed `key` (default: the text) asks again. */
  preview?: (input: InputOf<S>, ctx: ToolContext) => Preview | Promise<Preview>
  /** Milliseconds; default `limits.toolMs`. */
  timeoutMs?: number
  /** Safe to repeat: a timeout is then an error, and a call that began and never finished may run again. */
  idempotent?: boolean
  /** An approver may change the input and run it in one step. */
  editable?: boolean
  /** `tool_call` (default), `command` (input `{ command, files? }`, always asks), or a word of your own for clients. */
  type?: string
  /** Who may approve; default `requester`. `other`: anyone known but who asked. */
  approver?: 'requester' | 'anyone' | 'other'
  /** How many different people must approve; default 1. */
  quorum?: number
  /** Milliseconds an approval of this tool holds; default `limits.approvalTtlMs`. */
  approvalTtlMs?: number
  /** Top-level fields that may hold bidi, zero-width and control characters in a call that needs approval; `true`: all. */
  allowInvisible?: true | string[]
  /** An approval may carry a scoped grant (grants.ts). */
  grantable?: boolean
  execute: (input: InputOf<S>, ctx: ToolContext) => unknown
}
export type Preview = string | { text: string; key?: string }

// biome-ignore lint/suspicious/noExplicitAny: each definition typed its own; `validate` is what keeps it true
type Filled = any

/** A definition that passed `tool()`. `input` is the JSON Schema that the model sees. */
export interface Tool extends ToolSpec, Required<Pick<ToolDefinition<object>, Flag>> {
  requiresApproval: boolean | ((input: Filled, ctx: ToolContext) => unknown)
  preview: ((input: Filled, ctx: ToolContext) => Preview | Promise<Preview>) | undefined
  timeoutMs: number | undefined
  approvalTtlMs: number | undefined
  allowInvisible: true | string[]
  execute: (input: Filled, ctx: ToolContext) => unknown
  /** A copy of the input with defaults filled, or what is wrong with it; later only where its Standard Schema says so later. */
  validate(input: unknown): Validated | Promise<Validated>
  /** Set by subagent.ts: the agent behind this tool. */
  agent?: unknown
}
type Flag = 'idempotent' | 'editable' | 'type' | 'approver' | 'quorum' | 'grantable'

/** Throws `invalid_argument` for whatever is wrong for good. */
export function tool<const S>(definition: ToolDefinition<S>): Tool {
  if (typeof definition !== 'object' || definition === null)
    throw wrong(`a tool is made of a definition, tool({ name, ... }), got ${typeof definition}`)
  const { name, description, execute } = definition
  if (typeof name !== 'string' || !/^[A-Za-z0-9_-]{1,64}$/.test(name))
    throw wrong(`a tool's name must be 1 to 64 of A-Z a-z 0-9 _ -, got ${JSON.stringify(name)}`)
  const fault = (problem: string) => wrong(`tool ${name}: ${problem}`)
  if (typeof description !== 'string' || !description.trim())
    throw fault('description is missing: the model and the approver read it')
  if (typeof execute !== 'function') throw fault('execute must be a function (input, ctx) => ...')
  const { preview, timeoutMs, approvalTtlMs, type = 'tool_call', quorum = 1 } = definition
  const { approver = 'requester', editable = false, idempotent = false } = definition
  const { requiresApproval, grantable = false, allowInvisible = [] } = definition
  for (const [key, value] of Object.entries({ timeoutMs, approvalTtlMs, quorum }))
    if (value !== undefined && !(Number.isSafeInteger(value) && value > 0))
      throw fault(`${key} must be a whole number above 0, got ${value}`)
  if (!['requester', 'anyone', 'other'].includes(approver))
    throw fault(`approver must be 'requester', 'anyone' or 'other', got ${String(approver)}`)
  if (quorum > 1 && approver === 'requester')
    throw fault("quorum above 1 needs approver: 'anyone' or 'other'")
  if (editable && (preview || quorum > 1 || approver !== 'requester'))
    throw fault('editable goes with no preview, quorum or other approver')
  if (type === 'command' && requiresApproval === false)
    throw fault('a tool of type command always asks; leave requiresApproval out')

  const { schema, validate } = inputOf(definition.input, definition.defaults, fault)
  return {
    ...{ name, description, input: schema, validate, execute, preview, timeoutMs, approvalTtlMs },
    ...{ type, approver, quorum, editable, idempotent, grantable, allowInvisible },
    requiresApproval: requiresApproval ?? type === 'command',
  }
}

/** A tool's value as the text that model and client read. Throws for what is no JSON. */
export function outputText(tool: Tool, value: unknown): string {
  const shell = tool.type === 'command' && typeof value === 'object' ? commandText(value) : value
  const text = typeof shell === 'string' ? shell : (JSON.stringify(shell) ?? '')
  if (tool.type === 'command' && !text.trim())
    return 'Command executed successfully with no output.'
  return text.toWellFormed()
}

/** `{ stdout?, stderr?, exitCode? }`, the usual result of a shell; anything else stays as it is. */
function commandText(value: object | null): unknown {
  if (!value || !('stdout' in value || 'stderr' in value || 'exitCode' in value)) return value
  const { stdout, stderr, exitCode } = value as Record<string, unknown>
  const errors = `${stderr ?? ''}`.trim() ? `Errors:\n${stderr}` : ''
  const code = (exitCode ?? 0) === 0 ? '' : `Exit code: ${exitCode}`
  return [`${stdout ?? ''}`.trimEnd(), errors.trimEnd(), code].filter(Boolean).join('\n')
}

function wrong(message: string): DcafError {
  return new DcafError('invalid_argument', message)
}
