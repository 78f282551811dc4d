// Reports whether node:sqlite was loaded by importing the SQLite store, and by using it. Run with fork().

import { sqliteStore } from '../../src/stores/sqlite.ts'

const { moduleLoadList } = process as unknown as { moduleLoadList: string[] }
const isLoaded = () => moduleLoadList.includes('NativeModule sqlite')

const before = isLoaded()
await sqliteStore(process.execPath)
  .get('k')
  .catch(() => {}) // no database, and never written to
process.send?.({ before, after: isLoaded() })
