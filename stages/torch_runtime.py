"""Text encoder, CLIP and VAE in PyTorch, for a machine whose GPU has no TensorRT plans (or, the same code, its CPU)."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wan.checkpoint import Checkpoint
from wan.errors import InvalidRequest
from wan.pipeline import default_dtype, to_uint8
from wan.vae_cpu import accelerate


def _to(layer: Any, device: torch.device) -> None:
    """Give `layer` copies of its weights on `device`; those of the host stay where they are."""
    layer.on_host = {name: parameter.data for name, parameter in layer.named_parameters()}
    for parameter in layer.parameters():
        parameter.data = parameter.data.to(device, non_blocking=True)


def _back(layer: Any) -> None:
    for name, parameter in layer.named_parameters():
        parameter.data = layer.on_host[name]


def stream_layers(layers: nn.ModuleList, device: torch.device) -> None:
    """Keep the weights of `layers` on the host and bring each layer's to `device` for as long as it computes."""
    for layer in layers:
        if device.type == "cuda":
            for parameter in layer.parameters():
                parameter.data = parameter.data.pin_memory()
        layer.register_forward_pre_hook(lambda module, _: _to(module, device))
        layer.register_forward_hook(lambda module, *_: _back(module))


class TorchTextEncoder:
    """`TextRuntime` on a device; with `streamed` its layers' weights stay on the host, 11 GB for umT5-xxl."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, streamed: bool = False):
        self._device = device
        dtype = default_dtype(device)
        self._encoder: Any = checkpoint.load_text_encoder("cpu" if streamed else device, dtype)
        if streamed:
            stack: Any = self._encoder.encoder.encoder
            stream_layers(stack.block, device)
            for name, part in stack.named_children():
                if name != "block":
                    part.to(device)

    def encode(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        vocabulary = self._encoder.encoder.config.vocab_size
        if ids.max() >= vocabulary:  # on a GPU it would end every later call as well
            raise InvalidRequest("IDS", int(ids.max()), "token ids of the model's vocabulary")
        columns = slice(0, int(mask.sum()))
        with torch.inference_mode():
            given = (torch.from_numpy(np.ascontiguousarray(x[:, columns])).to(self._device) for x in (ids, mask))
            hidden = self._encoder(*given).float().cpu().numpy()
        return np.pad(hidden, ((0, 0), (0, ids.shape[1] - hidden.shape[1]), (0, 0)))


class TorchClip:
    """`ClipRuntime` in float32, as the reference."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device):
        self._device, self._clip = device, checkpoint.load_clip(device, torch.float32)

    @torch.inference_mode()
    def tokens(self, pixels: np.ndarray) -> np.ndarray:
        return self._clip(torch.from_numpy(pixels).to(self._device))[0].cpu().numpy()


class TorchVaeEncoder:
    """The other direction of `TorchVae`: frames to latents."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device):
        self._device = device
        self._vae = accelerate(checkpoint.load_vae(device, torch.float32))

    @torch.inference_mode()
    def step(self, taken: np.ndarray | Tensor, cache: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        latents, cache = self._vae.encode_step(torch.as_tensor(taken).to(self._device, torch.float32), cache)
        return latents.cpu(), cache


class TorchVae:
    """`VaeRuntime` in float32, as the reference; the cache stays on the device."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device):
        self._device = device
        self._vae = accelerate(checkpoint.load_vae(device, torch.float32))

    @torch.inference_mode()
    def step(self, taken: np.ndarray | Tensor, cache: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        latents = torch.as_tensor(taken).to(self._device, torch.float32)
        return self._vae.decode_step(latents, cache, consume=True)

    @staticmethod
    @torch.inference_mode()
    def pixels(frames: Tensor) -> np.ndarray:
        return to_uint8(frames[0]).cpu().numpy()  # bytes before the copy to the host
