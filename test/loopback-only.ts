// Preloaded into a program under test (`--import`): a connection to anything but this machine fails, and ends the program.

import { type NetConnectOpts, Socket } from 'node:net'

const { connect } = Socket.prototype
const isLocal = /^(127\.\d+\.\d+\.\d+|::1|localhost)$/

/** `net.connect` hands over its arguments in a list of its own. */
type Arguments = [NetConnectOpts | number | string | [NetConnectOpts], ...unknown[]]

Socket.prototype.connect = function (this: Socket, ...args: Arguments) {
  const [first, second] = args
  const options = Array.isArray(first) ? first[0] : first
  const { path, host } = Object(options) as { path?: unknown; host?: unknown }
  const named = typeof options === 'object' ? host : second
  const isSocketFile = typeof options === 'string' || typeof path === 'string'
  if (!isSocketFile && typeof named === 'string' && !isLocal.test(named)) {
    console.error(`loopback only: ${named}`)
    process.exit(70)
  }
  return Reflect.apply(connect, this, args)
} as typeof connect
