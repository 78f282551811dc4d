// A provider is a plain object of two names and two functions, so anything that answers can be one:
// here a model that only multiplies, and a provider made of two others. For a model behind HTTP,
// `httpProvider` of providers/wire.ts brings streams, clocks, retries and errors, and a vendor is
// what is left (see providers/ollama.ts).

import { DcafError, noUsage, type Part, type Provider, run, tool } from '../src/index.ts'
import { scripted } from '../src/providers/scripted.ts'

const calculator: Provider = {
  name: 'calculator',
  model: 'multiplies',
  render: (request) => request, // exactly what would be sent
  async complete(request, { signal, onDelta } = {}) {
    signal?.throwIfAborted()
    const last = request.messages.at(-1)
    const [said] = last?.parts.filter((part) => part.type === 'text') ?? []
    const factors = said?.text.match(/\d+/g)?.map(Number) ?? []
    // An assistant's message at the end means: these are the results of what you asked for.
    const result = last?.role === 'assistant' ? last.results.at(-1) : undefined
    const part: Part = result
      ? { type: 'text', text: `That makes ${result.content}.` }
      : { type: 'tool_call', id: 'call_1', name: 'multiply', input: { factors } }
    if (part.type === 'text') await onDelta?.({ type: 'text_delta', text: part.text })
    return { parts: [part], finishReason: result ? 'stop' : 'tool_call', usage: noUsage }
  },
}

/** Asks `second` where `first` fails in a way that may pass, if nobody has heard a word of it. */
function fallback(first: Provider, second: Provider): Provider {
  return {
    ...first,
    async complete(request, options = {}) {
      const { onDelta } = options
      let heard = false
      const listening = { ...options }
      if (onDelta)
        listening.onDelta = (delta) => {
          heard = true
          return onDelta(delta) // its promise is how a slow reader slows the model down
        }
      try {
        return await first.complete(request, listening)
      } catch (error) {
        if (heard || !(error instanceof DcafError && error.retryable)) throw error
        console.log(`${first.name} failed (${error.code}), asking ${second.name}`)
        return second.complete(request, options)
      }
    },
  }
}

const overloaded = new DcafError('provider_overloaded', 'slow down', { retryable: true })
const multiply = tool({
  name: 'multiply',
  description: 'Multiply numbers',
  input: '{ factors: number[] }',
  execute: ({ factors }) => factors.reduce((product, factor) => product * factor, 1),
})
const agent = {
  name: 'sums',
  provider: fallback(scripted([overloaded, overloaded]), calculator),
  tools: [multiply],
}
console.log((await run(agent, { messages: 'What is 6 times 7?' })).text)

// Prints:
//
// scripted failed (provider_overloaded), asking calculator
// scripted failed (provider_overloaded), asking calculator
// That makes 42.
