// The Markdown that models write, as elements: paragraphs, headings, lists, tables, code, bold, emphasis, links. What it
// does not know stays text. No HTML, no images; a link must be http(s) and says where it leads.

import { h, scrolled } from './dom.js'

/** @returns {DocumentFragment} */
export function markdown(text) {
  const all = document.createDocumentFragment()
  const rest = text.split('\n')
  while (rest.length > 0) {
    const line = rest[0]
    const heading = /^(#{1,6})\s+(.+)$/.exec(line)
    const fence = /^\s*(`{3,}|~{3,})/.exec(line)
    if (fence) all.append(code(rest, fence[1]))
    else if (line.trim() === '') rest.shift()
    else if (heading) {
      rest.shift()
      // The page has h1 and h2: what a model calls its title comes below them.
      all.append(h(`h${Math.min(6, heading[1].length + 2)}`, {}, inline(heading[2])))
    } else if (isRow(line) && /^[\s|:-]*-[\s|:-]*$/.test(rest[1] ?? '') && isRow(rest[1]))
      all.append(table(rest))
    else if (bullet.test(line)) all.append(list(rest))
    else all.append(paragraph(rest))
  }
  return all
}

/** The words alone, on one line: what is read aloud. */
export function plain(text) {
  const all = markdown(text)
  for (const block of all.querySelectorAll('p, li, ul, ol, pre, th, td, h3, h4, h5, h6'))
    block.before(' ')
  return all.textContent.replace(/\s+/g, ' ').trim()
}

const bullet = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/

function code(rest, fence) {
  rest.shift()
  const end = rest.findIndex((line) => line.trim().startsWith(fence))
  const lines = rest.splice(0, end < 0 ? rest.length : end)
  rest.shift()
  return h('pre', { tabindex: '0' }, h('code', {}, lines.join('\n')))
}

function isRow(line) {
  return line.includes('|')
}

function table(rest) {
  const head = cells(rest.shift())
  rest.shift()
  const rows = []
  while (rest.length > 0 && isRow(rest[0])) rows.push(cells(rest.shift()))
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
          head.map((text) => h('th', { scope: 'col' }, inline(text))),
        ),
      ),
      h(
        'tbody',
        {},
        rows.map((row) =>
          h(
            'tr',
            {},
            head.map((_, i) => h('td', {}, inline(row[i] ?? ''))),
          ),
        ),
      ),
    ),
  )
}

function cells(line) {
  const inner = line.trim().replace(/^\||\|$/g, '')
  return inner.split('|').map((text) => text.trim())
}

/** Nested items stand under the item before them, as a list of their own. */
function list(rest) {
  const [, indent, mark] = bullet.exec(rest[0])
  const element = h(/\d/.test(mark) ? 'ol' : 'ul')
  if (/\d/.test(mark) && Number.parseInt(mark, 10) !== 1) element.start = Number.parseInt(mark, 10)
  while (rest.length > 0) {
    const item = bullet.exec(rest[0])
    if (item && item[1].length > indent.length && element.lastChild)
      element.lastChild.append(list(rest))
    else if (item && item[1].length === indent.length) {
      rest.shift()
      element.append(h('li', {}, inline(item[3])))
    } else if (!item && /^\s+\S/.test(rest[0]) && element.lastChild)
      element.lastChild.append(' ', ...inline(rest.shift().trim()))
    else break
  }
  return element
}

function paragraph(rest) {
  const lines = []
  while (rest.length > 0 && rest[0].trim() !== '' && (lines.length === 0 || !startsBlock(rest[0])))
    lines.push(rest.shift())
  return h(
    'p',
    {},
    lines.flatMap((line, i) => (i === 0 ? inline(line) : [h('br'), ...inline(line)])),
  )
}

function startsBlock(line) {
  return bullet.test(line) || /^\s*(`{3,}|~{3,})|^#{1,6}\s/.test(line)
}

const span =
  /(`+)(.+?)\1|\*\*(.+?)\*\*|(?<![\w*])[*_](?=\S)(.+?)(?<=\S)[*_](?!\w)|\[([^\]]+)\]\((https?:\/\/[^\s)]+)\)/

/** @returns {(Node | string)[]} */
function inline(text) {
  const found = span.exec(text)
  if (!found) return text === '' ? [] : [text]
  const [whole, , coded, bold, emphasis, label, url] = found
  const before = text.slice(0, found.index)
  const after = inline(text.slice(found.index + whole.length))
  return [...(before ? [before] : []), element(), ...after]

  function element() {
    if (coded !== undefined) return h('code', {}, coded)
    if (bold !== undefined) return h('strong', {}, inline(bold))
    if (emphasis !== undefined) return h('em', {}, inline(emphasis))
    return h('a', { href: url, rel: 'noreferrer noopener', target: '_blank', title: url }, label)
  }
}
