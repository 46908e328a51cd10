import numpy as np
import pytest
import torch
from diffusers import WanPipeline

import wan
from tests.wan.reference import relative_error

PROMPT = "a blue square moves up on a white background"


@pytest.fixture(scope="module")
def pipeline(checkpoint):
    return wan.Pipeline.from_checkpoint(checkpoint)


def test_twenty_steps_follow_the_diffusers_pipeline(checkpoint, pipeline):
    theirs = WanPipeline.from_pretrained(checkpoint, torch_dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 16, 5, 8, 8, generator=torch.Generator().manual_seed(3))
    expected = theirs(
        PROMPT, negative_prompt="", width=64, height=64, num_frames=17, num_inference_steps=20, guidance_scale=3.0,
        latents=latents, output_type="latent",
    ).frames[0]  # fmt: skip
    ours = pipeline(PROMPT, steps=20, guidance_scale=3.0, latents=latents[0], cache_threshold=0.0)
    assert relative_error(ours.latents, expected) < 1e-3
    with torch.no_grad():
        mean = torch.tensor(theirs.vae.config.latents_mean).view(1, -1, 1, 1, 1)
        std = torch.tensor(theirs.vae.config.latents_std).view(1, -1, 1, 1, 1)
        video = theirs.vae.decode(expected[None] * std + mean).sample[0]
    frames = ((video.permute(1, 2, 3, 0) + 1) * 127.5).round().clamp(0, 255).numpy()
    assert np.abs(frames - ours.frames).max() <= 1


def test_a_video_has_the_shape_that_was_asked_for(pipeline):
    video = pipeline(PROMPT, width=48, height=32, num_frames=5, steps=2, seed=1)
    assert video.frames.shape == (5, 32, 48, 3)
    assert video.frames.dtype == np.uint8
    assert tuple(video.latents.shape) == (16, 2, 4, 6)
    assert video.latents.dtype == torch.float32
    assert {k: video.info[k] for k in ("seed", "steps", "width", "steps_computed")} == {
        "seed": 1, "steps": 2, "width": 48, "steps_computed": 2,
    }  # fmt: skip


def test_the_verbs_compose_to_the_call(pipeline):
    request = pipeline.card.request(prompt=PROMPT, steps=3, seed=9)
    latents, _ = pipeline.denoise(pipeline.condition(request), request)
    video = pipeline(PROMPT, steps=3, seed=9)
    assert torch.equal(latents, video.latents)
    assert np.array_equal(pipeline.decode(latents), video.frames)
