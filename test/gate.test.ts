// The gate by itself, as the loop meets it: what is answered at once, what is waited for, and what is made for neither.

import assert from 'node:assert/strict'
import { getEventListeners } from 'node:events'
import { test } from 'node:test'
import { setTimeout as after } from 'node:timers/promises'
import { type Answer, type Call, Gate, type Scope } from '../src/approval.ts'
import { Authority, nonce } from '../src/proof.ts'
import { memoryStore } from '../src/store.ts'
import { type Tool, type ToolContext, tool } from '../src/tool.ts'
import { dropTool, type Json } from './desk.ts'

const never = () => new Promise<never>(() => {})
const limits = { toolMs: 1_000, approvalTtlMs: 60_000, inputBytes: 1_000, outputBytes: 1_000 }

function gateOf(made: Tool, more: Partial<Scope> = {}, frozen = () => false as const): Gate {
  const scope: Scope = {
    agent: 'db',
    authority: new Authority(memoryStore()),
    who: { principal: 'ann', threadId: 't', context: {}, bound: null },
    askers: [],
    fresh: [],
    limits,
    mask: (text) => text,
    signal: undefined,
    hardSignal: undefined,
    context: ({ id }, signal) =>
      ({
        callId: id,
        get signal() {
          return signal()
        },
      }) as ToolContext,
    fact: () => assert.fail('nobody listens'),
    watched: false,
    after: undefined,
    trustClient: false,
    grants: undefined,
    ...more,
  }
  return new Gate(scope, new Map([[made.name, made]]), [], frozen, [])
}
const callOf = (input: unknown, name = 'drop'): Call => {
  return { id: nonce(), name, input, status: 'executing', requiresApproval: false }
}
const auto = (more: Json = {}) => dropTool([], { requiresApproval: false, ...more })
function start(gate: Gate, input: unknown = { table: 'a' }): Answer | Promise<Answer> {
  const proposal = gate.propose(callOf(input))
  if (!('run' in proposal)) throw new Error(`not answered at once: ${JSON.stringify(proposal)}`)
  return proposal.run()
}

test('an automatic call whose tool answers at once is answered at once', () => {
  assert.deepEqual(start(gateOf(auto())), { outcome: 'ok', content: 'dropped a' })
  const throws = auto({ execute: () => { throw new Error('locked') } }) // biome-ignore format: one line
  const content = 'Error executing drop: locked'
  assert.deepEqual(start(gateOf(throws)), { outcome: 'error', content })
})

test('what cannot run is refused at once', () => {
  const gate = gateOf(auto())
  const said = (call: Call) => (gate.propose(call) as { content: string }).content
  assert.match(said(callOf({}, 'other')), /^Unknown tool: other/)
  assert.match(said(callOf({ table: 1 })), /^Invalid input for drop/)
  assert.match(said(callOf({ table: 'a', constructor: 1 })), /the key constructor is refused/)
})

test('a tool that changes its input changes nothing of the call', () => {
  const gate = gateOf(
    auto({
      execute: (input: Json) => {
        Object.assign(input, { table: 'b' })
        ;(input.deep as Json[])[0] = {}
        return ''
      },
    }),
  )
  const input = { table: 'a', deep: [{ n: 1 }] }
  start(gate, input)
  assert.deepEqual(input, { table: 'a', deep: [{ n: 1 }] })
})

test('an input is measured in bytes of JSON, exactly at the limit', () => {
  const gate = gateOf(auto())
  const room = limits.inputBytes - JSON.stringify({ table: '' }).length
  for (const one of ['a', 'ä', '\u0001', '"', '\ud800', '€']) {
    const size = Buffer.byteLength(JSON.stringify(one)) - 2
    const fits = one.repeat(Math.floor(room / size))
    const rest = 'a'.repeat(room % size)
    assert.deepEqual((start(gate, { table: fits + rest }) as { outcome: string }).outcome, 'ok')
    const refused = gate.propose(callOf({ table: `${fits}${rest}a` }))
    assert.match(JSON.stringify(refused), /1001 bytes; the limit inputBytes is 1000/, one)
  }
})

test('an input that says of itself what its JSON is, is measured by that', () => {
  const input = { table: 'a', toJSON: () => ({ table: 'a'.repeat(2_000) }) }
  assert.match(JSON.stringify(gateOf(auto()).propose(callOf(input))), /2012 bytes/)
})

test('a tool that is waited for leaves no listener and no timer behind', async () => {
  const { signal } = new AbortController()
  const execute = async () => {
    await after(1)
    return 'late'
  }
  const before = process.getActiveResourcesInfo().filter((name) => name === 'Timeout').length
  const answer = await start(gateOf(auto({ execute }), { signal }))
  assert.deepEqual(answer, { outcome: 'ok', content: 'late' })
  assert.equal(getEventListeners(signal, 'abort').length, 0)
  const left = process.getActiveResourcesInfo().filter((name) => name === 'Timeout').length
  assert.equal(left, before)
})

test('a tool that first looks at its signal after its time sees it aborted', async () => {
  let seen: AbortSignal | undefined
  const execute = async (_: unknown, ctx: ToolContext) => {
    await after(30)
    seen = ctx.signal
  }
  const answer = await start(gateOf(auto({ execute, timeoutMs: 5 })))
  assert.deepEqual((answer as { outcome: string }).outcome, 'error')
  await after(40)
  assert.deepEqual([seen?.aborted, seen?.reason.message], [true, 'drop did not finish within 5 ms'])
})

test('time and abort together end a call once', async () => {
  const stop = new AbortController()
  const facts: string[] = []
  const fact = (type: string) => facts.push(type)
  const more = { signal: stop.signal, watched: true, fact: fact as Scope['fact'] }
  await start(gateOf(auto({ execute: never, timeoutMs: 5 }), more))
  stop.abort()
  await after(5)
  assert.deepEqual(facts, ['ToolExecutionFailed'])
})

test('a schema that throws rejects, so that its siblings are waited for with it', async () => {
  const broken = tool({ name: 'drop', description: 'd', input: { type: 'object' }, execute: never })
  broken.validate = () => {
    throw new Error('no such pattern')
  }
  await assert.rejects(async () => gateOf(broken).propose(callOf({})), /no such pattern/)
  const proposed = gateOf(broken).propose(callOf({}))
  assert.ok(proposed instanceof Promise)
  await assert.rejects(proposed, /no such pattern/)
})
