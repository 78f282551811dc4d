// A vendor on 127.0.0.1: answers what the test says, byte for byte, and keeps what it was asked. Speaks HTTP/1.1 over
// a bare socket, so that an answer can stop anywhere and in any way. Knows no wire.

import { once } from 'node:events'
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net'

export interface Asked {
  path: string
  headers: Record<string, string>
  /** The raw text of the body, and its JSON. */
  text: string
  // biome-ignore lint/suspicious/noExplicitAny: a vendor's JSON, asserted on by the tests
  body: any
  /** Settles when the connection that carried it is gone. */
  closed: Promise<void>
}

export interface FakeAnswer {
  /** Default 200. */
  status?: number
  headers?: Record<string, string>
  /** Sent one after the other; with `gapMs` a pause goes between, else each is a chunk of its own in one write. */
  pieces?: (string | Buffer)[]
  gapMs?: number
  /** Default `chunked`; `length` declares the length of `pieces`; `close` declares nothing: the end is the end of the connection. */
  framing?: 'chunked' | 'length' | 'close'
  /**
   * How the answer ends. `end` (default): as HTTP wants. `fin` and `reset`: the connection goes before HTTP's end.
   * `hang`: nothing more ever comes. `mute`: not even headers.
   */
  end?: 'end' | 'fin' | 'reset' | 'hang' | 'mute'
  /** Bytes that a declared length promises beyond `pieces`. Default 0. */
  missing?: number
}

/** An answer, or what makes one of the request and its number, counted from 0. */
export type Answering = FakeAnswer | ((asked: Asked, n: number) => FakeAnswer | Promise<FakeAnswer>)

export interface FakeVendor {
  url: string
  /** All requests so far. */
  asked: Asked[]
  /** Replaces what is answered from now on. */
  answer: (next: Answering) => void
  close(): Promise<void>
}

export async function fakeVendor(first: Answering = {}): Promise<FakeVendor> {
  let answering = first
  const asked: Asked[] = []
  const sockets = new Set<Socket>()
  const server: Server = createServer({ noDelay: true }, (socket) => {
    sockets.add(socket)
    const closed = new Promise<void>((resolve) => socket.on('close', resolve))
    socket.on('close', () => sockets.delete(socket))
    socket.on('error', () => {})
    let held = Buffer.alloc(0)
    let busy = false
    const next = () => {
      if (busy) return
      const request = readRequest(held)
      if (!request) return
      held = held.subarray(request.bytes)
      busy = true
      const n = asked.push({ ...request.asked, closed }) - 1
      const made = typeof answering === 'function' ? answering(asked[n] as Asked, n) : answering
      void Promise.resolve(made)
        .then((answer) => send(socket, answer))
        .then(() => {
          busy = false
          next()
        })
    }
    socket.on('data', (chunk) => {
      held = Buffer.concat([held, chunk])
      next()
    })
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    asked,
    answer: (next) => {
      answering = next
    },
    async close() {
      for (const socket of sockets) socket.destroy()
      server.close()
      await once(server, 'close')
    },
  }
}

function readRequest(bytes: Buffer): { asked: Omit<Asked, 'closed'>; bytes: number } | undefined {
  const split = bytes.indexOf('\r\n\r\n')
  if (split < 0) return undefined
  const [line = '', ...rest] = bytes.toString('latin1', 0, split).split('\r\n')
  const headers: Record<string, string> = {}
  for (const header of rest) {
    const colon = header.indexOf(':')
    const name = header.slice(0, colon).toLowerCase()
    const value = header.slice(colon + 1).trim()
    headers[name] = name in headers ? `${headers[name]}, ${value}` : value
  }
  const end = split + 4 + Number(headers['content-length'] ?? 0)
  if (bytes.length < end) return undefined
  const text = bytes.toString('utf8', split + 4, end)
  const path = line.split(' ')[1] ?? ''
  return { asked: { path, headers, text, body: text ? JSON.parse(text) : undefined }, bytes: end }
}

async function send(socket: Socket, answer: FakeAnswer): Promise<void> {
  const { status = 200, framing = 'chunked', end = 'end', gapMs, missing = 0 } = answer
  if (end === 'mute') return
  const pieces = (answer.pieces ?? []).map((piece) => Buffer.from(piece)).filter((p) => p.length)
  const headers: Record<string, string> = {}
  for (const [name, value] of Object.entries(answer.headers ?? {}))
    headers[name.toLowerCase()] = value
  if (framing === 'chunked') headers['transfer-encoding'] = 'chunked'
  if (framing === 'close') headers.connection = 'close'
  if (framing === 'length') {
    headers['content-length'] = String(pieces.reduce((sum, p) => sum + p.length, missing))
  }
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}`)
  const head = Buffer.from(`HTTP/1.1 ${status} X\r\n${lines.join('\r\n')}\r\n\r\n`, 'latin1')
  const framed = pieces.map((piece) =>
    framing === 'chunked'
      ? Buffer.concat([Buffer.from(`${piece.length.toString(16)}\r\n`), piece, Buffer.from('\r\n')])
      : piece,
  )
  const tail = framing === 'chunked' && end === 'end' ? [Buffer.from('0\r\n\r\n')] : []
  if (gapMs === undefined) socket.write(Buffer.concat([head, ...framed, ...tail]))
  else {
    for (const piece of [head, ...framed, ...tail]) {
      if (socket.destroyed) return
      socket.write(piece)
      await new Promise((resolve) => setTimeout(resolve, gapMs))
    }
  }
  if (end === 'fin' || (end === 'end' && framing === 'close')) socket.end()
  if (end === 'reset') {
    // What was written must arrive first: a reset throws away what the other side has not read.
    await new Promise((resolve) => setTimeout(resolve, 5))
    socket.resetAndDestroy()
  }
}
