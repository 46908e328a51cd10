import json
from dataclasses import replace

import pytest
import torch

from contract import Defaults, ModelCard
from contract.parameters import guided_steps
from stages.device import NotFinite
from stages.metrics import DenoiseMetrics
from stages.run_directory import CheckpointRefused, RunDirectory
from stages.step_hook import Intervals, StepHook
from tests.stages.recording_metrics import RecordingBackend
from wan.denoise import Progress, Step
from wan.errors import Cancelled
from wan.samplers import SamplerState

CARD = ModelCard(defaults=Defaults(width=64, height=64, num_frames=5, steps=10))
REQUEST = CARD.request(prompt="a red circle", seed=3)
ALWAYS, NEVER = Intervals(1e-9, 1e-9), Intervals(1e9, 1e9)


def progress(step: int, computed: bool = True, resumable: bool = True, seconds: float = 0.5) -> Progress:
    state = SamplerState(torch.full((16, 2, 8, 8), float(step)), (torch.ones(16, 2, 8, 8),))
    return Progress(step, 10, 0, computed, seconds, resumable, state, state.latents)


def run(directory, intervals=ALWAYS, request=REQUEST, backend=None, plan=(True,) * 10, **options) -> StepHook:
    metrics = DenoiseMetrics(backend or RecordingBackend(), "0_0")
    guided = guided_steps(request.steps, request.guidance_scale, request.guidance_end)
    steps = tuple(Step(0, computed, 2 if i < guided else 1) for i, computed in enumerate(plan))
    return StepHook(request, steps, request.fingerprint("model"), directory, intervals, metrics, **options)


def eta(directory) -> float | None:
    return json.loads((directory.path / "progress.json").read_text())["eta_seconds"]


@pytest.fixture
def directory(tmp_path) -> RunDirectory:
    return RunDirectory(tmp_path, "r").open()


def test_every_step_is_reported_with_the_time_that_is_left(directory):
    loop = run(directory, NEVER)
    loop.begin()
    assert json.loads((directory.path / "progress.json").read_text())["step"] == 0
    loop(progress(4))
    reported = json.loads((directory.path / "progress.json").read_text())
    assert reported == {
        "step": 4,
        "steps": 10,
        "skipped": 0,
        "step_seconds": 0.5,
        "eta_seconds": 3.0,
        "phase": "denoise",
    }


def test_the_time_left_counts_the_steps_that_the_cache_will_skip(directory):
    plan = [True, True, False, False, True, False, False, False, False, True]
    loop = run(directory, NEVER, plan=plan)
    loop.begin()
    assert eta(directory) is None
    for i in range(4):
        loop(progress(i + 1, plan[i], seconds=0.5 if plan[i] else 0.02))
    assert eta(directory) == pytest.approx(2 * 0.5 + 4 * 0.02)


def test_the_time_left_knows_that_steps_without_guidance_are_cheaper(directory):
    left = run(directory, NEVER, replace(REQUEST, guidance_end=0.4))
    left(progress(1, seconds=0.8))
    assert eta(directory) == pytest.approx(3 * 0.8 + 6 * 0.4)  # half as many branches until one was timed
    for step in range(2, 6):
        left(progress(step, seconds=0.8 if step <= 4 else 0.5))
    assert eta(directory) == pytest.approx(5 * 0.5)


def test_the_time_left_follows_the_recent_steps_of_each_kind(directory):
    loop = run(directory, NEVER)
    for step, seconds in enumerate((9.0, 1.0, 1.0, 1.0, 1.0, 1.0), start=1):
        loop(progress(step, seconds=seconds))
    assert eta(directory) == pytest.approx(4.0)


def test_without_a_directory_only_the_metrics_are_kept():
    backend = RecordingBackend()
    loop = run(None, backend=backend)
    loop.begin()
    loop(progress(1))
    assert loop.resume_point() is None
    assert backend.of("wan_triton_denoise_steps_total", kind="computed").value == 1


def test_a_checkpoint_is_the_point_from_which_another_run_goes_on(directory):
    run(directory)(progress(4))
    backend = RecordingBackend()
    resume = run(directory, backend=backend).resume_point()
    assert resume.step == 4
    assert torch.equal(resume.state.latents, progress(4).state.latents)
    assert torch.equal(resume.state.history[0], torch.ones(16, 2, 8, 8))
    assert backend.of("wan_triton_denoise_steps_total", kind="resumed").value == 4


def test_no_checkpoint_is_written_before_its_time_or_where_the_next_step_is_not_computed(directory):
    run(directory, NEVER)(progress(4))
    run(directory)(progress(4, resumable=False))
    assert not directory.checkpoint_path.exists()


@pytest.mark.parametrize(
    "change",
    [{"seed": 4}, {"prompt": "a blue circle"}, {"negative_prompt": "x"}, {"steps": 11}, {"cache_threshold": 0.1}],
)
def test_a_checkpoint_of_a_request_that_differs_is_refused(directory, change):
    run(directory)(progress(4))
    with pytest.raises(CheckpointRefused):
        run(directory, request=replace(REQUEST, **change)).resume_point()


def test_a_cancel_stops_after_the_step_and_saves_it_whatever_the_interval(directory):
    loop = run(directory, NEVER)
    (directory.path / "cancel").touch()
    with pytest.raises(Cancelled, match="cancelled after step 4 of 10"):
        loop(progress(4))
    assert run(directory).resume_point().step == 4


def test_a_cancel_that_came_while_the_request_waited_stops_it_before_its_first_step(directory):
    (directory.path / "cancel").touch()
    with pytest.raises(Cancelled, match="cancelled after step 0 of 10"):
        run(directory).begin()


def test_a_cancel_after_the_last_step_is_too_late(directory):
    (directory.path / "cancel").touch()
    run(directory)(progress(10, resumable=False))


def test_a_damaged_checkpoint_starts_the_run_over_says_why_and_is_removed(directory, caplog):
    run(directory)(progress(4))
    damaged = bytearray(directory.checkpoint_path.read_bytes())
    damaged[-100] ^= 1
    directory.checkpoint_path.write_bytes(damaged)
    backend = RecordingBackend()
    again = run(directory, backend=backend)
    assert again.resume_point() is None
    assert "does not have the digest" in again.refused
    assert "request r starts over" in caplog.text
    assert not directory.checkpoint_path.exists()
    assert backend.of("wan_triton_denoise_steps_total", kind="resumed").value == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_latents_that_are_not_finite_end_the_run_and_no_checkpoint_keeps_them(directory, value):
    state = SamplerState(torch.full((16, 2, 8, 8), value))
    with pytest.raises(NotFinite, match="NaN or infinite after step 4 of 10"):
        run(directory)(replace(progress(4), state=state))
    assert not directory.checkpoint_path.exists()


@pytest.mark.parametrize("with_directory", [True, False])
def test_a_caller_that_is_gone_stops_the_run_after_the_step(directory, with_directory):
    gone = []
    loop = run(directory if with_directory else None, gone=lambda: bool(gone))
    loop.begin()
    loop(progress(3))
    gone.append(True)
    with pytest.raises(Cancelled, match="cancelled after step 4 of 10"):
        loop(progress(4))
