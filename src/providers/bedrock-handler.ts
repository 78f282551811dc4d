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

/** What the SDK gives a handler. */
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
}

interface Response {
  statusCode: number
  headers: Record<string, string>
  body: Uint8Array | AsyncIterable<Buffer>
}

/** `dispatcher` is asked once for every request. Nothing is retried, no redirect followed. */
export function requestHandler(dispatcher: () => Promise<Dispatcher>) {
  return {
    metadata: { handlerProtocol: 'http/1.1' },
    async handle(request: Request, options: HandlerOptions = {}): Promise<{ response: Response }> {
      const { method, protocol, hostname, port, path, headers, body = null } = request
      const origin = `${protocol}//${hostname}${port ? `:${port}` : ''}`
      const to = await dispatcher()
      return new Promise((resolve, reject) => {
        const reader = new ResponseReader(options, (response) => resolve({ response }), reject)
        to.dispatch({ origin, path, method, headers, body }, reader)
      })
    },
    destroy() {},
    updateHttpClientConfig() {},
    httpHandlerConfigs: () => ({}),
  }
}

/** An answer is collected and handed over whole; a good event stream at once, and then piece by piece. */
class ResponseReader implements Dispatcher.DispatchHandler {
  readonly #options: HandlerOptions
  readonly #resolve: (response: Response) => void
  readonly #reject: (error: unknown) => void
  #controller: Dispatcher.DispatchController | undefined
  #status = 0
  #headers: Record<string, string> = {}
  #streams = false
  #bytes = 0
  /** Not yet handed over. */
  #pieces: Buffer[] = []
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
    this.#streams = this.#options.isEventStream === true && status < 300
    if (this.#streams) this.#answer(this.#read())
  }

  onResponseData(controller: Dispatcher.DispatchController, chunk: Buffer): void {
    if (this.#over) return
    this.#bytes += chunk.length
    this.#pieces.push(chunk)
    if (this.#bytes > caps.answer) this.#end(new Garbled('sent more than 16 MiB'))
    else if (this.#streams && this.#pieces.length > 1) controller.pause()
    this.#wake()
  }

  onResponseEnd(): void {
    this.#end(undefined)
  }

  onResponseError(_: Dispatcher.DispatchController, error: Error): void {
    if (this.#status >= 300)
      this.#end(undefined) // the status says enough
    else this.#end(this.#status ? new Broken('broke the connection', { cause: error }) : error)
  }

  #answer(body: Uint8Array | AsyncIterable<Buffer>): void {
    this.#resolve({ statusCode: this.#status, headers: this.#headers, body })
  }

  #end(error: unknown): void {
    if (this.#over) return
    this.#over = true
    this.#error = error
    this.#options.abortSignal?.removeEventListener('abort', this.#aborted)
    if (error) this.#controller?.abort(gone)
    this.#wake()
    if (this.#streams) return
    if (error) this.#reject(error)
    else this.#answer(Buffer.concat(this.#pieces))
  }

  /** What came before an error is read before it is thrown. A reader that is slower than the wire pauses it. */
  async *#read(): AsyncGenerator<Buffer> {
    for (;;) {
      const piece = this.#pieces.shift()
      if (piece) yield piece
      else if (this.#error) throw this.#error
      else if (this.#over) return
      else {
        const more = new Promise<void>((resolve) => {
          this.#wake = resolve
        })
        if (this.#controller?.paused) this.#controller.resume()
        await more
      }
    }
  }
}

const gone = new Error('no longer wanted')

/** For the SDK's client: its decoder in our way, whose events differ in that binary members stay base64. */
export const eventStreamSerdeProvider = () => ({
  deserialize: eventsOf,
  serialize(): never {
    throw new Error('no operation of Bedrock that we use sends a stream')
  },
})

async function* eventsOf(body: AsyncIterable<Uint8Array>): AsyncGenerator<object> {
  const decoder = new EventDecoder()
  for await (const chunk of body) {
    const { events, error } = decoder.push(
      Buffer.from(chunk.buffer, chunk.byteOffset, chunk.length),
    )
    for (const event of events) yield event
    if (error) throw error
  }
  if (decoder.isInside) throw new Broken('ended its answer early')
}

/** Bytes before the headers: total length, headers' length, and the checksum of these two. */
const prelude = 12

/** The members of Converse's stream that are read; a member to come is skipped, whatever it carries. */
const known =
  /^(messageStart|contentBlockStart|contentBlockDelta|contentBlockStop|messageStop|metadata)$/

/** Messages out of bytes cut anywhere. Checks lengths before it waits for them, and both checksums. */
class EventDecoder {
  #held: Buffer[] = []
  #size = 0
  /** Bytes without which there is nothing more to read. */
  #need = prelude

  /** In the middle of a message. */
  get isInside(): boolean {
    return this.#size > 0
  }

  /** The events that `chunk` completes, and the exception that a message after them is. */
  push(chunk: Buffer): { events: object[]; error?: unknown } {
    const events: object[] = []
    this.#held.push(chunk)
    this.#size += chunk.length
    if (this.#size < this.#need) return { events }
    const bytes = this.#held.length === 1 ? chunk : Buffer.concat(this.#held, this.#size)
    let at = 0
    try {
      for (this.#need = prelude; bytes.length - at >= this.#need; ) {
        this.#need = lengthOf(bytes, at)
        if (bytes.length - at < this.#need) break
        const event = toEvent(bytes.subarray(at, at + this.#need))
        if (event) events.push(event)
        at += this.#need
        this.#need = prelude
      }
    } catch (error) {
      return { events, error }
    }
    this.#held = at < bytes.length ? [bytes.subarray(at)] : []
    this.#size = bytes.length - at
    return { events }
  }
}

function lengthOf(bytes: Buffer, at: number): number {
  const length = bytes.readUInt32BE(at)
  const isGood = crc32(bytes.subarray(at, at + 8)) === bytes.readUInt32BE(at + 8)
  if (!isGood || length < prelude + 4) throw new Garbled('sent what is no event stream')
  if (length > caps.line) throw new Garbled('sent an event of more than 1 MiB')
  return length
}

function toEvent(message: Buffer): object | undefined {
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
