import pytest

from loadtest.base.databases import find_binaries
from loadtest.drills.storm import KINDS, Verdict, schedule, storm


def test_a_seed_repeats_a_schedule_and_all_kinds_come():
    assert schedule(7, 50, 30) == schedule(7, 50, 30) != schedule(8, 50, 30)
    events = schedule(1, 200, 30)
    assert {event.kind for event in events} == set(KINDS)
    assert all(1 <= event.seconds <= 30 for event in events)


def test_any_defect_and_a_storm_without_jobs_spoil_the_verdict():
    assert Verdict(0, faults=3, jobs=2).met
    assert not Verdict(0).met
    for defect in ("lost", "doubled", "wrong_frames", "charged", "leftovers"):
        assert not Verdict(0, jobs=2, **{defect: 1}).met


@pytest.mark.skipif(find_binaries() is None, reason="PostgreSQL is not installed (apt: postgresql)")
def test_a_short_storm_loses_nothing(repository, capsys):
    verdict = storm(repository, seed=3, count=6, longest=4, steps=150, say=print)
    assert verdict.met, (verdict, capsys.readouterr().out)
    assert verdict.faults >= 4
