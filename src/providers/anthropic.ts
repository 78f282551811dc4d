// Anthropic's Messages API: our words to its blocks and back, whole or streamed. Knows nothing of HTTP (wire.ts).
// https://docs.claude.com/en/api/messages  https://docs.claude.com/en/docs/build-with-claude/streaming
// Thinking, server-side tools and blocks of a kind we do not know travel as opaque parts, unchanged and in place.

import type {
  FinishReason,
  Message,
  ModelReply,
  ModelRequest,
  Part,
  ToolSpec,
  Usage,
} from './provider.ts'
import {
  type Answer,
  append,
  type Fold,
  type HttpOptions,
  type HttpProvider,
  httpProvider,
  inputObject,
  newCallId,
  ProviderError,
  remembering,
  rememberingHistory,
  toolInput,
  truncated,
} from './wire.ts'

export interface AnthropicOptions extends HttpOptions {
  /** E.g. `claude-sonnet-4-5`. */
  model: string
  /** Default `ANTHROPIC_API_KEY`. May be absent with a `baseUrl` whose gateway adds it. */
  apiKey?: string
  /** Without `/v1/messages`. Default `ANTHROPIC_BASE_URL`, else https://api.anthropic.com. */
  baseUrl?: string
  /** The wire demands a limit: this one holds where a request names none. Default 8192. */
  maxTokens?: number
  /** Values of the `anthropic-beta` header. */
  betas?: string[]
  /** Tools that run at Anthropic's, as the API names them, e.g. `{ type: 'web_search_20250305', name: 'web_search' }`. */
  serverTools?: Record<string, unknown>[]
  /** Fields of the body as the API names them, e.g. `{ thinking: { type: 'enabled', budget_tokens: 2048 } }`. */
  extra?: Record<string, unknown>
}

/** A turn of a server-side tool that is paused is sent again this often before it is handed back as it is. */
const resumes = 10

export function anthropic(options: AnthropicOptions): HttpProvider {
  const { model, betas, extra, serverTools = [], maxTokens = 8192 } = options
  const given = options.baseUrl ?? process.env.ANTHROPIC_BASE_URL
  const apiKey = (options.apiKey ?? process.env.ANTHROPIC_API_KEY)?.trim()
  if (!apiKey && !given) {
    throw new ProviderError('provider_config', 'anthropic: pass apiKey or set ANTHROPIC_API_KEY', {
      provider: 'anthropic',
    })
  }
  const url = `${(given ?? 'https://api.anthropic.com').replace(/\/+$/, '').replace(/\/v1$/, '')}/v1/messages`
  const history = rememberingHistory(toTurns, merge)
  const toolOf = remembering(toTool)

  const provider = httpProvider(
    {
      name: 'anthropic',
      model,
      url: () => url,
      headers: {
        'anthropic-version': '2023-06-01',
        ...(apiKey ? { 'x-api-key': apiKey } : {}),
        ...(betas?.length ? { 'anthropic-beta': betas.join(',') } : {}),
      },
      format: 'sse',
      requestIdHeader: 'request-id',
      // What stays the same comes first.
      render: (request, stream) => {
        const cache = cacheControl(request)
        const tools = [...serverTools, ...request.tools.map(toolOf)]
        const system = toSystem(request, cache)
        const messages = history(request.messages)
        return {
          model,
          ...extra,
          max_tokens: request.maxTokens ?? maxTokens,
          ...(request.temperature === undefined ? {} : { temperature: request.temperature }),
          ...(stream ? { stream } : {}),
          ...(tools.length ? { tools: marked(tools, cache) } : {}),
          ...(tools.length ? toToolChoice(request) : {}),
          ...(system.length ? { system } : {}),
          messages: cache ? messages.with(-1, markedTurn(messages.at(-1), cache)) : messages,
        }
      },
      parse: (json, answer) => toReply(json, answer),
      fold,
    },
    options,
  )

  return {
    ...provider,
    async complete(request, completeOptions) {
      let reply = await provider.complete(request, completeOptions)
      const sofar: Part[] = []
      for (let i = 0; i < resumes && isPaused(reply); i++) {
        sofar.push(...reply.parts)
        const messages: Message[] = [
          ...request.messages,
          { role: 'assistant', parts: [...sofar], results: [] },
        ]
        const next = await provider.complete({ ...request, messages }, completeOptions)
        reply = { ...next, usage: sum(reply.usage, next.usage) }
      }
      return sofar.length ? { ...reply, parts: joinText([...sofar, ...reply.parts]) } : reply
    },
  }
}

// ---- What is sent ------------------------------------------------------------------------------------------------

// biome-ignore lint/suspicious/noExplicitAny: the vendor's JSON
type Block = Record<string, any>
type Turn = { role: 'user' | 'assistant'; content: Block[] }
type CacheControl = { type: 'ephemeral'; ttl?: '5m' | '1h' }

function cacheControl({ cache }: ModelRequest): CacheControl | undefined {
  if (!cache) return undefined
  return { type: 'ephemeral', ...(cache === true ? {} : { ttl: cache.ttl }) }
}

/** At most four points are allowed: one is the tools', one the last message's, so two are left for `system`. */
function toSystem(request: ModelRequest, cache: CacheControl | undefined): Block[] {
  const blocks = request.system.filter((block) => block.text.trim() !== '')
  const marked = blocks.filter((block) => block.cache).slice(-2)
  if (cache && marked.length === 0) marked.push(...blocks.slice(-1))
  return blocks.map((block) => ({
    type: 'text',
    text: block.text,
    ...(marked.includes(block) ? { cache_control: cache ?? { type: 'ephemeral' } } : {}),
  }))
}

function toTool(tool: ToolSpec): Block {
  return { name: tool.name, description: tool.description, input_schema: tool.input }
}

function toToolChoice({ toolChoice = 'auto' }: ModelRequest): Block {
  if (toolChoice === 'auto') return {}
  if (toolChoice === 'none') return { tool_choice: { type: 'none' } }
  return { tool_choice: { type: 'tool', name: toolChoice.name } }
}

/** The assistant's turn and, as a user turn that `merge` joins to the next, all results of its calls. */
function toTurns(message: Message): Turn[] {
  const content = message.parts.flatMap((part, i) => toBlock(part, message, message.parts[i - 1]))
  // A turn cut in the middle of thinking holds nothing else, and the API refuses one that ends in it.
  const empty = content.every((block) => /^(redacted_)?thinking$/.test(block.type))
  const turns: Turn[] = empty ? [] : [{ role: message.role, content }]
  if (message.role === 'assistant' && message.results.length) {
    turns.push({
      role: 'user',
      content: message.results.map(({ callId, outcome, content }) => ({
        type: 'tool_result',
        tool_use_id: callId,
        content,
        ...(outcome === 'ok' ? {} : { is_error: true }),
      })),
    })
  }
  return turns
}

function merge(before: Turn, after: Turn): Turn | undefined {
  if (before.role !== after.role) return undefined
  return { role: before.role, content: [...before.content, ...after.content] }
}

function toBlock(part: Part, message: Message, before: Part | undefined): Block[] {
  switch (part.type) {
    case 'text': // the API refuses blank ones
      return part.text.trim() === '' ? [] : [{ type: 'text', text: part.text }]
    case 'tool_call': {
      const { id, name } = part
      const call = { type: 'tool_use', id, name, input: inputObject(part.input) }
      return [{ ...call, ...(before && callerOf(before)) }]
    }
    case 'opaque':
      return part.provider === 'anthropic' && !callerOf(part) ? [part.data as Block] : []
    case 'file':
      return [toFile(part, message)]
  }
}

/** Who asked for a call, when it was code at Anthropic's: kept in an opaque part before the call. */
function callerOf(part: Part): { caller: unknown } | undefined {
  if (part.type !== 'opaque' || part.provider !== 'anthropic') return undefined
  const { type, caller } = part.data as Block
  return type === undefined && caller !== undefined ? { caller } : undefined
}

function toFile(part: Part & { type: 'file' }, message: Message): Block {
  const { mediaType, data } = part
  const title = part.name === undefined ? {} : { title: part.name }
  if (message.role === 'user') {
    if (/^image\/(png|jpeg|gif|webp)$/.test(mediaType)) {
      return { type: 'image', source: { type: 'base64', media_type: mediaType, data } }
    }
    if (mediaType === 'application/pdf') {
      return { type: 'document', source: { type: 'base64', media_type: mediaType, data }, ...title }
    }
    if (mediaType.startsWith('text/')) {
      const text = Buffer.from(data, 'base64').toString('utf8')
      return {
        type: 'document',
        source: { type: 'text', media_type: 'text/plain', data: text },
        ...title,
      }
    }
  }
  throw new ProviderError(
    'unsupported_media_type',
    `anthropic takes PNG, JPEG, GIF, WebP, PDF and text in a user's message, not ${mediaType} in the ${message.role}'s`,
    { provider: 'anthropic' },
  )
}

function marked(blocks: Block[], cache: CacheControl | undefined): Block[] {
  return cache ? blocks.with(-1, { ...blocks.at(-1), cache_control: cache }) : blocks
}

/** The point goes on the last block that may carry one: thinking and what we do not know may not. */
function markedTurn(turn: Turn | undefined, cache: CacheControl): Turn {
  const { role, content } = turn as Turn
  const at = content.findLastIndex(({ type }) =>
    /^(text|image|document|tool_(use|result))$/.test(type),
  )
  return at < 0
    ? { role, content }
    : { role, content: content.with(at, { ...content[at], cache_control: cache }) }
}

// ---- What comes back ---------------------------------------------------------------------------------------------

const reasons: Record<string, FinishReason> = {
  max_tokens: 'length',
  model_context_window_exceeded: 'length',
  refusal: 'content_filter',
}

/** `message`: a whole Message object; a streamed one has been put together to the same shape, calls' input as text. */
function toReply(message: Block, answer: Answer): ModelReply {
  if (message.type === 'error') throw answer.refuse(message)
  const { id, model, stop_reason: stop, stop_sequence, stop_details, usage } = message
  const finish = reasons[stop] ?? 'stop'
  const last = message.content.length - 1
  const parts = (message.content as Block[]).flatMap((block, i): Part[] => {
    const cut = finish === 'length' && i === last
    if (block.type === 'text') return [{ type: 'text', text: string(block.text) }]
    if (block.type !== 'tool_use') return [{ type: 'opaque', provider: 'anthropic', data: block }]
    const { caller } = block
    const input =
      cut && typeof block.input !== 'string'
        ? JSON.stringify(block.input)
        : toolInput(block.input, cut)
    return [
      ...(caller && caller.type !== 'direct' ? [opaque({ caller })] : []),
      { type: 'tool_call', id: block.id || newCallId(), name: string(block.name), input },
    ]
  })
  const calls = parts.some((part) => part.type === 'tool_call')
  return {
    parts: joinText(parts),
    finishReason: calls && finish === 'stop' ? 'tool_call' : finish,
    usage: toUsage(usage ?? {}),
    raw: {
      finishReason: stop,
      ...(stop_sequence ? { stopSequence: stop_sequence } : {}),
      ...(stop_details ? { stopDetails: stop_details } : {}),
      requestId: answer.requestId,
      id,
      model,
      usage,
    },
  }
}

function opaque(data: unknown): Part {
  return { type: 'opaque', provider: 'anthropic', data }
}

/** Text that citations or a resumed turn cut into several blocks is one text again; none is dropped. */
function joinText(parts: Part[]): Part[] {
  const out: Part[] = []
  for (const part of parts) {
    const before = out.at(-1)
    if (part.type !== 'text') out.push(part)
    else if (before?.type === 'text')
      out[out.length - 1] = { ...before, text: before.text + part.text }
    else if (part.text !== '') out.push(part)
  }
  return out
}

/** `input_tokens` counts neither what was read from the cache nor what was written to it. */
function toUsage(usage: Block): Usage {
  const cacheReadTokens = usage.cache_read_input_tokens ?? 0
  const cacheWriteTokens = usage.cache_creation_input_tokens ?? 0
  return {
    inputTokens: (usage.input_tokens ?? 0) + cacheReadTokens + cacheWriteTokens,
    outputTokens: usage.output_tokens ?? 0,
    cacheReadTokens,
    cacheWriteTokens,
  }
}

function sum(a: Usage, b: Usage): Usage {
  return {
    inputTokens: a.inputTokens + b.inputTokens,
    outputTokens: a.outputTokens + b.outputTokens,
    cacheReadTokens: a.cacheReadTokens + b.cacheReadTokens,
    cacheWriteTokens: a.cacheWriteTokens + b.cacheWriteTokens,
  }
}

function isPaused({ raw, parts }: ModelReply): boolean {
  const { finishReason } = raw as { finishReason?: string }
  return finishReason === 'pause_turn' && !parts.some((part) => part.type === 'tool_call')
}

/** Puts the Message object together that the same answer would have been without streaming. */
function fold(answer: Answer): Fold {
  let message: Block = { content: [] }
  /** Arguments of the call at the same index, as text: the API streams them in pieces cut anywhere. */
  const inputs: string[] = []
  const blockOf = (index: number): Block => {
    const block = message.content[index]
    if (block === undefined)
      throw answer.fail('provider_invalid', 'continued a block it had not begun')
    return block
  }
  return {
    done: false,
    event(json) {
      switch (json.type) {
        case 'message_start':
          message = { ...json.message, content: [] }
          return undefined
        case 'content_block_start':
          if (json.index !== message.content.length)
            throw answer.fail('provider_invalid', 'sent blocks out of order')
          message.content.push(json.content_block)
          return json.content_block.type === 'text' ? string(json.content_block.text) : undefined
        case 'content_block_delta':
          return extend(blockOf(json.index), json.delta, json.index)
        case 'content_block_stop':
          settle(blockOf(json.index), json.index)
          return undefined
        case 'message_delta':
          // Repeats whole counts, not increments; older servers leave most of them out.
          for (const [key, value] of Object.entries(json.usage ?? {})) {
            if (value !== null) message.usage = { ...message.usage, [key]: value }
          }
          Object.assign(message, json.delta)
          return undefined
        case 'message_stop':
          this.done = true
          return undefined
        case 'error':
          throw answer.refuse(json)
        default: // `ping`, and kinds to come
          return undefined
      }
    },
    end() {
      if (!this.done) throw truncated(answer)
      return toReply(message, answer)
    },
  }

  function extend(block: Block, delta: Block, index: number): string | undefined {
    if (delta.type === 'input_json_delta') {
      inputs[index] = append(answer, inputs[index] ?? '', string(delta.partial_json))
      return undefined
    }
    if (delta.type === 'citations_delta') {
      block.citations = [...(block.citations ?? []), delta.citation]
      return undefined
    }
    // text, thinking, signature, and whatever a kind to come calls its text
    for (const [key, value] of Object.entries(delta)) {
      if (key === 'type') continue
      block[key] = typeof value === 'string' ? (block[key] ?? '') + value : value
    }
    return delta.type === 'text_delta' ? string(delta.text) : undefined
  }

  function settle(block: Block, index: number): void {
    const text = inputs[index] ?? ''
    if (block.type === 'tool_use') {
      // An input that came whole with the block's start stands, unless pieces followed.
      if (text !== '' || Object.keys(block.input ?? {}).length === 0) block.input = text
    } else if (text !== '') block.input = toolInput(text)
  }
}

/** A wrong type is the answer's fault; wire.ts makes the error. */
function string(value: unknown): string {
  if (typeof value !== 'string') throw new TypeError('not a string')
  return value
}
