// The log of the door: one entry a request, a model call, a warning or a failure; plain JSON, masked, on one line. Loaded
// when `chatHandler` is given `log` or `onEvent`. Neither hurts anybody when it throws or hangs, and nobody waits for them.

import type { ServerResponse } from 'node:http'
import { quietly, type RunFact } from './agent.ts'
import { type ChatOptions, type LogEntry, printed } from './http.ts'
import { type Mask, masker, maskJson, tracing } from './mask.ts'
import type { DcafError, ErrorCode } from './providers/provider.ts'
import type { PlatformContext } from './tool.ts'

/** The request that an entry belongs to. */
interface About {
  res: ServerResponse
  path: string
  started: number
  requestId: string
  context: PlatformContext
  mask: Mask
  outcome: Record<string, unknown> | undefined
}

const payloads = ['input', 'output', 'error', 'reason', 'calls', 'raw', 'details']
const troubles: Record<string, LogEntry['level']> = {
  LedgerFailed: 'error',
  PausedRunIgnored: 'warn',
}
/** Ends of a request that say nothing but their code, which its entry has: a crowd of them needs no crowd of stacks. */
const ordinary = new Set<ErrorCode>(['aborted', 'busy', 'deadline', 'shutting_down'])

export function logOf({ log, onEvent, logPayloads, trustClient }: ChatOptions) {
  function note(
    about: About | undefined,
    level: LogEntry['level'],
    event: string,
    more: Record<string, unknown>,
  ): void {
    if (!log) return
    const mask = about?.mask ?? masker([])
    const ids = about ? { request_id: about.requestId, ...tracing(about.context) } : {}
    const clean = (text: string) => oneLine(mask(text))
    quietly(() => {
      const said = Object.entries(JSON.parse(JSON.stringify({ ...ids, ...more })))
      const data = Object.fromEntries(said.map(([key, value]) => [key, maskJson(value, clean)]))
      return log({ level, event, time: new Date().toISOString(), ...data })
    })
  }
  const unproven = { message: 'approvals are accepted without proof' }
  if (trustClient) note(undefined, 'warn', 'trust_client', unproven)
  return {
    request(about: About): void {
      const { res, path, started, outcome } = about
      note(about, 'info', 'request', {
        method: res.req.method,
        path,
        ...(res.headersSent && { status: res.statusCode }),
        duration_ms: Math.round(performance.now() - started),
        ...outcome,
      })
    },
    warn(about: About, message: string): void {
      note(about, 'warn', 'session', { message })
    },
    /** The whole of an error, for the log alone. */
    failure(about: About, { code, message, stack, cause }: DcafError): void {
      if (ordinary.has(code)) return
      const why = cause !== undefined && { cause: printed(cause) }
      note(about, 'error', 'failure', { message, code, stack, ...why })
    },
    fact(about: About, fact: RunFact): void {
      const { type, timestamp: _, body: __, ...data } = fact
      if (!logPayloads && !troubles[type]) for (const key of payloads) delete data[key]
      note(about, troubles[type] ?? 'info', type, data)
      quietly(() => onEvent?.(fact))
    },
  }
}

/** Cut where a client chose its length; what JSON leaves raw and a line reader or an eye trips over, escaped as JSON would. */
function oneLine(text: string): string {
  const unit = (c: string) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`
  const hidden = /[\u007f-\u009f\p{Zl}\p{Zp}\p{Cf}]/gu
  return text.slice(0, 65_536).replace(hidden, (c) => c.replace(/./gs, unit))
}
