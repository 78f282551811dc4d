// Behind a framework you already have. The handler says whether a request was its own and touches
// nothing else; it reads the body itself, so it must come before whatever parses bodies.

import { once } from 'node:events'
import { createServer, type RequestListener, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import express from 'express'
import fastify from 'fastify'
import { chatHandler } from '../src/index.ts'
import { scripted } from '../src/providers/scripted.ts'

const greeter = { name: 'greeter', provider: scripted(() => 'Hello from the agent.') }

// ---- Express: a middleware before express.json()

const chat = chatHandler(greeter)
const app = express()
app.use(async (req, res, next) => {
  if (!(await chat(req, res))) next()
})
app.use(express.json())
app.post('/echo', (req, res) => {
  res.json({ express: req.body })
})

// ---- Fastify: a server of ours, whose other requests are Fastify's

const desk = fastify({
  serverFactory: (fastifyHandler: RequestListener) =>
    createServer(async (req, res) => {
      if (!(await chat(req, res))) fastifyHandler(req, res)
    }),
})
desk.post('/echo', async (req) => ({ fastify: req.body }))
await desk.ready()

// ---- the client

async function tryOut(name: string, server: Server): Promise<void> {
  await once(server.listen(0, '127.0.0.1'), 'listening')
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  const post = async (path: string, body: object) => {
    const headers = { 'content-type': 'application/json' }
    return fetch(url + path, { method: 'POST', headers, body: JSON.stringify(body) })
  }
  const messages = [{ role: 'user', content: 'Hi' }]
  const { content } = (await (await post('/api/chat', { messages })).json()) as { content: string }
  console.log(name, content)
  console.log(name, await (await post('/echo', { ping: 1 })).text())
  console.log(name, (await fetch(`${url}/health`)).status)
  server.close()
}
await tryOut('express:', createServer(app))
await tryOut('fastify:', desk.server)

// Prints:
//
// express: Hello from the agent.
// express: {"express":{"ping":1}}
// express: 200
// fastify: Hello from the agent.
// fastify: {"fastify":{"ping":1}}
// fastify: 200
