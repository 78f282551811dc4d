// The same run as events: words as the model says them, what the agent is doing, what a tool
// reports while it works. Leaving the loop early aborts the model; the last event carries the whole
// result.

import { stream, tool } from '../src/index.ts'
import { scripted } from '../src/providers/scripted.ts'

const backup = tool({
  name: 'backup',
  description: 'Back up a database',
  input: '{ database: string }',
  execute({ database }, ctx) {
    for (const percent of [50, 100]) ctx.update(`${database}: ${percent} %`)
    return `${database}.tar.gz`
  },
})
const agent = {
  name: 'db',
  provider: scripted([
    {
      pieces: ['I', "'ll back", ' it up.'],
      calls: [{ name: 'backup', input: { database: 'crm' } }],
    },
    ['Done', ': crm', '.tar.gz'],
    ['This', ' is', ' never', ' heard'],
  ]),
  tools: [backup],
}

for await (const event of stream(agent, { messages: 'Back up crm' })) {
  switch (event.type) {
    case 'text_delta':
      console.log('text  ', JSON.stringify(event.text))
      break
    case 'intermittent_update':
      console.log('status', event.text)
      break
    case 'executed_tool_calls':
      console.log('ran   ', event.executedToolCalls[0]?.output)
      break
    case 'done':
      console.log('done  ', event.result.stop, JSON.stringify(event.result.text))
  }
}

for await (const event of stream(agent, { messages: 'And now a long story' })) {
  if (event.type === 'text_delta') console.log('left after', JSON.stringify(event.text))
  break
}

// Prints:
//
// text   "I"
// text   "'ll back"
// text   " it up."
// status Calling tool: backup
// status crm: 50 %
// status crm: 100 %
// ran    crm.tar.gz
// status Thinking...
// text   "\n\nDone"
// text   ": crm"
// text   ".tar.gz"
// done   end "I'll back it up.\n\nDone: crm.tar.gz"
// left after "This"
