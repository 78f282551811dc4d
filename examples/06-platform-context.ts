// Who asks, for whom, with which credentials: the platform context reaches every tool and never the
// model. Keys that you list in `visibleContext` are the exception; secret ones cannot be listed. A
// tool that says a secret aloud is masked: for the model, in events, in the answer.

import { run, tool } from '../src/index.ts'
import { scripted } from '../src/providers/scripted.ts'

const listHosts = tool({
  name: 'list_hosts',
  description: 'List the hosts of the tenant',
  input: '{}',
  execute(_, { platform }) {
    const authorization = `Bearer ${platform.duplo_token}`
    return `GET ${platform.duplo_base_url}/hosts with ${authorization}: web-1, web-2`
  },
})

const provider = scripted([{ calls: [{ name: 'list_hosts' }] }, 'You have web-1 and web-2.'])
const agent = {
  name: 'hosts',
  provider,
  system: 'You know the hosts of a tenant.',
  visibleContext: ['tenant_name'],
  tools: [listHosts],
}

const context = {
  tenant_name: 'acme',
  duplo_base_url: 'https://duplo.example',
  duplo_token: 'not-a-real-token',
}
const { text, executed } = await run(agent, { messages: 'Which hosts have I?' }, { context })
console.log(text)
console.log('the tool said:', executed[0]?.output)

const [request] = provider.requests
for (const block of request?.system ?? []) console.log('the model read:', block.text)
const heard = JSON.stringify(provider.requests)
for (const word of ['acme', 'duplo.example', 'not-a-real-token'])
  console.log(`${word} reached the model:`, heard.includes(word))

const careless = { ...agent, visibleContext: ['duplo_token'] }
await run(careless, { messages: '' }).catch((error) => console.log(error.message))

// Prints:
//
// You have web-1 and web-2.
// the tool said: GET https://duplo.example/hosts with Bearer [redacted]: web-1, web-2
// the model read: You know the hosts of a tenant.
// the model read: tenant_name: acme
// acme reached the model: true
// duplo.example reached the model: true
// not-a-real-token reached the model: false
// visibleContext names duplo_token, which is secret
