"""Arrival traces as arrays: when each job comes, how many GPU-seconds it takes, and how many were predicted."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loadtest.base.inputs import ProfileError

DAY = 86_400.0
SHAPES = ("poisson", "bursts", "day", "shift")


@dataclass(frozen=True)
class JobClass:
    """One kind of request: its share of the arrivals and its cost in GPU-seconds."""

    name: str
    share: float
    gpu_seconds: float


@dataclass(frozen=True)
class Trace:
    """Jobs in order of arrival; all arrays have one entry a job."""

    arrival: np.ndarray  # seconds after the start
    work: np.ndarray  # GPU-seconds that the job really takes
    predicted: np.ndarray  # GPU-seconds that the cost model says

    def __len__(self) -> int:
        return len(self.arrival)

    @property
    def offered_load(self) -> float:
        """GPUs that the trace keeps busy on average."""
        return float(self.work.sum() / self.arrival[-1])


def make_trace(
    shape: str, jobs: int, per_hour: float, mix: list[JobClass], error: float, seed: int, **options
) -> Trace:
    """Draw `jobs` arrivals at a mean rate of `per_hour`; `error` is the sigma of a lognormal error of the prediction."""
    rng = np.random.default_rng(seed)
    if shape == "poisson":
        arrival = np.cumsum(rng.exponential(3600 / per_hour, jobs))
    elif shape == "bursts":
        arrival = _bursts(rng, jobs, per_hour, **options)
    elif shape == "day":
        arrival = _day(rng, jobs, per_hour, **options)
    elif shape == "shift":
        arrival = np.cumsum(rng.exponential(3600 / per_hour, jobs))
        return _with_shifting_costs(rng, arrival, mix, error, **options)
    else:
        raise ProfileError(f"trace shape is {shape!r}; allowed: {', '.join(SHAPES)}")
    return _with_costs(rng, arrival, mix, error)


def read_trace(path: Path, mix: list[JobClass], error: float, seed: int) -> Trace:
    """Arrivals from a JSON list of seconds, or of [seconds, GPU-seconds]; raises ProfileError naming file and entry."""
    try:
        rows = json.loads(path.read_text())
        values = np.array(rows, dtype=float)
    except (OSError, ValueError, TypeError) as problem:
        raise ProfileError(
            f"trace {path}: {problem}; allowed: a JSON list of seconds or of [seconds, GPU-seconds]"
        ) from None
    if values.size == 0 or values.ndim > 2 or (values.ndim == 2 and values.shape[1] != 2):
        raise ProfileError(
            f"trace {path} has the shape {values.shape}; allowed: [n] seconds or [n, 2] with GPU-seconds"
        )
    rng = np.random.default_rng(seed)
    if values.ndim == 1:
        return _with_costs(rng, np.sort(values), mix, error)
    values = values[np.argsort(values[:, 0], kind="stable")]
    if values.min() < 0 or values[:, 1].min() <= 0:
        raise ProfileError(f"trace {path} holds a negative time or a cost that is not above 0")
    return Trace(values[:, 0], values[:, 1], values[:, 1] * rng.lognormal(0, error, len(values)))


def _with_costs(rng: np.random.Generator, arrival: np.ndarray, mix: list[JobClass], error: float) -> Trace:
    share = np.array([kind.share for kind in mix])
    predicted = np.array([kind.gpu_seconds for kind in mix])[rng.choice(len(mix), len(arrival), p=share / share.sum())]
    return Trace(arrival, predicted * rng.lognormal(0, error, len(arrival)), predicted)


def _with_shifting_costs(
    rng: np.random.Generator, arrival: np.ndarray, mix: list[JobClass], error: float, every: float = 10_800
) -> Trace:
    """The mix changes every three hours between its cheap and its dear requests; the rate of arrivals does not."""
    middle = sum(kind.share * kind.gpu_seconds for kind in mix) / sum(kind.share for kind in mix)
    halves = [[k for k in mix if k.gpu_seconds <= middle], [k for k in mix if k.gpu_seconds > middle]]
    turn = (arrival // every).astype(int) % 2
    predicted = np.empty(len(arrival))
    for number, kinds in enumerate(halves):
        share = np.array([kind.share for kind in kinds or mix])
        costs = np.array([kind.gpu_seconds for kind in kinds or mix])
        mine = turn == number
        predicted[mine] = costs[rng.choice(len(costs), int(mine.sum()), p=share / share.sum())]
    return Trace(arrival, predicted * rng.lognormal(0, error, len(arrival)), predicted)


def _bursts(
    rng: np.random.Generator, jobs: int, per_hour: float, every: float = 3600, burst_share: float = 0.5
) -> np.ndarray:
    """A steady Poisson stream, and every `every` seconds one burst; bursts hold `burst_share` of all jobs."""
    seconds = jobs * 3600 / per_hour
    in_bursts = int(jobs * burst_share)
    starts = np.arange(every / 2, max(seconds, every), every)
    # A burst is a minute wide: a post goes round, a batch script starts.
    bursts = rng.choice(starts, in_bursts) + rng.uniform(0, 60, in_bursts)
    return np.sort(np.concatenate([bursts, rng.uniform(0, seconds, jobs - in_bursts)]))


def _day(rng: np.random.Generator, jobs: int, per_hour: float, swing: float = 0.9) -> np.ndarray:
    """Poisson arrivals whose rate follows a cosine over the day: peak at 18:00, (1 - swing)/(1 + swing) of it at 06:00."""
    seconds = jobs * 3600 / per_hour
    # Inverse of the cumulated rate on a grid of a minute; exact for the counts, piecewise linear between.
    grid = np.linspace(0, seconds, max(2, int(seconds / 60)))
    cumulated = grid + swing * DAY / (2 * np.pi) * (np.sin(2 * np.pi * (grid / DAY - 0.75)) + 1)
    cumulated -= cumulated[0]
    return np.interp(np.sort(rng.uniform(0, cumulated[-1], jobs)), cumulated, grid)
