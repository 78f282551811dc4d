// The page: it holds one Thread, shows it, keeps it in this browser, and turns clicks into messages and decisions.

import { cardsView } from './cards.js'
import { Thread } from './client.js'
import { h, valueView } from './dom.js'
import { plain } from './markdown.js'
import { answerView, userView } from './messages.js'

const key = 'ops-desk.thread'
const before = 'ops-desk.before' // the conversation before this one
const byId = (id) => document.getElementById(id)
const [threadBox, trouble, composer, say, hint] = [
  'thread',
  'trouble',
  'composer',
  'say',
  'hint',
].map(byId)

let thread = new Thread(stored(key))
let tools = new Map()
let about = { name: 'The agent' }
let running = null // { abort, view } of the turn under way
let cards = null
let clearSession = false

const suggestions = [
  'list processes',
  'show the log of web-1',
  'restart web-1 and web-2',
  'disk usage',
]

// ---- turns

/** Shows what `start` sets going: a `send`, `decide` or `retry` of the thread. */
async function turn(start) {
  if (running) return
  const abort = new AbortController()
  const view = answerView(about.name, stick)
  running = { abort, view }
  let failure
  try {
    const answer = start({
      signal: abort.signal,
      onEvent(event, message) {
        if (event.type === 'intermittent_update') view.say(event.text)
        else view.update(message)
      },
    })
    keep() // with the message, before the answer: a page that is left now can ask again
    const decidedHere = document.activeElement?.closest('.cards, .trouble')
    show()
    // What had the focus is gone. A phone would answer the focus of a text field with its keyboard.
    if (decidedHere) (matchMedia('(pointer: fine)').matches ? say : byId('main')).focus()
    scrollTo(0, document.documentElement.scrollHeight)
    const message = await answer
    elements.set(message, view.element)
    view.end(message)
  } catch (error) {
    failure = error
    if (thread.partial) elements.set(thread.partial, view.element)
    view.end(thread.partial)
  }
  if (running?.view !== view) return // another conversation was begun meanwhile
  running = null
  keep()
  show(failure)
  if (!failure) announce(spoken())
}

function send(text) {
  const session = clearSession ? {} : undefined
  clearSession = false
  turn((options) => thread.send(text, { session, ...options }))
}

// ---- showing

/** Of each message, so that what is on the page stays as its reader left it. */
const elements = new WeakMap()

function elementOf(message) {
  let element = elements.get(message)
  if (!element && message.role === 'user') element = userView(message, tools)
  if (!element) {
    const view = answerView(about.name, stick)
    view.end(message)
    element = view.element
  }
  elements.set(message, element)
  return element
}

/** Brings the page in line with the thread. */
function show(failure) {
  stick(() => {
    cards = cardsNow()
    const said = [...thread.messages, thread.partial].filter((message) => message)
    arrange(threadBox, [
      ...said.map(elementOf),
      ...(running ? [running.view.element] : []),
      ...(cards ? [cards.element] : []),
      ...(said.length === 0 ? [welcome()] : []),
    ])
    showTrouble(failure)
    showDock()
  })
  // Cards that do not fit are read from their top.
  if (cards && cards.element.offsetHeight > innerHeight - 260) toCards({ focus: false })
}

/** Moves nothing that is in its place: a move would take focus and scroll positions away. */
function arrange(box, wanted) {
  for (const child of [...box.children]) if (!wanted.includes(child)) child.remove()
  for (const [index, element] of wanted.entries())
    if (box.children[index] !== element) box.insertBefore(element, box.children[index] ?? null)
}

/** Makes a change, and stays at the end of the page if that is where the reader was. */
function stick(change) {
  const end = document.documentElement
  const isAtEnd = innerHeight + scrollY >= end.scrollHeight - 80
  change()
  if (isAtEnd) scrollTo(0, end.scrollHeight)
}

function cardsNow() {
  const waiting = running || thread.unanswered ? [] : thread.pending
  document.title = waiting.length > 0 ? `(${waiting.length}) Ops desk` : 'Ops desk'
  if (waiting.length === 0) return null
  return cardsView(waiting, {
    tools,
    now: () => Date.now() + thread.clockSkewMs,
    onDecide: (decisions) => turn((options) => thread.decide(decisions, options)),
  })
}

function showTrouble(error) {
  if (running || !thread.unanswered) return trouble.replaceChildren()
  const decided = thread.messages.at(-1).data.approvals?.length > 0
  const safe = decided
    ? 'Your decision may have arrived. Sending it again is safe: each call runs at most once, and you are told what happened.'
    : 'Sending it again is safe: no approved call runs twice.'
  const facts = [error?.code, error?.requestId].filter(Boolean).join(' · ')
  trouble.replaceChildren(
    h(
      'div',
      { class: 'trouble' },
      h('p', {}, sentence(error)),
      h('p', {}, safe),
      h(
        'div',
        { class: 'actions' },
        h(
          'button',
          {
            type: 'button',
            class: 'primary',
            onclick: () => turn((options) => thread.retry(options)),
          },
          'Try again',
        ),
        h(
          'button',
          { type: 'button', onclick: takeBack },
          decided ? 'Decide again' : 'Take it back',
        ),
        facts ? h('span', { class: 'note' }, facts) : null,
      ),
    ),
  )
}

function sentence(error) {
  if (!error) return 'This message has no answer yet: the page was left before it came.'
  if (error.code === 'aborted') return 'Stopped. An approved call that had begun runs to its end.'
  if (error.code === 'connection_lost' && !navigator.onLine)
    return 'You are offline. The answer did not come.'
  const wait =
    error.retryAfterMs > 0 ? ` Try again in ${Math.ceil(error.retryAfterMs / 1000)} s.` : ''
  return error.message + wait
}

function takeBack() {
  const { content } = thread.takeBack()
  if (content && say.value === '') say.value = content
  keep()
  show()
  if (content) say.focus()
  else toCards()
}

function showDock() {
  byId('send').hidden = running !== null
  byId('stop').hidden = running === null
  const count = cards ? thread.pending.length : 0
  hint.hidden = count === 0
  hint.replaceChildren(
    count === 1
      ? 'One call waits; a message rejects it. '
      : `${count} calls wait; a message rejects them. `,
    h('button', { type: 'button', class: 'link', onclick: () => toCards() }, 'Show'),
  )
  grow()
}

function toCards({ focus = true } = {}) {
  cards?.element.scrollIntoView({ block: 'start' })
  if (focus) cards?.element.focus({ preventScroll: true })
}

function welcome() {
  return h(
    'div',
    { class: 'welcome' },
    h('h2', {}, 'What should happen?'),
    h(
      'p',
      {},
      'The agent looks at the workers of this machine. Before it restarts or stops one, you decide.',
    ),
    h(
      'div',
      { class: 'chips' },
      suggestions.map((text) => h('button', { type: 'button', onclick: () => send(text) }, text)),
    ),
    stored(before)
      ? h(
          'p',
          {},
          h(
            'button',
            { type: 'button', class: 'link', onclick: bringBack },
            'Bring back the conversation before',
          ),
        )
      : null,
  )
}

/** For screen readers, once a turn and not for every word. */
function announce(text) {
  byId('status').textContent = text
}
function spoken() {
  const { content } = thread.messages.at(-1)
  const count = thread.pending.length
  const waits =
    count === 0
      ? ''
      : count === 1
        ? ' One call waits for your approval.'
        : ` ${count} calls wait for your approval.`
  return `${about.name} answered: ${plain(content).slice(0, 400)}${waits}`
}

// ---- the session inspector

function inspect() {
  const { session, wholeSession, messages } = thread
  const paused = typeof wholeSession.$run === 'string' ? wholeSession.$run.length : 0
  const used = messages.map(({ meta_data: facts }) => facts?.usage ?? {})
  const sum = (name) =>
    used.reduce((total, usage) => total + (usage[name] ?? 0), 0).toLocaleString('en')
  const isEmpty = Object.keys(session).length === 0
  byId('inspected').replaceChildren(
    h(
      'p',
      { class: 'muted' },
      'What the tools remember in this conversation. It travels with each message, there and back.',
    ),
    isEmpty || clearSession
      ? h('p', {}, clearSession ? 'Will be empty with your next message.' : 'Nothing yet.')
      : valueView(session),
    h('h3', {}, 'Conversation'),
    valueView({
      thread: thread.id,
      messages: messages.length,
      'tokens in': sum('input_tokens'),
      'tokens out': sum('output_tokens'),
      'paused run':
        paused > 0 ? `travels along, sealed (${(paused / 1024).toFixed(1)} KiB)` : 'none',
      'kept in this browser': isKept ? 'yes' : 'no: it is too large',
    }),
    h(
      'div',
      { class: 'actions' },
      h(
        'button',
        { type: 'button', onclick: forget, disabled: isEmpty || clearSession },
        'Clear the session',
      ),
      h('button', { type: 'button', onclick: copy }, 'Copy the conversation as JSON'),
    ),
  )
  if (!byId('inspector').open) byId('inspector').showModal()
}

function forget() {
  clearSession = true
  inspect()
}
async function copy({ target }) {
  try {
    await navigator.clipboard.writeText(JSON.stringify(thread, null, 2))
    target.textContent = 'Copied'
  } catch {
    target.textContent = 'The browser does not allow it' // or has no clipboard for pages without https
  }
}

// ---- kept in this browser

let isKept = true
function keep() {
  try {
    localStorage.setItem(key, JSON.stringify(thread))
    isKept = true
  } catch {
    isKept = false // full, or forbidden: the page works, and forgets
  }
}
function stored(name) {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? undefined
  } catch {
    return undefined
  }
}
/** Another tab went on with this conversation. */
addEventListener('storage', (event) => {
  if (event.key !== key || running) return
  thread = new Thread(stored(key))
  show()
})

function fresh() {
  running?.abort.abort()
  running = null
  try {
    if (thread.messages.length > 0) localStorage.setItem(before, JSON.stringify(thread))
  } catch {}
  clearSession = false
  change(new Thread())
}
function bringBack() {
  change(new Thread(stored(before)))
  localStorage.removeItem(before)
}
function change(to) {
  thread = to
  keep()
  show()
  say.focus()
}

// ---- the composer

function grow() {
  say.style.height = 'auto'
  say.style.height = `${Math.min(say.scrollHeight, 200)}px`
}
say.addEventListener('input', grow)
say.addEventListener('keydown', (event) => {
  // An Enter that ends the input of a composed character (Japanese, say) is no Enter.
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return
  event.preventDefault()
  composer.requestSubmit()
})
composer.addEventListener('submit', (event) => {
  event.preventDefault()
  const text = say.value.trim()
  if (running || text === '') return
  if (cards && looksLikeYes.test(text)) return wordsDoNotApprove()
  say.value = ''
  send(text)
})
/** Sent, it would reject what waits. */
const looksLikeYes =
  /^\W*(y|yes|yep|yeah|ok|okay|sure|approved?|confirm(ed)?|go ahead|do it|please do)\b.{0,20}$/i
function wordsDoNotApprove() {
  hint.firstChild.textContent = 'Words approve nothing, the buttons do. '
  announce(hint.firstChild.textContent)
  toCards()
}
byId('stop').addEventListener('click', () => running?.abort.abort())
byId('fresh').addEventListener('click', fresh)
byId('inspect').addEventListener('click', inspect)
byId('close-inspector').addEventListener('click', () => byId('inspector').close())
setInterval(() => cards?.tick(), 1000)
// What sticks to the bottom stands on the dock, and what is scrolled to stays clear of it.
new ResizeObserver(([{ target }]) => {
  document.documentElement.style.setProperty('--dock', `${target.offsetHeight}px`)
}).observe(document.querySelector('.dock'))

// ---- start

/** What the page can do without: names, and the schemas for editing. */
async function meet() {
  try {
    const answer = await (await fetch('tools')).json()
    about = answer.agent
    tools = new Map(answer.tools.map((tool) => [tool.name, tool]))
    byId('about').textContent = `${about.provider} · ${about.model}`
  } catch {
    byId('about').textContent = 'The server does not answer'
  }
}

await meet()
show()
say.focus()
