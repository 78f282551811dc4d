// `npm run bench:budgets`: this project within its budgets beside the limit, three repetitions each. Takes some minutes;
// not part of the normal tests. BENCH_ONLY=run,http measures only these groups.

import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { Bench, verdict } from './lib/engine.mjs'
import { figures } from './lib/figures.mjs'

const only = process.env.BENCH_ONLY?.split(',')
const bench = new Bench({ names: ['limit', 'ours'], repetitions: 3 })
const measured = new Map()

before(() => bench.start())
after(() => bench.stop())

for (const entry of figures({ quick: false })) {
  if (only && !only.includes(entry.group)) continue
  for (const { title, budget } of entry.rows) {
    if (!budget) continue
    const bound =
      budget.ratio === undefined ? `at most ${budget.max}` : `at most ${budget.ratio}x the limit`
    test(`${title}: ${bound}`, async (t) => {
      if (!measured.has(entry)) measured.set(entry, bench.measure(entry))
      const rows = await measured.get(entry)
      const seen = verdict(rows.find((row) => row.title === title))
      assert.ok(seen, 'nothing was measured')
      const text = `${Number(seen.value.toPrecision(3))} ${seen.unit}`
      t.diagnostic(text)
      assert.ok(!seen.isOver, `${text}, allowed are ${seen.allowed}`)
    })
  }
}
