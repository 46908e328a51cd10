import resource
import subprocess
import sys

import pytest
import torch

from tests.wan.reference import relative_error, vae_pair
from wan.config import VAEConfig
from wan.errors import InvalidRequest
from wan.vae import FeatureCache, WanVAE


def raw(vae: WanVAE, latents: torch.Tensor) -> torch.Tensor:
    mean, std = vae._statistics(latents)
    return latents * std + mean


@pytest.mark.parametrize("latent_frames", [1, 2, 5, 21])
@torch.no_grad()
def test_encode_and_decode_equal_diffusers(latent_frames):
    reference, ours = vae_pair(dim=8, num_res_blocks=1 + latent_frames % 2, seed=latent_frames)
    video = torch.rand(1, 3, 4 * latent_frames - 3, 32, 24) * 2 - 1
    latents = ours.encode(video)
    assert relative_error(raw(ours, latents), reference.encode(video).latent_dist.mean) < 1e-4
    drawn = torch.randn(1, 16, latent_frames, 4, 3)
    assert relative_error(ours.decode(drawn), reference.decode(raw(ours, drawn)).sample) < 1e-4


@pytest.mark.parametrize("chunk", [2, 3, 7])
@torch.no_grad()
def test_the_chunk_length_does_not_change_the_video(chunk):
    _, vae = vae_pair(dim=8, num_res_blocks=1, seed=0)
    latents = torch.randn(2, 16, 7, 4, 4)
    torch.testing.assert_close(vae.decode(latents, chunk=chunk), vae.decode(latents), rtol=0, atol=2e-5)


@torch.no_grad()
def test_encoding_a_video_at_once_equals_streaming_it():
    _, vae = vae_pair(dim=8, num_res_blocks=1, seed=0)
    video = torch.rand(1, 3, 13, 32, 32) * 2 - 1
    at_once, _ = vae.encode_moments(video, FeatureCache(None))
    torch.testing.assert_close(at_once, raw(vae, vae.encode(video)), rtol=0, atol=2e-5)


@torch.no_grad()
def test_the_future_never_changes_the_past():
    _, vae = vae_pair(dim=8, num_res_blocks=1, seed=0)
    latents = torch.randn(1, 16, 4, 4, 4)
    changed = latents.clone()
    changed[:, :, 3] += 1
    assert torch.equal(vae.decode(latents)[:, :, :9], vae.decode(changed)[:, :, :9])


@torch.no_grad()
def test_every_chunk_leaves_a_cache_of_the_same_shapes():
    _, vae = vae_pair(dim=8, num_res_blocks=2, seed=0)
    latent = torch.randn(1, 16, 1, 4, 4)
    _, first = vae.decode_step(latent, None)
    _, second = vae.decode_step(latent, first)
    assert [c.shape for c in first] == [c.shape for c in second]
    assert len(first) == 32


PEAK = """
import resource, sys, torch
from wan.config import VAEConfig
from wan.vae import WanVAE
torch.set_num_threads(1)
vae = WanVAE(VAEConfig(dim=16, num_res_blocks=1)).eval()
latents = torch.randn(1, 16, int(sys.argv[1]), 12, 12)
frames = 0
with torch.inference_mode():
    for chunk in vae.decode_stream(latents):
        frames += chunk.shape[2]
print(frames, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_peak_memory_of_decoding_does_not_grow_with_the_video():
    def run(latent_frames: int) -> int:
        output = subprocess.run(
            [sys.executable, "-c", PEAK, str(latent_frames)], capture_output=True, text=True, check=True
        )
        frames, peak = map(int, output.stdout.split())
        assert frames == 4 * latent_frames - 3
        return peak

    assert run(21) <= 1.1 * run(5)
    assert resource.getpagesize()  # the module exists only on Unix, like the limit above


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 4, 16, 16), r"video frames is 4; allowed: 4n \+ 1"),
        ((1, 3, 5, 16, 20), "multiples of 8"),
        ((1, 4, 5, 16, 16), "video channels is 4"),
    ],
)
def test_a_video_that_does_not_fit_is_refused_by_name(shape, message):
    with pytest.raises(InvalidRequest, match=message):
        WanVAE(VAEConfig(dim=8, num_res_blocks=1)).encode(torch.zeros(shape))


def test_latents_with_other_channels_are_refused():
    with pytest.raises(InvalidRequest, match="latent channels is 8; allowed: 16"):
        WanVAE(VAEConfig(dim=8, num_res_blocks=1)).decode(torch.zeros(1, 8, 1, 4, 4))
