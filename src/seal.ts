// Sealed texts, which a client carries and only we can read: AES-256-GCM, base64url of IV, tag and text. The keys are the
// authority's. Does not cover: an old text sent again; a stolen key.

import * as crypto from 'node:crypto'
import { type Authority, canonical } from './proof.ts'

/** `associated` must be the same again to open it. `salt`: the epoch, or '' for what may outlive the store. */
export function seal(
  authority: Authority,
  text: string,
  associated: unknown,
  salt: string,
  purpose: string,
): string {
  const [key] = authority.sealingKeys(salt, purpose)
  if (!key) throw new Error('an authority has a key')
  const iv = crypto.randomBytes(12)
  const cipher = crypto.createCipheriv('aes-256-gcm', key, iv)
  cipher.setAAD(Buffer.from(canonical(associated)))
  const body = Buffer.concat([cipher.update(text, 'utf8'), cipher.final()])
  return Buffer.concat([iv, cipher.getAuthTag(), body]).toString('base64url')
}

/** What `seal` sealed under any of the keys; `undefined` for anything else. */
export function unseal(
  authority: Authority,
  sealed: string,
  associated: unknown,
  salt: string,
  purpose: string,
): string | undefined {
  const bytes = Buffer.from(sealed, 'base64url')
  // Decoding skips what is no base64url, and bits of the last character: a seal is read in one way only.
  if (bytes.length < 28 || bytes.toString('base64url') !== sealed) return undefined
  for (const key of authority.sealingKeys(salt, purpose)) {
    const decipher = crypto.createDecipheriv('aes-256-gcm', key, bytes.subarray(0, 12))
    decipher.setAAD(Buffer.from(canonical(associated))).setAuthTag(bytes.subarray(12, 28))
    try {
      return decipher.update(bytes.subarray(28), undefined, 'utf8') + decipher.final('utf8')
    } catch {} // sealed under another key, or not by us: undefined says so
  }
  return undefined
}
