// An agent as a tool of another agent. The child's own tools decide what asks a person: its pending
// call surfaces in the parent's result with the path to it, and the decision finds its way back
// down.

import { type Agent, agentTool, approveAll, resume, run, tool } from '../src/index.ts'
import { scripted } from '../src/providers/scripted.ts'

const drop = tool({
  name: 'drop_table',
  description: 'Drop a table for good',
  input: '{ table: string }',
  requiresApproval: true,
  execute: ({ table }) => `dropped ${table}`,
})
const dba: Agent = {
  name: 'dba',
  description: 'Knows the databases; give it one task in plain words.',
  provider: scripted([
    { calls: [{ name: 'drop_table', input: { table: 'tmp_2019' } }] },
    'I dropped tmp_2019.',
  ]),
  tools: [drop],
}
const chief: Agent = {
  name: 'chief',
  provider: scripted([
    { calls: [{ name: 'dba', input: { task: 'Tidy up what is left of 2019.' } }] },
    'The database is tidy.',
  ]),
  tools: [agentTool(dba)],
}

const asked = await run(chief, { messages: 'Tidy up the database' })
const [call] = asked.pending
console.log('waits:', call?.name, call?.input, 'path:', call?.path)

const done = await resume(chief, asked, approveAll(asked))
for (const { name, output, path } of done.executed) console.log(path ?? [], name, '->', output)
console.log(done.text)

// Prints:
//
// waits: drop_table { table: 'tmp_2019' } path: [ 'dba' ]
// [ 'dba' ] drop_table -> dropped tmp_2019
// [] dba -> I dropped tmp_2019.
// The database is tidy.
