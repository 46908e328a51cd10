"""The processes that make one video together with the denoise stage, which is rank 0: started, watched, restarted, ended.

A rank that dies or hangs takes the others with it, so that nobody waits for it; the run ends with RankLost, all start
anew, and the job goes on from its checkpoint. Ranks end when rank 0 closes their pipes, however it ends.
"""

import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

import torch

from contract.parallel import Degrees
from stages.artifacts import Artifacts
from stages.runtimes import device_of, open_denoiser
from stages.settings import StageSettings, threads
from wan.denoise import Denoiser
from wan.dit import WanDiT
from wan.errors import InvalidRequest, RankLost
from wan.evaluator import Evaluator, Span
from wan.parallel.share import Share
from wan.parallel.team import Leader, Team, meeting_place

POLL_SECONDS = 0.1
DYING_SECONDS = 1.0  # from the end of a rank's connections to that of its process
STUCK_SECONDS = 30.0  # from the end of the other ranks to that of a rank 0 which does not notice
EXIT_STUCK = 71  # as of a stage whose GPU is lost to it: whoever supervises the server starts it anew
PROJECT = Path(__file__).parents[1]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Orders:
    """What a rank is told first."""

    artifacts: Artifacts
    settings: StageSettings
    share: Share
    threads: int


def python() -> str:
    """The interpreter: inside Triton's stub `sys.executable` may be something else."""
    beside = Path(sys.prefix) / "bin" / "python3"
    return sys.executable if Path(sys.executable or "").name.startswith("python") else str(beside)


class Rank:
    """A process that was told its orders and loads."""

    def __init__(self, orders: Orders):
        ours, theirs = socket.socketpair()
        with theirs:
            path = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
            command = [python(), "-m", "stages.rank", str(theirs.fileno())]
            environment = os.environ | {"PYTHONPATH": path}
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL
            )
        self.number, self.pipe = orders.share.rank, Connection(ours.detach())
        self.pipe.send_bytes(pickle.dumps(orders))

    @property
    def status(self) -> int | None:
        """How it ended, None while it lives."""
        return self._process.poll()

    @property
    def pid(self) -> int:
        return self._process.pid

    def loaded(self) -> None:
        """Wait until its weights are there; raises RankLost if it ends before."""
        try:
            self.pipe.recv_bytes()
        except (EOFError, OSError) as error:
            raise RankLost(f"rank {self.number} ended while it loaded; its log says why") from error

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self.pipe.close()

    def end(self, seconds: float) -> None:
        """Close its pipe, at which it ends, and wait."""
        self.pipe.close()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()


class Crew:
    """All ranks of one denoise stage. `devices` are theirs, that of rank 0 first."""

    def __init__(
        self, artifacts: Artifacts, settings: StageSettings, degrees: Degrees, devices: Sequence[str], threads: int
    ):
        shares = [Share(degrees, number) for number in range(degrees.ranks)]
        self._orders = [
            Orders(replace(artifacts, device=device), settings, share, threads)
            for share, device in zip(shares[1:], devices[1:], strict=True)
        ]
        self._share, self._limit = shares[0], settings.rank_seconds
        self._ranks: list[Rank] = []
        self._leader: Leader | None = None
        self._lost = ""  # why the ranks that were there are not any more
        self._lock, self._ended = threading.RLock(), threading.Event()
        self._start()
        self._watcher = threading.Thread(target=self._watch, name="rank-watch", daemon=True)
        self._watcher.start()

    @property
    def pids(self) -> list[int]:
        """Of the ranks beside this process."""
        return [rank.pid for rank in self._ranks]

    def _start(self) -> None:
        self._ranks = [Rank(orders) for orders in self._orders]

    def lead(self, denoiser: Denoiser) -> Denoiser:
        """`denoiser`, its steps evaluated by all ranks; raises RankLost if one does not come up."""
        dits = [expert.dit for expert in denoiser.experts]
        for dit in dits:
            self._share.degrees.check(dit.config.num_heads)
            dit.engine["parallel"] = str(self._share.degrees)
        self._dits = dits
        self.ready()
        return replace(denoiser, evaluators=self._evaluator)

    def ready(self) -> None:
        """Have all ranks wait for orders: those that were lost start again. Raises RankLost if one does not come up."""
        if self._leader is not None and not self._lost:
            return
        self._leave()
        if self._dead():
            self._start_again()
        try:
            for rank in self._ranks:
                rank.loaded()
            place = meeting_place(self._share.degrees.ranks)
            for rank in self._ranks:
                rank.pipe.send_bytes(pickle.dumps((place.port, self._dits[0].engine["attention"])))
            team = Team(self._share, place, self._dits, self._limit)
        except BaseException:  # those that came up would wait for what was said already
            self._kill()
            raise
        with self._lock:
            self._lost = ""
            self._leader = Leader(team, [rank.pipe for rank in self._ranks], self._broke)

    def _evaluator(self, dit: WanDiT, span: Span) -> Evaluator:
        if self._lost:
            raise RankLost(self._lost)
        return cast(Leader, self._leader).evaluator(dit, span)

    def _leave(self) -> None:
        if self._leader is not None:
            self._leader.team.leave()
            self._leader = None

    def _broke(self, error: str) -> str:
        """A step failed: end all ranks, which are in the middle of it, and let others load already."""
        deadline = time.monotonic() + DYING_SECONDS
        while not (self._lost or self._dead()) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS / 10)
        with self._lock:
            self._lost = self._lost or self._dead() or f"a step on {self._share.degrees.ranks} ranks failed: {error}"
            logger.error("%s; all ranks start again", self._lost)
            self._start_again()
            return self._lost

    def _start_again(self) -> None:
        self._kill()
        self._start()

    def _kill(self) -> None:
        for rank in self._ranks:
            rank.kill()

    def _dead(self) -> str:
        """Which rank has ended, if any."""
        ended = [
            f"rank {rank.number} ended with status {rank.status}" for rank in self._ranks if rank.status is not None
        ]
        return ", ".join(ended)

    def _watch(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            with self._lock:
                leader = self._leader
                if leader is None or self._lost:
                    continue
                since = leader.busy_since
                late = since is not None and time.monotonic() - since > self._limit
                self._lost = self._dead() or (f"a rank hung for {self._limit:g} s (WAN_RANK_SECONDS)" if late else "")
                if self._lost and since is None:  # nobody else will notice
                    logger.error("%s; all ranks start again", self._lost)
                    self._start_again()
                elif self._lost:
                    self._kill()
            if self._lost and since is not None:
                self._see_that_it_ends(leader, since)

    def _see_that_it_ends(self, leader: Leader, since: float) -> None:
        """Over NCCL nobody tells rank 0 that the others are gone."""
        leader.team.abort()
        deadline = time.monotonic() + STUCK_SECONDS
        while leader.busy_since == since and not self._ended.wait(POLL_SECONDS):
            if time.monotonic() > deadline:
                logger.critical("%s, and rank 0 still waits for it; it ends", self._lost)
                os._exit(EXIT_STUCK)

    def close(self) -> None:
        """End all ranks; once is enough."""
        self._ended.set()
        self._watcher.join()
        for rank in self._ranks:
            rank.end(10.0)
        self._leave()


def degrees_of(artifacts: Artifacts, settings: StageSettings) -> Degrees:
    """Into how many parts a video is divided: as the export placed it or, where it places nothing, as the settings say."""
    placed = artifacts.manifest.get("parallel", "") if "placement" in artifacts.manifest else settings.parallel
    if settings.parallel not in ("", placed):
        allowed = (
            f"{placed or 'nothing'}, as this repository was exported (--placement denoise=GPUS:{settings.parallel})"
        )
        raise InvalidRequest("WAN_PARALLEL", settings.parallel, allowed)
    return Degrees.parse(placed) if placed else Degrees()


def devices_of(artifacts: Artifacts, device: torch.device, ranks: int) -> list[str]:
    """Those of all ranks: on GPUs the part of the placement that begins with `device`, or the next ones."""
    if device.type != "cuda":
        return [str(device)] * ranks
    first = device.index or 0
    gpus = artifacts.manifest.get("placement", {}).get("denoise") or range(first, first + ranks)
    return [f"cuda:{index}" for index in gpus[gpus.index(first) :][:ranks]]


def open_on_ranks(artifacts: Artifacts, settings: StageSettings) -> tuple[Denoiser, "Crew | None"]:
    """The denoiser, on all ranks that a video is divided among; their crew has to be closed."""
    device, degrees = device_of(artifacts, settings), degrees_of(artifacts, settings)
    instances = artifacts.manifest["instances"]["denoise"] * degrees.ranks
    count = settings.denoise_threads or max(threads(0) // instances, 1)
    if device.type == "cpu":
        torch.set_num_threads(count)
    if degrees.ranks == 1:
        return open_denoiser(artifacts, settings), None
    crew = Crew(artifacts, settings, degrees, devices_of(artifacts, device, degrees.ranks), count)  # loads meanwhile
    try:
        return crew.lead(open_denoiser(artifacts, settings)), crew
    except BaseException:
        crew.close()
        raise


def ignore_signals() -> None:
    """Of a terminal or a supervisor: a rank ends when rank 0 does."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
