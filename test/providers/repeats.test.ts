import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { ChatFold } from '../../src/providers/chat-reply.ts'
import { type Place, type PlacesOf, Repeats, type Shape } from '../../src/providers/repeats.ts'
import type { Answer } from '../../src/providers/wire.ts'

type Json = Record<string, unknown>

/** Text at `delta.text`, and padding at the end. */
const placesOf: PlacesOf = (json) => {
  const delta = Object(json.delta) as Json
  const places: Place[] = typeof delta.text === 'string' ? [[delta, 'text']] : []
  if (places.length && typeof json.pad === 'string') places.push([json, 'pad'])
  return places
}

/** Each as a fold sees it, which keeps no event. */
function parsed(events: string[], where: PlacesOf = placesOf): unknown[] {
  const repeats = new Repeats(where)
  return events.map((data) => {
    try {
      return structuredClone(repeats.parse(data))
    } catch (error) {
      return (error as Error).name
    }
  })
}

function plain(events: string[]): unknown[] {
  return events.map((data) => {
    try {
      return JSON.parse(data)
    } catch (error) {
      return (error as Error).name
    }
  })
}

const strings = fc.oneof(
  fc.string(),
  fc.string({ unit: 'binary' }),
  fc.constantFrom('"', '\\', '"}', '","pad":"', '\\"', 'text', 'delta', '\u2603', '', ' w1'),
)

test('gives what JSON.parse gives, whatever the strings are', () => {
  const event = fc.record({
    text: strings,
    pad: strings,
    kind: fc.constantFrom('a', 'a', 'a', 'b'),
  })
  fc.assert(
    fc.property(fc.array(event, { maxLength: 30 }), fc.boolean(), (list, isPadded) => {
      const events = list.map(({ text, pad, kind }) =>
        JSON.stringify({ kind, delta: { kind: 'text', text }, n: null, ...(isPadded && { pad }) }),
      )
      assert.deepEqual(parsed(events), plain(events))
    }),
  )
})

test('gives what JSON.parse gives for events that were cut, joined or tampered with', () => {
  const texts = [
    '{"delta":{"text":"',
    '"},"pad":"',
    '"}',
    '"',
    '\\',
    ',',
    '\n',
    '\u0001',
    'x',
    '{}',
  ]
  const good = (text: string) => JSON.stringify({ delta: { text }, pad: 'p' })
  fc.assert(
    fc.property(fc.array(fc.constantFrom(...texts), { maxLength: 8 }), (pieces) => {
      const known = [...'abcdefg'].map(good)
      const wrong = pieces.join('')
      const events = [...known, wrong, `{"delta":{"text":"${wrong}"},"pad":"p"}`, good('f')]
      assert.deepEqual(parsed(events), plain(events))
    }),
  )
})

test('learns no place that only looks like one', () => {
  const events = (text: string) => [
    `{"text":"${text}","delta":{"text":"same"}}`,
    `{"delta":{"text":"${text}","text":"same"}}`,
    `{"also":{"text":"same"},"delta":{"text":"same"},"${text}":1}`,
  ]
  for (const i of [0, 1, 2]) {
    const list = [...'abcdefghijkl'].map((text) => events(text)[i] ?? '')
    assert.deepEqual(parsed(list), plain(list))
  }
})

test('tells two places apart whose strings were the same when they were learned', () => {
  const event = (text: string, pad: string) =>
    JSON.stringify({ of: 'text', pad, is: 'pad', delta: { text } })
  const list = [...'abcdef'].map(() => event('same', 'same'))
  list.push(event('said', 'padding'), event('\u26030', '\u26031'))
  assert.deepEqual(parsed(list), plain(list))
})

test('parses little of the pieces that follow the first ones', (t) => {
  const event = (content: string, obfuscation: string) =>
    JSON.stringify({ id: 'chatcmpl-1', choices: [{ index: 0, delta: { content } }], obfuscation })
  const events = Array.from({ length: 100 }, (_, i) => event(`"${i}\n"`, 'abcdef'.slice(i % 6)))
  const expected = plain(events)
  const { places } = new ChatFold({} as Answer, 'test')
  const parse = t.mock.method(JSON, 'parse')
  assert.deepEqual(parsed(events, places), expected)
  const whole = parse.mock.calls.filter(({ arguments: [text] }) => text.startsWith('{'))
  assert.equal(whole.length, 3) // the first two, and the proof of what they have in common
})

test('streams of one model that come at once read each their own events', () => {
  const event = fc.record({
    stream: fc.nat(3),
    id: fc.nat(1),
    text: strings,
    isInput: fc.boolean(),
  })
  fc.assert(
    fc.property(fc.array(event, { maxLength: 60 }), (list) => {
      const shared: Shape[] = []
      const streams = Array.from({ length: 4 }, () => new Repeats(placesOf, shared))
      for (const { stream, id, text, isInput } of list) {
        const data = JSON.stringify({ id: `${stream}-${id}`, isInput, delta: { text } })
        assert.deepEqual(streams[stream]?.parse(data), JSON.parse(data))
      }
      assert.ok(shared.length <= 3)
    }),
  )
})

test('knows from its first event what another stream of the model learned', (t) => {
  const event = (text: string) => JSON.stringify({ index: 0, delta: { text } })
  const shared: Shape[] = []
  const first = new Repeats(placesOf, shared)
  for (const text of ['a', 'b', 'c']) first.parse(event(text))
  const parse = t.mock.method(JSON, 'parse')
  const second = new Repeats(placesOf, shared)
  assert.deepEqual(second.parse(event('d')), { index: 0, delta: { text: 'd' } })
  assert.equal(parse.mock.calls.length, 0)
})
