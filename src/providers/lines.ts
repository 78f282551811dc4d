// A stream's bytes, in whatever pieces they come, to its events: server-sent events, or JSON line by line. Knows no
// network and no vendor.
// https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream

import { caps } from './limits.ts'

/** More than anyone should read. The message follows the host's name. */
export class TooLong extends Error {}

/** `push` what came, then take `next` until there is none. */
export class EventReader {
  readonly #isSse: boolean
  /** Takes a byte order mark away. */
  readonly #decoder = new TextDecoder()
  #afterCr = false
  /** Lines that were not read yet, from `#at` on; what follows the last of them goes to `#line`. */
  #text = ''
  #at = 0
  /** A line that has begun. It is not searched again when it grows: that would be quadratic. */
  #line = ''
  /** An SSE event that has begun. */
  #name = ''
  #data: string | undefined
  /** Of the event that `next` gave: SSE's `event:`, or ''. */
  name = ''

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
    if (this.#text !== '' || text.includes('\n')) this.#add(text)
    else {
      this.#line += text
      if (this.#line.length > caps.line) throw new TooLong('sent a line of more than 1 MiB')
    }
  }

  #add(text: string): void {
    const rest = this.#text === '' ? this.#line : this.#text.slice(this.#at)
    // Flat at once, which `+` leaves for later.
    this.#text = rest === '' ? text : [rest, text].join('')
    this.#at = 0
    this.#line = ''
  }

  /** The data of the next event that is whole. An SSE event that the stream ends in is none, as the standard says. */
  next(): string | undefined {
    const text = this.#text
    while (text !== '') {
      const at = this.#at
      const end = text.indexOf('\n', at)
      if (end < 0) {
        this.#text = ''
        this.#line = text.slice(at)
        return undefined
      }
      this.#at = end + 1
      const data = this.#isSse ? this.#readLine(text, at, end) : text.slice(at, end).trim()
      if (data) return data
    }
    return undefined
  }

  /** The stream is over. JSON's last line needs no end; if it is no JSON it was cut, and what is missing tells. */
  end(): void {
    if (this.#isSse) return
    const last = this.#text === '' ? this.#line : this.#text.slice(this.#text.lastIndexOf('\n') + 1)
    try {
      JSON.parse(last)
      this.#add('\n')
    } catch {}
  }

  /** The event that this line ends. */
  #readLine(text: string, at: number, end: number): string | undefined {
    if (end === at) {
      const data = this.#data
      this.name = this.#name
      this.#name = ''
      this.#data = undefined
      return data
    }
    if (text.startsWith('data:', at)) {
      const value = text.slice(text.charCodeAt(at + 5) === 32 ? at + 6 : at + 5, end)
      this.#data = this.#data === undefined ? value : `${this.#data}\n${value}`
      if (this.#data.length > caps.line) throw new TooLong('sent an event of more than 1 MiB')
    } else if (text.startsWith('event:', at)) this.#name = text.slice(at + 6, end).trim()
    return undefined
  }
}
