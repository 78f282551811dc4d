// An audit trail: a listener that writes one line of NDJSON an event, each with the digest of the line before, so that a
// missing, changed or reordered line shows. Holds digests of inputs and outputs, never the values.
// Does not cover: a whole file replaced, or its end cut off, by someone who can write it; keep the last hash elsewhere.

import type { Listener, RunFact } from './agent.ts'

const appendFile = () => process.getBuiltinModule('node:fs').promises.appendFile
const readFile = () => process.getBuiltinModule('node:fs').promises.readFile

export type AuditLine = {
  seq: number
  time: string
  type: string
  runId: string
  prev: string
  hash: string
  [key: string]: unknown
}
export interface Audit {
  /** Hand it over as `onEvent`. */
  listener: Listener
  /** Resolves when everything said so far is on disk; rejects with the first failure to write. */
  flush(): Promise<void>
}

const first = '0'.repeat(64)
const kept = [
  'agent',
  'path',
  'threadId',
  'user_id',
  'session_id',
  'request_id',
  'callId',
  'name',
  'approvedBy',
  'rejectedBy',
  'grant',
  'grantedBy',
  'votes',
  'reason',
  'outcome',
  'stop',
  'durationMs',
  'late',
  'model',
  'provider',
]

/** Appends to `file`, going on from its last line. One process a file: two writers would break the chain. */
export async function audit(file: string): Promise<Audit> {
  const before = await textOf(file)
  const last = lines(before).at(-1)
  let gap = before && !before.endsWith('\n') ? '\n' : '' // a crash cut the last line: it stays, by itself
  let prev = last?.hash ?? first
  let seq = last?.seq ?? 0
  let writing = Promise.resolve()
  let failure: unknown
  return {
    listener(event) {
      const facts = line(event, ++seq, prev)
      prev = facts.hash
      writing = writing
        .then(() => appendFile()(file, `${gap}${JSON.stringify(facts)}\n`))
        .then(() => {
          gap = ''
        })
        .catch((error) => {
          failure ??= error
        })
    },
    async flush() {
      await writing
      if (failure) throw failure
    },
  }
}

function line(event: RunFact, seq: number, prev: string): AuditLine {
  const facts: Record<string, unknown> = {
    seq,
    time: event.timestamp,
    type: event.type,
    runId: event.runId,
  }
  for (const key of kept) if (event[key] !== undefined) facts[key] = event[key]
  for (const key of ['input', 'output', 'error'] as const)
    if (event[key] !== undefined) facts[`${key}Sha256`] = sha256(text(event[key]))
  if (Array.isArray(event.calls))
    facts.calls = event.calls.map(({ id, name, input, path }) => ({
      callId: String(id).split('.', 1)[0],
      name,
      inputSha256: sha256(text(input)),
      ...(path && { path }),
    }))
  const chained = { ...facts, prev }
  return { ...chained, hash: sha256(JSON.stringify(chained)) } as AuditLine
}

export type AuditProblem = { line: number; problem: string }

/** What is wrong with a trail, by line; an empty list where the chain holds. */
export async function verifyAudit(file: string): Promise<AuditProblem[]> {
  const problems: AuditProblem[] = []
  let prev = first
  let seq = 0
  const texts = (await readFile()(file, 'utf8')).split('\n')
  if (texts.pop() !== '')
    problems.push({ line: texts.length + 1, problem: 'the last line is not finished' })
  for (const [index, raw] of texts.entries()) {
    const said = parse(raw)
    if (!said) {
      problems.push({ line: index + 1, problem: 'is not JSON' })
      continue
    }
    const { hash, ...chained } = said
    if (sha256(JSON.stringify(chained)) !== hash)
      problems.push({ line: index + 1, problem: 'was changed' })
    else if (said.seq !== seq + 1 || said.prev !== prev)
      problems.push({
        line: index + 1,
        problem: `does not follow line ${index}: something is missing or moved`,
      })
    prev = hash
    seq = said.seq
  }
  return problems
}

/** The trail as it stands, without judging it. A file that is not there is an empty trail. */
export async function linesOf(file: string): Promise<AuditLine[]> {
  return lines(await textOf(file))
}

function lines(text: string): AuditLine[] {
  return text.split('\n').flatMap((raw) => parse(raw) ?? [])
}
function textOf(file: string): Promise<string> {
  return readFile()(file, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return ''
    throw error
  })
}

function parse(raw: string): AuditLine | undefined {
  try {
    return JSON.parse(raw)
  } catch {
    return undefined
  }
}
function text(value: unknown): string {
  return typeof value === 'string' ? value : (JSON.stringify(value) ?? '')
}
function sha256(value: string): string {
  return process.getBuiltinModule('node:crypto').createHash('sha256').update(value).digest('hex')
}
