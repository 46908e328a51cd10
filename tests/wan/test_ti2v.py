"""TI2V-5B: the pipelines of diffusers with a timestep for each token, and ours with one for all, or two from a picture."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline, WanPipeline, WanTransformer3DModel
from PIL import Image

import wan
from tests.wan.reference import relative_error
from wan.checkpoint import Checkpoint
from wan.config import VAE22_MEAN, VAE22_STD
from wan.denoise import Resume
from wan.errors import InvalidRequest
from wan.pipeline import Media

PROMPT = "a blue square moves up on a white background"


@pytest.fixture(scope="module")
def root(checkpoint, tmp_path_factory):
    """A small random TI2V in the Diffusers layout, with the text encoder of the tiny checkpoint."""
    root = tmp_path_factory.mktemp("ti2v") / "checkpoint"
    torch.manual_seed(4)
    theirs = WanPipeline.from_pretrained(checkpoint, torch_dtype=torch.float32)
    transformer = WanTransformer3DModel(
        num_attention_heads=4, attention_head_dim=24, num_layers=2, ffn_dim=192, freq_dim=256, in_channels=48,
        text_dim=theirs.text_encoder.config.d_model, out_channels=48, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
    )  # fmt: skip
    vae = AutoencoderKLWan(
        base_dim=8, decoder_base_dim=12, z_dim=48, num_res_blocks=1, is_residual=True, patch_size=2, in_channels=12,
        out_channels=12, latents_mean=list(VAE22_MEAN), latents_std=list(VAE22_STD), scale_factor_spatial=16,
    )  # fmt: skip
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    WanPipeline(
        tokenizer=theirs.tokenizer, text_encoder=theirs.text_encoder, vae=vae, scheduler=theirs.scheduler,
        transformer=transformer, expand_timesteps=True,
    ).save_pretrained(root)  # fmt: skip
    return root


def test_twenty_steps_follow_the_diffusers_pipeline(root):
    theirs = WanPipeline.from_pretrained(root, torch_dtype=torch.float32)
    assert theirs.config.expand_timesteps
    theirs.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 48, 3, 4, 6, generator=torch.Generator().manual_seed(3))
    expected = theirs(
        PROMPT, negative_prompt="", width=96, height=64, num_frames=9, num_inference_steps=20, guidance_scale=5.0,
        latents=latents, output_type="latent",
    ).frames[0]  # fmt: skip
    ours = wan.Pipeline.from_checkpoint(root)(
        PROMPT, negative_prompt="", width=96, height=64, num_frames=9, steps=20, guidance_scale=5.0,
        flow_shift=theirs.scheduler.config.flow_shift, latents=latents[0],
    )  # fmt: skip
    assert relative_error(ours.latents, expected) < 1e-3
    assert ours.frames.shape == (9, 64, 96, 3)


def test_sizes_and_defaults_are_those_of_the_variant(root):
    card = Checkpoint.open(root).card
    assert (card.variant, card.geometry.multiple, card.geometry.latent_channels) == ("ti2v-5b", 32, 48)
    request = card.request(prompt=PROMPT)
    assert (request.width, request.height, request.num_frames, card.defaults.fps) == (1280, 704, 121, 24)
    assert card.geometry.latent_shape(1280, 704, 121) == (48, 31, 44, 80)
    assert card.geometry.tokens(1280, 704, 121) == 27280
    with pytest.raises(wan.InvalidRequest, match="height is 720; allowed: a multiple of 32"):
        card.request(prompt=PROMPT, height=720)


SIZE = {"width": 96, "height": 64, "num_frames": 9}


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (64, 96, 3), dtype=np.uint8)


def test_from_a_picture_twenty_steps_follow_the_diffusers_pipeline(root):
    parts = WanPipeline.from_pretrained(root, torch_dtype=torch.float32).components
    theirs = WanImageToVideoPipeline(**parts | {"image_encoder": None, "image_processor": None}, expand_timesteps=True)
    theirs.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 48, 3, 4, 6, generator=torch.Generator().manual_seed(3))
    expected = theirs(
        Image.fromarray(picture(1)), PROMPT, negative_prompt="", **SIZE, num_inference_steps=20, guidance_scale=5.0,
        latents=latents, output_type="latent",
    ).frames[0]  # fmt: skip
    ours = wan.Pipeline.from_checkpoint(root)(
        PROMPT, negative_prompt="", image=picture(1), **SIZE, steps=20, guidance_scale=5.0,
        flow_shift=theirs.scheduler.config.flow_shift, latents=latents[0],
    )  # fmt: skip
    assert relative_error(ours.latents, expected) < 1e-3


def test_the_first_latent_frame_is_that_of_the_picture_from_the_first_step_on(root):
    pipeline, seen = wan.Pipeline.from_checkpoint(root), []
    request = pipeline.card.request(prompt=PROMPT, seed=1, steps=4, **SIZE)
    conditioning = pipeline.condition(request, Media(image=picture(1)))
    latents, _ = pipeline.denoise(conditioning, request, on_step=lambda progress: seen.append(progress.x0))
    assert all(torch.equal(x0[:, :1], conditioning.first) for x0 in [*seen, latents])
    other, _ = pipeline.denoise(pipeline.condition(request, Media(image=picture(2))), request)
    assert not torch.equal(other[:, 1:], latents[:, 1:])


def test_a_run_from_a_picture_resumes_bit_identically(root):
    pipeline, states = wan.Pipeline.from_checkpoint(root), []
    request = pipeline.card.request(prompt=PROMPT, seed=1, steps=4, **SIZE)
    conditioning = pipeline.condition(request, Media(image=picture(1)))
    expected, _ = pipeline.denoise(conditioning, request, on_step=lambda progress: states.append(progress.state))
    found, _ = pipeline.denoise(conditioning, request, resume=Resume(2, states[1]))
    assert torch.equal(found, expected)


def test_a_clip_is_changed_and_a_picture_beside_it_refused(root):
    pipeline = wan.Pipeline.from_checkpoint(root)
    clip = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)
    size = {"width": 64, "height": 64, "num_frames": 9}
    one, other = (pipeline(PROMPT, video=v, steps=4, strength=0.5, seed=1, **size) for v in (clip, clip[::-1]))
    assert one.info["steps_computed"] == 2
    assert not np.array_equal(one.frames, other.frames)
    with pytest.raises(InvalidRequest, match="image is 'given beside video'; allowed: one of the two"):
        pipeline(PROMPT, image=clip[0], video=clip, steps=4, **size)
