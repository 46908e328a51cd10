"""`python -m loadtest preemption`: urgent jobs take the place of running ones, over and over; what does it cost?

One worker with one slot. Long jobs of the lowest priority keep it busy, and at random steps a short job of the highest one comes.
Verdict: it starts within one step and 200 ms, no attempt is charged, and all videos have the frames of undisturbed runs. The
overhead is the time for all of it against that for the same jobs one after the other; its share depends on how long jobs are, the
seconds a preemption do not, so it is reported and not judged. Exit code 1 if any of the rest fails.
"""

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from loadtest.base.databases import find_binaries
from loadtest.base.inputs import LoadTestError
from loadtest.drills.faults import REQUEST, Drill, under_fire
from service import options
from service.stack import ROOT
from service.store import Job, JobStore

LIMIT_SECONDS = 0.2  # beside one step
PER_JOB = 10  # how often each long job makes room
URGENT_STEPS = 10


@dataclass
class Verdict:
    """What came of it; `waits` beyond a step are in seconds, `overhead` is a share of the time without preemption."""

    preemptions: int = 0
    step_seconds: float = 0.0
    waits: list[float] = field(default_factory=list)
    wrong_frames: int = 0
    charged: int = 0
    lost: int = 0
    seconds: float = 0.0
    seconds_in_turn: float = 0.0

    @property
    def late(self) -> int:
        return sum(wait > self.step_seconds + LIMIT_SECONDS for wait in self.waits)

    @property
    def overhead(self) -> float:
        return self.seconds / self.seconds_in_turn - 1 if self.seconds_in_turn else 0.0

    @property
    def overhead_seconds(self) -> float:
        """Of each preemption."""
        return (self.seconds - self.seconds_in_turn) / self.preemptions if self.preemptions else 0.0

    @property
    def met(self) -> bool:
        return self.preemptions > 0 and not (self.late or self.wrong_frames or self.charged or self.lost)

    def report(self) -> dict:
        """As written to a file: sums instead of every wait."""
        waits = sorted(self.waits) or [0.0]
        found = asdict(self) | {"late": self.late, "overhead": self.overhead, "overhead_seconds": self.overhead_seconds}
        found["waits"] = {
            "median": statistics.median(waits),
            "p95": waits[math.ceil(0.95 * len(waits)) - 1],
            "most": waits[-1],
        }
        return found | {"met": self.met}


class Rounds:
    """The same jobs twice on one stack: with priorities, and in turn."""

    def __init__(self, drill: Drill, store: JobStore, count: int, seed: int):
        self.drill, self.store, self.count = drill, store, count
        self._dice = random.Random(seed)
        self.long_steps = drill.steps
        self.references: dict[str, str] = {}  # kind of job -> digest of its frames

    def submit(self, name: str, steps: int, priority: str) -> str:
        body = REQUEST | {"steps": steps, "priority": priority}
        return self.drill.call("POST", "/v1/videos", json=body, headers={"Idempotency-Key": name}).json()["id"]

    def until(self, job_id: str, check: Callable[[Job], bool], seconds: float = 300) -> Job:
        """The row itself, whose times are exact."""
        deadline = time.monotonic() + seconds
        while not check(job := self.store.get(job_id)):
            if time.monotonic() > deadline:
                raise LoadTestError(f"{job_id} is {job.status} at step {job.step} after {seconds:g} s")
            time.sleep(0.01)
        return job

    def preempt(self, verdict: Verdict) -> None:
        """Long jobs wait in line; each makes room up to PER_JOB times at steps that the dice say."""
        long = [self.submit(f"long-{n}", self.long_steps, "low") for n in range(math.ceil(self.count / PER_JOB))]
        urgent: list[str] = []
        for job_id in long:
            last = 0
            for _ in range(min(PER_JOB, self.count - len(urgent))):
                pause = self._dice.randint(2, max(2, self.long_steps // (PER_JOB + 2)))
                job = self.until(job_id, _reached(last + pause))
                if job.done:
                    break
                last = job.step
                urgent.append(self.submit(f"urgent-{len(urgent)}", URGENT_STEPS, "high"))
                self.until(urgent[-1], lambda job: job.done)
            self.until(job_id, lambda job: job.done)
        verdict.seconds = self._judge(verdict, long, urgent)
        verdict.preemptions = sum(self.store.get(job_id).preemptions for job_id in long)
        verdict.waits = [self._wait(self.store.get(job_id)) for job_id in urgent]

    @staticmethod
    def _wait(job: Job) -> float:
        return (job.started_at or math.inf) - job.created_at

    def in_turn(self, verdict: Verdict, urgent: int) -> None:
        """The same jobs, none of them urgent."""
        long = [self.submit(f"turn-long-{n}", self.long_steps, "low") for n in range(math.ceil(self.count / PER_JOB))]
        short = [self.submit(f"turn-short-{n}", URGENT_STEPS, "low") for n in range(urgent)]
        for job_id in (*long, *short):
            self.until(job_id, lambda job: job.done, 600)
        verdict.seconds_in_turn = self._judge(verdict, long, short)

    def _judge(self, verdict: Verdict, long: list[str], short: list[str]) -> float:
        """Seconds from the first lease to the last video."""
        for kind, ids in (("long", long), ("short", short)):
            for job in map(self.store.get, ids):
                frames = str((job.info or {}).get("frames_sha256"))
                verdict.lost += job.status != "completed"
                verdict.wrong_frames += frames != self.references.setdefault(kind, frames)
                verdict.charged += job.attempts != 1
        jobs = [self.store.get(job_id) for job_id in (*long, *short)]
        return max(job.completed_at or math.inf for job in jobs) - min(job.started_at or math.inf for job in jobs)


def _reached(step: int) -> Callable[[Job], bool]:
    return lambda job: job.done or (job.worker is not None and job.step >= step)


def drill(repository: Path, count: int, steps: int, seed: int = 0) -> Verdict:
    """`count` preemptions of jobs with so many steps."""
    if find_binaries() is None:
        raise LoadTestError("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
    verdict = Verdict()
    # heartbeats carry the step at which an urgent job shall come
    more = {"WAN_SLOTS": "1", "WAN_MAX_PREEMPTIONS": str(PER_JOB), "WAN_HEARTBEAT_SECONDS": "0.1"}
    with under_fire(repository, steps, more=more) as running:
        assert running.postgres is not None
        store = JobStore(running.postgres.url(), connections=1)
        rounds = Rounds(running, store, count, seed)
        rounds.references["long"] = running.reference["frames_sha256"]
        rounds.in_turn(verdict, count)  # first, so that the short ones have frames to be compared with
        rounds.preempt(verdict)
        verdict.step_seconds = running.reference["stage_durations"]["denoise"] / steps
        store.close()
    return verdict


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preemptions", type=int, default=100)
    parser.add_argument("--steps", type=int, default=1000, help="denoise steps of each long job")
    parser.add_argument("--seed", type=int, default=0, help="repeats the steps at which urgent jobs come")
    parser.add_argument("--repository", type=Path, default=ROOT / "build/repository")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "models/tiny")
    parser.add_argument("--out", type=Path, help="also write the verdict to this JSON file")


def handle(given: argparse.Namespace) -> int:
    options.serve_model(given.checkpoint, given.repository)
    verdict = drill(given.repository, given.preemptions, given.steps, given.seed)
    report = verdict.report()
    print(json.dumps(report))
    if given.out:
        given.out.write_text(json.dumps(report, indent=2) + "\n")
    waits = report["waits"]
    print(
        f"{verdict.preemptions} preemptions: an urgent job waits {waits['median'] * 1000:.0f} ms (p95 {waits['p95'] * 1000:.0f}, most "
        f"{waits['most'] * 1000:.0f}), {verdict.late} over one step + 200 ms; each costs {verdict.overhead_seconds * 1000:.0f} ms, "
        f"{100 * verdict.overhead:.1f} %; {verdict.wrong_frames} with other frames, {verdict.charged} charged, {verdict.lost} lost"
    )
    return 0 if verdict.met else 1
