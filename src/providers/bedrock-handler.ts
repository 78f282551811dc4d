// How the AWS SDK's Bedrock client reaches the network and reads event streams: a request handler and an event-stream
// decoder to hand to it. Over undici's dispatcher, about two thirds of the CPU of the SDK's own. Knows no Converse.
// https://smithy.io/2.0/aws/amazon-eventstream.html

import { crc32 } from 'node:zlib'
import type { Dispatcher } from 'undici'
import { caps } from './limits.ts'

/** The connection ended before the answer did. */
export class Broken extends Error {}

/** Bytes that are no event stream, or more of them than anyone should read. */
export class Garbled extends Error {}

/** An exception in a stream. `name` is its type, which the SDK writes with a capital. */
export class Exception extends Error {
  constructor(type = 'unknownException', message: unknown) {
    super(typeof message === 'string' ? message : '')
    this.name = type.charAt(0).toUpperCase() + type.slice(1)
  }
}

/** The SDK's request. */
interface Request {
  method: string
  protocol: string
  hostname: string
  port?: number
  path: string
  headers: Record<string, string>
  body?: string | Uint8Array
}

/** The SDK's options of a request. `isEventStream`: of an operation that answers with a stream. */
interface Options {
  abortSignal?: AbortSignal
  isEventStream?: boolean
}

interface Response {
  statusCode: number
  headers: Record<string, string>
  body: Uint8Array | AsyncIterable<Buffer>
}

/** `dispatcher` is asked once for every request. Nothing is retried, no redirect followed. */
export function requestHandler(dispatcher: (origin: string) => Promise<Dispatcher>) {
  return {
    metadata: { handlerProtocol: 'http/1.1' },
    async handle(request: Request, options: Options = {}): Promise<{ response: Response }> {
      const { method, protocol, hostname, port, path, headers, body = null } = request
      const origin = `${protocol}//${hostname}${port ? `:${port}` : ''}`
      const to = await dispatcher(origin)
      const reader = new ResponseReader(options)
      to.dispatch({ origin, path, method, headers, body }, reader)
      return { response: await reader.response }
    },
    destroy() {},
    updateHttpClientConfig() {},
    httpHandlerConfigs: () => ({}),
  }
}

/** An answer is collected and handed over whole; a good event stream at once, and then piece by piece. */
class ResponseReader implements Dispatcher.DispatchHandler {
  readonly #options: Options
  readonly #settle = Promise.withResolvers<Response>()
  readonly response = this.#settle.promise
  #controller: Dispatcher.DispatchController | undefined
  #statusCode = 0
  #headers: Record<string, string> = {}
  #streams = false
  #bytes = 0
  /** Not yet handed over. */
  #pieces: Buffer[] = []
  #over = false
  #error: unknown
  #wake = () => {}

  constructor(options: Options) {
    this.#options = options
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
    statusCode: number,
    headers: Record<string, string | string[] | undefined>,
  ): void {
    if (statusCode < 200) return
    this.#statusCode = statusCode
    for (const [name, value] of Object.entries(headers)) this.#headers[name] = String(value)
    this.#streams = this.#options.isEventStream === true && statusCode < 300
    if (this.#streams) this.#answer(this.#read())
  }

  onResponseData(controller: Dispatcher.DispatchController, chunk: Buffer): void {
    if (this.#over) return
    this.#pieces.push(chunk)
    this.#bytes += chunk.length
    if (this.#bytes > caps.answer) this.#end(new Garbled('sent more than 16 MiB'))
    else if (this.#streams && this.#pieces.length > 1) controller.pause()
    this.#wake()
  }

  onResponseEnd(): void {
    this.#end()
  }

  onResponseError(_: Dispatcher.DispatchController, error: Error): void {
    if (this.#statusCode >= 300)
      this.#end(undefined) // the status says enough
    else this.#end(this.#statusCode ? new Broken('broke the connection', { cause: error }) : error)
  }

  #answer(body: Response['body']): void {
    this.#settle.resolve({ statusCode: this.#statusCode, headers: this.#headers, body })
  }

  #end(error?: unknown): void {
    if (this.#over) return
    this.#over = true
    this.#error = error
    this.#options.abortSignal?.removeEventListener('abort', this.#aborted)
    if (error) this.#controller?.abort(gone)
    if (error) this.#settle.reject(error)
    else if (!this.#streams) this.#answer(Buffer.concat(this.#pieces))
    this.#wake()
  }

  /** What came before an error is read before it is thrown. A reader that is slower than the wire pauses it. */
  async *#read(): AsyncGenerator<Buffer> {
    for (;;) {
      const piece = this.#pieces.shift()
      if (piece) yield piece
      else if (this.#error) throw this.#error
      else if (this.#over) return
      else {
        const more = Promise.withResolvers<void>()
        this.#wake = more.resolve
        if (this.#controller?.paused) this.#controller.resume()
        await more.promise
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

/** Messages out of bytes cut anywhere. Checks lengths before it waits for them, and both checksums. */
async function* eventsOf(body: AsyncIterable<Uint8Array>): AsyncGenerator<object> {
  let held: Uint8Array[] = []
  let size = 0
  let need = prelude
  for await (const chunk of body) {
    held.push(chunk)
    size += chunk.length
    if (held.length > 1000) held = [Buffer.concat(held, size)] // of single bytes each is an object of a hundred
    if (size < need) continue
    const bytes = Buffer.concat(held, size)
    let at = 0
    for (need = prelude; size - at >= need; at += need, need = prelude) {
      need = lengthOf(bytes, at)
      if (size - at < need) break
      const event = toEvent(bytes.subarray(at, at + need))
      if (event) yield event
    }
    held = [bytes.subarray(at)]
    size -= at
  }
  if (size > 0) throw new Broken('ended its answer early')
}

/** Bytes before the headers: total length, headers' length, and the checksum of these two. */
const prelude = 12

function lengthOf(bytes: Buffer, at: number): number {
  const length = bytes.readUInt32BE(at)
  const isGood = crc32(bytes.subarray(at, at + 8)) === bytes.readUInt32BE(at + 8)
  if (!isGood || length < prelude + 4) throw new Garbled('sent what is no event stream')
  if (length > caps.line) throw new Garbled('sent an event of more than 1 MiB')
  return length
}

/** The members of Converse's stream that are read; a member to come is skipped, whatever it carries. */
const known =
  /^(messageStart|contentBlockStart|contentBlockDelta|contentBlockStop|messageStop|metadata)$/

/** As the SDK gives it: an object of one member. An exception is thrown, known by its name. */
function toEvent(message: Buffer): object | undefined {
  const end = message.length - 4
  const body = prelude + message.readUInt32BE(4)
  if (body > end || crc32(message.subarray(0, end)) !== message.readUInt32BE(end)) {
    throw new Garbled('sent a damaged event')
  }
  const headers = toHeaders(message.subarray(prelude, body))
  const text = message.toString('utf8', body, end)
  const type = headers.get(':message-type')
  if (type === 'exception') {
    throw new Exception(headers.get(':exception-type'), JSON.parse(text).message)
  }
  if (type === 'error') {
    throw new Exception(headers.get(':error-code'), headers.get(':error-message'))
  }
  if (type !== 'event') throw new Garbled('sent a message that is no event')
  const member = headers.get(':event-type') ?? ''
  return known.test(member) ? { [member]: JSON.parse(text) } : undefined
}

/** Sizes of a header's value by type; -1: it carries its own. True, false, byte, short, integer, long, ... */
const sizes = [0, 0, 1, 2, 4, 8, -1, -1, 8, 16]

function toHeaders(bytes: Buffer): Map<string, string> {
  const headers = new Map<string, string>()
  for (let at = 0; at < bytes.length; ) {
    const start = at + 2 + bytes.readUInt8(at)
    const name = bytes.toString('utf8', at + 1, start - 1)
    const type = bytes.readUInt8(start - 1)
    const size = sizes[type]
    at = size === -1 ? start + 2 : start
    const end = at + (size === -1 ? bytes.readUInt16BE(start) : (size ?? Number.POSITIVE_INFINITY))
    if (end > bytes.length) throw new Garbled('sent a damaged header')
    if (type === 7) headers.set(name, bytes.toString('utf8', at, end))
    at = end
  }
  return headers
}
