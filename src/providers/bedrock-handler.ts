// How the AWS SDK's Bedrock client reaches the network and reads event streams: a request handler and an event-stream
// decoder to hand to it. Over undici's dispatcher, about two thirds of the CPU of the SDK's own. Knows no Converse.
// https://smithy.io/2.0/aws/amazon-eventstream.html

import { crc32 } from 'node:zlib'
import type { Dispatcher } from 'undici'
import { caps } from './wire.ts'

/** The connection ended before the answer did. */
export class Broken extends Error {
  override name = 'Broken'
}

/** Bytes that are no event stream, or more of them than anyone should read. */
export class Garbled extends Error {
  override name = 'Garbled'
}

/** What the SDK gives a handler: https://github.com/smithy-lang/smithy-typescript `HttpRequest`. */
interface Request {
  method: string
  protocol: string
  hostname: string
  port?: number
  path: string
  headers: Record<string, string>
  body?: string | Uint8Array
}

interface HandlerOptions {
  abortSignal?: AbortSignal
  /** Set by the SDK for an operation that answers with a stream. */
  isEventStream?: boolean
  /** Ours, in the options of `send`: told of every piece of the answer. */
  heard?: () => void
}

interface Response {
  statusCode: number
  headers: Record<string, string>
  body: Uint8Array | AsyncIterable<StreamEvent>
}

/** As the SDK's own decoder gives it, but for binary members, which stay base64. */
export type StreamEvent = object

/** `dispatcher` is asked once for every request. Nothing is retried, no redirect followed. */
export function requestHandler(dispatcher: () => Promise<Dispatcher>) {
  return {
    metadata: { handlerProtocol: 'http/1.1' },
    async handle(request: Request, options: HandlerOptions = {}): Promise<{ response: Response }> {
      const { protocol, hostname, port, path, headers, body } = request
      const to = await dispatcher()
      return new Promise((resolve, reject) => {
        const answer = new ResponseReader(options, (response) => resolve({ response }), reject)
        const origin = `${protocol}//${hostname}${port ? `:${port}` : ''}`
        to.dispatch({ origin, path, method: request.method, headers, body: body ?? null }, answer)
      })
    },
    destroy() {},
    updateHttpClientConfig() {},
    httpHandlerConfigs: () => ({}),
  }
}

/** The handler has decoded the stream already. */
export const eventStreamSerdeProvider = () => ({
  deserialize: (body: never) => body,
  serialize(): never {
    throw new Error('no operation of Bedrock that we use sends a stream')
  },
})

/** An answer is collected and handed over whole; a good event stream is handed over at once, event by event. */
class ResponseReader implements Dispatcher.DispatchHandler {
  readonly #options: HandlerOptions
  readonly #resolve: (response: Response) => void
  readonly #reject: (error: unknown) => void
  #controller: Dispatcher.DispatchController | undefined
  #status = 0
  #headers: Record<string, string> = {}
  #framed = false
  #bytes = 0
  #pieces: Buffer[] = []
  /** Set for a stream, whose events wait in `#events` until they are asked for. */
  #decoder: EventDecoder | undefined
  #events: StreamEvent[] = []
  #over = false
  #error: unknown
  #wake = () => {}

  constructor(
    options: HandlerOptions,
    resolve: (response: Response) => void,
    reject: (error: unknown) => void,
  ) {
    this.#options = options
    this.#resolve = resolve
    this.#reject = reject
    if (options.abortSignal?.aborted) this.#aborted()
    else options.abortSignal?.addEventListener('abort', this.#aborted, { once: true })
  }

  readonly #aborted = () => this.#end(this.#options.abortSignal?.reason ?? gone)

  onRequestStart(controller: Dispatcher.DispatchController): void {
    this.#controller = controller
    if (this.#over) controller.abort(gone)
  }

  onResponseStart(
    _: Dispatcher.DispatchController,
    status: number,
    headers: Record<string, string | string[] | undefined>,
  ): void {
    if (status < 200) return
    this.#status = status
    for (const [name, value] of Object.entries(headers)) this.#headers[name] = String(value)
    this.#framed = 'content-length' in headers || 'transfer-encoding' in headers
    if (!this.#options.isEventStream || status >= 300) return
    this.#decoder = new EventDecoder()
    this.#resolve({ statusCode: status, headers: this.#headers, body: this.#read() })
  }

  onResponseData(controller: Dispatcher.DispatchController, chunk: Buffer): void {
    if (this.#over) return
    this.#bytes += chunk.length
    this.#options.heard?.()
    try {
      if (this.#bytes > caps.answer) throw new Garbled('sent more than 16 MiB')
      if (!this.#decoder) this.#pieces.push(chunk)
      else if (this.#decoder.push(chunk, this.#events) > waiting) controller.pause()
      this.#wake()
    } catch (error) {
      this.#end(error)
    }
  }

  onResponseEnd(): void {
    // Without a length only the connection's end is seen, and that proves nothing: the reader knows if it has it all.
    const cut = this.#decoder ? !this.#framed || this.#decoder.isInside : !this.#isWhole()
    this.#end(cut ? new Broken('ended its answer early') : undefined)
  }

  onResponseError(_: Dispatcher.DispatchController, error: Error): void {
    if (this.#status >= 300)
      this.#end(undefined) // the status says enough
    else this.#end(this.#status ? new Broken('broke the connection', { cause: error }) : error)
  }

  #isWhole(): boolean {
    if (this.#framed || this.#status >= 300) return true
    try {
      JSON.parse(Buffer.concat(this.#pieces).toString('utf8'))
      return true
    } catch {
      return false
    }
  }

  #end(error: unknown): void {
    if (this.#over) return
    this.#over = true
    this.#error = error
    this.#options.abortSignal?.removeEventListener('abort', this.#aborted)
    if (error) this.#controller?.abort(gone)
    this.#wake()
    if (this.#decoder) return
    const body = this.#pieces.length === 1 ? this.#pieces[0] : Buffer.concat(this.#pieces)
    if (error) this.#reject(error)
    else this.#resolve({ statusCode: this.#status, headers: this.#headers, body: body as Buffer })
  }

  /** What came before an error is read before it is thrown. A reader that is slower than the wire pauses it. */
  async *#read(): AsyncGenerator<StreamEvent> {
    for (;;) {
      const events = this.#events
      this.#events = []
      for (const event of events) yield event
      if (this.#events.length) continue
      if (this.#error) throw this.#error
      if (this.#over) return
      const more = new Promise<void>((resolve) => {
        this.#wake = resolve
      })
      if (this.#controller?.paused) this.#controller.resume()
      await more
    }
  }
}

const gone = new Error('no longer wanted')

/** So many events may lie unread before the socket is paused. */
const waiting = 64

/** Bytes before the headers: total length, headers' length, and the checksum of these two. */
const prelude = 12

/** The members of Converse's stream that are read; a member to come is skipped, whatever it carries. */
const known =
  /^(messageStart|contentBlockStart|contentBlockDelta|contentBlockStop|messageStop|metadata)$/

/** Messages out of bytes cut anywhere. Checks lengths before it waits for them, and both checksums. */
export class EventDecoder {
  #held: Buffer[] = []
  #size = 0
  /** Bytes without which there is nothing more to read. */
  #need = prelude

  /** In the middle of a message. */
  get isInside(): boolean {
    return this.#size > 0
  }

  /** Appends the events that `chunk` completes; returns how many now wait. Throws the exception that a message is. */
  push(chunk: Buffer, events: StreamEvent[]): number {
    this.#held.push(chunk)
    this.#size += chunk.length
    if (this.#size < this.#need) return events.length
    const bytes = this.#held.length === 1 ? chunk : Buffer.concat(this.#held, this.#size)
    let at = 0
    for (this.#need = prelude; bytes.length - at >= this.#need; ) {
      const length = bytes.readUInt32BE(at)
      const checked = crc32(bytes.subarray(at, at + 8)) === bytes.readUInt32BE(at + 8)
      if (!checked || length < prelude + 4) throw new Garbled('sent what is no event stream')
      if (length > caps.line) throw new Garbled('sent an event of more than 1 MiB')
      this.#need = length
      if (bytes.length - at < length) break
      const event = toEvent(bytes.subarray(at, at + length))
      if (event) events.push(event)
      at += length
      this.#need = prelude
    }
    this.#held = at < bytes.length ? [bytes.subarray(at)] : []
    this.#size = bytes.length - at
    return events.length
  }
}

function toEvent(message: Buffer): StreamEvent | undefined {
  const end = message.length - 4
  const body = prelude + message.readUInt32BE(4)
  if (body > end || crc32(message.subarray(0, end)) !== message.readUInt32BE(end)) {
    throw new Garbled('sent a damaged event')
  }
  const headers = toHeaders(message.subarray(prelude, body))
  const text = message.toString('utf8', body, end)
  const type = headers.get(':message-type')
  if (type === 'exception') throw named(headers.get(':exception-type'), toMessage(text))
  if (type === 'error') throw named(headers.get(':error-code'), headers.get(':error-message'))
  if (type !== 'event') throw new Garbled('sent a message that is no event')
  const member = headers.get(':event-type') ?? ''
  return known.test(member) ? { [member]: JSON.parse(text) } : undefined
}

/** An error as the SDK throws it: known by its name, which the SDK writes with a capital. */
function named(name = 'Unknown', message = ''): Error {
  return Object.assign(new Error(message), { name: name.charAt(0).toUpperCase() + name.slice(1) })
}

function toMessage(text: string): string {
  try {
    return String(JSON.parse(text).message ?? '')
  } catch {
    return text
  }
}

/** Sizes of the values by type: true, false, byte, short, integer, long; 6 and 7 carry their own; timestamp, UUID. */
const sizes = [0, 0, 1, 2, 4, 8, undefined, undefined, 8, 16]

function toHeaders(bytes: Buffer): Map<string, string> {
  const headers = new Map<string, string>()
  for (let at = 0; at < bytes.length; ) {
    const name = bytes.toString('utf8', at + 1, at + 1 + bytes.readUInt8(at))
    at += 1 + bytes.readUInt8(at)
    const type = bytes.readUInt8(at++)
    if (type >= sizes.length) throw new Garbled('sent a header of no known type')
    const size = sizes[type] ?? bytes.readUInt16BE(at)
    if (sizes[type] === undefined) at += 2
    if (at + size > bytes.length) throw new Garbled('sent a damaged header')
    if (type === 7) headers.set(name, bytes.toString('utf8', at, at + size))
    at += size
  }
  return headers
}
