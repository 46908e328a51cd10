"""What a soak test watches from outside: processes, file descriptors, /dev/shm, run directories, the database."""

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import psycopg

from loadtest.base.inputs import TargetUnavailable

OURS = ("service.", "service/", "bentoml", "tritonserver")  # words in the command line of a parent that belongs


@dataclass
class Watch:
    """Samples over time: series name -> values; all series of one sample share its time (seconds)."""

    roots: list[psutil.Process]
    run_dir: Path | None = None
    database: str | None = None  # a file of SQLite or a postgresql:// URL
    shm: Path = Path("/dev/shm")
    times: dict[str, list[float]] = field(default_factory=dict)
    values: dict[str, list[float]] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    gone: dict[str, float] = field(default_factory=dict)  # process -> when it was first missing
    began: float = field(default_factory=time.monotonic)

    def sample(self) -> None:
        """Take one sample of everything."""
        now = time.monotonic() - self.began
        alive = set()
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                name = self.names.setdefault(process.pid, label(process))
                self._add(f"rss {name}", now, process.memory_info().rss)
                self._add(f"fds {name}", now, process.num_fds())
                self._add(f"threads {name}", now, process.num_threads())
                alive.add(name)
        for name in set(self.names.values()) - alive:
            self.gone.setdefault(name, now)
        files = list(entries(self.shm))
        self._add("shm bytes", now, sum(size for _, size in files))
        self._add("shm entries", now, len(files))
        if self.run_dir:
            self._add("run directories", now, sum(1 for _ in self.run_dir.glob("*")) if self.run_dir.is_dir() else 0)
        if self.database:
            self._add("database bytes", now, database_bytes(self.database))

    @property
    def missing(self) -> list[str]:
        """What nobody told where to find."""
        told = {"run directories": self.run_dir, "database bytes": self.database}
        return [name for name, place in told.items() if not place]

    def _add(self, name: str, now: float, value: float) -> None:
        self.times.setdefault(name, []).append(now)
        self.values.setdefault(name, []).append(float(value))

    def _processes(self) -> Iterable[psutil.Process]:
        seen = set()
        for root in self.roots:
            with contextlib.suppress(psutil.Error):
                for process in (root, *root.children(recursive=True)):
                    # A helper such as ffmpeg lives for one video: it can neither leak for long nor be missed.
                    long_lived = process is root or time.time() - process.create_time() > 5
                    if process.pid not in seen and (process.pid in self.names or long_lived):
                        seen.add(process.pid)
                        yield process


def database_bytes(database: str) -> int:
    """Size of a PostgreSQL database, or of an SQLite file with the journals beside it."""
    if "://" not in database:
        path = Path(database)
        return sum(size for name, size in entries(path.parent) if name == path.name or name.startswith(path.name + "-"))
    try:
        with psycopg.connect(database, connect_timeout=10) as conn:
            row = conn.execute("SELECT pg_database_size(current_database())").fetchone()
            return row[0] if row else 0
    except psycopg.Error as error:
        raise TargetUnavailable(f"--database: {error}") from error


def entries(folder: Path) -> Iterable[tuple[str, int]]:
    """(name, bytes) of a folder's files; one that vanishes meanwhile is left out."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                yield path.name, path.stat().st_blocks * 512


def label(process: psutil.Process) -> str:
    """A short name that tells the service's processes apart, e.g. `python -m service.worker (4711)`."""
    words = process.cmdline() or [process.name()]
    first = Path(words[0]).name
    rest = [word for word in words[1:] if not word.startswith("--")][:2]
    return f"{first} {' '.join(Path(word).name for word in rest)}".strip()[:60] + f" ({process.pid})"


def find_roots(pids: list[int], url: str) -> list[psutil.Process]:
    """The given processes, or the one that listens on the URL's port with those above it that belong to the service."""
    try:
        if pids:
            return [psutil.Process(pid) for pid in pids]
        port = urlsplit(url).port or 80
        owners = {
            c.pid
            for c in psutil.net_connections("tcp")
            if c.status == "LISTEN" and c.laddr and c.laddr.port == port and c.pid
        }
        roots = {climb(psutil.Process(pid)) for pid in owners}
    except psutil.Error as error:
        raise TargetUnavailable(f"--pid: {error}") from error
    if not roots:
        raise TargetUnavailable(
            f"no process of this user listens on port {port}; name the service's processes with --pid"
        )
    return sorted(roots, key=lambda process: process.pid)


def climb(process: psutil.Process) -> psutil.Process:
    """The topmost ancestor that is still a part of the service."""
    while (parent := process.parent()) and any(word in " ".join(parent.cmdline()) for word in OURS):
        process = parent
    return process
