// The calls that wait for a person: what would happen, until when, and the ways to decide. One call is decided at once;
// of several each gets its decision, and they are sent together.

import { approve, edit, reject } from './client.js'
import { h, pairsTable } from './dom.js'
import { inputForm } from './form.js'

/**
 * @param {import('./client.js').Call[]} calls
 * @param {{ tools: Map<string, { input: object, editable: boolean }>, now: () => number,
 *   onDecide: (decisions: import('./client.js').Decision[]) => void }} desk
 */
export function cardsView(calls, desk) {
  const isOne = calls.length === 1
  const cards = calls.map((call) => cardView(call, desk, isOne, decided))
  const tally = h('p', { class: 'count' })
  const submit = h('button', { type: 'button', class: 'primary', onclick: send }, 'Send')
  const all = (choice) => () => {
    for (const card of cards) card.choose(choice)
  }
  const element = h(
    'section',
    { class: 'cards', 'aria-labelledby': 'cards-title', tabindex: '-1' },
    h(
      'h2',
      { id: 'cards-title' },
      isOne ? 'This waits for your approval' : `${calls.length} calls wait for your approval`,
    ),
    cards.map((card) => card.element),
    isOne
      ? null
      : h(
          'div',
          { class: 'tally' },
          tally,
          h('button', { type: 'button', onclick: all('approve') }, 'Approve all'),
          h('button', { type: 'button', onclick: all('reject') }, 'Reject all'),
          submit,
        ),
  )

  /** A card has a decision, or has lost it. */
  function decided() {
    if (isOne) return send()
    const count = cards.filter((card) => card.decision() !== undefined).length
    const rest = count < cards.length ? ' The others go on waiting.' : ''
    tally.textContent =
      count === 0 ? 'None decided yet.' : `${count} of ${cards.length} decided.${rest}`
    const [verb, what] = count > 1 ? [`Send ${count}`, ' decisions'] : ['Send', ' decision']
    submit.setAttribute('aria-label', verb + what)
    submit.replaceChildren(verb, h('span', { class: 'roomy' }, what))
    submit.disabled = count === 0
  }
  function send() {
    const decisions = cards
      .map((card) => card.decision())
      .filter((decision) => decision !== undefined)
    if (decisions.length > 0) desk.onDecide(decisions)
  }
  /** Called every second. */
  function tick() {
    for (const card of cards) card.tick()
  }
  tick()
  if (!isOne) decided()
  return { element, tick }
}

let count = 0

function cardView(call, { tools, now }, isOne, decided) {
  const id = `call-${++count}`
  const tool = tools.get(call.name)
  let decision
  let kind
  let isExpired = false
  const expiry = h('p', { class: 'expiry', role: 'timer' })
  const says = h('p', { class: 'choice' })
  const buttons = {
    approve: h(
      'button',
      { type: 'button', class: 'primary', onclick: () => press('approve') },
      'Approve',
    ),
    reject: h('button', { type: 'button', onclick: () => press('reject') }, 'Reject'),
    edit: h('button', { type: 'button', onclick: () => press('edit') }, 'Edit'),
  }
  const actions = h('div', { class: 'actions' }, Object.values(buttons), says)
  const more = h('div', { class: 'more' })
  const element = h(
    'article',
    { class: 'card', 'aria-labelledby': `${id}-name` },
    h('header', {}, h('h3', { id: `${id}-name` }, h('code', {}, call.name)), expiry),
    call.path?.length ? h('p', { class: 'note' }, `Asked by ${call.path.join(' › ')}`) : null,
    h('p', {}, call.description),
    inputTable(call),
    call.preview
      ? h(
          'div',
          { class: 'preview' },
          h('h4', {}, 'What would happen'),
          h('p', { class: 'said' }, call.preview),
        )
      : null,
    call.reasons?.length
      ? h(
          'div',
          { class: 'reasons' },
          h('h4', {}, 'Why it asks'),
          h(
            'ul',
            {},
            call.reasons.map((reason) => h('li', {}, reason)),
          ),
        )
      : null,
    call.votes ? h('p', { class: 'note' }, `${call.votes} approved so far; it takes more.`) : null,
    more,
    actions,
  )

  /** In a card among several the pressed button can be pressed again: then it is undecided. */
  function press(choice) {
    if (!isOne && kind === choice) undecide()
    else choose(choice)
  }

  function choose(choice) {
    if (choice !== 'reject' && isExpired) return
    more.replaceChildren()
    actions.hidden = false
    if (choice === 'approve') decide('approve', approve(call), 'Will be approved')
    else if (choice === 'reject') rejecting()
    else editing()
  }

  function decide(nextKind, next, words) {
    kind = nextKind
    decision = next
    if (!isOne) {
      for (const [name, button] of Object.entries(buttons))
        button.setAttribute('aria-pressed', String(name === kind))
      says.textContent = words
    }
    decided()
  }

  function undecide() {
    more.replaceChildren()
    actions.hidden = false
    if (isOne) decision = undefined
    else decide(undefined, undefined, '')
  }

  function rejecting() {
    const byClick = document.activeElement === buttons.reject
    const keep = () => decide('reject', reject(call, reason.value), 'Will be rejected')
    const reason = h('input', {
      id: `${id}-why`,
      type: 'text',
      autocomplete: 'off',
      oninput: isOne ? null : keep,
    })
    more.append(
      h(
        'form',
        { class: 'sub', onsubmit: submitted(keep) },
        h(
          'div',
          { class: 'row' },
          h('label', { for: reason.id }, 'Reason ', h('span', { class: 'note' }, 'optional')),
          reason,
          h('p', { class: 'note' }, 'The agent is told.'),
        ),
        isOne
          ? h(
              'div',
              { class: 'actions' },
              h('button', { type: 'submit', class: 'danger' }, 'Reject it'),
              cancel(buttons.reject),
            )
          : null,
      ),
    )
    if (!isOne) keep()
    actions.hidden = isOne
    // Only a click on this card moves the focus; "Reject all" leaves it where it is.
    if (!byClick) return
    reason.focus()
    more.scrollIntoView({ block: 'nearest' })
  }

  function editing() {
    const form = inputForm(tool?.input, call.effective_input ?? call.input)
    const once = tool?.editable
    const submit = isOne ? (once ? 'Approve as changed' : 'Send the change') : 'Keep the change'
    const keep = () => {
      const input = form.read()
      if (input === undefined) return
      more.replaceChildren(h('h4', {}, 'Changed to'), pairsTable(Object.entries(input)))
      actions.hidden = false
      decide('edit', edit(call, input), 'Will be sent as changed')
    }
    if (kind !== undefined) decide(undefined, undefined, '')
    more.append(
      h(
        'form',
        { class: 'sub', novalidate: true, onsubmit: submitted(keep) },
        form.elements,
        h(
          'p',
          { class: 'note' },
          once
            ? 'It runs as you changed it.'
            : 'The changed call is checked and comes back for your approval.',
        ),
        h(
          'div',
          { class: 'actions' },
          h('button', { type: 'submit', class: 'primary' }, submit),
          cancel(buttons.edit),
        ),
      ),
    )
    actions.hidden = true
    more.querySelector('input, select, textarea')?.focus()
    more.scrollIntoView({ block: 'nearest' })
  }

  function submitted(act) {
    return (event) => {
      event.preventDefault()
      act()
    }
  }

  /** Escape does the same. */
  function cancel(backTo) {
    const onclick = () => {
      undecide()
      backTo.focus()
    }
    // In braces: a listener set as a property that returns false prevents every key.
    more.onkeydown = ({ key }) => {
      if (key === 'Escape') onclick()
    }
    return h('button', { type: 'button', onclick }, 'Cancel')
  }

  // A click that was meant for what stood here a moment ago approves nothing.
  buttons.approve.disabled = true
  setTimeout(() => {
    buttons.approve.disabled = isExpired
  }, 300)

  function tick() {
    if (!call.expires_at || isExpired) return
    const left = Date.parse(call.expires_at) - now()
    isExpired = left <= 0
    expiry.textContent = isExpired ? 'Expired. Ask again.' : `Expires in ${duration(left)}`
    if (!isExpired) return
    for (const button of [buttons.approve, buttons.edit]) button.disabled = true
    if (decision?.execute) undecide()
  }
  return { element, choose, tick, decision: () => decision }
}

/** What will run: the input with defaults filled in, each of them marked. */
function inputTable({ input, effective_input: effective = input }) {
  // In the order that the model gave, then what was filled in.
  const pairs = Object.entries({ ...input, ...effective })
  if (pairs.length === 0) return h('p', { class: 'muted' }, 'No input.')
  return pairsTable(
    pairs.map(([name, value]) => {
      const isGiven = JSON.stringify(value) === JSON.stringify(input?.[name])
      return [name, value, isGiven ? undefined : 'filled in']
    }),
  )
}

function duration(ms) {
  const seconds = Math.floor(ms / 1000)
  if (seconds > 3600)
    return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, '0')}`
}
