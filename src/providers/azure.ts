// OpenAI's models on Azure: the same words as openai.ts, at another address and with another kind of key.
// https://learn.microsoft.com/azure/ai-foundry/openai/reference  https://learn.microsoft.com/azure/ai-foundry/openai/api-version-lifecycle

import { configError } from './errors.ts'
import { bearer, type ChatOptions, chatWire, tokensField } from './openai.ts'
import * as wire from './wire.ts'

export interface AzureOptions extends wire.HttpOptions, ChatOptions {
  /** The name you gave the deployment. Default `model`. */
  deployment?: string
  /** The model behind it, if the deployment's name does not say: it decides on `maxTokensField`. Default `deployment`. */
  model?: string
  /**
   * `https://NAME.openai.azure.com`; with `/openai/v1` at the end the API without versions.
   * Default `AZURE_OPENAI_ENDPOINT`.
   */
  endpoint?: string
  /** Default `AZURE_OPENAI_API_KEY`. */
  apiKey?: string
  /** In place of a key: gives a Microsoft Entra access token, and is asked for every request. */
  token?: () => string | Promise<string>
  /** Default `OPENAI_API_VERSION`, else 2024-10-21, the last that is no preview. */
  apiVersion?: string
}

export function azure(options: AzureOptions): wire.HttpProvider {
  const { AZURE_OPENAI_ENDPOINT, AZURE_OPENAI_API_KEY, OPENAI_API_VERSION } = process.env
  const { deployment = options.model, model = deployment, token } = options
  const apiKey = (options.apiKey ?? AZURE_OPENAI_API_KEY)?.trim()
  const endpoint = (options.endpoint || AZURE_OPENAI_ENDPOINT || '').replace(/\/+$/, '')
  const apiVersion = options.apiVersion || OPENAI_API_VERSION || '2024-10-21'
  if (!deployment || !model) throw configError(name, 'pass deployment or model')
  if (!endpoint) throw configError(name, 'pass endpoint or set AZURE_OPENAI_ENDPOINT')
  if (!token && !apiKey) {
    throw configError(name, 'pass apiKey or token, or set AZURE_OPENAI_API_KEY')
  }
  const isV1 = endpoint.endsWith('/openai/v1')
  const version = isV1 ? options.apiVersion : apiVersion
  const deployed = `openai/deployments/${encodeURIComponent(deployment)}`
  const base = isV1 ? endpoint : `${endpoint.replace(/\/openai$/, '')}/${deployed}`
  const query = version ? `?api-version=${encodeURIComponent(version)}` : ''
  const url = `${base}/chat/completions${query}`
  const maxTokensField =
    options.maxTokensField ?? (isV1 ? 'max_completion_tokens' : tokensField(model))
  const chat = { ...options, name, model: deployment, vendor: name, maxTokensField }
  const headers = () => (token ? bearer(name, token) : { 'api-key': apiKey as string })
  return wire.httpProvider({ ...chatWire(chat), model, url: () => url, headers }, options)
}

const name = 'azure.ai.openai'
