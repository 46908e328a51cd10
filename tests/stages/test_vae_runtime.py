"""The exported decoder graphs under ONNX Runtime against the PyTorch decoder."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from stages.vae_runtime import OnnxVae, decode, to_pixels
from wan.checkpoint import Checkpoint
from wan.pipeline import to_uint8

MEMORY_PROGRAM = """
import resource, sys
from pathlib import Path
import numpy as np
from stages.vae_runtime import OnnxVae, decode

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

runtime = OnnxVae(Path(sys.argv[1]), 1)
latents = np.random.default_rng(0).normal(size=(16, 41, 8, 8)).astype(np.float32)
base = peak()
frames = sum(len(f) for f in decode(runtime, latents[:, :5]))
short = peak()
frames += sum(len(f) for f in decode(runtime, latents))
print(frames, base, short, peak())
"""


@pytest.fixture(scope="module")
def runtime(repository):
    return OnnxVae(repository / "vae_decoder" / "1", threads=1)


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 8, 8), (2, 4, 10), (5, 6, 4)])
def test_frames_are_those_of_the_pytorch_decoder(runtime, checkpoint, frames, height, width):
    latents = torch.randn(16, frames, height, width, generator=torch.Generator().manual_seed(frames))
    vae = Checkpoint.open(checkpoint).load_vae()
    expected = to_uint8(vae.decode(latents[None])[0]).numpy()
    ours = np.concatenate(list(decode(runtime, latents.numpy())))
    assert ours.shape == expected.shape == (4 * frames - 3, 8 * height, 8 * width, 3)
    difference = np.abs(ours.astype(int) - expected.astype(int))
    assert difference.max() <= 1  # a level may round the other way
    assert difference.mean() < 0.01


def test_decoding_is_the_same_every_time(runtime):
    latents = np.random.default_rng(0).normal(size=(16, 3, 4, 4)).astype(np.float32)
    first, second = (np.concatenate(list(decode(runtime, latents))) for _ in range(2))
    assert np.array_equal(first, second)


def test_memory_does_not_grow_with_the_length_of_the_video(repository):
    command = [sys.executable, "-c", MEMORY_PROGRAM, str(repository / "vae_decoder" / "1")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    frames, base, short, long = map(int, done.stdout.split())
    assert frames == 17 + 161
    assert long - base <= 1.1 * (short - base)


def test_pixels_are_rounded_and_cover_the_range():
    frames = np.float32([-1, -0.999, 0, 0.5, 0.999, 1]).reshape(1, 3, 1, 1, 2)
    expected = to_uint8(torch.from_numpy(frames[0])).numpy()
    assert np.array_equal(to_pixels(frames), expected)
