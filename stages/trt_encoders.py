"""The encoders of pictures on a GPU with TensorRT: the VAE's steps from frames to latents, and CLIP."""

import numpy as np
import torch
from torch import Tensor

from stages.artifacts import Artifacts
from stages.device import on_device
from stages.trt_plans import profile_index
from stages.trt_runtime import FIRST_PLAN, NEXT_PLAN, TrtEngine, TrtVae, checked_tensorrt, open_engines, stream_of

CLIP_PLAN = "model.plan"


class TrtVaeEncoder(TrtVae):
    """`VaeRuntime` from frames to latents. The latents, which are small, come to the host after each step."""

    model, taken, made, cache_entry = "vae_encoder", "FRAMES", "LATENTS", "encoder_cache"

    def _shape(self, frames: int, height: int, width: int) -> tuple[int, ...]:
        return 1, self._geometry.latent_channels, 1, height, width

    def _latent_size(self, taken: Tensor) -> tuple[int, int]:
        stride = self._geometry.spatial_stride
        return taken.shape[3] // stride, taken.shape[4] // stride

    def step(self, taken: np.ndarray | Tensor, cache: int | None) -> tuple[Tensor, int]:
        latents, cache = super().step(taken, cache)
        return latents.to("cpu", copy=True), cache


class TrtClip:
    """`ClipRuntime` over a plan."""

    def __init__(self, engine: TrtEngine, manifest: dict, device: torch.device):
        self._engine, self._device, self._clip = engine, device, manifest["clip"]
        self._plan = manifest["plans"][f"image_encoder/{CLIP_PLAN}"]

    def tokens(self, pixels: np.ndarray) -> np.ndarray:
        with on_device(self._device):
            given = {"PIXELS": torch.from_numpy(pixels).to(self._device)}
            tokens = torch.empty(1, self._clip["tokens"], self._clip["dim"], device=self._device)
            profile = profile_index(self._plan, {name: tuple(tensor.shape) for name, tensor in given.items()})
            self._engine.execute(profile, given, {"TOKENS": tokens}, stream_of(self._device))
            return tokens[0].cpu().numpy()


def open_trt_vae_encoder(artifacts: Artifacts) -> TrtVaeEncoder:
    """That of a GPU repository; raises ArtifactError if any plan in it was not made for this machine."""
    trt, device = checked_tensorrt(artifacts, "vae_encoder"), torch.device(str(artifacts.device))
    engines = open_engines(trt, artifacts, "vae_encoder", (FIRST_PLAN, NEXT_PLAN))
    return TrtVaeEncoder(engines, artifacts.manifest, artifacts.card.geometry, device)


def open_trt_clip(artifacts: Artifacts) -> TrtClip:
    """That of a GPU repository; raises ArtifactError if any plan in it was not made for this machine."""
    trt, device = checked_tensorrt(artifacts, "image_encoder"), torch.device(str(artifacts.device))
    engines = open_engines(trt, artifacts, "image_encoder", (CLIP_PLAN,))
    return TrtClip(engines[CLIP_PLAN], artifacts.manifest, device)
