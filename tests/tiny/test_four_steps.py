"""The LoRA that draws in four steps, on a few prompts, and its training."""

import numpy as np
import pytest
import torch

from contract.variants import BY_NAME
from tests.conftest import TINY
from tiny.lora import bundled
from tiny.obedience import evaluate
from tiny.train_four_steps import LEVELS, asked, distance, draw
from wan import Pipeline

FEW = BY_NAME["t2v-4step"].defaults
FOUR_STEPS = {
    "steps": FEW.steps,
    "sampler": FEW.sampler,
    "flow_shift": FEW.flow_shift,
    "guidance_scale": FEW.guidance_scale,
}


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline.from_checkpoint(TINY)


def test_the_four_step_lora_does_in_4_forwards_what_40_did(pipeline):
    adapters = bundled(pipeline.card, "four-steps")

    def generate(prompt: str, seed: int) -> np.ndarray:
        video = pipeline(prompt, seed=seed, lora="four-steps", adapters=adapters, **FOUR_STEPS)
        assert video.info["forwards"] == 4
        return video.frames

    verdicts = evaluate(generate, 10)
    assert sum(v.obeys for v in verdicts) >= 9, [str(v) for v in verdicts]
    alone = pipeline(asked(1, 0)[0][1], seed=0, **FOUR_STEPS).frames
    assert not np.array_equal(alone, generate(asked(1, 0)[0][1], 0))


def test_a_student_on_the_teachers_path_is_at_no_distance_from_it(pipeline):
    points = draw(pipeline, 1, seed=3)
    assert points.shape == (1, 5, 16, 5, 8, 8)
    steps = [b - a for a, b in zip(LEVELS.sigmas, LEVELS.sigmas[1:], strict=False)]
    velocities = iter([(points[:, i + 1] - points[:, i]) / step for i, step in enumerate(steps)])
    assert distance(lambda x, timesteps, context: next(velocities), None, points) < 1e-8
    assert distance(lambda x, timesteps, context: torch.zeros_like(x), None, points) > 0.1
