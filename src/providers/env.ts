// The provider that the environment names. Knows the six of them by name, and loads only the one it is asked for.
// The variables are those of the Python original; keys and addresses are the vendors' own.

import type { ModelRequest, Provider } from './provider.ts'
import { DcafError } from './provider.ts'

type Env = Record<string, string | undefined>

const makers: Record<string, (model: string, env: Env) => Promise<Provider>> = {
  async bedrock(model, env) {
    const { bedrock } = await import('./bedrock.ts')
    const region = value(env.AWS_REGION) ?? value(env.AWS_DEFAULT_REGION)
    return bedrock({ model, region, profile: value(env.AWS_PROFILE) })
  },
  async anthropic(model, env) {
    const { anthropic } = await import('./anthropic.ts')
    const baseUrl = value(env.ANTHROPIC_BASE_URL)
    return anthropic({ model, apiKey: value(env.ANTHROPIC_API_KEY), baseUrl })
  },
  async openai(model, env) {
    const { openai } = await import('./openai.ts')
    const baseUrl = value(env.OPENAI_BASE_URL)
    return openai({ model, apiKey: value(env.OPENAI_API_KEY), baseUrl })
  },
  async azure(model, env) {
    const { azure } = await import('./azure.ts')
    return azure({
      deployment: model,
      endpoint: value(env.AZURE_OPENAI_ENDPOINT),
      apiKey: value(env.AZURE_OPENAI_API_KEY),
      apiVersion: value(env.OPENAI_API_VERSION),
    })
  },
  async google(model, env) {
    const { google } = await import('./google.ts')
    const apiKey = value(env.GOOGLE_API_KEY) ?? value(env.GEMINI_API_KEY)
    return google({ model, apiKey, baseUrl: value(env.GOOGLE_GEMINI_BASE_URL) })
  },
  async ollama(model, env) {
    const { ollama } = await import('./ollama.ts')
    return ollama({ model, host: value(env.OLLAMA_HOST) })
  },
}

/** `undefined`, so that a provider's own default holds, also for a variable that is set to nothing. */
function value(text: string | undefined): string | undefined {
  return text?.trim() || undefined
}

/**
 * `DCAF_PROVIDER`: `bedrock` (the default), `anthropic`, `openai`, `azure`, `google` or `ollama`. `DCAF_MODEL`: the
 * model; for Azure the deployment; for Bedrock also `BEDROCK_MODEL_ID`. `DCAF_TEMPERATURE` and `DCAF_MAX_TOKENS` hold
 * for requests that say nothing else. Rejects with `provider_config` and the variable's name for what is missing or wrong.
 */
export async function providerFromEnv(env: Env = process.env): Promise<Provider> {
  const name = value(env.DCAF_PROVIDER)?.toLowerCase() ?? 'bedrock'
  const make = Object.hasOwn(makers, name) ? makers[name] : undefined
  if (!make) throw wrong('DCAF_PROVIDER', `one of ${Object.keys(makers).join(', ')}`, name)
  const model = value(env.DCAF_MODEL) ?? value(name === 'bedrock' ? env.BEDROCK_MODEL_ID : '')
  if (!model) {
    const names = name === 'bedrock' ? 'DCAF_MODEL or BEDROCK_MODEL_ID' : 'DCAF_MODEL'
    throw new DcafError('provider_config', `Set ${names} to the model that ${name} is to run`)
  }
  const temperature = number(env, 'DCAF_TEMPERATURE', (n) => n >= 0, 'a number from 0')
  const maxTokens = number(env, 'DCAF_MAX_TOKENS', isCount, 'a whole number from 1')
  return withDefaults(await make(model, env), { temperature, maxTokens })
}

function isCount(n: number): boolean {
  return Number.isSafeInteger(n) && n > 0
}

function number(env: Env, name: string, isRight: (n: number) => boolean, right: string) {
  const text = value(env[name])
  if (text === undefined) return undefined // `Number` would take '' for 0
  const n = Number(text)
  if (!Number.isFinite(n) || !isRight(n)) throw wrong(name, right, text)
  return n
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
    temperature: request.temperature ?? temperature,
    maxTokens: request.maxTokens ?? maxTokens,
  })
  return {
    name: provider.name,
    model: provider.model,
    render: (request, ...rest) => provider.render(filled(request), ...rest),
    complete: (request, options) => provider.complete(filled(request), options),
  }
}
