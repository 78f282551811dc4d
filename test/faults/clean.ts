// What must hold of every fault file, whatever it does: nothing rejected unseen, no listener leaked, no secret anywhere,
// and no socket or server left. `keepClean()` once at the top of the file; what is captured goes through `see`.

import assert from 'node:assert/strict'
import { after, before } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { getGlobalDispatcher } from 'undici'

/** No two runs have the same ones, and nothing else reads like them. */
const mark = `canary${Math.random().toString(36).slice(2, 10)}`
const canary = (name: string) => `${mark}-${name}`
const config = (token: string) =>
  `apiVersion: v1\nclusters:\n- cluster:\n    server: https://c.example\n    certificate-authority-data: ${canary('ca')}\n` +
  `current-context: c\nusers:\n- user:\n    token: ${token}\n    client-key-data: ${canary('key')}\n    password: ${canary('password')}\n`

/** A platform context with a secret in every place that may hold one; `tenant_name` and the ids are none. */
export const context = {
  tenant_name: 'acme',
  k8s_namespace: 'web',
  user_id: 'ann',
  duplo_base_url: 'https://duplo.example',
  aws_region: 'eu-central-1',
  duplo_token: canary('duplo'),
  kubeconfig: Buffer.from(config(canary('kube'))).toString('base64'),
  aws_credentials: {
    access_key: canary('access'),
    secret_key: canary('secret'),
    session_token: canary('session'),
  },
  scopes: [
    { name: 'a', Credential: { Data: { pw: canary('scope'), deep: { er: canary('deeper') } } } },
    { name: 'b', credentials: canary('credentials') },
  ],
}
export const canaries = [
  'ca',
  'key',
  'password',
  'kube',
  'duplo',
  'access',
  'secret',
  'session',
  'scope',
  'deeper',
  'credentials',
].map(canary)

/** The mark as it reads in base64, at each of the three places that a longer encoded text can have for it. */
const marks = [
  mark,
  ...[0, 1, 2].map((before) =>
    Buffer.concat([Buffer.alloc(before), Buffer.from(mark)])
      .toString('base64')
      .slice(Math.ceil((before * 4) / 3), Math.floor(((before + mark.length) * 4) / 3)),
  ),
]
const found: string[] = []

/** Everything that leaves: response bytes, log entries, events, what a model was asked, what a store keeps. */
export function see<T>(what: T): T {
  const text = typeof what === 'string' ? what : (JSON.stringify(what) ?? '')
  for (const one of marks) {
    const at = text.indexOf(one)
    if (at >= 0 && found.length < 5) found.push(text.slice(Math.max(0, at - 120), at + 60))
  }
  return what
}

export function keepClean(): void {
  const troubles: string[] = []
  const note = (kind: string) => (reason: unknown) => troubles.push(`${kind}: ${String(reason)}`)
  const onRejection = note('unhandledRejection')
  const onException = note('uncaughtException')
  const onWarning = (warning: Error) => {
    if (warning.name === 'MaxListenersExceededWarning') troubles.push(String(warning))
  }
  let baseline: Record<string, number> = {}
  before(() => {
    process.on('unhandledRejection', onRejection)
    process.on('uncaughtExceptionMonitor', onException)
    process.on('warning', onWarning)
    baseline = handles()
  })
  after(async () => {
    await getGlobalDispatcher().destroy()
    for (let tries = 0; tries < 100 && more(handles(), baseline).length > 0; tries++)
      await sleep(50)
    process.off('unhandledRejection', onRejection).off('warning', onWarning)
    process.off('uncaughtExceptionMonitor', onException)
    assert.deepEqual(troubles, [])
    assert.deepEqual(found, [], 'secrets were seen')
    assert.deepEqual(more(handles(), baseline), [], 'handles were left')
  })
}

/** Open handles by kind; timers are the test runner's too and not counted. */
export function handles(): Record<string, number> {
  const count: Record<string, number> = {}
  for (const kind of process.getActiveResourcesInfo())
    if (!/Timeout|Immediate/.test(kind)) count[kind] = (count[kind] ?? 0) + 1
  return count
}

function more(now: Record<string, number>, before: Record<string, number>): string[] {
  return Object.entries(now).flatMap(([kind, n]) =>
    n > (before[kind] ?? 0) ? [`${kind}: ${n - (before[kind] ?? 0)} more`] : [],
  )
}
