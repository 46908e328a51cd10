"""Statistics: against theory and against samples whose truth is known."""

import math
import random

import numpy as np
import pytest

from loadtest.base.stats import block_bootstrap, interval, mean, mg1_wait, percentile, trend
from tests.loadtest.queue_theory import lindley, md1_wait


def test_percentiles_take_the_nearest_rank_above():
    assert [percentile(range(1, 101), q) for q in (50, 95, 99, 100)] == [50, 95, 99, 100]
    assert percentile([1.0], 50) == 1
    assert math.isnan(percentile([], 50))


def test_a_request_that_never_ended_is_an_infinite_percentile():
    assert percentile([1.0] * 98 + [math.inf] * 2, 99) == math.inf
    assert percentile([1.0] * 98 + [math.inf] * 2, 95) == 1


def test_lindley_reproduces_the_md1_formula():
    rng, at, arrivals = random.Random(3), 0.0, []
    for _ in range(400_000):
        at += rng.expovariate(0.7)
        arrivals.append(at)
    assert mean(lindley(arrivals, [1.0] * len(arrivals))) == pytest.approx(md1_wait(0.7, 1.0), rel=0.02)


def test_the_queue_formulas_at_known_points():
    assert md1_wait(0.5, 2.0) == pytest.approx(1.0)  # half of M/M/1's 2.0
    assert mg1_wait(0.5, 2.0, 1.0) == pytest.approx(2.0)
    assert md1_wait(1.0, 2.0) == math.inf


def test_the_bootstrap_interval_covers_the_mean_of_correlated_samples():
    rng, covered, naive = np.random.default_rng(1), 0, 0
    for k in range(100):
        noise, value, values = rng.normal(size=400), 0.0, []
        for step in noise:
            value = 0.6 * value + step
            values.append(value)
        low, high = interval(block_bootstrap(values, lambda x: float(x.mean()), draws=200, seed=k))
        covered += low <= 0 <= high
        naive += abs(np.mean(values)) <= 1.96 * np.std(values) / 20
    assert covered >= 82
    assert covered > naive


def test_a_trend_is_found_under_noise_and_not_invented():
    rng, times = np.random.default_rng(2), list(range(600))
    flat = 1000 + rng.normal(0, 5, 600)
    rising = flat + 0.05 * np.arange(600)
    assert trend(times, rising).significant
    assert trend(times, rising).slope_per_hour == pytest.approx(180, rel=0.3)
    assert not trend(times, flat).significant
    assert not trend(times, flat[::-1] - 0.05 * np.arange(600)).significant


def test_few_flat_trends_look_significant():
    rng = np.random.default_rng(4)
    assert sum(trend(range(120), rng.normal(0, 1, 120)).significant for _ in range(400)) <= 8  # 0.5 % expected: 2
