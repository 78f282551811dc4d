// A `kubectl` that is none, for the PATH of a test: three pods and a deployment in a file, and a note of every call with what
// it was given. It reads no flags but those that the example uses.

import { chmodSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { delimiter, join } from 'node:path'

export interface Called {
  args: string[]
  env: string[]
  /** Permissions, octal. */
  file: string
  folder: string
  token: string | undefined
}
export interface Cluster {
  pods: Record<string, { uid: string; phase: string }>
  generation: number
}

/** In `folder`, which gets `bin/kubectl`; its `tmp` is where temporary files go. */
export function fakeKubectl(folder: string) {
  const [bin, tmp, state, calls] = ['bin', 'tmp', 'cluster', 'calls'].map((n) =>
    join(folder, n),
  ) as [string, string, string, string]
  mkdirSync(bin)
  mkdirSync(tmp)
  writeFileSync(join(bin, 'kubectl'), program)
  chmodSync(join(bin, 'kubectl'), 0o755)
  const read = (file: string) => (existsSync(file) ? readFileSync(file, 'utf8') : '')
  return {
    env: { PATH: `${bin}${delimiter}${process.env.PATH}`, TMPDIR: tmp },
    tmp,
    get cluster(): Cluster {
      return JSON.parse(read(state))
    },
    set cluster(cluster: Cluster) {
      writeFileSync(state, JSON.stringify(cluster))
    },
    get calls(): Called[] {
      return read(calls)
        .split('\n')
        .filter(Boolean)
        .map((line) => JSON.parse(line))
    },
    /** The arguments, one line a call, reading of the kubeconfig left out. */
    get lines(): string[] {
      return this.calls
        .map(({ args }) => args.join(' '))
        .filter((line) => !line.startsWith('config'))
    },
  }
}

/** A file without an extension is CommonJS. The kubeconfig is taken for JSON, which is YAML too. */
const program = `#!${process.execPath}
const { appendFileSync, readFileSync, statSync, writeFileSync } = require('node:fs')
const { dirname, join } = require('node:path')
const here = dirname(__dirname)
const file = process.env.KUBECONFIG
const config = JSON.parse(readFileSync(file, 'utf8'))
const args = process.argv.slice(2)
const mode = (path) => (statSync(path).mode & 0o777).toString(8)
const { token } = config.users[0].user
const env = Object.keys(process.env).sort()
appendFileSync(
  join(here, 'calls'),
  JSON.stringify({ args, env, file: mode(file), folder: mode(dirname(file)), token }) + '\\n',
)
const cluster = JSON.parse(readFileSync(join(here, 'cluster'), 'utf8'))
const [verb, what] = args
const [kind, name] = verb === 'rollout' ? args[2].split('/') : what.split('/')
const fail = (text) => {
  console.error(text)
  process.exit(1)
}
const pod = (name) => {
  const { uid, phase } = cluster.pods[name] ?? fail('Error from server (NotFound): pods "' + name + '" not found')
  return { metadata: { name, uid }, status: { phase, containerStatuses: [{ restartCount: 2 }] } }
}
if (verb === 'config') console.log(JSON.stringify(config))
else if (name === 'slow') setTimeout(() => {}, 600_000)
else if (name === 'leaky') fail('Unauthorized: ' + token)
else if (verb === 'get' && kind === 'pods')
  console.log(JSON.stringify({ items: Object.keys(cluster.pods).map(pod) }))
else if (verb === 'get' && kind === 'pod') console.log(JSON.stringify(pod(name)))
else if (verb === 'get')
  console.log(JSON.stringify({ metadata: { uid: 'd', generation: cluster.generation }, spec: { replicas: 3 } }))
else if (verb === 'rollout') console.log('deployment.apps/' + name + ' restarted')
else {
  pod(name)
  const isDry = args.includes('--dry-run=server')
  if (!isDry) {
    delete cluster.pods[name]
    writeFileSync(join(here, 'cluster'), JSON.stringify(cluster))
  }
  console.log('pod "' + name + '" deleted' + (isDry ? ' (server dry run)' : ''))
}
`
