"""Models that are given pictures follow diffusers and transformers, through both checkpoint layouts."""

import json

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
    WanVideoToVideoPipeline,
)
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPVisionModel, UMT5EncoderModel

import wan
from tests.wan.picture_checkpoints import (
    CLIP_DIM,
    CLIP_SIDE,
    TOKENS,
    random_transformer,
    write_diffusers,
    write_official,
)
from tests.wan.reference import relative_error
from wan import known_frames
from wan.checkpoint import Checkpoint
from wan.pictures import to_signed

PROMPT = "a blue square moves up on a white background"


@pytest.fixture(scope="module")
def checkpoints(checkpoint, tmp_path_factory):
    """Number of pictures -> folders in the Diffusers and the official layout."""
    root = tmp_path_factory.mktemp("pictures")
    made = {n: write_diffusers(root / f"diffusers-{n}", checkpoint, n) for n in (0, 1, 2)}
    return {n: (folder, write_official(root / f"official-{n}", folder)) for n, folder in made.items()}


def picture(seed: int, side: int = 64) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("layout", [0, 1], ids=["diffusers", "official"])
@torch.no_grad()
def test_clip_follows_transformers(checkpoints, layout):
    reference = CLIPVisionModel.from_pretrained(checkpoints[1][0] / "image_encoder").eval()
    pixels = torch.randn(2, 3, CLIP_SIDE, CLIP_SIDE)
    expected = reference(pixels, output_hidden_states=True).hidden_states[-2]
    ours = Checkpoint.open(checkpoints[1][layout]).load_clip()(pixels)
    assert ours.shape == (2, TOKENS, CLIP_DIM)
    assert relative_error(ours, expected) < 1e-4


@pytest.mark.parametrize("layout", [0, 1], ids=["diffusers", "official"])
@pytest.mark.parametrize("pictures", [1, 2], ids=["i2v", "flf2v"])
@torch.no_grad()
def test_forward_follows_diffusers(checkpoints, pictures, layout):
    reference = WanTransformer3DModel.from_pretrained(checkpoints[pictures][0] / "transformer").eval()
    ours = wan.load_dit(checkpoints[pictures][layout])
    latents, timestep = torch.randn(2, 36, 3, 6, 4), torch.tensor([937.0, 41.0])
    context, tokens = torch.randn(2, 512, 128), torch.randn(2, pictures * TOKENS, CLIP_DIM)
    context[:, 9:] = 0
    theirs = tokens if pictures == 1 else tokens.view(4, TOKENS, CLIP_DIM)
    expected = reference(latents, timestep, context, theirs, return_dict=False)[0]
    assert relative_error(ours(latents, timestep, context, tokens), expected) < 2e-5


@pytest.mark.parametrize("latent_frames", [1, 5, 21])
@pytest.mark.parametrize("last", [False, True], ids=["first", "first and last"])
@torch.no_grad()
def test_mask_and_latents_follow_diffusers(checkpoints, latent_frames, last):
    if last and latent_frames == 1:
        pytest.skip("a video of one frame has no last one")
    folder = checkpoints[1][0]
    vae = AutoencoderKLWan.from_pretrained(folder / "vae").eval()
    theirs = WanImageToVideoPipeline(None, None, vae, UniPCMultistepScheduler(), None, None)
    count, first, end = 4 * latent_frames - 3, picture(1, 48), picture(2, 48)
    ends = to_signed(end[None])[:, :, 0] if last else None
    _, expected = theirs.prepare_latents(
        to_signed(first[None])[:, :, 0], 1, 16, 48, 48, count, torch.float32, "cpu", last_image=ends
    )
    opened, size = Checkpoint.open(folder), (48, 48, count)
    known = known_frames.arrange(first, end if last else None, None, size, opened.card.geometry)
    ours = known_frames.channels(known, size, opened.card.geometry, opened.load_vae().encode_stream)
    assert tuple(ours.shape) == (20, latent_frames, 6, 6)
    assert (ours - expected[0]).abs().max() < 1e-4


def their_pipeline(folder, pictures: int, **experts) -> WanImageToVideoPipeline:
    clip = CLIPVisionModel.from_pretrained(folder / "image_encoder").eval() if pictures else None
    crop = {"height": CLIP_SIDE, "width": CLIP_SIDE}
    pipeline = WanImageToVideoPipeline(
        AutoTokenizer.from_pretrained(folder / "tokenizer"),
        UMT5EncoderModel.from_pretrained(folder / "text_encoder"),
        AutoencoderKLWan.from_pretrained(folder / "vae"),
        UniPCMultistepScheduler.from_pretrained(folder / "scheduler"),
        CLIPImageProcessor(size={"shortest_edge": CLIP_SIDE}, crop_size=crop) if pictures else None,
        clip,
        WanTransformer3DModel.from_pretrained(folder / "transformer").eval(),
        **experts,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("pictures", [0, 1, 2], ids=["i2v without clip", "i2v", "flf2v"])
def test_twenty_steps_follow_the_diffusers_pipeline(checkpoints, pictures):
    """With square pictures of the video's size, for which all ways of bringing a picture to size are one."""
    folder = checkpoints[pictures][0]
    given = {"image": picture(1)} | ({"last_image": picture(2)} if pictures == 2 else {})
    latents = torch.randn(1, 16, 5, 8, 8, generator=torch.Generator().manual_seed(3))
    expected = their_pipeline(folder, pictures)(
        prompt=PROMPT, negative_prompt="", width=64, height=64, num_frames=17, num_inference_steps=20,
        guidance_scale=3.0, latents=latents, output_type="latent",
        **{name: Image.fromarray(value) for name, value in given.items()},
    ).frames[0]  # fmt: skip
    ours = wan.Pipeline.from_checkpoint(folder)(PROMPT, steps=20, guidance_scale=3.0, latents=latents[0], **given)
    assert relative_error(ours.latents, expected) < 1e-3


def test_two_experts_follow_the_diffusers_pipeline_from_a_picture(checkpoint, tmp_path):
    folder, second = write_diffusers(tmp_path / "a14b", checkpoint, 0), random_transformer(0, seed=1)
    second.save_pretrained(folder / "transformer_2")
    (folder / "model_index.json").write_text(json.dumps({"boundary_ratio": 0.9}))
    latents = torch.randn(1, 16, 5, 8, 8, generator=torch.Generator().manual_seed(3))
    expected = their_pipeline(folder, 0, transformer_2=second, boundary_ratio=0.9)(
        image=Image.fromarray(picture(1)), prompt=PROMPT, negative_prompt="", width=64, height=64, num_frames=17,
        num_inference_steps=20, guidance_scale=3.0, guidance_scale_2=2.0, latents=latents, output_type="latent",
    ).frames[0]  # fmt: skip
    pipeline = wan.Pipeline.from_checkpoint(folder)
    assert pipeline.card.variant == "i2v-a14b"
    ours = pipeline(PROMPT, image=picture(1), steps=20, guidance_scale=3.0, guidance_scale_2=2.0, latents=latents[0])
    assert 0 < ours.info["first_expert_steps"] < 20
    assert relative_error(ours.latents, expected) < 1e-3


@pytest.mark.parametrize("strength", [0.6, 0.29])
def test_a_changed_clip_follows_the_diffusers_pipeline(checkpoint, strength):
    theirs = WanVideoToVideoPipeline.from_pretrained(checkpoint, torch_dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    clip = [picture(seed) for seed in range(9)]
    expected = theirs(
        [Image.fromarray(frame) for frame in clip], PROMPT, "", 64, 64, num_inference_steps=20, guidance_scale=3.0,
        strength=strength, generator=torch.Generator().manual_seed(5), output_type="latent",
    ).frames[0]  # fmt: skip
    ours = wan.Pipeline.from_checkpoint(checkpoint)(
        PROMPT, video=clip, num_frames=9, steps=20, guidance_scale=3.0, strength=strength, cache_threshold=0.0, seed=5
    )
    assert ours.info["steps_computed"] == int(20 * strength)
    assert relative_error(ours.latents, expected) < 1e-3
