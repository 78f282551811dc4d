// On AWS Lambda, behind a function URL with response streaming. Each event goes through the usual
// node:http listener over a connection in memory, so that Node's own parser and back-pressure hold
// and no port is opened. An instance may be gone before the approval comes: a real one hands over a
// store that all share, and keys.

import { once } from 'node:events'
import { createServer, type IncomingHttpHeaders, type IncomingMessage, request } from 'node:http'
import { duplexPair, PassThrough, type Writable } from 'node:stream'
import { text } from 'node:stream/consumers'
import { pipeline } from 'node:stream/promises'
import { chatHandler } from '../src/index.ts'
import { scripted } from '../src/providers/scripted.ts'

/** Of Lambda's payload format 2.0, what is read here. */
interface Event {
  rawPath: string
  rawQueryString?: string
  headers: Record<string, string>
  cookies?: string[]
  body?: string
  isBase64Encoded?: boolean
  requestContext: { http: { method: string } }
}

const standIn = {
  streamifyResponse: (handler: (event: Event, stream: Writable) => Promise<void>) => handler,
  HttpResponseStream: {
    from(
      stream: Writable,
      head: { statusCode?: number | undefined; headers: IncomingHttpHeaders },
    ) {
      console.log(head.statusCode, head.headers['content-type'])
      return stream
    },
  },
}
/** A global of Lambda's Node runtime. */
const { awslambda = standIn } = globalThis as { awslambda?: typeof standIn }

const greeter = { name: 'greeter', provider: scripted(() => ['Hello', ' from', ' Lambda']) }
const chat = chatHandler(greeter)
const server = createServer(async (req, res) => {
  if (!(await chat(req, res))) res.writeHead(404).end()
})

export const handler = awslambda.streamifyResponse(async (event, stream) => {
  const { rawPath, rawQueryString, cookies, body = '', isBase64Encoded } = event
  const { 'content-length': _, ...given } = event.headers
  const headers = { ...given, ...(cookies && { cookie: cookies.join('; ') }) }
  const [ours, theirs] = duplexPair()
  server.emit('connection', ours)
  const { method } = event.requestContext.http
  const path = rawQueryString ? `${rawPath}?${rawQueryString}` : rawPath
  const asked = request({ createConnection: () => theirs, method, path, headers })
  asked.end(Buffer.from(body, isBase64Encoded ? 'base64' : 'utf8'))
  const [response] = (await once(asked, 'response')) as [IncomingMessage]
  const { connection, 'transfer-encoding': encoding, ...rest } = response.headers
  const head = { statusCode: response.statusCode, headers: rest }
  await pipeline(response, awslambda.HttpResponseStream.from(stream, head))
})

if (process.argv[1] === import.meta.filename) {
  const stream = new PassThrough()
  const said = text(stream)
  const body = '{"messages":[{"role":"user","content":"Hi"}]}'
  const headers = { 'content-type': 'application/json' }
  const requestContext = { http: { method: 'POST' } }
  await handler({ rawPath: '/api/chat-stream', headers, body, requestContext }, stream)
  console.log((await said).replace(/"meta_data.*/, '...'))
}

// Prints:
//
// 200 application/x-ndjson
// {"type":"text_delta","text":"Hello"}
// {"type":"text_delta","text":" from"}
// {"type":"text_delta","text":" Lambda"}
// {"type":"done","stop_reason":"end",...
