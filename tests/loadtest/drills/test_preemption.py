import statistics

import pytest

from loadtest.base.databases import find_binaries
from loadtest.drills.preemption import LIMIT_SECONDS, Verdict, drill


def test_any_defect_and_a_drill_without_preemptions_spoil_the_verdict():
    assert Verdict(preemptions=2, step_seconds=0.1, waits=[0.1, 0.29]).met
    assert not Verdict(step_seconds=0.1, waits=[0.1]).met
    assert not Verdict(preemptions=2, step_seconds=0.1, waits=[0.1, 0.31]).met
    for defect in ("wrong_frames", "charged", "lost"):
        assert not Verdict(preemptions=2, **{defect: 1}).met


def test_the_overhead_is_what_the_same_jobs_take_longer():
    verdict = Verdict(preemptions=4, seconds=10.2, seconds_in_turn=10.0, waits=[0.1, 0.2, 0.3, 0.4])
    assert verdict.overhead == pytest.approx(0.02)
    assert verdict.overhead_seconds == pytest.approx(0.05)
    assert verdict.report()["waits"] == {"median": pytest.approx(0.25), "p95": 0.4, "most": 0.4}


@pytest.mark.skipif(find_binaries() is None, reason="PostgreSQL is not installed (apt: postgresql)")
@pytest.mark.slow
def test_an_urgent_job_starts_within_a_step_and_the_one_it_stopped_ends_with_its_own_frames(repository, checkpoint):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WAN_MODEL_NAME", "wan-preempted")
        patch.setenv("WAN_MODEL_CARD", str(checkpoint / "wan.json"))
        verdict = drill(repository, count=2, steps=120)
    assert verdict.preemptions == 2
    assert (verdict.wrong_frames, verdict.charged, verdict.lost) == (0, 0, 0)
    # the median: other programs of a busy machine may delay one
    assert statistics.median(verdict.waits) < verdict.step_seconds + LIMIT_SECONDS
