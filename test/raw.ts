// A client that is a bare socket: what it sends is what was written, and what comes back is kept as it came.

import { connect, type Socket } from 'node:net'

export interface Raw {
  socket: Socket
  /** Everything received so far. */
  text(): string
  send(text: string): void
  /** Resolves once `part` was received, or with what there is when the connection ended before. */
  until(part: string): Promise<string>
  /** Resolves with everything once the other side has closed. */
  closed: Promise<string>
}

export function raw(port: number, first = ''): Promise<Raw> {
  return new Promise((resolve, reject) => {
    const socket = connect(port, '127.0.0.1')
    const chunks: Buffer[] = []
    const text = () => Buffer.concat(chunks).toString()
    socket.on('data', (chunk) => chunks.push(chunk))
    const closed = new Promise<string>((done) => socket.on('close', () => done(text())))
    const until = (part: string) =>
      new Promise<string>((done) => {
        const bytes = Buffer.from(part)
        let tail = Buffer.concat(chunks) // and then the last bytes before each chunk: no chunk is searched twice
        const check = (chunk = Buffer.alloc(0)) => {
          tail = Buffer.concat([tail, chunk])
          if (!tail.includes(bytes) && !socket.destroyed) {
            tail = tail.subarray(Math.max(0, tail.length - bytes.length))
            return
          }
          socket.off('data', check).off('close', onClose)
          done(text())
        }
        const onClose = () => check()
        socket.on('data', check).on('close', onClose)
        check()
      })
    socket.on('error', reject) // after the connection is there: nobody listens, and 'close' follows
    socket.on('connect', () => {
      socket.write(first)
      resolve({ socket, text, send: (more) => socket.write(more), until, closed })
    })
  })
}
