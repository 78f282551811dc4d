// The only barrel. Loads no provider, no store that needs a client, and nothing of AWS.

export * from './agent.ts'
export * from './approval.ts'
export * from './http.ts'
export * from './mask.ts'
export * from './providers/provider.ts'
export * from './session.ts'
export * from './store.ts'
export * from './tool.ts'
