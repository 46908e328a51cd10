"""The exported decoder graphs under ONNX Runtime against the PyTorch decoder."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from contract.geometry import Geometry
from stages.vae_runtime import OnnxVae, decode, encode, to_pixels
from wan import known_frames
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


@pytest.mark.parametrize(("frames", "width", "height"), [(1, 64, 64), (9, 32, 80), (21, 48, 32)])
def test_latents_are_those_of_the_pytorch_encoder(repository, checkpoint, frames, width, height):
    noise = np.random.default_rng(frames).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    parts = list(known_frames.chunks(dict(enumerate(noise)), (width, height, frames), Geometry()))
    ours = torch.cat(list(encode(OnnxVae(repository / "vae_encoder" / "1", threads=1), parts)), dim=2)
    expected = Checkpoint.open(checkpoint).load_vae().encode(torch.cat(parts, dim=2))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


ENCODE_PROGRAM = """
import resource, sys
from pathlib import Path
from contract.geometry import Geometry
from stages.vae_runtime import OnnxVae, encode
from wan import known_frames

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

runtime = OnnxVae(Path(sys.argv[1]), 1)
def run(frames):
    return sum(1 for _ in encode(runtime, known_frames.chunks({}, (128, 128, frames), Geometry())))
counts = run(17)
short = peak()
counts += run(257)
print(counts, short, peak())
"""


def test_memory_of_encoding_does_not_grow_with_the_length_of_the_video(repository):
    command = [sys.executable, "-c", ENCODE_PROGRAM, str(repository / "vae_encoder" / "1")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    chunks, short, long = map(int, done.stdout.split())
    assert chunks == 5 + 65
    assert long - short < 20_000  # kB; all frames at once would take 50 MB
