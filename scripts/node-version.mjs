// Ends with one sentence on a Node that cannot run the sources. Plain JavaScript, so that an old Node can read it.
const [major, minor] = process.versions.node.split('.').map(Number)
if (major < 22 || (major === 22 && minor < 19)) {
  console.error(
    `This needs Node 22.19 or newer and found ${process.versions.node}: run it through npm after "npm ci" (which brings ` +
      'a current Node into node_modules, unless install scripts are switched off), or install a newer Node.',
  )
  process.exit(1)
}
