"""Schedules: drawn from the seed, and distributed as they say."""

import math
from collections import Counter

import pytest

from loadtest.base.stats import mean
from loadtest.traffic.profile import schedule

MANY = {"requests": 200_000, "seconds": 40_000}


def gaps(profile):
    times = [order.at for order in schedule(profile)]
    return [b - a for a, b in zip([0.0, *times], times, strict=False)]


def test_the_seed_fixes_the_whole_schedule(profile):
    first, again, other = (schedule(profile(seed=seed)) for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_poisson_gaps_are_exponential(profile):
    found = gaps(profile(load={"kind": "poisson", "per_minute": 120}, limits={"requests": 40_000, "seconds": 40_000}))
    assert mean(found) == pytest.approx(0.5, rel=0.02)
    deviation = math.sqrt(mean([(gap - 0.5) ** 2 for gap in found]))
    assert deviation == pytest.approx(0.5, rel=0.03)
    assert sum(gap > 1.0 for gap in found) / len(found) == pytest.approx(math.exp(-2), rel=0.03)


def test_constant_arrivals_are_evenly_spaced_from_zero(profile):
    orders = schedule(profile(load={"kind": "constant", "per_minute": 120}, limits={"requests": 5, "seconds": 60}))
    assert [order.at for order in orders] == [0, 0.5, 1.0, 1.5, 2.0]


def test_a_ramp_goes_from_the_first_rate_to_the_last(profile):
    load = {"kind": "ramp", "from_per_minute": 60, "to_per_minute": 600}
    times = [order.at for order in schedule(profile(load=load, limits={"requests": 100_000, "seconds": 2000}))]
    first, last = sum(t < 200 for t in times), sum(t > 1800 for t in times)
    assert first == pytest.approx(200 * 1.45, rel=0.15)  # 60 + 540 * 0.05 a minute on average
    assert last == pytest.approx(200 * 9.55, rel=0.05)
    assert times == sorted(times)


def test_a_burst_arrives_at_once_on_its_background(profile):
    load = {"kind": "burst", "size": 7, "every_seconds": 10, "per_minute": 30}
    times = [order.at for order in schedule(profile(load=load, limits={"requests": 1000, "seconds": 35}))]
    assert [Counter(times)[at] for at in (0, 10, 20, 30)] == [7, 7, 7, 7]
    assert len(times) > 28
    assert times == sorted(times)


def test_requests_and_seconds_bound_the_schedule(profile):
    assert len(schedule(profile(limits={"requests": 10, "seconds": 1000}))) == 10
    assert all(order.at <= 20 for order in schedule(profile(limits=MANY | {"seconds": 20})))


def test_the_mix_follows_its_weights_and_not_the_rate(profile):
    mix = [{"name": "small", "weight": 3}, {"name": "large", "weight": 1}]
    limits = {"requests": 8000, "seconds": 86_400}
    slow, fast = (
        schedule(profile(mix=mix, limits=limits, load={"kind": "poisson", "per_minute": r})) for r in (60, 600)
    )
    assert Counter(order.shape.name for order in slow)["small"] / 8000 == pytest.approx(0.75, abs=0.02)
    assert [(o.shape.name, o.prompt, o.seed) for o in slow] == [(o.shape.name, o.prompt, o.seed) for o in fast]
