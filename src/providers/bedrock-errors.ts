// What can go wrong between us and Bedrock, named by our codes, with the cure where there is one. Reads the SDK's
// errors: https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html#API_runtime_Converse_Errors

import { Broken, Exception, Garbled } from './bedrock-handler.ts'
import { provider } from './bedrock-request.ts'
import {
  causeOf,
  clean,
  codeOf,
  type Fail,
  isTransient,
  notAnswered,
  ProviderError,
  retryAfterMs,
} from './errors.ts'
import { timeoutError } from './limits.ts'
import type { ErrorCode, ModelRequest } from './provider.ts'

/** Which call failed. */
export interface About {
  model: string
  host: string
  region: string | undefined
  profile: string | undefined
  connectMs: number
  request: ModelRequest
  /** The headers of the request, whose credentials must not show up in a message. */
  sent: Record<string, string>
  /** Of the answer that was being read; without one nothing had been answered. */
  requestId?: string | undefined
  /** HTTP said where that answer would end. */
  framed?: boolean | undefined
}

export function toError(thrown: unknown, about: About): ProviderError {
  if (thrown instanceof ProviderError) return thrown
  const error = thrown as SdkError
  const { host, requestId, connectMs, framed } = about
  const fail: Fail = (code, what, options) =>
    new ProviderError(code, `${host} ${what}`, { provider, requestId, ...options })
  const cut = (what: string) => fail('provider_truncated', what, { retryable: true })
  if (error instanceof Broken) return cut(error.message)
  if (error instanceof Garbled) return fail('provider_invalid', error.message)
  const answered = error.$response?.statusCode ?? error.$metadata?.httpStatusCode ?? 200
  if (answered >= 300 && answered < 400) {
    return fail('provider_config', `answered ${answered}: redirects are not followed`)
  }
  const isException = error instanceof Exception || /(Exception|ProviderError)$/.test(error.name)
  if (answered >= 400 || isException) {
    return refused(error, answered, about, fail)
  }
  if (error instanceof SyntaxError && framed === false) return cut('ended its answer early')
  if (/^(Syntax|Type|Range)Error$/.test(error.name) || unreadable.test(error.message)) {
    return fail('provider_invalid', 'sent what cannot be understood')
  }
  if (requestId !== undefined) return cut(`broke the connection (${causeOf(error)})`)
  if (/^Region|endpoint/i.test(error.message)) {
    const fix = 'Pass region or set AWS_REGION.'
    return fail('provider_config', `cannot be asked: ${error.message}. ${fix}`)
  }
  return notAnswered(error, fail, timeoutError(provider, host, 'connectMs', connectMs))
}

/** The SDK's own decoder of event streams, where a caller's client uses it. */
const unreadable = /checksum|event type|message length|too short|header type/i

/** An exception: Bedrock's answer, an event of a stream, or the SDK's before anything was asked. */
function refused(error: SdkError, answered: number, about: About, fail: Fail): ProviderError {
  const isEvent = answered < 400 && about.requestId !== undefined
  const status = answered >= 400 ? answered : isEvent ? (statuses[error.name] ?? 500) : undefined
  const words = error instanceof SyntaxError ? '' : clean(said(error), about.sent, about.request)
  const rule = rules.find(({ when }) => when.test(`${error.name}: ${words}`))
  const verb = isEvent ? 'broke off' : status === undefined ? 'was not asked' : `answered ${status}`
  const what = words ? `${verb}: ${words}` : verb
  const cure = rule?.cure?.(about)
  // An exception in a stream may be that stream's alone, and the SDK has learned from one about the clock.
  const passes = isEvent || (status !== undefined && isTransient(status, {}))
  const { requestId = about.requestId, clockSkewCorrected = false } = error.$metadata ?? {}
  const code = rule?.code ?? codeOf(status ?? 500, { message: words })
  return fail(code, cure ? `${what.replace(/\.$/, '')}. ${cure}` : what, {
    status,
    requestId,
    retryable: clockSkewCorrected || (rule?.retryable ?? passes),
    retryAfterMs: retryAfterMs(error.$response?.headers ?? {}),
  })
}

interface SdkError extends Error {
  $metadata?: { httpStatusCode?: number; requestId?: string; clockSkewCorrected?: boolean }
  $response?: { statusCode?: number; headers?: Record<string, string> }
}

/** A refused signature comes with the request that should have been signed, headers and all. */
function said({ message }: Error): string {
  return message.replace(/\n\s*Deserialization error:.*|The Canonical String.*/s, '').trim()
}

/** What an exception has for a status when it comes as an event. */
const statuses: Record<string, number> = {
  InternalServerException: 500,
  ModelStreamErrorException: 424,
  ModelTimeoutException: 408,
  ServiceUnavailableException: 503,
  ThrottlingException: 429,
  ValidationException: 400,
}

interface Rule {
  /** Of `NAME: MESSAGE`. */
  when: RegExp
  code: ErrorCode
  retryable?: boolean
  cure?: (about: About) => string
}

/** The first that fits. */
const rules: Rule[] = [
  {
    when: /^ExpiredToken|^\w+ProviderError: .*(expired|sso login)|(security|session) token.* (expired|not found)/i,
    code: 'provider_auth',
    retryable: false,
    cure: ({ profile }) =>
      `The credentials have expired. Sign in again (aws sso login${profile ? ` --profile ${profile}` : ''}) or renew AWS_SESSION_TOKEN; the next call looks for them anew.`,
  },
  {
    when: /sts:AssumeRole/,
    code: 'provider_auth',
    retryable: false,
    cure: ({ profile = 'the environment' }) =>
      `The role that ${profile} asks for cannot be assumed: see its trust policy.`,
  },
  {
    when: /^\w+ProviderError/,
    code: 'provider_auth',
    retryable: false,
    cure: ({ profile }) =>
      `No AWS credentials${profile ? ` for the profile ${profile}` : ''}. Set AWS_PROFILE (or pass profile), set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run where a role is attached.`,
  },
  {
    when: /^(UnrecognizedClient|InvalidSignature|IncompleteSignature|SignatureDoesNotMatch|MissingAuthentication|InvalidClientTokenId|InvalidAccessKeyId|RequestTimeTooSkewed)/,
    code: 'provider_auth',
    retryable: false,
    cure: () =>
      'AWS does not accept these credentials: check the keys, and that the clock is right.',
  },
  {
    when: /cachePoint|prompt caching/i,
    code: 'provider_config',
    retryable: false,
    cure: ({ model }) => `${model} takes no cache point there: switch the cache off.`,
  },
  {
    when: /on-demand throughput|inference profile/i,
    code: 'provider_config',
    retryable: false,
    cure: ({ model, region }) =>
      `Call it by an inference profile, e.g. ${geography(region)}.${model.replace(/^.*\/|^(us|us-gov|eu|apac|jp|au|global)\./, '')}.`,
  },
  {
    when: /^AccessDenied|have access to the model/i,
    code: 'provider_auth',
    retryable: false,
    cure: ({ model, region = 'this region' }) =>
      `Allow bedrock:InvokeModel and bedrock:InvokeModelWithResponseStream on ${model}, and see in the Bedrock console that the account has access to it in ${region}.`,
  },
  {
    when: /^ResourceNotFound|model identifier is invalid|foundation model|model .*(not found|isn.t supported|not supported|not available)/i,
    code: 'provider_config',
    retryable: false,
    cure: ({ model, region = 'this region' }) =>
      `Is ${model} spelled right, and offered in ${region}? (aws bedrock list-foundation-models, list-inference-profiles)`,
  },
  {
    when: /^(Throttling|TooManyRequests)|too many requests|rate exceeded/i,
    code: 'provider_overloaded',
    retryable: true,
    cure: ({ model }) => `The account's quota for ${model} is used up for now.`,
  },
  {
    when: /(input|prompt|request) .*too long|tokens exceed|too many (input )?tokens|total text bytes|context (length|window|limit)/i,
    code: 'context_too_long',
    retryable: false,
  },
  { when: /^ServiceQuotaExceeded/, code: 'provider_config', retryable: false },
  { when: /^(ServiceUnavailable|ModelNotReady)/, code: 'provider_overloaded', retryable: true },
  { when: /^ModelTimeout/, code: 'provider_timeout', retryable: true },
  { when: /^Model(StreamError|Error)|^InternalServer/, code: 'provider_error', retryable: true },
]

/** The prefix of the inference profiles that a region has. */
function geography(region = ''): string {
  const prefix = /^(us-gov|us|eu|ap|ca|sa|me|af|il)-/.exec(region)?.[1] ?? 'us'
  return { us: 'us', 'us-gov': 'us-gov', eu: 'eu', ap: 'apac' }[prefix] ?? 'global'
}
