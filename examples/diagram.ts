// A whole agent: it draws the services of a tenant as a Mermaid diagram, by a style guide so long
// that caching it pays. The inventory it fetched stays in the session, so that "add the image
// versions" draws anew without asking the platform again.
//   DCAF_PROVIDER=anthropic DCAF_MODEL=claude-sonnet-4-5 node examples/diagram.ts
// Without DCAF_PROVIDER the model is a stand-in of a few rules. The platform is always one, on the
// loopback.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import Type, { type Static } from 'typebox'
import { type Agent, type Message, type Provider, run, tool, user } from '../src/index.ts'
import { anthropic } from '../src/providers/anthropic.ts'
import { providerFromEnv } from '../src/providers/env.ts'
import { localAnthropic } from './local-anthropic.ts'

const Inventory = Type.Object({
  tenant: Type.String(),
  services: Type.Array(
    Type.Object({ name: Type.String(), image: Type.String(), calls: Type.Array(Type.String()) }),
  ),
})

const getInventory = tool({
  name: 'get_inventory',
  description: 'Fetch the services of the tenant, their images and which calls which',
  input: '{ refresh?: boolean }',
  async execute({ refresh }, { platform, session, signal }) {
    const known = session.get('inventory', Inventory)
    if (known && !refresh) return known
    const response = await fetch(`${platform.duplo_base_url}/inventory`, {
      headers: { authorization: `Bearer ${platform.duplo_token}` },
      signal,
    })
    if (!response.ok) throw new Error(`the platform answered ${response.status}`)
    session.set('inventory', await response.json())
    return session.get('inventory', Inventory) // throws where the platform's answer does not fit
  },
})

const draw = tool({
  name: 'draw_diagram',
  description: 'Draw the fetched inventory as Mermaid text',
  input: '{ direction?: "LR" | "TD", versions?: boolean }',
  defaults: { direction: 'LR', versions: false },
  execute({ direction, versions }, { session }) {
    const inventory = session.get('inventory', Inventory)
    if (!inventory) throw new Error('There is no inventory yet: call get_inventory first.')
    return mermaid(inventory, `flowchart ${direction}`, versions)
  },
})

function mermaid({ services }: Static<typeof Inventory>, head: string, versions = false): string {
  const label = ({ name, image }: { name: string; image: string }) =>
    versions ? `${name}<br/>${image.split(':').at(-1)}` : name
  const nodes = services.map((service) => `  ${service.name}["${label(service)}"]`)
  const arrows = services.flatMap(({ name, calls }) => calls.map((to) => `  ${name} --> ${to}`))
  return [head, ...nodes, ...arrows].join('\n')
}

const styleGuide = Array.from(
  { length: 90 },
  (_, i) => `Rule ${i + 1}: what has ${i + 2} arrows stands before what has ${i + 1}.`,
).join('\n')

function diagramAgent(provider: Provider): Agent {
  return {
    name: 'diagram',
    provider,
    system: `You draw architecture diagrams. Answer with the Mermaid text alone.\n${styleGuide}`,
    cache: true,
    // Of this moment, so it comes after the cached part and leaves it as it is.
    systemContext({ session }) {
      const known = session.get('inventory', Inventory)
      return known && `The inventory of ${known.tenant} is fetched: draw, do not fetch it again.`
    },
    tools: [getInventory, draw],
  }
}

// ---- two turns of a talk

let queries = 0
const platform = createServer((req, res) => {
  queries++
  const isKnown = req.headers.authorization === 'Bearer test-token'
  const services = [
    { name: 'web', image: 'acme/web:2.4.1', calls: ['api'] },
    { name: 'api', image: 'acme/api:7.0.3', calls: ['db'] },
    { name: 'db', image: 'postgres:17.2', calls: [] },
  ]
  res.writeHead(isKnown ? 200 : 403).end(JSON.stringify({ tenant: 'acme', services }))
})
await once(platform.listen(0, '127.0.0.1'), 'listening')
const { port } = platform.address() as AddressInfo
const context = { duplo_base_url: `http://127.0.0.1:${port}`, duplo_token: 'test-token' }

const local = await localAnthropic(({ system = [], messages }) => {
  const [block = {}] = messages.at(-1)?.content ?? []
  if (/^flowchart/.test(block.content)) return [{ type: 'text', text: block.content }]
  const isFetched = block.content || system.at(-1)?.text.includes('is fetched')
  if (!isFetched) return [{ type: 'tool_use', name: 'get_inventory', input: {} }]
  const versions = /versions/.test(block.text)
  return [{ type: 'tool_use', name: 'draw_diagram', input: { versions } }]
})
const provider = process.env.DCAF_PROVIDER
  ? await providerFromEnv()
  : anthropic({ model: 'claude-sonnet-4-5', apiKey: 'test-key', baseUrl: local.url })
const agent = diagramAgent(provider)

let messages: Message[] = []
let session = {}
for (const wish of ['Draw the tenant', 'Add the image versions']) {
  const result = await run(agent, { messages: [...messages, user(wish)] }, { context, session })
  if (result.error) throw result.error
  messages = result.state.messages
  session = result.session.toJSON() // over HTTP it travels to the client and back
  const { inputTokens, cacheReadTokens } = result.usage
  console.log(`> ${wish}\n${result.text}`)
  console.log(
    `queries so far: ${queries}; read from the cache: ${cacheReadTokens} of ${inputTokens}`,
  )
  assert.equal(queries, 1)
}
local.close()
platform.close()

// Prints:
//
// > Draw the tenant
// flowchart LR
//   web["web"]
//   api["api"]
//   db["db"]
//   web --> api
//   api --> db
// queries so far: 1; read from the cache: 2916 of 4512
// > Add the image versions
// flowchart LR
//   web["web<br/>2.4.1"]
//   api["api<br/>7.0.3"]
//   db["db<br/>17.2"]
//   web --> api
//   api --> db
// queries so far: 1; read from the cache: 3212 of 3323
