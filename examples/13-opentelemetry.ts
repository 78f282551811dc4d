// A run as OpenTelemetry spans in the words of the GenAI conventions, with your own tracer:
// `invoke_agent` around `chat` and `execute_tool`. What was said is left out unless `content:
// true`. In production an OTLP exporter stands where the one in memory stands here.

import * as api from '@opentelemetry/api'
import {
  BasicTracerProvider,
  InMemorySpanExporter,
  SimpleSpanProcessor,
} from '@opentelemetry/sdk-trace-base'
import { otel } from '../src/bridges/otel.ts'
import { run, tool } from '../src/index.ts'
import { scripted } from '../src/providers/scripted.ts'

const exporter = new InMemorySpanExporter()
const traces = new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] })

const agent = {
  name: 'weather',
  provider: scripted([
    {
      calls: [{ name: 'weather', input: { city: 'Oslo' } }],
      usage: { inputTokens: 812, outputTokens: 17, cacheReadTokens: 700 },
    },
    { text: 'Mild.', usage: { inputTokens: 850, outputTokens: 3 } },
  ]),
  tools: [
    tool({
      name: 'weather',
      description: 'The weather of a city',
      input: '{ city: string }',
      execute: () => '21 celsius',
    }),
  ],
  onEvent: otel({ api, tracer: traces.getTracer('dcaf') }),
}
await run(agent, { messages: 'How is Oslo?' }, { threadId: 'thread-1' })

const spans = exporter.getFinishedSpans()
const root = spans.find((span) => span.name.startsWith('invoke_agent'))
for (const { name, attributes, parentSpanContext } of spans) {
  const isChild = parentSpanContext?.spanId === root?.spanContext().spanId
  console.log(isChild ? `  ${name}` : name)
  for (const [key, value] of Object.entries(attributes))
    if (/usage|finish|outcome|conversation/.test(key)) console.log('    ', key, value)
}
await traces.shutdown()

// Prints:
//
//   chat scripted
//      gen_ai.usage.input_tokens 812
//      gen_ai.usage.output_tokens 17
//      gen_ai.usage.cache_read.input_tokens 700
//      gen_ai.conversation.id thread-1
//      gen_ai.response.finish_reasons [ 'tool_call' ]
//   execute_tool weather
//   chat scripted
//      gen_ai.usage.input_tokens 850
//      gen_ai.usage.output_tokens 3
//      gen_ai.conversation.id thread-1
//      gen_ai.response.finish_reasons [ 'stop' ]
// invoke_agent weather
//      gen_ai.conversation.id thread-1
//      gen_ai.usage.input_tokens 1662
//      gen_ai.usage.output_tokens 20
//      gen_ai.usage.cache_read.input_tokens 700
