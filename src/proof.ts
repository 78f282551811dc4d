// Signed ids: who issued this, for whom, for exactly what. Knows no tool's code and runs nothing.
// Covers: forged, moved and altered ids, another server's ids, key rotation. Does not cover: a stolen key.
// HMAC-SHA256 over RFC 8785 JSON; keys by HKDF (RFC 5869) salted with the store's epoch.

import * as crypto from 'node:crypto'
import { DcafError } from './providers/provider.ts'
import { available, MemoryStore, type Store } from './store.ts'
import type { PlatformContext, Tool } from './tool.ts'

/** Whom and where an approval is for: identities, never tokens. `bound` is what `bindContext` returned. */
export interface Who {
  principal: string | undefined
  threadId: string | undefined
  context: PlatformContext
  bound: unknown
}

/** A signed id, taken apart. `expires` is Unix milliseconds, whole seconds. */
export type Id = { nonce: string; kid: string; expires: number; shown: string; mac: string }
/** What the MAC covers besides the id itself. */
export type Bound = { agent: string; path: string[]; name: string; input: unknown; who: unknown[] }

/** 96 random bits. */
export function nonce(): string {
  return `tc_${random(12, 'base64url')}`
}
/** 128 random bits, for a run or a request: as OpenTelemetry writes a trace's id. */
export function randomId(): string {
  return random(16, 'hex')
}
/** Cut from a block: asking the system for each would cost more than the rest of a call. */
function random(bytes: number, encoding: 'base64url' | 'hex'): string {
  if (used + bytes > block.length) {
    block = crypto.randomBytes(1536)
    used = 0
  }
  const end = used + bytes
  const text = block.toString(encoding, used, end)
  used = end
  return text
}
let block = Buffer.alloc(0)
let used = 0

const idPattern = /^(tc_[\w-]{16})\.([\w-]{4})\.([1-9a-z][0-9a-z]{0,7})\.([\w-]{16})\.([\w-]{22})$/

/** `undefined` for anything else, text or not. */
export function parseId(id: unknown): Id | undefined {
  const match = typeof id === 'string' && idPattern.exec(id)
  if (!match) return undefined
  const [, nonce = '', kid = '', expires = '', shown = '', mac = ''] = match
  return { nonce, kid, expires: Number.parseInt(expires, 36) * 1000, shown, mac }
}

type Derived = { salt: string; key: crypto.KeyObject }
/** `derived`: the last key that was made of it, by purpose. */
type Key = { kid: string; key: Buffer; derived: Map<string, Derived> }

/** Keys over a store: signs and verifies. The first key signs, all verify. */
export class Authority {
  readonly store: Store
  readonly #keys: [Key, ...Key[]]
  #epoch: Promise<string> | undefined

  /** `keys`: 32 bytes each, base64; `undefined` ones are skipped. Throws where a durable store comes without. */
  constructor(store: Store, keys: (string | undefined)[] = []) {
    this.store = available(store)
    const [first, ...others] = keys.flatMap((text, index) => (text ? [readKey(text, index)] : []))
    if (!first && !(store instanceof MemoryStore))
      throw badKey('a durable store needs keys: [process.env.DCAF_KEY]')
    this.#keys = [first ?? processKey, ...others]
  }

  /** The store's own random name, made once and cached for signing; `stillIn` reads it again. */
  epoch(): Promise<string> {
    if (this.#epoch) return this.#epoch
    const reading = this.#readEpoch()
    this.#epoch = reading
    reading.catch(() => this.#forget(reading))
    return reading
  }

  #forget(epoch: Promise<string> | undefined): void {
    if (this.#epoch === epoch) this.#epoch = undefined
  }

  async #readEpoch(): Promise<string> {
    const known = await this.store.get('epoch')
    if (known !== undefined) return known
    const made = crypto.randomBytes(16).toString('base64url')
    return (await this.store.swap('epoch', undefined, made)) ? made : this.#readEpoch()
  }

  /** Right before every begin: a store that forgot its epoch forgot its ledger too. */
  async stillIn(epoch: string): Promise<boolean> {
    if ((await this.store.get('epoch')) === epoch) return true
    this.#forget(this.#epoch)
    return false
  }

  async sign(id: { nonce: string; expires: number; shown: string }, bound: Bound): Promise<string> {
    const [key] = this.#keys
    const mac = macOf(key, await this.epoch(), id, bound)
    return [id.nonce, key.kid, (id.expires / 1000).toString(36), id.shown, mac].join('.')
  }

  /** The epoch under which the MAC holds; `undefined` where it does not. `fresh`: the epochs this request has read. */
  async verify(id: Id, bound: Bound, fresh: string[] = []): Promise<string | undefined> {
    const keys = this.#keys.filter(({ kid }) => kid === id.kid)
    const given = Buffer.from(id.mac)
    const holds = (epoch: string) =>
      keys.some((key) => crypto.timingSafeEqual(Buffer.from(macOf(key, epoch, id, bound)), given))
    const cached = this.#epoch
    const known = await this.epoch()
    if (holds(known)) return known
    if (fresh.includes(known) || keys.length === 0) return undefined
    this.#forget(cached) // another replica may have made it anew
    const now = await this.epoch()
    fresh.push(now) // a request may bring many forged ids
    return now !== known && holds(now) ? now : undefined
  }

  /** The keys for sealing, the first one first. `salt`: the epoch, or '' for what may outlive the store. */
  sealingKeys(salt: string, purpose: string): crypto.KeyObject[] {
    return this.#keys.map((key) => derive(key, salt, purpose))
  }
}

const audiences = new WeakMap<unknown[], string>()

function macOf(key: Key, epoch: string, id: Omit<Id, 'kid' | 'mac'>, b: Bound): string {
  const what = [1, b.agent, b.path, id.nonce, id.expires / 1000, id.shown, b.name, b.input]
  const who = audiences.get(b.who) ?? canonical(b.who)
  audiences.set(b.who, who)
  const hmac = crypto.createHmac('sha256', derive(key, epoch, 'approval'))
  hmac.update(`${canonical(what).slice(0, -1)},${who}]`) // the audience is the list's last
  return hmac.digest('base64url').slice(0, 22)
}

function derive({ key, derived }: Key, salt: string, purpose: string): crypto.KeyObject {
  const known = derived.get(purpose)
  if (known?.salt === salt) return known.key
  const bytes = crypto.hkdfSync('sha256', key, salt, `dcaf ${purpose} v1`, 32)
  const made = crypto.createSecretKey(Buffer.from(bytes))
  derived.set(purpose, { salt, key: made })
  return made
}

function badKey(problem: string): DcafError {
  return new DcafError('invalid_argument', `${problem}. Make one with: openssl rand -base64 32`)
}
function readKey(text: string, index: number): Key {
  const key = Buffer.from(text, 'base64')
  if (key.length !== 32)
    throw badKey(`keys[${index}] must be 32 bytes in base64, got ${key.length}`)
  return { kid: sha256(key).slice(0, 4), key, derived: new Map() }
}
const processKey = readKey(crypto.randomBytes(32).toString('base64'), 0)

const known = new WeakMap<Who, [own: unknown[], open: unknown[]]>()
const ids = ['tenant_id', 'tenant_name', 'user_id', 'k8s_namespace', 'duplo_base_url', 'aws_region']

/** The audience of an approval, as JSON. What `approver` opens to others leaves principal and user out. */
export function audience(who: Who, approver: Tool['approver']): unknown[] {
  const made = known.get(who) ?? audienceOf(who)
  known.set(who, made)
  return approver === 'requester' ? made[0] : made[1]
}

/** True where somebody wrote to the context since the audience was first asked for: a tool can. */
export function hasMoved(who: Who): boolean {
  return canonical(audience(who, 'requester')) !== canonical(audienceOf(who)[0])
}

function audienceOf({ principal, threadId, context: c, bound }: Who): [unknown[], unknown[]] {
  const scopes = Array.isArray(c.scopes) ? c.scopes.map(scopeOf).sort() : c.scopes
  const where = [scopes, c.kubeconfig_path, cluster(c.kubeconfig), bound]
  const all = [principal, threadId, ...ids.map((key) => c[key]), ...where].map((v) => v ?? null)
  return [all, all.with(0, null).with(4, null)]
}

/** Its name where that is all there is beside credentials, which may be renewed; else the rest of it. */
function scopeOf(scope: unknown): string {
  if (typeof scope !== 'object') return typeof scope === 'string' ? scope : canonical(scope)
  const rest = Object.entries(scope ?? {}).filter(([key]) => !/^credentials?$/i.test(key))
  const [[key, name] = []] = rest
  const named = rest.length === 1 && /^name$/i.test(`${key}`) && typeof name === 'string'
  return named ? name : canonical(Object.fromEntries(rest))
}

const certificates = ['certificate-authority', 'client-certificate', 'client-key']
const renewed = ['token', ...certificates.map((name) => `${name}-data`)]
/** `token: x` where it can only be a key and its value: not within quotes, `: ` being no part of a bare word. */
const credential = new RegExp(
  `"[^"\\n]*"|(?<![^\\s{,])(${renewed.join('|')}): +"?[\\w+/=.~-]+"?(?=\\s*(?:[\\n,}]|$))`,
  'g',
)

/** A kubeconfig less what is renewed in it. Where reading YAML by lines could be fooled, all of it counts. */
function cluster(config: unknown): unknown {
  if (typeof config !== 'string') return config ?? null
  const text = Buffer.from(config, 'base64').toString('utf8')
  try {
    const isRenewed = (key: string, v: unknown) => typeof v === 'string' && renewed.includes(key)
    return sha256(canonical(JSON.parse(text, (key, v) => (isRenewed(key, v) ? null : v))))
  } catch {} // then it is YAML
  const odd = text.split('\n').some((line) => line.split('"').length % 2 === 0)
  if (odd || /[\\&*|>'!#\ufffd]/.test(text)) return sha256(config)
  return sha256(text.replace(credential, (match, key) => key ?? match))
}

/** RFC 8785: sorted keys, no space; numbers and strings as ECMAScript writes them. Throws for NaN and infinities. */
export function canonical(value: unknown): string {
  if (typeof value === 'number' && !Number.isFinite(value))
    throw new DcafError('invalid_argument', `${value} is no JSON and cannot be signed`)
  if (typeof value !== 'object' || value === null) return JSON.stringify(value) ?? 'null'
  if (Array.isArray(value)) return `[${value.map(canonical).join(',')}]`
  if (typeof (value as { toJSON?: unknown }).toJSON === 'function')
    return canonical(JSON.parse(JSON.stringify(value)))
  let text = ''
  for (const key of Object.keys(value).sort()) {
    const inner = (value as Record<string, unknown>)[key]
    if (inner !== undefined) text += `,${JSON.stringify(key)}:${canonical(inner)}`
  }
  return `{${text.slice(1)}}`
}

export function sha256(data: string | Buffer): string {
  return crypto.hash('sha256', data, 'base64url')
}
