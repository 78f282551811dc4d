// What the gate loads when a call first needs it: where a file does not load, that call does not run, and the next one
// tries again. A process of its own, so that nothing is loaded yet.

import assert from 'node:assert/strict'
import { registerHooks } from 'node:module'
import { test } from 'node:test'
import { approve, approveAll, edit, type RunOptions, run } from '../src/index.ts'
import { scripted } from '../src/providers/scripted.ts'
import { desk, idOf, type Json } from './desk.ts'

let missing = ''
registerHooks({
  resolve(specifier, context, next) {
    if (missing && specifier === `./${missing}.ts`) throw new Error('EMFILE: too many open files')
    return next(specifier, context)
  },
})

type Desk = ReturnType<typeof desk>
const ann: RunOptions = { principal: 'ann' }
const bob: RunOptions = { principal: 'bob' }
const approved = async (it: Desk, by: RunOptions = ann) => {
  const first = await it.propose(ann)
  return first.error ? first : it.decide(first, approveAll(first), by)
}
const edited = async (it: Desk) => {
  const first = await it.propose(ann)
  return it.decide(first, [edit(idOf(first), { table: 'b' })], ann)
}
const trusted = (it: Desk) => {
  const decisions = [{ ...approve('mine'), name: 'drop', input: { table: 'a' } }]
  const options: RunOptions = { ...it.options, trustClient: 'unsafe' }
  return run(it.agent, { messages: 'x', decisions }, options)
}
const cases: [file: string, claim: string, more: Json, act: typeof trusted, runs: number][] = [
  ['hearing', 'a decision is heard', {}, approved, 1],
  ['ending', 'a call that waits is shown', {}, approved, 1],
  ['strays', 'a decision on a call that no state holds is heard', {}, trusted, 1],
  ['opinions', 'a policy is asked', { requiresApproval: () => false }, (it) => it.propose(), 1],
  ['opinions', 'a preview is made', { preview: () => 'x' }, approved, 1],
  ['ledger', 'an approval is recorded', {}, approved, 1],
  ['approvers', 'who asked is kept', { approver: 'other' }, (it) => approved(it, bob), 1],
  ['fresh', 'an edit is shown', {}, edited, 0],
  ['trust', 'a client is trusted', {}, trusted, 1],
]

for (const [file, more] of [
  ['interceptors', { requestInterceptors: () => {} }],
  ['facts', { onEvent: () => {} }],
] as const)
  test(`a run that needs ${file}.ts asks no model where it does not load, and says so`, async () => {
    let asked = 0
    const answer = () => {
      asked++
      return 'ok'
    }
    const agent = { name: 'ops', provider: scripted(answer), ...more }
    missing = file
    const without = await run(agent, { messages: 'x' })
    missing = ''
    assert.deepEqual([without.stop, without.error?.code, asked], ['error', 'internal_error', 0])
    assert.equal((await run(agent, { messages: 'x' })).text, 'ok')
  })

for (const [file, claim, more, act] of cases)
  test(`${claim} only where ${file}.ts loads: without it nothing runs`, async () => {
    missing = file
    const it = desk(more)
    const result = await act(it)
    missing = ''
    assert.deepEqual([it.ran, result.error?.code], [[], 'internal_error'])
  })

for (const [file, claim, more, act, runs] of cases)
  test(`${claim} again when ${file}.ts loads again`, async () => {
    const it = desk(more)
    const result = await act(it)
    assert.deepEqual([it.ran.length, result.error], [runs, undefined])
  })
