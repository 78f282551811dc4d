// Files of ours that only some calls and some runs need: loaded when first asked for, once for the process. Where one does
// not load, what asked for it rejects, and the next to ask tries again.

export function loader<T>(load: () => Promise<T>): () => Promise<T> {
  let loaded: Promise<T> | undefined
  const forget = (error: unknown): never => {
    loaded = undefined // too many open files, say: the next call tries again
    throw error
  }
  return () => {
    loaded ??= load().catch(forget)
    return loaded
  }
}
