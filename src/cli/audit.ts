// dcaf audit FILE: is the chain whole, and who approved what, when, why, with what outcome.

import { type AuditLine, linesOf, verifyAudit } from '../audit.ts'
import type { Command } from '../cli.ts'
import { plain } from './plain.ts'

const command: Command = {
  help: `Usage: dcaf audit FILE [--json]

Checks the hash chain of an audit trail, then prints one line for each call that asked for approval or ran.
Exit code 1 where a line is missing, changed or out of order.
`,
  options: { json: { type: 'boolean', default: false } },
  async run({ positionals: [file], values }, { stdout, stderr }) {
    if (!file) {
      stderr.write(`dcaf audit: FILE is missing\n\n${command.help}`)
      return 2
    }
    const problems = await verifyAudit(file)
    const calls = callsOf(await linesOf(file))
    if (values.json) stdout.write(`${JSON.stringify({ problems, calls }, null, 2)}\n`)
    else {
      stdout.write(table(calls))
      for (const { line, problem } of problems) stdout.write(`line ${line} ${problem}\n`)
      stdout.write(
        problems.length === 0
          ? 'The chain holds.\n'
          : 'The trail was tampered with, or its end was lost.\n',
      )
    }
    return problems.length === 0 ? 0 : 1
  },
}
export default command

export interface AuditedCall {
  time: string
  callId: string
  name: string
  asked?: string
  decision?: string
  by?: string
  reason?: string
  outcome?: string
}

/** One entry a call, in the order they first appear. */
export function callsOf(lines: AuditLine[]): AuditedCall[] {
  const calls = new Map<string, AuditedCall>()
  const of = (callId: unknown, name: unknown, time: string): AuditedCall => {
    const known = calls.get(String(callId)) ?? { time, callId: String(callId), name: String(name) }
    calls.set(known.callId, known)
    return known
  }
  for (const {
    type,
    time,
    callId,
    name,
    reason,
    outcome,
    approvedBy,
    rejectedBy,
    calls: asked,
  } of lines) {
    if (type === 'ApprovalRequested') {
      for (const call of (asked ?? []) as { callId: string; name: string }[])
        of(call.callId, call.name, time).asked ??= time
      continue
    }
    if (callId === undefined || callId === '') continue
    const call = of(callId, name, time)
    const decisions: Record<string, string> = {
      ToolCallApproved: 'approved',
      ToolCallRejected: 'rejected',
      ToolCallExpired: 'expired',
      ToolCallRefused: 'refused',
    }
    const decision = decisions[type]
    // Anyone can send a word that is refused; it takes nothing back from one that counted.
    if (decision && !(call.decision && type === 'ToolCallRefused'))
      Object.assign(call, {
        decision,
        time,
        by: approvedBy ?? rejectedBy ?? call.by,
        reason: reason ?? call.reason,
      })
    if (outcome !== undefined) call.outcome = String(outcome)
  }
  return [...calls.values()]
}

function table(calls: AuditedCall[]): string {
  const rows = calls.map((c) => [
    c.time,
    c.callId,
    c.name,
    c.decision ?? (c.asked ? 'waits' : 'automatic'),
    c.by ?? '-',
    c.outcome ?? '-',
    c.reason ?? '',
  ])
  const heads = ['TIME', 'CALL', 'TOOL', 'DECISION', 'BY', 'OUTCOME', 'REASON']
  const all = [heads, ...rows.map((row) => row.map((cell) => plain(cell, '')))]
  const widths = all[0]?.map((_, i) => Math.max(...all.map((row) => (row[i] ?? '').length))) ?? []
  return `${all
    .map((row) =>
      row
        .map((cell, i) => cell.padEnd(widths[i] ?? 0))
        .join('  ')
        .trimEnd(),
    )
    .join('\n')}\n`
}
