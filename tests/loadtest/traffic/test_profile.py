"""Profiles: what is refused, and the requests that one sends."""

import math
from collections import Counter

import pytest

from loadtest.base.inputs import ProfileError
from loadtest.base.stats import mean
from loadtest.traffic.options import PROFILES
from loadtest.traffic.profile import load_profile, schedule

GOOD = "name: a\nload: {kind: poisson, per_minute: 30}\n"


def write(tmp_path, text):
    path = tmp_path / "profile.yaml"
    path.write_text(text)
    return path


def test_reads_a_profile_and_fills_the_defaults(tmp_path):
    profile = load_profile(write(tmp_path, GOOD))
    assert profile.load.per_minute == 30
    assert profile.target.kind == "videos"
    assert profile.mix[0].name == "default"


@pytest.mark.parametrize("path", sorted(PROFILES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_profile_is_valid(path):
    assert load_profile(path).name == path.stem


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a\nload: {kind: poisson, per_minute: -3}", ["load.per_minute", "-3", "greater than 0"]),
        ("name: a\nload: {kind: poison, per_minute: 3}", ["load", "poisson", "constant", "ramp", "burst", "closed"]),
        ("name: a\nload: {kind: poisson, rate: 3}", ["load", "'rate'", "allowed: kind, per_minute"]),
        (GOOD + "targets: {}", ["'targets'", "target"]),
        (GOOD + "target: {url: localhost}", ["target.url", "localhost", "http://HOST:PORT"]),
        (GOOD + "target: {kind: triton-grpc}", ["target.url", "grpc://"]),
        (GOOD + "mix: [{name: a, num_frames: 16}]", ["mix.0", "16", "4n + 1"]),
        (GOOD + "mix: [{name: a, width: 64}]", ["mix.0", "width and height"]),
        (GOOD + "mix: [{name: a, width: 60, height: 64}]", ["mix.0: width is 60", "multiple of 16"]),
        (GOOD + "mix: [{name: a, cache: fast}]", ["mix.0.cache", "fast", "teacache"]),
        (GOOD + "mix: [{name: a, guidance_end: 2}]", ["mix.0.guidance_end", "2", "less than or equal to 1"]),
        (GOOD + "mix: []", ["mix", "at least 1"]),
        (GOOD + "slo: {total: {p42: 3}}", ["slo.total.p42", "p50"]),
        (GOOD + "slo: {error_rate: 5}", ["slo.error_rate", "5", "less than or equal to 1"]),
        (GOOD + "limits: {requests: 0}", ["limits.requests", "0", "greater than or equal to 1"]),
        ("load: {kind: poisson, per_minute: 3}", ["name", "required"]),
        ("- a", ["list", "mapping"]),
        ("a: [", ["not YAML"]),
    ],
)
def test_a_mistake_names_the_file_the_field_and_what_is_allowed(tmp_path, text, said):
    path = write(tmp_path, text)
    with pytest.raises(ProfileError) as error:
        load_profile(path)
    for word in [str(path), *said]:
        assert word in str(error.value)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(ProfileError, match="No such file"):
        load_profile(tmp_path / "none.yaml")


def test_overrides_reach_nested_fields_and_are_validated(tmp_path):
    path = write(tmp_path, GOOD)
    assert load_profile(path, ["load.per_minute=7", "limits.requests=3"]).limits.requests == 3
    with pytest.raises(ProfileError, match=r"load\.per_minute is 'x'"):
        load_profile(path, ["load.per_minute=x"])
    with pytest.raises(ProfileError, match="KEY.PATH=VALUE"):
        load_profile(path, ["load.per_minute"])


def test_the_api_key_stays_out_of_results(profile):
    secret = profile(target={"url": "http://127.0.0.1:1", "api_key": "wan-secret"})
    assert "wan-secret" not in secret.model_dump_json()
    assert "wan-secret" not in repr(secret)


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
