"""What FP8 costs: PSNR and SSIM of the frames, and whether videos still show what was asked for."""

import os

import numpy as np
import pytest

from export.dit import quality
from export.dit.formats import DitWeights
from export.dit.package import package
from export.dit.precision import Precision
from tiny.obedience import evaluate
from wan.checkpoint import Checkpoint
from wan.pipeline import Pipeline

# All 20 prompts of the check take minutes on one core: WAN_TEST_OBEDIENCE=20 runs them.
PROMPTS = int(os.environ.get("WAN_TEST_OBEDIENCE", "4"))


def test_psnr_and_ssim_have_their_textbook_values():
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 246, (2, 32, 32, 3)).astype(np.uint8)
    assert quality.psnr(frames, frames) == float("inf")
    assert quality.psnr(frames, frames + 10) == pytest.approx(20 * np.log10(255 / 10))
    assert quality.ssim(frames, frames) == pytest.approx(1)
    noisy = np.clip(frames.astype(int) + generator.normal(0, 40, frames.shape), 0, 255).astype(np.uint8)
    assert 0.5 < quality.ssim(frames, noisy) < 0.98
    constant = np.full_like(frames, 100)
    # Without variance only the means count: (2 ab + C1) / (a² + b² + C1).
    a, b = 100 / 255, 150 / 255
    expected = (2 * a * b + quality.C1) / (a * a + b * b + quality.C1)
    assert quality.ssim(constant, np.full_like(frames, 150)) == pytest.approx(expected)


@pytest.fixture(scope="module")
def packaged(checkpoint, tmp_path_factory):
    source, folder = Checkpoint.open(checkpoint), tmp_path_factory.mktemp("fp8")
    package(source, DitWeights(source.dit_tensors()), folder, Precision("fp8"), [], "quality")
    return Checkpoint.open(folder).load_dit()


def test_frames_of_the_package_are_close_to_the_original(checkpoint, packaged):
    measured = quality.compare(Pipeline.from_checkpoint(checkpoint), [packaged], quality.PROMPTS[:1])
    assert measured["prompts"] == 1
    assert measured["psnr_db"] > 20
    assert measured["ssim"] > 0.8


def test_videos_of_the_package_show_what_those_of_the_original_show(checkpoint, packaged):
    if "random" in str(checkpoint):
        pytest.skip("random weights obey nobody")
    whole = Pipeline.from_checkpoint(checkpoint)

    def obeying(pipeline) -> set[int]:
        verdicts = evaluate(lambda prompt, seed: pipeline(prompt, seed=seed).frames, count=PROMPTS)
        return {i for i, verdict in enumerate(verdicts) if verdict.obeys}

    original = obeying(whole)
    lost = original - obeying(whole.with_dits([packaged]))
    assert len(original) > PROMPTS / 2
    assert len(lost) <= (1 if PROMPTS >= 20 else 0), sorted(lost)
