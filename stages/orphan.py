"""Ends a stage whose server is gone.

Triton's Python stub looks for its parent only between requests: one that is in the middle of a video would compute on
for nobody, with the weights in memory. PR_SET_PDEATHSIG does not help, as it follows the thread that started the stub.
"""

import os
import signal
import threading
import time

POLL_SECONDS = 0.5


def end_with_server() -> None:
    """From now on this process is killed within a second of its parent's death."""
    threading.Thread(target=_watch, args=(os.getppid(),), name="orphan-watch", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
