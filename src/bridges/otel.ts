// A listener that turns a run's facts into spans and metrics of the OpenTelemetry GenAI conventions
// (https://opentelemetry.io/docs/specs/semconv/gen-ai/), with the caller's own tracer, meter and API module.
// Facts come after the fact, so a run's spans are made when it ends, with their true times.

import type { Listener, RunFact } from '../agent.ts'

type Attributes = Record<string, string | number | boolean | string[] | undefined>
interface Span {
  setStatus(status: { code: number; message?: string }): unknown
  addEvent(name: string, attributes?: Attributes, time?: number): unknown
  end(time?: number): void
}
interface Histogram {
  record(value: number, attributes?: Attributes): void
}
/** What is used of `@opentelemetry/api`: hand the module itself over. */
export interface OtelApi<Context> {
  context: { active(): Context }
  // biome-ignore lint/suspicious/noExplicitAny: the span type is the API's own
  trace: { setSpan(context: Context, span: any): Context }
}
export interface OtelOptions<Context> {
  api: OtelApi<Context>
  tracer: {
    startSpan(
      name: string,
      options: { kind?: number; startTime?: number; attributes?: Attributes },
      context?: Context,
    ): Span
  }
  meter?: {
    createHistogram(
      name: string,
      options: {
        unit: string
        description: string
        advice?: { explicitBucketBoundaries: number[] }
      },
    ): Histogram
  }
  /** Requests, tool outputs and errors on the spans, masked as in events. Default false. */
  content?: boolean
}

const kinds = { internal: 0, client: 2 }
const failed = 2
// Bounds that the conventions recommend for the two histograms.
const seconds = [
  0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
]
const tokens = [
  1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864,
]

/** Hand it over as `onEvent`. One trace a run: `invoke_agent`, and in it `chat` and `execute_tool`. */
export function otel<Context>(options: OtelOptions<Context>): Listener {
  const { api, tracer, meter, content = false } = options
  const usage = meter?.createHistogram('gen_ai.client.token.usage', {
    unit: '{token}',
    description: 'Tokens used.',
    advice: { explicitBucketBoundaries: tokens },
  })
  const duration = meter?.createHistogram('gen_ai.client.operation.duration', {
    unit: 's',
    description: 'How long an operation took.',
    advice: { explicitBucketBoundaries: seconds },
  })
  const runs = new Map<string, { parent: Context; facts: RunFact[] }>()

  return (fact) => {
    const run = runs.get(fact.runId) ?? { parent: api.context.active(), facts: [] }
    runs.set(fact.runId, run)
    // Rendered now, while the request is as it was; kept only where content is wanted.
    run.facts.push(
      content && fact.type === 'ModelCalled'
        ? { ...fact, body: JSON.stringify((fact.body as () => unknown)()) }
        : fact,
    )
    if (fact.type === 'RunFinished') {
      runs.delete(fact.runId)
      tell(run.parent, run.facts, fact)
    }
  }

  function tell(parent: Context, facts: RunFact[], end: RunFact): void {
    const model = facts.find((fact) => fact.type === 'ModelCalled')
    const common = {
      'gen_ai.provider.name': model?.provider as string,
      'gen_ai.request.model': model?.model as string,
    }
    const attributes = {
      'gen_ai.operation.name': 'invoke_agent',
      'gen_ai.agent.name': end.agent as string,
      'gen_ai.conversation.id': end.threadId,
      'dcaf.run.id': end.runId,
      'dcaf.stop': end.stop as string,
      ...common,
      ...usageOf(end),
    }
    const { start, finish } = times(end)
    const span = tracer.startSpan(
      `invoke_agent ${end.agent}`,
      { kind: kinds.internal, startTime: start, attributes: set(attributes) },
      parent,
    )
    const inside = api.trace.setSpan(parent, span)
    for (const fact of facts) {
      if (fact.type === 'ModelCalled') chat(inside, fact)
      else if (fact.type === 'ToolExecuted' || fact.type === 'ToolExecutionFailed')
        tool(inside, fact)
      else if (fact.type !== 'RunFinished')
        span.addEvent(fact.type, set(eventOf(fact)), Date.parse(fact.timestamp))
    }
    if (end.stop === 'error') span.setStatus({ code: failed })
    span.end(finish)
    duration?.record(
      Number(end.durationMs) / 1000,
      set({ 'gen_ai.operation.name': 'invoke_agent', ...common }),
    )
  }

  function chat(parent: Context, fact: RunFact): void {
    const common = {
      'gen_ai.operation.name': 'chat',
      'gen_ai.provider.name': fact.provider as string,
      'gen_ai.request.model': fact.model as string,
      'error.type': fact.error as string,
    }
    const { start, finish } = times(fact)
    const attributes = set({
      ...common,
      ...usageOf(fact),
      'gen_ai.agent.name': fact.agent as string,
      'gen_ai.conversation.id': fact.threadId,
      'gen_ai.response.finish_reasons':
        fact.finishReason === undefined ? undefined : [fact.finishReason as string],
      'gen_ai.response.time_to_first_chunk':
        fact.firstTokenMs === undefined ? undefined : Number(fact.firstTokenMs) / 1000,
      'dcaf.provider.request_id': fact.requestId as string,
      'dcaf.request.body': content ? (fact.body as string) : undefined,
    })
    const span = tracer.startSpan(
      `chat ${fact.model}`,
      { kind: kinds.client, startTime: start, attributes },
      parent,
    )
    if (fact.error !== undefined) span.setStatus({ code: failed, message: String(fact.error) })
    span.end(finish)
    duration?.record(Number(fact.durationMs) / 1000, set(common))
    const { 'error.type': _, ...who } = common
    for (const [type, count] of Object.entries({
      input: attributes['gen_ai.usage.input_tokens'],
      output: attributes['gen_ai.usage.output_tokens'],
    }))
      if (typeof count === 'number')
        usage?.record(count, set({ ...who, 'gen_ai.token.type': type }))
  }

  function tool(parent: Context, fact: RunFact): void {
    const { start, finish } = times(fact)
    const common = {
      'gen_ai.operation.name': 'execute_tool',
      'gen_ai.tool.name': fact.name as string,
      'error.type': fact.outcome === 'ok' ? undefined : (fact.outcome as string),
    }
    const attributes = set({
      ...common,
      'gen_ai.tool.call.id': fact.callId as string,
      'gen_ai.tool.type': 'function',
      'gen_ai.agent.name': fact.agent as string,
      'gen_ai.tool.call.result': content ? ((fact.output ?? fact.error) as string) : undefined,
    })
    const span = tracer.startSpan(
      `execute_tool ${fact.name}`,
      { kind: kinds.internal, startTime: start, attributes },
      parent,
    )
    if (fact.outcome !== 'ok') span.setStatus({ code: failed })
    span.end(finish)
    duration?.record(Number(fact.durationMs) / 1000, set(common))
  }

  function eventOf(fact: RunFact): Attributes {
    const { callId, name, approvedBy, rejectedBy, grant, reason } = fact as Record<
      string,
      string | undefined
    >
    return {
      'gen_ai.tool.call.id': callId,
      'gen_ai.tool.name': name,
      'dcaf.approved_by': approvedBy,
      'dcaf.rejected_by': rejectedBy,
      'dcaf.grant': grant,
      'dcaf.reason': content ? reason : undefined,
    }
  }
}

/** Unix milliseconds: a fact is told when its work ended. */
function times(fact: RunFact): { start: number; finish: number } {
  const finish = Date.parse(fact.timestamp)
  return { start: finish - Number(fact.durationMs ?? 0), finish }
}

function usageOf(fact: RunFact): Attributes {
  const usage = fact.usage as
    | {
        inputTokens: number
        outputTokens: number
        cacheReadTokens: number
        cacheWriteTokens: number
      }
    | undefined
  return {
    'gen_ai.usage.input_tokens': usage?.inputTokens,
    'gen_ai.usage.output_tokens': usage?.outputTokens,
    'gen_ai.usage.cache_read.input_tokens': usage?.cacheReadTokens || undefined,
    'gen_ai.usage.cache_creation.input_tokens': usage?.cacheWriteTokens || undefined,
  }
}

function set(attributes: Attributes): Attributes {
  return Object.fromEntries(Object.entries(attributes).filter(([, value]) => value !== undefined))
}
