// What a run is about: the words that mock, runners and checks share. A scenario is written `k10` (ten tool calls, one
// after another), `p4` (four at once), `t2000` (2,000 tokens at once), `d50n100` (100 tokens, one every 50 ms).

export const model = 'bench-1'
export const system =
  'You look things up. Call lookup as often as you need, then answer in one sentence.'
export const prompt = 'Look everything up, one after another, and tell me when you are done.'

export const lookup = {
  name: 'lookup',
  description: 'Look up one item by its number and its key',
  schema: {
    type: 'object',
    properties: {
      n: { type: 'integer', description: 'Number of the item' },
      key: { type: 'string', description: 'Key of the item' },
    },
    required: ['n', 'key'],
  },
}

/** The input of call `n`, as the model writes it. */
export function inputOf(n) {
  return { n, key: mix(n + 1) }
}

/** What the tool answers: 160 characters, of which the first 23 depend on both fields of the input. */
export function lookUp({ n, key }) {
  const proof = mix(Number.parseInt(key, 16) ^ 0x5bd1e995)
  return `RESULT-${String(n).padStart(3, '0')}-${proof}-${filler.slice(0, 140)}`.slice(0, 160)
}
const filler = 'pod web-7d4b9c ready 1/1 restarts 0 age 4d node ip-10-0-3-17; '.repeat(4)

function mix(n) {
  const hash = Math.imul(n ^ (n >>> 15), 0x2c1b3c6d) >>> 0
  return hash.toString(16).padStart(8, '0')
}

/** `calls` in a row, each turn with `atOnce` of them, then `tokens` tokens, one every `everyMs` (0: all at once). */
export function parse(name) {
  const [, k] = /^k(\d+)$/.exec(name) ?? []
  if (k) return { calls: Number(k), atOnce: 1, tokens: 12, everyMs: 0 }
  const [, p] = /^p(\d+)$/.exec(name) ?? []
  if (p) return { calls: Number(p), atOnce: Number(p), tokens: 12, everyMs: 0 }
  const [, t] = /^t(\d+)$/.exec(name) ?? []
  if (t) return { calls: 0, atOnce: 1, tokens: Number(t), everyMs: 0 }
  const [, d, n] = /^d(\d+)n(\d+)$/.exec(name) ?? []
  if (d) return { calls: 0, atOnce: 1, tokens: Number(n), everyMs: Number(d) }
  throw new Error(`no scenario ${name}`)
}

/** The answer's tokens; about five characters each, as real ones. */
export function tokensOf(count) {
  return Array.from({ length: count }, (_, i) => ` w${(i + 1000).toString(36)}`)
}

export function answerOf(name) {
  return tokensOf(parse(name).tokens).join('')
}
