// Where requests go, and over what: addresses that may be asked, and undici's pools, which are loaded by the first
// request and shared by the process. Knows no vendor.

import type { Dispatcher } from 'undici'
import { configError } from './errors.ts'
import { longestMs } from './limits.ts'

export interface Endpoint {
  origin: string
  host: string
  path: string
  /** What it is reached over, once something was sent. */
  dispatcher?: Dispatcher
}

/** Throws for an address that cannot work, and for one where what is asked would travel in clear. */
export function endpoint(provider: string, text: string, allowHttp = false): Endpoint {
  const url = URL.parse(text)
  if (url?.protocol !== 'https:' && url?.protocol !== 'http:') {
    throw configError(provider, 'the base URL must begin with https://')
  }
  const loopback = /^(localhost|.*\.localhost|127(\.\d+){3}|\[::1\])$/.test(url.hostname)
  if (url.protocol === 'http:' && !loopback && !allowHttp) {
    const fix = 'must be reached over https (allowHttp: true if its network is trusted)'
    throw configError(provider, `${url.host} ${fix}`)
  }
  return { origin: url.origin, host: url.host, path: url.pathname + url.search }
}

const pools = new Map<string, Promise<Dispatcher>>()

/** Keep-alive connections to one origin. HTTP/2 is off: a session that dies there ends a stream as if it were whole. */
export function sharedPool(origin: string, connectMs: number): Promise<Dispatcher> {
  const key = `${connectMs} ${origin}`
  let pool = pools.get(key)
  if (!pool) {
    pool = import('undici').then(
      ({ Pool }) =>
        new Pool(origin, {
          allowH2: false,
          connect: { timeout: Math.min(connectMs, longestMs) },
          keepAliveTimeout: 30_000,
          headersTimeout: 0, // the clocks in limits.ts are exact
          bodyTimeout: 0,
        }),
    )
    pools.set(key, pool)
  }
  return pool
}
