"""Load straight to a real Triton server, and perf_analyzer's word on the same requests."""

import json

import pytest

from contract.tensors import arrays
from loadtest.base.inputs import TargetUnavailable, ToolError
from loadtest.traffic import perf_analyzer
from loadtest.traffic.perf_binary import perf_analyzer as find_binary
from loadtest.traffic.profile import Order, Shape
from loadtest.traffic.session import run_profile
from loadtest.traffic.targets.videos import body_of
from service.launcher.server import TritonServer
from tests.loadtest.sleeping_triton import write_repository

LOSSY = {"guidance_end": 0.75, "cache": "magcache", "cache_threshold": 0.1}
MIX = [{"name": "two", "steps": 2}, {"name": "four", "steps": 4}]  # 0.02 + 0.03 * steps seconds


@pytest.fixture(scope="module")
def triton(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sleeping")
    with TritonServer(write_repository(folder / "repository"), log_path=folder / "triton.log") as server:
        yield server


def target(triton, kind: str) -> dict:
    return {"kind": kind, "url": f"grpc://{triton.grpc_url}" if kind == "triton-grpc" else triton.http_url}


def test_lossy_options_of_a_shape_go_to_both_targets_and_nothing_goes_unasked():
    order = Order(0, 0.0, Shape(name="lossy", **LOSSY), "a cat", 7)
    assert LOSSY.items() <= body_of(order).items()
    tensors = arrays(order.request)
    assert {name: array.dtype.name for name, array in tensors.items()} == {
        "PROMPT": "object", "SEED": "int64", "GUIDANCE_END": "float32", "CACHE": "object", "CACHE_THRESHOLD": "float32",
    }  # fmt: skip
    assert tensors["CACHE"][0] == b"magcache"
    assert arrays(Order(0, 0.0, Shape(name="plain"), "a cat", 7).request).keys() == {"PROMPT", "SEED"}


@pytest.mark.parametrize("kind", ["triton-grpc", "triton-http"])
def test_measures_known_stage_times_over_both_protocols(triton, profile, kind):
    load, limits = {"kind": "constant", "per_minute": 240}, {"requests": 12, "seconds": 10, "warmup_requests": 2}
    result = run_profile(profile(target=target(triton, kind), mix=MIX, load=load, limits=limits))
    assert result.summary["outcomes"] == {"completed": 12}
    for record in result.records:
        expected = 0.02 + 0.03 * {"two": 2, "four": 4}[record.shape]
        assert record.compute_seconds == pytest.approx(expected)
        assert record.total >= expected
        assert record.content_bytes == 5 * 16 * 16 * 3
    assert result.summary["overhead"]["p50"] < 0.001  # a tandem of stages: what is not compute counts as waiting
    assert result.summary["wait"]["p50"] < 0.05


@pytest.mark.parametrize("kind", ["triton-grpc", "triton-http"])
def test_a_failing_stage_is_an_error_with_tritons_words(triton, profile, kind):
    load, limits = {"kind": "constant", "per_minute": 6000}, {"requests": 2, "seconds": 10}
    result = run_profile(profile(target=target(triton, kind), prompts=["fail"], load=load, limits=limits))
    assert result.summary["outcomes"] == {"error": 2}
    assert "PROMPT is 'fail'" in result.records[0].error


@pytest.mark.parametrize("kind", ["triton-grpc", "triton-http"])
def test_a_model_that_is_not_there_stops_the_run(triton, profile, kind):
    with pytest.raises(TargetUnavailable, match="'wan_i2v' is not ready"):
        run_profile(profile(target=target(triton, kind) | {"model": "wan_i2v"}))


def test_perf_analyzer_agrees_with_us_and_measures_each_stage_past_its_cache(profile, tmp_path):
    try:
        find_binary()
    except ToolError as error:
        pytest.skip(f"perf_analyzer is not at hand: {error}")
    repository = write_repository(tmp_path / "repository", cached=True)
    with TritonServer(repository, log_path=tmp_path / "triton.log") as triton:
        run = profile(target=target(triton, "triton-grpc"), mix=MIX, limits={"requests": 12, "seconds": 30})
        found = perf_analyzer.measure_all(run, tmp_path, allow_remote=False)
    by_model = {measured.model: measured for measured in found if measured.tool == "perf_analyzer"}
    assert set(by_model) == {"wan", "text_encoder", "denoise"}
    assert all(measured.requests == 12 for measured in found)
    assert abs(perf_analyzer.disagreement(found, "wan")) < 0.05
    steps = [item["STEPS"]["content"][0] for item in json.loads((tmp_path / "wan.input.json").read_text())["data"]]
    assert by_model["text_encoder"].mean == pytest.approx(0.02, abs=0.01)
    assert by_model["denoise"].mean == pytest.approx(0.03 * sum(steps) / 12, abs=0.015)
