// The AWS SDK as we use it: one client for all who would make the same, and what is changed of each call it sends.
// https://docs.aws.amazon.com/sdk-for-javascript/v3/developer-guide/middleware-stack.html

import type { BedrockRuntimeClient } from '@aws-sdk/client-bedrock-runtime'
import { eventStreamSerdeProvider, requestHandler } from './bedrock-handler.ts'
import { provider } from './bedrock-request.ts'
import { endpoint as checked, sharedPool } from './connect.ts'

/** One method for all of the SDK's commands. */
export interface BedrockClient {
  // biome-ignore lint/suspicious/noExplicitAny: a command, and its output
  send(command: any, options?: object): Promise<any>
}

interface Place {
  region?: string | undefined
  profile?: string | undefined
  endpoint?: string | undefined
  client?: BedrockClient | undefined
  allowHttp?: boolean | undefined
}

/** Where Bedrock is called, and as whom. */
interface Account {
  /** As far as it is known before a request is made. */
  host: string
  region: string | undefined
  profile: string | undefined
  connectMs: number
  client(Client: typeof BedrockRuntimeClient): BedrockClient
  /** The SDK keeps keys without an expiry for good: only a new client finds what a new sign-in left. */
  forget(): void
}

const clients = new Map<string, BedrockClient>()

/** What decides which credentials the SDK finds. */
const sources = [
  'AWS_ACCESS_KEY_ID',
  'AWS_SESSION_TOKEN',
  'AWS_BEARER_TOKEN_BEDROCK',
  'AWS_CONFIG_FILE',
  'AWS_SHARED_CREDENTIALS_FILE',
]

export function accountOf(place: Place, connectMs: number): Account {
  const { env } = process
  const { client: given, endpoint, allowHttp } = place
  const region = place.region || (given ? undefined : env.AWS_REGION || env.AWS_DEFAULT_REGION)
  const profile = place.profile || env.AWS_PROFILE
  const usual = region ? `bedrock-runtime.${region}.amazonaws.com` : 'Bedrock'
  const from = sources.map((name) => env[name])
  const key = JSON.stringify([region, profile, endpoint, connectMs, from])
  return {
    host: endpoint ? checked(provider, endpoint, allowHttp).host : usual,
    region,
    profile,
    connectMs,
    client(Client) {
      const client = given ?? clients.get(key)
      if (client) return client
      const made = new Client({
        ...(region && { region }),
        ...(place.profile && { profile: place.profile }),
        ...(endpoint && { endpoint }),
        ...anew,
        maxAttempts: 1,
        requestHandler: requestHandler((origin) => sharedPool(origin, connectMs)) as never,
        eventStreamSerdeProvider: eventStreamSerdeProvider as never,
      })
      clients.set(key, made)
      return made
    },
    forget: () => void clients.delete(key),
  }
}

/** The SDK keeps what it read of files for the life of the process, so that a new sign-in would go unseen. */
const anew = { ignoreCache: true }

/** What a call learns on its way, for the errors it may end in. */
export interface Seen {
  host: string
  /** The headers of the request, signed: credentials among them must not show up in a message. */
  sent: Record<string, string>
  /** Of the answer, as soon as its headers are there. */
  requestId?: string
  /** HTTP says where the answer ends. Else only the connection's end is seen, which proves nothing. */
  framed?: boolean
  /** Told of every piece of a streamed answer. */
  heard(): void
}

// biome-ignore lint/suspicious/noExplicitAny: the SDK's types differ from command to command
type Middleware = (next: (args: any) => any) => (args: any) => any
export interface Stack {
  add(middleware: Middleware, options: object): void
}

/**
 * Follows one command through the SDK, whoever made the client. `text`: the body, for the SDK to send as it is; without
 * it the SDK writes it.
 */
export function follow(stack: Stack, streams: boolean, seen: Seen, text?: string): void {
  const written: Middleware = (next) => (args) => {
    const { hostname, port } = args.request
    seen.host = port ? `${hostname}:${port}` : hostname
    if (text !== undefined) args.request.body = text // which the SDK would write ten times as slowly
    return next(args)
  }
  const answered: Middleware = (next) => async (args) => {
    seen.sent = args.request.headers
    const { response } = await next(args)
    const { statusCode, headers, body } = response
    if (statusCode >= 300) return { response }
    seen.requestId = headers['x-amzn-requestid'] ?? ''
    seen.framed = 'content-length' in headers || 'transfer-encoding' in headers
    if (streams) response.body = tapped(body, seen)
    return { response }
  }
  stack.add(written, { step: 'serialize', priority: 'low' })
  stack.add(answered, { step: 'deserialize', priority: 'low' })
  // The SDK's retries would multiply ours: in their place nothing happens.
  const place = { name: 'retryMiddleware', step: 'finalizeRequest', priority: 'high' }
  stack.add((next) => next, { ...place, override: true })
}

async function* tapped(body: AsyncIterable<Uint8Array>, seen: Seen): AsyncGenerator<Uint8Array> {
  for await (const chunk of body) {
    seen.heard()
    yield chunk
  }
}
