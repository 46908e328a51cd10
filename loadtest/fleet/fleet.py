"""The event loop: jobs wait, replicas start cold, run, drain, are lost; every GPU-second is put to an account.

A million jobs must pass in a minute, so jobs and replicas are rows of plain lists and the loop calls few functions.
"""

import heapq
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from loadtest.fleet.hpa import SYNC_SECONDS
from loadtest.fleet.rules import Rule, State
from loadtest.fleet.scaling import Autoscaler, ScalingPolicy, slots_of
from loadtest.fleet.trace import Trace

COLD, IDLE, BUSY, DRAINING, GONE = range(5)
DONE, READY, LOST, LET_GO = range(4)


@dataclass(frozen=True)
class FleetOptions:
    """What the replicas are like; all times in seconds. A replica is one denoise slot on one GPU."""

    cold_start: float = 180.0
    cold_spread: float = 0.0  # sigma of a lognormal around it: nodes, images and weights take their time
    initial_replicas: int = 0
    metric_delay: float = 30.0  # two scrape intervals between the truth and what the autoscaler sees
    drain_budget: float = 480.0  # what preStop may take; a job that does not fit is handed over at its next checkpoint
    resume: bool = True  # whether the next worker continues from the last checkpoint
    checkpoint_every: float = 10.0
    spot_losses_per_hour: float = 0.0  # per replica
    autoscale: bool = True
    blind: tuple[float, float] = (0.0, 0.0)  # from when to when Prometheus gives no answer


@dataclass
class Accounts:
    """GPU-seconds by what the GPU did, and counts."""

    useful: float = 0.0
    cold: float = 0.0
    idle: float = 0.0
    lost: float = 0.0  # work that had to be done again
    losses: int = 0
    interrupted: int = 0
    scale_ups: int = 0
    scale_downs: int = 0
    samples: list[tuple[float, int, int, int]] = field(default_factory=list)  # time, queued, running, replicas

    @property
    def total(self) -> float:
        return self.useful + self.cold + self.idle + self.lost

    @property
    def wasted(self) -> float:
        return self.cold + self.idle + self.lost


class Fleet:
    """One run of a trace under one scaling rule."""

    def __init__(self, trace: Trace, policy: ScalingPolicy, rule: Rule, options: FleetOptions, seed: int = 0):
        self.trace, self.rule, self.options = trace, rule, options
        self.policy, self.autoscaler = policy, Autoscaler(policy)
        self.rng = np.random.default_rng(seed)
        self.accounts = Accounts()
        self.left = trace.work.tolist()  # GPU-seconds still to do, per job
        self.left_predicted = trace.predicted.tolist()
        self.first_start = [-1.0] * len(trace)
        self.finish = [-1.0] * len(trace)
        self.queue: deque[int] = deque()
        self.queued_predicted = self.queued_slots = 0.0
        self.events: list[tuple[float, int, int]] = []  # time, kind, replica
        # one row a replica, never used twice
        self.state: list[int] = []
        self.since: list[float] = []
        self.job: list[int] = []
        self.idle: list[int] = []  # stack; rows that are idle no more are skipped
        self.newest: list[int] = []  # ready rows, newest last
        self.cold_rows: list[int] = []
        self.count = [0] * 5
        self.running: set[int] = set()  # rows with a job
        self.unfinished = len(trace)
        self.replicas = 0
        self._seen: deque[State] = deque()
        self._busy: deque[int] = deque(maxlen=max(1, int(policy.busy_window / SYNC_SECONDS)))

    def run(self) -> "Fleet":
        arrival = self.trace.arrival.tolist()
        total, position = len(arrival), 0
        tick = 0.0 if self.options.autoscale else float("inf")
        for _ in range(self.options.initial_replicas):
            self._start_replica(0.0, warm=True)
        handlers = (self._done, self._ready, self._lost, self._let_go)
        events, infinity, now = self.events, float("inf"), 0.0
        while self.unfinished:
            next_arrival = arrival[position] if position < total else infinity
            next_event = events[0][0] if events else infinity
            if next_arrival <= next_event and next_arrival <= tick:
                now = next_arrival
                self._arrive(now, position)
                position += 1
            elif next_event <= tick:
                now, kind, row = heapq.heappop(events)
                handlers[kind](now, row)
            else:
                now = tick
                self._scale(now)
                tick += SYNC_SECONDS
        self._close(now)
        return self

    # --- jobs

    def _arrive(self, now: float, job: int) -> None:
        self.queue.append(job)
        self._count_queued(job, 1)
        self._dispatch(now)

    def _count_queued(self, job: int, sign: int) -> None:
        self.queued_predicted += sign * self.left_predicted[job]
        self.queued_slots += sign * slots_of(self.left_predicted[job], self.rule.slot_seconds)

    def _dispatch(self, now: float) -> None:
        while self.queue and self.idle:
            row = self.idle.pop()
            if self.state[row] != IDLE:
                continue
            job = self.queue.popleft()
            self._count_queued(job, -1)
            if self.first_start[job] < 0:
                self.first_start[job] = now
            self.accounts.idle += now - self.since[row]
            self._enter(row, BUSY, now)
            self.job[row] = job
            self.running.add(row)
            heapq.heappush(self.events, (now + self.left[job], DONE, row))

    def _done(self, now: float, row: int) -> None:
        if self.state[row] not in (BUSY, DRAINING):
            return
        job, draining = self.job[row], self.state[row] == DRAINING
        self._stop_job(now, row, kept=now - self.since[row], lost=0.0)
        self.finish[job] = now
        self.unfinished -= 1
        if draining:
            self._enter(row, GONE, now)
        else:
            self._enter(row, IDLE, now)
            self.idle.append(row)
            self._dispatch(now)

    def _stop_job(self, now: float, row: int, kept: float, lost: float) -> None:
        job = self.job[row]
        self.running.remove(row)
        self.accounts.useful += kept
        self.accounts.lost += lost
        self.left[job] -= kept
        self.left_predicted[job] = max(self.left_predicted[job] - kept, 0.0)
        self.job[row] = -1

    def _interrupt(self, now: float, row: int, checkpointed: bool) -> None:
        """Put the job of a replica back at the head of the queue, less what its last checkpoint holds."""
        job, ran = self.job[row], now - self.since[row]
        kept = ran if checkpointed else max(0.0, ran - self.options.checkpoint_every * self.rng.random())
        if not self.options.resume:
            # Everything, also what earlier runs of this job kept, is done again: nothing was kept in the first place.
            kept = 0.0
        self._stop_job(now, row, kept, ran - kept)
        self.accounts.interrupted += 1
        self.queue.appendleft(job)
        self._count_queued(job, 1)

    # --- replicas

    def _enter(self, row: int, state: int, now: float) -> None:
        self.count[self.state[row]] -= 1
        self.count[state] += 1
        self.state[row] = state
        self.since[row] = now

    def _start_replica(self, now: float, warm: bool = False) -> None:
        row = len(self.state)
        self.state.append(COLD)
        self.since.append(now)
        self.job.append(-1)
        self.count[COLD] += 1
        self.replicas += 1
        self.cold_rows.append(row)
        heapq.heappush(self.events, (now + (0.0 if warm else self._cold_seconds()), READY, row))
        rate = self.options.spot_losses_per_hour
        if rate:
            heapq.heappush(self.events, (now + self.rng.exponential(3600 / rate), LOST, row))

    def _cold_seconds(self) -> float:
        spread = self.options.cold_spread
        return self.options.cold_start * (self.rng.lognormal(0, spread) if spread else 1.0)

    def _ready(self, now: float, row: int) -> None:
        if self.state[row] != COLD:
            return
        self.accounts.cold += now - self.since[row]
        self._enter(row, IDLE, now)
        self.newest.append(row)
        self.idle.append(row)
        self._dispatch(now)

    def _lost(self, now: float, row: int) -> None:
        """The cloud takes the node back; the Deployment asks for another one at once."""
        state = self.state[row]
        if state == GONE:
            return
        self.accounts.losses += 1
        self._retire(now, row)
        if state != DRAINING:
            self.replicas -= 1
            self._start_replica(now)
        self._dispatch(now)

    def _retire(self, now: float, row: int) -> None:
        state = self.state[row]
        if state in (BUSY, DRAINING):
            self._interrupt(now, row, checkpointed=False)
        else:
            account = "cold" if state == COLD else "idle"
            setattr(self.accounts, account, getattr(self.accounts, account) + now - self.since[row])
        self._enter(row, GONE, now)

    def _remove_replica(self, now: float) -> None:
        """What a ReplicaSet removes first: replicas that are not ready, then the newest, whether busy or not."""
        self.replicas -= 1
        while self.cold_rows:
            row = self.cold_rows.pop()
            if self.state[row] == COLD:
                return self._retire(now, row)
        while self.newest:
            row = self.newest.pop()
            if self.state[row] == IDLE:
                return self._retire(now, row)
            if self.state[row] == BUSY:
                return self._drain(now, row)

    def _drain(self, now: float, row: int) -> None:
        """preStop: finish the job if it fits into the budget, hand it over at the next checkpoint if not."""
        budget, began = self.options.drain_budget, self.since[row]
        self._enter(row, DRAINING, now)
        self.since[row] = began
        if budget <= 0:
            self._retire(now, row)
            return
        if began + self.left[self.job[row]] > now + budget:
            wait = self.options.checkpoint_every if self.options.resume else budget
            heapq.heappush(self.events, (now + wait, LET_GO, row))

    def _let_go(self, now: float, row: int) -> None:
        if self.state[row] == DRAINING:
            self._interrupt(now, row, checkpointed=True)
            self._enter(row, GONE, now)
            self._dispatch(now)

    # --- autoscaler

    def observe(self, now: float) -> State:
        """What Prometheus would show for this moment."""
        _cold, idle, busy, draining, _ = self.count
        left = [max(self.since[row] + self.left_predicted[self.job[row]] - now, 0.0) for row in self.running]
        running = sum(slots_of(seconds, self.rule.slot_seconds) for seconds in left)
        self._busy.append(busy)
        return State(
            now=now,
            queued=len(self.queue),
            running=busy + draining,
            backlog=max(self.queued_predicted, 0.0) + sum(left),
            demand=max(self.queued_slots, 0.0) + running,
            ready=idle + busy,
            busy=busy,
            busy_mean=sum(self._busy) / len(self._busy),
        )

    def _scale(self, now: float) -> None:
        self._seen.append(self.observe(now))
        while len(self._seen) > 1 and self._seen[1].now <= now - self.options.metric_delay:
            self._seen.popleft()
        seen, current = self._seen[0], self.replicas
        if self.options.blind[0] <= now < self.options.blind[1]:
            seen = self._seen[-1]  # of the gateway itself, without a scrape between
            wanted = self.rule.blind(seen, current)
        else:
            wanted = self.rule.wanted(seen, current)
        target = self.autoscaler.decide(now, current, wanted, active=seen.queued + seen.running > 0)
        if target > current:
            self.accounts.scale_ups += 1
            for _ in range(target - current):
                self._start_replica(now)
        elif target < current:
            self.accounts.scale_downs += 1
            for _ in range(current - target):
                self._remove_replica(now)
        latest = self._seen[-1]
        self.accounts.samples.append((now, latest.queued, latest.running, self.replicas))

    def _close(self, now: float) -> None:
        """Put what is still alive at the end to its account."""
        for row, state in enumerate(self.state):
            if state == IDLE:
                self.accounts.idle += now - self.since[row]
            elif state == COLD:
                self.accounts.cold += now - self.since[row]
