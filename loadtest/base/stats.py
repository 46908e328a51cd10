"""Statistics that a verdict rests on: percentiles, bootstraps of correlated samples, trends, the M/G/1 queue."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


def percentile(values: Sequence[float] | np.ndarray, q: float) -> float:
    """The q-th percentile (0..100), the nearest rank above: infinite values (requests that never ended) are legal."""
    if not len(values):
        return math.nan
    rank = max(0, math.ceil(q / 100 * len(values)) - 1)
    return float(np.partition(np.asarray(values, float), rank)[rank])


def mean(values: Sequence[float] | np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def block_bootstrap(
    values: Sequence[float] | np.ndarray, statistic: Callable[[np.ndarray], float], draws: int = 500, seed: int = 0
) -> np.ndarray:
    """Draws of a statistic from a circular moving-block bootstrap [draws].

    Waiting times of neighbouring requests are correlated (they stood in the same queue), so whole blocks of
    n^(1/3) to n^(1/2) neighbours are drawn (Politis and Romano 1992); single draws would be far too confident.
    """
    data = np.asarray(values, float)
    count = len(data)
    if count == 0:
        return np.full(draws, math.nan)
    length = max(1, round(count**0.4))
    rng = np.random.default_rng(seed)
    found = np.empty(draws)
    for draw in range(draws):
        starts = rng.integers(0, count, math.ceil(count / length))
        picks = (starts[:, None] + np.arange(length)).ravel()[:count]
        found[draw] = statistic(data.take(picks, mode="wrap"))
    return found


def interval(draws: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """The central interval of bootstrap draws."""
    tail = (1 - confidence) / 2 * 100
    return percentile(draws, tail), percentile(draws, 100 - tail)


@dataclass(frozen=True)
class Trend:
    """A straight line through samples over time."""

    slope_per_hour: float
    growth: float  # fitted change over the observed span
    relative_growth: float  # growth / mean level
    significant: bool


# One-sided 99.5 % quantiles of Student's t for 1..18 degrees of freedom (block means minus 2).
_T995 = (63.66, 9.92, 5.84, 4.60, 4.03, 3.71, 3.50, 3.36, 3.25, 3.17, 3.11, 3.05, 3.01, 2.98, 2.95, 2.92, 2.90, 2.88)


def trend(times: Sequence[float], values: Sequence[float], blocks: int = 12) -> Trend:
    """Least-squares line through block means, with a one-sided t-test that it rises.

    Block means, because memory moves in steps that stay: raw samples would count each step many times.
    """
    count = min(blocks, len(values))
    if count < 3:
        return Trend(0, 0, 0, False)
    t = np.array([part.mean() for part in np.array_split(np.asarray(times, float), count)])
    v = np.array([part.mean() for part in np.array_split(np.asarray(values, float), count)])
    centred = t - t.mean()
    slope = float(centred @ v / (centred @ centred))
    residual = v - v.mean() - slope * centred
    error = math.sqrt(float(residual @ residual) / (count - 2) / float(centred @ centred))
    rises = slope > 0 and (error < 1e-12 * max(1.0, abs(slope)) or slope / error > _T995[count - 3])
    growth = slope * (times[-1] - times[0])
    level = abs(float(v.mean())) or 1.0
    return Trend(slope * 3600, growth, growth / level, rises)


def mg1_wait(utilisation: float, service: float, variation: float) -> float:
    """Mean wait in the M/G/1 queue; `variation` is the squared coefficient of variation of the service time."""
    if utilisation >= 1:
        return math.inf
    return utilisation * service * (1 + variation) / (2 * (1 - utilisation))
