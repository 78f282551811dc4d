// The wires of OpenAI, Anthropic and Bedrock (Converse, ConverseStream) as one process of its own: `node mock.mjs`
// prints its port. Paths begin with a scenario: /k10/v1/chat/completions. Raw sockets and precomputed bytes, so that it
// is never what is measured. Which turn it is, it reads off the last tool result in the request, which must be right;
// under /check/ the whole history is read and must be right.

import { createServer } from 'node:net'
import { inputOf, lookUp, lookup, parse, prompt, system } from './scenario.mjs'
import { answer, numbered } from './wires.mjs'

const marker = Buffer.from('RESULT-')
const streamed = Buffer.from('"stream":true')
const headEnd = Buffer.from('\r\n\r\n')

const server = createServer((socket) => {
  socket.setNoDelay(true)
  let held = null
  socket.on('error', () => {})
  socket.on('close', () => socket.paced?.slot.delete(socket.paced))
  socket.on('data', (bytes) => {
    held = held ? Buffer.concat([held, bytes]) : bytes
    while (held) {
      const request = read(held)
      if (!request) break
      held = request.end < held.length ? held.subarray(request.end) : null
      try {
        reply(socket, request)
      } catch (error) {
        refuse(socket, error)
      }
    }
  })
})

/** One request off the front, or undefined while it is not whole. */
function read(bytes) {
  const at = bytes.indexOf(headEnd)
  if (at === -1) return undefined
  const head = bytes.latin1Slice(0, at)
  const path = head.slice(head.indexOf(' ') + 1, head.indexOf(' HTTP/1.'))
  const length = /\r\ncontent-length: *(\d+)/i.exec(head)
  const from = at + 4
  if (length) {
    const end = from + Number(length[1])
    return bytes.length < end ? undefined : { path, body: bytes.subarray(from, end), end }
  }
  if (!/\r\ntransfer-encoding: *chunked/i.test(head))
    return { path, body: bytes.subarray(from, from), end: from }
  const pieces = []
  for (let next = from; ; ) {
    const line = bytes.indexOf('\r\n', next)
    if (line === -1) return undefined
    const size = Number.parseInt(bytes.latin1Slice(next, line), 16)
    const end = line + 2 + size + 2
    if (bytes.length < end) return undefined
    if (size === 0) return { path, body: Buffer.concat(pieces), end }
    pieces.push(bytes.subarray(line + 2, line + 2 + size))
    next = end
  }
}

/** By path and, where the body decides, by whether a stream is asked for. */
const routes = new Map()
function routeOf(path) {
  const parts = path.split(/[/?]/).slice(1)
  const check = parts[0] === 'check'
  const name = parts[check ? 1 : 0]
  const rest = parts.slice(check ? 2 : 1).join('/')
  const scenario = parse(name)
  const wire = /chat\/completions/.test(rest)
    ? 'openai'
    : /messages/.test(rest)
      ? 'anthropic'
      : /^model\/.*\/converse/.test(rest)
        ? 'bedrock'
        : undefined
  if (!wire) throw new Error(`no such path: ${path}`)
  const route = {
    check,
    scenario,
    wire,
    stream: wire === 'bedrock' ? /converse-stream$/.test(rest) : undefined,
    results: Array.from({ length: scenario.calls }, (_, n) => Buffer.from(lookUp(inputOf(n)))),
    turns: new Map(),
  }
  routes.set(path, route)
  return route
}

function reply(socket, { path, body }) {
  const route = routes.get(path) ?? routeOf(path)
  const { scenario, wire, check } = route
  const stream = route.stream ?? body.includes(streamed)
  const turn = scenario.calls ? turnOf(body, route) : 0
  if (check) checkHistory(wire, scenario, turn, JSON.parse(body.toString('utf8')))
  const key = stream ? turn : -1 - turn
  let bytes = route.turns.get(key)
  if (!bytes) {
    bytes = answer(wire, stream, scenario, turn)
    route.turns.set(key, bytes)
  }
  const own = numbered(bytes)
  socket.write(own.head)
  if (own.tail) pace(socket, own, scenario.everyMs)
}

/** How many turns are answered in this request; throws unless the results of the last one are there, as the tool made them. */
function turnOf(body, { scenario, results }) {
  const at = body.lastIndexOf(marker)
  if (at === -1) return 0
  const n = Number(body.latin1Slice(at + 7, at + 10))
  const last = results[n]
  if (!last?.equals(body.subarray(at, at + last.length))) throw new Error(`result ${n} is wrong`)
  const turn = Math.floor(n / scenario.atOnce) + 1
  if (scenario.atOnce > 1)
    for (let i = (turn - 1) * scenario.atOnce; i < turn * scenario.atOnce; i++)
      if (!body.includes(results[i])) throw new Error(`result ${i} is missing`)
  return turn
}

// ---- The whole history, under /check/ ----------------------------------------------------------------------------

function checkHistory(wire, scenario, turn, body) {
  const said = histories[wire](body)
  const wanted = [{ user: prompt }]
  for (let t = 0; t < turn; t++)
    for (let i = 0; i < scenario.atOnce; i++) {
      const n = t * scenario.atOnce + i
      wanted.push({ name: lookup.name, input: inputOf(n), result: lookUp(inputOf(n)) })
    }
  // Some name a call anew: what counts is that call and result share a name that no other call has.
  const ids = new Set(said.history.map(({ id }) => id))
  if (ids.size !== said.history.length) throw new Error('two calls share an id')
  const got = JSON.stringify(said.history.map(({ id, ...rest }) => rest))
  if (got !== JSON.stringify(wanted)) throw new Error(`the history is wrong: ${got.slice(0, 2000)}`)
  if (!said.system.includes(system)) throw new Error('the instructions are missing')
  const properties = Object.keys(said.tool ?? {})
    .sort()
    .join()
  if (properties !== 'key,n') throw new Error(`the tool is wrong: ${properties}`)
}

const textOf = (content) =>
  typeof content === 'string'
    ? content
    : content.map((part) => part.text ?? part.json ?? '').join('')
const unwrapped = (text) => (text.startsWith('"') ? JSON.parse(text) : text)

const histories = {
  openai({ messages, tools }) {
    const results = new Map(
      messages.filter((m) => m.role === 'tool').map((m) => [m.tool_call_id, textOf(m.content)]),
    )
    const history = []
    for (const m of messages) {
      if (m.role === 'user') history.push({ user: textOf(m.content) })
      for (const { id, function: f } of m.tool_calls ?? [])
        history.push({
          id,
          name: f.name,
          input: JSON.parse(f.arguments),
          result: unwrapped(results.get(id)),
        })
    }
    const system = messages.filter((m) => m.role === 'system' || m.role === 'developer')
    return {
      history,
      system: system.map((m) => textOf(m.content)).join(),
      tool: tools.find((t) => t.function.name === lookup.name)?.function.parameters.properties,
    }
  },
  anthropic({ messages, system, tools }) {
    const blocks = messages.flatMap((m) =>
      (typeof m.content === 'string' ? [{ type: 'text', text: m.content }] : m.content).map(
        (b) => ({
          ...b,
          role: m.role,
        }),
      ),
    )
    const results = new Map(
      blocks.filter((b) => b.type === 'tool_result').map((b) => [b.tool_use_id, textOf(b.content)]),
    )
    const history = []
    for (const { role, type, text, id, name, input } of blocks) {
      if (role === 'user' && type === 'text') history.push({ user: text })
      if (type === 'tool_use') history.push({ id, name, input, result: results.get(id) })
    }
    return {
      history,
      system: textOf(system),
      tool: tools.find((t) => t.name === lookup.name)?.input_schema.properties,
    }
  },
  bedrock({ messages, system, toolConfig }) {
    const blocks = messages.flatMap((m) => m.content.map((b) => ({ ...b, role: m.role })))
    const results = new Map(
      blocks
        .filter((b) => b.toolResult)
        .map(({ toolResult }) => [toolResult.toolUseId, textOf(toolResult.content)]),
    )
    const history = []
    for (const { role, text, toolUse } of blocks) {
      if (role === 'user' && text) history.push({ user: text })
      if (!toolUse) continue
      const { toolUseId: id, name, input } = toolUse
      history.push({ id, name, input, result: results.get(id) })
    }
    const spec = toolConfig.tools.find((t) => t.toolSpec.name === lookup.name)?.toolSpec
    return { history, system: textOf(system), tool: spec?.inputSchema.json.properties }
  },
}

function refuse(socket, error) {
  const text = JSON.stringify({ error: { type: 'bench', message: error.message } })
  socket.write(
    `HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(text)}\r\n\r\n${text}`,
  )
}

// ---- One event per T ms ------------------------------------------------------------------------------------------

/** Streams of one pace, spread evenly over its milliseconds: no client ever gets all its streams in one tick. */
const wheels = new Map()
let timer

function pace(socket, { pieces, tail, own }, everyMs) {
  let wheel = wheels.get(everyMs)
  if (!wheel) {
    wheel = {
      slots: Array.from({ length: everyMs }, () => new Set()),
      next: 0,
      at: Math.floor(performance.now()),
    }
    wheels.set(everyMs, wheel)
  }
  if (!wheel.slots.some((slot) => slot.size)) wheel.at = Math.floor(performance.now())
  // 7 is prime to the usual paces: neighbours do not share a millisecond.
  wheel.next += 7
  const slot = wheel.slots[wheel.next % everyMs]
  const stream = { socket, pieces, tail, own, sent: 0, slot }
  slot.add(stream)
  socket.paced = stream
  timer ??= setInterval(tick, 1)
}

function tick() {
  const now = Math.floor(performance.now())
  let busy = false
  for (const [everyMs, wheel] of wheels) {
    // A tick that came late makes up for what it missed, one turn of the wheel at most.
    for (let at = Math.max(wheel.at + 1, now - everyMs + 1); at <= now; at++) {
      for (const stream of wheel.slots[at % everyMs]) {
        const piece = stream.pieces[stream.sent++]
        if (piece) stream.socket.write(stream.own(piece))
        else {
          stream.slot.delete(stream)
          stream.socket.write(stream.tail)
        }
      }
    }
    wheel.at = now
    busy ||= wheel.slots.some((slot) => slot.size)
  }
  if (busy) return
  clearInterval(timer)
  timer = undefined
}

server.listen({ host: '127.0.0.1', port: 0, backlog: 4096 }, () => {
  const { port } = server.address()
  if (process.send) process.send({ port })
  else console.log(port)
})
process.on('disconnect', () => process.exit())
