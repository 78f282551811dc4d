// `approvals-child.mjs '{"who":"ours","store":"sqlite","ms":800}'`: a process for one measurement.

const { approvals } = await import('./approvals.mjs')
try {
  process.send({ figures: await approvals(JSON.parse(process.argv[2])) })
} catch (error) {
  process.send({ error: String(error.message || error.code || error) })
}
process.disconnect()
