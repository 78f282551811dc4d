// Amazon Bedrock through the AWS SDK, loaded by the first call: it finds credentials, signs and names errors. Clocks
// and retries are ours (wire.ts). Knows no block of Converse (bedrock-converse.ts), no socket (bedrock-handler.ts).
// https://docs.aws.amazon.com/bedrock/latest/userguide/conversation-inference-call.html

import type { BedrockRuntimeClient } from '@aws-sdk/client-bedrock-runtime'
import { bodyMaker, ConverseFold, provider, toReply } from './bedrock-converse.ts'
import { toError } from './bedrock-errors.ts'
import { eventStreamSerdeProvider, requestHandler } from './bedrock-handler.ts'
import type { CompleteOptions, ModelReply, ModelRequest, Provider } from './provider.ts'
import * as wire from './wire.ts'

export interface BedrockOptions {
  /** A model's id, an inference profile's id, or an ARN: `us.anthropic.claude-sonnet-4-5-20250929-v1:0`. */
  model: string
  /** Default `AWS_REGION`, `AWS_DEFAULT_REGION`, then the profile's. */
  region?: string
  /** A profile of ~/.aws/config. Default `AWS_PROFILE`. */
  profile?: string
  /** Another address than the region's, e.g. a VPC endpoint. */
  endpoint?: string
  /** A `BedrockRuntimeClient` of your own: region, profile and endpoint are its matter then. Its retries are skipped. */
  client?: BedrockClient
  /** More of Converse's own body: `{ guardrailConfig, additionalModelRequestFields: { thinking: ... } }`. */
  extra?: Record<string, unknown>
  /** Default `BOTO3_CONNECT_TIMEOUT` and `BOTO3_READ_TIMEOUT` (seconds; first event and idle), then those of wire.ts. */
  timeouts?: Partial<wire.Timeouts>
  /** How often a failed call is made again, at the most, as long as nothing has streamed. Default 2. */
  retries?: number
  /** Plain http to other hosts than this one. Default false: what is asked would travel in clear. */
  allowHttp?: boolean
  clock?: wire.Clock
}

/** One method for all of the SDK's commands. */
export interface BedrockClient {
  // biome-ignore lint/suspicious/noExplicitAny: a command, and its output
  send(command: any, options?: object): Promise<any>
}

export function bedrock(options: BedrockOptions): Provider {
  const { model, extra, retries, clock = wire.realClock } = options
  if (!model) throw wire.configError(provider, 'pass model: the id of a model or inference profile')
  const timeouts = wire.checkedTimeouts({ ...timeoutsFromEnv(), ...options.timeouts })
  const account = accountOf(options, timeouts.connectMs)
  const toBody = bodyMaker(model, extra)

  async function complete(
    request: ModelRequest,
    { signal, onDelta }: CompleteOptions = {},
  ): Promise<ModelReply> {
    signal?.throwIfAborted()
    const body = toBody(request)
    const text = wire.toJson(body)
    const deadline = clock.now() + timeouts.stepMs
    let emitted = false

    async function attempt(): Promise<ModelReply> {
      const stop = new AbortController()
      const halted = Promise.withResolvers<never>()
      const halt = (reason: unknown) => {
        halted.reject(reason) // at once: a caller's own client may not heed the signal
        stop.abort(reason)
      }
      const aborted = () => halt(signal?.reason)
      const watch = new wire.Watch(timeouts, deadline - clock.now(), (option) =>
        halt(wire.timeoutError(provider, account.host, option, timeouts[option])),
      )
      signal?.addEventListener('abort', aborted, { once: true })
      try {
        return await Promise.race([converse(stop, watch), halted.promise])
      } catch (error) {
        stop.abort(error) // the SDK leaves open the connection of a stream that is no longer read
        throw error
      } finally {
        watch.stop()
        signal?.removeEventListener('abort', aborted)
      }
    }

    async function converse(stop: AbortController, watch: wire.Watch): Promise<ModelReply> {
      const sdk = await import('@aws-sdk/client-bedrock-runtime')
      const client = account.client(sdk.BedrockRuntimeClient)
      let requestId: string | undefined
      const sure = async <T>(act: () => T | Promise<T>): Promise<T> => {
        try {
          return await act()
        } catch (thrown) {
          const secrets = await secretsOf(client)
          const error = toError(thrown, { ...account, model, request, secrets, requestId })
          if (error.code === 'provider_auth') account.forget()
          throw error
        }
      }
      const send = (Command: typeof sdk.ConverseCommand | typeof sdk.ConverseStreamCommand) => {
        const command = new Command({ modelId: model, ...body })
        prepare(command.middlewareStack as unknown as Stack, text)
        return client.send(command, { abortSignal: stop.signal, heard: () => watch.touch() })
      }
      if (!onDelta) return sure(async () => toReply(await send(sdk.ConverseCommand)))

      const output = await sure(() => send(sdk.ConverseStreamCommand))
      requestId = output.$metadata?.requestId ?? ''
      const fold = new ConverseFold()
      const events: AsyncIterator<object> = output.stream[Symbol.asyncIterator]()
      const next = async () => {
        const { done, value } = await events.next()
        return done ? ended : fold.event(value)
      }
      for (let text = await sure(next); text !== ended; text = await sure(next)) {
        watch.touch()
        if (text && !stop.signal.aborted) {
          emitted = true
          const wait = onDelta({ type: 'text_delta', text })
          if (typeof wait?.then === 'function') {
            watch.hold(true)
            await wait
            watch.hold(false)
          }
        }
        if (fold.done) break
      }
      watch.stop()
      if (fold.done && !(await hasEnded(events))) stop.abort()
      return sure(() => fold.reply(output.$metadata))
    }

    return wire.retrying(attempt, { retries, emitted: () => emitted, deadline, signal, clock })
  }

  return {
    name: provider,
    model,
    /** Converse's body as it is on the socket, bytes in base64. The model is in the path. */
    render: (request) => JSON.parse(wire.toJson(toBody(request))),
    complete,
  }
}

const ended = Symbol('the stream is over')

/** Lets the connection come to its end, so that it can be used again. False if that takes too long. */
async function hasEnded(events: AsyncIterator<unknown>): Promise<boolean> {
  const over = Promise.withResolvers<boolean>()
  const timer = setTimeout(over.resolve, 200, false)
  const read = (): unknown =>
    events.next().then(
      ({ done }) => (done ? over.resolve(true) : read()),
      () => over.resolve(true),
    )
  read()
  return over.promise.finally(() => clearTimeout(timer))
}

// biome-ignore lint/suspicious/noExplicitAny: the SDK's own types differ from command to command
type Stack = { add(middleware: (next: any) => (args: any) => unknown, options: object): void }

/**
 * The body goes out as the text that it is, not written anew by the SDK, which takes ten times as long. And the SDK's
 * retries, which would multiply ours, are replaced by nothing.
 */
function prepare(stack: Stack, body: string): void {
  stack.add((next) => (args) => next({ ...args, input: { modelId: args.input.modelId } }), {
    step: 'initialize',
    priority: 'low',
  })
  stack.add((next) => (args) => next({ ...args, request: Object.assign(args.request, { body }) }), {
    step: 'serialize',
    priority: 'low',
  })
  const place = { step: 'finalizeRequest', priority: 'high' }
  stack.add((next) => next, { name: 'retryMiddleware', override: true, ...place })
}

/** One client for all providers of the process that would make the same: connections and credentials are shared. */
const clients = new Map<string, BedrockClient>()

/** What decides which credentials the SDK finds. */
const sources = [
  'AWS_ACCESS_KEY_ID',
  'AWS_SESSION_TOKEN',
  'AWS_BEARER_TOKEN_BEDROCK',
  'AWS_CONFIG_FILE',
  'AWS_SHARED_CREDENTIALS_FILE',
]

/** Where Bedrock is called, and as whom. */
function accountOf(options: BedrockOptions, connectMs: number) {
  const { env } = process
  const { endpoint, allowHttp } = options
  const region = options.region || env.AWS_REGION || env.AWS_DEFAULT_REGION
  const profile = options.profile || env.AWS_PROFILE
  const known = region ? `bedrock-runtime.${region}.amazonaws.com` : 'Bedrock'
  const host = endpoint ? wire.endpoint(provider, endpoint, allowHttp).host : known
  const from = sources.map((name) => env[name])
  const key = JSON.stringify([region, profile, endpoint, connectMs, from])
  return {
    host,
    region,
    profile,
    connectMs,
    client(Client: typeof BedrockRuntimeClient): BedrockClient {
      if (options.client) return options.client
      const client =
        clients.get(key) ??
        new Client({
          ...(region && { region }),
          ...(options.profile && { profile: options.profile }),
          ...(endpoint && { endpoint }),
          maxAttempts: 1,
          requestHandler: requestHandler(() => wire.sharedAgent(connectMs)) as never,
          eventStreamSerdeProvider: eventStreamSerdeProvider as never,
        })
      clients.set(key, client)
      return client
    },
    /** The SDK keeps keys without an expiry for good: only a new client finds what a new sign-in left. */
    forget: () => void clients.delete(key),
  }
}

/** What must not show up in a message, under names that `clean` takes for secret. */
async function secretsOf(client: BedrockClient): Promise<Record<string, string>> {
  const { config } = client as Partial<BedrockRuntimeClient>
  const found = await config?.credentials?.().catch(() => undefined)
  const { secretAccessKey = '', sessionToken = '' } = found ?? {}
  return { secretAccessKey, sessionToken, token: process.env.AWS_BEARER_TOKEN_BEDROCK ?? '' }
}

/** The original's variables, in seconds. What it calls reading is waiting for the first event, and for each next. */
function timeoutsFromEnv(): Partial<wire.Timeouts> {
  const ms = (name: string): number => {
    const seconds = Number(process.env[name] || 0)
    if (seconds >= 0) return seconds * 1000
    throw wire.configError(
      provider,
      `${name} must be a number of seconds, got ${process.env[name]}`,
    )
  }
  const connectMs = ms('BOTO3_CONNECT_TIMEOUT')
  const read = ms('BOTO3_READ_TIMEOUT')
  const stepMs = Math.max(read, wire.defaultTimeouts.stepMs)
  return {
    ...(connectMs && { connectMs }),
    ...(read && { firstEventMs: read, idleMs: read, stepMs }),
  }
}
