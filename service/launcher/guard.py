"""Runs one command and sees to it that nothing of it stays behind: no process, no shared memory, no temporary folder.

A small process between the launcher and Triton, so that the cleaning happens even if the launcher is killed with
SIGKILL. Its standard input is a pipe held by the launcher:

    b"t"            stop: SIGTERM, SIGKILL after the grace period
    b"k" or closed  kill at once (closed: the launcher is gone, and with it the work in flight)

Started by path with nothing but the standard library, so that it costs no imports.
"""

import argparse
import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
POLL_SECONDS = 0.2
# The launcher decides when to stop, through the pipe.
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LIBC = ctypes.CDLL(None)


def _prepare_child() -> None:
    # The guard has one thread, which is the one whose death sends the signal.
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in IGNORED:
        signal.signal(number, signal.SIG_DFL)


def _watch(child: subprocess.Popen, launcher: int, grace: float) -> None:
    """Return when the child has ended, by itself or on request."""
    deadline = None
    listening = [sys.stdin.fileno()]
    while child.poll() is None:
        order = None
        if select.select(listening, [], [], POLL_SECONDS)[0]:
            order = os.read(listening[0], 1)
        # A process forked off the launcher may hold the pipe open after the launcher's death.
        if order in (b"", b"k") or os.getppid() != launcher:
            return
        if order == b"t" and deadline is None:
            child.terminate()
            deadline = time.monotonic() + grace
        if deadline and time.monotonic() > deadline:
            return


def _kill_session(child: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    # Orphaned stubs are reparented to this process (subreaper): wait until they are really gone.
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def remove_shared_memory(prefix: str, shm: str = "/dev/shm") -> None:
    for region in Path(shm).glob(f"{prefix}*"):
        region.unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shm-prefix", required=True)
    parser.add_argument("--folder", required=True, help="temporary folder to remove")
    parser.add_argument("--grace", type=float, required=True, help="seconds between SIGTERM and SIGKILL")
    parser.add_argument("--launcher", type=int, required=True, help="process id whose death ends everything")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1)
    child = subprocess.Popen(
        options.command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_prepare_child
    )
    _watch(child, options.launcher, options.grace)
    _kill_session(child)
    remove_shared_memory(options.shm_prefix)
    shutil.rmtree(options.folder, ignore_errors=True)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    sys.exit(main())
