// Elements, and values as people read them. Text only ever becomes text nodes: nothing that a model or a tool says is
// parsed as HTML.

/**
 * `h('p', { class: 'x', onclick }, 'text', child, null)`. Properties that begin with `on` are listeners, `false`, null
 * and undefined are left out, `true` is an attribute without a value. Children that are null or false are left out.
 */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag)
  for (const [key, value] of Object.entries(props)) {
    if (value === false || value === null || value === undefined) continue
    if (key.startsWith('on')) element.addEventListener(key.slice(2), value)
    else element.setAttribute(key, value === true ? '' : value)
  }
  element.append(...children.flat().filter((child) => child !== null && child !== false))
  return element
}

/** JSON as tables where it is flat, as indented text where it is not; any other text as it is. */
export function valueView(value) {
  if (typeof value === 'string') {
    const json = parsed(value)
    return json === undefined ? textView(value) : valueView(json)
  }
  if (Array.isArray(value) && value.length > 0 && value.every(isFlat)) return rowsTable(value)
  if (isFlat(value) && Object.keys(value).length > 0) return pairsTable(Object.entries(value))
  return h('pre', { tabindex: '0' }, JSON.stringify(value, null, 2))
}

/** A table of names and values, each value `[name, value, note?]`. */
export function pairsTable(pairs) {
  return h(
    'table',
    { class: 'pairs' },
    h(
      'tbody',
      {},
      pairs.map(([name, value, note]) =>
        h(
          'tr',
          {},
          h('th', { scope: 'row' }, name),
          h('td', {}, cell(value), note ? [' ', h('span', { class: 'note' }, note)] : null),
        ),
      ),
    ),
  )
}

function rowsTable(rows) {
  const keys = [...new Set(rows.flatMap(Object.keys))]
  return scrolled(
    h(
      'table',
      {},
      h(
        'thead',
        {},
        h(
          'tr',
          {},
          keys.map((key) => h('th', { scope: 'col' }, key)),
        ),
      ),
      h(
        'tbody',
        {},
        rows.map((row) =>
          h(
            'tr',
            {},
            keys.map((key) => h('td', {}, cell(row[key]))),
          ),
        ),
      ),
    ),
  )
}

/** Wide things scroll for themselves, also by keyboard; the page does not. */
export function scrolled(child) {
  return h('div', { class: 'wide', tabindex: '0', role: 'group', 'aria-label': 'Table' }, child)
}

function textView(text) {
  if (text === '') return h('p', { class: 'muted' }, 'No output.')
  return text.includes('\n') ? h('pre', { tabindex: '0' }, text) : h('p', { class: 'said' }, text)
}

function cell(value) {
  if (value === null || value === undefined) return '–'
  if (typeof value === 'string')
    return value.includes('\n') ? h('pre', { tabindex: '0' }, value) : value
  return typeof value === 'object'
    ? h('pre', { tabindex: '0' }, JSON.stringify(value, null, 2))
    : String(value)
}

function isFlat(value) {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return false
  return Object.values(value).every((inner) => typeof inner !== 'object' || inner === null)
}

/** Objects and arrays only: "42" is a text that happens to be a number. */
function parsed(text) {
  if (!/^\s*[[{]/.test(text)) return undefined
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}
