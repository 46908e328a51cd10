"""Records and result files."""

import csv
import json
import math

import pytest

from loadtest.base.inputs import ProfileError
from loadtest.traffic.record import Record, Result
from tests.loadtest.synthetic import synthetic


def record(**fields) -> Record:
    return Record(**({"index": 0, "shape": "a", "priority": "", "intended": 10.0} | fields))


def test_latency_counts_from_the_intended_arrival_and_not_from_sending():
    late = record(sent=13.0, accepted=13.1, finished=15.0, delivered=15.5, outcome="completed", stages={"queue": 1.0})
    assert late.total == pytest.approx(5.5)
    assert late.wait == pytest.approx(4.0)


def test_without_a_queue_figure_everything_but_compute_is_wait():
    direct = record(sent=10.0, finished=13.0, outcome="completed", stages={"text_encoder": 0.5, "denoise": 1.5})
    assert direct.wait == pytest.approx(1.0)
    assert direct.compute_seconds == 2.0


def test_a_request_without_a_video_is_infinitely_late():
    assert record(outcome="failed", finished=11.0).total == math.inf
    assert record().wait == math.inf


def test_a_result_survives_the_file(profile, tmp_path):
    result = synthetic(profile(slo={"total": {"p99": 5}}), 0.4, fail_every=10)
    result.save(tmp_path)
    assert Result.load(tmp_path) == result == Result.load(tmp_path / "result.json")
    rows = list(csv.DictReader((tmp_path / "records.csv").open()))
    assert len(rows) == len(result.records)
    assert rows[0]["outcome"] == "failed"
    assert rows[0]["total_seconds"] == ""
    assert float(rows[1]["total_seconds"]) == pytest.approx(result.records[1].total)
    assert "Infinity" not in (tmp_path / "result.json").read_text()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": "other"}', '{"format": "wan-loadtest-result/1"}'])
def test_other_files_are_refused_by_name(tmp_path, text):
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(ProfileError, match="result.json: not a result file"):
        Result.load(path)


def test_a_result_of_a_newer_form_is_refused(profile, tmp_path):
    synthetic(profile(), 0.4).save(tmp_path)
    data = json.loads((tmp_path / "result.json").read_text()) | {"novelty": 1}
    (tmp_path / "result.json").write_text(json.dumps(data))
    with pytest.raises(ProfileError, match="novelty"):
        Result.load(tmp_path)
