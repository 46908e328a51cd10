"""The VAE as pairs of step graphs: latents to frames, one latent frame at a time, and frames to latents.

A runtime knows how to run one step: latent frame and cache in, frames and new cache out, or the other way round. `decode`
and `encode` drive it. ONNX Runtime is the runtime of a machine without a GPU.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
import torch

FIRST, NEXT = "first.onnx", "next.onnx"
CACHE_PREFIX = "CACHE_"


def cache_input(slot: int) -> str:
    return f"{CACHE_PREFIX}{slot:02d}"


def cache_output(slot: int) -> str:
    return f"NEXT_{CACHE_PREFIX}{slot:02d}"


class VaeSteps(Protocol):
    """Runs one step of either direction; the cache is opaque to the caller."""

    def step(self, taken: np.ndarray, cache: Any) -> tuple[Any, Any]:
        """Latents float32 [1, z, 1, h, w] and the cache of the step before (None: first) to frames in [-1, 1]
        [1, 3, n, H, W] and the new cache, or such frames to latents."""


class VaeRuntime(VaeSteps, Protocol):
    """The direction that makes frames."""

    def pixels(self, frames) -> np.ndarray:
        """Frames that `step` returned to uint8 [n, H, W, 3] on the host."""


class ClipRuntime(Protocol):
    """Runs CLIP, one picture at a time."""

    def tokens(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels float32 [1, 3, S, S] as `wan.pictures.clip_pixels` makes them to tokens [L, dim]."""


class OnnxClip:
    """CLIP under ONNX Runtime on a CPU."""

    def __init__(self, path: Path, threads: int):
        self._session = onnx_session(path, threads)

    def tokens(self, pixels: np.ndarray) -> np.ndarray:
        return self._session.run(["TOKENS"], {"PIXELS": pixels})[0][0]


class OnnxVae:
    """The step graphs under ONNX Runtime on a CPU; the cache never leaves the runtime's memory."""

    def __init__(self, folder: Path, threads: int):
        self._sessions = {name: onnx_session(folder / name, threads) for name in (FIRST, NEXT)}
        (self._taken,) = (i.name for i in self._sessions[FIRST].get_inputs())  # LATENTS, or FRAMES of the encoder
        self._inputs = [i.name for i in self._sessions[NEXT].get_inputs() if i.name != self._taken]
        self._outputs = [o.name for o in self._sessions[NEXT].get_outputs()]

    def step(self, taken: np.ndarray, cache: list | None) -> tuple[np.ndarray, list]:
        feed = {self._taken: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(taken))}
        if cache is not None:
            feed |= dict(zip(self._inputs, cache, strict=True))
        session = self._sessions[FIRST if cache is None else NEXT]
        frames, *new_cache = session.run_with_ort_values(self._outputs, feed)
        return frames.numpy(), new_cache

    def pixels(self, frames: np.ndarray) -> np.ndarray:
        return to_pixels(frames)


def onnx_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that spin between calls would take the cores from the stage that runs next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def to_pixels(frames: np.ndarray) -> np.ndarray:
    """Frames in [-1, 1] [1, 3, n, H, W] to uint8 [n, H, W, 3], rounded to the nearest."""
    scaled = (frames[0] + np.float32(1)) * np.float32(127.5)
    return np.rint(scaled, out=scaled).clip(0, 255).astype(np.uint8).transpose(1, 2, 3, 0)


def encode(runtime: VaeSteps, chunks: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield the latents [1, z, 1, h, w] of each chunk of frames: the first one, then as many as a latent frame stands for."""
    cache = None
    for chunk in chunks:
        latents, cache = runtime.step(chunk.numpy(), cache)
        yield torch.as_tensor(latents)


def decode(runtime: VaeRuntime, latents: Any) -> Iterator[np.ndarray]:
    """Yield the frames uint8 [1 or 4, H, W, 3] of each latent frame of [z, T, h, w]."""
    cache = None
    for t in range(latents.shape[1]):
        frames, cache = runtime.step(latents[None, :, t : t + 1], cache)
        yield runtime.pixels(frames)
