"""Ranks that evaluate the steps of one video together: rank 0 leads, the others follow.

The loop, its plan and the solver are rank 0's alone: what is skipped, and when a run ends, is decided once. For an
expert's steps it sends a `Span`, then each step's number and latents, and gathers the values of all tokens. Between two
steps the others wait for rank 0, so that it may stop at any of them. Orders go through a pipe, tensors through NCCL on
GPUs and gloo on CPUs.
"""

import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from wan import adapted
from wan.dit import WanDiT
from wan.errors import RankLost
from wan.evaluator import Evaluator, Span, Step
from wan.parallel.exchange import Exchange
from wan.parallel.share import Share

HOST = "127.0.0.1"
JOINING = timedelta(seconds=60)  # once every rank has loaded


def meeting_place(ranks: int) -> dist.TCPStore:
    """Where ranks find each other; kept by rank 0, which tells the others its `port`."""
    return dist.TCPStore(HOST, 0, ranks, is_master=True, timeout=JOINING, wait_for_workers=False)


class Team:
    """One rank among those that have joined; `limit` seconds is what an exchange may take."""

    def __init__(self, share: Share, place: dist.TCPStore | int, dits: Sequence[WanDiT], limit: float):
        self.share, self.dits, self.device = share, dits, dits[0].device
        degrees = share.degrees
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        if isinstance(place, int):
            place = dist.TCPStore(HOST, place, degrees.ranks, is_master=False, timeout=JOINING)
        on_gpu = self.device.type == "cuda"
        dist.init_process_group(
            "nccl" if on_gpu else "gloo", store=place, rank=share.rank, world_size=degrees.ranks,
            timeout=timedelta(seconds=limit), device_id=self.device if on_gpu else None,
        )  # fmt: skip
        self.exchange: Exchange | None = None
        if degrees.ulysses > 1:
            first_ranks = range(0, degrees.ranks, degrees.ulysses)
            groups = [dist.new_group(list(range(first, first + degrees.ulysses))) for first in first_ranks]
            self.exchange = Exchange(groups[share.branch], degrees.ulysses, dits)

    def leave(self) -> None:
        """Attention is as it was before; another team may be joined."""
        if self.exchange:
            self.exchange.remove()
        if dist.is_initialized():  # not after `abort`
            dist.destroy_process_group()

    def abort(self) -> None:
        """From another thread: end the exchange that hangs. Over gloo it ends by itself when a rank is gone."""
        if self.device.type == "cuda":
            dist.distributed_c10d._abort_process_group()

    def evaluator(self, span: Span) -> Evaluator:
        """This rank's part of a span."""
        return Evaluator(self.dits[span.expert], span, self.share)

    def values(self, evaluator: Evaluator, latents: Tensor, i: int, step: Step) -> Tensor | None:
        """Rank 0 gives the latents and gets the values of all tokens [branches, S, values]; the others give their part."""
        dist.broadcast(latents, 0)
        if self.exchange:
            self.exchange.tokens = evaluator.length
        idle = self.share.is_idle(step.branches)
        part = evaluator.nothing() if idle else evaluator.part(latents, i, step).contiguous()
        if self.share.rank:
            dist.gather(part, dst=0)
            return None
        parts = [torch.empty_like(part) for _ in range(self.share.degrees.ranks)]
        dist.gather(part, parts, dst=0)
        parts = parts[: self.share.degrees.ulysses * (step.branches if self.share.degrees.cfg > 1 else 1)]
        rows = [torch.cat(parts[n :: self.share.degrees.ulysses]) for n in range(self.share.degrees.ulysses)]
        return torch.cat(rows, 1)[:, : evaluator.length]


class LedEvaluator(Evaluator):
    """Rank 0's part, and what it makes of all parts."""

    def __init__(self, leader: "Leader", span: Span):
        super().__init__(leader.team.dits[span.expert], span, leader.team.share)
        self._leader = leader

    def velocity(self, latents: Tensor, i: int, step: Step) -> Tensor:
        return self.guided(self._leader.values(self, latents, i, step), latents, step)


class Leader:
    """Rank 0 with its pipes to the others. `broke(error)` is called once when a step fails, and says what has happened."""

    def __init__(self, team: Team, pipes: Sequence[Connection], broke: Callable[[str], str]):
        self.team, self._pipes, self._broke = team, pipes, broke
        self.busy_since: float | None = None  # in a step, monotonic; the others wait while it is None

    def evaluator(self, dit: WanDiT, span: Span) -> LedEvaluator:
        """What a `Denoiser` takes as `evaluators`. Raises InvalidRequest before the others hear of it."""
        evaluator = LedEvaluator(self, span)
        with self._in_step():
            self._order("span", span)
        return evaluator

    def values(self, evaluator: Evaluator, latents: Tensor, i: int, step: Step) -> Tensor:
        """Of all tokens; raises RankLost if a rank ended or hung."""
        with self._in_step():
            self._order("step", i, step)
            return cast(Tensor, self.team.values(evaluator, latents.contiguous(), i, step))

    def _order(self, *order: Any) -> None:
        content = pickle.dumps(order)
        for pipe in self._pipes:
            pipe.send_bytes(content)

    @contextmanager
    def _in_step(self) -> Iterator[None]:
        self.busy_since = time.monotonic()
        try:
            yield
        except BaseException as error:  # whatever it is, the others are in the middle of something
            reason = self._broke(f"{type(error).__name__}: {error}")
            if isinstance(error, torch.OutOfMemoryError | MemoryError) or not isinstance(error, Exception):
                raise
            raise RankLost(reason) from error
        finally:
            self.busy_since = None


@torch.inference_mode()
def follow(team: Team, pipe: Connection) -> None:
    """Do what rank 0 says until it closes its pipe."""
    evaluator: Evaluator | None = None
    with ExitStack() as beside:
        while True:
            try:
                order, *given = pickle.loads(pipe.recv_bytes())
            except EOFError:
                return
            if order == "span":
                evaluator = None  # the memory of the one before is free first
                beside.close()
                (span,) = given
                beside.enter_context(adapted.applied(team.dits[span.expert], span.adapters))
                evaluator = team.evaluator(span)
            elif evaluator is not None:
                latents = torch.empty(evaluator.span.shape, device=team.device)
                team.values(evaluator, latents, *given)
