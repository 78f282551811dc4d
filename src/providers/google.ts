// Gemini over generateContent and streamGenerateContent, on the Gemini API (a key) or on Vertex AI (a token function).
// Knows the wire and nothing else. Caching is automatic there: nothing is said, reads are reported.
// https://ai.google.dev/api/generate-content  https://docs.cloud.google.com/vertex-ai/generative-ai/docs/model-reference/inference

import { configError, ProviderError, truncated, unsupportedFile } from './errors.ts'
import { Memory } from './history.ts'
import type { Message, ModelRequest, Part, ToolSpec, Usage } from './provider.ts'
import { inputObject, string, toolInput, toReply } from './reply.ts'
import * as wire from './wire.ts'

export interface GoogleOptions extends wire.HttpOptions {
  /** `gemini-2.5-flash`, `models/...`, `tunedModels/...`; on Vertex AI also `publishers/.../models/...`. */
  model: string
  /** Default: `GOOGLE_API_KEY`, then `GEMINI_API_KEY`, read for every call. Sent as a header, never in the URL. */
  apiKey?: string
  /** Default: `GOOGLE_GEMINI_BASE_URL` or `GOOGLE_VERTEX_BASE_URL`, else Google. With or without `/v1beta`. */
  baseUrl?: string
  /**
   * Vertex AI in place of the Gemini API. `token` gives an OAuth access token and is asked for every call; `project`
   * defaults to `GOOGLE_CLOUD_PROJECT`, `location` to `GOOGLE_CLOUD_LOCATION`, then `global`.
   */
  vertex?: { project?: string; location?: string; token: () => string | Promise<string> }
  /** Fields of the body as the API names them: `{ generationConfig: { thinkingConfig: { includeThoughts: true } } }`. */
  extra?: { generationConfig?: object; tools?: object[]; [field: string]: unknown }
}

export function google(options: GoogleOptions): wire.HttpProvider {
  const { model, extra } = options
  const name = options.vertex ? 'gcp.vertex_ai' : 'gcp.gemini'
  const history = new Memory((message: Message) => toContents(message, name, model), merged)
  const offered = new Memory(toTool, together, 1)
  const google: wire.Wire = {
    name,
    model,
    format: 'sse',
    url: (stream) =>
      address(options, name) + (stream ? ':streamGenerateContent?alt=sse' : ':generateContent'),
    headers: () => credentials(options, name),
    render({ system, messages, tools, toolChoice, maxTokens, temperature }) {
      const texts = system.flatMap(({ text }) => (text === '' ? [] : [{ text }]))
      const config = {
        ...extra?.generationConfig,
        ...(maxTokens === undefined ? {} : { maxOutputTokens: maxTokens }),
        ...(temperature === undefined ? {} : { temperature }),
      }
      return {
        ...extra,
        ...(texts.length ? { systemInstruction: { parts: texts } } : {}),
        ...(tools.length ? { tools: [...(extra?.tools ?? []), ...offered.of(tools)] } : {}),
        ...(tools.length && toolChoice ? { toolConfig: toToolConfig(toolChoice) } : {}),
        contents: history.of(messages),
        ...(Object.keys(config).length ? { generationConfig: config } : {}),
      }
    },
    forget: ({ messages }) => history.forget(messages),
    fold: (answer) => reading(answer, name),
    failure,
  }
  return wire.httpProvider(google, options)
}

function address({ model, vertex, baseUrl }: GoogleOptions, name: string): string {
  const { env } = process
  if (/^$|\.\.|[^\w.@:/-]/.test(model)) throw configError(name, `no model is called ${model}`)
  const project = vertex?.project ?? env.GOOGLE_CLOUD_PROJECT
  const location = vertex?.location ?? env.GOOGLE_CLOUD_LOCATION ?? 'global'
  // us-central1-aiplatform, aiplatform for `global`, aiplatform.eu.rep for a whole continent
  const region = `${location}-aiplatform`.replace(/^global-/, '')
  const service = region.replace(/^(us|eu)-(aiplatform)$/, '$2.$1.rep')
  const api = vertex ? service : 'generativelanguage'
  const fromEnv = vertex ? env.GOOGLE_VERTEX_BASE_URL : env.GOOGLE_GEMINI_BASE_URL
  const root = (baseUrl || fromEnv || `https://${api}.googleapis.com`).replace(/\/+$/, '')
  const base = /\/v\d\w*$/.test(root) ? root : `${root}/${vertex ? 'v1beta1' : 'v1beta'}`
  const path = /^(models|tunedModels|publishers)\//.test(model) ? model : `models/${model}`
  if (!vertex) return `${base}/${path}`
  if (!project) throw configError(name, 'pass vertex.project or set GOOGLE_CLOUD_PROJECT')
  const published = path.startsWith('publishers/') ? path : `publishers/google/${path}`
  return `${base}/projects/${project}/locations/${location}/${published}`
}

async function credentials({ vertex, apiKey }: GoogleOptions, name: string): Promise<WirePart> {
  try {
    if (vertex) return { authorization: `Bearer ${await vertex.token()}` }
  } catch (cause) {
    throw new ProviderError('provider_auth', `${name}: no token`, { provider: name, cause })
  }
  const key = (apiKey ?? (process.env.GOOGLE_API_KEY || process.env.GEMINI_API_KEY))?.trim()
  if (key) return { 'x-goog-api-key': key }
  throw configError(name, 'pass apiKey or set GOOGLE_API_KEY or GEMINI_API_KEY')
}

/** A bad key comes as 400, and the wait of a 429 in the body: https://google.aip.dev/193 */
function failure(body: unknown, status: number) {
  const text = JSON.stringify(body) ?? ''
  const seconds = Number(/"retryDelay":"([\d.]+)s"/.exec(text)?.[1])
  const badKey = status === 400 && /API.KEY.(INVALID|not valid|not found|expired)/i.test(text)
  const code = badKey ? { code: 'provider_auth' as const } : {}
  return { ...code, ...(seconds > 0 ? { retryAfterMs: seconds * 1000 } : {}) }
}

// ---- What is asked -----------------------------------------------------------------------------------------------

// biome-ignore lint/suspicious/noExplicitAny: the vendor's JSON
type WirePart = Record<string, any>
type Content = { role: 'user' | 'model'; parts: WirePart[] }

/**
 * Gemini 3 and later answer 400 to a call without its signature. The turns of another model have none; this word in
 * its place is Google's own: https://ai.google.dev/gemini-api/docs/thought-signatures
 */
const noSignature = 'skip_thought_signature_validator'
const needsSignature = /gemini-([3-9]|\d\d)/

/** The turn and, as a user's content that `merged` joins to the next, the results of its calls in their order. */
function toContents(message: Message, provider: string, model: string): Content[] {
  const parts: WirePart[] = []
  const answered: [call: WirePart, result: WirePart][] = []
  for (const part of message.parts) {
    if (part.type === 'text' && part.text !== '') parts.push({ text: part.text })
    if (part.type === 'file') parts.push({ inlineData: toBlob(part, provider) })
    if (part.type === 'opaque' && part.provider === provider) putBack(parts, part.data as WirePart)
    if (part.type !== 'tool_call' || message.role === 'user') continue
    // A name that a model made up must not make the service refuse the rest of the talk.
    const name = part.name.replace(/[^\w.:-]/g, '_').slice(0, 64) || 'unknown'
    const call = { name, args: inputObject(part.input) }
    const result = message.results.find(({ callId }) => callId === part.id)
    parts.push({ functionCall: call })
    if (result) answered.push([call, result])
  }
  const first = parts.find((part) => part.functionCall)
  if (first && needsSignature.test(model)) first.thoughtSignature ??= noSignature
  const results = answered.map(([{ args, ...named }, { outcome, content }]) => {
    // A text, never its JSON: in an object the service takes a key `$ref` for a reference of its own.
    const response = { [outcome === 'ok' ? 'output' : 'error']: content }
    return { functionResponse: { ...named, response } }
  })
  const spoken: Content = { role: message.role === 'user' ? 'user' : 'model', parts }
  return [spoken, { role: 'user' as const, parts: results }].filter(({ parts }) => parts.length)
}

/**
 * What came beside a call or a text goes to that part again, though joined texts must be cut for it.
 * If the part is gone its signature may stand on an empty text. Anything else is a part of its own.
 */
function putBack(parts: WirePart[], data: WirePart): void {
  const { functionCall, text, ...beside } = data
  const before = parts.at(-1)
  const isTaken = before?.thoughtSignature || before?.functionCall?.id
  if (!functionCall && (!text || beside.thought)) parts.push({ ...data })
  else if (functionCall && before?.functionCall && !isTaken) {
    if (functionCall.id) before.functionCall.id = functionCall.id
    parts[parts.length - 1] = { ...before, ...beside }
  } else if (text && before?.text?.endsWith(text) && !isTaken) {
    const head = { text: before.text.slice(0, -text.length) }
    parts.splice(-1, 1, ...(head.text ? [head] : []), { ...data })
  } else if (beside.thoughtSignature) parts.push({ text: '', ...beside })
}

/** Roles alternate: the results of a turn and the words after it are one content. */
function merged(before: Content, { role, parts }: Content): Content | undefined {
  return before.role === role ? { role, parts: [...before.parts, ...parts] } : undefined
}

function toBlob(part: Part & { type: 'file' }, provider: string): WirePart {
  const { mediaType: mimeType, data } = part
  if (/^(image|audio|video|text)\/|^application\/pdf$/.test(mimeType)) return { mimeType, data }
  throw unsupportedFile(provider, 'images, PDF, audio, video and text', part)
}

function toToolConfig(choice: NonNullable<ModelRequest['toolChoice']>): WirePart {
  if (typeof choice === 'string') return { functionCallingConfig: { mode: choice.toUpperCase() } }
  return { functionCallingConfig: { mode: 'ANY', allowedFunctionNames: [choice.name] } }
}

/** Of the two fields for a schema `parameters` refuses what it has no word for; this one takes JSON Schema. */
function toTool({ name, description, input }: ToolSpec): WirePart[] {
  const { $schema, definitions, ...schema } = input
  if (definitions) schema.$defs = definitions
  const parametersJsonSchema = accepted(schema)
  return [{ functionDeclarations: [{ name, description, parametersJsonSchema }] }]
}

function together({ functionDeclarations: before }: WirePart, after: WirePart): WirePart {
  return { functionDeclarations: [...before, ...after.functionDeclarations] }
}

/**
 * The same schema in words that are understood there: an `enum`, which must have a `type`, for a `const`, and no
 * neighbours for `$ref`. The service ignores what else it does not understand.
 * https://ai.google.dev/gemini-api/docs/structured-output#json_schema_support
 */
function accepted(schema: unknown): unknown {
  if (Array.isArray(schema)) return schema.map(accepted)
  if (typeof schema !== 'object' || schema === null) return schema
  const entries = Object.entries(schema).map(([key, value]) => [key, accepted(value)])
  const { const: only, $ref, ...out } = Object.fromEntries(entries)
  if (typeof only === 'string' || typeof only === 'number') out.enum = [only]
  else if (typeof only === 'object' && only) out.const = only // a property that has this name
  if (out.enum?.every?.((one: unknown) => typeof one === 'string')) out.type ??= 'string'
  if (typeof $ref !== 'string') return $ref ? { ...out, $ref } : out
  const ref = { $ref: $ref.replace('#/definitions/', '#/$defs/') }
  const isAlone = Object.keys(out).every((key) => key.startsWith('$'))
  return isAlone ? { ...out, ...ref } : { ...out, anyOf: [ref] }
}

// ---- What is answered --------------------------------------------------------------------------------------------

const filtered = /SAFETY|RECITATION|LANGUAGE|BLOCKLIST|PROHIBITED|SPII|ARMOR|JAILBREAK/

/** Reads to the end: text may go on after a first `STOP`, and the usage of the last chunk is the one that counts. */
function reading(answer: wire.Answer, provider: string): wire.Fold {
  const parts: Part[] = []
  let raw: WirePart = {}

  function add(part: WirePart): string {
    const { functionCall, text, ...beside } = part
    const { id = '', name, args } = functionCall ?? {}
    const shown = beside.thought || !text ? '' : string(text)
    if (functionCall) {
      parts.push({ type: 'tool_call', id, name: string(name), input: toolInput(args) })
    } else if (shown) parts.push({ type: 'text', text: shown })
    // What must go back and our words do not carry: thoughts, signatures, ids (the loop has its own), unknown parts.
    const data = functionCall ? { ...beside, functionCall: id ? { id } : {} } : part
    if (id || Object.keys(beside).length) parts.push({ type: 'opaque', provider, data })
    return shown
  }

  return {
    done: false,
    event(json) {
      if (json.error) throw answer.refuse(json)
      const { candidates, ...about } = json
      const { content, ...candidate } = candidates?.find((one: WirePart) => !one.index) ?? {}
      raw = { ...raw, ...about, ...candidate }
      return (content?.parts ?? []).map(add).join('')
    },
    end() {
      const { finishReason: said = raw.promptFeedback?.blockReason && 'SAFETY' } = raw
      if (!said) throw truncated(answer)
      const isWritten = !/MALFORMED|TOOL_CALL|THOUGHT_SIGNATURE/.test(said)
      if (!isWritten && !parts.some((part) => part.type === 'tool_call')) {
        // The model wanted to act and could not say how: what it wrote beside is no answer.
        throw answer.fail('provider_invalid', `ended with ${said}`, { retryable: true })
      }
      const unfiltered = said === 'MAX_TOKENS' ? 'length' : 'stop'
      const finishReason = filtered.test(said) ? 'content_filter' : unfiltered
      return toReply({ parts, finishReason, usage: toUsage(raw.usageMetadata ?? {}), raw })
    },
  }
}

/** Input includes what was cached, candidates exclude thoughts, and what is zero is absent. */
function toUsage(usage: WirePart): Usage {
  const count = (name: string) => usage[`${name}TokenCount`] ?? 0
  return {
    inputTokens: count('prompt') + count('toolUsePrompt'),
    outputTokens: count('candidates') + count('thoughts'),
    cacheReadTokens: count('cachedContent'),
    cacheWriteTokens: 0,
  }
}
