// Interceptors at work: what they see of a model call, what of their changes counts. Loaded for agents that have some.

import type {
  Around,
  InterceptedRequest,
  InterceptedResponse,
  ResponseInterceptor,
  Run,
} from './agent.ts'
import { masked } from './agent.ts'
import { platformContext } from './mask.ts'
import { renamed, type ToolCall, textOf } from './messages.ts'
import { canonical } from './proof.ts'
import type { ModelReply, ModelRequest, Part } from './providers/provider.ts'
import type { PlatformContext } from './tool.ts'

export function around(self: Run): Around {
  const { agent, desk, scope } = self
  const before = [agent.requestInterceptors ?? []].flat()
  const after = [agent.responseInterceptors ?? []].flat()
  const filters = after.flatMap((i) => (typeof i === 'function' ? [] : [i.onDelta.bind(i)]))
  const made: Around = {
    offered: undefined,
    async request(request) {
      if (before.length === 0) return request
      const changed = await intercepted(self, request, before)
      made.offered = new Set(changed.tools.map((tool) => tool.name))
      return changed
    },
    piece:
      filters.length < after.length
        ? undefined
        : async (text, done, say) => {
            let out = text
            for (const filter of filters)
              out = scope.mask(await filter(out, { done, session: desk.session }))
            if (out) await say(out)
          },
    reply: async (reply, said) => (after.length ? inspected(self, reply, after, said) : reply),
  }
  return made
}

const keys = ['messages', 'tools', 'system', 'latestUserMessage'] as const

/** Over copies: what interceptors change lives for this call. */
async function intercepted(
  { desk, scope }: Run,
  request: ModelRequest,
  interceptors: ((request: InterceptedRequest) => unknown)[],
): Promise<ModelRequest> {
  const seen: InterceptedRequest = {
    messages: structuredClone(request.messages),
    tools: structuredClone(request.tools),
    system: request.system,
    context: copied(desk.platform),
    session: desk.session,
    get latestUserMessage() {
      return textOf(this.messages.findLast((m) => m.role === 'user')?.parts ?? [])
    },
    set latestUserMessage(text) {
      const last = this.messages.findLast((m) => m.role === 'user')
      if (last)
        last.parts = [{ type: 'text', text }, ...last.parts.filter((p) => p.type !== 'text')]
    },
    addSystemContext(text) {
      this.system.push({ text })
    },
  }
  for (const interceptor of interceptors) {
    const before = { ...seen }
    const answer = await interceptor(seen)
    if (typeof answer !== 'object' || answer === null || answer === seen) continue
    const given = answer as Partial<InterceptedRequest>
    for (const key of keys)
      if (given[key] !== undefined && given[key] !== before[key])
        Object.assign(seen, { [key]: given[key] })
  }
  const { messages, system, tools } = seen
  return { ...request, ...masked({ messages, system, tools }, scope.mask) }
}

function copied(context: PlatformContext): PlatformContext {
  try {
    return platformContext(structuredClone({ ...context }))
  } catch {
    return platformContext({ ...context })
  }
}

/** `said`: what was streamed, which nobody can take back. */
async function inspected(
  { desk, scope }: Run,
  reply: ModelReply,
  interceptors: ResponseInterceptor[],
  said: string | undefined,
): Promise<ModelReply> {
  const { session } = desk
  const { usage, raw } = reply
  const toolCalls: InterceptedResponse['toolCalls'] = []
  const byModel = new Set<string>()
  for (const part of reply.parts) {
    if (part.type !== 'tool_call') continue
    const { id, name, input } = part
    toolCalls.push({ id, name, input })
    byModel.add(canonical([id, input]))
  }
  const whole = textOf(reply.parts)
  let seen: InterceptedResponse = { text: said ?? whole, toolCalls, usage, raw, session }
  for (const interceptor of interceptors) {
    const isPlain = typeof interceptor === 'function'
    if (!isPlain && said === undefined)
      seen.text =
        (await interceptor.onDelta(seen.text, { done: false, session })) +
        (await interceptor.onDelta('', { done: true, session }))
    const answer = isPlain ? await interceptor(seen) : await interceptor.onResponse?.(seen)
    if (typeof answer === 'object' && answer !== null) seen = { ...seen, ...answer }
  }
  const text = said ?? scope.mask(seen.text)
  /** What an interceptor wrote may hold a secret; what the model wrote stays as it is. */
  const cleaned = (call: ToolCall, id?: string): Part => {
    const part = renamed(call, id)
    if (byModel.has(canonical([part.id, part.input]))) return part
    return { ...part, input: masked(part.input, scope.mask) }
  }
  const calls = new Map(seen.toolCalls.map((call) => [call.id, call]))
  const same = text === whole
  const texts: Part[] = same ? [] : [{ type: 'text', text }]
  const rest = reply.parts.flatMap((part): Part[] => {
    if (part.type === 'text') return same ? [part] : texts.splice(0)
    if (part.type !== 'tool_call') return [part]
    const call = calls.get(part.id)
    calls.delete(part.id)
    const { name, input } = call ?? part
    return call ? [cleaned({ ...part, name, input }, part.id)] : []
  })
  const added = [...calls.values()].map((call) => cleaned({ type: 'tool_call', ...call }))
  const parts = [...texts, ...rest, ...added].filter((p) => p.type !== 'text' || p.text !== '')
  return { ...reply, parts }
}
