// How often a fault is tried, and the table of what came of it. `DCAF_FAULTS=1` tries the full counts, a fraction that part
// of them; without it each case is tried as often as a normal test run can wait for.

import { appendFileSync } from 'node:fs'
import type { TestContext } from 'node:test'
import fc from 'fast-check'

const scale = Number(process.env.DCAF_FAULTS ?? 0)

/** Long runs were asked for. */
export const isFull = scale > 0

export function times(few: number, all: number): number {
  return isFull ? Math.max(few, Math.round(all * scale)) : few
}

/** One row; `scripts/test.mjs --faults` prints them together, a normal run beside its test. */
export function row(t: TestContext, name: string, tried: number, failed: number, more = ''): void {
  const file = process.env.DCAF_FAULTS_TABLE
  if (file) appendFileSync(file, `${JSON.stringify({ name, tried, failed, more })}\n`)
  t.diagnostic(`${name}: ${tried} tried, ${failed} failed${more && `, ${more}`}`)
}

/** Tries `work` so many times, some at once; then throws the first failure, if there was one. */
export async function tried(
  t: TestContext,
  name: string,
  count: number,
  work: (index: number) => unknown,
  { atOnce = 1, more = () => '' }: { atOnce?: number; more?: () => string } = {},
): Promise<void> {
  const failures: unknown[] = []
  let next = 0
  const worker = async () => {
    while (next < count) {
      try {
        await work(next++)
      } catch (error) {
        failures.push(error)
      }
    }
  }
  await Promise.all(Array.from({ length: Math.min(atOnce, count) }, worker))
  row(t, name, count, failures.length, more())
  if (failures.length > 0) throw failures[0]
}

/** A property of fast-check, with its smallest counterexample where it fails. */
export async function holds<T>(
  t: TestContext,
  name: string,
  count: number,
  property: fc.IAsyncProperty<T> | fc.IProperty<T>,
  more = () => '',
): Promise<void> {
  const result = await fc.check(property as fc.IAsyncProperty<T>, {
    numRuns: count,
    ...(process.env.DCAF_SEED && { seed: Number(process.env.DCAF_SEED) }),
  })
  row(t, name, result.numRuns, result.failed ? 1 : 0, more())
  if (result.failed)
    throw new Error(fc.defaultReportMessage(result), { cause: result.errorInstance })
}

/** The value below which `share` of them are. */
export function quantile(values: number[], share: number): number {
  return [...values].sort((a, b) => a - b)[Math.floor((values.length - 1) * share)] ?? 0
}
