"""Who runs on one node's GPUs, and on how many of them: orders of the queue, preemption, parallelism by job, counted by deadlines met.

Every order sees the same arrivals on the same GPUs, so that all cost the same. A job that is stopped keeps its checkpoint and pays
`switch` seconds when it goes on; so does one that changes its number of GPUs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from contract.parallel import Degrees
from loadtest.fleet.trace import JobClass, make_trace
from service.store.policies import POLICIES

DEGREES = (1, 2, 4, 8)
SHARE = {degree: Degrees(ulysses=degree).sequence_share for degree in DEGREES}  # time on so many GPUs, of that on one
AGEING = 10.0  # WAN_POLICY=shortest: seconds of waiting for one GPU-second


@dataclass
class Job:
    """One request; all times in seconds, work in seconds of one GPU."""

    arrival: float
    work: float
    predicted: float
    deadline: float
    level: int  # priority: 0 is the most urgent
    number: int = 0
    done: float = 0.0  # of the work
    finish: float = math.inf
    gpus: int = 0
    since: float = 0.0  # when it began on the GPUs that it has, plus what the switch took
    started: bool = False

    def left(self, now: float) -> float:
        """Predicted work left; one that takes longer than predicted is always nearly done."""
        return max(self.predicted - self.progress(now), 0.02 * self.predicted)

    def progress(self, now: float) -> float:
        return self.done + (max(now - self.since, 0.0) / SHARE[self.gpus] if self.gpus else 0.0)

    def ends(self, now: float, gpus: int, switch: float) -> float:
        """When it is predicted to end on so many GPUs from now on."""
        paused = max(self.since - now, 0.0) if gpus == self.gpus else switch * self.started
        return now + paused + self.left(now) * SHARE[gpus]


Key = Callable[[Job], tuple]
Allocation = dict[int, int]  # number of a job -> GPUs


def _by(policy: str) -> Key:
    turn = POLICIES[policy]
    return lambda job: (turn(job.arrival, job.predicted, job.deadline, AGEING), job.number)


FIFO, SHORTEST, EARLIEST = _by("fifo"), _by("shortest"), _by("earliest_deadline")


@dataclass(frozen=True)
class Order:
    """How GPUs are given away. `feasible`: what will be late anyhow goes last; `elastic`: each job on as many as its deadline takes."""

    key: Key
    preempts: bool = False
    feasible: bool = False
    elastic: bool = False
    gpus: int = 1  # of every job, where it is not elastic

    def allocate(self, now: float, jobs: list[Job], gpus: int, switch: float) -> Allocation:
        if not self.preempts:
            given = {job.number: job.gpus for job in jobs if job.gpus}
            return self._fill(given, [job for job in jobs if not job.gpus], gpus - sum(given.values()), now, switch)
        if self.elastic:
            return elastic(now, jobs, gpus, switch)
        return self._fill({}, jobs, gpus, now, switch)

    def _fill(self, given: Allocation, jobs: list[Job], free: int, now: float, switch: float) -> Allocation:
        late = {job.number: self.feasible and job.ends(now, self.gpus, switch) > job.deadline for job in jobs}
        for job in sorted(jobs, key=lambda job: (late[job.number], self.key(job))):
            if free < self.gpus:
                break
            given[job.number] = self.gpus
            free -= self.gpus
        return given


def elastic(now: float, jobs: list[Job], gpus: int, switch: float) -> Allocation:
    """The fewest GPUs that meet a deadline, those that need fewest GPU-seconds first; what is left over speeds up what runs."""
    wanted = []
    for job in jobs:
        enough = [d for d in DEGREES if d <= gpus and job.ends(now, d, switch) <= job.deadline]
        if enough:
            wanted.append((job.left(now) * SHARE[enough[0]] * enough[0], job.number, enough[0], job))
    given: Allocation = {}
    free = gpus
    for _, number, need, _job in sorted(wanted, key=lambda row: row[:2]):
        if need <= free:
            given[number] = need
            free -= need
    for job in sorted(jobs, key=lambda job: (job.left(now), job.number)):
        if free and job.number not in given:
            given[job.number] = 1
            free -= 1
    return _speed_up(now, [job for job in jobs if job.number in given], given, free, switch)


def _speed_up(now: float, jobs: list[Job], given: Allocation, free: int, switch: float) -> Allocation:
    """Leave a running job the GPUs that it has, then double those of the longest where that outweighs the switch."""
    for job in jobs:
        more = job.gpus - given[job.number]
        if 0 < more <= free:
            given[job.number] = job.gpus
            free -= more
    for job in sorted(jobs, key=lambda job: -job.left(now)):
        while (have := given[job.number]) * 2 <= DEGREES[-1] and have <= free:
            if job.ends(now, 2 * have, switch) + switch > job.ends(now, have, switch):
                break
            given[job.number] = 2 * have
            free -= have
    return given


ORDERS: dict[str, Order] = {
    "first come, first served": Order(FIFO),
    "first come, every job on 8 GPUs": Order(FIFO, gpus=8),
    "priority": Order(lambda job: (job.level, *FIFO(job))),
    "shortest first": Order(SHORTEST),
    "earliest deadline": Order(EARLIEST),
    "earliest deadline, preempting": Order(EARLIEST, preempts=True),
    "the same, what is late last": Order(EARLIEST, preempts=True, feasible=True),
    "the same, 1 to 8 GPUs a job": Order(EARLIEST, preempts=True, feasible=True, elastic=True),
}


@dataclass
class Node:
    """GPUs that jobs share: the event loop of one run."""

    order: Order
    gpus: int = 8
    switch: float = 5.0
    preemptions: int = 0
    busy: float = 0.0  # GPU-seconds
    jobs: dict[int, Job] = field(default_factory=dict)

    def run(self, jobs: list[Job]) -> list[Job]:
        """All jobs to their end; `finish` of each is set."""
        arrivals = iter(sorted(jobs, key=lambda job: job.arrival))
        coming = next(arrivals, None)
        while coming or self.jobs:
            first = min((job for job in self.jobs.values() if job.gpus), key=self._end, default=None)
            if coming and (first is None or coming.arrival <= self._end(first)):
                now = coming.arrival
                self.jobs[coming.number] = coming
                coming = next(arrivals, None)
            else:
                assert first, "GPUs are free and somebody waits"
                now = self._end(first)
                self._account(first, now)
                first.finish = now
                del self.jobs[first.number]
            self._give(now)
        return jobs

    @staticmethod
    def _end(job: Job) -> float:
        return job.since + (job.work - job.done) * SHARE[job.gpus]

    def _account(self, job: Job, now: float) -> None:
        job.done = job.progress(now)
        self.busy += job.gpus * max(now - job.since, 0.0)

    def _give(self, now: float) -> None:
        given = self.order.allocate(now, list(self.jobs.values()), self.gpus, self.switch)
        for job in self.jobs.values():
            gpus = given.get(job.number, 0)
            if gpus == job.gpus:
                continue
            if job.gpus:
                self._account(job, now)
                self.preemptions += gpus == 0
            job.gpus = gpus
            job.since = now + (self.switch if job.started else 0.0)
            job.started = job.started or gpus > 0


def draw(mix: list[JobClass], shape: str, load: float, scale: float, count: int, seed: int, gpus: int = 8) -> list[Job]:
    """Arrivals that keep `load` of the GPUs busy; a job is due `scale` times its predicted time on one GPU after it came.

    The cheapest class of the mix has the highest priority, the dearest the lowest.
    """
    mean = sum(kind.share * kind.gpu_seconds for kind in mix) / sum(kind.share for kind in mix)
    trace = make_trace(shape, count, 3600 * load * gpus / mean, mix, 0.1, seed)
    level = {cost: n for n, cost in enumerate(sorted({kind.gpu_seconds for kind in mix}))}
    rows = zip(trace.arrival.tolist(), trace.work.tolist(), trace.predicted.tolist(), strict=True)
    return [Job(at, work, cost, at + scale * cost, level[cost], n) for n, (at, work, cost) in enumerate(rows)]


def attained(jobs: list[Job]) -> float:
    return sum(job.finish <= job.deadline for job in jobs) / len(jobs)
