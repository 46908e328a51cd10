"""Replicas and cost from a capacity and a forecast, against arithmetic by hand."""

import json
from pathlib import Path

import pytest

from loadtest.__main__ import main
from loadtest.base.inputs import ProfileError
from loadtest.fleet.plan import Forecast, load_capacity, load_forecast, plan

EXAMPLE = Path(__file__).parents[3] / "loadtest/fleet/forecast.example.yaml"


def forecast(**fields) -> Forecast:
    base = {
        "videos_per_hour": [0, 60, 120, 30],
        "peak_factor": 1,
        "spare": 0,
        "scale_ahead_hours": 0,
        "cost_per_gpu_hour": 3,
    }
    return Forecast(**(base | fields))


def replicas(made: dict) -> list[int]:
    return [hour["replicas"] for hour in made["hours"]]


def test_each_hour_gets_the_replicas_it_needs():
    made = plan(1.0, 1, forecast())  # one replica gives 60 an hour
    assert replicas(made) == [1, 1, 2, 1]
    assert made["peak_replicas"] == 2
    assert made["scaled"]["cost"] == 15
    assert made["fixed"]["cost"] == 24
    assert made["scaled"]["cost_per_video"] == pytest.approx(15 / 210)
    assert made["hours"][2]["utilisation"] == pytest.approx(1.0)


def test_the_example_of_the_readme_is_planned_within_its_maximum():
    made = plan(6.0, 1, load_forecast(EXAMPLE))
    assert made["over_maximum_in_hours"] == []
    assert made["peak_replicas"] == 3  # 260 an hour x 1.5 over 360 a replica, and the spare one
    assert len(made["hours"]) == 12


def test_peak_growth_and_spare_add_up():
    made = plan(1.0, 1, forecast(peak_factor=1.5, growth=2, spare=1))
    assert replicas(made) == [1, 4, 7, 3]  # ceil(120 * 1.5 / 60) + 1 …


def test_capacity_was_measured_on_several_replicas():
    assert plan(4.0, 2, forecast())["capacity_per_replica_per_hour"] == 120


def test_scaling_ahead_holds_the_larger_of_the_coming_hours_around_the_clock():
    assert replicas(plan(1.0, 1, forecast(videos_per_hour=[300, 0, 0, 0], scale_ahead_hours=1))) == [5, 1, 1, 5]


def test_scale_to_zero_and_gpus_per_replica():
    made = plan(1.0, 1, forecast(minimum_replicas=0, gpus_per_replica=8, cost_per_replica_hour=1))
    assert replicas(made)[0] == 0
    assert made["scaled"]["cost"] == 4 * 25
    assert made["scaled"]["gpu_hours"] == 32


def test_a_maximum_that_is_too_low_is_named_by_hour():
    made = plan(1.0, 1, forecast(maximum_replicas=1))
    assert made["over_maximum_in_hours"] == [2]
    assert replicas(made) == [1, 1, 1, 1]


def write(tmp_path, forecast_text, capacity=1.0):
    (tmp_path / "forecast.yaml").write_text(forecast_text)
    (tmp_path / "capacity.json").write_text(
        json.dumps({"format": "wan-loadtest-capacity/1", "capacity_per_minute": capacity})
    )
    return [str(tmp_path / "capacity.json"), str(tmp_path / "forecast.yaml")]


def test_the_command_plans_from_files_and_fails_when_it_does_not_fit(tmp_path, capsys):
    (tmp_path / "hours.csv").write_text("hour,videos_per_hour\n0,60\n1,120\n")
    files = write(tmp_path, "csv: hours.csv\ncost_per_gpu_hour: 2\nspare: 0\npeak_factor: 1\n")
    assert main(["plan", *files]) == 0
    assert "replica hours" in capsys.readouterr().out
    assert main(["plan", *files, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["peak_replicas"] == 2
    files = write(tmp_path, "csv: hours.csv\ncost_per_gpu_hour: 2\nmaximum_replicas: 1\n")
    assert main(["plan", *files]) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("videos_per_hour: [1]", "cost_per_gpu_hour"),
        ("cost_per_gpu_hour: 1", "videos_per_hour is empty"),
        ("videos_per_hour: [-1]\ncost_per_gpu_hour: 1", "videos_per_hour.0 is -1"),
        ("csv: none.csv\ncost_per_gpu_hour: 1", "none.csv"),
    ],
)
def test_a_wrong_forecast_names_the_field(tmp_path, text, said):
    with pytest.raises(ProfileError, match=said):
        load_forecast(write(tmp_path, text)[1])


def test_a_search_that_found_nothing_plans_nothing(tmp_path):
    with pytest.raises(ProfileError, match="no rate met the SLO"):
        load_capacity(write(tmp_path, "{}", capacity=None)[0])
