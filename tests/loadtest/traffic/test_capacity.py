"""Capacity search against a queue whose capacity is known."""

import asyncio
import json

import pytest

from loadtest.base.inputs import ProfileError
from loadtest.traffic.capacity import Search, capacity_page, find_capacity, queue_grows, sentence
from tests.loadtest.synthetic import synthetic

SERVICE = 1.0
# M/D/1: the 95th percentile of the time in the system reaches 4 service times at a utilisation of 0.617
# (long simulation of the exact queue), so the capacity for a p95 of 4 s is 37 a minute.
TRUTH = 37.0


def search(profile, low=10, high=100, requests=600, **slo):
    calls = []

    async def run(changed):
        calls.append(changed)
        return synthetic(changed, SERVICE)

    made = profile(limits={"requests": requests, "seconds": 86_400}, slo=slo or {"total": {"p95": 4.0}})
    found = asyncio.run(find_capacity(made, Search(low, high, tolerance=0.05, runs=4), run, lambda probe: None))
    return found, calls


def test_finds_the_known_capacity_of_an_md1_queue(profile):
    found, _ = search(profile)
    low, high = found["between"]
    assert low == found["capacity_per_minute"]
    assert low < high <= low * 1.051
    assert 0.8 * TRUTH < low < 1.05 * TRUTH  # sure that it holds: the answer errs on the careful side
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_every_run_of_a_rate_has_its_own_seed(profile):
    _, calls = search(profile)
    by_rate = {}
    for call in calls:
        by_rate.setdefault(call.load.per_minute, []).append(call.seed)
    assert all(len(set(seeds)) == len(seeds) for seeds in by_rate.values())
    assert any(len(seeds) > 1 for seeds in by_rate.values())  # some rate was close enough to need a second look


def test_says_so_when_nothing_holds_or_nothing_fails(profile):
    none, _ = search(profile, low=58, high=200)
    assert none["capacity_per_minute"] is None
    assert "no capacity" in sentence(none)
    all_hold, _ = search(profile, low=5, high=10)
    assert all_hold["capacity_per_minute"] == 10
    assert "at least 10" in sentence(all_hold)


def test_an_overloaded_queue_is_seen_growing_before_its_percentiles_break(profile):
    overloaded = profile(load={"kind": "poisson", "per_minute": 80}, limits={"requests": 200, "seconds": 1000})
    calm = profile(load={"kind": "poisson", "per_minute": 45}, limits={"requests": 400, "seconds": 1000})
    assert queue_grows(synthetic(overloaded, SERVICE).records)
    assert not queue_grows(synthetic(calm, SERVICE).records)
    found, _ = search(profile, low=10, high=80, requests=200, total={"p95": 1000})
    assert found["capacity_per_minute"] < 75  # no percentile of a short run would ever reach 1000 s


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"load": {"kind": "closed", "users": 1}, "slo": {"error_rate": 0}}, "open-loop"),
        ({}, "threshold"),
    ],
)
def test_refuses_what_cannot_be_searched(profile, sections, said):
    with pytest.raises(ProfileError, match=said):
        asyncio.run(find_capacity(profile(**sections), Search(1, 2), None, None))


def test_refuses_bounds_in_the_wrong_order(profile):
    with pytest.raises(ProfileError, match="low below high"):
        search(profile, low=5, high=5)


def test_the_page_draws_every_chart(profile):
    found, _ = search(profile, requests=200)
    page = capacity_page(found)
    assert page.count("<svg") == 3
    assert sentence(found) in page
