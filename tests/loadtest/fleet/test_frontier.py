"""Reading a rule's cost off its own curve."""

import pytest

from loadtest.fleet.frontier import MIXES, cost_at, run
from loadtest.fleet.rules import OURS

CURVE = [(10.0, 5.0), (50.0, 3.0), (100.0, 3.5), (200.0, 2.0)]  # wait, cost


@pytest.mark.parametrize(("wait", "cost"), [(10, 5.0), (30, 4.0), (75, 3.0), (100, 3.0), (150, 2.5), (900, 2.0)])
def test_a_longer_wait_never_costs_more(wait, cost):
    assert cost_at(wait, CURVE) == pytest.approx(cost)


def test_a_rule_that_always_waits_longer_has_no_cost():
    assert cost_at(9, CURVE) is None


def test_jobs_counted_alone_pay_for_short_jobs_what_work_does_not(monkeypatch):
    """Fourteen-second jobs, the same arrivals for both rules."""
    monkeypatch.setitem(MIXES, "short", ("day", 3000, 2400.0, "short:1:14"))
    (_, ours), (_, counted) = run("short", OURS, 120.0, 1), run("short", "jobs", 1, 1)
    assert ours < 0.8 * counted
