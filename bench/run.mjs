// `npm run bench`: this project beside the limit and beside other frameworks, as one Markdown table. See README.md.
//   --quick              under a minute: fewer rows, one repetition
//   --only run,http      run, bedrock, parallel, tokens, first-token, streams, cold, http, approvals
//   --runners ours,ai    ours, ai, openai-agents, strands, langgraph, pi (the limit is always there), provider
//   --repetitions 5
//   --cold               services meet all their connections at once, as none that starts does

import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { cpus } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { addedOf, Bench, everyRunner, median, ratioOf, verdict } from './lib/engine.mjs'
import { figures } from './lib/figures.mjs'
import { benchDir, rootDir } from './lib/root.mjs'

const { values: given } = parseArgs({
  options: {
    quick: { type: 'boolean', default: false },
    cold: { type: 'boolean', default: false },
    only: { type: 'string' },
    runners: { type: 'string' },
    repetitions: { type: 'string' },
  },
})
const say = (text) => process.stderr.write(`${text}\n`)

const known = [...everyRunner, 'provider']
const names = ['limit', ...(given.runners?.split(',') ?? everyRunner)].filter(
  (name, i, all) => all.indexOf(name) === i,
)
const groups = [...new Set(figures({ quick: false }).map(({ group }) => group))]
const only = given.only?.split(',')
for (const [words, allowed, option] of [
  [names, known, '--runners'],
  [only ?? [], groups, '--only'],
])
  for (const word of words)
    if (!allowed.includes(word)) fail(`${option} knows no ${word}; it knows ${allowed.join(', ')}`)

const needed = names.some((name) => !['limit', 'ours', 'provider'].includes(name))
if (needed && !existsSync(join(benchDir, 'node_modules'))) {
  say('Installing what the bench compares with into bench/node_modules (once).')
  const { status } = spawnSync('npm', ['ci', '--no-audit', '--no-fund', '--loglevel=error'], {
    cwd: benchDir,
    stdio: ['ignore', 'ignore', 'inherit'],
  })
  if (status !== 0)
    fail('npm ci failed in bench/; with --runners ours nothing needs to be installed')
}

const repetitions = given.repetitions && { repetitions: Number(given.repetitions) }
const bench = new Bench({ names, quick: given.quick, cold: given.cold, say, ...repetitions })
const began = performance.now()
try {
  await bench.start()
  const ceiling = await bench.ceiling()
  const rows = []
  const list = figures(given).filter(({ group }) => !only || only.includes(group))
  for (const [i, entry] of list.entries()) {
    say(
      `${Math.round((performance.now() - began) / 1000)} s  ${i + 1}/${list.length}  ${entry.rows[0].title}`,
    )
    try {
      rows.push(...(await bench.measure(entry)))
    } catch (error) {
      // One thing that cannot be measured does not take the rest with it.
      process.exitCode = 1
      const why = `could not be measured: ${error.message.split('\n', 3).join(' ')}`
      const cells = new Map([['ours', { values: [], why }]])
      rows.push(...entry.rows.map((row) => ({ ...row, cells })))
      say(error.stack)
    }
  }
  print(rows, ceiling)
} finally {
  bench.stop()
}

function print(rows, ceiling) {
  const versions = names.map((name) => versionOf(name)).filter(Boolean)
  const notes = new Map()
  console.log(
    `Node ${process.version}, ${cpus().length} × ${cpus()[0].model}. ${versions.join(', ')}.\n` +
      `${given.quick ? 'Quick, so rough: the runners are hardly warm. ' : ''}Median (min–max) of ${bench.repetitions} interleaved repetition${bench.repetitions > 1 ? 's' : ''}; CPU time of the process. ` +
      `The mock alone: ${ceiling.JSON} JSON, ${ceiling.streamed} streamed answers a second.\n`,
  )
  const heads = names.map((name) => ({ limit: 'limit', ours: '**dcaf**' })[name] ?? name)
  console.log(`| | ${heads.join(' | ')} | budget |\n|---|${names.map(() => '---:|').join('')}---|`)
  for (const row of rows) {
    const cells = names.map((name) => cellText(row, name, notes))
    console.log(`| ${row.title} | ${cells.join(' | ')} | ${budgetText(row)} |`)
  }
  for (const [why, number] of notes) console.log(`\n[${number}] ${why}`)
}

function cellText(row, name, notes) {
  const { values, why } = row.cells.get(name) ?? { values: [] }
  let mark = ''
  if (why && !/^(has no such|always|is not measured)/.test(why)) {
    if (!notes.has(why)) notes.set(why, notes.size + 1)
    mark = ` [${notes.get(why)}]`
  }
  if (values.length === 0) return mark ? mark.trim() : '–'
  const range =
    values.length > 1
      ? ` (${number(Math.min(...values), row.unit)}–${number(Math.max(...values), row.unit)})`
      : ''
  const text = `${number(median(values), row.unit)} ${row.unit}${range}`
    .replace(' /s', '/s')
    .replace(/ $/, '')
  if (name === 'limit') return text + mark
  if (row.added) {
    const added = addedOf(row, name)
    return `${text} **${added < 0 ? '−' : '+'}${Math.abs(added).toFixed(3)}**${mark}`
  }
  const ratio = ratioOf(row, name)
  return ratio === undefined
    ? text + mark
    : `${text} **${ratio < 10 ? ratio.toFixed(2) : Math.round(ratio)}x**${mark}`
}

function number(value, unit) {
  if (unit === 'ms' && value < 1) return value.toFixed(3)
  if (value === 0 || Math.abs(value) >= 100) return Math.round(value).toString()
  return Math.abs(value) >= 10 ? value.toFixed(1) : value.toFixed(2)
}

function budgetText(row) {
  if (!row.budget) return ''
  const { ratio, max } = row.budget
  const limit = ratio === undefined ? `≤ ${max} ${row.unit}`.trim() : `≤ ${ratio}x`
  const seen = verdict(row)
  return seen ? `${limit} ${seen.isOver ? '✗' : '✓'}` : limit
}

function versionOf(name) {
  const pkg = {
    limit: ['undici', rootDir],
    ai: ['ai', benchDir],
    'openai-agents': ['@openai/agents', benchDir],
    strands: ['@strands-agents/sdk', benchDir],
    langgraph: ['@langchain/langgraph', benchDir],
    pi: ['@earendil-works/pi-agent-core', benchDir],
  }[name]
  if (!pkg) return undefined
  const file = join(pkg[1], 'node_modules', pkg[0], 'package.json')
  return `${pkg[0]} ${JSON.parse(readFileSync(file, 'utf8')).version}`
}

function fail(text) {
  say(text)
  process.exit(2)
}
