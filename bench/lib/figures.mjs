// What is measured, as data: one entry a group of rows. `task` goes to a runner's process (child.mjs); each row takes its
// value from what comes back. `budget`: `ratio` to the limit, or `max` in the row's unit. `full` and `quick` say how long.

const wireNames = { openai: 'OpenAI', anthropic: 'Anthropic', bedrock: 'Bedrock' }
const perRun = ({ cpuUs, runs }) => cpuUs / runs
const perToken = ({ cpuUs, tokens }) => cpuUs / tokens

function runRow(group, wire, stream, calls, budget) {
  return {
    group,
    wire,
    stream,
    pair: { full: 600, quick: 200 },
    rival: { full: 250, quick: 1 },
    inQuick: calls === 10,
    task: { task: 'cpu', wire, stream, scenario: `k${calls}` },
    rows: [
      {
        title: `CPU per run, ${wireNames[wire]} ${stream ? 'streamed' : 'JSON'}, ${calls} call${calls > 1 ? 's' : ''}`,
        unit: 'µs',
        value: perRun,
        budget,
      },
    ],
  }
}

function tokenRow(group, wire, scenario, how, ms, budget, quick) {
  return {
    group,
    wire,
    stream: true,
    pair: ms,
    rival: ms,
    inQuick: quick,
    task: { task: 'cpu', wire, stream: true, scenario },
    rows: [
      { title: `CPU per token, ${wireNames[wire]}, ${how}`, unit: 'µs', value: perToken, budget },
    ],
  }
}

export function figures({ quick }) {
  const list = []
  for (const wire of ['openai', 'anthropic'])
    for (const stream of [false, true])
      for (const calls of [1, 10, 50]) {
        const ratio = calls === 50 ? 1.0 : stream ? 1.15 : 1.25
        list.push(runRow('run', wire, stream, calls, { ratio }))
      }
  for (const stream of [false, true])
    for (const calls of [1, 10, 50])
      list.push(runRow('bedrock', 'bedrock', stream, calls, { ratio: 1.1 }))

  for (const stream of [false, true])
    list.push({
      group: 'parallel',
      wire: 'openai',
      stream,
      pair: { full: 400, quick: 100 },
      rival: { full: 250, quick: 1 },
      inQuick: true,
      task: { task: 'cpu', wire: 'openai', stream, scenario: 'p4' },
      rows: [
        {
          title: `CPU per run, OpenAI ${stream ? 'streamed' : 'JSON'}, 4 calls at once`,
          unit: 'µs',
          value: perRun,
        },
      ],
    })

  const burst = { full: 400, quick: 100 }
  // A paced run lasts as long as its stream: 1 ms asks for exactly one run in every lane.
  const once = { full: 1, quick: 1 }
  for (const wire of ['openai', 'anthropic', 'bedrock'])
    list.push(
      tokenRow(
        'tokens',
        wire,
        't2000',
        'burst of 2,000',
        burst,
        wire === 'bedrock' ? undefined : { ratio: 1.4 },
        wire === 'openai',
      ),
      tokenRow(
        'tokens',
        wire,
        quick ? 'd5n100' : 'd5n300',
        'one every 5 ms',
        once,
        wire === 'bedrock' ? undefined : { ratio: 1.1 },
        wire === 'openai',
      ),
    )

  for (const wire of ['openai', 'anthropic'])
    list.push({
      group: 'first-token',
      wire,
      stream: true,
      inQuick: wire === 'openai',
      task: { task: 'firstToken', wire, stream: true, scenario: 't5', count: quick ? 200 : 1000 },
      rows: [
        {
          title: `added time to first token, ${wireNames[wire]}, p50`,
          unit: 'ms',
          value: ({ p50 }) => p50,
          added: true,
          budget: { max: 0.05 },
        },
      ],
    })

  const count = quick ? 300 : 1000
  list.push({
    group: 'streams',
    wire: 'openai',
    stream: true,
    inQuick: true,
    repetitions: quick ? 1 : 3,
    fresh: true,
    only: quick ? ['limit', 'ours'] : undefined,
    task: {
      task: 'streams',
      wire: 'openai',
      stream: true,
      count,
      scenario: quick ? 'd50n24' : 'd50n120',
    },
    rows: [
      {
        title: `${count} streams of 20 tokens/s: memory per stream`,
        unit: 'KB',
        value: (f) => f.bytesPerStream / 1024,
        budget: { max: 100 },
      },
      {
        title: `${count} streams: event-loop lag, p99`,
        unit: 'ms',
        value: (f) => f.lagMs,
        budget: { ratio: 1.2 },
      },
      {
        title: `${count} streams: share of a core`,
        unit: '%',
        value: (f) => f.core * 100,
        budget: { ratio: 1.2 },
      },
      {
        title: `${count} streams: tokens lost`,
        unit: '',
        value: (f) => f.lost,
        budget: { max: 0 },
      },
    ],
  })

  list.push({
    group: 'cold',
    kind: 'cold',
    inQuick: true,
    rows: [
      { title: 'import, CPU (limit: `typebox`)', unit: 'ms', id: 'import', budget: { ratio: 1.1 } },
      {
        title: 'import with an HTTP provider, CPU (limit: `typebox` and `undici`)',
        unit: 'ms',
        id: 'importAll',
        budget: { ratio: 1.1 },
      },
      { title: 'memory of that import', unit: 'MB', id: 'memory' },
      { title: 'from nothing to the first answer, CPU', unit: 'ms', id: 'answer' },
      { title: 'install size', unit: 'MB', id: 'size', budget: { max: 15 } },
      { title: 'packages', unit: '', id: 'packages', budget: { max: 35 } },
    ],
  })

  for (const stream of [true, false])
    list.push({
      group: 'http',
      kind: 'http',
      stream,
      inQuick: true,
      ms: quick ? 500 : 2000,
      rows: [
        {
          title: `HTTP service, ${stream ? 'streamed' : 'JSON'}, 50 tokens, 64 connections: CPU per request`,
          unit: 'µs',
          value: ({ cpuUs, requests }) => cpuUs / requests,
          budget: { ratio: stream ? 1.15 : 1.25 },
        },
        {
          title: `HTTP service, ${stream ? 'streamed' : 'JSON'}: requests a second, all on this machine`,
          unit: '/s',
          value: ({ requests, wallMs }) => (requests / wallMs) * 1000,
        },
      ],
    })

  for (const store of ['memory', 'sqlite', 'redis', 'postgres'])
    list.push({
      group: 'approvals',
      kind: 'approvals',
      inQuick: store === 'memory',
      store,
      ms: quick ? 200 : 800,
      rows: [
        {
          title: `propose and approve, ${store}: a second`,
          unit: '/s',
          value: ({ done, wallMs }) => (done / wallMs) * 1000,
        },
        {
          title: `propose and approve, ${store}: CPU`,
          unit: 'µs',
          value: ({ done, cpuUs }) => cpuUs / done,
        },
      ],
    })

  return quick ? list.filter((entry) => entry.inQuick) : list
}
