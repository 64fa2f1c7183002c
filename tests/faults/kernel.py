"""A program that runs cells as a notebook's kernel does: ``python -m tests.faults.kernel``.

A kernel has an event loop in its main thread, on which it awaits its next cell, and runs each to its end in the middle
of it. An interrupt goes to its whole group of processes, those of a cluster that a cell has made among them; it raises
`KeyboardInterrupt` while a cell runs, and is ignored between two.

Cells come on standard input, each as a line of JSON, and share their names. What a cell says goes to standard output,
and so does how it ended: `ran`, or `raised` and the name of the error.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import traceback
from typing import Any


def say(word: str) -> None:
    """Tell the test, at once."""
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def run_cell(source: str, names: dict[str, Any]) -> None:
    """Run one cell; no error ends the kernel."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        exec(compile(source, "<cell>", "exec"), names)
    except BaseException as error:
        traceback.print_exc()
        say(f"raised {type(error).__name__}")
    else:
        say("ran")
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


async def serve() -> None:
    """Run cells until there are no more."""
    loop = asyncio.get_running_loop()
    names: dict[str, Any] = {"__name__": "__main__", "say": say}
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        run_cell(json.loads(line), names)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.new_event_loop().run_until_complete(serve())
