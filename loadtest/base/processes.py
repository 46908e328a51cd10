"""Processes that stand still for a while, as those of a machine that hangs."""

import contextlib
from collections.abc import Iterator, Sequence

import psutil


@contextlib.contextmanager
def frozen(processes: Sequence[psutil.Process]) -> Iterator[None]:
    """Stop them (SIGSTOP) and let them go on afterwards; those that ended meanwhile keep none of the others stopped."""
    try:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
        yield
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
