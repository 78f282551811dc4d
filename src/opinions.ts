// What an agent's and a tool's own functions say of a call: policies and previews, each with an input of its own and
// against the tool's clock. What fails, is late or says nothing that can be read asks a person. Loaded when the first is
// asked; tools with a plain `requiresApproval` and no preview need none.

import { type Checked, type Gate, type Policy, words } from './approval.ts'
import { canonical, nonce } from './proof.ts'
import type { Tool, Word } from './tool.ts'

const strictness: Word[] = ['allow', 'ask', 'deny']
type Spoken = { verdict: Word; reason?: string | undefined }

/** The strictest of the tool's own word and every policy, with the reasons of that verdict. `given` makes an input. */
export async function consult(
  gate: Gate,
  policies: Policy[],
  tool: Tool,
  value: unknown,
  given: () => unknown,
): Promise<Checked> {
  const { context, mask, signal = new AbortController().signal } = gate.scope
  const { name, type, requiresApproval: own } = tool
  const ctx = context({ id: '', name }, () => signal)
  const ask = async (policy: () => unknown, isOwn = false): Promise<Spoken> => {
    try {
      const said = policy()
      const later = typeof said === 'object' && said !== null && 'then' in said
      const word = later ? await within(gate.timeoutOf(tool), said) : said
      return asVerdict(isOwn ? (word ?? true) : word) // a tool's own word forgot its return
    } catch (error) {
      return { verdict: 'ask', reason: `A policy failed, so a person is asked: ${words(error)}` }
    }
  }
  const asked = [ask(() => (typeof own === 'function' ? own(given(), ctx) : own), true)]
  for (const policy of policies) asked.push(ask(() => policy({ name, input: given(), tool }, ctx)))
  const said = await Promise.all(asked)
  if (type === 'command') said.push({ verdict: 'ask' })
  const rank = Math.max(...said.map((one) => strictness.indexOf(one.verdict)))
  const verdict = strictness[rank] ?? 'ask'
  const reasons = said
    .filter((one) => one.verdict === verdict && one.reason)
    .map((one) => mask(`${one.reason}`))
  if (verdict !== 'deny') return { value, verdict, reasons }
  const reason = reasons.join('; ') || 'no reason given'
  const denied = { outcome: 'rejected', content: `Denied by policy: ${reason}`, reason } as const
  return { value, verdict, reasons, denied }
}

function asVerdict(answer: unknown): Spoken {
  if (answer === undefined || answer === false) return { verdict: 'allow' }
  if (answer === true) return { verdict: 'ask' }
  const said = typeof answer === 'object' && answer ? answer : { verdict: answer }
  const { verdict, reason } = said as Spoken
  if (strictness.includes(verdict)) return { verdict, reason }
  const none = `A policy answered ${JSON.stringify(answer)}, which is no verdict, so a person is asked.`
  return { verdict: 'ask', reason: none }
}

/** What is shown, and the canonical key that must not change until it runs; that of a failure never repeats. */
export async function previewed(
  gate: Gate,
  tool: Tool,
  preview: NonNullable<Tool['preview']>,
  input: unknown,
) {
  const { signal, context } = gate.scope
  const clock = new AbortController() // not AbortSignal.timeout: it would live on for all of its time
  const either = signal ? AbortSignal.any([signal, clock.signal]) : clock.signal
  try {
    const ctx = context({ id: '', name: tool.name }, () => either)
    const made = await within(gate.timeoutOf(tool), preview(input, ctx), clock)
    const { text, key = text } = typeof made === 'string' ? { text: made } : made
    return { text: gate.clean(text), key: canonical(key) }
  } catch (error) {
    return { text: gate.clean(`The preview failed: ${words(error)}`), key: canonical(nonce()) }
  }
}

async function within<T>(ms: number, work: T | Promise<T>, clock?: AbortController): Promise<T> {
  const late = Promise.withResolvers<never>()
  const end = () => {
    const error = new Error(`no answer within ${ms} ms`)
    clock?.abort(error)
    late.reject(error)
  }
  const timer = setTimeout(end, ms)
  return Promise.race([work, late.promise]).finally(() => clearTimeout(timer))
}
