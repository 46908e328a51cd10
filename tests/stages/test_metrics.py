import pytest

from service.metrics import worker_metrics
from stages.metrics import DenoiseMetrics, StageMetrics, slot
from tests.stages.recording_metrics import RecordingBackend


def test_the_slot_is_the_number_of_the_instance():
    assert slot({"model_name": "denoise", "model_instance_name": "denoise_0_1"}) == "0_1"


def test_a_finished_stage_counts_its_seconds_in_both_metrics():
    backend = RecordingBackend()
    metrics = StageMetrics(backend, "vae_decoder", "0_0")
    metrics.finished(1.5)
    metrics.finished(0.5)
    assert backend.of("wan_triton_stage_seconds", stage="vae_decoder", slot="0_0").observed == [1.5, 0.5]
    assert backend.of("wan_triton_gpu_seconds_total", stage="vae_decoder").value == 2.0


def test_histogram_buckets_reach_an_hour():
    backend = RecordingBackend()
    DenoiseMetrics(backend, "0_0")
    assert backend.of("wan_triton_stage_seconds").buckets[-1] == 3600
    assert backend.of("wan_triton_denoise_step_seconds").buckets[-1] == 3600


def test_device_seconds_move_with_every_step_and_end_at_the_time_of_the_request():
    backend = RecordingBackend()
    metrics = DenoiseMetrics(backend, "0_0")
    metrics.started(1000.0)
    assert backend.of("wan_denoise_inflight").value == 1
    metrics.stepped("computed", 2.0, 1002.0)
    metrics.stepped("cached", 0.5, 1003.0)
    assert backend.of("wan_triton_gpu_seconds_total").value == 2.5
    assert backend.of("wan_denoise_heartbeat_timestamp_seconds").value == 1003.0
    metrics.ended(3.0, success=True)
    assert backend.of("wan_triton_gpu_seconds_total").value == pytest.approx(3.0)
    assert backend.of("wan_triton_stage_seconds").observed == [3.0]
    assert backend.of("wan_denoise_inflight").value == 0


def test_steps_are_counted_by_kind_and_only_computed_ones_have_a_time():
    backend = RecordingBackend()
    metrics = DenoiseMetrics(backend, "0_0")
    metrics.resumed(4)
    metrics.stepped("computed", 2.0, 1.0)
    metrics.stepped("cached", 0.1, 2.0)
    counts = {
        kind: backend.of("wan_triton_denoise_steps_total", kind=kind).value
        for kind in ("computed", "cached", "resumed")
    }
    assert counts == {"computed": 1, "cached": 1, "resumed": 4}
    assert backend.of("wan_triton_denoise_step_seconds").observed == [2.0]


def test_a_request_that_failed_has_device_seconds_but_no_stage_time():
    backend = RecordingBackend()
    metrics = DenoiseMetrics(backend, "0_0")
    metrics.started(0.0)
    metrics.ended(2.0, success=False)
    assert backend.of("wan_triton_gpu_seconds_total").value == 2.0
    assert backend.of("wan_triton_stage_seconds").observed == []


def test_no_metric_of_a_stage_bears_the_name_of_one_of_the_worker():
    """Both are scraped: a query must not add up two measurements of the same thing."""
    backend = RecordingBackend()
    DenoiseMetrics(backend, "0_0")
    ours = {name for metric in vars(worker_metrics()).values() for name in (metric._name, metric._name + "_total")}
    assert {key[0] for key in backend.metrics}.isdisjoint(ours)
