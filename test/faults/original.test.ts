// Requests in the shapes that clients of the original send (its guides and schema references describe them), and the
// fields that they read in its answers and streams.

import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import { a, type Json, serve, u } from '../harness.ts'
import { context, keepClean, see } from './clean.ts'
import { desk } from './desk.ts'
import { tried } from './table.ts'

keepClean()

const open = async (t: TestContext) => {
  const it = desk()
  return { ...it, ...(await serve(t, it.agent, { log: see, onEvent: see })) }
}

const ann = { name: 'ann', id: 'U1' }
const bot = { name: 'k8s', id: 'B2' }
const at = '2025-05-20T18:00:46.123456Z'
const tenant = { user_id: 'ann', tenant_name: 'staging', k8s_namespace: 'web' }
const cluster = {
  ...tenant,
  tenant_id: '7859b3f9-6d74-44fd-b20f-2b9c1e056761',
  duplo_base_url: 'duplo.example',
  grafana_base_url: 'https://grafana.example',
  aws_security_group_name: 'sg-web',
  aws_iam_role_name: 'role-web',
}
const pending = {
  id: 'toolu_9',
  name: 'drop',
  input: { table: 'a' },
  execute: false,
  tool_description: 'Drop a table',
  input_description: { table: { type: 'string', description: 'Which one' } },
  intent: 'Make room',
}
const approval = {
  id: 'appr_1',
  type: 'tool_call',
  name: 'drop',
  input: { table: 'a' },
  description: 'Drop a',
}
const command = { command: 'kubectl get pods -n web', execute: false, files: null }
const chart = {
  command: 'helm install web ./chart',
  execute: false,
  files: [
    { file_path: 'chart/Chart.yaml', file_content: 'apiVersion: v2\nname: web\n' },
    { file_path: 'chart/values.yaml', file_content: 'replicas: 2\n', refers_persistent_file: 'f1' },
  ],
}
const ran = { command: 'kubectl get nodes', output: 'NAME  STATUS\nn1  Ready' }
const done = { id: 'toolu_8', name: 'look', input: { at: 'web' }, output: 'all is well' }
const link = { url: 'https://grafana.example/d/cpu', description: 'CPU' }

const requests: Json[] = [
  { messages: [u('What can you do?')] },
  { messages: [u('What is a pod?'), a('A pod is ...'), u('And a node?')] },
  { messages: [{ ...u('List my pods'), platform_context: tenant }] },
  { messages: [{ ...u('List my pods'), platform_context: cluster, timestamp: at }] },
  { messages: [{ ...u('List my pods'), platform_context: context, data: {} }] },
  { messages: [u('hi')], source: 'help-desk' },
  { messages: [u('hi')], source: 'slack' },
  { messages: [u('hi')], source: 'some-bot', thread_id: 't-1', tenant_id: 'x', session_id: 's' },
  {
    messages: [
      { ...u('hi'), user: ann },
      { ...a('yes?'), agent: bot },
      { ...u('nodes'), user: ann },
    ],
    source: 'slack',
  },
  {
    messages: [
      { ...u('hi'), data: { cmds: [], executed_cmds: [], url_configs: [] }, timestamp: at },
    ],
  },
  {
    messages: [
      {
        role: 'user',
        content: 'hi',
        data: { cmds: [], tool_calls: [], executed_tool_calls: [] },
        meta_data: {},
        timestamp: null,
        user: null,
        agent: null,
        platform_context: null,
        ambient_context: null,
      },
    ],
  },
  { messages: [{ ...u('hi'), ambient_context: { user_terminal_cmds: [ran] } }] },
  { messages: [{ ...u('hi'), meta_data: { page: 3 }, user: { name: 'ann', id: '1' } }] },
  {
    messages: [
      u('restart it'),
      a('Please approve', { cmds: [command] }),
      u('', { cmds: [{ ...command, execute: true }] }),
    ],
  },
  { messages: [u('restart it', { cmds: [{ ...command, execute: true }] })] },
  {
    messages: [
      u('x'),
      a('y', { cmds: [command] }),
      u('', { cmds: [{ ...command, execute: false, rejection_reason: 'Too much output' }] }),
    ],
  },
  {
    messages: [
      u('x'),
      a('y', { cmds: [command, chart] }),
      u('', {
        cmds: [
          { ...command, execute: true },
          { ...chart, execute: false },
        ],
      }),
    ],
  },
  {
    messages: [
      u('install'),
      a('With these files', { cmds: [chart] }),
      u('', { cmds: [{ ...chart, execute: true }] }),
    ],
  },
  { messages: [u('I ran this myself', { executed_cmds: [ran] })] },
  {
    messages: [
      u('x'),
      a('y', { executed_cmds: [ran], cmds: [command] }),
      u('go on', { cmds: [{ ...command, execute: true }], executed_cmds: [ran] }),
    ],
  },
  {
    messages: [
      u('drop it'),
      a('I need your approval', { tool_calls: [pending] }),
      u('', { tool_calls: [{ ...pending, execute: true }] }),
    ],
  },
  {
    messages: [
      u('drop it', {
        tool_calls: [{ id: 'toolu_9', name: 'drop', input: { table: 'a' }, execute: true }],
      }),
    ],
  },
  {
    messages: [
      u('drop it', {
        tool_calls: [
          { id: 'toolu_9', name: 'drop', input: { table: 'a' }, rejection_reason: 'Wrong one' },
        ],
      }),
    ],
  },
  {
    messages: [
      u('drop it'),
      a('I need your approval', { tool_calls: [{ ...pending, execute: true }] }),
      u('Yes, approved'),
    ],
  },
  {
    messages: [
      u('drop it'),
      a('I need your approval', { tool_calls: [pending] }),
      u('No, leave it'),
    ],
  },
  {
    messages: [
      u('x'),
      a('y', { tool_calls: [pending], approvals: [approval] }),
      u('', { approvals: [{ ...approval, execute: true }] }),
    ],
  },
  { messages: [u('x', { approvals: [{ ...approval, execute: false, rejection_reason: 'no' }] })] },
  {
    messages: [
      u('x', {
        approvals: [
          {
            ...approval,
            type: 'command',
            name: 'execute_terminal_cmd',
            input: { command: 'ls' },
            execute: true,
          },
        ],
      }),
    ],
  },
  {
    messages: [
      u('x', {
        approvals: [
          {
            ...approval,
            type: 'query',
            name: 'run_query',
            input: { sql: 'select 1' },
            execute: true,
          },
        ],
      }),
    ],
  },
  { messages: [u('x'), a('All is well', { executed_tool_calls: [done] }), u('thanks')] },
  {
    messages: [
      u('x'),
      a('All is well', { executed_tool_calls: [{ ...done, output: { ok: true } }] }),
      u('thanks'),
    ],
  },
  {
    messages: [
      u('x'),
      a('Done', { executed_approvals: [{ ...done, type: 'tool_call' }] }),
      u('thanks'),
    ],
  },
  {
    messages: [
      u('x'),
      a('See here', { url_configs: [link, { url: 'https://x.example' }] }),
      u('thanks'),
    ],
  },
  {
    messages: [
      u('look at my file', {
        user_file_uploads: [
          { file_path: 'a.txt', file_content: 'x', refers_persistent_file: null },
        ],
      }),
    ],
  },
  { messages: [u('add milk', { session: { cart: ['bread'] } })] },
  {
    messages: [
      u('add milk', { session: { cart: ['bread'] } }),
      a('ok', { session: { cart: ['bread', 'milk'] } }),
      u('and?'),
    ],
  },
  { messages: [u('x', { session: {} })] },
  { messages: [{ role: 'system', content: 'You are ...' }, u('hi')] },
  { messages: [{ role: 'tool', content: '{}', tool_call_id: '1' }, u('hi')] },
  { messages: [a('Hello, I am the desk'), u('hi')] },
  {
    messages: [u('hi', { surfaces: [{ kind: 'table' }], future: null })],
    stream: true,
    temperature: 0,
  },
  {
    messages: [
      {
        ...u('hi'),
        platform_context: {
          ...tenant,
          skills: [{ name: 's', url: 'https://s.example' }],
          scopes: [],
          user_roles: ['admin'],
        },
      },
    ],
  },
  {
    messages: [
      {
        ...u('hi'),
        platform_context: {
          ...tenant,
          kubeconfig_path: '/tmp/k',
          aws_region: 'eu',
          run_id: 'r1',
          request_id: 'q1',
          thread_id: 't',
        },
      },
    ],
  },
  { messages: [u('say 3')], thread_id: null, tenant_id: 5 },
]

const dataKeys = [
  'approvals',
  'cmds',
  'executed_approvals',
  'executed_cmds',
  'executed_tool_calls',
  'session',
  'tool_calls',
  'url_configs',
  'user_file_uploads',
]

test('every request of the original’s clients is answered with the fields they read', async (t) => {
  const it = await open(t)
  await tried(t, 'requests of the original', requests.length * 2, async (i) => {
    const body = requests[i >> 1] as Json
    if (i % 2) {
      const { status, text, lines } = await it.stream(body)
      see(text)
      assert.deepEqual([status, lines.at(-1)?.type], [200, 'done'], JSON.stringify(body))
      for (const line of lines)
        assert.ok(
          fields[line.type]?.every((key) => key in line),
          JSON.stringify(line),
        )
    } else {
      const { status, text, body: answer } = await it.chat(body)
      see(text)
      assert.equal(status, 200, JSON.stringify(body))
      assert.deepEqual(Object.keys(answer).sort(), [
        'agent',
        'content',
        'data',
        'meta_data',
        'role',
        'timestamp',
        'user',
      ])
      assert.deepEqual(Object.keys(answer.data).sort(), dataKeys)
      assert.equal(answer.role, 'assistant')
    }
  })
  assert.deepEqual([it.counts.dropped, it.counts.commands], [[], []])
})

const fields: Record<string, string[]> = {
  text_delta: ['text'],
  intermittent_update: ['text', 'content'],
  tool_calls: ['tool_calls'],
  approvals: ['approvals'],
  commands: ['commands'],
  executed_tool_calls: ['executed_tool_calls'],
  executed_approvals: ['executed_approvals'],
  executed_commands: ['executed_cmds'],
  done: ['stop_reason', 'meta_data'],
}

test('what waits and what ran has every field of the original', async (t) => {
  const it = await open(t)
  const keys = (item: Json, ...names: string[]) =>
    assert.ok(
      names.every((name) => name in item),
      JSON.stringify(item),
    )
  const drop = (await it.chat({ messages: [u('drop a')] })).body
  keys(
    drop.data.tool_calls[0],
    'id',
    'name',
    'input',
    'execute',
    'tool_description',
    'input_description',
    'intent',
    'rejection_reason',
  )
  keys(
    drop.data.approvals[0],
    'id',
    'type',
    'name',
    'input',
    'execute',
    'rejection_reason',
    'description',
    'intent',
  )
  const run = (await it.chat({ messages: [u('run ls')] })).body
  keys(run.data.cmds[0], 'command', 'execute', 'rejection_reason', 'files')
  const say = async (first: Json, list: string, item: Json) =>
    (await it.chat({ messages: [u('x'), first, u('', { [list]: [{ ...item, execute: true }] })] }))
      .body.data
  const dropped = await say(drop, 'tool_calls', drop.data.tool_calls[0])
  keys(dropped.executed_tool_calls[0], 'id', 'name', 'input', 'output')
  const again = await say(drop, 'approvals', drop.data.approvals[0])
  keys(again.executed_approvals[0], 'id', 'type', 'name', 'input', 'output')
  const ranIt = await say(run, 'cmds', run.data.cmds[0])
  keys(ranIt.executed_cmds[0], 'command', 'output')
  assert.deepEqual([it.counts.dropped, it.counts.commands], [['a'], ['ls']])
})
