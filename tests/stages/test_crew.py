"""A denoise stage whose video is made by several processes, over gloo: what happens when one dies, hangs or is not needed."""

import contextlib
import json
import os
import signal
from dataclasses import asdict
from unittest import mock

import numpy as np
import psutil
import pytest
import torch

from stages.artifacts import Artifacts
from stages.crew import degrees_of, devices_of
from stages.denoise_stage import DenoiseStage
from stages.metrics import DenoiseMetrics
from stages.run_directory import RunDirectory
from stages.settings import StageSettings
from tests.stages.recording_metrics import RecordingBackend
from tests.stages.requests import Request, text
from wan.checkpoint import Checkpoint
from wan.errors import Cancelled, InvalidRequest, RankLost


@pytest.fixture
def built(repository, tmp_path):
    """Builds the stage of a process: one at a time, closed in the end."""
    place = {"model_repository": str(repository / "denoise"), "model_version": "1", "model_name": "denoise"}
    common = {"run_dir": tmp_path, "denoise_threads": 1, "checkpoint_seconds": 1e-6, "warm_sizes": ((32, 32, 1),)}
    stages = []

    def build(**settings) -> DenoiseStage:
        metrics = DenoiseMetrics(RecordingBackend(), "0")
        stages.append(DenoiseStage(Artifacts.open(place), StageSettings(**common | settings), metrics))
        return stages[-1]

    yield build
    for stage in stages:
        stage.close()


@pytest.fixture(scope="module")
def send(checkpoint):
    """Latents and INFO of a request with an odd number of tokens."""
    opened = Checkpoint.open(checkpoint)
    small = {"width": 48, "height": 16, "num_frames": 9, "steps": 6}
    generation = asdict(opened.card.request(prompt="a cat", seed=1, cache_threshold=0.0, **small))
    context = np.random.default_rng(0).normal(size=(2, 1, 512, opened.dit_config().text_dim)).astype(np.float32)
    context[:, :, 5:] = 0

    def send(stage: DenoiseStage, request_id: str = "", gone=False, **changed) -> tuple[np.ndarray, dict]:
        request = text(json.dumps(generation | {"tokenized_at": 0.0} | changed))
        tensors = {"CONTEXT": context[0], "NEGATIVE_CONTEXT": context[1], "REQUEST": request}
        answer = stage.handle(Request(tensors, request_id, gone=gone))
        return answer["LATENTS"], json.loads(answer["INFO"][0])

    return send


@contextlib.contextmanager
def at_step(number: int, what):
    """Let `what()` happen after step `number`; it says whether the request is cancelled."""
    calls = []

    def cancelled(directory) -> bool:
        calls.append(directory)
        return len(calls) == 1 + number and bool(what())

    with mock.patch.object(RunDirectory, "cancelled", cancelled):
        yield


def helpers(stage: DenoiseStage) -> list[int]:
    return stage._crew.pids


def test_a_rank_that_dies_or_hangs_ends_the_run_which_goes_on_bit_by_bit(built, send, monkeypatch):
    stage = built(parallel="ulysses2")
    expected, info = send(stage)
    assert info["engine"]["parallel"] == "ulysses2"

    before = helpers(stage)
    with at_step(3, lambda: os.kill(before[0], signal.SIGKILL)), pytest.raises(RankLost, match="rank 1 ended .* -9"):
        send(stage, "killed")
    latents, info = send(stage, "killed")
    assert info["resumed_from"] == 3
    assert np.array_equal(latents, expected)
    assert not set(before) & set(helpers(stage))

    monkeypatch.setattr(stage._crew, "_limit", 1.0)
    with (
        at_step(2, lambda: os.kill(helpers(stage)[0], signal.SIGSTOP)),
        pytest.raises(RankLost, match="rank hung for 1 s"),
    ):
        send(stage, "hung")
    monkeypatch.setattr(stage._crew, "_limit", 60.0)
    latents, info = send(stage, "hung")
    assert info["resumed_from"] == 2
    assert np.array_equal(latents, expected)

    left = [psutil.Process(pid) for pid in helpers(stage)]
    stage.close()
    assert not any(process.is_running() for process in left)


def test_four_ranks_stop_after_a_step_and_their_checkpoint_goes_on_with_one(built, send):
    stage = built(parallel="cfg2xulysses2")
    expected, _ = send(stage)
    with at_step(4, lambda: True), pytest.raises(Cancelled, match="after step 4 of 6"):
        send(stage, "moved")
    with pytest.raises(Cancelled, match="after step 0"):
        send(stage, gone=True)
    assert np.array_equal(send(stage)[0], expected)  # nobody is out of step
    stage.close()

    latents, info = send(built(), "moved")
    assert info["resumed_from"] == 4
    assert "parallel" not in info["engine"]
    assert np.abs(latents - expected).max() < 1e-5 * np.abs(expected).max()


def test_ranks_of_a_placement_are_the_gpus_after_the_first(repository):
    artifacts = Artifacts({"placement": {"denoise": [1, 3, 4, 6]}, "parallel": "ulysses2"}, repository)
    assert degrees_of(artifacts, StageSettings()).ranks == 2
    assert devices_of(artifacts, torch.device("cuda:4"), 2) == ["cuda:4", "cuda:6"]
    with pytest.raises(InvalidRequest, match="WAN_PARALLEL is 'cfg2'; allowed: ulysses2"):
        degrees_of(artifacts, StageSettings(parallel="cfg2"))
