// A model that answers from a script: for tests, demonstrations and benches. One entry is one model call.
// It knows no wire, no network and no clock, and is a `Provider` like any other.

import type {
  CompleteOptions,
  FinishReason,
  ModelReply,
  ModelRequest,
  Part,
  Provider,
  Usage,
} from './provider.ts'
import { DcafError, noUsage } from './provider.ts'

/** One answer with everything a real one can have. `text` is one piece; `pieces` stream one by one. */
export interface ScriptedReply {
  text?: string
  pieces?: string[]
  /** Without `id` a call gets one that no other call has. */
  calls?: { name: string; input?: unknown; id?: string }[]
  /** Data of one opaque part (thinking, a signature) that comes before the text. */
  opaque?: unknown
  /** The reply's parts as they are, in place of `opaque`, `text` and `calls`; what streams is still `pieces`. */
  parts?: Part[]
  /** Default: `tool_call` when there are calls, else `stop`. */
  finishReason?: FinishReason
  /** Default: zeroes for what is not said. */
  usage?: Partial<Usage>
  raw?: unknown
  /** Thrown after the pieces were streamed: a wire that broke in the middle. */
  error?: Error
}

/** A final text, its streamed pieces, a whole reply, a failure, or a function of what was asked that gives one. */
export type ScriptEntry = string | string[] | ScriptedReply | Error | ScriptFunction

/** Gets a copy of the request, the options of the call, and which call it is, counted from 0. */
export type ScriptFunction = (
  request: ModelRequest,
  options: CompleteOptions,
  index: number,
) => ScriptEntry | Promise<ScriptEntry>

export interface ScriptedProvider extends Provider {
  /** What each call was asked, in order, as JSON copies: later changes of the caller's do not show. */
  requests: ModelRequest[]
}

/**
 * `replies` are used up in order; a function in their place answers every call, without end. A call beyond the
 * last reply rejects with a `DcafError` that says how many there were.
 */
export function scripted(
  replies: readonly ScriptEntry[] | ScriptFunction,
  options: { name?: string; model?: string } = {},
): ScriptedProvider {
  const { name = 'scripted', model = 'scripted' } = options
  const requests: ModelRequest[] = []

  async function complete(request: ModelRequest, call: CompleteOptions = {}): Promise<ModelReply> {
    call.signal?.throwIfAborted()
    const index = requests.length
    requests.push(copy(request))
    const entry = typeof replies === 'function' ? replies : entryAt(replies, index)
    return orAborted(answer(entry, copy(request), call, index), call.signal)
  }

  async function answer(
    entry: ScriptEntry,
    request: ModelRequest,
    call: CompleteOptions,
    index: number,
  ): Promise<ModelReply> {
    while (typeof entry === 'function') entry = await entry(request, call, index)
    if (entry instanceof Error) throw entry
    const reply = toReply(entry)
    const pieces = reply.pieces ?? (reply.text === undefined ? [] : [reply.text])
    for (const text of call.onDelta ? pieces : []) {
      if (text !== '') await call.onDelta?.({ type: 'text_delta', text })
      call.signal?.throwIfAborted()
    }
    if (reply.error) throw reply.error
    const parts = reply.parts ? copy(reply.parts) : toParts(reply, pieces.join(''), name)
    const calls = parts.some((part) => part.type === 'tool_call')
    return {
      parts,
      finishReason: reply.finishReason ?? (calls ? 'tool_call' : 'stop'),
      usage: { ...noUsage, ...reply.usage },
      ...(reply.raw === undefined ? {} : { raw: reply.raw }),
    }
  }

  return { name, model, requests, render: copy, complete }
}

function entryAt(replies: readonly ScriptEntry[], index: number): ScriptEntry {
  const entry = replies[index]
  if (entry !== undefined) return entry
  const had = replies.length === 1 ? '1 reply' : `${replies.length} replies`
  throw new DcafError(
    'provider_error',
    `The script had ${had}, and this is model call ${index + 1}. Add a reply, or see why the model is asked again.`,
  )
}

function toReply(entry: string | string[] | ScriptedReply): ScriptedReply {
  if (typeof entry === 'string') return { text: entry }
  if (Array.isArray(entry)) return { pieces: entry }
  if (typeof entry === 'object' && entry !== null) return entry
  throw new DcafError(
    'invalid_argument',
    `A script entry must be a text, its pieces, a reply, an Error or a function, got ${String(entry)}`,
  )
}

function toParts(reply: ScriptedReply, text: string, provider: string): Part[] {
  const parts: Part[] = []
  if (reply.opaque !== undefined) {
    parts.push({ type: 'opaque', provider, data: copy(reply.opaque) })
  }
  if (text !== '') parts.push({ type: 'text', text })
  for (const { id = `call_${crypto.randomUUID()}`, name, input = {} } of reply.calls ?? []) {
    parts.push({ type: 'tool_call', id, name, input: copy(input) })
  }
  return parts
}

/** As a wire would carry it: JSON. */
export function copy<T>(value: T): T {
  return JSON.parse(JSON.stringify(value)) as T
}

/** A script function or a slow reader may hang: the abort must not wait for it. */
function orAborted<T>(work: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (!signal) return work
  return new Promise<T>((resolve, reject) => {
    const abort = () => reject(signal.reason)
    signal.addEventListener('abort', abort, { once: true })
    work.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort))
  })
}
