// The bridge with the official SDK and its in-memory exporters.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import * as api from '@opentelemetry/api'
import {
  AggregationTemporality,
  InMemoryMetricExporter,
  MeterProvider,
  PeriodicExportingMetricReader,
} from '@opentelemetry/sdk-metrics'
import {
  BasicTracerProvider,
  InMemorySpanExporter,
  SimpleSpanProcessor,
} from '@opentelemetry/sdk-trace-base'
import { otel } from '../../src/bridges/otel.ts'
import { type Agent, approveAll, resume, run } from '../../src/index.ts'
import { scripted } from '../../src/providers/scripted.ts'
import { tool } from '../../src/tool.ts'

function observed(content = false) {
  const exporter = new InMemorySpanExporter()
  const tracer = new BasicTracerProvider({
    spanProcessors: [new SimpleSpanProcessor(exporter)],
  }).getTracer('test')
  const metrics = new InMemoryMetricExporter(AggregationTemporality.CUMULATIVE)
  const reader = new PeriodicExportingMetricReader({
    exporter: metrics,
    exportIntervalMillis: 2 ** 30,
  })
  const meters = new MeterProvider({ readers: [reader] })
  return {
    exporter,
    metrics,
    meters,
    listener: otel({ api, tracer, meter: meters.getMeter('test'), content }),
  }
}

const usage = { inputTokens: 100, outputTokens: 7, cacheReadTokens: 60 }
function ops(listener: Agent['onEvent']): Agent {
  const drop = tool({
    name: 'drop',
    description: 'd',
    input: '{ table: string }',
    requiresApproval: true,
    execute: () => 'dropped',
  })
  const provider = scripted(
    [
      { calls: [{ name: 'drop', input: { table: 'a' } }], usage },
      { text: 'gone', usage },
    ],
    { name: 'aws.bedrock', model: 'm' },
  )
  return { name: 'db', provider, tools: [drop], ...(listener && { onEvent: listener }) }
}

test('a run is invoke_agent with chat and execute_tool inside, named as the conventions say', async (t) => {
  const { exporter, listener, meters } = observed()
  t.after(() => meters.shutdown())
  const agent = ops(listener)
  const first = await run(agent, { messages: 'go' }, { threadId: 't1' })
  await resume(agent, first, approveAll(first), { threadId: 't1', principal: undefined })
  const spans = exporter.getFinishedSpans()
  assert.deepEqual(
    spans.map((s) => s.name),
    ['chat m', 'invoke_agent db', 'execute_tool drop', 'chat m', 'invoke_agent db'],
  )
  const [, , toolSpan, chat, root] = spans
  assert.equal(chat?.parentSpanContext?.spanId, root?.spanContext().spanId)
  assert.equal(toolSpan?.parentSpanContext?.spanId, root?.spanContext().spanId)
  assert.deepEqual(chat?.attributes, {
    'gen_ai.operation.name': 'chat',
    'gen_ai.provider.name': 'aws.bedrock',
    'gen_ai.request.model': 'm',
    'gen_ai.usage.input_tokens': 100,
    'gen_ai.usage.output_tokens': 7,
    'gen_ai.usage.cache_read.input_tokens': 60,
    'gen_ai.agent.name': 'db',
    'gen_ai.conversation.id': 't1',
    'gen_ai.response.finish_reasons': ['stop'],
  })
  assert.equal(chat?.kind, api.SpanKind.CLIENT)
  assert.equal(toolSpan?.attributes['gen_ai.tool.call.id'], first.state.calls[0]?.id)
  assert.ok(root?.events.some((event) => event.name === 'ToolCallApproved'))
})

test('token usage and durations are metrics with the conventions’ names and units', async () => {
  const { listener, meters, metrics } = observed()
  await run(ops(listener), { messages: 'go' })
  await meters.forceFlush()
  const found = metrics.getMetrics().flatMap((m) => m.scopeMetrics.flatMap((s) => s.metrics))
  await meters.shutdown()
  assert.deepEqual(
    found.map(({ descriptor }) => [descriptor.name, descriptor.unit]),
    [
      ['gen_ai.client.token.usage', '{token}'],
      ['gen_ai.client.operation.duration', 's'],
    ],
  )
  const points = found[0]?.dataPoints.map((p) => [
    p.attributes['gen_ai.token.type'],
    (p.value as { sum: number }).sum,
  ])
  assert.deepEqual(points, [
    ['input', 100],
    ['output', 7],
  ])
})

for (const content of [false, true])
  test(`content is ${content ? 'on the spans, masked, when asked for' : 'nowhere by default'}`, async (t) => {
    const { exporter, listener, meters } = observed(content)
    t.after(() => meters.shutdown())
    const leak = tool({
      name: 'leak',
      description: 'd',
      input: '{}',
      execute: (_, ctx) => `visible ${ctx.platform.duplo_token}`,
    })
    const provider = scripted([{ calls: [{ name: 'leak' }] }, 'ok'])
    await run(
      { name: 'a', provider, tools: [leak], onEvent: listener },
      { messages: 'hello there' },
      { context: { duplo_token: 'very-secret' } },
    )
    const all = JSON.stringify(exporter.getFinishedSpans().map((s) => [s.attributes, s.events]))
    assert.deepEqual(
      [/hello there/.test(all), /visible \[redacted\]/.test(all), /very-secret/.test(all)],
      [content, content, false],
    )
  })

test('a failed model call and a failed tool are errors on their spans', async (t) => {
  const { exporter, listener, meters } = observed()
  t.after(() => meters.shutdown())
  const bad = tool({
    name: 'bad',
    description: 'd',
    input: '{}',
    execute: () => {
      throw new Error('kaput')
    },
  })
  await run(
    {
      name: 'a',
      provider: scripted([{ calls: [{ name: 'bad' }] }, new Error('down')]),
      tools: [bad],
      onEvent: listener,
    },
    { messages: 'go' },
  )
  const errors = exporter
    .getFinishedSpans()
    .filter((s) => s.status.code === api.SpanStatusCode.ERROR)
    .map((s) => [s.name, s.attributes['error.type']])
  assert.deepEqual(errors, [
    ['execute_tool bad', 'error'],
    ['chat scripted', 'provider_error'],
    ['invoke_agent a', undefined],
  ])
})
