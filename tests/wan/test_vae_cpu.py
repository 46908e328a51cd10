import copy

import pytest
import torch

from tests.wan.reference import relative_error, vae_pair
from wan.vae_cpu import FastConv, FastUpsample, accelerate


def raw(vae, latents):
    mean, std = vae._statistics(latents)
    return latents * std + mean


@pytest.mark.parametrize(("latent_frames", "chunk"), [(1, 1), (4, 1), (5, 2), (5, 3)])
@torch.inference_mode()
def test_the_accelerated_decoder_equals_diffusers(latent_frames, chunk):
    reference, ours = vae_pair(dim=8, num_res_blocks=1, seed=latent_frames)
    fast = accelerate(ours.channels_last())
    latents = torch.randn(2, 16, latent_frames, 4, 6)
    expected = reference.decode(raw(fast, latents)).sample
    assert relative_error(fast.decode(latents, chunk=chunk), expected) < 1e-4


@torch.inference_mode()
def test_the_accelerated_encoder_equals_the_plain_one():
    _, plain = vae_pair(dim=8, num_res_blocks=1, seed=0)
    fast = accelerate(copy.deepcopy(plain).channels_last())
    video = torch.rand(1, 3, 9, 32, 24) * 2 - 1
    assert relative_error(fast.encode(video), plain.encode(video)) < 1e-4


def test_parameters_and_their_names_stay():
    _, plain = vae_pair(dim=8, num_res_blocks=1, seed=0)
    fast = accelerate(copy.deepcopy(plain))
    assert set(fast.state_dict()) == set(plain.state_dict())
    kinds = {type(module) for module in fast.modules()}
    assert {FastConv, FastUpsample} <= kinds


def test_other_types_are_left_alone():
    _, plain = vae_pair(dim=8, num_res_blocks=1, seed=0)
    assert not any(isinstance(m, FastConv) for m in accelerate(plain.to(torch.bfloat16)).modules())
