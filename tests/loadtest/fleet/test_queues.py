"""Orders of the queue on one node: by hand, against the other simulator, and what the README says of them."""

import math

import numpy as np
import pytest

from loadtest.fleet.fleet import Fleet, FleetOptions
from loadtest.fleet.mix import DEFAULT_MIX, parse_mix
from loadtest.fleet.queues import ORDERS, SHARE, Job, Node, attained, draw
from loadtest.fleet.rules import OURS, rules
from loadtest.fleet.scaling import ScalingPolicy
from loadtest.fleet.trace import Trace

MIX = parse_mix(DEFAULT_MIX)
FIFO, ELASTIC = "first come, first served", "the same, 1 to 8 GPUs a job"


def jobs(*rows: tuple[float, float, float]) -> list[Job]:
    """Of (arrival, work, deadline)."""
    return [Job(at, work, work, due, 0, n) for n, (at, work, due) in enumerate(rows)]


def ends(order: str, *rows: tuple[float, float, float], gpus: int = 1) -> list[float]:
    return [job.finish for job in Node(ORDERS[order], gpus=gpus, switch=5).run(jobs(*rows))]


@pytest.mark.parametrize("name", ORDERS)
def test_every_job_ends_and_no_work_is_lost(name):
    node = Node(ORDERS[name])
    done = node.run(draw(MIX, "poisson", 0.9, 2, 200, seed=4))
    assert all(math.isfinite(job.finish) for job in done)
    assert all(job.finish - job.arrival >= job.work * SHARE[8] - 1e-6 for job in done)
    assert node.busy >= sum(job.work for job in done) - 1e-6
    assert not node.jobs


def test_first_come_first_served_is_that_of_the_fleet_simulator():
    drawn = draw(MIX, "poisson", 0.9, 2, 400, seed=5)
    trace = Trace(*(np.array([getattr(job, name) for job in drawn]) for name in ("arrival", "work", "predicted")))
    policy = ScalingPolicy.from_manifest()
    kind = rules(policy)[OURS]
    fleet = Fleet(trace, policy, kind.make(kind.target), FleetOptions(autoscale=False, initial_replicas=8)).run()
    assert [job.finish for job in Node(ORDERS[FIFO]).run(drawn)] == pytest.approx(fleet.finish)


def test_an_earlier_deadline_takes_the_gpu_and_the_other_job_goes_on_for_the_price_of_a_switch():
    assert ends("earliest deadline, preempting", (0, 100, 1000), (10, 20, 40)) == [10 + 20 + 5 + 90, 30]
    assert ends("earliest deadline", (0, 100, 1000), (10, 20, 40)) == [100, 120]


def test_what_is_late_anyhow_goes_last():
    rows = (0, 100, 500), (1, 100, 50), (2, 100, 400)
    assert ends("the same, what is late last", *rows) == [100 + 100 + 5 - 0, 305, 102]


def test_a_job_gets_the_gpus_that_its_deadline_takes():
    assert ends(ELASTIC, (0, 100, 60), gpus=2) == [pytest.approx(100 * SHARE[2])]
    assert ends(FIFO, (0, 100, 60), gpus=2) == [100]


def test_elastic_orders_meet_forty_points_more_deadlines_on_a_busy_node_and_fewer_more_on_a_quiet_one():
    def more(load: float) -> float:
        met = {
            name: attained(Node(ORDERS[name]).run(draw(MIX, "poisson", load, 2, 600, seed=1)))
            for name in (FIFO, ELASTIC)
        }
        return met[ELASTIC] - met[FIFO]

    assert more(0.95) > 0.4
    assert 0 <= more(0.6) < 0.2
