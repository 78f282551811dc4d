// The provider that the environment names. Knows the six of them by name, and loads only the one it is asked for.
// The variables are those of the Python original; keys and addresses are the vendors' own.

import type { ModelRequest, Provider } from './provider.ts'
import { DcafError } from './provider.ts'

type Env = Record<string, string | undefined>

const makers: Record<string, (model: string, env: Env) => Promise<Provider>> = {
  async bedrock(model, env) {
    const { bedrock } = await import('./bedrock.ts')
    const region = env.AWS_REGION || env.AWS_DEFAULT_REGION
    return bedrock({ model, ...set({ region, profile: env.AWS_PROFILE }) })
  },
  async anthropic(model, env) {
    const { anthropic } = await import('./anthropic.ts')
    const given = { apiKey: env.ANTHROPIC_API_KEY, baseUrl: env.ANTHROPIC_BASE_URL }
    return anthropic({ model, ...set(given) })
  },
  async openai(model, env) {
    const { openai } = await import('./openai.ts')
    return openai({ model, ...set({ apiKey: env.OPENAI_API_KEY, baseUrl: env.OPENAI_BASE_URL }) })
  },
  async azure(model, env) {
    const { azure } = await import('./azure.ts')
    const given = { apiKey: env.AZURE_OPENAI_API_KEY, endpoint: env.AZURE_OPENAI_ENDPOINT }
    return azure({ model, ...set({ ...given, apiVersion: env.OPENAI_API_VERSION }) })
  },
  async google(model, env) {
    const { google } = await import('./google.ts')
    const apiKey = env.GOOGLE_API_KEY || env.GEMINI_API_KEY
    return google({ model, ...set({ apiKey, baseUrl: env.GOOGLE_GEMINI_BASE_URL }) })
  },
  async ollama(model, env) {
    const { ollama } = await import('./ollama.ts')
    return ollama({ model, ...set({ baseUrl: env.OLLAMA_HOST }) })
  },
}

/**
 * `DCAF_PROVIDER`: `bedrock` (the default), `anthropic`, `openai`, `azure`, `google` or `ollama`. `DCAF_MODEL`: the
 * model; for Azure the deployment; for Bedrock also `BEDROCK_MODEL_ID`. `DCAF_TEMPERATURE` and `DCAF_MAX_TOKENS` hold
 * for requests that say nothing else. Rejects with `provider_config` and the variable's name for what is missing or wrong.
 */
export async function providerFromEnv(env: Env = process.env): Promise<Provider> {
  const name = env.DCAF_PROVIDER?.trim().toLowerCase() || 'bedrock'
  const make = Object.hasOwn(makers, name) ? makers[name] : undefined
  if (!make) throw wrong('DCAF_PROVIDER', `one of ${Object.keys(makers).join(', ')}`, name)
  const model = env.DCAF_MODEL?.trim() || (name === 'bedrock' && env.BEDROCK_MODEL_ID?.trim())
  if (!model) {
    const names = name === 'bedrock' ? 'DCAF_MODEL or BEDROCK_MODEL_ID' : 'DCAF_MODEL'
    throw new DcafError('provider_config', `Set ${names} to the model that ${name} is to run`)
  }
  const temperature = number(env, 'DCAF_TEMPERATURE', (value) => value >= 0, 'a number from 0')
  const maxTokens = number(env, 'DCAF_MAX_TOKENS', isCount, 'a whole number from 1')
  return withDefaults(await make(model, env), { temperature, maxTokens })
}

function isCount(value: number): boolean {
  return Number.isSafeInteger(value) && value > 0
}

/** `Number` takes '' for 0 and '1e3' for 1000: the first is unset here, the second as good as any. */
function number(env: Env, name: string, isRight: (value: number) => boolean, right: string) {
  const text = env[name]?.trim()
  if (!text) return undefined
  const value = Number(text)
  if (!Number.isFinite(value) || !isRight(value)) throw wrong(name, right, text)
  return value
}

function wrong(name: string, right: string, got: string): DcafError {
  return new DcafError('provider_config', `${name} must be ${right}; got ${JSON.stringify(got)}`)
}

/** The same provider, asked with these values where a request has none of its own. */
function withDefaults(
  provider: Provider,
  defaults: Pick<ModelRequest, 'temperature' | 'maxTokens'>,
): Provider {
  const { temperature, maxTokens } = defaults
  if (temperature === undefined && maxTokens === undefined) return provider
  const filled = (request: ModelRequest): ModelRequest => ({
    ...request,
    ...set({
      temperature: request.temperature ?? temperature,
      maxTokens: request.maxTokens ?? maxTokens,
    }),
  })
  return {
    name: provider.name,
    model: provider.model,
    render: (request, ...rest) => provider.render(filled(request), ...rest),
    complete: (request, options) => provider.complete(filled(request), options),
  }
}

/** Without what is not set, so that a provider's own default holds. */
function set<T extends Record<string, unknown>>(values: T): { [K in keyof T]?: NonNullable<T[K]> } {
  const entries = Object.entries(values).filter(([, value]) => value !== undefined && value !== '')
  return Object.fromEntries(entries) as { [K in keyof T]?: NonNullable<T[K]> }
}
