// A load generator on raw sockets: as many requests as fit, one at a time on each connection, every answer looked at.

import { connect } from 'node:net'

/** `check(body)` throws where an answer is wrong. Resolves to what was done in `ms`. */
export async function load({ port, path, body, connections, ms, check }) {
  const request = Buffer.from(
    `POST ${path} HTTP/1.1\r\nhost: 127.0.0.1:${port}\r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
  )
  const began = performance.now()
  const end = began + ms
  let requests = 0
  const lane = () =>
    new Promise((resolve, reject) => {
      const socket = connect({ port, host: '127.0.0.1', noDelay: true })
      let held = ''
      socket.once('connect', () => socket.write(request))
      socket.on('error', reject)
      socket.on('close', () => reject(new Error('the connection broke')))
      socket.on('data', (bytes) => {
        held += bytes.latin1Slice()
        const answer = wholeAnswer(held)
        if (answer === undefined) return
        held = ''
        try {
          check(answer)
        } catch (error) {
          reject(error)
          return socket.destroy()
        }
        requests++
        if (performance.now() < end) return void socket.write(request)
        resolve()
        socket.destroy()
      })
    })
  await Promise.all(Array.from({ length: connections }, lane))
  return { requests, wallMs: performance.now() - began }
}

/** The body of a whole answer (chunk sizes and all), or undefined. */
function wholeAnswer(text) {
  const at = text.indexOf('\r\n\r\n')
  if (at === -1) return undefined
  const head = text.slice(0, at)
  if (!head.startsWith('HTTP/1.1 200')) throw new Error(text.slice(0, 500))
  const length = /\r\ncontent-length: *(\d+)/i.exec(head)
  if (length) return text.length >= at + 4 + Number(length[1]) ? text.slice(at + 4) : undefined
  return text.endsWith('\r\n0\r\n\r\n') ? text.slice(at + 4) : undefined
}

/** A chunked body's text. */
export function unchunked(body) {
  let text = ''
  for (let at = 0; ; ) {
    const line = body.indexOf('\r\n', at)
    const size = Number.parseInt(body.slice(at, line), 16)
    if (!size) return text
    text += body.slice(line + 2, line + 2 + size)
    at = line + 2 + size + 2
  }
}
