// The channel router: whether what was said in a channel is for the agent at all. Loaded when `chatHandler` is given one.

import type { ChatOptions } from './http.ts'
import { isRecord, type WireMessage } from './protocol.ts'
import type { PlatformContext } from './tool.ts'

/** In doubt it stays silent: only a clear yes, or a source that nobody routes, is answered. */
export function routerOf({ router, routedSources = ['slack'] }: ChatOptions) {
  return async (messages: WireMessage[], context: PlatformContext, body: unknown) => {
    const source = isRecord(body) && typeof body.source === 'string' ? body.source : 'help-desk'
    if (!router || !routedSources.includes(source)) return true
    try {
      const said = await router({ messages, context, source })
      return (
        said === true ||
        (isRecord(said) && [said.should_respond, said.shouldRespond].includes(true))
      )
    } catch {
      return false
    }
  }
}
