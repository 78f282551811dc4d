// One chat endpoint in a process of its own: `service.mjs ours http://127.0.0.1:PORT/t50`. Tells its CPU time when asked.

const { serve } = await import(`../services/${process.argv[2]}.mjs`)
const server = serve(process.argv[3])
server.listen(0, '127.0.0.1', () => process.send({ port: server.address().port }))

let since
process.on('message', (word) => {
  if (word === 'begin') {
    since = process.cpuUsage()
    process.send({})
  } else {
    const { user, system } = process.cpuUsage(since)
    process.send({ cpuUs: user + system })
  }
})
process.on('disconnect', () => process.exit())
