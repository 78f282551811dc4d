"""Reads NDJSON as Python clients do: argv[1] is the file, argv[2] how. Prints each event's type and text in UTF-16, in hex."""

import codecs
import json
import random
import sys

data = open(sys.argv[1], "rb").read()


def decoder_lines():
    """As clients that decode chunk by chunk and split text into lines with str.splitlines, keeping what is unfinished."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    dice = random.Random(int(sys.argv[3]))
    pending, at = "", 0
    while at < len(data):
        size = dice.choice([1, 2, 3, 7, 64, 1024, 65536])
        pending += decoder.decode(data[at : at + size])
        at += size
        lines = pending.splitlines(keepends=True)
        pending = lines.pop() if lines and lines[-1] == lines[-1].rstrip("\r\n") else ""
        yield from lines
    if pending:
        yield pending


ways = {
    "bytes": lambda: data.splitlines(),
    "text": lambda: data.decode("utf-8").splitlines(),
    "decoder": decoder_lines,
}
for line in ways[sys.argv[2]]():
    if line.strip():
        event = json.loads(line)
        text = event.get("text", "")
        print(event["type"], text.encode("utf-16-be", "surrogatepass").hex())
