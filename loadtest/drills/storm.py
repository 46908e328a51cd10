"""`python -m loadtest drills`: faults of all kinds at random moments, while jobs run all the time; a seed repeats the schedule.

Kinds: kill -9 of each part, parts that freeze (SIGSTOP) and go on, a store that is away, bits that flip in checkpoints. Verdict:
every job completed, once, with the frames of an undisturbed run; no attempt was held against a job; nothing is left over.
Exit code 1 if any of these fails.
"""

import argparse
import contextlib
import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from loadtest.base.processes import frozen
from loadtest.drills.faults import Drill, is_over, under_fire
from service import options
from service.stack import ROOT

KILLS = ("kill worker", "kill triton", "kill stub", "kill gateway", "kill database")
FREEZES = ("freeze worker", "freeze stub", "freeze database")
KINDS = (*KILLS, *FREEZES, "store away", "flip bit")
IN_FLIGHT = 2  # unfinished jobs that there are at any time


@dataclass(frozen=True)
class Event:
    """A fault: `pause` seconds after the one before, lasting `seconds` where it lasts."""

    pause: float
    kind: str
    seconds: float


def schedule(seed: int, count: int, longest: float) -> list[Event]:
    """The same for the same arguments; short faults are more frequent than long ones."""
    dice = random.Random(seed)
    return [
        Event(round(dice.uniform(0.2, 3), 2), dice.choice(KINDS), round(longest ** dice.uniform(0, 1), 2))
        for _ in range(count)
    ]


@dataclass
class Verdict:
    """What went wrong, each in jobs; `faults` that could not be made (nothing to break at that moment) are left out."""

    seed: int
    faults: int = 0
    jobs: int = 0
    lost: int = 0
    doubled: int = 0
    wrong_frames: int = 0
    charged: int = 0
    leftovers: int = 0

    @property
    def met(self) -> bool:
        return self.jobs > 0 and not (self.lost or self.doubled or self.wrong_frames or self.charged or self.leftovers)


class Storm:
    """Breaks one stack by a schedule."""

    def __init__(self, drill: Drill, events: list[Event], say: Callable[[str], None]):
        self.drill, self.events, self._say = drill, events, say
        self._dice = random.Random(len(events))
        self._jobs: list[str] = []

    def run(self, verdict: Verdict, minutes: float = math.inf) -> None:
        end = time.monotonic() + 60 * minutes
        for number, event in enumerate(self.events, 1):
            if time.monotonic() > end:
                break
            self._keep_busy()
            time.sleep(event.pause)
            with contextlib.suppress(StopIteration, psutil.NoSuchProcess, OSError):
                self._strike(event)
                verdict.faults += 1
            self._say(f"{number}/{len(self.events)} {event.kind} {event.seconds:g} s")
        for job_id in self._jobs:
            self._judge(verdict, self.drill.until(job_id, is_over, 600))
        verdict.jobs = len(self._jobs)

    def _keep_busy(self) -> None:
        unfinished = sum(not is_over(self.drill.video(job_id)) for job_id in self._jobs[-IN_FLIGHT:])
        for _ in range(IN_FLIGHT - unfinished):
            self._jobs.append(self.drill.submit(f"storm-{len(self._jobs)}-{time.time()}"))

    def _strike(self, event: Event) -> None:
        action, _, victim = event.kind.partition(" ")
        if action == "kill":
            getattr(self.drill, f"kill_{victim}")()
        elif action == "freeze":
            self._freeze(victim, event.seconds)
        elif event.kind == "store away":
            self._take_store_away(event.seconds)
        else:
            self._flip_bit()

    def _freeze(self, victim: str, seconds: float) -> None:
        with self._frozen(victim):
            time.sleep(seconds)

    def _frozen(self, victim: str) -> contextlib.AbstractContextManager:
        stack = self.drill.stack
        if victim == "worker":
            return frozen([psutil.Process(stack.children["worker-0"].process.pid)])
        if victim == "stub":
            return frozen([next(stub.process for stub in stack.server.stubs if "denoise" in stub.instance)])
        if self.drill.postgres is None:
            raise ValueError("a drill without PostgreSQL cannot freeze it")
        return self.drill.postgres.frozen()

    def _take_store_away(self, seconds: float) -> None:
        """A file where the folder should be."""
        folder = self.drill.stack.state / "videos"
        aside = folder.with_name("videos-aside")
        folder.rename(aside)
        folder.write_text("")
        time.sleep(seconds)
        folder.unlink()
        aside.rename(folder)

    def _flip_bit(self) -> None:
        state = self.drill.stack.state
        found = [*state.glob("videos/*/checkpoint-*"), *state.glob("run/*/checkpoint.safetensors")]
        path = self._dice.choice(sorted(found)) if found else next(iter(()))
        data = bytearray(path.read_bytes())
        data[self._dice.randrange(len(data) // 2, len(data))] ^= 1 << self._dice.randrange(8)
        path.write_bytes(data)

    def _judge(self, verdict: Verdict, video: dict) -> None:
        if video["status"] != "completed":
            verdict.lost += 1
            self._say(f"LOST {video['id']}: {video['error']}")
            return
        stored = sorted(path.name for path in (self.drill.stack.state / "videos" / video["id"]).iterdir())
        films = [name for name in stored if name.endswith(".mp4")]
        verdict.doubled += len(films) != 1
        verdict.leftovers += len(stored) != len(films)
        verdict.wrong_frames += video["frames_sha256"] != self.drill.reference["frames_sha256"]
        verdict.charged += video["attempts"] != 1
        if len(stored) != 1 or video["attempts"] != 1:
            self._say(f"{video['id']}: {stored}, {video['attempts']} attempts")


def storm(
    repository: Path,
    seed: int,
    count: int,
    longest: float,
    steps: int,
    say: Callable[[str], None],
    minutes: float = math.inf,
) -> Verdict:
    """`count` faults, or as many as come in `minutes`; none lasts more than `longest` seconds."""
    verdict = Verdict(seed)
    with under_fire(repository, steps) as drill:
        Storm(drill, schedule(seed, count, longest), say).run(verdict, minutes)
    return verdict


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="repeats a schedule")
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=math.inf, help="end after so many, whatever is left")
    parser.add_argument("--longest", type=float, default=30, help="seconds of the longest fault")
    parser.add_argument("--steps", type=int, default=200, help="denoise steps of each job")
    parser.add_argument("--repository", type=Path, default=ROOT / "build/repository")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "models/tiny")
    parser.add_argument("--out", type=Path, help="also write the verdict to this JSON file")


def handle(given: argparse.Namespace) -> int:
    options.serve_model(given.checkpoint, given.repository)
    verdict = storm(
        given.repository,
        given.seed,
        given.faults,
        given.longest,
        given.steps,
        lambda text: print(text, flush=True),
        given.minutes,
    )
    report = asdict(verdict) | {"met": verdict.met}
    print(json.dumps(report))
    if given.out:
        given.out.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if verdict.met else 1
