"""Comparing results: real changes are named, chance is not."""

import pytest

from loadtest.__main__ import main
from loadtest.traffic.compare import compare, warnings
from tests.loadtest.synthetic import synthetic

SHAPE = {"load": {"kind": "poisson", "per_minute": 20}, "limits": {"requests": 400, "seconds": 3000}}


def run(profile, service=1.0, seed=1, **kwargs):
    return synthetic(profile(seed=seed, **SHAPE), service, scatter=0.3, **kwargs)


def verdicts(old, new) -> dict[str, str]:
    return {change.name: change.verdict for change in compare(old, new, draws=300)}


def test_a_slower_stage_is_named_with_everything_it_slows(profile):
    found = verdicts(run(profile), run(profile, service=1.3, seed=2))
    slower = {"total p50", "stage denoise mean", "stage vae_decoder mean", "device seconds per video"}
    assert {name for name in slower if found[name] != "regression"} == set()
    assert found["error rate"] == "same"
    assert found["seconds between videos"] != "regression"


def test_a_faster_service_is_an_improvement(profile):
    found = verdicts(run(profile), run(profile, service=0.7, seed=2))
    assert found["stage denoise mean"] == "improvement"
    assert "regression" not in found.values()


@pytest.mark.parametrize("seed", range(2, 8))
def test_chance_alone_is_no_regression(profile, seed):
    assert "regression" not in verdicts(run(profile), run(profile, seed=seed)).values()


def test_more_errors_are_a_regression(profile):
    assert verdicts(run(profile), run(profile, seed=2, fail_every=15))["error rate"] == "regression"
    assert verdicts(run(profile, fail_every=15), run(profile, seed=2))["error rate"] == "improvement"


def test_the_interval_contains_the_true_ratio(profile):
    changes = {change.name: change for change in compare(run(profile), run(profile, service=1.3, seed=2))}
    change = changes["stage denoise mean"]
    assert change.low < 1.3 < change.high
    assert change.ratio == pytest.approx(1.3, rel=0.05)


def test_one_slower_shape_of_a_mix_is_named(profile):
    mix = [{"name": "small"}, {"name": "large"}]
    old, new = (synthetic(profile(seed=seed, mix=mix, **SHAPE), 1.0, scatter=0.2) for seed in (1, 2))
    for record in new.records:
        if record.shape == "large":
            record.stages["denoise"] *= 1.5
    found = verdicts(old, new)
    assert found["stage denoise mean [large]"] == "regression"
    assert found["stage denoise mean [small]"] != "regression"


def test_differences_that_forbid_a_comparison_are_told(profile):
    old, new = run(profile), run(profile, seed=2)
    assert warnings(old, new) == []
    new.environment["cores"] = 64
    new.profile["load"]["per_minute"] = 40
    assert ["load" in warnings(old, new)[0], "cores" in warnings(old, new)[1]] == [True, True]


def test_the_command_exits_with_1_on_a_regression_and_names_it(profile, tmp_path, capsys):
    run(profile).save(tmp_path / "old")
    run(profile, service=1.3, seed=2).save(tmp_path / "new")
    old, new = str(tmp_path / "old"), str(tmp_path / "new")
    assert main(["compare", old, new]) == 1
    assert "stage denoise mean" in capsys.readouterr().err
    assert main(["compare", old, old]) == 0
    assert main(["compare", old, str(tmp_path / "none")]) == 2
