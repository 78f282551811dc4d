// Packages as the project itself has them: the limit must use the same undici and the same AWS SDK, not a rival's.

import { createRequire } from 'node:module'
import { fileURLToPath, pathToFileURL } from 'node:url'

export const root = new URL('../../', import.meta.url)
const require = createRequire(new URL('package.json', root))

export function fromRoot(name) {
  return import(pathToFileURL(require.resolve(name)).href)
}

export const benchDir = fileURLToPath(new URL('../', import.meta.url))
export const rootDir = fileURLToPath(root)

/** A module of the project, from its sources; from `dist`, as users import it, where the start is what is measured. */
export function ours(name) {
  const path = process.env.DCAF_BENCH_DIST ? `dist/${name}.js` : `src/${name}.ts`
  return import(new URL(path, root).href)
}
