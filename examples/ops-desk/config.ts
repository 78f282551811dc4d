// The environment, read once, at the start. The library reads none: this is the example's way to configure it.
// What is wrong is a ConfigError: one sentence that says what is allowed, and never a secret's value.

import { accessSync, closeSync, constants, openSync } from 'node:fs'
import { dirname } from 'node:path'

export class ConfigError extends Error {
  override name = 'ConfigError'
}

export const logLevels = ['error', 'warn', 'info', 'debug'] as const
export type LogLevel = (typeof logLevels)[number]

export const providers = [
  'offline',
  'bedrock',
  'anthropic',
  'openai',
  'azure',
  'google',
  'ollama',
] as const

export type StoreChoice =
  | { kind: 'memory' }
  | { kind: 'sqlite'; file: string }
  | { kind: 'redis' | 'postgres'; url: string }

export interface Config {
  host: string
  /** 0: any free one. */
  port: number
  logLevel: LogLevel
  provider: (typeof providers)[number]
  store: StoreChoice
  /** Base64; the first signs, all verify. Empty: a random key for as long as the process lives. */
  keys: string[]
  effects: string | undefined
}

type Env = Record<string, string | undefined>

/** An empty variable counts as absent, as a line `PORT=` of an `.env` file means it. */
export function readConfig(env: Env): Config {
  const store = storeFrom(env.DCAF_STORE || 'memory')
  const keys = keysFrom(env.DCAF_KEY || '')
  if (store.kind !== 'memory' && keys.length === 0)
    throw new ConfigError(
      `DCAF_STORE=${store.kind} outlives the process and so must its key: ${howToKey}`,
    )
  return {
    host: env.HOST || '127.0.0.1',
    port: portFrom(env.PORT || '8000'),
    logLevel: levelFrom(env.LOG_LEVEL || 'info'),
    provider: oneOf('DCAF_PROVIDER', env.DCAF_PROVIDER || 'offline', providers),
    store,
    keys,
    effects: effectsFrom(env.DCAF_EFFECTS),
  }
}

const howToKey =
  'set DCAF_KEY to 32 bytes in base64, for example from ' +
  `node -p "crypto.randomBytes(32).toString('base64')"`

/** Throws a ConfigError that lists `allowed`. Upper case will do. */
function oneOf<const T extends string>(name: string, value: string, allowed: readonly T[]): T {
  const found = allowed.find((word) => word === value.trim().toLowerCase())
  if (found) return found
  throw new ConfigError(
    `${name} must be one of ${allowed.join(', ')}, got ${JSON.stringify(value)}`,
  )
}

/** Also in the words of Python's logging. */
function levelFrom(text: string): LogLevel {
  const same: Record<string, LogLevel> = { warning: 'warn', critical: 'error' }
  return same[text.trim().toLowerCase()] ?? oneOf('LOG_LEVEL', text, logLevels)
}

function portFrom(text: string): number {
  const port = Number(text)
  if (/^\d+$/.test(text) && port <= 65_535) return port
  throw new ConfigError(`PORT must be a whole number from 0 to 65535, got ${JSON.stringify(text)}`)
}

function keysFrom(text: string): string[] {
  const keys = text.split(',').map((key) => key.trim())
  if (text.trim() === '') return []
  for (const [index, key] of keys.entries()) {
    const bytes = Buffer.from(key, 'base64').length
    if (bytes !== 32 || !/^[A-Za-z0-9+/_-]+={0,2}$/.test(key))
      throw new ConfigError(
        `key ${index + 1} of DCAF_KEY is not 32 bytes in base64 (${bytes} bytes): ${howToKey}`,
      )
  }
  return keys
}

function storeFrom(text: string): StoreChoice {
  if (text === 'memory') return { kind: 'memory' }
  const file = /^sqlite:(.+)$/s.exec(text)?.[1]
  if (file) return { kind: 'sqlite', file: writable('DCAF_STORE', file) }
  if (/^rediss?:\/\/./.test(text) && URL.canParse(text)) return { kind: 'redis', url: text }
  if (/^postgres(ql)?:\/\/./.test(text) && URL.canParse(text))
    return { kind: 'postgres', url: text }
  // Only the part before the first colon: a URL may hold a password.
  const scheme = text.includes(':') ? `${text.split(':')[0]}:...` : text
  throw new ConfigError(
    'DCAF_STORE must be memory, sqlite:FILE, redis://HOST or postgres://HOST/DATABASE, ' +
      `got ${JSON.stringify(scheme)}`,
  )
}

function effectsFrom(file: string | undefined): string | undefined {
  if (!file) return undefined
  try {
    closeSync(openSync(writable('DCAF_EFFECTS', file), 'a'))
  } catch (error) {
    if (error instanceof ConfigError) throw error
    throw new ConfigError(`DCAF_EFFECTS=${file} cannot be written: ${(error as Error).message}`)
  }
  return file
}

function writable(name: string, file: string): string {
  try {
    accessSync(dirname(file), constants.W_OK)
    return file
  } catch {
    throw new ConfigError(
      `${name} names a file in ${dirname(file)}, a folder that cannot be written`,
    )
  }
}
