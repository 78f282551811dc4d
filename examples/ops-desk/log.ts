// One JSON line per fact, to stderr; stdout is for the one line that says where the desk is.

import { type LogLevel, logLevels } from './config.ts'

/** The library's log entries, and our own. */
export type Log = (entry: { level: LogLevel; event: string; [key: string]: unknown }) => void

/** Levels below `least` are dropped. Line breaks in values are escaped by JSON, so that a line is a fact. */
export function jsonLog(least: LogLevel, write: (line: string) => void): Log {
  return (entry) => {
    if (logLevels.indexOf(entry.level) > logLevels.indexOf(least)) return
    write(`${JSON.stringify({ time: new Date().toISOString(), ...entry })}\n`)
  }
}
