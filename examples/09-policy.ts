// Policies judge every call, also of tools that somebody else wrote: allow, ask or deny. The
// strictest of all wins, so adding one can only tighten. They are asked when the call is proposed,
// and again right before it runs.

import {
  type Agent,
  highRisk,
  matching,
  onTools,
  type PlatformContext,
  run,
  tool,
  whenContext,
  whenInput,
} from '../src/index.ts'
import { scripted } from '../src/providers/scripted.ts'

const strictProduction: Agent['policy'] = [
  highRisk('delete_*', 'restart_*', /(drop|purge)_.+/),
  whenContext({ tenant_name: 'prod*' }, 'ask', 'production'),
  onTools('delete_*', whenContext({ user_roles: 'viewer' }, 'deny', 'not for viewers')),
  onTools('*', whenInput({ namespace: 'kube-*' }, 'deny', 'the cluster itself is off limits')),
]

const simple = (name: string) =>
  tool({ name, description: name, input: '{ namespace: string }', execute: () => 'ok' })
const kubectl = tool({
  name: 'kubectl',
  description: 'Run kubectl',
  input: '{ command: string }',
  // Only what matches as a whole, and is one plain line, runs unasked.
  requiresApproval: matching({
    allow: ['kubectl get *', 'kubectl get * -n *'],
    deny: [/\bdelete\b.*--all/],
  }),
  execute: ({ command }) => `ran ${command}`,
})

const tools = [simple('list_pods'), simple('delete_pod'), kubectl]

type Asked = { name: string; input: object }
async function judge(context: PlatformContext, ...calls: Asked[]): Promise<void> {
  const provider = scripted([{ calls }, 'Done.'])
  const agent = { name: 'ops', provider, tools, policy: strictProduction }
  const { state } = await run(agent, { messages: 'Go' }, { context })
  console.log(context)
  for (const { name, input, status, reasons = [], rejectionReason } of state.calls) {
    const what = Object.values(input as object).join()
    console.log(`  ${name} ${what}: ${status}`, rejectionReason ?? reasons.join())
  }
}

const list = { name: 'list_pods', input: { namespace: 'shop' } }
const remove = { name: 'delete_pod', input: { namespace: 'shop' } }
const removeSystem = { name: 'delete_pod', input: { namespace: 'kube-system' } }
const type = (command: string) => ({ name: 'kubectl', input: { command } })
await judge(
  { tenant_name: 'dev', user_roles: ['admin'] },
  ...[list, remove, removeSystem],
  type('kubectl get pods -n shop'),
  type('kubectl get pods; rm -rf /'),
  type('kubectl delete pods --all'),
)
await judge({ tenant_name: 'prod-eu', user_roles: ['viewer'] }, list, remove)
await judge({}, list) // unknown is not harmless

// Prints:
//
// { tenant_name: 'dev', user_roles: [ 'admin' ] }
//   list_pods shop: completed
//   delete_pod shop: pending high risk
//   delete_pod kube-system: rejected the cluster itself is off limits
//   kubectl kubectl get pods -n shop: completed
//   kubectl kubectl get pods; rm -rf /: pending command has shell operators or quotes
//   kubectl kubectl delete pods --all: rejected command is of a forbidden kind
// { tenant_name: 'prod-eu', user_roles: [ 'viewer' ] }
//   list_pods shop: pending production
//   delete_pod shop: rejected not for viewers
// {}
//   list_pods shop: pending production: tenant_name could not be judged
