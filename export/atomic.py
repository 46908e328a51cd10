"""Files that appear whole or not at all, and the journal by which an interrupted export continues."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without an error."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


class Journal:
    """Results of the finished steps of a build, kept beside it. A journal for another `key` is void."""

    def __init__(self, path: Path, key: str):
        self.path, self._key = path, key
        try:
            stored = json.loads(path.read_text())
        except (OSError, ValueError):
            stored = {}
        self.is_void = stored.get("key") != key
        self._done: dict[str, object] = {} if self.is_void else stored["done"]

    def write(self) -> None:
        write_json(self.path, {"key": self._key, "done": self._done})

    def step(self, name: str, files: list[Path], run: Callable[[], object]):
        """The result of `run`, which writes `files`; from the journal if an earlier build came this far and they are there."""
        if name in self._done and all(path.exists() for path in files):
            return self._done[name]
        self._done[name] = json.loads(json.dumps(run()))  # as it will be read back
        self.write()
        return self._done[name]
