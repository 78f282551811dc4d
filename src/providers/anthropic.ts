// Anthropic's Messages API: our words to its blocks and back, whole or streamed. Knows nothing of HTTP (wire.ts).
// https://docs.claude.com/en/api/messages  https://docs.claude.com/en/docs/build-with-claude/streaming
// Thinking, server-side tools and blocks of a kind we do not know travel as opaque parts, unchanged and in place.

import { type Block, marked, name, type Turn, toTool, toTurns } from './anthropic-request.ts'
import { configError, truncated } from './errors.ts'
import { alternating, instructions, Last, Memory } from './history.ts'
import type { FinishReason, ModelReply, ModelRequest, Part } from './provider.ts'
import type { Place } from './repeats.ts'
import { append, toReply as replyOf, string, toolInput, toUsage } from './reply.ts'
import * as wire from './wire.ts'

export interface AnthropicOptions extends wire.HttpOptions {
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

export function anthropic(options: AnthropicOptions): wire.HttpProvider {
  const { model, betas, extra, serverTools = [], maxTokens = 8192 } = options
  const apiKey = (options.apiKey ?? process.env.ANTHROPIC_API_KEY)?.trim()
  const given = options.baseUrl ?? process.env.ANTHROPIC_BASE_URL
  if (!apiKey && !given) throw configError(name, 'pass apiKey or set ANTHROPIC_API_KEY')
  const base = (given || 'https://api.anthropic.com').replace(/\/+$/, '').replace(/\/v1$/, '')
  const history = new Memory(toTurns, alternating<Turn>)
  const offered = new Memory(toTool, undefined, 1)
  const said = new Last()
  return wire.httpProvider(
    {
      name,
      model,
      url: () => `${base}/v1/messages`,
      headers: {
        'anthropic-version': '2023-06-01',
        ...(apiKey && { 'x-api-key': apiKey }),
        ...(betas?.length && { 'anthropic-beta': betas.join(',') }),
      },
      format: 'sse',
      requestIdHeader: 'request-id',
      render(request, stream) {
        const ttl = typeof request.cache === 'object' ? request.cache : {}
        const point = request.cache ? { cache_control: { type: 'ephemeral', ...ttl } } : undefined
        const mark = point && ((turn: Turn) => ({ ...turn, content: marked(turn.content, point) }))
        const own = offered.of(request.tools, point && ((tool) => ({ ...tool, ...point })))
        const tools = own.length ? [...serverTools, ...own] : marked(serverTools, point)
        const system = instructions(request).map(({ text, isPoint }) => {
          const own = point ?? { cache_control: { type: 'ephemeral' } }
          return isPoint ? { type: 'text', text, ...own } : { type: 'text', text }
        })
        const body: Block = { model, ...extra, max_tokens: request.maxTokens ?? maxTokens }
        if (request.temperature !== undefined) body.temperature = request.temperature
        if (stream) body.stream = stream
        if (tools.length) Object.assign(body, { tools }, toToolChoice(request))
        if (system.length) body.system = [said.of(system)]
        body.messages = history.of(request.messages, mark)
        return body
      },
      forget: ({ messages }) => history.forget(messages),
      parse: toReply,
      fold,
      isPaused: ({ raw }) => (raw as Block).finishReason === 'pause_turn',
    },
    options,
  )
}

function toToolChoice({ toolChoice = 'auto' }: ModelRequest): Block | undefined {
  if (toolChoice === 'auto') return undefined
  return { tool_choice: toolChoice === 'none' ? { type: 'none' } : { type: 'tool', ...toolChoice } }
}

const reasons: Record<string, FinishReason> = {
  max_tokens: 'length',
  model_context_window_exceeded: 'length',
  refusal: 'content_filter',
}

/** Of a message: what a reply says in our words, and what must not be copied. */
const ours = new Set(['content', 'type', 'role', 'stop_reason', '__proto__'])

/** From a whole Message object; `fold` puts a streamed one together to the same shape, with calls' input as text. */
function toReply(message: Block, answer: wire.Answer): ModelReply {
  if (message.error) throw answer.refuse(message)
  const { content, stop_reason } = message
  const finishReason = reasons[stop_reason] ?? 'stop'
  const opaque = (data: unknown): Part => ({ type: 'opaque', provider: name, data })
  const parts: Part[] = []
  for (const block of content as Block[]) {
    const { type, id, caller } = block
    if (type === 'text') parts.push({ type, text: string(block.text) })
    if (type !== 'text' && type !== 'tool_use') parts.push(opaque(block))
    if (type !== 'tool_use') continue
    const isCut = finishReason === 'length' && block === content.at(-1)
    if (caller && caller.type !== 'direct') parts.push(opaque({ caller }))
    const input = toolInput(block.input, isCut)
    parts.push({ type: 'tool_call', id, name: string(block.name), input })
  }
  const counts = message.usage ?? {}
  const usage = toUsage(
    counts.input_tokens,
    counts.output_tokens,
    counts.cache_read_input_tokens,
    counts.cache_creation_input_tokens,
  )
  const raw: Block = { finishReason: stop_reason, requestId: answer.requestId }
  for (const key in message) if (!ours.has(key)) raw[key] = message[key]
  return replyOf({ parts, finishReason, usage, raw })
}

/** Pieces of a block: all else of their events is the same each time. */
function placesOf({ delta }: Block): Place[] {
  if (typeof delta?.text === 'string') return [[delta, 'text']]
  if (typeof delta?.thinking === 'string') return [[delta, 'thinking']]
  return typeof delta?.partial_json === 'string' ? [[delta, 'partial_json', true]] : []
}

function fold(answer: wire.Answer): wire.Fold {
  let message: Block = { content: [] }
  /** Arguments of the call at the same index: they come in pieces cut anywhere. */
  const inputs: string[] = []
  return {
    done: false,
    places: placesOf,
    event(json) {
      const { type, index, delta } = json
      if (type === 'content_block_delta') return extend(message.content[index], delta, index)
      if (type === 'content_block_start') {
        if (index !== message.content.length) throw new TypeError('blocks out of order')
        message.content.push(json.content_block)
        if (json.content_block.type === 'text') return string(json.content_block.text)
      } else if (type === 'message_start') {
        if (message.content.length) throw new TypeError('begun twice')
        message = json.message ?? {}
        message.content = []
      } else if (type === 'message_delta') {
        for (const key in delta) message[key] = delta[key]
        message.usage ??= {}
        // Repeats whole counts, not increments; older servers leave most of them out.
        for (const key in json.usage) {
          if (json.usage[key] !== null) message.usage[key] = json.usage[key]
        }
      } else if (json.error) throw answer.refuse(json)
      else if (type === 'message_stop') this.done = true
      return undefined // for `ping` and kinds to come
    },
    end() {
      if (!this.done) throw truncated(answer)
      message.content.forEach((block: Block, i: number) => {
        // An input that came whole with the block's start stands, unless pieces followed.
        if (!inputs[i] && Object.keys(block.input ?? {}).length) return
        if (block.type === 'tool_use') block.input = inputs[i] ?? ''
        else if ('input' in block) block.input = toolInput(inputs[i])
      })
      return toReply(message, answer)
    },
  }

  function extend(block: Block, delta: Block, index: number): string | undefined {
    if (delta.type === 'text_delta') {
      block.text += string(delta.text)
      return delta.text
    }
    if (delta.type === 'input_json_delta') {
      inputs[index] = append(answer, inputs[index] ?? '', string(delta.partial_json))
    } else if (delta.type === 'citations_delta') {
      block.citations = [...(block.citations ?? []), delta.citation]
    } else if (delta.type === 'thinking_delta')
      block.thinking = (block.thinking ?? '') + delta.thinking
    else {
      // Signatures, and kinds to come: they carry final values.
      const { type, ...final } = delta
      Object.assign(block, final)
    }
    return undefined
  }
}
