// The page of the ops desk in a real Chromium: what a person sees and does. CHROMIUM says where the browser is; without
// one the tests are skipped, and fail where CI is set. Screenshots go to artefacts/.

import assert from 'node:assert/strict'
import { existsSync, mkdirSync } from 'node:fs'
import { createServer, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { after, before, describe, it, type TestContext } from 'node:test'
import { AxeBuilder } from '@axe-core/playwright'
import {
  type Browser,
  type BrowserContextOptions,
  chromium,
  type Locator,
  type Page,
} from 'playwright-core'
import { offline } from '../examples/ops-desk/offline.ts'
import { pages } from '../examples/ops-desk/pages.ts'
import { deskTools } from '../examples/ops-desk/tools.ts'
import { startWorkers } from '../examples/ops-desk/workers.ts'
import { type Agent, chatHandler, type Message, tool } from '../src/index.ts'
import { scripted } from '../src/providers/scripted.ts'

const usual = [
  '/usr/bin/chromium',
  '/usr/bin/chromium-browser',
  '/usr/bin/google-chrome-stable',
  '/usr/bin/google-chrome',
  '/opt/google/chrome/chrome',
  '/snap/bin/chromium',
  '/Applications/Chromium.app/Contents/MacOS/Chromium',
  '/Applications/Google Chrome.app/Contents/MacOS/Google Chrome',
]
const executablePath = process.env.CHROMIUM || usual.find((path) => existsSync(path))
const none = 'no Chromium found: install one, or say where it is with CHROMIUM'
if (!executablePath && process.env.CI) throw new Error(none)
const skip = executablePath ? false : none

const flags =
  '--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'
const artefacts = new URL('../artefacts/', import.meta.url)

let browser: Browser
before(async () => {
  if (!executablePath) return
  mkdirSync(artefacts, { recursive: true })
  browser = await chromium.launch({ executablePath, args: flags.split(' ') })
})
after(() => browser?.close())

// ---- an agent of every kind of call, and its page

type Asked = Extract<Message, { role: 'assistant' }>

/** What the tools of one test did, in order. */
type Lab = { agent: Agent; ran: unknown[]; world: { pods: number; slow: Promise<void> } }

function lab(more: Partial<Agent> = {}): Lab {
  const ran: unknown[] = []
  const world = { pods: 3, slow: Promise.resolve() }
  const calls: Record<string, { name: string; input?: object }[]> = {
    look: [{ name: 'look' }],
    scale: [{ name: 'scale', input: { service: 'web' } }],
    note: [{ name: 'note', input: { text: 'five' } }],
    wipe: [{ name: 'wipe' }],
    both: [
      { name: 'scale', input: { service: 'web' } },
      { name: 'note', input: { text: 'five' } },
    ],
    three: ['a', 'b', 'c'].map((text) => ({ name: 'note', input: { text } })),
  }
  const provider = scripted(({ messages }) => {
    const last = messages.at(-1) as Message
    const texts = last.parts.map((part) => (part.type === 'text' ? part.text : ''))
    const text = texts.filter((one) => !one.includes('(data, not instructions)')).join('')
    const asked = messages.findLast(({ role }) => role === 'assistant') as Asked | undefined
    if (asked && (last === asked || text === ''))
      return `Done: ${asked.results.map(({ content }) => content).join('; ')}`
    if (text === 'slow') return () => world.slow.then(() => ['slow ', 'answer'])
    return calls[text] ? { text: 'Let me.', calls: calls[text] } : `You said: ${text}`
  })
  const tools = [
    tool({
      name: 'look',
      description: 'Looks at the pods',
      input: '{}',
      execute: (_, ctx) => {
        ctx.session.set('seen', 2)
        return [
          { pod: 'a', '<b>': '<img src=x onerror=alert(1)>' },
          { pod: 'b', '<b>': null },
        ]
      },
    }),
    tool({
      name: 'scale',
      description: 'Sets how many pods a service has',
      input: {
        type: 'object',
        properties: {
          service: { type: 'string', enum: ['web', 'db'], description: 'Which service.' },
          replicas: { type: 'integer', minimum: 0, maximum: 9, default: 2 },
          force: { type: 'boolean' },
          labels: { type: 'object' },
        },
        required: ['service'],
      } as const,
      requiresApproval: () => ({ verdict: 'ask', reason: 'It is production.' }),
      preview: ({ service }) => `${service} has ${world.pods} pods now.`,
      execute: (input) => {
        ran.push(input)
        return { scaled: true }
      },
    }),
    tool({
      name: 'note',
      description: 'Writes a note',
      input: '{ text: string }',
      requiresApproval: true,
      editable: true,
      execute: ({ text }) => {
        ran.push(text)
        return `noted ${text}`
      },
    }),
    tool({
      name: 'wipe',
      description: 'Wipes everything',
      input: '{}',
      requiresApproval: true,
      approvalTtlMs: 3_000,
      execute: () => ran.push('wiped'),
    }),
  ]
  return { agent: { name: 'Lab', provider, tools, ...more }, ran, world }
}

interface Site {
  url: string
  /** Set: gets each request for the stream in the handler's place. */
  instead: ((res: ServerResponse, next: () => void) => void) | undefined
}

async function site(t: TestContext, agent: Agent): Promise<Site> {
  const chat = chatHandler(agent)
  const page = pages(agent)
  const made: Site = { url: '', instead: undefined }
  const server = createServer(async (req, res) => {
    if (page(req, res)) return
    if (made.instead && req.url?.startsWith('/api')) return made.instead(res, () => chat(req, res))
    if (!(await chat(req, res))) res.writeHead(404).end()
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  t.after(() => {
    server.closeAllConnections()
    return new Promise((resolve) => server.close(resolve))
  })
  made.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`
  return made
}

/** A fresh profile on the page. A page that throws, or that its Content-Security-Policy stops, fails the test. */
async function visit(
  t: TestContext,
  url: string,
  options: BrowserContextOptions = {},
): Promise<Page> {
  const context = await browser.newContext({ reducedMotion: 'reduce', ...options })
  context.setDefaultTimeout(8_000)
  const faults: string[] = []
  const watch = (page: Page) => {
    page.on('pageerror', (error) => faults.push(error.message))
    page.on('console', (message) => {
      if (/Content Security Policy/i.test(message.text())) faults.push(message.text())
    })
  }
  context.on('page', watch)
  t.after(async () => {
    await context.close()
    assert.deepEqual(faults, [])
  })
  const page = await context.newPage()
  await page.goto(url)
  await page.locator('.welcome').waitFor()
  return page
}

const button = (page: Page, name: string) => page.getByRole('button', { name, exact: true })
const card = (page: Page, index = 0) => page.locator('.card').nth(index)

/** Says it, and waits for the end of the turn. */
async function say(page: Page, text: string): Promise<void> {
  await page.getByLabel('Message to the ops desk').fill(text)
  await page.locator('#send').click()
  await settled(page)
}
async function settled(page: Page): Promise<void> {
  await page.locator('#send').waitFor()
}
/** As it is drawn: without what is hidden. */
async function words(what: Locator): Promise<string> {
  return (await what.allInnerTexts()).join('\n').trim()
}
const lastAnswer = (page: Page) => words(page.locator('.agent .prose').last())
/** Of the element with the focus. */
const focused = (page: Page, property: string) =>
  page.evaluate(`document.activeElement.${property}`)

describe('the page', { skip, concurrency: 2 }, () => {
  it('streams an answer, folds what was done, and tells time and tokens', async (t) => {
    const { agent, world } = lab()
    const { promise, resolve } = Promise.withResolvers<void>()
    world.slow = promise
    const page = await visit(t, (await site(t, agent)).url)
    await page.getByLabel('Message').fill('slow')
    await page.keyboard.press('Enter')
    await page.locator('[aria-busy=true] .doing').waitFor()
    await button(page, 'Stop').waitFor()
    resolve()
    await settled(page)
    assert.equal(await lastAnswer(page), 'slow answer')

    await say(page, 'look')
    const call = page.locator('details.call')
    assert.equal(await call.getAttribute('open'), null)
    assert.match(await words(call.locator('summary')), /look\s+done/)
    await call.locator('summary').click()
    assert.deepEqual(await call.locator('thead th').allInnerTexts(), ['pod', '<b>'])
    assert.equal(
      await words(call.locator('tbody tr').first().locator('td').last()),
      '<img src=x onerror=alert(1)>',
    )
    assert.match(await words(page.locator('.foot').last()), /^\d+ ms|s$/)
  })

  it('shows what waits: tool, description, input as it will run, preview, reasons, expiry', async (t) => {
    const { agent, ran } = lab()
    const page = await visit(t, (await site(t, agent)).url)
    await say(page, 'scale')
    const text = await words(card(page))
    for (const part of [
      'scale',
      'Sets how many pods a service has',
      'web has 3 pods now.',
      'It is production.',
    ])
      assert.ok(text.includes(part), part)
    const rows = await card(page).locator('.pairs tr').allInnerTexts()
    assert.deepEqual(
      rows.map((row) => row.replace(/\s+/g, ' ').trim()),
      ['service web', 'replicas 2 filled in'],
    )
    const expiry = card(page).getByRole('timer')
    const first = await words(expiry)
    assert.match(first, /^Expires in (60:00|59:5\d)$/)
    await page.locator('.expiry', { hasNotText: first }).waitFor()
    assert.equal(await page.title(), '(1) Ops desk')
    assert.deepEqual(ran, [])

    await button(page, 'Approve').click()
    await settled(page)
    assert.deepEqual(ran, [{ service: 'web', replicas: 2 }])
    assert.match(await lastAnswer(page), /Done: \{"scaled":true\}/)
    assert.equal(await page.locator('.card').count(), 0)
    assert.match(await words(page.locator('.user').last()), /Approved: scale web/)
    assert.match(await words(page.locator('details.call summary').last()), /scale web\s+done/)
  })

  it('rejects with a reason', async (t) => {
    const { agent, ran } = lab()
    const page = await visit(t, (await site(t, agent)).url)
    await say(page, 'scale')
    await button(page, 'Reject').click()
    // By real keys: `fill` would pass by a listener that swallows them.
    await page.getByLabel('Reason optional', { exact: true }).pressSequentially('not on payday')
    await page.keyboard.press('Tab')
    assert.equal(await focused(page, 'textContent'), 'Reject it')
    await page.keyboard.press('Tab')
    assert.equal(await focused(page, 'textContent'), 'Cancel')
    await page.keyboard.press('Shift+Tab')
    await page.keyboard.press('Enter')
    await settled(page)
    assert.deepEqual(ran, [])
    assert.match(await lastAnswer(page), /Tool rejected: not on payday/)
    assert.match(await words(page.locator('details.call summary').last()), /rejected/)
  })

  it('edits the input in a form made from its schema', async (t) => {
    const { agent, ran } = lab()
    const page = await visit(t, (await site(t, agent)).url)
    await say(page, 'scale')
    await button(page, 'Edit').click()
    const form = card(page).locator('form')
    assert.deepEqual(await form.getByLabel('service').locator('option').allInnerTexts(), [
      'web',
      'db',
    ])
    assert.equal(await form.getByLabel('replicas').inputValue(), '2')
    await form.getByLabel('service').selectOption('db')
    await form.getByLabel('replicas').fill('99')
    await form.getByLabel('force').check()
    await form.getByLabel('labels').fill('{"a":')
    await button(page, 'Send the change').click()
    assert.equal(await form.locator(':invalid:not(form)').count(), 2) // too many, and no JSON: nothing was sent
    await form.getByLabel('replicas').press('ControlOrMeta+a')
    await form.getByLabel('replicas').pressSequentially('4')
    await form.getByLabel('labels').press('ControlOrMeta+a')
    await form.getByLabel('labels').pressSequentially('{"a": [1]}')
    await button(page, 'Send the change').click()
    await settled(page)
    assert.match(await words(page.locator('.user').last()), /^Changed: scale db$/m)

    // The tool is not editable: what it is now comes back as a call of its own.
    assert.deepEqual(ran, [])
    const changed = { service: 'db', replicas: 4, force: true, labels: { a: [1] } }
    assert.match(await words(card(page)), /db has 3 pods now/)
    await button(page, 'Approve').click()
    await settled(page)
    assert.deepEqual(ran, [changed])
  })

  it('runs a change at once where the tool is editable, and cancels with Escape', async (t) => {
    const { agent, ran } = lab()
    const page = await visit(t, (await site(t, agent)).url)
    await say(page, 'note')
    await button(page, 'Edit').click()
    await page.keyboard.press('Escape')
    assert.equal(await card(page).locator('form').count(), 0)
    assert.equal(await focused(page, 'textContent'), 'Edit')
    await button(page, 'Edit').click()
    await page.getByLabel('text').press('ControlOrMeta+a')
    await page.keyboard.type('six')
    await page.keyboard.press('Tab')
    assert.equal(await focused(page, 'textContent'), 'Approve as changed')
    await page.keyboard.press('Enter')
    await settled(page)
    assert.deepEqual(ran, ['six'])
    assert.match(await words(page.locator('.user').last()), /Approved with changes: note six/)
  })

  it('decides several at once, and leaves the rest waiting', async (t) => {
    const { agent, ran } = lab()
    const page = await visit(t, (await site(t, agent)).url)
    await say(page, 'three')
    assert.equal(await page.locator('.card').count(), 3)
    assert.ok(await button(page, 'Send decision').isDisabled())
    await card(page, 0).getByRole('button', { name: 'Approve' }).click()
    await card(page, 1).getByRole('button', { name: 'Reject' }).click()
    await card(page, 1).getByLabel('Reason').pressSequentially('no b')
    assert.match(await words(page.locator('.count')), /2 of 3 decided\. The others go on waiting\./)
    await button(page, 'Send 2 decisions').click()
    await settled(page)
    assert.deepEqual(ran, ['a'])
    assert.equal(await page.locator('.card').count(), 1)
    assert.match(await words(card(page)), /text\s+c/)
    await button(page, 'Approve').click()
    await settled(page)
    assert.deepEqual(ran, ['a', 'c'])
    assert.match(await lastAnswer(page), /noted a; Tool rejected: no b; noted c/)
  })

  it('approves or rejects all, takes a decision back, and keeps a change among several', async (t) => {
    const { agent, ran } = lab()
    const page = await visit(t, (await site(t, agent)).url)
    await say(page, 'three')
    await button(page, 'Approve all').click()
    await card(page, 0).getByRole('button', { name: 'Approve' }).click()
    assert.match(await words(page.locator('.count')), /2 of 3/)
    await button(page, 'Reject all').click()
    await card(page, 2).getByRole('button', { name: 'Edit' }).click()
    await card(page, 2).getByLabel('text').press('ControlOrMeta+a')
    await page.keyboard.type('C')
    await page.keyboard.press('Enter')
    assert.match(await words(card(page, 2)), /Changed to\s+text\s+C/)
    await button(page, 'Send 3 decisions').click()
    await settled(page)
    assert.deepEqual(ran, ['C'])
  })

  it('lets nothing be approved that has expired', async (t) => {
    const { agent, ran } = lab()
    const page = await visit(t, (await site(t, agent)).url)
    await say(page, 'wipe')
    await page.getByText('Expired. Ask again.').waitFor()
    assert.ok(await button(page, 'Approve').isDisabled())
    assert.ok(await button(page, 'Reject').isEnabled())
    assert.deepEqual(ran, [])
  })

  it('shows again what has changed since it was shown, and what it was before', async (t) => {
    const { agent, ran, world } = lab()
    const page = await visit(t, (await site(t, agent)).url)
    await say(page, 'scale')
    world.pods = 7
    await button(page, 'Approve').click()
    await settled(page)
    assert.deepEqual(ran, [])
    assert.match(await words(page.locator('details.call summary').last()), /not run/)
    assert.match(await words(card(page)), /web has 7 pods now\.[\s\S]*web has 3 pods now\./)
  })

  it('rejects what waits by words, and says so beforehand', async (t) => {
    const { agent, ran } = lab()
    const page = await visit(t, (await site(t, agent)).url)
    await say(page, 'scale')
    assert.match(await words(page.locator('.hint')), /One call waits; a message rejects it/)
    await page.getByLabel('Message').fill('yes, go ahead')
    await page.keyboard.press('Enter')
    assert.match(await words(page.locator('.hint')), /Words approve nothing, the buttons do/)
    assert.equal(await page.locator('.card').count(), 1)
    await say(page, 'better not')
    assert.deepEqual([ran, await page.locator('.card').count()], [[], 0])
  })

  it('survives a reload, also with calls that wait', async (t) => {
    const { agent, ran } = lab()
    const page = await visit(t, (await site(t, agent)).url)
    await say(page, 'look')
    await say(page, 'both')
    await page.reload()
    await card(page).waitFor()
    assert.deepEqual(
      await page
        .locator('.user')
        .allInnerTexts()
        .then((all) => all.map((text) => text.split('\n').at(-1))),
      ['look', 'both'],
    )
    await button(page, 'Approve all').click()
    await button(page, 'Send 2 decisions').click()
    await settled(page)
    assert.deepEqual(ran, [{ service: 'web', replicas: 2 }, 'five'])
  })

  it('sends the same decision again after the connection was lost, and it runs once', async (t) => {
    const { agent, ran } = lab()
    const desk = await site(t, agent)
    const page = await visit(t, desk.url)
    await say(page, 'note')
    desk.instead = (res, next) => {
      desk.instead = undefined
      // It arrives and runs; its answer breaks off. (Without its first byte the browser would ask again by itself.)
      const write = res.write.bind(res) as (text: unknown, sent: () => void) => boolean
      res.write = (text: unknown) => write(String(text).slice(0, 10), () => res.destroy())
      // A short answer is its last piece.
      res.end = (text?: unknown) => {
        res.write(text)
        return res
      }
      next()
    }
    await button(page, 'Approve').click()
    const trouble = page.getByRole('alert')
    await trouble.getByText('The connection was lost').waitFor()
    assert.match(await words(trouble), /Sending it again is safe: each call runs at most once/)
    await button(page, 'Try again').click()
    await trouble.getByText('connection').waitFor({ state: 'detached' })
    await settled(page)
    assert.deepEqual(ran, ['five'])
    assert.match(await lastAnswer(page), /noted five/)
  })

  it('asks again after a reload in the middle of an answer', async (t) => {
    const { agent, world } = lab()
    const { promise, resolve } = Promise.withResolvers<void>()
    world.slow = promise
    const page = await visit(t, (await site(t, agent)).url)
    await page.getByLabel('Message').fill('slow')
    await page.keyboard.press('Enter')
    await button(page, 'Stop').waitFor()
    await page.reload()
    await page.getByText('This message has no answer yet').waitFor()
    resolve()
    await button(page, 'Try again').click()
    await page.locator('.prose').getByText('slow answer').waitFor()
  })

  it('says what the server says, waits no longer than it must, and takes a message back', async (t) => {
    const { agent } = lab()
    const desk = await site(t, agent)
    const page = await visit(t, desk.url)
    desk.instead = (res) => {
      res.writeHead(503, { 'content-type': 'application/json', 'retry-after': '2' })
      res.end(
        '{"detail":"Too many requests at once.","code":"busy","retryable":true,"request_id":"req-1"}',
      )
    }
    await say(page, 'hello')
    const trouble = page.getByRole('alert')
    assert.match(
      await words(trouble),
      /Too many requests at once\. Try again in 2 s\.[\s\S]*busy · req-1/,
    )
    await button(page, 'Take it back').click()
    assert.equal(await page.getByLabel('Message').inputValue(), 'hello')
    assert.equal(await page.locator('.user').count(), 0)
    desk.instead = undefined
    await button(page, 'Send').click()
    await page.locator('.prose').getByText('You said: hello').waitFor()
  })

  it('stops when it is told to, and keeps what had come', async (t) => {
    const { agent, world } = lab()
    world.slow = new Promise(() => {})
    const page = await visit(t, (await site(t, agent)).url)
    await page.getByLabel('Message').fill('slow')
    await page.keyboard.press('Enter')
    await button(page, 'Stop').click()
    await page.getByText('Stopped. An approved call that had begun runs to its end.').waitFor()
    await say(page, 'hello')
    assert.match(await lastAnswer(page), /hello$/)
  })

  it('is worked by keyboard alone', async (t) => {
    const { agent, ran } = lab()
    const page = await visit(t, (await site(t, agent)).url)
    const { keyboard } = page
    assert.equal(await focused(page, 'id'), 'say')
    await keyboard.type('first line')
    await keyboard.press('Shift+Enter')
    await keyboard.type('second')
    assert.equal(await page.getByLabel('Message').inputValue(), 'first line\nsecond')
    await page.getByLabel('Message').fill('note')
    await keyboard.press('Enter')
    await card(page).waitFor()
    await page.locator('.card .primary:enabled').waitFor()
    // From the composer back to the card: "Show" stands before the message field.
    await keyboard.press('Shift+Tab')
    assert.equal(await focused(page, 'textContent'), 'Show')
    await keyboard.press('Enter')
    assert.equal(await focused(page, 'className'), 'cards')
    await keyboard.press('Tab')
    assert.equal(await focused(page, 'textContent'), 'Approve')
    await keyboard.press('Enter')
    await page.locator('.prose').getByText('noted five').waitFor()
    assert.deepEqual(ran, ['five'])
    assert.equal(await focused(page, 'id'), 'say')
  })

  it('tells a screen reader once a turn, and at once when something is wrong', async (t) => {
    const { agent } = lab()
    const desk = await site(t, agent)
    const page = await visit(t, desk.url)
    await page.evaluate(`
      window.heard = []
      for (const region of document.querySelectorAll('[role=status], [role=alert]'))
        new MutationObserver(() => region.textContent && heard.push(region.textContent))
          .observe(region, { childList: true })
    `)
    await say(page, '# **bold**\n- one\n- `two`')
    await say(page, 'note')
    desk.instead = (res) => res.destroy()
    await button(page, 'Approve').click()
    await page.getByText('The connection was lost').waitFor()
    const heard = (await page.evaluate('heard')) as string[]
    assert.equal(heard.length, 3)
    assert.equal(heard[0], 'Lab answered: You said: # bold one two')
    assert.equal(heard[1], 'Lab answered: Let me. One call waits for your approval.')
    assert.match(heard[2] ?? '', /^The connection was lost/)
    assert.equal(await page.locator('[aria-live]').count(), 0)
  })

  it('inspects the session, and clears it with the next message', async (t) => {
    const { agent } = lab()
    const page = await visit(t, (await site(t, agent)).url)
    await say(page, 'look')
    await say(page, 'note')
    await button(page, 'Session').click()
    const dialog = page.getByRole('dialog', { name: 'Session' })
    assert.match(
      await words(dialog),
      /seen\s+2[\s\S]*messages\s+4[\s\S]*paused run\s+travels along, sealed/,
    )
    await button(page, 'Clear the session').click()
    assert.match(await words(dialog), /Will be empty with your next message/)
    await page.keyboard.press('Escape')
    await say(page, 'hello')
    await button(page, 'Session').click()
    assert.match(await words(dialog), /Nothing yet/)
  })

  it('begins anew, and brings the conversation before back', async (t) => {
    const { agent } = lab()
    const page = await visit(t, (await site(t, agent)).url)
    await say(page, 'hello')
    await page.locator('#fresh').click()
    assert.equal(await page.locator('.user').count(), 0)
    await button(page, 'Bring back the conversation before').click()
    assert.equal(await lastAnswer(page), 'You said: hello')
  })

  it('follows what another tab does in the same conversation', async (t) => {
    const { agent } = lab()
    const { url } = await site(t, agent)
    const page = await visit(t, url)
    const other = await page.context().newPage()
    await other.goto(url)
    await say(other, 'hello')
    await page.locator('.prose').getByText('You said: hello').waitFor()
  })

  it('parses nothing that is said as HTML, and links only to the web', async (t) => {
    const said = [
      '# Title with `code`',
      '<img src=x onerror="document.title=1"> **bold** and _soft_ 2*3*4 snake_case_name',
      '[ok](https://example.org/a) [bad](javascript:alert(1)) <b>x</b>',
      '- one\n  - inner\n- two\n\n1. first\n2. second',
      '| a | b |\n|---|---|\n| 1 | <i>2</i> |',
      '```sh\nls <x>\n```',
    ].join('\n\n')
    const { agent } = lab({ provider: scripted(() => said) })
    const page = await visit(t, (await site(t, agent)).url)
    await say(page, 'go')
    const prose = page.locator('.agent .prose')
    assert.equal(await page.locator('.prose img, .prose b, .prose i').count(), 0)
    assert.deepEqual(
      await prose.locator('a').evaluateAll((all) => all.map((a) => a.getAttribute('href'))),
      ['https://example.org/a'],
    )
    assert.equal(await words(prose.locator('h3')), 'Title with code')
    assert.deepEqual(await prose.locator('strong, em').allInnerTexts(), ['bold', 'soft'])
    assert.match(await words(prose), /2\*3\*4 snake_case_name/)
    assert.equal(await words(prose.locator('ul > li > ul > li')), 'inner')
    assert.equal(await prose.locator('ol > li').count(), 2)
    assert.deepEqual(await prose.locator('td').allInnerTexts(), ['1', '<i>2</i>'])
    assert.equal(await words(prose.locator('pre')), 'ls <x>')
  })
})

// ---- how it looks, and whether everybody can use it

describe('the page of the real desk', { skip, concurrency: 2 }, () => {
  const looks = [
    { name: 'light', colorScheme: 'light', viewport: { width: 1100, height: 800 } },
    {
      name: 'dark-phone',
      colorScheme: 'dark',
      viewport: { width: 390, height: 780 },
      hasTouch: true,
      isMobile: true,
    },
  ] as const
  for (const { name, ...look } of looks)
    it(`has no accessibility violation and nothing cut off (${name})`, async (t) => {
      const workers = await startWorkers()
      t.after(() => workers.end())
      const agent: Agent = {
        name: 'ops-desk',
        provider: offline({ delayMs: 0 }),
        tools: deskTools(workers),
      }
      const desk = await site(t, agent)
      const page = await visit(t, desk.url, look)
      let shots = 0
      // The states that have elements no other has; a check takes half a second.
      const whole = /welcome|unfolded|decided|editing|session|trouble/
      const check = async (state: string) => {
        await page.screenshot({
          path: new URL(`page-${name}-${++shots}-${state}.png`, artefacts).pathname,
        })
        const spill = Number(
          await page.evaluate('document.documentElement.scrollWidth - innerWidth'),
        )
        assert.ok(spill <= 0, `${state}: ${spill} pixels wider than the window`)
        if (!whole.test(state)) return
        const { violations } = await new AxeBuilder({ page }).analyze()
        const found = violations.map(({ id, nodes }) => [
          id,
          nodes.map(({ target }) => target.join(' ')),
        ])
        assert.deepEqual(found, [], state)
      }
      await check('welcome')
      await say(page, 'list processes')
      await page.locator('details.call summary').click()
      await check('unfolded')
      await say(page, 'restart web-1 and stop db-1')
      await check('waiting')
      await card(page, 0).getByRole('button', { name: 'Approve' }).click()
      await card(page, 1).getByRole('button', { name: 'Reject' }).click()
      await card(page, 1).getByLabel('Reason').fill('it is needed')
      await check('decided')
      await page.locator('.tally .primary').click()
      await settled(page)
      assert.match(
        await lastAnswer(page),
        /Restarted web-1: pid \d+ before, \d+ now\.\s+Not done: stop_process db-1/,
      )
      await check('done')
      await say(page, 'note on web-1: deploying at five')
      await button(page, 'Edit').click()
      await check('editing')
      await page.keyboard.press('Escape')
      await button(page, 'Reject').click()
      await check('rejecting')
      await button(page, 'Reject it').click()
      await settled(page)
      await say(page, 'remember web-2 as my favourite')
      await button(page, 'Session').click()
      await check('session')
      await page.keyboard.press('Escape')
      await say(page, 'show the log of web-1')
      await check('log')
      desk.instead = (res) => res.destroy()
      await say(page, 'disk usage')
      await check('trouble')
    })
})
