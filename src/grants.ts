// Scoped grants in place of "always allow": a person's approval may cover like calls for a while. Kept in a Store, used
// up by `swap`. A grant answers an `ask` in the person's place, for tools that say `grantable: true`; never a `deny`, a
// drift or a quorum, which the gate has judged before it looks here. Hand it over as `grants`.

import type { GrantCall, GrantRequest, Grants } from './approval.ts'
import { audience, canonical, sha256, type Who } from './proof.ts'
import { DcafError } from './providers/provider.ts'
import { available, type Store } from './store.ts'
import type { Tool } from './tool.ts'

/** `where` deep-equals these keys of an input, `until` is RFC 3339, `uses` counts what `maxUses` limits. */
export interface Grant {
  id: string
  agent: string
  tool: string
  where: Record<string, unknown>
  /** `where` is all of the input: the grant came without one. */
  whole?: true
  until: string
  maxUses: number
  uses: number
  by?: string
}

export interface GrantBook extends Grants {
  /** What holds now for this agent and audience, newest last. `tool` narrows it. */
  list(scope: GrantScope): Promise<Grant[]>
  /** True when there was such a grant. It covers nothing from now on. */
  revoke(scope: GrantScope, id: string): Promise<boolean>
}
/** The tool of an agent, for an audience: a grant holds for exactly those it was given among. */
export type GrantScope = Omit<GrantCall, 'input'>

/** The scope in which a request of `who` uses and gives grants for `tool`; `path` leads to a child agent's. */
export function grantScope(
  agent: string,
  tool: Tool,
  who: Partial<Who>,
  path: string[] = [],
): GrantScope {
  const { principal, context = {}, threadId = context.thread_id, bound = null } = who
  const among = audience({ principal, threadId, context, bound }, tool.approver)
  return { agent, path, name: tool.name, audience: among }
}

export interface GrantOptions {
  /** The longest a grant may last, in milliseconds, and what it lasts where it does not say. Default one hour. */
  maxMs?: number
  /** The most uses a grant may have, and how many it has where it does not say. Default 10. */
  maxUses?: number
}

/** Grants over `store`. A wider request than the limits is cut to them; one without `where` covers only the same input. */
export function grantBook(given: Store, options: GrantOptions = {}): GrantBook {
  const store = available(given)
  const { maxMs = 3_600_000, maxUses = 10 } = options
  const keyOf = ({ agent, path = [], name, audience }: GrantScope) =>
    `grants:${sha256(canonical([agent, path, name, audience]))}`

  /** Writes what `change` makes of the live grants; `undefined` writes nothing. */
  async function change<T>(
    scope: GrantScope,
    act: (grants: Grant[]) => { grants: Grant[]; answer: T } | undefined,
  ): Promise<T | undefined> {
    for (;;) {
      const text = await store.get(keyOf(scope))
      const made = act(live(text))
      if (!made) return undefined
      if (await store.swap(keyOf(scope), text, JSON.stringify(made.grants), maxMs))
        return made.answer
    }
  }

  return {
    async add(call: GrantCall, request: GrantRequest, by: string | undefined) {
      const asked =
        request.until === undefined ? Number.POSITIVE_INFINITY : Date.parse(request.until)
      if (Number.isNaN(asked))
        throw new DcafError('invalid_request', 'grant.until must be a time as in RFC 3339')
      if (asked <= Date.now()) throw new DcafError('invalid_request', 'grant.until is over')
      const uses = request.max_uses ?? maxUses
      if (!Number.isSafeInteger(uses) || uses < 1)
        throw new DcafError('invalid_request', 'grant.max_uses must be a whole number above 0')
      if (request.where && Object.keys(request.where).length === 0)
        throw new DcafError('invalid_request', 'grant.where must name a key: empty covers anything')
      const grant: Grant = {
        id: `gr_${crypto.randomUUID()}`,
        agent: call.agent,
        tool: call.name,
        where: request.where ?? (call.input as Record<string, unknown>),
        ...(!request.where && { whole: true as const }),
        until: new Date(Math.min(asked, Date.now() + maxMs)).toISOString(),
        maxUses: Math.min(uses, maxUses),
        uses: 0,
        ...(by !== undefined && { by }),
      }
      if (!covers(grant, call.input))
        throw new DcafError(
          'invalid_request',
          'grant.where must hold for the call that it came with',
        )
      await change(call, (grants) => ({ grants: [...grants, grant], answer: grant.id }))
      return grant.id
    },
    async use(call: GrantCall) {
      return change(call, (grants) => {
        const fit = grants.find((grant) => covers(grant, call.input))
        return (
          fit && {
            grants: grants.map((g) => (g === fit ? { ...g, uses: g.uses + 1 } : g)),
            answer: fit.id,
          }
        )
      })
    },
    async list(scope) {
      return live(await store.get(keyOf(scope)))
    },
    async revoke(scope, id) {
      const gone = await change(scope, (grants) => {
        const rest = grants.filter((grant) => grant.id !== id)
        return rest.length < grants.length ? { grants: rest, answer: true } : undefined
      })
      return gone ?? false
    },
  }
}

function live(text: string | undefined): Grant[] {
  const grants = JSON.parse(text ?? '[]') as Grant[]
  return grants.filter(
    (grant) => grant.uses < grant.maxUses && Date.parse(grant.until) > Date.now(),
  )
}

function covers({ where, whole }: Grant, input: unknown): boolean {
  const given = input as Record<string, unknown>
  if (whole) return canonical(given) === canonical(where)
  return Object.entries(where).every(
    ([key, value]) => Object.hasOwn(given, key) && canonical(given[key]) === canonical(value),
  )
}
