// Amazon Bedrock through the AWS SDK, which finds credentials, signs and names errors; it is loaded by the first call.
// Clocks and retries are ours (limits.ts, retry.ts). The wire is in bedrock-request.ts and bedrock-reply.ts, the SDK's client in
// bedrock-client.ts, its network in bedrock-handler.ts, what can go wrong in bedrock-errors.ts.
// https://docs.aws.amazon.com/bedrock/latest/userguide/conversation-inference-call.html

import type { ConverseCommandInput } from '@aws-sdk/client-bedrock-runtime'
import { accountOf, type BedrockClient, follow, type Seen, type Stack } from './bedrock-client.ts'
import { toError } from './bedrock-errors.ts'
import { ConverseFold, toReply } from './bedrock-reply.ts'
import { bodyMaker, provider, toInput } from './bedrock-request.ts'
import { configError } from './errors.ts'
import { toJson } from './history.ts'
import {
  type Clock,
  checkedTimeouts,
  defaultTimeouts,
  realClock,
  type Timeouts,
  timeoutError,
  Watch,
} from './limits.ts'
import type { CompleteOptions, ModelReply, ModelRequest, Provider } from './provider.ts'
import { retrying } from './retry.ts'

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
  /** Default `BOTO3_CONNECT_TIMEOUT` and `BOTO3_READ_TIMEOUT` (seconds; first event and idle), then those of limits.ts. */
  timeouts?: Partial<Timeouts>
  /** How often a failed call is made again, at the most, as long as nothing has streamed. Default 2. */
  retries?: number
  /** Plain http to other hosts than this one. Default false: what is asked would travel in clear. */
  allowHttp?: boolean
  clock?: Clock
}

export function bedrock(options: BedrockOptions): Provider {
  const { model, extra, retries, clock = realClock } = options
  if (!model) throw configError(provider, 'pass model: the id of a model or inference profile')
  const timeouts = checkedTimeouts({ ...timeoutsFromEnv(), ...options.timeouts })
  const account = accountOf(options, timeouts.connectMs)
  const toBody = bodyMaker(model, extra)

  async function complete(
    request: ModelRequest,
    { signal, onDelta }: CompleteOptions = {},
  ): Promise<ModelReply> {
    signal?.throwIfAborted()
    const text = toJson(toBody(request))
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
      const seen: Seen = { host: account.host, sent: {}, heard: () => watch.touch() }
      const watch = new Watch(timeouts, deadline - clock.now(), (option) =>
        halt(timeoutError(provider, seen.host, option, timeouts[option])),
      )
      signal?.addEventListener('abort', aborted, { once: true })
      try {
        return await Promise.race([converse(stop, watch, seen), halted.promise])
      } catch (error) {
        stop.abort(error) // the SDK leaves open the connection of a stream that is no longer read
        throw error
      } finally {
        watch.stop()
        signal?.removeEventListener('abort', aborted)
      }
    }

    async function converse(stop: AbortController, watch: Watch, seen: Seen) {
      sdk ??= import('@aws-sdk/client-bedrock-runtime')
      const { BedrockRuntimeClient, ConverseCommand, ConverseStreamCommand } = await sdk
      const client = account.client(BedrockRuntimeClient)
      /** What the SDK or a fold throws is Bedrock's failure; what `onDelta` throws is its own. */
      const sure = async <T>(act: () => T | Promise<T>): Promise<T> => {
        try {
          return await act()
        } catch (thrown) {
          const error = toError(thrown, { ...account, ...seen, model, request })
          if (error.code === 'provider_auth' && !error.retryable) account.forget()
          throw error
        }
      }
      const Command = onDelta ? ConverseStreamCommand : ConverseCommand
      // A caller's client may have middleware that reads the request or changes it, ours has none.
      const input = options.client ? toInput(JSON.parse(text)) : {}
      const command = new Command({ modelId: model, ...input } as ConverseCommandInput)
      const body = options.client ? undefined : text
      follow(command.middlewareStack as unknown as Stack, onDelta !== undefined, seen, body)
      const output = await sure(() => client.send(command, { abortSignal: stop.signal }))
      if (!onDelta) return sure(() => toReply(output))

      seen.requestId ??= output.$metadata?.requestId ?? ''
      const fold = new ConverseFold()
      const events: AsyncIterator<object> = await sure(() => output.stream[Symbol.asyncIterator]())
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
      return sure(() => fold.reply(seen.framed, output.$metadata))
    }

    return retrying(attempt, { retries, emitted: () => emitted, deadline, signal, clock })
  }

  return {
    name: provider,
    model,
    /** Converse's body as it is on the socket, bytes in base64. The model is in the path. */
    render: (request) => JSON.parse(toJson(toBody(request))),
    complete,
  }
}

let sdk: Promise<typeof import('@aws-sdk/client-bedrock-runtime')> | undefined

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

/** The original's variables, in seconds. What it calls reading is waiting for the first event, and for each next. */
function timeoutsFromEnv(): Partial<Timeouts> {
  const ms = (name: string): number => {
    const seconds = Number(process.env[name] || 0)
    if (seconds >= 0) return seconds * 1000
    throw configError(provider, `${name} must be a number of seconds, got ${process.env[name]}`)
  }
  const connectMs = ms('BOTO3_CONNECT_TIMEOUT')
  const read = ms('BOTO3_READ_TIMEOUT')
  const stepMs = Math.max(read, defaultTimeouts.stepMs)
  return {
    ...(connectMs && { connectMs }),
    ...(read && { firstEventMs: read, idleMs: read, stepMs }),
  }
}
