// Reports whether node:sqlite was loaded by importing the SQLite store, and by using it. Run with fork().

import { sqliteStore } from '../../src/stores/sqlite.ts'

const { moduleLoadList } = process as unknown as { moduleLoadList: string[] }
const isLoaded = () => moduleLoadList.includes('NativeModule sqlite')

const before = isLoaded()
const store = sqliteStore(process.argv[2] ?? '')
await store.get('k')
store.close()
process.send?.({ before, after: isLoaded() })
