// The types of client.js. Field names are the wire's.

/** As it goes over the wire. */
export interface Message {
  role: 'user' | 'assistant'
  content: string
  /** RFC 3339. */
  timestamp: string
  data: {
    approvals?: Call[] | Decision[]
    executed_approvals?: Executed[]
    executed_tool_calls?: Executed[]
    executed_cmds?: { command: string; output: string }[]
    session?: Record<string, unknown>
    [list: string]: unknown
  }
  /** Of an answer: `usage`, `run_id`, `stop_reason`, and `duration_ms` as measured here. */
  meta_data?: {
    stop_reason?: string
    duration_ms?: number
    usage?: Record<string, number>
    [fact: string]: unknown
  }
}

/** A call that waits for a decision. */
export interface Call {
  /** The proof of what was shown. Opaque. */
  id: string
  type: string
  name: string
  /** As the model gave it. */
  input: Record<string, unknown>
  /** With defaults filled in, where that differs: what will run. */
  effective_input?: Record<string, unknown>
  description: string
  preview?: string
  reasons?: string[]
  /** RFC 3339. */
  expires_at?: string
  /** The agent tools that lead to it; absent for the served agent's own. */
  path?: string[]
  votes?: number
}

export interface Decision {
  id: string
  type: string
  name: string
  input: Record<string, unknown>
  path?: string[]
  execute: boolean
  rejection_reason?: string
  edited_input?: Record<string, unknown>
}

export interface Executed {
  id: string
  name: string
  input: Record<string, unknown>
  output: string
}

/** A line of the stream. */
export type WireEvent = { type: string; [field: string]: unknown }

export interface TurnOptions {
  /** Ends the waiting and, at the server, the model. An approved call that has begun runs to its end. */
  signal?: AbortSignal
  /** Each event of the stream, and the answer as it has grown with it. */
  onEvent?: (event: WireEvent, message: Message) => void
}

export interface ThreadOptions {
  /** Where the server is; '' (the default): the page's own origin. */
  base?: string
  /** Default `/api/chat-stream`. */
  path?: string
  headers?:
    | Record<string, string>
    | (() => Record<string, string> | Promise<Record<string, string>>)
  /** More of the request, such as `tenant_id` or `source`. */
  fields?: Record<string, unknown>
  fetch?: typeof fetch
  /** These three: what `toJSON` gave. */
  id?: string
  messages?: Message[]
  partial?: Message | null
}

export class Thread {
  constructor(options?: ThreadOptions)
  id: string
  messages: Message[]
  partial: Message | null
  /** Milliseconds. */
  clockSkewMs: number
  readonly pending: Call[]
  readonly unanswered: boolean
  readonly session: Record<string, unknown>
  readonly wholeSession: Record<string, unknown>
  /** `session` replaces what the tools remember. */
  send(
    text: string,
    options?: TurnOptions & { session?: Record<string, unknown> },
  ): Promise<Message>
  decide(decisions: Decision[], options?: TurnOptions & { text?: string }): Promise<Message>
  retry(options?: TurnOptions): Promise<Message>
  takeBack(): Message
  toJSON(): { id: string; messages: Message[]; partial: Message | null }
}

export class ChatError extends Error {
  /** The server's word, or `connection_lost`, `aborted`, `not_ndjson`, `http_STATUS`. */
  code: string
  status?: number
  retryable: boolean
  retryAfterMs?: number
  requestId?: string
}

export function approve(call: Call): Decision
export function reject(call: Call, reason?: string): Decision
export function edit(call: Call, input: Record<string, unknown>): Decision
/** Adds what an event says to the message that the stream amounts to. */
export function fold(message: Message, event: WireEvent): void
export function events(response: Response): AsyncGenerator<WireEvent>
export function lines(stream: ReadableStream<Uint8Array>): AsyncGenerator<string>
