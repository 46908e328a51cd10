"""What a test session leaves on the machine: processes, listening ports, shared memory, temporary files.

Every program that a test starts inherits the session's mark and its folder for temporary files, so what is found is the
session's own, however far it has drifted from its parent and whatever else runs on the machine.
"""

import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

MARK = "TESTS_OF_WAN"
SHARED_MEMORY = Path("/dev/shm")
# Helpers of Python and torch that end with their parent, and files that torch, matplotlib and ONNX Runtime keep on purpose.
HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver", "torch._inductor.compile_worker")
CACHES = ("torchinductor_", "matplotlib-", ".ses")


def mark_session() -> Path:
    """Mark this process's future children and give them a temporary folder of their own; returns the folder."""
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # pytest keeps its last folders on purpose
    folder = Path(tempfile.mkdtemp(prefix="wan-tests-"))
    folder.chmod(0o711)  # PostgreSQL runs as another user and must get to its folder below
    os.environ |= {MARK: folder.name, "TMPDIR": str(folder)}
    tempfile.tempdir = None  # what Python found before
    return folder


@dataclass
class Session:
    """The machine before the tests, to be compared with the machine after them."""

    temporary: Path
    segments: set[str] = field(default_factory=lambda: set(os.listdir(SHARED_MEMORY)))
    ports: set[int] = field(default_factory=lambda: _ports(psutil.Process()))

    def left(self) -> list[str]:
        """One line for each thing that is still there and should not be."""
        found = [f"process {p.pid} (ports {_ports(p) or 'none'}): {_command(p)[:200]}" for p in self._processes()]
        found += [f"port {port}: this process listens" for port in _ports(psutil.Process()) - self.ports]
        found += [f"shared memory {SHARED_MEMORY / name}" for name in sorted(self._segments())]
        names = sorted(os.listdir(self.temporary)) if self.temporary.is_dir() else []
        return found + [f"temporary {self.temporary / name}" for name in names if not name.startswith(CACHES)]

    def left_after(self, seconds: float) -> list[str]:
        """As `left`, once everything is gone or the time is over: what was told to stop may still be stopping."""
        deadline = time.monotonic() + seconds
        while (found := self.left()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return found

    def _processes(self) -> list[psutil.Process]:
        children = {p.pid for p in psutil.Process().children(recursive=True)}
        return [p for p in psutil.process_iter() if (p.pid in children or self._is_marked(p)) and not _is_harmless(p)]

    def _is_marked(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == self.temporary.name
        except psutil.Error:
            return False

    def _segments(self) -> set[str]:
        """New segments that no stranger uses: another session may run on the same machine."""
        new = set(os.listdir(SHARED_MEMORY)) - self.segments
        ours = {p.pid for p in self._processes()} | {os.getpid()}
        strangers = (p for p in psutil.process_iter() if new and p.pid not in ours)
        return new - {name for p in strangers for name in _mapped(p)}


def _is_harmless(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE or any(name in _command(process) for name in HELPERS)
    except psutil.Error:
        return True  # gone meanwhile


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) or process.name()
    except psutil.Error:
        return "?"


def _ports(process: psutil.Process) -> set[int]:
    try:
        return {c.laddr.port for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    except psutil.Error:
        return set()


def _mapped(process: psutil.Process) -> set[str]:
    try:
        paths = (line.split(maxsplit=5)[-1] for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines())
        return {Path(path.removesuffix(" (deleted)")).name for path in paths if path.startswith(f"{SHARED_MEMORY}/")}
    except OSError:
        return set()
