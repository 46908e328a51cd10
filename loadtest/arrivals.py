"""Arrival schedules: every request of a run is drawn from the seed before the first one is sent."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from loadtest.profile import Burst, Constant, Poisson, Profile, Ramp, Shape


@dataclass(frozen=True)
class Order:
    """One request that will be sent: `at` is its intended arrival in seconds after the start."""

    index: int
    at: float
    shape: Shape
    prompt: str
    seed: int


def schedule(profile: Profile) -> list[Order]:
    """All requests of an open-loop run, in order of arrival, within the profile's limits."""
    rng = random.Random(profile.seed)
    times = []
    for at in _times(profile, rng):
        if at > profile.limits.seconds or len(times) == profile.limits.requests:
            break
        times.append(at)
    return list(orders(profile, times))


def orders(profile: Profile, times: list[float]) -> Iterator[Order]:
    """Give each arrival time a shape, a prompt and a seed; the same times get the same requests."""
    rng = random.Random(profile.seed + 1)  # own stream: a change of the rate does not change what is asked for
    weights = [shape.weight for shape in profile.mix]
    for index, at in enumerate(times):
        shape = rng.choices(profile.mix, weights)[0]
        yield Order(index, at, shape, rng.choice(profile.prompts), rng.randrange(2**31))


def _times(profile: Profile, rng: random.Random) -> Iterator[float]:
    match profile.load:
        case Poisson(per_minute=rate):
            return _poisson(rng, rate / 60)
        case Constant(per_minute=rate):
            return (index * 60 / rate for index in range(profile.limits.requests))
        case Ramp(from_per_minute=low, to_per_minute=high):
            return _ramp(rng, low / 60, high / 60, profile.limits.seconds)
        case Burst() as load:
            return iter(sorted(_burst(rng, load, profile.limits.seconds)))
    raise ValueError("a closed loop has no schedule")


def _poisson(rng: random.Random, rate: float) -> Iterator[float]:
    at = 0.0
    while True:
        at += rng.expovariate(rate)
        yield at


def _ramp(rng: random.Random, low: float, high: float, seconds: float) -> Iterator[float]:
    """Thinning: draw at the highest rate, keep with probability rate(t) / highest (Lewis and Shedler 1979)."""
    peak = max(low, high)
    for at in _poisson(rng, peak):
        if at > seconds:
            return
        if rng.random() * peak <= low + (high - low) * at / seconds:
            yield at


def _burst(rng: random.Random, load: Burst, seconds: float) -> Iterator[float]:
    for number in range(int(seconds / load.every_seconds) + 1):
        yield from [number * load.every_seconds] * load.size
    if load.per_minute:
        for at in _poisson(rng, load.per_minute / 60):
            if at > seconds:
                return
            yield at
