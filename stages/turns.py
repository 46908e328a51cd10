"""Turns at the one GPU of a workstation: who computes has it alone, and leaves nothing but weights there.

What stages need beside their weights would not fit together on a small card, and its memory, once taken, stays with a
process. The lock is on the manifest, which all stages of a repository read, and ends with who holds it.
"""

import contextlib
import fcntl
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from stages.artifacts import MANIFEST, Artifacts

Answer = TypeVar("Answer")


@contextlib.contextmanager
def turn(artifacts: Artifacts) -> Iterator[None]:
    """Wait for the others; on other targets nothing, as each stage has memory of its own there."""
    if artifacts.manifest["target"] != "workstation":
        yield
        return
    with (artifacts.folder.parents[1] / MANIFEST).open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        try:
            yield
        finally:
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()


def in_turn(artifacts: Artifacts, handle: Callable[..., Answer]) -> Callable[..., Answer]:
    """`handle`, which waits for its turn."""

    def wait_and_handle(*given) -> Answer:
        with turn(artifacts):
            return handle(*given)

    return wait_and_handle
