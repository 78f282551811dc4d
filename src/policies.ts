// Ready-made policies: what may run unasked, what a person must see, what never runs. Plain functions for an agent's
// `policy` or a tool's `requiresApproval`; knows nothing of how their verdicts are combined or kept (approval.ts).
// Covers: partial matches, line ends, shell operators, invisible characters, patterns that take forever. Does not cover:
// what an allowed command does with its options. Allow words you know, not `.*`.

import { createContext, Script } from 'node:vm'
import { DcafError } from './providers/provider.ts'
import type { Verdict } from './tool.ts'

/** About a call: for an agent's `policy`. Fits `Policy`. */
export type CallPolicy = (call: { name: string; input: unknown }, ctx: Known) => Said
/** About an input: for a tool's `requiresApproval`, or for tools one does not own through `onTools`. */
export type InputPolicy<V = Said> = (input: unknown, ctx?: Known) => V
type Known = { platform: Record<string, unknown> }
type Said = Verdict | undefined

/** Text with `*` for anything and `?` for one character, in any case; a RegExp; both must match the whole. */
export type Pattern = string | RegExp
/** A value by key. All must hold; of several patterns, or of a list of values, one is enough. */
export type Conditions = Record<string, Pattern | Pattern[] | ((value: unknown) => boolean)>

/**
 * Asks for every tool whose name matches. The five lines of a strict production policy:
 *
 *     policy: [
 *       highRisk('delete_*', 'restart_*', /(drop|purge)_.+/),
 *       whenContext({ tenant_name: 'prod*' }, 'ask', 'production'),
 *       onTools('delete_*', whenContext({ tenant_name: 'prod*', user_roles: 'viewer' }, 'deny', 'not for viewers')),
 *       onTools('*', whenInput({ namespace: 'kube-*' }, 'deny', 'the cluster itself is off limits')),
 *     ]
 */
export function highRisk(...names: Pattern[]): CallPolicy {
  return onTools(names, () => ({ verdict: 'ask', reason: 'high risk' }))
}

/** `policy` for the tools whose name matches; no opinion on others. */
export function onTools(names: Pattern | Pattern[], policy: InputPolicy): CallPolicy {
  const wanted = [names].flat().map((name) => whole(name))
  if (wanted.length === 0) throw wrong("name the tools, as in highRisk('delete_*')")
  return ({ name, input }, ctx) =>
    wanted.some((pattern) => pattern.test(name)) ? policy(input, ctx) : undefined
}

/**
 * `verdict` where the platform context is like this: `whenContext({ tenant_name: 'prod*' }, 'ask', 'production')`.
 * Asks where that cannot be known: a key is absent, a value is longer than 4 KiB, a pattern takes longer than 50 ms.
 */
export function whenContext(when: Conditions, verdict: 'ask' | 'deny', reason?: string) {
  const judge = conditions(when, verdict, reason, undefined)
  return (_: unknown, ctx?: Known): Said => judge(ctx?.platform ?? {})
}

/** The same over the call's input, defaults filled; an absent key is like nothing. */
export function whenInput(when: Conditions, verdict: 'ask' | 'deny', reason?: string): InputPolicy {
  return conditions(when, verdict, reason, false)
}

/**
 * For a tool that takes a command line: `requiresApproval: matching({ field: 'command', allow: ['kubectl get *'] })`.
 * Anything that matches `deny` anywhere is denied. Only what matches `allow` as a whole runs unasked, and only if it is
 * one plain line: up to 4 KiB of printable ASCII without any of ; & | ` $ ( ) { } [ ] < > \ * ? ~ ! ^ % ' " # (a shell
 * takes quotes off, so that "--x" is an option) and without `files` beside it. In texts of `allow`, `*` is one word, or the rest of one, and no word that begins with `-`.
 */
export function matching(options: {
  /** Default `command`. Other fields are not looked at. */
  field?: string
  allow?: Pattern[]
  deny?: Pattern[]
}): InputPolicy<Verdict> {
  const { field = 'command', allow = [], deny = [] } = options
  const allowed = allow.map((pattern) => whole(pattern, String.raw`(?!(?<=\s)-)\S*`, ''))
  const denied = deny.map(anywhere)
  const ask = (reason: string): Verdict => ({ verdict: 'ask', reason: `${field} ${reason}` })
  return (input) => {
    const { [field]: text, files } = { ...(input as Record<string, unknown>) }
    if (typeof text !== 'string') return ask('is no text')
    const forbidden = matches(denied, text)
    if (forbidden) return { verdict: 'deny', reason: `${field} is of a forbidden kind` }
    if (forbidden === undefined) return ask('could not be judged')
    if (files && Object.keys(files).length > 0) return ask('brings files')
    if (!/^[ -~]*$/.test(text)) return ask('has characters beyond a line of ASCII')
    if (/[;&|`$(){}[\]<>\\*?~!^%'"#]/.test(text)) return ask('has shell operators or quotes')
    return matches(allowed, text) ? 'allow' : ask('is not on the list of what runs unasked')
  }
}

type Condition = (value: unknown) => boolean | undefined

/** `absent`: what is known of a key that is not there. */
function conditions(
  when: Conditions,
  verdict: 'ask' | 'deny',
  reason: string | undefined,
  absent: false | undefined,
): (values: unknown) => Said {
  const keys = Object.keys(when)
  if (keys.length === 0) throw wrong("name a condition, as in { tenant_name: 'prod*' }")
  const holds = Object.entries(when).map(([key, wanted]): [string, Condition] => {
    if (typeof wanted === 'function') return [key, wanted]
    const patterns = [wanted].flat().map((pattern) => whole(pattern))
    return [
      key,
      (value) => (value === undefined || value === null ? absent : like(value, patterns)),
    ]
  })
  const because = reason ?? `because of ${keys.join(', ')}`
  return (values) => {
    const all: Record<string, unknown> = { __proto__: null, ...(values as object) }
    const known = holds.map(([key, holds]) => [key, holds(all[key])] as const)
    if (known.some(([, is]) => is === false)) return undefined
    const unsure = known.filter(([, is]) => is === undefined).map(([key]) => key)
    if (unsure.length === 0) return { verdict, reason: because }
    return { verdict: 'ask', reason: `${because}: ${unsure.join(', ')} could not be judged` }
  }
}

function like(value: unknown, patterns: RegExp[]): boolean | undefined {
  if (!Array.isArray(value))
    return typeof value === 'object' ? undefined : matches(patterns, `${value}`)
  const items = value.map((item) => like(item, patterns))
  return items.includes(true) ? true : items.includes(undefined) ? undefined : false
}

/** Longer texts are for a person: the time a pattern takes may grow with the square of the length, or worse. */
const maxLength = 4096
/** No pattern holds up everything else for longer. */
const maxMs = 50
/** How often a pattern is tried that the clock stopped while this process was not even running. */
const maxLooks = 20

/** Whether one of them matches; `undefined`: not known. The vm is there for its clock, which stops a RegExp too. */
function matches(patterns: RegExp[], text: string): boolean | undefined {
  if (text.length > maxLength) return undefined
  if (patterns.length === 0) return false
  sandbox ??= createContext()
  Object.assign(sandbox, { patterns, text })
  const before = process.cpuUsage()
  for (let look = 1; look <= maxLooks; look++) {
    try {
      return search.runInContext(sandbox, { timeout: maxMs })
    } catch {
      // The clock is the wall's: on a busy or throttled machine it runs out on a pattern that has had no time yet.
      const { user, system } = process.cpuUsage(before)
      if (user + system >= maxMs * 1000) return undefined
    }
  }
  return undefined
}
const search = new Script('patterns.some((pattern) => pattern.test(text))')
let sandbox: object | undefined

/** Without `m`, so that `$` is the end and no line's; without `g` and `y`, which remember where they were. */
function whole(pattern: Pattern, star = '.*', flags = 'is'): RegExp {
  if (typeof pattern === 'string') return new RegExp(`^(?:${source(pattern, star)})$`, flags)
  return new RegExp(`^(?:${checked(pattern).source})$`, pattern.flags.replace(/[gmy]/g, ''))
}

/** With `s`: what is forbidden stays so behind a line end. */
function anywhere(pattern: Pattern): RegExp {
  if (typeof pattern === 'string') return new RegExp(source(pattern, '.*'), 'is')
  return new RegExp(checked(pattern).source, `${pattern.flags.replace(/[gys]/g, '')}s`)
}

function source(text: string, star: string): string {
  const one = star === '.*' ? '.' : String.raw`[^\s-]`
  const meaning: Record<string, string> = { '*': star, '?': one }
  return text.replace(/[\\^$.*+?()[\]{}|/-]/g, (c) => meaning[c] ?? `\\${c}`)
}

function checked(pattern: unknown): RegExp {
  if (pattern instanceof RegExp) return pattern
  throw wrong(`a pattern is text or a RegExp, got ${typeof pattern}`)
}

function wrong(message: string): DcafError {
  return new DcafError('invalid_argument', message)
}
