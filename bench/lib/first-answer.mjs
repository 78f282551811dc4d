// `first-answer.mjs ours http://127.0.0.1:PORT`: all the CPU of a process that starts, runs an agent once and has its answer.

import { answerOf, lookUp } from './scenario.mjs'

const [name, mock] = process.argv.slice(2)
const runner = await import(`../runners/${name}.mjs`)
const stream = runner.streamsOnly ?? false
const base = `${mock}/k1`
const run = await runner.create({
  wire: 'openai',
  base,
  stream,
  execute: lookUp,
  onToken: () => {},
})
const text = await run()
const { user, system } = process.cpuUsage()
if (text === answerOf('k1')) process.send({ cpuMs: (user + system) / 1000 })
else process.send({ error: `${name}: wrong answer` })
