// Bedrock through a client of the caller's, with the SDK's own network and reader of streams: the same table, since
// clocks, retries and errors must not depend on who made the client.

import { bedrock } from '../../src/providers/bedrock.ts'
import { bedrockWire, clientOf, model } from './bedrock-wire.ts'
import { conformance } from './table.ts'

conformance({
  ...bedrockWire,
  make({ url, key, timeouts, retries, clock }) {
    const identity = { accessKeyId: 'TESTKEYID', secretAccessKey: 'test-secret', sessionToken: key }
    const client = clientOf(url, { credentials: identity })
    return bedrock({ model, client, ...given({ timeouts, retries, clock }) })
  },
})

function given<T extends object>(options: T): T {
  const set = Object.entries(options).filter(([, value]) => value !== undefined)
  return Object.fromEntries(set) as T
}
