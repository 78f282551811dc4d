// What every provider makes of an answer: a reply in our words, with calls whose input is an object or is never run.
// Knows no network and no vendor.

import { randomBytes } from 'node:crypto'
import type { Fail } from './errors.ts'
import { caps } from './limits.ts'
import type { ModelReply, Part, Usage } from './provider.ts'

/**
 * A reply from parts in the vendor's order: neighbouring texts become one, empty ones go, a call without an id of its
 * own gets one, and `stop` beside a call is `tool_call`, whatever word the vendor has for it.
 */
export function toReply({ parts, finishReason, usage, raw }: ModelReply): ModelReply {
  const out: Part[] = []
  let ids: Set<string> | undefined
  for (const part of parts) {
    const before = out.at(-1)
    if (part.type === 'tool_call') {
      ids ??= new Set()
      const isOwn = part.id && !ids.has(part.id)
      const id = isOwn ? part.id : `tc_${randomBytes(12).toString('base64url')}`
      ids.add(id)
      out.push(isOwn ? part : { ...part, id })
    } else if (part.type !== 'text') out.push(part)
    else if (before?.type === 'text') {
      out[out.length - 1] = { type: 'text', text: before.text + part.text }
    } else if (part.text !== '') out.push(part)
  }
  const isCall = ids !== undefined && finishReason === 'stop'
  return { parts: out, finishReason: isCall ? 'tool_call' : finishReason, usage, raw }
}

/** Usage of a wire whose input leaves out what was read from the cache and what was written to it. */
export function toUsage(input: unknown, output: unknown, read: unknown, write: unknown): Usage {
  const [cacheReadTokens, cacheWriteTokens] = [count(read), count(write)]
  const inputTokens = count(input) + cacheReadTokens + cacheWriteTokens
  return { inputTokens, outputTokens: count(output), cacheReadTokens, cacheWriteTokens }
}

/** A number of tokens, or 0 for what is absent or no number. */
function count(value: unknown): number {
  return typeof value === 'number' && value > 0 ? value : 0
}

/** For what is not a string where the wire says string: thrown inside a fold or a parse it becomes `provider_invalid`. */
export function string(value: unknown): string {
  if (typeof value !== 'string') throw new TypeError('not a string')
  return value
}

/** Appends a piece of a call's arguments; a call of more than 1 MiB is no call. */
export function append(answer: { fail: Fail }, text: string, piece: string): string {
  if (text.length + piece.length <= caps.input) return text + piece
  throw answer.fail('provider_invalid', 'sent a tool call of more than 1 MiB')
}

/**
 * A call's input from whatever a wire carries: nothing and blank text are `{}`, an object is itself, the text of one is
 * parsed. All else, and what is deeper than 64 or holds keys that reach prototypes, stays text, which the loop refuses.
 * `cut`: the reply ended for its length in this call, so that nothing is not `{}` but the beginning of something, and an
 * object may be what was left of a larger one.
 */
export function toolInput(value: unknown, cut = false): unknown {
  if (value === undefined || value === null) return cut ? '' : {}
  try {
    if (typeof value !== 'string') return isPlain(value) && !cut ? value : JSON.stringify(value)
    if (value.trim() === '') return cut ? '' : {}
    const input: unknown = JSON.parse(value)
    return isPlain(input) ? input : value
  } catch {
    return typeof value === 'string' ? value : 'nested too deep' // for JSON.stringify
  }
}

/** The reverse, for wires that want an object: text that was none comes along as `malformed_input`. */
export function inputObject(input: unknown): Record<string, unknown> {
  return isObject(input) ? input : { malformed_input: input }
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function isPlain(value: unknown): boolean {
  return isObject(value) && isHarmless(value, 64)
}

function isHarmless(value: unknown, depth: number): boolean {
  if (typeof value !== 'object' || value === null) return true
  if (depth === 0) return false
  for (const key in value) {
    const item = (value as Record<string, unknown>)[key]
    const reaches = key === 'constructor' && Object.hasOwn(Object(item), 'prototype')
    if (key === '__proto__' || reaches || !isHarmless(item, depth - 1)) return false
  }
  return true
}
