"""Where load can go: the public HTTP API, or Triton's ensemble by gRPC and HTTP."""

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from loadtest.arrivals import Order
from loadtest.profile import Target
from loadtest.record import Record

Clock = Callable[[], float]


class Sender(Protocol):
    """One way to ask for a video; fills the record in as the request advances."""

    async def check(self) -> None:
        """Raise TargetUnavailable if the target cannot take requests now."""

    async def send(self, order: Order, record: Record, clock: Clock) -> None:
        """Ask for one video and follow it to its end; returns with record.outcome set."""

    async def abandon(self, record: Record) -> None:
        """Tell the target that nobody waits for this video any more."""


@contextlib.asynccontextmanager
async def open_sender(target: Target, in_flight: int) -> AsyncIterator[Sender]:
    """Connect to the target of a profile."""
    if target.kind == "videos":
        from loadtest.targets.videos import VideosSender as Chosen
    elif target.kind == "triton-grpc":
        from loadtest.targets.triton import GrpcSender as Chosen
    else:
        from loadtest.targets.triton import HttpSender as Chosen
    async with contextlib.AsyncExitStack() as stack:
        yield await Chosen.open(target, in_flight, stack)
