// What can be done: one function that turns a definition into a Tool, with its input typed, validated and filled.
// Knows no agent, no approval and no wire; nothing here runs a tool.
// Schemas: JSON Schema 2020-12, TypeBox, TypeScript text, Standard Schema (https://standardschema.dev).

import { createRequire } from 'node:module'
import { type Static, type TSchema, Type } from 'typebox'
import type { XStatic } from 'typebox/schema'
import { DcafError, type ToolSpec } from './providers/provider.ts'
import type { Session } from './session.ts'

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

/** The standard-schema.dev shape, as far as it is read here. */
export interface StandardSchema<Output = unknown> {
  '~standard': {
    version: 1
    vendor: string
    validate(value: unknown): StandardResult<Output> | Promise<StandardResult<Output>>
    types?: { input: unknown; output: Output } | undefined
    jsonSchema?: { input(options: { target: string }): Record<string, unknown> }
  }
}
type StandardResult<Output> =
  | { value: Output; issues?: undefined }
  | { issues: readonly { message: string; path?: readonly unknown[] | undefined }[] }

type Script<S extends string> = ReturnType<typeof Type.Script<S>>
/** The type `execute` gets, from any of the four ways to write `input`. */
export type InputOf<S> = S extends string
  ? string extends S
    ? Record<string, unknown>
    : Static<Script<S>>
  : S extends { '~standard': { types?: infer T } }
    ? NonNullable<T> extends { output: infer Output }
      ? Output
      : unknown
    : S extends TSchema
      ? Static<S>
      : XStatic<S>
type TextIsObject<S> = S extends string
  ? [InputOf<S>] extends [never] | [readonly unknown[]]
    ? { input: 'is not the text of a TypeScript object type' }
    : [InputOf<S>] extends [object]
      ? unknown
      : { input: 'is not the text of a TypeScript object type' }
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
  /** The input with defaults filled, or what is wrong with it, naming the field. */
  validate(input: unknown): Validated | Promise<Validated>
  /** Set by subagent.ts: the agent behind this tool. */
  agent?: unknown
}
export type Validated = { value: unknown } | { problem: string }
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
  const { approver = 'requester', editable = false, requiresApproval } = definition
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

  const input = inputOf(definition.input, definition.defaults, fault)
  return {
    name,
    description,
    input: input.schema,
    requiresApproval: requiresApproval ?? type === 'command',
    preview,
    timeoutMs,
    approvalTtlMs,
    idempotent: definition.idempotent ?? false,
    editable,
    type,
    approver,
    quorum,
    grantable: definition.grantable ?? false,
    allowInvisible: definition.allowInvisible ?? [],
    execute,
    validate: input.validate,
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

type Json = Record<string, unknown>
type Validate = Tool['validate']

function inputOf(input: unknown, defaults: Json | undefined, fault: (p: string) => DcafError) {
  if (typeof input === 'string') {
    const schema = Type.Script(input) as unknown as Json
    if (schema.type !== 'object' || JSON.stringify(schema).includes('"$ref":"'))
      throw fault(`input is not the text of a TypeScript object type: ${JSON.stringify(input)}`)
    return jsonInput(schema, defaults, fault)
  }
  if (input !== null && (typeof input === 'object' || typeof input === 'function')) {
    const standard = (input as Partial<StandardSchema>)['~standard']
    if (!standard) return jsonInput(input as Json, defaults, fault)
    let schema: Json | undefined
    let why = 'Hand over one that does (valibot: toStandardJsonSchema from @valibot/to-json-schema)'
    try {
      schema = standard.jsonSchema?.input({ target: 'draft-2020-12' })
    } catch (error) {
      why = String(error)
    }
    if (!schema) throw fault(`its ${standard.vendor} schema gives no JSON Schema. ${why}`)
    if (defaults) throw fault('write defaults in the schema itself')
    const { schema: shown } = jsonInput(schema, undefined, fault)
    const validate: Validate = async (value) => {
      try {
        const result = await standard.validate(value)
        if (!result.issues) return { value: result.value }
        const problems = result.issues.map((i) => `${pointer(i.path)} ${i.message}`.trim())
        return { problem: problems.join('; ') || 'invalid' }
      } catch (error) {
        return { problem: error instanceof Error ? error.message : 'its schema failed' }
      }
    }
    return { schema: shown, validate }
  }
  throw fault('input must be TypeScript text, a TypeBox or JSON Schema, or a Standard Schema')
}

function jsonInput(source: Json, defaults: Json | undefined, fault: (p: string) => DcafError) {
  if (source.type !== 'object')
    throw fault(`input must be a schema of type object, got ${JSON.stringify(source.type)}`)
  const schema = { ...source, properties: { ...(source.properties as Json) } } as Json & {
    properties: Record<string, Json>
  }
  for (const [key, value] of Object.entries(defaults ?? {})) {
    if (!Object.hasOwn(schema.properties, key)) throw fault(`defaults.${key} is no property`)
    schema.properties[key] = { ...schema.properties[key], default: value }
  }
  for (const [key, property] of defaulted(schema)) {
    const problem = problems(within(schema, property), fill(property, property.default, schema))
    if (problem) throw fault(`the default of ${key} fails its schema: ${problem}`)
  }
  let check: Validator | undefined
  const validate: Validate = (value) => {
    check ??= compile(schema)
    const filled = fill(schema, value, schema)
    const problem = problems(check, filled)
    return problem ? { problem } : { value: filled }
  }
  return { schema: withoutDefaulted(JSON.parse(JSON.stringify(schema))) as Json, validate }
}

/** Every property that has a default, however deep. */
function* defaulted(schema: unknown): Generator<[string, Json]> {
  if (typeof schema !== 'object' || schema === null) return
  const { properties } = schema as { properties?: Record<string, Json> }
  for (const [key, property] of Object.entries(properties ?? {}))
    if (typeof property === 'object' && 'default' in property) yield [key, property]
  for (const part of Object.values(schema)) yield* defaulted(part)
}

/** A part of a schema by itself, its references still leading somewhere. */
function within({ $defs, definitions }: Json, part: unknown): Validator {
  const more = { ...($defs ? { $defs } : {}), ...(definitions ? { definitions } : {}) }
  return compile(typeof part === 'object' ? { ...part, ...more } : part)
}

type Branches = {
  properties?: Record<string, Json>
  items?: unknown
  allOf?: unknown[]
  anyOf?: unknown[]
  oneOf?: unknown[]
  $ref?: unknown
}

/** A copy of `value` with the defaults of `schema` filled in; of a choice those of the first branch that then fits. */
function fill(schema: unknown, value: unknown, root: Json): unknown {
  if (typeof schema !== 'object' || schema === null) return value
  if (typeof value !== 'object' || value === null) return value
  const { properties, items, allOf = [], anyOf, oneOf, $ref } = schema as Branches
  let filled = value as Json | unknown[]
  if (Array.isArray(filled)) filled = items ? filled.map((item) => fill(items, item, root)) : filled
  else {
    filled = { ...filled }
    for (const [key, property] of Object.entries(properties ?? {})) {
      if (Object.hasOwn(filled, key)) filled[key] = fill(property, filled[key], root)
      else if (typeof property === 'object' && 'default' in property)
        filled[key] = fill(property, structuredClone(property.default), root)
    }
  }
  const steps = typeof $ref === 'string' && $ref.startsWith('#/') ? $ref.slice(2).split('/') : []
  const referred = steps.reduce((at: unknown, step) => (at as Json | undefined)?.[step], root)
  const parts = steps.length > 0 ? [...allOf, referred] : allOf
  for (const part of parts) filled = fill(part, filled, root) as Json
  for (const choice of [anyOf, oneOf]) {
    const tried = choice?.map((branch) => ({ branch, made: fill(branch, filled, root) }))
    const fit = tried?.find(({ branch, made }) => within(root, branch).Check(made))
    if (fit) filled = fit.made as Json
  }
  return filled
}

/** The schema for the model: what has a default need not be given. Changes its argument. */
function withoutDefaulted(schema: unknown): unknown {
  if (typeof schema !== 'object' || schema === null) return schema
  const { properties, required } = schema as {
    properties?: Record<string, Json>
    required?: string[]
  }
  for (const value of Object.values(schema)) withoutDefaulted(value)
  if (properties && Array.isArray(required))
    (schema as Json).required = required.filter((key) => !('default' in (properties[key] ?? {})))
  return schema
}

type Validator = {
  Check(value: unknown): boolean
  Errors(value: unknown): [boolean, SchemaError[]]
}
type SchemaError = {
  instancePath: string
  message: string
  params: { allowedValues?: unknown[]; allowedValue?: unknown }
}

/** TypeBox's compiler takes 30 ms to load: it is loaded when the first input is checked. */
export function compile(schema: unknown): Validator {
  load ??= createRequire(import.meta.url)
  return load('typebox/schema').Compile(schema)
}
let load: NodeJS.Require | undefined

function problems(validator: Validator, value: unknown): string | undefined {
  if (validator.Check(value)) return undefined
  const errors = validator.Errors(value)[1].slice(0, 5)
  return (
    errors.map((e) => `${e.instancePath || 'input'} ${e.message}${allowed(e)}`).join('; ') ||
    'invalid'
  )
}

/** The schema's own values, so that a model need not guess again. */
function allowed({ params }: SchemaError): string {
  if (params.allowedValues)
    return `: ${params.allowedValues.map((v) => JSON.stringify(v)).join(', ')}`
  return 'allowedValue' in params ? `: ${JSON.stringify(params.allowedValue)}` : ''
}

function pointer(path: readonly unknown[] = []): string {
  const key = (step: unknown) =>
    typeof step === 'object' && step !== null && 'key' in step ? step.key : step
  return path.map((step) => `/${String(key(step))}`).join('')
}

function wrong(message: string): DcafError {
  return new DcafError('invalid_argument', message)
}
