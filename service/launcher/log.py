"""Reads what the launcher needs from Triton's log: progress of loading, and why the start failed."""

import re
from collections.abc import Iterator
from pathlib import Path

_LOADING = re.compile(r'"loading: (?P<model>[\w-]+):\d+"')
_LOADED = re.compile(r"\"successfully loaded '(?P<model>[\w-]+)'\"")
_FAILED = re.compile(r"failed to load '(?P<model>[\w-]+)' version \d+: (?:\w+: )?(?P<reason>.*?)\"?$")
_INVALID = re.compile(r"Poll failed for model directory '(?P<model>[\w-]+)': (?P<reason>.*?)\"?$")
_PORT = re.compile(r"failed to start (?P<what>\w+) service: .*already in use")
_IN_FLIGHT = re.compile(r"Found (?P<count>\d+) model versions that have in-flight inferences")
TAIL_LINES = 15


class LogReader:
    """Follows a growing log file from where it ended when the reader was made."""

    def __init__(self, path: Path):
        self.path = path
        self._start = self._position = path.stat().st_size if path.exists() else 0
        self._partial = b""

    def new_lines(self) -> list[str]:
        with self.path.open("rb") as log:
            log.seek(self._position)
            data = log.read()
        self._position += len(data)
        *lines, self._partial = (self._partial + data).split(b"\n")
        return [line.decode(errors="replace") for line in lines]

    def all_lines(self) -> list[str]:
        with self.path.open("rb") as log:
            log.seek(self._start)
            return log.read().decode(errors="replace").splitlines()


def progress(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Yield ("loading" | "ready", model) in the order of the log."""
    for line in lines:
        if match := _LOADING.search(line):
            yield "loading", match["model"]
        elif match := _LOADED.search(line):
            yield "ready", match["model"]


def load_failure(lines: list[str]) -> str | None:
    """The models that failed to load, each with its own error; None if there is none."""
    reasons: dict[str, str] = {}
    for line in lines:
        if match := _FAILED.search(line) or _INVALID.search(line):
            reasons.setdefault(match["model"], match["reason"].replace("\\n", "\n").strip())
    if not reasons:
        return None
    return "\n".join(f"model {model} failed to load: {reason}" for model, reason in reasons.items())


def stopped_idle(lines: list[str]) -> bool:
    """Whether a stopping server has found nothing in flight: what remains is seconds of waiting for its stubs to end."""
    counts = [int(match["count"]) for line in lines if (match := _IN_FLIGHT.search(line))]
    return counts == [0] and any("All models are stopped, unloading models" in line for line in lines)


def port_conflict(lines: list[str]) -> str | None:
    """The line in which Triton says that a port is taken."""
    return next((line for line in lines if _PORT.search(line)), None)


def tail(lines: list[str]) -> str:
    """The last lines that say something: the errors if there are any."""
    useful = [line for line in lines if line.strip() and not line.startswith(("+", "|"))]
    errors = [line for line in useful if line.startswith(("E", "F", "error:")) and "CudaDriverHelper" not in line]
    return "\n".join((errors or useful)[-TAIL_LINES:])
