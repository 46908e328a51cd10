import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import save_file

from tests.wan.reference import relative_error
from wan.checkpoint import Checkpoint
from wan.config import VAE22_MEAN, VAE22_STD, VAEConfig
from wan.keys import vae_from_diffusers
from wan.sizes import vae_config
from wan.tensor_files import TensorFiles
from wan.vae import FeatureCache
from wan.vae22 import build_vae, patchify, unpatchify
from wan.vae_cpu import accelerate

CONFIG = VAEConfig(
    dim=8, decoder_dim=12, z_dim=48, num_res_blocks=1, latents_mean=VAE22_MEAN, latents_std=VAE22_STD, patch=2
)


@pytest.fixture(scope="module")
def pair():
    """A small VAE of diffusers with random weights and ours with the same."""
    torch.manual_seed(0)
    reference = AutoencoderKLWan(
        base_dim=8, decoder_base_dim=12, z_dim=48, num_res_blocks=1, is_residual=True, patch_size=2, in_channels=12,
        out_channels=12, latents_mean=list(VAE22_MEAN), latents_std=list(VAE22_STD), scale_factor_spatial=16,
    ).eval()  # fmt: skip
    ours = build_vae(CONFIG).eval()
    rename = vae_from_diffusers(1, residual=True)
    ours.load_state_dict({rename(name): tensor for name, tensor in reference.state_dict().items()})
    return reference, ours


def raw(latents):
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (VAE22_MEAN, VAE22_STD))
    return latents * std + mean


def fast(vae):
    copy = build_vae(CONFIG).eval()
    copy.load_state_dict(vae.state_dict())
    return accelerate(copy.channels_last())


@pytest.mark.parametrize("latent_frames", [1, 2, 5, 9])
@torch.no_grad()
def test_encode_and_decode_equal_diffusers(pair, latent_frames):
    reference, ours = pair
    generator = torch.Generator().manual_seed(latent_frames)
    video = torch.rand(1, 3, 4 * latent_frames - 3, 64, 32, generator=generator) * 2 - 1
    drawn = torch.randn(1, 48, latent_frames, 4, 3, generator=generator)
    latents, decoded = reference.encode(video).latent_dist.mean, reference.decode(raw(drawn)).sample
    assert decoded.shape == (1, 3, 4 * latent_frames - 3, 64, 48)
    for vae in (ours, fast(ours)):
        assert relative_error(raw(vae.encode(video)), latents) < 1e-4
        assert relative_error(vae.decode(drawn), decoded) < 1e-4


@pytest.mark.parametrize("chunk", [2, 3, 7])
@torch.no_grad()
def test_the_chunk_length_changes_neither_video_nor_latents(pair, chunk):
    _, vae = pair
    latents = torch.randn(2, 48, 7, 2, 2, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(vae.decode(latents, chunk=chunk), vae.decode(latents), rtol=0, atol=2e-5)
    video = torch.rand(1, 3, 13, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    at_once, _ = vae.encode_moments(video, FeatureCache(None))
    torch.testing.assert_close(at_once, raw(vae.encode(video)), rtol=0, atol=2e-5)


@torch.no_grad()
def test_an_image_has_the_latents_of_a_videos_first_frame(pair):
    video = torch.rand(1, 3, 9, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1
    torch.testing.assert_close(pair[1].encode(video[:, :, :1]), pair[1].encode(video)[:, :, :1], rtol=0, atol=1e-5)


def test_pixels_in_squares_are_channels_with_the_column_as_the_slower_index():
    x = torch.arange(16.0).view(1, 1, 1, 4, 4)
    assert patchify(x, 2)[0, :, 0, 0, 0].tolist() == [0, 4, 1, 5]
    assert torch.equal(unpatchify(patchify(x, 2), 2), x)


@torch.no_grad()
def test_every_chunk_leaves_a_cache_of_the_same_shapes():
    vae = build_vae(VAEConfig(dim=8, z_dim=48, latents_mean=VAE22_MEAN, latents_std=VAE22_STD, patch=2)).eval()
    latent = torch.randn(1, 48, 1, 2, 2)
    _, first = vae.decode_step(latent, None)
    _, second = vae.decode_step(latent, first)
    assert [c.shape for c in first] == [c.shape for c in second]
    assert len(first) == 32


def test_a_checkpoint_says_its_architecture_in_both_layouts(pair, tmp_path):
    reference, ours = pair
    reference.save_pretrained(tmp_path / "vae")
    opened = Checkpoint.open(tmp_path)
    assert opened.vae_config() == CONFIG
    loaded = opened.load_vae().state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in ours.state_dict().items())
    save_file(ours.state_dict(), tmp_path / "official.safetensors")
    assert vae_config(TensorFiles([tmp_path / "official.safetensors"])) == CONFIG
