// Tests on real traffic without a network: `record` keeps what a provider was asked and what it
// answered in a file that people can read, secrets masked; `replay` answers from it, and says the
// first difference where a request changed. The one beside this file is of a stand-in. To record
// the model that DCAF_PROVIDER and DCAF_MODEL name:
// RECORD=1 node --test examples/19-cassette.ts

import assert from 'node:assert/strict'
import { join } from 'node:path'
import { test } from 'node:test'
import { type Agent, rejectAll, resume, run, tool } from '../src/index.ts'
import { record, replay } from '../src/providers/cassette.ts'
import { providerFromEnv } from '../src/providers/env.ts'

const { RECORD, CASSETTE = join(import.meta.dirname, '19-cassette.json') } = process.env

function ops(provider: Agent['provider']): Agent {
  const restart = tool({
    name: 'restart',
    description: 'Restart a service',
    input: '{ service: string }',
    requiresApproval: true,
    execute: () => assert.fail('nobody approved'),
  })
  const system = 'You operate services. Call the tool at once; a person is asked by it.'
  return { name: 'ops', provider, system, tools: [restart], temperature: 0 }
}

test('tells the person that a rejected restart was not done', async () => {
  const provider = RECORD ? record(await providerFromEnv(), CASSETTE) : replay(CASSETTE)
  const asked = await run(ops(provider), { messages: 'Restart crm' })
  assert.deepEqual(asked.pending[0]?.input, { service: 'crm' })
  const done = await resume(ops(provider), asked, rejectAll(asked, 'not during the sale'))
  assert.match(done.text, /not (been )?restarted|was rejected/i)
})

test('a prompt that changed is found out', { skip: Boolean(RECORD) }, async () => {
  const changed = { ...ops(replay(CASSETTE)), system: 'You are a pirate.' }
  const { error } = await run(changed, { messages: 'Restart crm' })
  assert.match(`${error?.message}`, /expected "You operate.*, got "You are a pirate/)
})

// Prints:
//
// ✔ tells the person that a rejected restart was not done (…)
// ✔ a prompt that changed is found out (…)
// …
