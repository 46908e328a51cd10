"""Reading checkpoints in the official Wan layout and in the Diffusers layout.

Tensors are read one by one into modules that were built without storage, so that no weight exists twice. Architecture
is taken from names and shapes of the tensors; a name that is missing, left over or of another shape is an error.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from contract import lora_keys
from contract.card import ModelCard
from contract.errors import InvalidCard
from contract.variants import Variant
from wan import clip, fp8, keys, magcache, teacache
from wan.clip import ClipVision
from wan.config import ClipConfig, DiTConfig, TextConfig, VAEConfig, geometry
from wan.dit import WanDiT
from wan.errors import CheckpointError
from wan.magcache import MagCacheModel
from wan.sizes import build_umt5, dit_config, text_config, vae_config
from wan.structure import check_alike, served_variant
from wan.teacache import StepCache, TeaCacheModel
from wan.tensor_files import TensorFiles
from wan.text import TextEncoder
from wan.vae import WanVAE
from wan.vae22 import build_vae

# Kept in float32 whatever the dtype asked for: the reference runs them so, and they are a thousandth of the weights.
FLOAT32_PARTS = re.compile(r"(^|\.)(time_embedding|time_projection|img_emb|modulation|norm3|head|weight_scale)(\.|$)")
SETTINGS_FILE, INDEX_FILE = "wan.json", "model_index.json"
EXPERT_FOLDERS = ("high_noise_model", "low_noise_model")
# entry of wan.json -> its model and the published one of (variant, expert)
CACHES: dict[str, tuple[Callable[..., StepCache], Callable[..., StepCache | None]]] = {
    "teacache": (TeaCacheModel, teacache.official),
    "magcache": (MagCacheModel, magcache.official),
}


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error


def fill(
    module: nn.Module, tensors: TensorFiles, device=None, dtype=None, ignore: frozenset[str] = frozenset()
) -> None:
    """Put `tensors` into `module`, whose parameters have no storage yet, cast to `dtype` on `device`."""
    wanted = {name: tuple(p.shape) for name, p in module.named_parameters()}
    where = tensors.files[0].parent
    if missing := sorted(wanted.keys() - tensors.names):
        raise CheckpointError(f"{where}: {len(missing)} tensors are missing: {', '.join(missing[:5])}")
    if extra := sorted(tensors.names - wanted.keys() - ignore):
        raise CheckpointError(f"{where}: {len(extra)} unknown tensors: {', '.join(extra[:5])}")
    for name, shape in wanted.items():
        if tensors.shape(name) != shape:
            raise CheckpointError(
                f"{where}: tensor {name} has shape {list(tensors.shape(name))}, expected {list(shape)}"
            )
    for name in wanted:
        tensor = tensors.load(name)
        if not tensor.is_floating_point():
            raise CheckpointError(f"{where}: tensor {name} has dtype {tensor.dtype}, expected a floating-point type")
        kept = torch.float32 if FLOAT32_PARTS.search(name) and isinstance(module, WanDiT) else dtype or torch.float32
        owner, _, leaf = name.rpartition(".")
        stored_in_bytes = getattr(module.get_submodule(owner), leaf).dtype.itemsize == 1
        if stored_in_bytes != (tensor.dtype.itemsize == 1):
            raise CheckpointError(
                f"{where}: tensor {name} has dtype {tensor.dtype}; package FP8 checkpoints with python -m export"
            )
        if stored_in_bytes:
            kept = tensor.dtype
        value = tensor.to(device=device or "cpu", dtype=kept, copy=False)
        setattr(module.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))
    module.eval()


def weight_shapes(config: DiTConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a DiT's parameters, whatever they are stored in."""
    with torch.device("meta"):
        return {name: tuple(parameter.shape) for name, parameter in WanDiT(config).named_parameters()}


class Checkpoint(ABC):
    """A checkpoint on disk. `root` holds the components; `settings` are those of its optional wan.json.

    wan.json: what `contract.card` reads, and {"teacache": {"coefficients": [...], "retention": false}, "magcache": {"ratios":
    [...]}}, which `python -m wan.calibrate` writes; a list of them for two experts, whose "boundary" it may say too. In the
    Diffusers layout, {"base": "../other"} names the checkpoint that has the components which are not here.
    """

    grid: str  # which sigma grid the layout's reference implementation uses

    def __init__(self, root: Path):
        self.root = root
        self.settings = _read_json(root / SETTINGS_FILE)
        said = self.settings.get("base")
        self.base = (root / str(said)).resolve() if said else None

    @staticmethod
    def open(path: str | Path) -> "Checkpoint":
        """Recognise the layout of the directory `path`. Raises CheckpointError if there is none."""
        root = Path(path)
        if not root.is_dir():
            raise CheckpointError(f"checkpoint {root} is not a directory")
        if any((root / part).is_dir() for part in ("transformer", "vae", "text_encoder")):
            return DiffusersCheckpoint(root)
        if (
            any((root / folder).is_dir() for folder in EXPERT_FOLDERS)
            or list(root.glob("*.safetensors"))
            or list(root.glob("*.pth"))
        ):
            return OfficialCheckpoint(root)
        raise CheckpointError(
            f"{root}: no Wan checkpoint here. Expected the Diffusers layout (transformer/, vae/, text_encoder/) "
            "or the official one (diffusion_pytorch_model*.safetensors, Wan2.1_VAE.pth, models_t5_umt5-xxl-enc-bf16.pth)"
        )

    @property
    @abstractmethod
    def dit_folders(self) -> tuple[str, ...]:
        """Under `root`, where each expert's DiT lies; that of the highest noise first."""

    @abstractmethod
    def dit_tensors(self, expert: int = 0) -> TensorFiles: ...

    @property
    def boundary(self) -> float | None:
        """Share of the timesteps from which on the first of two experts answers; None for a single DiT."""
        return self.settings.get("boundary", self.variant.boundary)

    @abstractmethod
    def vae_tensors(self) -> TensorFiles: ...

    @abstractmethod
    def text_tensors(self) -> TensorFiles: ...

    @abstractmethod
    def clip_tensors(self) -> TensorFiles: ...

    @property
    @abstractmethod
    def tokenizer_directory(self) -> Path: ...

    @abstractmethod
    def dit_config(self) -> DiTConfig: ...

    @abstractmethod
    def vae_config(self) -> VAEConfig: ...

    @abstractmethod
    def clip_config(self) -> ClipConfig: ...

    def text_config(self) -> TextConfig:
        return text_config(self.text_tensors())

    @cached_property
    def variant(self) -> Variant:
        """The row of the family: the one that wan.json names, else the first that fits. Raises UnsupportedCheckpoint."""
        tensors = [self.dit_tensors(expert) for expert in range(len(self.dit_folders))]
        for other in tensors[1:]:
            check_alike(tensors[0], other)
        return served_variant(tensors[0], self.settings.get("variant"), len(tensors))

    @cached_property
    def card(self) -> ModelCard:
        """What callers need to know; defaults: wan.json, else the official recommendation for the variant."""
        config = self.dit_config()
        found = {"variant": self.variant.name, "geometry": asdict(geometry(config, self.vae_config()))}
        said = self.settings.get("geometry", found["geometry"])
        if said != found["geometry"]:
            raise CheckpointError(
                f"{self.root / SETTINGS_FILE}: geometry is {said}; its tensors have {found['geometry']}"
            )
        try:
            weights = {"weights": lora_keys.folded(weight_shapes(config))}
            return ModelCard.from_dict(self.settings | found | weights, str(self.root / SETTINGS_FILE))
        except InvalidCard as error:
            raise CheckpointError(str(error)) from None

    @property
    def caches(self) -> tuple[dict[str, StepCache], ...]:
        """For each expert the step caches it is calibrated for, by name: as wan.json says, else as published."""
        found: tuple[dict[str, StepCache], ...] = tuple({} for _ in self.dit_folders)
        for name, (model, official) in CACHES.items():
            said = self.settings.get(name)
            entries: list[dict] = said if isinstance(said, list) else [] if said is None else [said]
            if entries and len(entries) != len(found):
                raise CheckpointError(
                    f"{self.root / SETTINGS_FILE}: {name} has {len(entries)} entries; allowed: {len(found)}, one for each DiT"
                )
            for expert, known in enumerate(found):
                cache = model(**entries[expert]) if entries else official(self.variant.name, expert=expert)
                if cache is not None:
                    known[name] = cache
        return found

    def load_dit(self, device=None, dtype: torch.dtype | None = None, expert: int = 0) -> WanDiT:
        """The DiT of an expert, whose files may hold FP8 layers (`X.weight` E4M3, `X.weight_scale` [out, 1]) beside ordinary ones."""
        _, tensors = self.variant, self.dit_tensors(expert)
        with torch.device("meta"):
            module = WanDiT(self.dit_config())
        suffix = "." + fp8.SCALE_SUFFIX
        quantised = sorted(name.removesuffix(suffix) for name in tensors.names if name.endswith(suffix))
        known = {name for name, _ in module.named_modules()}
        if unknown := [name for name in quantised if name not in known]:
            raise CheckpointError(f"{self.root}: scales of unknown layers: {', '.join(unknown[:5])}")
        fp8.swap_linears(module, quantised)
        fill(module, tensors, device, dtype)
        return module

    def load_vae(self, device=None, dtype=None) -> WanVAE:
        config = self.vae_config()
        with torch.device("meta"):
            module = build_vae(config)
        fill(module, self.vae_tensors(), device, dtype)
        return module.channels_last()

    def load_clip(self, device=None, dtype=None) -> ClipVision:
        """CLIP's image tower, of a checkpoint whose DiT takes picture tokens."""
        tensors = self.clip_tensors()
        with torch.device("meta"):
            module = ClipVision(self.clip_config())
        fill(module, tensors, device, dtype, ignore=clip.unused(tensors))
        return module

    def load_text_encoder(self, device=None, dtype=None) -> TextEncoder:
        tensors = self.text_tensors()
        with torch.device("meta"):
            module: Any = build_umt5(text_config(tensors))
        fill(module, tensors, device, dtype, ignore=frozenset({"encoder.embed_tokens.weight"}))
        module.encoder.set_input_embeddings(module.shared)
        return TextEncoder(module)


class DiffusersCheckpoint(Checkpoint):
    grid = "diffusers"

    def _folder(self, name: str) -> Path:
        """Of a component: here or, if it is not, in the checkpoint that wan.json calls the base."""
        places = [place for place in (self.root, self.base) if place]
        for place in places:
            if (place / name).is_dir():
                return place / name
        raise CheckpointError(f"{' and its base '.join(map(str, places))} has no {name}/")

    def _config(self, name: str) -> dict:
        return _read_json(self._folder(name) / "config.json")

    def _component(self, name: str, stem: str, rename: Callable[[str], str] = lambda key: key) -> TensorFiles:
        directory = self._folder(name)
        return TensorFiles(_shards(directory, stem), rename)

    @property
    def dit_folders(self) -> tuple[str, ...]:
        # In Diffusers, the second one is for low noise. VideoX-Fun means the other by this name, in files of official layout.
        second = (self.root / "transformer_2").is_dir()
        return ("transformer", "transformer_2") if second else ("transformer",)

    @property
    def boundary(self) -> float | None:
        stored = _read_json(self.root / INDEX_FILE).get("boundary_ratio")
        found = self.settings.get("boundary", stored)
        if found is None and len(self.dit_folders) > 1:
            raise CheckpointError(
                f"{self.root / INDEX_FILE}: boundary_ratio is missing; it says when transformer_2 takes over"
            )
        return found

    def dit_tensors(self, expert: int = 0) -> TensorFiles:
        return self._component(self.dit_folders[expert], "diffusion_pytorch_model", keys.dit_from_diffusers)

    def vae_tensors(self) -> TensorFiles:
        stored = self._config("vae")
        rename = keys.vae_from_diffusers(stored.get("num_res_blocks", 2), stored.get("is_residual", False))
        return self._component("vae", "diffusion_pytorch_model", rename)

    def text_tensors(self) -> TensorFiles:
        return self._component("text_encoder", "model")

    def clip_tensors(self) -> TensorFiles:
        return self._component("image_encoder", "model", clip.from_transformers)

    def clip_config(self) -> ClipConfig:
        heads = self._config("image_encoder").get("num_attention_heads")
        return clip.config(self.clip_tensors(), heads)

    @property
    def tokenizer_directory(self) -> Path:
        return self._folder("tokenizer")

    def dit_config(self) -> DiTConfig:
        heads = _read_json(self.root / "transformer" / "config.json").get("num_attention_heads")
        return dit_config(self.dit_tensors(), heads)

    def vae_config(self) -> VAEConfig:
        stored = self._config("vae")
        return vae_config(self.vae_tensors(), stored.get("latents_mean"), stored.get("latents_std"))


class OfficialCheckpoint(Checkpoint):
    grid = "wan"

    def _single(self, pattern: str, what: str) -> list[Path]:
        files = sorted(self.root.glob(pattern))
        if len(files) != 1:
            found = ", ".join(f.name for f in files) or "none"
            raise CheckpointError(f"{self.root}: expected one {what} file {pattern}, found {found}")
        return files

    @property
    def dit_folders(self) -> tuple[str, ...]:
        two = any((self.root / folder).is_dir() for folder in EXPERT_FOLDERS)
        return EXPERT_FOLDERS if two else ("",)

    def dit_tensors(self, expert: int = 0) -> TensorFiles:
        return TensorFiles(_shards(self.root / self.dit_folders[expert], "diffusion_pytorch_model"))

    def vae_tensors(self) -> TensorFiles:
        return TensorFiles(self._single("*VAE*.pth", "VAE"))

    def text_tensors(self) -> TensorFiles:
        return TensorFiles(self._single("models_t5*.pth", "text encoder"), keys.umt5_from_official)

    def clip_tensors(self) -> TensorFiles:
        return clip.separate(TensorFiles(self._single("models_clip*.pth", "image encoder"), clip.from_official))

    def clip_config(self) -> ClipConfig:
        return clip.config(self.clip_tensors())

    @property
    def tokenizer_directory(self) -> Path:
        return self.root / "google" / "umt5-xxl"

    def dit_config(self) -> DiTConfig:
        stored = _read_json(self.root / self.dit_folders[0] / "config.json")
        return dit_config(self.dit_tensors(), stored.get("num_heads"))

    def vae_config(self) -> VAEConfig:
        return vae_config(self.vae_tensors(), **self.settings.get("vae", {}))


def _shards(directory: Path, stem: str) -> list[Path]:
    """The safetensors files that the index names, or the single file without an index."""
    index = directory / f"{stem}.safetensors.index.json"
    if index.is_file():
        names = sorted(set(_read_json(index).get("weight_map", {}).values()))
        if not names or any("/" in name for name in names):
            raise CheckpointError(f"{index}: weight_map names no files beside it")
        return [directory / name for name in names]
    single = directory / f"{stem}.safetensors"
    if not single.is_file():
        raise CheckpointError(f"{directory}: neither {single.name} nor {index.name} is there")
    return [single]
