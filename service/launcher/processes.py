"""What became of the processes below a guard: the server and one Python stub for each model instance.

Triton 2.51 neither restarts a dead stub nor stops calling itself ready (triton-inference-server/server issues 7230
and 8604), so the process table is the one place where a crash shows at once, even with no request running.
"""

from dataclasses import dataclass

import psutil

from service.launcher.install import STUB


@dataclass(frozen=True)
class Stub:
    """The process of one instance of a Python model."""

    instance: str
    process: psutil.Process

    def is_dead(self) -> bool:
        try:
            # A crashed stub stays a zombie: Triton does not wait for it.
            return not self.process.is_running() or self.process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def __str__(self) -> str:
        return f"the Python process of {self.instance} (pid {self.process.pid})"


def find_stubs(guard_pid: int) -> list[Stub]:
    """The living stubs below a guard."""
    stubs = []
    for process in psutil.Process(guard_pid).children(recursive=True):
        try:
            command = process.cmdline()
        except psutil.NoSuchProcess:
            continue
        # stub model.py region size growth parent_pid backend_dir address instance runtime
        if command and command[0].endswith(STUB) and len(command) > 8:
            stubs.append(Stub(command[8], process))
    return stubs


def first_dead(stubs: list[Stub]) -> Stub | None:
    return next((stub for stub in stubs if stub.is_dead()), None)
