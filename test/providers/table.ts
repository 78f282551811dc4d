// What every provider must do, one table for all: `conformance(wire)` in a provider's test file registers the rows.
//
// A provider joins with one `WireUnderTest`, which translates three ways and asserts nothing:
//   whole(said)   what the vendor's model said -> bytes of a whole answer
//   events(said)  the same -> the stream's events, one Buffer each (terminal event last)
//   read(body)    a request body as it was seen on the socket -> neutral words
// The fake vendor (fake.ts) sends those bytes whole, cut anywhere, too early, too late or never.

import type { Part, Provider, Usage } from '../../src/providers/provider.ts'
import type { HttpOptions } from '../../src/providers/wire.ts'

/** What the model says, in order. Text and arguments come in the pieces they are to be streamed in. */
export interface Said {
  parts: SaidPart[]
  /** Ours; the adapter picks the vendor's word. */
  finish: 'stop' | 'length' | 'tool_call' | 'content_filter'
  /** Ours (input with cache reads and writes, output with reasoning); the adapter does the vendor's arithmetic backwards. */
  usage: Usage
}

export type SaidPart =
  | { text: string[] }
  /** `args`: pieces of JSON text; [] and [''] mean that the vendor sends no arguments. A wire of objects parses them. */
  | { call: string; id?: string; args: string[] }
  /** One opaque block, as made by `opaque` below. */
  | { opaque: unknown }

/** A request in neutral words. */
export interface Read {
  /** All system text, in order, joined by '\n'. */
  system: string
  turns: ReadTurn[]
  tools: { name: string; description: string; input: unknown }[]
  toolChoice?: 'auto' | 'none' | { name: string }
  maxTokens?: number
  temperature?: number
}

/** Neighbouring messages of one role are one turn; tool results belong to a `user` turn. */
export interface ReadTurn {
  role: 'user' | 'assistant'
  text: string
  calls: { id?: string; name: string; input: unknown }[]
  results: { id?: string; name?: string; content: string; isError: boolean }[]
  /** Thinking, signatures: the vendor's own objects, as they were sent back. */
  opaque: unknown[]
  files: number
}

export interface WireUnderTest {
  /** As in `provider.name`. */
  name: string
  /** Makes the provider against the fake. `url` has no path; `key` is a secret that must show up nowhere but in the request's headers. */
  make(options: { url: string; key: string } & HttpOptions): Provider
  whole(said: Said): { type: string; body: string | Buffer }
  events(said: Said): { type: string; events: Buffer[] }
  read(body: unknown): Read
  /** An error answer of this vendor: its body and headers. */
  failure(status: number, message: string): { body: string; headers?: Record<string, string> }
  /** An error inside a stream that came with 200: overloaded, try again. */
  errorEvent(message: string): Buffer
  /** Whether the wire carries the vendor's ids of calls (Gemini and Ollama of old do not). */
  ids: boolean
  /** Opaque parts as the provider makes them and what the vendor sends for them; [] if the wire has none. */
  opaques: { said: SaidPart; part: Part }[]
  /** True where a request says that a result is an error by more than words. */
  marksErrors: boolean
  /** Media types that a user's file part may have; the table sends each, and expects any other to be refused. */
  media: string[]
  /** Terminal: number of events at the end of `events(said)` without which the answer is still complete (e.g. a usage event). Default 0. */
  optionalTail?: number
}
