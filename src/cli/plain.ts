// What a service, a model or a trail says, made fit for a terminal. Knows no command.

/** Text must not move the cursor, colour the screen or turn the writing around; tab and `keep` stay as they are. */
export function plain(text: unknown, keep = '\n'): string {
  return String(text ?? '').replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (c) =>
    c === '\t' || c === keep ? c : `\\u{${c.codePointAt(0)?.toString(16)}}`,
  )
}
