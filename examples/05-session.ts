// What a thread remembers between its requests: a cart, read and written through one schema, typed
// and checked. The model sees none of it. Over HTTP it travels in `data.session` and the client
// sends back what it got, so base no permission on it.

import Type from 'typebox'
import { run, type Session, tool } from '../src/index.ts'
import { scripted } from '../src/providers/scripted.ts'

const Line = Type.Object({
  item: Type.String(),
  count: Type.Integer({ minimum: 1, default: 1 }),
})
const Cart = Type.Object({ lines: Type.Array(Line) })
const cartOf = (session: Session) => session.get('cart', Cart, { lines: [] })

const add = tool({
  name: 'add',
  description: 'Put something into the cart',
  input: Line,
  execute({ item, count }, { session }) {
    const { lines } = cartOf(session)
    const line = lines.find((line) => line.item === item)
    if (line) line.count += count
    else lines.push({ item, count })
    session.set('cart', { lines })
    return lines
  },
})

const call = (input: object) => ({ calls: [{ name: 'add', input }] })
const shop = {
  name: 'shop',
  provider: scripted([
    call({ item: 'tea', count: 2 }),
    'Two teas.',
    call({ item: 'tea' }),
    'And one more.',
    'Hello!',
  ]),
  tools: [add],
}

const first = await run(shop, { messages: 'Two teas, please' })
console.log(first.text, JSON.stringify(cartOf(first.session)))

const second = await run(shop, { messages: 'One more' }, { session: first.session.toJSON() })
console.log(second.text, JSON.stringify(cartOf(second.session)))

// Somebody's client sends rubbish: the fallback is the answer, not an exception.
const third = await run(shop, { messages: 'Hi' }, { session: { cart: 'three of everything' } })
console.log(third.text, JSON.stringify(cartOf(third.session)))

// Prints:
//
// Two teas. {"lines":[{"item":"tea","count":2}]}
// And one more. {"lines":[{"item":"tea","count":3}]}
// Hello! {"lines":[]}
