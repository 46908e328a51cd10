import json
import shutil

import pytest
import torch

import wan
from wan import calibrate
from wan.checkpoint import Checkpoint
from wan.teacache import TeaCacheModel


@pytest.fixture(scope="module")
def pipeline(checkpoint):
    return wan.Pipeline.from_checkpoint(checkpoint)


def test_recording_sees_every_step_and_leaves_the_model_as_it_was(pipeline):
    request = pipeline.card.request(prompt="a cat", steps=4, seed=0, num_frames=5, cache_threshold=0.0)
    conditioning, dit = pipeline.condition(request), pipeline.denoiser.experts[0].dit
    plain, _ = pipeline.denoise(conditioning, request)
    with calibrate.recording(dit) as record:
        watched, _ = pipeline.denoise(conditioning, request)
    assert torch.equal(plain, watched)
    assert len(record.changes) == len(record.ratios) == 3
    assert all(change > 0 for change in record.changes)
    assert "run_blocks" not in vars(dit)


def test_the_polynomial_follows_what_was_seen():
    x = [0.01 * i for i in range(1, 40)]
    seen = calibrate.Observations(time=x, modulation=x[::-1], residual=[0.5 * v**2 + 0.1 for v in x], ratios=[1.0] * 39)
    model, explained = calibrate.fit_teacache(seen, retention=False, degree=4)
    assert explained > 0.999
    assert model == TeaCacheModel(model.coefficients, retention=False)


def test_the_default_threshold_is_the_smallest_that_saves_enough():
    seen = []

    def plan(threshold):
        seen.append(threshold)
        return (True,) * (10 - int(threshold * 100)) + (False,) * int(threshold * 100)

    assert calibrate.default_threshold(plan, speed_up=1.6, step=0.01) == pytest.approx(0.04)


def test_the_command_writes_settings_that_the_checkpoint_reads(checkpoint, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    before = json.loads((copy / "wan.json").read_text())
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle moves left on a white background\n")
    calibrate.main([str(copy), "--prompts", str(prompts), "--speed-up", "1.6"])
    opened = Checkpoint.open(copy)
    assert set(opened.caches[0]) == {"teacache", "magcache"}
    steps = opened.card.defaults.steps
    assert len(opened.caches[0]["magcache"].ratios) == steps
    assert opened.card.defaults.cache_threshold > 0
    assert opened.card.defaults.flow_shift == before["defaults"]["flow_shift"]
    video = wan.Pipeline.from_checkpoint(copy)("a red circle moves left on a white background", seed=0)
    assert video.info["steps_computed"] <= steps / 1.6
    assert video.info["skipped"]
    assert video.info["cache"] == "teacache"
