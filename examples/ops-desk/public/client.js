// A client of the HelpDesk protocol in one file: no dependency, no build; for browsers and for Node. Copy it, with
// client.d.ts, which says what each thing takes and gives.
// It keeps the thread, reads the stream, carries the session back and forth, and sends decisions. It draws nothing.
//
//   const thread = new Thread({ base: 'http://127.0.0.1:8000' })
//   await thread.send('restart web-1', { onEvent: (event) => console.log(event) })
//   if (thread.pending.length > 0) await thread.decide(thread.pending.map((call) => approve(call)))
//   console.log(thread.messages.at(-1).content)
//
// What a server relies on:
// - The whole thread goes with each request; only its last message decides.
// - A call's `id` is the proof of what was shown. It is opaque: send it back as it came.
// - The session travels in `data.session` of the newest message that has one. Keys that begin with `$` are the library's.
// - The same decisions may be sent again at any time: each call runs at most once, and a repetition is answered with
//   what happened. So after a lost connection the right thing is `retry()`.

/** Approves the call as it was shown. */
export function approve(call) {
  return { ...echo(call), execute: true }
}

/** Rejects it. The reason is told to the model; the wire needs one. */
export function reject(call, reason = '') {
  return { ...echo(call), execute: false, rejection_reason: reason.trim() || 'not approved' }
}

/**
 * Approves it with another input. A tool that is not `editable` answers with a new call, which then waits for approval.
 *
 */
export function edit(call, input) {
  return { ...echo(call), execute: true, edited_input: input }
}

function echo({ id, type, name, input, path }) {
  return { id, type, name, input, ...(path ? { path } : {}) }
}

/** Why a turn did not end as it should. `message` is a sentence for a person. */
export class ChatError extends Error {
  name = 'ChatError'
  constructor(message, { cause, ...facts }) {
    super(message, { cause })
    Object.assign(this, { retryable: false }, facts)
  }
}

/** One conversation. Plain data but for its functions: `toJSON` it, and give that to `new Thread` later. */
export class Thread {
  messages = []
  /** What arrived of an answer that broke off; `retry` drops it, `send` keeps it in the thread. */
  partial = null
  /** Add this to Date.now() to get the server's clock, for expiries. Milliseconds. */
  clockSkewMs = 0

  /**
   * `base`: where the server is, '' for the page's own origin. `fields`: more of the request, such as `tenant_id` or
   * `source`. `headers`: say, `{ authorization }`, or a function that gives them. The rest is what `toJSON` gave.
   */
  constructor({
    base = '',
    path = '/api/chat-stream',
    headers = {},
    fields = {},
    fetch = (...args) => globalThis.fetch(...args),
    id = newId(),
    messages = [],
    partial = null,
  } = {}) {
    Object.assign(this, { id, messages, partial })
    this.post = async (body, signal) =>
      fetch(base + path, {
        method: 'POST',
        headers: {
          'content-type': 'application/json',
          ...(typeof headers === 'function' ? await headers() : headers),
        },
        body,
        signal,
      })
    this.body = () =>
      JSON.stringify({ ...fields, thread_id: this.id, messages: slim(this.messages) })
  }

  toJSON() {
    return { id: this.id, messages: this.messages, partial: this.partial }
  }

  /** The calls that wait for a decision. */
  get pending() {
    return this.messages.findLast(({ role }) => role === 'assistant')?.data.approvals ?? []
  }

  /** True while the newest message has no answer: a turn runs, or was cut off, and `retry` is what to do. */
  get unanswered() {
    return this.messages.at(-1)?.role === 'user'
  }

  /** What the agent's tools remember in this conversation, without the library's own keys. */
  get session() {
    const all = this.wholeSession
    return Object.fromEntries(Object.entries(all).filter(([key]) => !key.startsWith('$')))
  }

  /** As it travels. `$run` holds the paused run, sealed: what makes an approval go on where it stopped. */
  get wholeSession() {
    return this.messages.findLast(({ data }) => data.session)?.data.session ?? {}
  }

  /**
   * Says something. While calls wait, words without a decision reject them all, and are the reason.
   * Resolves to the whole answer; rejects with a ChatError, and then `retry` asks again.
   */
  send(text, { session, ...options } = {}) {
    const kept = Object.entries(this.wholeSession).filter(([key]) => key.startsWith('$'))
    const data = session ? { session: { ...session, ...Object.fromEntries(kept) } } : {}
    return this.say({ content: text, data }, options)
  }

  /**
   * Decides some or all of what waits; what is not named goes on waiting, under the same id.
   */
  decide(decisions, { text = '', ...options } = {}) {
    return this.say({ content: text, data: { approvals: decisions } }, options)
  }

  /** The last message again, exactly as it was. */
  retry(options = {}) {
    if (!this.unanswered) throw new Error('There is nothing to send again: the thread is answered.')
    this.partial = null
    return this.turn(options)
  }

  /** Removes the last message, which has no answer, and returns it. What it set going on the server goes on. */
  takeBack() {
    if (!this.unanswered) throw new Error('There is nothing to take back: the thread is answered.')
    this.partial = null
    return this.messages.pop()
  }

  say(message, options) {
    // What broke off stays said; if nothing had arrived, two messages of the user's follow each other.
    if (this.unanswered && this.partial) this.messages.push(this.partial)
    this.partial = null
    this.messages.push({ role: 'user', timestamp: new Date().toISOString(), ...message })
    return this.turn(options)
  }

  async turn({ signal, onEvent = () => {} }) {
    const started = performance.now()
    const timestamp = new Date().toISOString()
    const message = { role: 'assistant', content: '', timestamp, data: {}, meta_data: {} }
    try {
      const response = await this.post(this.body(), signal)
      this.readClock(response)
      if (!response.ok) throw await refused(response)
      for await (const event of events(response)) {
        fold(message, event)
        if (event.type === 'error') throw broken(event)
        onEvent(event, message)
        if (event.type === 'done') {
          message.meta_data.duration_ms = Math.round(performance.now() - started)
          this.messages.push(message)
          return message
        }
      }
      throw lost()
    } catch (error) {
      const { content, data } = message
      if (content || Object.keys(data).length > 0) this.partial = message
      if (error instanceof ChatError) throw error
      if (signal?.aborted)
        throw new ChatError('Stopped.', { code: 'aborted', retryable: true, cause: error })
      throw lost(error)
    }
  }

  readClock(response) {
    const server = Date.parse(response.headers.get('date') ?? '')
    if (Math.abs(server - Date.now()) > 2_000) this.clockSkewMs = server - Date.now()
  }
}

/** Not crypto.randomUUID: browsers have that on https and on their own machine only. */
function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16))
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('')
}

/** Only the newest session counts: the older ones stay at home. */
function slim(messages) {
  const newest = messages.findLastIndex(({ data }) => data.session)
  return messages.map((message, index) => {
    const { session, ...data } = message.data
    return { ...message, data: index === newest ? message.data : data }
  })
}

/** Adds what an event says to the message that the stream amounts to: what /api/chat would have answered. */
export function fold(message, event) {
  const { data } = message
  const add = (key) => {
    data[key] = [...(data[key] ?? []), ...event[key]]
  }
  switch (event.type) {
    case 'text_delta':
      message.content += event.text
      break
    case 'executed_tool_calls':
    case 'executed_approvals':
      add(event.type)
      break
    case 'executed_commands':
      add('executed_cmds')
      break
    case 'approvals':
    case 'tool_calls':
      data[event.type] = event[event.type]
      break
    case 'commands':
      data.cmds = event.commands
      break
    case 'done':
    case 'error': {
      const { session, ...facts } = event.meta_data ?? {}
      if (session) data.session = session
      const { stop_reason = event.type } = event
      message.meta_data = { ...message.meta_data, ...facts, stop_reason }
    }
  }
}

/** The events of a streamed answer. Ends after `done` or `error`; a stream that just ends is none. */
export async function* events(response) {
  const type = response.headers.get('content-type') ?? ''
  if (!type.startsWith('application/x-ndjson'))
    throw new ChatError('What answered is no help desk server.', { code: 'not_ndjson' })
  for await (const line of lines(response.body)) {
    if (line.trim() === '') continue
    const event = JSON.parse(line)
    yield event
    if (event.type === 'done' || event.type === 'error') return
  }
  throw lost()
}

/**
 * Lines of a stream of bytes. Split at LF, as bytes: a character may be cut between two chunks, and U+2028 ends no line.
 * Pieces are joined once per line. What follows the last LF is no line: it was cut off.
 */
export async function* lines(stream) {
  const decoder = new TextDecoder()
  let pieces = []
  const reader = stream.getReader()
  try {
    for (;;) {
      const { done, value } = await reader.read()
      if (done) return
      let start = 0
      for (let end = value.indexOf(10); end >= 0; end = value.indexOf(10, start)) {
        pieces.push(value.subarray(start, end))
        yield pieces.map((piece) => decoder.decode(piece, { stream: true })).join('') +
          decoder.decode()
        pieces = []
        start = end + 1
      }
      if (start < value.length) pieces.push(value.subarray(start))
    }
  } finally {
    reader.cancel().catch(() => {}) // whoever stops reading closes the connection
  }
}

async function refused(response) {
  const { status, headers } = response
  const seconds = Number(headers.get('retry-after') ?? Number.NaN)
  const retryAfterMs = seconds >= 0 ? seconds * 1000 : undefined
  const body = await response.json().catch(() => undefined) // a proxy's page, perhaps
  if (typeof body?.detail !== 'string')
    return new ChatError(`The server answered ${status}.`, {
      code: `http_${status}`,
      status,
      retryable: status >= 500,
      retryAfterMs,
    })
  const { detail, code, retryable, request_id: requestId, errors } = body
  const where = errors?.map(({ path, message }) => ` ${path}: ${message}.`).join('') ?? ''
  return new ChatError(detail + where, { code, status, retryable, retryAfterMs, requestId })
}

function broken({ error, code, retryable, request_id: requestId }) {
  return new ChatError(error, { code, retryable, requestId })
}

function lost(cause) {
  return new ChatError('The connection was lost before the answer ended.', {
    code: 'connection_lost',
    retryable: true,
    cause,
  })
}
