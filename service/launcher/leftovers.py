"""What is left of a server whose guard was killed, and its removal.

All of one server carries its prefix: the shared-memory regions in their names, the processes in their command lines. The
guard holds a lock on the region `<prefix>owner` for as long as it lives, however it ends, also where containers with
process numbers of their own share /dev/shm. What the launcher of that guard does not remove, the next start of any does.
"""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil

from service.launcher.guard import remove_shared_memory
from service.launcher.install import STUB

GUARD = Path(__file__).with_name("guard.py")
SHM = Path("/dev/shm")
FAMILY = "wan_triton_"
OWNER = "owner"
PROGRAMS = ("tritonserver", STUB)


def start_guard(
    arguments: list[str], environment: dict[str, str], log_path: Path, prefix: str, folder: str
) -> subprocess.Popen:
    """Start the guard of a server; from here on `prefix` and its temporary `folder` are owned."""
    owner = os.open(SHM / f"{prefix}{OWNER}", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(owner, fcntl.LOCK_EX)
        os.write(owner, os.fsencode(folder))
        with log_path.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", str(GUARD), *arguments],
                stdin=subprocess.PIPE,
                bufsize=0,
                stdout=log,
                stderr=log,
                env=environment,
                pass_fds=(owner,),  # it never looks at it: to live is to hold the lock
                start_new_session=True,  # Ctrl-C reaches this program only, which then stops in order
            )
    finally:
        os.close(owner)


def remove(prefix: str, folder: str) -> None:
    """Kill the processes of a server without a guard and remove its files."""
    processes = [process for process in psutil.process_iter() if _belongs(process, prefix)]
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=10)
    remove_shared_memory(prefix)
    shutil.rmtree(folder, ignore_errors=True)


def sweep() -> None:
    """Remove what is left of every server that has no guard any more."""
    for owner in SHM.glob(f"{FAMILY}*_{OWNER}"):
        with contextlib.suppress(OSError), owner.open("rb") as file:  # another user's, or just removed by its guard
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(owner.name.removesuffix(OWNER), os.fsdecode(file.read()))


def _belongs(process: psutil.Process, prefix: str) -> bool:
    try:
        command = process.cmdline()
    except psutil.Error:
        return False
    return bool(command) and command[0].endswith(PROGRAMS) and any(prefix in argument for argument in command)
