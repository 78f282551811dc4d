// A whole agent: it looks at the pods of a Kubernetes cluster, and deletes or restarts what a
// person approved after seeing what the cluster itself says would happen. The cluster is the one of
// the kubeconfig in each request's platform context.
//   DCAF_PROVIDER=anthropic DCAF_MODEL=claude-sonnet-4-5 node examples/kubernetes.ts
// Covers: options smuggled in as names, shells, a kubeconfig that runs programs or reads files of
// this server, another pod of the same name. Does not cover: who may call; hand `authenticate` to
// chatHandler before others can reach it.

import { execFile } from 'node:child_process'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import Type from 'typebox'
import {
  type Agent,
  chatHandler,
  onSignals,
  type Policy,
  type Provider,
  serverOptions,
  type ToolContext,
  tool,
  withHostCheck,
} from '../src/index.ts'
import { providerFromEnv } from '../src/providers/env.ts'

/** No name can begin with a dash, so none can be an option such as `--all`. */
const Name = Type.String({ pattern: '^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$' })
const namespace = Type.Optional(Name)

const listPods = tool({
  name: 'list_pods',
  description: 'List the pods of a namespace',
  input: Type.Object({ namespace }),
  async execute(input, ctx) {
    const { items } = await get(ctx, 'pods', input)
    return items.map(({ metadata, status }: Pod) => ({
      name: metadata.name,
      phase: status.phase,
      restarts: status.containerStatuses?.reduce((sum, c) => sum + c.restartCount, 0) ?? 0,
      started: status.startTime,
    }))
  },
})

const deletePod = tool({
  name: 'delete_pod',
  description: 'Delete a pod; what controls it usually makes another',
  input: Type.Object({ name: Name, namespace }),
  requiresApproval: true,
  async preview(input, ctx) {
    const what = `pod/${input.name}`
    const { metadata, status }: Pod = await get(ctx, what, input)
    const dryRun = await kubectl(ctx, 'delete', what, ...inside(input, ctx), '--dry-run=server')
    const text = `${dryRun}\nin namespace ${namespaceOf(input, ctx)}, ${status.phase}`
    return { text, key: metadata.uid } // another pod of that name has another uid: asked again
  },
  execute: (input, ctx) =>
    kubectl(ctx, 'delete', `pod/${input.name}`, ...inside(input, ctx), '--wait=false'),
})

const restart = tool({
  name: 'restart_deployment',
  description: 'Replace all pods of a deployment, a few at a time',
  input: Type.Object({ name: Name, namespace }),
  requiresApproval: true,
  async preview(input, ctx) {
    const { metadata, spec } = await get(ctx, `deployment/${input.name}`, input)
    const text = `replaces ${spec.replicas} pods in namespace ${namespaceOf(input, ctx)}`
    return { text, key: `${metadata.uid} ${metadata.generation}` } // changed meanwhile: asked again
  },
  execute: (input, ctx) =>
    kubectl(ctx, 'rollout', 'restart', `deployment/${input.name}`, ...inside(input, ctx)),
})

const systemIsOffLimits: Policy = ({ input }, ctx) => {
  const name = namespaceOf(input as Inside, ctx)
  if (!name.startsWith('kube-')) return undefined
  return { verdict: 'deny', reason: `${name} belongs to the cluster itself` }
}

export function kubernetesAgent(provider: Provider): Agent {
  return {
    name: 'kubernetes',
    description: 'Operates the Kubernetes cluster of whoever asks.',
    provider,
    system:
      'You operate a Kubernetes cluster with the tools you have. Look before you act. ' +
      'Deleting and restarting wait for a person: call the tool, do not ask in words. ' +
      'What was rejected stays undone. Answer briefly.',
    visibleContext: ['tenant_name', 'k8s_namespace'],
    tools: [listPods, deletePod, restart],
    policy: systemIsOffLimits,
  }
}

// ---- kubectl

type Inside = { namespace?: string }
interface Pod {
  metadata: { name: string; uid: string }
  status: { phase: string; startTime?: string; containerStatuses?: { restartCount: number }[] }
}

function namespaceOf({ namespace }: Inside, { platform }: ToolContext): string {
  return namespace ?? platform.k8s_namespace ?? 'default'
}
function inside(input: Inside, ctx: ToolContext): string[] {
  return ['--namespace', namespaceOf(input, ctx)]
}

async function get(ctx: ToolContext, what: string, input: Inside) {
  return JSON.parse(await kubectl(ctx, 'get', what, ...inside(input, ctx), '--output', 'json'))
}

/** What it printed. The kubeconfig is a file while this runs, and only its owner can read it. */
async function kubectl(ctx: ToolContext, ...args: string[]): Promise<string> {
  const { kubeconfig } = ctx.platform
  if (!kubeconfig) throw new Error('This request brought no kubeconfig.')
  const folder = await mkdtemp(join(tmpdir(), 'kube-')) // 0700
  const file = join(folder, 'config')
  // No shell, and nothing of this server's own environment but where programs are.
  const env = { PATH: process.env.PATH, HOME: folder, KUBECONFIG: file }
  const limits = { signal: ctx.signal, maxBuffer: 16 * 1024 * 1024 }
  const call = async (...args: string[]) => {
    const { stdout } = await promisify(execFile)('kubectl', args, { env, ...limits })
    return stdout.trim()
  }
  try {
    await writeFile(file, Buffer.from(kubeconfig, 'base64'), { mode: 0o600 })
    const read = await call('config', 'view', '--minify', '--raw', '--output', 'json')
    await writeFile(file, dataOnly(read))
    return await call(...args)
  } catch (error) {
    const { stderr } = error as { stderr?: string }
    throw stderr ? new Error(stderr.trim(), { cause: error }) : error
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

const inert = new Set([
  ...['server', 'tls-server-name', 'insecure-skip-tls-verify', 'certificate-authority-data'],
  ...['token', 'username', 'password', 'client-certificate-data', 'client-key-data'],
  ...['as', 'as-groups', 'extensions'],
])

/** As kubectl read it. Programs to run (`exec`) and paths to read are not the caller's to name. */
function dataOnly(kubeconfig: string): string {
  const { clusters, users } = JSON.parse(kubeconfig)
  const entries: { cluster?: object; user?: object }[] = [...(clusters ?? []), ...(users ?? [])]
  const fields = entries.flatMap(({ cluster, user }) => Object.keys({ ...cluster, ...user }))
  const refused = fields.filter((field) => !inert.has(field))
  if (refused.length === 0) return kubeconfig
  const how = 'kubectl config view --flatten --minify --raw'
  throw new Error(`The kubeconfig has ${refused}; only data is accepted, as ${how} gives it.`)
}

// ---- the service

if (process.argv[1] === import.meta.filename) {
  const chat = chatHandler(kubernetesAgent(await providerFromEnv()))
  const handle = withHostCheck(chat)
  const server = createServer(serverOptions, async (req, res) => {
    if (!(await handle(req, res))) res.writeHead(404).end()
  })
  server.listen(Number(process.env.PORT ?? 8000), '127.0.0.1', () =>
    console.log(`http://127.0.0.1:${(server.address() as AddressInfo).port}/api/chat`),
  )
  onSignals(server, chat)
}
