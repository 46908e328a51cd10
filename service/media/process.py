"""Runs what reads files of strangers: a process of its own, with limits of memory and time."""

import subprocess
from typing import BinaryIO


class TookTooMuch(Exception):
    """The process ran out of its time, its memory or its luck: it ended without a word of its own."""


def run(command: list[str], source: BinaryIO, megabytes: int, seconds: float) -> subprocess.CompletedProcess:
    """The ended process, `source` having been its standard input; TookTooMuch when a limit ended it."""
    limits = f"ulimit -v {megabytes * 1024} && ulimit -t {int(seconds) + 1} && ulimit -c 0"
    source.seek(0)
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", f'{limits} && exec "$0" "$@"', *command],
            stdin=source, capture_output=True, timeout=seconds,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise TookTooMuch(f"it was not read within {seconds:g} s") from None
    if done.returncode < 0:
        raise TookTooMuch(f"reading it ended with signal {-done.returncode}")
    return done
