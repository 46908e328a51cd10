"""The VAE on a GPU with TensorRT, in either direction: the step graphs as engines, the feature cache in two sets of GPU buffers.

A step reads one set and writes the other, then they change roles, so that nothing of the cache is copied or leaves the
GPU. The buffers are plain torch tensors whose addresses the engine is given; both run on torch's current stream.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from contract.geometry import Geometry
from stages.artifacts import ArtifactError, Artifacts
from stages.device import on_device
from stages.trt_plans import check_content, check_plan, profile_index

FIRST_PLAN, NEXT_PLAN = "first.plan", "next.plan"


class EngineError(Exception):
    """TensorRT could not load or run an engine."""


def import_tensorrt():
    """The TensorRT Python module: the full package, or the bindings alone over the libraries of the image."""
    try:
        import tensorrt
    except ImportError:
        import tensorrt_bindings as tensorrt
    return tensorrt


class TrtEngine:
    """One plan with one execution context for each profile that is used."""

    def __init__(self, trt, path: Path, weight_streaming: float | None = None):
        """`weight_streaming` is the share of the streamable weights that stays on the GPU, if the plan allows it."""
        self._trt, self._path = trt, path
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        self._runtime.engine_host_code_allowed = True  # a version-compatible plan carries its own runtime
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise EngineError(f"TensorRT cannot load {path}; its messages are in the log")
        if weight_streaming is not None:  # before any context exists
            self._engine.weight_streaming_budget_v2 = int(weight_streaming * self._engine.streamable_weights_size)
        self._contexts: dict[int, object] = {}

    def _context(self, profile: int, stream: int):
        if profile not in self._contexts:
            # Memory for the activations of the profile in use, not of the largest one.
            strategy = self._trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
            context = self._engine.create_execution_context(strategy)
            if context is None or not context.set_optimization_profile_async(profile, stream):
                raise EngineError(f"TensorRT has no memory for profile {profile} of {self._path}")
            self._contexts = {profile: context}  # one at a time: each holds its activations
        return self._contexts[profile]

    def execute(self, profile: int, inputs: dict[str, Tensor], outputs: dict[str, Tensor], stream: int) -> None:
        """Run on `stream`; the tensors are contiguous, on the GPU, and live until the stream has passed."""
        context = self._context(profile, stream)
        for name, tensor in inputs.items():
            if not context.set_input_shape(name, tuple(tensor.shape)):
                raise EngineError(f"{self._path}: {name} cannot have shape {list(tensor.shape)}")
        for name, tensor in (*inputs.items(), *outputs.items()):
            if not context.set_tensor_address(name, tensor.data_ptr()):
                raise EngineError(f"{self._path} has no tensor {name}")
        if not context.execute_async_v3(stream):
            raise EngineError(f"{self._path}: execution failed; TensorRT's messages are in the log")


def stream_of(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


class TrtVae:
    """`VaeRuntime` over a pair of engines. Frames that `step` returns are valid until the next step."""

    model, taken, made, cache_entry = "vae_decoder", "LATENTS", "FRAMES", "cache"

    def __init__(
        self,
        engines: dict[str, TrtEngine],
        manifest: dict,
        geometry: Geometry,
        device: torch.device,
        cache_dtype: torch.dtype = torch.bfloat16,
    ):
        """`manifest` is that of the repository: its `vae` names the cache slots, its `plans` the profiles."""
        self._engines, self._device, self._dtype = engines, device, cache_dtype
        self._plans = {name: manifest["plans"][f"{self.model}/{name}"] for name in (FIRST_PLAN, NEXT_PLAN)}
        self._cache, self._geometry = manifest["vae"][self.cache_entry], geometry
        self._size: tuple[int, int] | None = None

    def _allocate(self, height: int, width: int) -> None:
        """Buffers for latents of this size; those of another size are given back first."""
        if self._size == (height, width):
            return
        self._caches, self._results = [], {}
        shapes = [(1, channels, frames, height * s, width * s) for channels, frames, s in self._cache]
        empty: Callable[..., Tensor] = lambda shape, dtype: torch.empty(shape, dtype=dtype, device=self._device)  # noqa: E731
        self._caches = [[empty(shape, self._dtype) for shape in shapes] for _ in range(2)]
        for name, count in ((FIRST_PLAN, 1), (NEXT_PLAN, self._geometry.temporal_stride)):
            self._results[name] = empty(self._shape(count, height, width), torch.float32)
        self._size = (height, width)

    def _shape(self, frames: int, height: int, width: int) -> tuple[int, ...]:
        """Of what a step makes of so many frames."""
        stride = self._geometry.spatial_stride
        return 1, 3, frames, height * stride, width * stride

    def _latent_size(self, taken: Tensor) -> tuple[int, int]:
        return taken.shape[3], taken.shape[4]

    def step(self, taken: np.ndarray | Tensor, cache: int | None) -> tuple[Tensor, int]:
        """See `VaeRuntime.step`; `cache` is the number of the buffer set that holds it."""
        with on_device(self._device):
            return self._step(taken, cache)

    def _step(self, taken: np.ndarray | Tensor, cache: int | None) -> tuple[Tensor, int]:
        taken = torch.as_tensor(taken).to(self._device, torch.float32).contiguous()
        self._allocate(*self._latent_size(taken))
        name, target = (FIRST_PLAN, 0) if cache is None else (NEXT_PLAN, 1 - cache)
        inputs = {self.taken: taken}
        if cache is not None:
            inputs |= {f"CACHE_{i:02d}": slot for i, slot in enumerate(self._caches[cache])}
        outputs = {self.made: self._results[name]}
        outputs |= {f"NEXT_CACHE_{i:02d}": slot for i, slot in enumerate(self._caches[target])}
        profile = profile_index(self._plans[name], {key: tuple(tensor.shape) for key, tensor in inputs.items()})
        self._engines[name].execute(profile, inputs, outputs, stream_of(self._device))
        return self._results[name], target

    @staticmethod
    def pixels(frames: Tensor) -> np.ndarray:
        """Frames in [-1, 1] [1, 3, n, H, W] to uint8 [n, H, W, 3], rounded on the GPU; the only copy to the host."""
        scaled = frames[0].float().add(1).mul_(127.5).round_().clamp_(0, 255)
        return scaled.to(torch.uint8).permute(1, 2, 3, 0).contiguous().cpu().numpy()


class TrtTextEncoder:
    """`TextRuntime` over the plan that Triton's own backend serves."""

    def __init__(self, engine: TrtEngine, plan: dict, width: int, device: torch.device):
        self._engine, self._plan, self._width, self._device = engine, plan, width, device

    def encode(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        inputs = {name: torch.from_numpy(x).to(self._device) for name, x in (("IDS", ids), ("MASK", mask))}
        context = torch.empty(*ids.shape, self._width, device=self._device)
        profile = profile_index(self._plan, {name: tuple(tensor.shape) for name, tensor in inputs.items()})
        self._engine.execute(profile, inputs, {"CONTEXT": context}, stream_of(self._device))
        return context.cpu().numpy()


def open_trt_text_encoder(artifacts: Artifacts) -> TrtTextEncoder:
    """The encoder of a GPU repository, outside Triton."""
    manifest, device = artifacts.manifest, torch.device(artifacts.device or "cuda")
    plan = manifest["plans"]["text_encoder/model.plan"]
    with on_device(device):
        engine = TrtEngine(import_tensorrt(), artifacts["model.plan"])
    return TrtTextEncoder(engine, plan, manifest["text"]["dim"], device)


def open_trt_vae(artifacts: Artifacts, weights_on_gpu: float) -> TrtVae:
    """The decoder of a GPU repository; raises ArtifactError if any plan in it was not made for this machine.

    `weights_on_gpu` is the share of the weights that stays on the GPU, for plans that were built with weight streaming.

    The plan of the text encoder is checked here as well: Triton's own backend would only say that it cannot read it.
    """
    manifest, device = artifacts.manifest, torch.device(str(artifacts.device))
    trt = checked_tensorrt(artifacts, "vae_decoder")
    engines = open_engines(trt, artifacts, "vae_decoder", (FIRST_PLAN, NEXT_PLAN), weights_on_gpu)
    return TrtVae(engines, manifest, artifacts.card.geometry, device)


def checked_tensorrt(artifacts: Artifacts, stage: str):
    """TensorRT, if every plan of the repository was made for this machine; raises ArtifactError. `stage` asks."""
    try:
        trt = import_tensorrt()
    except ImportError as error:
        raise ArtifactError(
            f"TensorRT's Python module is missing ({error}); install tensorrt-cu12-bindings or -cu13-bindings of the version "
            "of the image's libnvinfer, without dependencies"
        ) from error
    manifest, device = artifacts.manifest, torch.device(str(artifacts.device))
    for name, plan in manifest["plans"].items():
        on = device if name.startswith(f"{stage}/") else manifest["placement"][name.split("/")[0]][0]
        check_plan(name, plan, trt.__version__, torch.cuda.get_device_capability(on), artifacts.command)
    return trt


def open_engines(
    trt, artifacts: Artifacts, stage: str, plans: tuple[str, ...], weights_on_gpu: float = 1.0
) -> dict[str, TrtEngine]:
    """The engines of a stage by the names of their plans, on its GPU; raises ArtifactError."""
    engines, described = {}, artifacts.manifest["plans"]
    with on_device(torch.device(str(artifacts.device))):
        for name in plans:
            plan = described[f"{stage}/{name}"]
            check_content(artifacts[name], plan, artifacts.command)
            streams = plan["options"]["weight_streaming"]
            engines[name] = TrtEngine(trt, artifacts[name], weights_on_gpu if streams else None)
    return engines
