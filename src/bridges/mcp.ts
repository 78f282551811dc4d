// Tools of an MCP server as tools of ours, over a connected client of the caller's (structurally the `Client` of
// @modelcontextprotocol/sdk). Knows no transport. What is not annotated read-only asks a person, unless `autoApprove`
// says otherwise; a server's annotations are its own word (https://modelcontextprotocol.io/specification, "Tools"), so
// give `autoApprove` where you do not trust them.

import type { Preview, Tool, ToolContext } from '../tool.ts'
import { tool } from '../tool.ts'

/** As much of the official client as is used here. */
export interface McpClient {
  listTools(params?: {
    cursor?: string
  }): Promise<{ tools: McpTool[]; nextCursor?: string | undefined }>
  callTool(
    params: { name: string; arguments?: Record<string, unknown> },
    resultSchema?: undefined,
    options?: McpCallOptions,
  ): Promise<unknown>
  /** Declared as a method, so that the client's own, which knows more of `params`, fits. */
  fallbackNotificationHandler?(notification: { method: string; params?: unknown }): Promise<void>
}
export interface McpTool {
  name: string
  title?: string | undefined
  description?: string | undefined
  inputSchema: { type: 'object'; [key: string]: unknown }
  annotations?: { title?: string | undefined; readOnlyHint?: boolean | undefined } | undefined
  execution?: { taskSupport?: string | undefined } | undefined
}
type McpCallOptions = {
  signal?: AbortSignal
  timeout?: number
  onprogress?: (progress: {
    progress: number
    total?: number | undefined
    message?: string | undefined
  }) => void
}

export interface McpOptions {
  /** Globs over the server's names: `*`, `?`, `[abc]`, `[!abc]`. Default: all. */
  include?: string[]
  /** Globs; what both name is left out. */
  exclude?: string[]
  /** Globs of tools that run unasked. With it every other tool asks, annotated or not. */
  autoApprove?: string[]
  /** Put before each name, so that two servers do not collide. */
  prefix?: string
  /** Milliseconds a call may take. Default 60,000. */
  timeoutMs?: number
  /** More of each tool's definition: a preview, who approves, how long an approval holds. */
  define?: (mcp: McpTool) => McpToolOverrides | undefined
  /** Called with the new list when the server says that its tools changed; put it where the old one was. */
  onChange?: (tools: Tool[]) => void
}
/** What `define` may add to a tool. */
export type McpToolOverrides = {
  requiresApproval?: true
  preview?: (input: Record<string, unknown>, ctx: ToolContext) => Preview | Promise<Preview>
  approver?: Tool['approver']
  quorum?: number
  editable?: boolean
  approvalTtlMs?: number
  timeoutMs?: number
  idempotent?: boolean
}

/** The server's tools, all pages of them. Throws where two names become one, and where the client does. */
export async function mcpTools(client: McpClient, options: McpOptions = {}): Promise<Tool[]> {
  if (options.onChange) listen(client, options)
  return load(client, options)
}

const maxPages = 1_000

async function load(client: McpClient, options: McpOptions): Promise<Tool[]> {
  const listed: McpTool[] = []
  let cursor: string | undefined
  const seen = new Set<string | undefined>()
  do {
    if (seen.has(cursor) || seen.size === maxPages)
      throw new Error(`the MCP server's list of tools does not end (${seen.size} pages)`)
    seen.add(cursor)
    const page = await client.listTools(cursor === undefined ? undefined : { cursor })
    listed.push(...page.tools)
    cursor = page.nextCursor
  } while (cursor !== undefined)
  const { include = ['*'], exclude = [] } = options
  const chosen = listed.filter(({ name, execution }) => {
    // A tool that can only run as a background task has no answer to wait for.
    const waits = execution?.taskSupport !== 'required'
    return waits && matches(include, name) && !matches(exclude, name)
  })
  const tools = chosen.map((mcp) => bridged(client, mcp, options))
  const twice = tools.find(({ name }, i) => tools.findIndex((t) => t.name === name) !== i)
  if (twice)
    throw new Error(`two tools of the MCP server become ${twice.name}; exclude one of them`)
  return tools
}

function bridged(client: McpClient, mcp: McpTool, options: McpOptions): Tool {
  const { autoApprove, prefix = '', timeoutMs = 60_000, define } = options
  const { name, title, description, annotations, inputSchema } = mcp
  const asks = autoApprove ? !matches(autoApprove, name) : annotations?.readOnlyHint !== true
  const more = define?.(mcp) ?? {}
  const clock = more.timeoutMs ?? timeoutMs
  return tool<Record<string, unknown>>({
    name: `${prefix}${name}`.replace(/[^A-Za-z0-9_-]/g, '_').slice(0, 64),
    description: description?.trim() || title || annotations?.title || name,
    input: inputSchema,
    timeoutMs: clock,
    ...(more as object),
    requiresApproval: asks || (more.requiresApproval ?? false),
    async execute(input: unknown, ctx: ToolContext) {
      // Ours is the clock: the client's own default of a minute must not end a call that may take longer.
      const result = await client.callTool(
        { name, arguments: input as Record<string, unknown> },
        undefined,
        {
          signal: ctx.signal,
          timeout: clock + 1000,
          onprogress: ({ progress, total, message }) =>
            ctx.update(
              message ?? `${name}: ${progress}${total === undefined ? '' : ` of ${total}`}`,
            ),
        },
      )
      const { isError, ...content } = result as McpResult
      if (isError) throw new Error(textOf(content) || 'the MCP server gave no reason')
      return textOf(content)
    },
  })
}

type McpContent =
  | { type: 'text'; text: string }
  | { type: 'image' | 'audio'; mimeType: string; data: string }
  | { type: 'resource'; resource: { uri: string; text?: string; mimeType?: string } }
  | { type: 'resource_link'; uri: string; name?: string; description?: string }
type McpResult = {
  content?: McpContent[]
  structuredContent?: unknown
  isError?: boolean
  toolResult?: unknown
}

/** Text for the model. Structured content counts where there is no text: servers send it as text too. */
function textOf({ content = [], structuredContent, toolResult }: McpResult): string {
  const text = content.map(partOf).filter(Boolean).join('\n')
  const other = structuredContent ?? toolResult
  return text || (other === undefined ? '' : JSON.stringify(other))
}

function partOf(part: McpContent): string {
  switch (part.type) {
    case 'text':
      return part.text
    case 'image':
    case 'audio':
      return `[${part.type} ${part.mimeType}, ${Math.floor((part.data.length * 3) / 4)} bytes]`
    case 'resource':
      return part.resource.text ?? `[resource ${part.resource.uri}]`
    case 'resource_link':
      return `[resource ${part.uri}${part.description ? `: ${part.description}` : ''}]`
    default:
      return `[${(part as { type: string }).type}]`
  }
}

/** Other notifications go on to whoever listened before. */
function listen(client: McpClient, options: McpOptions): void {
  const before = client.fallbackNotificationHandler
  client.fallbackNotificationHandler = async (notification) => {
    if (notification.method === 'notifications/tools/list_changed')
      options.onChange?.(await load(client, options))
    await before?.(notification)
  }
}

function matches(globs: string[], name: string): boolean {
  return globs.some((glob) => pattern(glob).test(name))
}

/** A glob over a whole name, as the shell reads it; case counts. */
function pattern(glob: string): RegExp {
  const source = glob.replace(
    /\[(!?)([^\]]+)\]|[\\^$.*+?()[\]{}|]/g,
    (found, not: string, set: string) => {
      if (set !== undefined) return `[${not ? '^' : ''}${set.replace(/[\\\]^]/g, '\\$&')}]`
      return found === '*' ? '.*' : found === '?' ? '.' : `\\${found}`
    },
  )
  return new RegExp(`^${source}$`, 's')
}
