"""Writes the DiT as a package of safetensors shards, in FP8, bfloat16 or float32, one tensor in memory at a time.

Each tensor is read (mapped from its file), dequantised if need be, merged with the LoRAs, quantised, written and dropped.
A shard that is complete is not written again, so an interrupted packaging continues where it stopped. Beside the
weights: `precision.json` (what is stored how) and `fp8_errors.json` (what quantisation cost each layer).

Tensors keep their official names, also in the Diffusers layout: readers of that layout accept both, and the package
stays readable by others that know the row-scaled format.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from export.atomic import write_json
from export.dit.formats import DitWeights
from export.dit.lora import Lora, merge
from export.dit.precision import Precision, group
from export.dit.stream import Slot, write_safetensors
from wan import fp8
from wan.checkpoint import INDEX_FILE, SETTINGS_FILE, Checkpoint

SHARD_BYTES = 1 << 30
STEM = "diffusion_pytorch_model"
PRECISION_FILE, ERRORS_FILE = "precision.json", "fp8_errors.json"
SCALE_BYTES = 4
RECIPE = "recipe"  # key of a shard's metadata
Progress = Callable[[str, int], None]  # tensor name, bytes read


class HasShapes(Protocol):
    """Weights, or what is known of them."""

    @property
    def names(self) -> Sequence[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Entry:
    """One tensor of the package: how it is stored, and how many bytes it takes."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def is_fp8(self) -> bool:
        return self.dtype == fp8.E4M3

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize + (self.shape[0] * SCALE_BYTES if self.is_fp8 else 0)


@dataclass(frozen=True)
class LayerError:
    """What quantisation did to one layer: Frobenius norm of the difference over that of the weight, and the extremes."""

    layer: str
    relative_error: float
    max_error: float
    max_weight: float


def contents(weights: HasShapes, precision: Precision | None, num_layers: int) -> list[Entry]:
    """Every tensor of the package, in order; all in float32 without a precision. Raises PrecisionError."""
    if precision is None:
        return [Entry(name, weights.shape(name), torch.float32) for name in weights.names]
    precision.check(num_layers)
    shapes = [(name, weights.shape(name)) for name in weights.names]
    return [Entry(name, shape, precision.dtype(name, shape, num_layers)) for name, shape in shapes]


def package_bytes(entries: list[Entry]) -> int:
    return sum(entry.bytes for entry in entries)


def shards(entries: list[Entry], shard_bytes: int) -> list[list[Entry]]:
    """Consecutive tensors of at most `shard_bytes` together; a larger tensor has a shard for itself."""
    groups: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if groups[-1] and size + entry.bytes > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(entry)
        size += entry.bytes
    return groups


def _slots(entry: Entry) -> list[Slot]:
    """The tensors that the package holds for one of the model's."""
    if not entry.is_fp8:
        return [Slot(entry.name, entry.dtype, entry.shape)]
    layer = entry.name.removesuffix(".weight")
    return [
        Slot(entry.name, fp8.E4M3, entry.shape),
        Slot(f"{layer}.{fp8.SCALE_SUFFIX}", torch.float32, (entry.shape[0], 1)),
    ]


def _quantised(entry: Entry, tensor: Tensor) -> tuple[Tensor, Tensor, LayerError]:
    """Values, scales, and what they cost."""
    values, scale = fp8.quantize_rows(tensor)
    difference = fp8.dequantize(values, scale).sub_(tensor)
    relative = float(difference.norm() / tensor.norm().clamp(min=torch.finfo(torch.float32).tiny))
    error = LayerError(
        entry.name.removesuffix(".weight"), relative, float(difference.abs().amax()), float(tensor.abs().amax())
    )
    return values, scale, error


def _tensors(
    entries: list[Entry], weights: DitWeights, loras: list[Lora], errors: list[LayerError], progress: Progress
) -> Iterator[Tensor]:
    """What goes into a shard, one tensor at a time; adds to `errors`."""
    for entry in entries:
        tensor = merge(loras, entry.name, weights.load(entry.name))
        if entry.is_fp8:
            values, scale, error = _quantised(entry, tensor)
            del tensor
            errors.append(error)
            yield values
            yield scale
        else:
            yield tensor.to(entry.dtype)
        progress(entry.name, prod(entry.shape))


def _errors_file(shard: Path) -> Path:
    return shard.with_name(shard.name.replace(".safetensors", ".errors.json"))


def _write_shard(
    path: Path, entries: list[Entry], weights: DitWeights, loras: list[Lora], recipe: str, progress: Progress
) -> None:
    errors: list[LayerError] = []
    slots = [slot for entry in entries for slot in _slots(entry)]
    write_safetensors(path, slots, _tensors(entries, weights, loras, errors, progress), {RECIPE: recipe})
    write_json(_errors_file(path), [asdict(error) for error in errors])


def _complete(path: Path, recipe: str) -> bool:
    """Whether an earlier run wrote this shard from the same recipe; it appears under its name only when whole."""
    if not path.is_file() or not _errors_file(path).is_file():
        return False
    with safe_open(path, framework="pt") as handle:
        return (handle.metadata() or {}).get(RECIPE) == recipe


def _errors(files: list[Path]) -> list[LayerError]:
    return [LayerError(**error) for file in files for error in json.loads(_errors_file(file).read_text())]


def report_folders(checkpoint: Checkpoint, folder: Path) -> list[Path]:
    """Where the reports about each expert lie: with the weights, where there are two."""
    names = checkpoint.dit_folders
    return [folder] if len(names) == 1 else [folder / name for name in names]


def package(
    checkpoint: Checkpoint,
    weights: DitWeights,
    folder: Path,
    precision: Precision | None,
    loras: list[Lora],
    recipe: str,
    progress: Progress = lambda name, elements: None,
    shard_bytes: int = SHARD_BYTES,
    expert: int = 0,
) -> dict:
    """Write the package of one expert to `folder`, laid out as the source is; returns the manifest's part about it.

    Shards that an earlier run wrote from the same `recipe` (a hash of all that the weights depend on) are kept.
    """
    entries = contents(weights, precision, checkpoint.dit_config().num_layers)
    target, reports = folder / checkpoint.dit_folders[expert], report_folders(checkpoint, folder)[expert]
    target.mkdir(parents=True, exist_ok=True)
    groups = shards(entries, shard_bytes)
    files = [target / f"{STEM}-{i:05d}-of-{len(groups):05d}.safetensors" for i in range(1, len(groups) + 1)]
    for file, group_entries in zip(files, groups, strict=True):
        if _complete(file, recipe):
            for entry in group_entries:
                progress(entry.name, prod(entry.shape))
        else:
            _write_shard(file, group_entries, weights, loras, recipe, progress)
    kept = {path for file in files for path in (file, _errors_file(file))}
    for stale in set(target.glob(f"{STEM}-*")) - kept:
        stale.unlink()
    _copy_settings(checkpoint, folder, expert)
    _write_index(target, files)
    described = describe(entries, weights, precision, loras)
    write_json(reports / PRECISION_FILE, described)
    write_json(reports / ERRORS_FILE, error_report(_errors(files)))
    return described | {"errors": _summary(reports)}


def _copy_settings(checkpoint: Checkpoint, folder: Path, expert: int) -> None:
    config = checkpoint.root / checkpoint.dit_folders[expert] / "config.json"
    for path in (config, *_settings(checkpoint)):
        if path.is_file():
            shutil.copyfile(path, folder / path.relative_to(checkpoint.root))


def _settings(checkpoint: Checkpoint) -> list[Path]:
    """Files beside the weights that say something of the DiT."""
    paths = [checkpoint.root / SETTINGS_FILE]
    if len(checkpoint.dit_folders) > 1:  # it holds the boundary between them
        paths.append(checkpoint.root / INDEX_FILE)
    return [path for path in paths if path.is_file()]


def _write_index(target: Path, files: list[Path]) -> None:
    where: dict[str, str] = {}
    size = 0
    for file in files:
        with safe_open(file, framework="pt") as handle:
            where |= dict.fromkeys(handle.keys(), file.name)
        size += file.stat().st_size
    write_json(target / f"{STEM}.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": where})


def describe(entries: list[Entry], weights: DitWeights, precision: Precision | None, loras: list[Lora]) -> dict:
    """What is stored how: bytes, the preset, and for each group of layers the tensors of each type."""
    groups: dict[str, Counter] = {}
    for entry in entries:
        stored = str(entry.dtype).removeprefix("torch.")
        groups.setdefault(group(entry.name), Counter())[stored] += 1
    return {
        "precision": asdict(precision) if precision else "float32",
        "source_format": weights.format,
        "bytes": package_bytes(entries),
        "groups": {name: dict(counts) for name, counts in sorted(groups.items())},
        "loras": [
            {"file": lora.path.name, "strength": lora.strength, "parameters": len(lora.parameters)} for lora in loras
        ],
    }


def error_report(errors: list[LayerError]) -> dict:
    """All layers, worst first, and the mean by kind of layer."""
    worst = sorted(errors, key=lambda error: error.relative_error, reverse=True)
    kinds: dict[str, list[float]] = {}
    for error in errors:
        kinds.setdefault(".".join(error.layer.split(".")[2:]), []).append(error.relative_error)
    means = {kind: sum(values) / len(values) for kind, values in sorted(kinds.items())}
    return {"mean_relative_error_by_kind": means, "layers": [asdict(error) for error in worst]}


def _summary(folder: Path) -> dict | None:
    report = json.loads((folder / ERRORS_FILE).read_text())
    if not report["layers"]:
        return None
    mean = sum(layer["relative_error"] for layer in report["layers"]) / len(report["layers"])
    return {"layers": len(report["layers"]), "mean_relative_error": mean, "worst": report["layers"][:5]}


def dit_files(checkpoint: Checkpoint) -> list[Path]:
    """Weights, index and configuration of the DiT, and the checkpoint's own settings."""
    each = [checkpoint.dit_tensors(expert).files for expert in range(len(checkpoint.dit_folders))]
    beside = [path for weights in each for path in sorted(weights[0].parent.glob("*.json"))]
    return list(dict.fromkeys([*(file for weights in each for file in weights), *beside, *_settings(checkpoint)]))


def copy_dit(checkpoint: Checkpoint, folder: Path) -> None:
    """Copy, never link: a training run that overwrites its checkpoint must not change a server's weights."""
    for source in dit_files(checkpoint):
        target = folder / source.relative_to(checkpoint.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
