// Gemini's wire: the shared table, and what only this wire does. The official SDK reads the same bytes.

import { google } from '../../src/providers/google.ts'
import { conformance, type Read, type ReadTurn, type Said, type WireUnderTest } from './table.ts'

// biome-ignore lint/suspicious/noExplicitAny: the vendor's JSON
type Json = any

/** As the service sends them: CRLF, and no name. */
function sse(...events: Json[]): Buffer[] {
  return events.map((event) => Buffer.from(`data: ${JSON.stringify(event)}\r\n\r\n`))
}

const reasons = { stop: 'STOP', length: 'MAX_TOKENS', tool_call: 'STOP', content_filter: 'SAFETY' }

/** Thoughts are 2 of the output tokens; what is zero is absent. */
function usageOf({ usage }: Said): Json {
  return {
    promptTokenCount: usage.inputTokens,
    candidatesTokenCount: usage.outputTokens - 2,
    thoughtsTokenCount: 2,
    totalTokenCount: usage.inputTokens + usage.outputTokens,
    ...(usage.cacheReadTokens ? { cachedContentTokenCount: usage.cacheReadTokens } : {}),
  }
}

function chunk(parts: Json[], more: Json = {}, usageMetadata?: Json): Json {
  const { finishReason } = more
  const candidate = { content: { parts, role: 'model' }, ...(finishReason ? more : {}), index: 0 }
  const about = { modelVersion: 'gemini-test', responseId: 'r1' }
  return { candidates: [candidate], ...(usageMetadata ? { usageMetadata } : {}), ...about }
}

function partsOf(part: Said['parts'][number]): Json[] {
  if ('text' in part) return part.text.map((text) => ({ text }))
  if ('opaque' in part) return [part.opaque]
  const json = part.args.join('').trim()
  const args = json === '' ? {} : { args: JSON.parse(json) }
  return [{ functionCall: { name: part.call, ...args } }]
}

const wire: WireUnderTest = {
  name: 'gcp.gemini',
  make: ({ url, key, ...options }) =>
    google({ model: 'gemini-2.5-flash', apiKey: key, baseUrl: url, ...options }),
  whole(said) {
    const parts = said.parts.flatMap((part) =>
      'text' in part ? [{ text: part.text.join('') }] : partsOf(part),
    )
    const body = chunk(parts, { finishReason: reasons[said.finish] }, usageOf(said))
    return { type: 'application/json; charset=UTF-8', body: JSON.stringify(body) }
  },
  events(said) {
    const counted = { promptTokenCount: said.usage.inputTokens }
    const chunks = said.parts.flatMap(partsOf).map((part) => chunk([part], {}, counted))
    const last = chunk([{ text: '' }], { finishReason: reasons[said.finish] }, usageOf(said))
    const events = sse(...chunks, last)
    // A CR ends a line, so the very last byte adds nothing.
    const end = events.pop() as Buffer
    return { type: 'text/event-stream', events: [...events, end.subarray(0, -1), end.subarray(-1)] }
  },
  optionalTail: 1,
  read: (body) => read(body as Json),
  failure: (code, message) => ({
    body: JSON.stringify({ error: { code, message, status: 'SOME_STATUS' } }),
  }),
  errorEvent: (message) =>
    sse({ error: { code: 503, message, status: 'UNAVAILABLE' } })[0] as Buffer,
  ids: false,
  opaques: [
    { text: 'Pods first. 🎉', thought: true },
    { text: 'Signed.', thought: true, thoughtSignature: 'c2ln+/=' },
    { text: '', thoughtSignature: 'only' },
    { executableCode: { language: 'PYTHON', code: '1' }, thoughtSignature: 'x' },
  ].map((data) => ({
    said: { opaque: data },
    part: { type: 'opaque', provider: 'gcp.gemini', data },
  })),
  marksErrors: true,
  media: [
    'image/png',
    'image/jpeg',
    'image/webp',
    'application/pdf',
    'audio/wav',
    'video/mp4',
    'text/plain',
  ],
  halfCall: undefined,
}

function read(body: Json): Read {
  const turns: ReadTurn[] = body.contents.map(({ role, parts }: Json) => {
    const of = (kind: string) => parts.filter((part: Json) => part[kind] !== undefined)
    const texts = of('text').filter((part: Json) => Object.keys(part).length === 1)
    const known = ['inlineData', 'functionCall', 'functionResponse']
    return {
      role: role === 'model' ? 'assistant' : 'user',
      text: texts.map((part: Json) => part.text).join('\n'),
      calls: of('functionCall').map(({ functionCall: { id, name, args } }: Json) => ({
        ...(id ? { id } : {}),
        name,
        input: args,
      })),
      results: of('functionResponse').map(({ functionResponse: { id, name, response } }: Json) => ({
        ...(id ? { id } : {}),
        name,
        content: response.output ?? response.error,
        isError: response.error !== undefined,
      })),
      opaque: parts.filter(
        (part: Json) => !texts.includes(part) && !known.some((kind) => part[kind]),
      ),
      files: of('inlineData').length,
    }
  })
  const { mode, allowedFunctionNames } = body.toolConfig?.functionCallingConfig ?? {}
  const choice = allowedFunctionNames ? { name: allowedFunctionNames[0] } : mode?.toLowerCase()
  return {
    system: (body.systemInstruction?.parts ?? []).map((part: Json) => part.text).join('\n'),
    turns,
    tools: (body.tools?.[0].functionDeclarations ?? []).map((tool: Json) => ({
      name: tool.name,
      description: tool.description,
      input: tool.parametersJsonSchema,
    })),
    ...(choice ? { toolChoice: choice } : {}),
    maxTokens: body.generationConfig?.maxOutputTokens,
    temperature: body.generationConfig?.temperature,
  }
}

conformance(wire)
