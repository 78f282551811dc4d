// A stream's bytes, in whatever pieces they come, to its events: server-sent events, or JSON line by line. Knows no
// network and no vendor.
// https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream

import { caps } from './limits.ts'

/** More than anyone should read. The message follows the host's name. */
export class TooLong extends Error {}

interface StreamEvent {
  /** SSE's `event:`, or ''. */
  name: string
  data: string
}

/** `push` what came, then take `next` until there is none. */
export class EventReader {
  readonly #isSse: boolean
  /** Takes a byte order mark away. */
  readonly #decoder = new TextDecoder()
  #afterCr = false
  /** A line that has begun. It is not searched again when it grows: that would be quadratic. */
  #line = ''
  /** An SSE event that has begun. */
  #name = ''
  #data: string | undefined
  #events: StreamEvent[] = []
  #taken = 0

  constructor(format: 'sse' | 'ndjson') {
    this.#isSse = format === 'sse'
  }

  push(chunk: Buffer): void {
    let text = this.#decoder.decode(chunk, { stream: true })
    if (text === '') return // the first bytes of a character
    const isHalf = this.#afterCr && text.startsWith('\n') // of CRLF
    this.#afterCr = text.endsWith('\r')
    if (isHalf) text = text.slice(1)
    if (text.includes('\r')) text = text.replace(/\r\n?/g, '\n')
    if (text.includes('\n')) {
      // Flat at once, which `+` leaves for later.
      this.#read(this.#line === '' ? text : [this.#line, text].join(''))
    } else {
      this.#line += text
      if (this.#line.length > caps.line) throw new TooLong('sent a line of more than 1 MiB')
    }
  }

  /** The next event that is whole. An SSE event that the stream ends in is none, as the standard says. */
  next(): StreamEvent | undefined {
    const event = this.#events[this.#taken++]
    if (event) return event
    this.#events = []
    this.#taken = 0
    return undefined
  }

  /** The stream is over. JSON's last line needs no end; if it is no JSON it was cut, and what is missing tells. */
  end(): void {
    if (this.#isSse) return
    try {
      JSON.parse(this.#line)
      this.#read(`${this.#line}\n`)
    } catch {}
  }

  #read(text: string): void {
    let at = 0
    for (let end = text.indexOf('\n'); end >= 0; end = text.indexOf('\n', at)) {
      if (!this.#isSse) this.#add('', text.slice(at, end).trim())
      else if (end === at) {
        this.#add(this.#name, this.#data)
        this.#name = ''
        this.#data = undefined
      } else if (text.startsWith('data:', at)) {
        const value = text.slice(text.charCodeAt(at + 5) === 32 ? at + 6 : at + 5, end)
        this.#data = this.#data === undefined ? value : `${this.#data}\n${value}`
        if (this.#data.length > caps.line) throw new TooLong('sent an event of more than 1 MiB')
      } else if (text.startsWith('event:', at)) this.#name = text.slice(at + 6, end).trim()
      at = end + 1
    }
    this.#line = text.slice(at)
  }

  #add(name: string, data: string | undefined): void {
    if (data) this.#events.push({ name, data })
  }
}
