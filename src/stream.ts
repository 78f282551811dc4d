// A run as an iterator of its events: the same run, its `emit` turned round.

import { type Agent, type RunEvent, type RunInput, type RunOptions, run } from './agent.ts'
import { DcafError } from './providers/provider.ts'

/** The same run as events. Leaving early aborts the model; approved tools finish and are recorded. */
export async function* stream(
  agent: Agent,
  input: RunInput,
  options: RunOptions = {},
): AsyncGenerator<RunEvent> {
  const controller = new AbortController()
  const abort = () => controller.abort(options.signal?.reason)
  options.signal?.addEventListener('abort', abort)
  if (options.signal?.aborted) abort()
  const events: RunEvent[] = []
  let taken = Promise.withResolvers<void>()
  let came = Promise.withResolvers<void>()
  const emit = async (event: RunEvent): Promise<void> => {
    events.push(event)
    came.resolve()
    await options.emit?.(event)
    if (!controller.signal.aborted) await taken.promise
  }
  const running = run(agent, input, { ...options, emit, signal: controller.signal })
  running.then(
    () => came.resolve(),
    () => came.resolve(),
  )
  let ended = false
  try {
    while (!ended) {
      await came.promise
      came = Promise.withResolvers()
      const batch = events.splice(0)
      if (batch.length === 0) await running // nothing came, so it threw
      for (const event of batch) {
        yield event
        ended ||= event.type === 'done' || event.type === 'error'
      }
      taken.resolve()
      taken = Promise.withResolvers()
    }
  } finally {
    if (!ended) controller.abort(new DcafError('aborted', 'the reader left the stream'))
    taken.resolve()
    options.signal?.removeEventListener('abort', abort)
  }
}
