// Sessions that do not travel readable: sealed (only we can read them) or kept in the store (the client sends none).
// Loaded when chatHandler's `session` asks for it. Does not cover: an old sealed session sent again is still ours; where
// that matters, keep it in the store.

import type { At, ChatOptions, Keeper } from './http.ts'
import { maskJson } from './mask.ts'
import { type Authority, canonical, sha256 } from './proof.ts'
import { invalid } from './protocol.ts'
import { seal, unseal } from './seal.ts'
import { Session } from './session.ts'

/** Milliseconds after its last write that a session in the store is forgotten: 30 days. */
export const sessionTtlMs = 30 * 86_400_000

export function keeper(
  mode: 'sealed' | 'server',
  authority: Authority,
  sessionKey: ChatOptions['sessionKey'],
): Keeper {
  return mode === 'sealed' ? sealed(authority) : stored(authority, sessionKey)
}

function sealed(authority: Authority): Keeper {
  const bound = (at: At) => ['session', 1, at.agent, at.principal ?? null, at.threadId ?? null]
  return {
    async open(incoming, at) {
      const { $sealed, $run: _, ...plain } = incoming
      if (Object.keys(plain).length > 0)
        at.warn('a session came in plain where it must be sealed; it is read as empty')
      const text =
        typeof $sealed === 'string'
          ? unseal(authority, $sealed, bound(at), '', 'session')
          : undefined
      if ($sealed !== undefined && text === undefined)
        at.warn('a sealed session did not open; it is read as empty')
      return read(text, at)
    },
    async close(session, at) {
      const text = jsonOf(session, at)
      return text === '{}' ? {} : { $sealed: seal(authority, text, bound(at), '', 'session') }
    },
  }
}

function stored({ store }: Authority, sessionKey: ChatOptions['sessionKey']): Keeper {
  const keyOf = (at: At): string => {
    if (!at.threadId) throw invalid('/thread_id', 'is needed: it names the session')
    const { agent, principal, threadId, context } = at
    const own = [agent, principal ?? null, context.tenant_id ?? null, threadId]
    const key: unknown = sessionKey ? sessionKey(principal, context) : sha256(canonical(own))
    // A promise or undefined would be one text for everybody, and so one session.
    if (typeof key !== 'string' || key === '')
      throw new TypeError(`sessionKey must return a text that is not empty, got ${typeof key}`)
    return `session:${key}`
  }
  return {
    async open(_, at) {
      return read(await store.get(keyOf(at)), at)
    },
    async close(session, at) {
      const key = keyOf(at)
      for (;;) {
        const text = await store.get(key)
        const newest = jsonOf(session.replayOn(read(text, at)), at)
        if (!session.changed || (await store.swap(key, text, newest, sessionTtlMs)))
          return JSON.parse(newest)
      }
    },
  }
}

function jsonOf(session: Session, at: At): string {
  return JSON.stringify(maskJson(session.toJSON(), at.mask))
}

function read(text: string | undefined, at: At): Session {
  if (text === undefined) return new Session()
  try {
    return new Session(JSON.parse(text))
  } catch {
    at.warn('a kept session is not readable; it is read as empty')
    return new Session()
  }
}
