// An agent behind the A2A protocol (https://a2a-protocol.org, v1.0) through the official @a2a-js/sdk of the caller's, and
// a remote A2A agent as a tool. Structural: nothing of the SDK is imported. A pending approval is the task state
// input-required; an approval comes back as a message with a data part. The run waits sealed in the task itself.

import { type Agent, type ChatMessage, type PendingCall, type RunOptions, run } from '../agent.ts'
import type { Decision } from '../approval.ts'
import { type Tool, type ToolContext, tool } from '../tool.ts'

// Numbers of the specification's enums, as the SDK has them.
const working = 2
const completed = 3
const failed = 4
const canceled = 5
const inputRequired = 6
const fromUser = 1
const fromAgent = 2

type Content =
  | { $case: 'text'; value: string }
  | { $case: 'data'; value?: unknown }
  | { $case: 'raw' | 'url'; value: unknown }
interface Part {
  content?: Content | undefined
  metadata: Record<string, unknown> | undefined
  filename: string
  mediaType: string
}
interface Message {
  messageId: string
  contextId: string
  taskId: string
  role: number
  parts: Part[]
  metadata: Record<string, unknown> | undefined
  extensions: string[]
  referenceTaskIds: string[]
}
interface Status {
  state: number
  message: Message | undefined
  timestamp: string | undefined
}
interface Artifact {
  artifactId: string
  name: string
  description: string
  parts: Part[]
  metadata: undefined
  extensions: string[]
}
interface Task {
  id: string
  contextId: string
  status: Status | undefined
  artifacts: Artifact[]
  history: Message[]
  metadata: Record<string, unknown> | undefined
}
type Ids = { taskId: string; contextId: string }
type A2aEvent =
  | { kind: 'task'; data: Task }
  | { kind: 'statusUpdate'; data: Ids & { status: Status; metadata: undefined } }
  | {
      kind: 'artifactUpdate'
      data: Ids & { artifact: Artifact; append: boolean; lastChunk: boolean; metadata: undefined }
    }
interface EventBus {
  publish(event: A2aEvent): void
  finished(): void
}
interface RequestContext {
  taskId: string
  contextId: string
  userMessage: Message
  task?: Task
  context: { user?: { isAuthenticated: boolean; userName: string } | undefined }
}

/** What a client answers an input-required task with, in a data part. */
export interface A2aDecisions {
  decisions: {
    id: string
    execute: boolean
    rejection_reason?: string
    edited_input?: unknown
    path?: string[]
  }[]
}

/** An `AgentExecutor` for the SDK's request handler. `options` are of every run: keys, store, limits, onEvent. */
export function a2aExecutor(
  agent: Agent,
  options: Omit<RunOptions, 'emit' | 'signal' | 'principal' | 'threadId'> = {},
) {
  const underWay = new Map<string, { stop: AbortController; contextId: string }>()

  async function execute(request: RequestContext, bus: EventBus): Promise<void> {
    const { taskId, contextId, userMessage, task, context } = request
    const ids = { taskId, contextId }
    const stop = new AbortController()
    underWay.set(taskId, { stop, contextId })
    const history = task?.history.length ? task.history : [userMessage]
    bus.publish({
      kind: 'task',
      data: { ...blank, ...task, id: taskId, contextId, history, status: status(ids, working) },
    })
    const artifactId = crypto.randomUUID()
    let pieces = 0
    const say = (text: string) => {
      const artifact = {
        artifactId,
        name: 'answer',
        description: '',
        parts: [textPart(text)],
        metadata: undefined,
        extensions: [],
      }
      bus.publish({
        kind: 'artifactUpdate',
        data: { ...ids, artifact, append: pieces++ > 0, lastChunk: false, metadata: undefined },
      })
    }
    const tell = (state: number, parts: Part[] = [], metadata?: Record<string, unknown>) =>
      bus.publish({
        kind: 'statusUpdate',
        data: { ...ids, status: status(ids, state, parts, metadata), metadata: undefined },
      })
    try {
      const { user } = context
      const paused = task?.status?.message?.metadata?.dcafRun
      const result = await run(
        agent,
        {
          messages: thread(task, userMessage),
          decisions: decisionsOf(userMessage),
          ...(typeof paused === 'string' && { paused }),
        },
        {
          ...options,
          threadId: contextId,
          principal: user?.isAuthenticated ? user.userName : undefined,
          signal: stop.signal,
          emit(event) {
            if (event.type === 'text_delta') say(event.text)
            if (event.type === 'intermittent_update') tell(working, [textPart(event.text)])
          },
        },
      )
      const text = result.text ? [textPart(result.text)] : []
      if (stop.signal.aborted) tell(canceled)
      else if (result.error) tell(failed, [textPart('The agent could not answer.')])
      else if (result.needsApproval)
        tell(inputRequired, [...text, dataPart({ approvals: result.pending.map(shown) })], {
          dcafRun: result.paused,
        })
      else tell(completed, text)
    } catch {
      tell(failed, [textPart('The agent could not answer.')]) // a caller's mistake: the client learns no more than that
    } finally {
      underWay.delete(taskId)
      bus.finished()
    }
  }

  /** Aborts the model and automatic tools; what a person approved finishes and is recorded. */
  async function cancelTask(taskId: string, bus: EventBus): Promise<void> {
    const live = underWay.get(taskId)
    if (live) return live.stop.abort()
    const ids = { taskId, contextId: '' }
    bus.publish({
      kind: 'statusUpdate',
      data: { ...ids, status: status(ids, canceled), metadata: undefined },
    })
    bus.finished()
  }

  return { execute, cancelTask }
}

/** The agent card, without security schemes: add those of your server. */
export function a2aCard(
  agent: Agent,
  { url, version = '1.0.0' }: { url: string; version?: string },
) {
  const modes = ['text/plain', 'application/json']
  const { name, description = name } = agent
  return {
    name,
    description,
    version,
    supportedInterfaces: [{ url, protocolBinding: 'JSONRPC', tenant: '', protocolVersion: '1.0' }],
    provider: undefined,
    capabilities: { streaming: true, pushNotifications: false, extensions: [] },
    securitySchemes: {},
    securityRequirements: [],
    defaultInputModes: modes,
    defaultOutputModes: modes,
    skills: [
      {
        id: name,
        name,
        description,
        tags: ['agent'],
        examples: [],
        inputModes: modes,
        outputModes: modes,
        securityRequirements: [],
      },
    ],
    signatures: [],
  }
}

/** What is used of the SDK's `Client`. */
export interface A2aClient {
  sendMessage(
    params: { tenant: string; message: Message; configuration: undefined; metadata: undefined },
    options?: { signal?: AbortSignal },
  ): Promise<unknown>
}
export interface A2aToolOptions {
  name: string
  description: string
  /** Default true: what the remote agent does, nobody here can see. */
  requiresApproval?: boolean
  timeoutMs?: number
}

/** A remote agent as a tool with a `task`. A remote that fails, is cancelled or waits for its own person is an error here. */
export function a2aTool(client: A2aClient, options: A2aToolOptions): Tool {
  const { name, description, requiresApproval = true, timeoutMs = 300_000 } = options
  return tool({
    name,
    description,
    input: '{ task: string }',
    requiresApproval,
    timeoutMs,
    async execute({ task }: { task: string }, ctx: ToolContext) {
      const ids = { taskId: '', contextId: '' }
      const message = { ...messageOf(ids, fromUser, [textPart(task)]), messageId: ctx.callId }
      const params = { tenant: '', message, configuration: undefined, metadata: undefined }
      const answer = (await client.sendMessage(params, { signal: ctx.signal })) as Task | Message
      if ('parts' in answer) return textOf(answer.parts)
      const said = textOf(answer.status?.message?.parts ?? [])
      if (answer.status?.state === completed)
        return said || answer.artifacts.map((a) => textOf(a.parts)).join('\n')
      if (answer.status?.state === inputRequired)
        throw new Error(`the remote agent waits for its own approval (task ${answer.id}): ${said}`)
      throw new Error(
        `the remote agent did not finish: ${said || `task state ${answer.status?.state}`}`,
      )
    },
  })
}

function thread(task: Task | undefined, last: Message): ChatMessage[] {
  const history = [...(task?.history ?? []).filter((m) => m.messageId !== last.messageId), last]
  return history.map(({ role, parts }) => ({
    role: role === fromAgent ? 'assistant' : 'user',
    content: textOf(parts),
  }))
}

/** Only a data part decides; words close what waits, as everywhere. */
function decisionsOf({ parts }: Message): Decision[] {
  const said = parts.flatMap(({ content }) => (content?.$case === 'data' ? [content.value] : []))
  const items = said.flatMap(
    (value) => (value as Partial<A2aDecisions> | undefined)?.decisions ?? [],
  )
  return items.map(({ id, execute, rejection_reason, edited_input, path }) => ({
    id: String(id),
    approve: execute === true && rejection_reason === undefined,
    ...(execute !== true && { reason: rejection_reason ?? 'not approved' }),
    ...(edited_input !== undefined && { editedInput: edited_input }),
    ...(path && { path }),
  }))
}

function shown({
  id,
  type,
  name,
  input,
  description,
  effectiveInput,
  preview,
  reasons,
  expiresAt,
  path,
}: PendingCall) {
  return {
    id,
    type,
    name,
    input,
    description,
    expires_at: expiresAt,
    ...(effectiveInput !== undefined && { effective_input: effectiveInput }),
    ...(preview !== undefined && { preview }),
    ...(reasons && { reasons }),
    ...(path && { path }),
  }
}

const blank = { artifacts: [], history: [], metadata: undefined }

function textPart(value: string): Part {
  return {
    content: { $case: 'text', value },
    metadata: undefined,
    filename: '',
    mediaType: 'text/plain',
  }
}
function dataPart(value: unknown): Part {
  return {
    content: { $case: 'data', value },
    metadata: undefined,
    filename: '',
    mediaType: 'application/json',
  }
}
function textOf(parts: Part[]): string {
  return parts.flatMap(({ content }) => (content?.$case === 'text' ? [content.value] : [])).join('')
}
function messageOf(
  ids: Ids,
  role: number,
  parts: Part[],
  metadata?: Record<string, unknown>,
): Message {
  return {
    ...ids,
    messageId: crypto.randomUUID(),
    role,
    parts,
    metadata,
    extensions: [],
    referenceTaskIds: [],
  }
}
function status(
  ids: Ids,
  state: number,
  parts: Part[] = [],
  metadata?: Record<string, unknown>,
): Status {
  const message = parts.length > 0 ? messageOf(ids, fromAgent, parts, metadata) : undefined
  return { state, message, timestamp: new Date().toISOString() }
}
