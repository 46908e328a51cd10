"""Profiles: what is read, and how a mistake is told."""

import pytest

from loadtest.base.inputs import ProfileError
from loadtest.traffic.options import PROFILES
from loadtest.traffic.profile import load_profile

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
        (GOOD + "mix: [{name: a, width: 60, height: 64}]", ["mix.0.width", "60", "16"]),
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
