"""No transaction waits for ever: a server that vanished without a word, or froze, never answers and breaks no connection.

TCP's own timers see a host that is gone, not a process that is stopped behind a kernel that still acknowledges; a pooler in
between hides both. So one thread shuts the sockets of connections that are overdue, and whoever waits on them gets an error.
"""

import contextlib
import itertools
import os
import socket
import threading
import time
from collections.abc import Iterator


class Patience:
    """Watches connections for as long as they are used; its thread begins with the first one."""

    def __init__(self):
        self._deadlines: dict[int, tuple[float, int]] = {}  # number -> (monotonic seconds, file descriptor)
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    @contextlib.contextmanager
    def watching(self, descriptor: int, seconds: float) -> Iterator[None]:
        """Shut this socket unless the block ends within `seconds`."""
        number, deadline = next(self._numbers), time.monotonic() + seconds
        with self._changed:
            earliest = min((due for due, _ in self._deadlines.values()), default=None)
            self._deadlines[number] = deadline, descriptor
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="wan-patience", daemon=True)
                self._thread.start()
            elif earliest is None or deadline < earliest:
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:  # with the lock: from now on the descriptor may be another's
                self._deadlines.pop(number, None)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                for number, (due, descriptor) in list(self._deadlines.items()):
                    if due <= now:
                        del self._deadlines[number]
                        _shut(descriptor)
                left = min((due for due, _ in self._deadlines.values()), default=None)
                # woken only for an earlier one; what has ended meanwhile costs one look
                self._changed.wait(None if left is None else max(0.0, left - time.monotonic()))


def _shut(descriptor: int) -> None:
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as copy:
        copy.shutdown(socket.SHUT_RDWR)
