// One of many processes that share a store: started by tests with fork(), told what to do in its arguments.
// `node worker.ts FILE claim KEYS` takes as many keys as it can and sends their names; `count TIMES` counts up; `die` takes
// one key and kills itself.

import { sqliteStore } from '../../src/stores/sqlite.ts'
import { count } from './table.ts'

const [file = '', task = '', amount = ''] = process.argv.slice(2)
const store = sqliteStore(file, { timeoutMs: 20_000 })
process.once('message', async () => {
  const won: string[] = []
  if (task === 'claim')
    for (let n = 0; n < Number(amount); n++)
      if (await store.swap(`key ${n}`, undefined, String(process.pid), 600_000))
        won.push(`key ${n}`)
  if (task === 'count') await count(store, 'counter', Number(amount))
  if (task === 'die' && (await store.swap('claimed', undefined, 'x')))
    process.kill(process.pid, 'SIGKILL')
  store.close()
  process.send?.(won, () => process.disconnect())
})
process.send?.('ready') // all begin together, once the last one is there
