"""Reads DiT weights whatever they are stored in: float32, bfloat16, float16, or one of the FP8 formats found in the wild.

    format         weight scale                              told by
    float          none                                      no FP8 tensor
    rows           X.weight_scale [out, 1]                   LightX2V, and our own packages
    comfy          X.weight_scale, one value                 ComfyUI since 2025; X.comfy_quant or metadata name the format
    comfy-legacy   X.scale_weight, one value                 ComfyUI before, Kijai; usually a tensor `scaled_fp8`
    plain          none, the weights were only cast          FP8 tensors without any scale

A weight is always its stored value times its scale. Scales of activations (`scale_input`, `input_scale`) are not used:
ours are found per token at run time. What fits none of these is refused, naming the tensor.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from wan import keys
from wan.checkpoint import Checkpoint
from wan.errors import CheckpointError, UnsupportedCheckpoint
from wan.tensor_files import TensorFiles

FP8_TYPES = {"F8_E4M3", "F8_E5M2", torch.float8_e4m3fn, torch.float8_e5m2}
FLOAT_TYPES = {"F32", "F16", "BF16", torch.float32, torch.float16, torch.bfloat16}
ROW_SCALE, TENSOR_SCALE = ".weight_scale", ".scale_weight"
ACTIVATION_SCALES = (".scale_input", ".input_scale")
LAYER_FORMAT = ".comfy_quant"
MARKER = "scaled_fp8"
COMFY_FORMATS = ("float8_e4m3fn", "float8_e5m2")
COMFY_METADATA = "_quantization_metadata"


def _source(tensors: TensorFiles) -> Path:
    return tensors.files[0]


def _scale_of(tensors: TensorFiles, weight: str) -> str | None:
    """The name of a weight's scale; raises UnsupportedCheckpoint if it has two."""
    base = weight.removesuffix(".weight")
    found = [base + suffix for suffix in (ROW_SCALE, TENSOR_SCALE) if base + suffix in tensors]
    if len(found) > 1:
        raise UnsupportedCheckpoint(f"{_source(tensors)}: {weight} has two scales, {found[0]} and {found[1]}")
    return found[0] if found else None


def _kind(tensors: TensorFiles, weight: str) -> str:
    """The format of one FP8 weight."""
    scale = _scale_of(tensors, weight)
    if scale is None:
        return "plain"
    shape = tensors.shape(scale)
    if scale.endswith(ROW_SCALE) and shape == (tensors.shape(weight)[0], 1) and shape != (1, 1):
        return "rows"
    if prod(shape) == 1:
        return "comfy" if scale.endswith(ROW_SCALE) else "comfy-legacy"
    allowed = f"one value, or {[tensors.shape(weight)[0], 1]} for .weight_scale"
    raise UnsupportedCheckpoint(f"{_source(tensors)}: {scale} has shape {list(shape)}; allowed: {allowed}")


def detect(tensors: TensorFiles) -> str:
    """The format's name from the table above; raises UnsupportedCheckpoint for anything else."""
    file = _source(tensors)
    types = {name: tensors.dtype(name) for name in tensors.names}
    auxiliary = (ROW_SCALE, TENSOR_SCALE, *ACTIVATION_SCALES, LAYER_FORMAT)
    for name, dtype in sorted(types.items()):
        if name != MARKER and not name.endswith(auxiliary) and dtype not in FP8_TYPES | FLOAT_TYPES:
            raise UnsupportedCheckpoint(f"{file}: {name} has dtype {dtype}; allowed: float32, float16, bfloat16, FP8")
    weights = sorted(n for n, dtype in types.items() if dtype in FP8_TYPES and n != MARKER)
    if foreign := [n for n in weights if not n.endswith(".weight")]:
        raise UnsupportedCheckpoint(f"{file}: {foreign[0]} is FP8; allowed: tensors named .weight")
    _check_scales(tensors, set(weights))
    _check_comfy_formats(tensors)
    if not weights:
        return "float"
    kinds = {_kind(tensors, name): name for name in weights}
    if len(kinds) > 1:
        examples = ", ".join(f"{name} is {kind}" for kind, name in sorted(kinds.items()))
        raise UnsupportedCheckpoint(f"{file}: FP8 formats are mixed: {examples}")
    kind = next(iter(kinds))
    if kind == "plain" and MARKER in tensors:
        raise UnsupportedCheckpoint(f"{file}: {MARKER} is there but {weights[0]} has no scale")
    return kind


def _check_scales(tensors: TensorFiles, weights: set[str]) -> None:
    for name in sorted(tensors.names):
        for suffix in (ROW_SCALE, TENSOR_SCALE, *ACTIVATION_SCALES):
            if name.endswith(suffix) and name.removesuffix(suffix) + ".weight" not in weights:
                raise UnsupportedCheckpoint(f"{_source(tensors)}: {name} belongs to no FP8 weight")


def _check_comfy_formats(tensors: TensorFiles) -> None:
    """Refuse layers whose ComfyUI description names another format (nvfp4, int8, ...)."""
    formats = {}
    for name in (n for n in tensors.names if n.endswith(LAYER_FORMAT)):
        try:
            formats[name] = json.loads(bytes(tensors.load(name).tolist()))["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise UnsupportedCheckpoint(
                f"{_source(tensors)}: {name} is not a description of a format: {error!r}"
            ) from error
    for file in tensors.files:
        if file.suffix != ".safetensors":
            continue
        with safe_open(file, framework="pt") as handle:
            metadata = json.loads((handle.metadata() or {}).get(COMFY_METADATA, "{}"))
        formats |= {name: layer.get("format") for name, layer in metadata.get("layers", {}).items()}
    for name, found in sorted(formats.items()):
        if found not in COMFY_FORMATS:
            raise UnsupportedCheckpoint(
                f"{_source(tensors)}: {name} has format {found!r}; allowed: {', '.join(COMFY_FORMATS)}"
            )


@dataclass(frozen=True)
class DitWeights:
    """The DiT's tensors under their official names, in floating point whatever they are stored in."""

    tensors: TensorFiles

    @cached_property
    def format(self) -> str:
        return detect(self.tensors)

    def check(self) -> None:
        """Raises UnsupportedCheckpoint for a format that is not known."""
        _ = self.format

    @cached_property
    def names(self) -> list[str]:
        """Names of the weights themselves, without scales and markers, in a fixed order."""
        extra = (ROW_SCALE, TENSOR_SCALE, *ACTIVATION_SCALES, LAYER_FORMAT)
        return sorted(name for name in self.tensors.names if name != MARKER and not name.endswith(extra))

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors.shape(name)

    def load(self, name: str) -> Tensor:
        """The tensor in float32."""
        tensor = self.tensors.load(name)
        if self.format == "float" or tensor.dtype.itemsize > 1:
            return tensor.float()
        scale = _scale_of(self.tensors, name)
        return tensor.float() if scale is None else tensor.float() * self.tensors.load(scale).float()


def with_dit(checkpoint: Checkpoint, dits: Sequence[Path]) -> Checkpoint:
    """The checkpoint with the DiTs of these files or directories in the place of its own, one for each expert, if given."""
    if not dits:
        return checkpoint
    if len(dits) != (experts := len(checkpoint.dit_folders)):
        raise CheckpointError(f"{checkpoint.root}: {len(dits)} DiTs were given; allowed: {experts}, high noise first")
    tensors = [_tensors(dit) for dit in dits]
    replaced = copy.copy(checkpoint)
    replaced.dit_tensors = lambda expert=0: tensors[expert]  # type: ignore[method-assign]
    return replaced


def _tensors(dit: Path) -> TensorFiles:
    files = [dit] if dit.is_file() else sorted(dit.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{dit}: neither a file nor a directory with .safetensors files")
    return TensorFiles([file.resolve() for file in files], keys.dit_from_diffusers)  # official names stay as they are
