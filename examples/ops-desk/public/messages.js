// What was said and done, as elements: one view for what the person sent, one for an answer that may still be growing.

import { h, pairsTable, valueView } from './dom.js'
import { markdown } from './markdown.js'

/** The person's words, and what they decided: a change of a tool that is not `editable` has approved nothing yet. */
export function userView({ content, data }, tools) {
  const decisions = data.approvals ?? []
  return h(
    'article',
    { class: 'turn user' },
    h('h2', { class: 'unseen' }, 'You'),
    content ? h('p', { class: 'said' }, content) : null,
    decisions.length > 0
      ? h(
          'ul',
          { class: 'decisions' },
          decisions.map((decision) => decisionView(decision, tools)),
        )
      : null,
  )
}

function decisionView(
  { name, input, execute, rejection_reason: reason, edited_input: edited },
  tools,
) {
  const [kind, word] = !execute
    ? ['no', 'Rejected']
    : edited
      ? ['yes', tools.get(name)?.editable ? 'Approved with changes' : 'Changed']
      : ['yes', 'Approved']
  return h(
    'li',
    { class: kind },
    `${word}: `,
    h('code', {}, title({ name, input: edited ?? input })),
    reason && reason !== 'not approved' ? ` – ${reason}` : null,
  )
}

/** "restart_process web-1": the name, and as much of the input as says what it is about. */
export function title({ name, input }) {
  const first = Object.values(input ?? {}).find((value) => typeof value === 'string') ?? ''
  return `${name} ${first.length > 40 ? `${first.slice(0, 39)}…` : first}`.trim()
}

/**
 * An answer. `around` runs each change of the page. `update(message)` shows what it has become, `say(status)` what the agent is doing right now, `end()` that
 * nothing more will come.
 */
export function answerView(agent, around) {
  const acts = h('div', { class: 'acts' })
  const text = h('div', { class: 'prose' })
  const doing = h(
    'p',
    { class: 'doing' },
    h('span', { class: 'dots', 'aria-hidden': 'true' }),
    h('span', {}, 'Waiting for the answer'),
  )
  const foot = h('p', { class: 'foot' })
  const element = h(
    'article',
    { class: 'turn agent', 'aria-busy': 'true' },
    h('h2', { class: 'unseen' }, agent),
    acts,
    text,
    doing,
    foot,
  )
  let shown = { calls: 0, content: '' }
  let frame = 0

  function draw({ content, data, meta_data: facts }) {
    const calls = [
      ...(data.executed_cmds ?? []).map(asCall),
      ...(data.executed_approvals ?? []),
      ...(data.executed_tool_calls ?? []),
    ]
    // Appended, not drawn again: what a reader has unfolded stays unfolded.
    acts.append(...calls.slice(shown.calls).map(callView))
    if (content !== shown.content) text.replaceChildren(markdown(content))
    shown = { calls: calls.length, content }
    foot.textContent = cost(facts)
  }
  return {
    element,
    update(message) {
      cancelAnimationFrame(frame) // many deltas, one drawing
      frame = requestAnimationFrame(() => around(() => draw(message)))
    },
    say(status) {
      doing.lastChild.textContent = status
    },
    end(message) {
      cancelAnimationFrame(frame)
      if (message) draw(message)
      doing.remove()
      element.removeAttribute('aria-busy')
    },
  }
}

function asCall({ command, output }) {
  return { name: 'command', input: { command }, output }
}

/** One call, folded: what it was and how it ended; inside, what went in and what came out. */
function callView({ name, input, output }) {
  const [kind, word] = outcome(output)
  const pairs = Object.entries(input ?? {})
  return h(
    'details',
    { class: `call ${kind}` },
    h('summary', {}, h('code', {}, title({ name, input })), h('span', { class: 'outcome' }, word)),
    h(
      'div',
      { class: 'inside' },
      h('h3', {}, 'Input'),
      pairs.length > 0 ? pairsTable(pairs) : h('p', { class: 'muted' }, 'No input.'),
      h('h3', {}, 'Output'),
      valueView(output),
    ),
  )
}

/** The wire says in words how a call ended. */
function outcome(output) {
  if (/^(Tool rejected|Rejected|Denied by policy)\b/.test(output)) return ['no', 'rejected']
  if (/^(Not executed|Already running)\b/.test(output)) return ['no', 'not run']
  if (/^Outcome unknown\b/.test(output)) return ['bad', 'outcome unknown']
  if (/^(Error executing|Invalid input|Unknown tool)\b/.test(output)) return ['bad', 'failed']
  return ['ok', 'done']
}

function cost({ duration_ms: ms, usage, stop_reason: stop } = {}) {
  const parts = []
  if (ms !== undefined) parts.push(ms < 1_000 ? `${ms} ms` : `${(ms / 1000).toFixed(1)} s`)
  if (usage?.input_tokens || usage?.output_tokens) {
    const cached =
      usage.cache_read_tokens > 0 ? ` (${count(usage.cache_read_tokens)} from cache)` : ''
    parts.push(
      `${count(usage.input_tokens)} tokens in${cached}`,
      `${count(usage.output_tokens)} out`,
    )
  }
  if (['limit', 'length', 'content_filter'].includes(stop)) parts.push(stops[stop])
  return parts.join(' · ')
}

const stops = {
  limit: 'stopped at a limit of the run',
  length: 'cut off: the answer was too long',
  content_filter: 'cut off by the content filter',
}

function count(tokens) {
  return tokens.toLocaleString('en')
}
