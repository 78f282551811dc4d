// The shared words: what a model is asked, what it answers, and how a failure is named. Every file above speaks
// them; every provider translates them to its wire and back. Imports nothing, knows no vendor.
// Usage and finish reasons follow the OpenTelemetry GenAI conventions:
// https://opentelemetry.io/docs/specs/semconv/gen-ai/

/** One piece of a message. */
export type Part =
  | { type: 'text'; text: string }
  /** `data` is base64 without a `data:` prefix; `mediaType` an IANA type (`image/png`, `application/pdf`). */
  | { type: 'file'; mediaType: string; data: string; name?: string }
  /** `input` is an object, or the model's raw text where that was no JSON object: the loop answers it, never runs it. */
  | { type: 'tool_call'; id: string; name: string; input: unknown }
  /** Thinking, signatures and whatever else a vendor wants back byte for byte. Other vendors skip it. */
  | { type: 'opaque'; provider: string; data: unknown }

export type Outcome = 'ok' | 'error' | 'rejected' | 'expired' | 'unknown'

export interface ToolResult {
  callId: string
  outcome: Outcome
  content: string
}

/** Results live on the turn that asked. A call without a result occurs in the last message only: that is a pause. */
export type Message =
  | { role: 'user'; parts: Part[] }
  | { role: 'assistant'; parts: Part[]; results: ToolResult[] }

/** A tool as the model sees it. `input` is JSON Schema of type `object`. */
export interface ToolSpec {
  name: string
  description: string
  input: Record<string, unknown>
}

export interface ModelRequest {
  /** Blocks of instructions in order. `cache: true` ends the stable prefix: put a cache point after this block. */
  system: { text: string; cache?: boolean }[]
  messages: Message[]
  tools: ToolSpec[]
  maxTokens?: number
  temperature?: number
  /** Default `auto`. */
  toolChoice?: 'auto' | 'none' | { name: string }
  /** Mark the static prefix (tools, static system) and the last message for caching, where a wire wants it said. */
  cache?: boolean | { ttl: '5m' | '1h' }
}

export type FinishReason = 'stop' | 'length' | 'tool_call' | 'content_filter'

export interface ModelReply {
  parts: Part[]
  finishReason: FinishReason
  usage: Usage
  /** The vendor's words that ours do not carry: `{ finishReason, requestId, ... }`. For logs and interceptors. */
  raw?: unknown
}

/** Tokens. `inputTokens` is all input, cache reads and writes included; `outputTokens` all output, reasoning included. */
export interface Usage {
  inputTokens: number
  outputTokens: number
  cacheReadTokens: number
  cacheWriteTokens: number
}

/** What streams while a reply grows. The full reply still comes back from `complete`. */
export type Delta = { type: 'text_delta'; text: string }

export interface CompleteOptions {
  signal?: AbortSignal
  /** Called for each piece as it arrives; its presence asks for the streaming wire. A promise it returns is awaited. */
  onDelta?: (delta: Delta) => void | Promise<void>
}

export interface Provider {
  /** OTel `gen_ai.provider.name`, e.g. `anthropic`, `aws.bedrock`. */
  name: string
  model: string
  /** Pure: exactly the body that `complete` would send. */
  render(request: ModelRequest): unknown
  /** Rejects with a `DcafError` (usually `ProviderError`); `signal` aborts it with the signal's reason. */
  complete(request: ModelRequest, options?: CompleteOptions): Promise<ModelReply>
}

export const noUsage: Readonly<Usage> = {
  inputTokens: 0,
  outputTokens: 0,
  cacheReadTokens: 0,
  cacheWriteTokens: 0,
}

/** Every word a failure of ours is known by. PROTOCOL "Errors" gives the HTTP status of each. */
export type ErrorCode =
  | 'invalid_json'
  | 'messages_missing'
  | 'messages_empty'
  | 'invalid_request'
  | 'unauthenticated'
  | 'forbidden'
  | 'body_too_large'
  | 'unsupported_media_type'
  | 'context_too_long'
  | 'busy'
  | 'shutting_down'
  | 'store_unavailable'
  | 'provider_overloaded'
  | 'provider_error'
  | 'provider_invalid'
  | 'provider_truncated'
  | 'provider_auth'
  | 'provider_config'
  | 'provider_timeout'
  | 'deadline'
  | 'aborted'
  | 'internal_error'
  | 'invalid_argument'
  | 'intercepted'
  | 'invalid_transition'
  | 'tool_call_not_found'
  | 'conversation_blocked'

export interface DcafErrorOptions {
  retryable?: boolean
  /** Milliseconds the other side asked us to wait. */
  retryAfterMs?: number
  cause?: unknown
}

/** The one base of the library's errors. `message` is for the log; a client sees a sentence chosen by `code`. */
export class DcafError extends Error {
  override name = 'DcafError'
  readonly code: ErrorCode
  readonly retryable: boolean
  readonly retryAfterMs: number | undefined

  constructor(code: ErrorCode, message: string, options: DcafErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.code = code
    this.retryable = options.retryable ?? false
    this.retryAfterMs = options.retryAfterMs
  }
}
