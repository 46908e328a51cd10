"""Reading a rule's cost off its own curve."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from loadtest.fleet import frontier
from loadtest.fleet.frontier import MIXES, T95, cost_at, run
from loadtest.fleet.rules import OURS

CURVE = [(10.0, 5.0), (50.0, 3.0), (100.0, 3.5), (200.0, 2.0)]  # wait, cost


@pytest.mark.parametrize(("wait", "cost"), [(10, 5.0), (30, 4.0), (75, 3.0), (100, 3.0), (150, 2.5), (900, 2.0)])
def test_a_longer_wait_never_costs_more(wait, cost):
    assert cost_at(wait, CURVE) == pytest.approx(cost)


def test_a_rule_that_always_waits_longer_has_no_cost():
    assert cost_at(9, CURVE) is None


def test_jobs_counted_alone_pay_for_short_jobs_what_work_does_not(monkeypatch):
    """Fourteen-second jobs, the same arrivals for both rules."""
    monkeypatch.setitem(MIXES, "short", ("day", 3000, 2400.0, "short:1:14", {}))
    (_, ours), (_, counted) = run("short", OURS, 120.0, 1), run("short", "jobs", 1, 1)
    assert ours < 0.8 * counted


def test_the_command_pairs_seeds_and_writes_table_numbers_and_picture(monkeypatch, tmp_path, capsys):
    """Three seeds of a short trace; a rule's interval is Student's of its paired differences."""
    mixes = {
        "short": ("poisson", 100, 400.0, "a:0.5:14,b:0.5:200", {}),
        "shift": ("shift", 100, 400.0, "a:0.5:14,b:0.5:200", {"every": 600.0}),
    }
    monkeypatch.setattr(frontier, "MIXES", mixes)
    out, plot = tmp_path / "f.json", tmp_path / "f.svg"
    assert frontier.handle(SimpleNamespace(seeds=3, out=out, plot=plot)) == 0
    found = json.loads(out.read_text())["mixes"]["short"]
    kinds = frontier.rules(frontier.POLICY)
    assert {name: len(points) for name, points in found["curves"].items()} == {
        n: len(k.sweep) for n, k in kinds.items()
    }
    kind, ours = kinds["jobs"], [run("short", OURS, kinds[OURS].target, seed) for seed in range(3)]
    costs = [
        cost_at(wait, [run("short", "jobs", target, seed) for target in kind.sweep])
        for seed, (wait, _) in enumerate(ours)
    ]
    if found["others"]["jobs"] is None:
        assert None in costs
    else:
        more = np.array(costs) / [cost for _, cost in ours] - 1
        assert found["others"]["jobs"] == pytest.approx([more.mean(), T95[2] * more.std(ddof=1) / 3**0.5])
    assert plot.read_text().startswith("<?xml")
    assert "| shift |" in capsys.readouterr().out


def test_with_one_target_a_rule_waits_what_it_does_where_its_mean_cost_is_ours():
    ours = {"wait_p95": 100.0, "cost": 2.0}
    rule = {"a": [[50.0, 4.0], [200.0, 1.0]], "b": [[100.0, 3.0], [300.0, 2.0]]}  # per target: wait, cost
    result = {mix: ours | {"curves": {"rule": points, "dear": [[1.0, 9.0]]}} for mix, points in rule.items()}
    # means over the mixes: cost 1.75 and 0.75, wait 0.75 and 2.5; cost 1 is a quarter of the way
    assert frontier.one_target(result)["rule"] == pytest.approx((2.0625, 2.5, 1.25))
    assert frontier.one_target(result)["dear"] is None
    assert "| dear | never" in frontier.table_of_one_target(result)


def test_cold_starts_spread_around_what_they_are_said_to_take():
    trace = frontier.make_trace("poisson", 2, 60.0, frontier.parse_mix("a:1:10"), 0.0, 1)
    fleet = frontier.Fleet(
        trace, frontier.POLICY, frontier.rules(frontier.POLICY)[OURS].make(120.0), frontier.OPTIONS, 1
    )
    seconds = [fleet._cold_seconds() for _ in range(2000)]
    assert np.median(seconds) == pytest.approx(180, rel=0.05)
    assert np.std(np.log(seconds)) == pytest.approx(0.3, rel=0.1)
