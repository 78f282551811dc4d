// What listeners are told of a run: facts, past tense, copies that nobody can change. Loaded for runs that have listeners.

import { quietly, type Run, type RunFact } from './agent.ts'
import type { Scope } from './approval.ts'
import { tracing } from './mask.ts'

export function teller({ listeners, desk, path, agent, scope }: Run): Scope['fact'] {
  const { threadId } = scope.who
  return (type, data) => {
    const event: RunFact = {
      ...tracing(desk.platform),
      type,
      timestamp: new Date().toISOString(),
      runId: desk.runId,
      ...(threadId && { threadId }),
      agent: agent.name,
      ...(path.length > 0 && { path }),
    }
    for (const key in data) event[key] = frozenCopy(data[key])
    Object.freeze(event)
    for (const listener of listeners) quietly(() => listener(event))
  }
}

/** What cannot be copied is taken as it is. */
function frozenCopy<T>(value: T): T {
  if (typeof value !== 'object') return value
  try {
    return frozen(structuredClone(value))
  } catch {
    return value
  }
}
function frozen<T>(value: T): T {
  if (typeof value !== 'object' || value === null || Object.isFrozen(value)) return value
  Object.values(Object.freeze(value)).forEach(frozen)
  return value
}
