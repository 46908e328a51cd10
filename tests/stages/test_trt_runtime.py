"""The drivers of the TensorRT decoder and encoders, with ONNX Runtime in the place of the engines; those are tested by their calls."""

import contextlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from contract import Geometry
from export.tensorrt.sizes import Sizes, clip_profiles, vae_profiles
from export.tensorrt.vae_cache import decoder_slots, encoder_slots
from stages import trt_runtime
from stages.trt_encoders import CLIP_PLAN, TrtClip, TrtVaeEncoder
from stages.trt_runtime import FIRST_PLAN, NEXT_PLAN, TrtVae
from stages.vae_runtime import decode, encode
from wan.checkpoint import Checkpoint
from wan.clip import ClipVision
from wan.config import ClipConfig
from wan.errors import InvalidRequest

SIZES = Sizes(((64, 64), (96, 32)), ((32, 32), (128, 96)))


class OrtEngine:
    """An engine that computes with the float32 graph, on the buffers it is given."""

    def __init__(self, path: Path):
        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.runs: list[tuple[int, set[int], set[int]]] = []

    def execute(self, profile, inputs, outputs, stream):
        written, read = ({t.data_ptr() for t in tensors.values()} for tensors in (outputs, inputs))
        assert all(tensor.is_contiguous() for tensor in (*inputs.values(), *outputs.values()))
        assert not written & read, "a step must not write what it reads"
        self.runs.append((profile, read, written))
        results = self._session.run(list(outputs), {name: tensor.numpy() for name, tensor in inputs.items()})
        for tensor, result in zip(outputs.values(), results, strict=True):
            assert tuple(tensor.shape) == result.shape
            tensor.copy_(torch.from_numpy(result))


@pytest.fixture(scope="module")
def vae(checkpoint):
    return Checkpoint.open(checkpoint).load_vae()


@pytest.fixture
def runtime(vae, repository):
    folder, slots = repository / "vae_decoder" / "1", decoder_slots(vae.config)
    engines = {FIRST_PLAN: OrtEngine(folder / "first.onnx"), NEXT_PLAN: OrtEngine(folder / "next.onnx")}
    plans = {
        f"vae_decoder/{plan}": {"profiles": [asdict(p) for p in vae_profiles(SIZES, vae.config, slots, first)]}
        for plan, first in ((FIRST_PLAN, True), (NEXT_PLAN, False))
    }
    described = {"cache": [[slot.channels, slot.frames, slot.scale] for slot in slots]}
    return TrtVae(
        engines, {"plans": plans, "vae": described}, Geometry(), torch.device("cpu"), cache_dtype=torch.float32
    )


def _latents(vae, frames: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(1, vae.config.z_dim, frames, height, width, generator=torch.Generator().manual_seed(frames))


def _decoded(runtime, latents: torch.Tensor) -> torch.Tensor:
    cache, frames = None, []
    for t in range(latents.shape[2]):
        out, cache = runtime.step(latents[:, :, t : t + 1], cache)
        frames.append(out.clone())
    return torch.cat(frames, dim=2)


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 8, 8), (2, 4, 12), (21, 8, 8), (3, 12, 16)])
def test_cached_steps_reproduce_the_pytorch_decoder(runtime, vae, frames, height, width):
    latents = _latents(vae, frames, height, width)
    expected = vae.decode(latents)
    ours = _decoded(runtime, latents)
    assert ours.shape == expected.shape == (1, 3, 1 + 4 * (frames - 1), 8 * height, 8 * width)
    assert float((ours - expected).abs().max()) <= 1e-4


def test_two_sets_of_buffers_take_turns_and_nothing_else_is_allocated(runtime, vae):
    _decoded(runtime, _latents(vae, 6, 8, 8))
    first, after = runtime._engines[FIRST_PLAN].runs, runtime._engines[NEXT_PLAN].runs
    assert (len(first), len(after)) == (1, 5)
    caches = [written for _, _, written in (*first, *after)]
    slots = len(decoder_slots(vae.config))
    assert len(set.union(*caches)) == 2 * slots + 2  # and one buffer of frames for either step
    for (_, read, _), earlier in zip(after, caches, strict=False):
        assert len(read & earlier) == slots


def test_a_new_size_takes_another_profile_and_other_buffers(runtime, vae):
    for height, width in ((8, 8), (4, 12), (8, 12)):
        assert torch.allclose(
            _decoded(runtime, _latents(vae, 2, height, width)), vae.decode(_latents(vae, 2, height, width)), atol=1e-4
        )
    assert [profile for profile, _, _ in runtime._engines[NEXT_PLAN].runs] == [0, 1, 2]


def test_a_size_without_a_profile_is_refused_before_anything_runs(runtime, vae):
    with pytest.raises(InvalidRequest, match=r"LATENTS is \[1, 16, 1, 20, 20\]; allowed: \[1, 16, 1, 8, 8\]"):
        runtime.step(_latents(vae, 1, 20, 20), None)


def test_every_step_is_enqueued_while_the_device_of_the_stage_is_current(runtime, vae, monkeypatch):
    current, enqueued_on = [], []

    @contextlib.contextmanager
    def on_device(device):
        current.append(device)
        yield
        current.pop()

    monkeypatch.setattr(trt_runtime, "on_device", on_device)
    for engine in runtime._engines.values():
        execute = engine.execute
        engine.execute = lambda *a, run=execute: (enqueued_on.append(current[-1:]), run(*a))
    _decoded(runtime, _latents(vae, 3, 8, 8))
    assert enqueued_on == [[runtime._device]] * 3


def test_pixels_are_those_of_the_cpu_stage(runtime, vae):
    from wan.pipeline import to_uint8

    latents = _latents(vae, 3, 8, 8)
    expected = to_uint8(vae.decode(latents)[0]).numpy()
    ours = np.concatenate(list(decode(runtime, latents[0])))
    assert ours.dtype == np.uint8
    assert np.abs(ours.astype(int) - expected).max() <= 1
    assert (ours == expected).mean() > 0.999


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 64, 64), (5, 32, 96), (17, 64, 64)])
def test_the_encoders_steps_reproduce_the_pytorch_encoder(vae, repository, frames, height, width):
    folder, slots = repository / "vae_encoder" / "1", encoder_slots(vae.config)
    engines = {FIRST_PLAN: OrtEngine(folder / "first.onnx"), NEXT_PLAN: OrtEngine(folder / "next.onnx")}
    plans = {
        f"vae_encoder/{plan}": {"profiles": [asdict(p) for p in vae_profiles(SIZES, vae.config, slots, first, True)]}
        for plan, first in ((FIRST_PLAN, True), (NEXT_PLAN, False))
    }
    described = {"encoder_cache": [[slot.channels, slot.frames, slot.scale] for slot in slots]}
    encoder = TrtVaeEncoder(
        engines, {"plans": plans, "vae": described}, Geometry(), torch.device("cpu"), cache_dtype=torch.float32
    )
    video = torch.rand(1, 3, frames, height, width, generator=torch.Generator().manual_seed(frames)) * 2 - 1
    chunks = [video[:, :, :1], *(video[:, :, i : i + 4] for i in range(1, frames, 4))]
    latents = torch.cat(list(encode(encoder, chunks)), dim=2)
    assert float((latents - vae.encode(video)).abs().max()) <= 1e-4


def test_clip_runs_on_the_shape_of_its_plan(tmp_path):
    torch.manual_seed(0)
    config = ClipConfig(dim=32, num_layers=2, num_heads=2, ffn_dim=64, patch=8, image_size=32)
    tower = ClipVision(config).eval()

    class Engine:
        def execute(self, profile, inputs, outputs, stream):
            assert profile == 0
            outputs["TOKENS"].copy_(tower(inputs["PIXELS"]))

    plans = {f"image_encoder/{CLIP_PLAN}": {"profiles": [asdict(profile) for profile in clip_profiles(config)]}}
    manifest = {"plans": plans, "clip": {"tokens": config.tokens, "dim": config.dim}}
    clip, pixels = TrtClip(Engine(), manifest, torch.device("cpu")), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert np.array_equal(clip.tokens(pixels.numpy()), tower(pixels)[0].numpy())
    with pytest.raises(InvalidRequest, match="PIXELS"):
        clip.tokens(np.zeros((1, 3, 40, 40), np.float32))
