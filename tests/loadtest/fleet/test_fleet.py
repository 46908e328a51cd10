"""The event loop against queueing theory, and against sums that must come out."""

import math

import numpy as np
import pytest

from loadtest.fleet.fleet import Fleet, FleetOptions
from loadtest.fleet.mix import DEFAULT_MIX, parse_mix
from loadtest.fleet.report import summarise, waits
from loadtest.fleet.rules import OURS, rules
from loadtest.fleet.scaling import ScalingPolicy
from loadtest.fleet.trace import Trace, make_trace

POLICY = ScalingPolicy.from_manifest().resized(max_replicas=64)
KINDS = rules(POLICY)
OURS_RULE = KINDS[OURS].make(KINDS[OURS].target)


def fixed_fleet(arrival, work, servers: int) -> Fleet:
    trace = Trace(np.array(arrival, float), np.array(work, float), np.array(work, float))
    return Fleet(trace, POLICY, OURS_RULE, FleetOptions(autoscale=False, initial_replicas=servers)).run()


def run(trace: Trace, name: str = OURS, target: float | None = None, **options) -> Fleet:
    kind = KINDS[name]
    return Fleet(trace, POLICY, kind.make(target or kind.target), FleetOptions(**options), seed=3).run()


@pytest.fixture(scope="module")
def day():
    return make_trace("day", 6000, 600, parse_mix(DEFAULT_MIX), 0.1, seed=1)


def erlang_c(servers: int, load: float) -> float:
    """Probability that an arrival must wait in M/M/c; `load` in Erlang."""
    tail = load**servers / math.factorial(servers) * servers / (servers - load)
    return tail / (sum(load**k / math.factorial(k) for k in range(servers)) + tail)


def test_mean_wait_of_m_m_c():
    rng, servers, load, jobs = np.random.default_rng(5), 4, 3.2, 120_000
    work = rng.exponential(100, jobs)
    fleet = fixed_fleet(np.cumsum(rng.exponential(100 / load, jobs)), work, servers)
    wait, delayed = waits(fleet), erlang_c(servers, load)
    assert (wait > 0).mean() == pytest.approx(delayed, rel=0.03)
    assert wait.mean() == pytest.approx(delayed * 100 / (servers - load), rel=0.05)
    # Given that a job waits, its wait is exponential with rate (servers - load) / 100.
    assert np.percentile(wait[wait > 0], 95) == pytest.approx(-math.log(0.05) * 100 / (servers - load), rel=0.06)


def test_mean_wait_of_m_d_1():
    rng, rho, jobs = np.random.default_rng(6), 0.8, 120_000
    fleet = fixed_fleet(np.cumsum(rng.exponential(60 / rho, jobs)), np.full(jobs, 60.0), 1)
    assert waits(fleet).mean() == pytest.approx(rho * 60 / (2 * (1 - rho)), rel=0.04)


def test_three_jobs_on_one_replica_by_hand():
    fleet = fixed_fleet([0, 1, 50], [10, 20, 5], 1)
    assert fleet.first_start == [0, 10, 50]
    assert fleet.finish == [10, 30, 55]
    assert fleet.accounts.idle == pytest.approx(20)


@pytest.mark.parametrize("name", KINDS)
def test_every_job_ends_and_every_gpu_second_has_an_account(day, name):
    fleet = run(day, name, spot_losses_per_hour=1.0)
    assert fleet.unfinished == 0
    assert min(fleet.finish) > 0
    assert (np.array(fleet.finish) - np.array(fleet.first_start) >= day.work - 1e-6).all()
    assert fleet.accounts.useful == pytest.approx(day.work.sum())
    assert sum(fleet.count) == len(fleet.state)
    assert fleet.queued_predicted == pytest.approx(0, abs=1e-3)
    assert fleet.queued_slots == pytest.approx(0, abs=1e-3)
    assert not fleet.running


def test_backlog_is_the_work_of_waiting_and_running_jobs():
    trace = Trace(np.array([0.0, 1.0]), np.array([100.0, 50.0]), np.array([100.0, 50.0]))
    fleet = Fleet(trace, POLICY, OURS_RULE, FleetOptions(autoscale=False))
    fleet._start_replica(0.0, warm=True)
    fleet._ready(0.0, 0)
    fleet._arrive(0.0, 0)
    fleet._arrive(1.0, 1)
    seen = fleet.observe(30.0)
    assert (seen.queued, seen.running) == (1, 1)
    assert seen.backlog == pytest.approx(70 + 50)
    assert seen.demand == pytest.approx((70 + 50) / POLICY.slot_seconds)


def fleet_for(*seconds: float, name: str = OURS) -> int:
    """The largest fleet that jobs which all come at once are given."""
    work = np.array(seconds, float)
    kind = KINDS[name]
    fleet = Fleet(Trace(np.zeros(len(work)), work, work), POLICY, kind.make(kind.target), FleetOptions()).run()
    return max(sample[3] for sample in fleet.accounts.samples)


def test_one_long_job_buys_no_fleet():
    assert fleet_for(3722) == 1
    assert fleet_for(3722, name="uncapped") > 15


def test_a_fleet_follows_the_number_of_long_jobs_and_the_work_of_short_ones():
    assert fleet_for(*[3600] * 10) == 10
    assert fleet_for(*[12] * 100) == 10
    assert fleet_for(*[12] * 100, *[3600] * 10) == 20


def test_resume_loses_less_than_starting_over(day):
    kept = run(day, spot_losses_per_hour=2.0, resume=True).accounts
    again = run(day, spot_losses_per_hour=2.0, resume=False).accounts
    assert kept.losses > 20
    assert kept.interrupted > 5
    assert kept.lost <= kept.interrupted * 10
    assert again.lost > 5 * kept.lost


def test_a_drain_loses_nothing_and_a_kill_does(day):
    drained, killed = run(day), run(day, drain_budget=0, resume=False)
    assert drained.accounts.scale_downs > 0
    assert drained.accounts.lost == 0
    assert killed.accounts.lost > 0


def test_longer_cold_starts_mean_longer_waits(day):
    short, long = (summarise(run(day, cold_start=seconds)) for seconds in (30, 900))
    assert long["wait_p99"] > short["wait_p99"]
    assert long["cold_gpu_seconds"] > 5 * short["cold_gpu_seconds"]


def test_the_wait_follows_the_target(day):
    """In equilibrium a job waits about as long as the seconds of backlog per replica, less what running jobs have left."""
    short, long = (summarise(run(day, "without busy floor", target)) for target in (180, 720))
    assert 180 < long["wait_p50"] < 720
    assert short["wait_p50"] < 90
    assert short["gpu_hours_per_video"] > long["gpu_hours_per_video"]


def test_the_wrong_signals_are_worse(day):
    """What the README says about pending counts and GPU utilisation."""
    ours, queue, utilisation = (summarise(run(day, name)) for name in (OURS, "queue length", "GPU utilisation"))
    assert queue["scale_downs"] > 2 * ours["scale_downs"]
    assert queue["wait_p95"] > 0.9 * ours["wait_p95"]
    assert queue["gpu_hours_per_video"] > ours["gpu_hours_per_video"]
    assert utilisation["wait_p99"] > 3 * ours["wait_p99"]
    assert utilisation["gpu_hours_per_video"] > ours["gpu_hours_per_video"]


def test_the_same_seed_gives_the_same_run(day):
    assert summarise(run(day, spot_losses_per_hour=1.0)) == summarise(run(day, spot_losses_per_hour=1.0))
