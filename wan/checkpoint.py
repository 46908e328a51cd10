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
from math import prod
from pathlib import Path

import torch
from torch import nn

from contract.card import ModelCard
from contract.errors import InvalidCard
from contract.variants import BY_NAME, Structure, Variant, recognise
from wan import fp8, keys, magcache, teacache
from wan.config import VAE21_MEAN, VAE21_STD, DiTConfig, TextConfig, VAEConfig, geometry
from wan.dit import WanDiT
from wan.errors import CheckpointError, UnsupportedCheckpoint
from wan.magcache import MagCacheModel
from wan.teacache import StepCache, TeaCacheModel
from wan.tensor_files import TensorFiles
from wan.text import TextEncoder, Tokenizer
from wan.vae import WanVAE

# Kept in float32 whatever the dtype asked for: the reference runs them so, and they are a thousandth of the weights.
FLOAT32_PARTS = re.compile(r"(^|\.)(time_embedding|time_projection|modulation|norm3|head|weight_scale)(\.|$)")
SETTINGS_FILE = "wan.json"


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


# Tensors that only a variant with such a sub-network has.
PARTS = {
    "img_emb.proj.0.weight": "img_emb",
    "img_emb.emb_pos": "emb_pos",
    "vace_blocks.0.after_proj.weight": "vace_blocks",
    "control_adapter.conv.weight": "control_adapter",
    "ref_conv.weight": "ref_conv",
    "motion_encoder.dec.direction.weight": "motion_encoder",
}


def structure(tensors: TensorFiles, experts: int = 1) -> Structure:
    """What tells the variants apart, from names and shapes of a DiT's tensors."""
    dim, channels = tensors.shape("patch_embedding.weight")[:2]
    latent_channels = _out_channels(tensors)
    return Structure(
        dim=dim,
        num_layers=tensors.count(r"blocks\.(\d+)\."),
        latent_channels=latent_channels,
        condition_channels=channels - latent_channels,
        parts=frozenset(part for name, part in PARTS.items() if name in tensors),
        experts=experts,
    )


def _out_channels(tensors: TensorFiles) -> int:
    return tensors.shape("head.head.weight")[0] // prod(tensors.shape("patch_embedding.weight")[2:])


def served_variant(tensors: TensorFiles, name: str | None = None, experts: int = 1) -> Variant:
    """The row of the family, `name` deciding between rows that fit alike. Raises UnsupportedCheckpoint."""
    where, found = tensors.files[0].parent, structure(tensors, experts)
    variant = recognise(found)
    if name is not None:
        if name not in BY_NAME or not BY_NAME[name].fits(found):
            fitting = [v.name for v in BY_NAME.values() if v.fits(found)]
            raise CheckpointError(
                f"{where}: variant is {name!r}; allowed for these tensors: {', '.join(fitting) or 'none'}"
            )
        variant = BY_NAME[name]
    if variant is None:
        parts = ", ".join(sorted(found.parts)) or "no further parts"
        raise UnsupportedCheckpoint(
            f"{where}: no served variant has {found.latent_channels} latent and {found.condition_channels} further input "
            f"channels, {found.experts} experts and {parts}"
        )
    if variant.missing:
        raise UnsupportedCheckpoint(f"{where}: this is a Wan {variant.title} model; {variant.missing} is not served")
    return variant


def dit_config(tensors: TensorFiles, num_heads: int | None = None) -> DiTConfig:
    """Architecture of a DiT from its tensors."""
    dim, channels = tensors.shape("patch_embedding.weight")[:2]
    return DiTConfig(
        dim=dim,
        num_layers=tensors.count(r"blocks\.(\d+)\."),
        num_heads=num_heads or dim // 128,
        ffn_dim=tensors.shape("blocks.0.ffn.0.weight")[0],
        in_channels=channels,
        out_channels=_out_channels(tensors),
        text_dim=tensors.shape("text_embedding.0.weight")[1],
        freq_dim=tensors.shape("time_embedding.0.weight")[1],
    )


def vae_config(tensors: TensorFiles, latents_mean=VAE21_MEAN, latents_std=VAE21_STD) -> VAEConfig:
    dim, channels = tensors.shape("encoder.conv1.weight")[:2]
    if channels != 3:
        raise UnsupportedCheckpoint(
            f"{tensors.files[0]}: this is the Wan 2.2 VAE ({channels} input channels); only 2.1 is served"
        )
    blocks = (tensors.count(r"decoder\.upsamples\.(\d+)\.") - 3) // 4 - 1  # 4 levels of n + 1 blocks, 3 upsamplers
    return VAEConfig(
        dim=dim,
        z_dim=tensors.shape("conv2.weight")[0],
        num_res_blocks=blocks,
        latents_mean=tuple(latents_mean),
        latents_std=tuple(latents_std),
    )


def text_config(tensors: TensorFiles) -> TextConfig:
    vocab_size, d_model = tensors.shape("shared.weight")
    first = "encoder.block.0.layer."
    buckets, heads = tensors.shape(first + "0.SelfAttention.relative_attention_bias.weight")
    return TextConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        d_kv=tensors.shape(first + "0.SelfAttention.q.weight")[0] // heads,
        d_ff=tensors.shape(first + "1.DenseReluDense.wi_0.weight")[0],
        num_layers=tensors.count(r"encoder\.block\.(\d+)\."),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
    )


def build_umt5(config: TextConfig) -> nn.Module:
    """The transformers module for `config`."""
    from transformers import UMT5Config, UMT5EncoderModel

    settings = UMT5Config(**vars(config), feed_forward_proj="gated-gelu", dropout_rate=0.0, tie_word_embeddings=False)
    return UMT5EncoderModel(settings)


class Checkpoint(ABC):
    """A checkpoint on disk. `root` holds the components; `settings` are those of its optional wan.json.

    wan.json: what `contract.card` reads, and {"teacache": {"coefficients": [...], "retention": false}, "magcache": {"ratios":
    [...]}}, which `python -m wan.calibrate` writes.
    """

    grid: str  # which sigma grid the layout's reference implementation uses

    def __init__(self, root: Path):
        self.root = root
        self.settings = _read_json(root / SETTINGS_FILE)

    @staticmethod
    def open(path: str | Path) -> "Checkpoint":
        """Recognise the layout of the directory `path`. Raises CheckpointError if there is none."""
        root = Path(path)
        if not root.is_dir():
            raise CheckpointError(f"checkpoint {root} is not a directory")
        if any((root / part).is_dir() for part in ("transformer", "vae", "text_encoder")):
            return DiffusersCheckpoint(root)
        if (root / "high_noise_model").is_dir():
            raise UnsupportedCheckpoint(
                f"{root}: this is a Wan 2.2 model of two experts; only single-DiT models are served"
            )
        if list(root.glob("*.safetensors")) or list(root.glob("*.pth")):
            return OfficialCheckpoint(root)
        raise CheckpointError(
            f"{root}: no Wan checkpoint here. Expected the Diffusers layout (transformer/, vae/, text_encoder/) "
            "or the official one (diffusion_pytorch_model*.safetensors, Wan2.1_VAE.pth, models_t5_umt5-xxl-enc-bf16.pth)"
        )

    @abstractmethod
    def dit_tensors(self) -> TensorFiles: ...

    @abstractmethod
    def vae_tensors(self) -> TensorFiles: ...

    @abstractmethod
    def text_tensors(self) -> TensorFiles: ...

    @property
    @abstractmethod
    def tokenizer_directory(self) -> Path: ...

    @abstractmethod
    def dit_config(self) -> DiTConfig: ...

    @abstractmethod
    def vae_config(self) -> VAEConfig: ...

    def text_config(self) -> TextConfig:
        return text_config(self.text_tensors())

    @cached_property
    def variant(self) -> Variant:
        """The row of the family: the one that wan.json names, else the first that fits. Raises UnsupportedCheckpoint."""
        return served_variant(self.dit_tensors(), self.settings.get("variant"))

    @cached_property
    def card(self) -> ModelCard:
        """What callers need to know; defaults: wan.json, else the official recommendation for the variant."""
        found = {"variant": self.variant.name, "geometry": asdict(geometry(self.dit_config(), self.vae_config()))}
        said = self.settings.get("geometry", found["geometry"])
        if said != found["geometry"]:
            raise CheckpointError(
                f"{self.root / SETTINGS_FILE}: geometry is {said}; its tensors have {found['geometry']}"
            )
        try:
            return ModelCard.from_dict(self.settings | found, str(self.root / SETTINGS_FILE))
        except InvalidCard as error:
            raise CheckpointError(str(error)) from None

    @property
    def teacache(self) -> TeaCacheModel | None:
        """The TeaCache polynomial: wan.json, else the official one; None if neither knows this model."""
        if "teacache" in self.settings:
            return TeaCacheModel(**self.settings["teacache"])
        return teacache.official(self.variant.name)

    @property
    def magcache(self) -> MagCacheModel | None:
        """The MagCache ratios: wan.json, else the published ones; None if neither knows this model."""
        if "magcache" in self.settings:
            return MagCacheModel(**self.settings["magcache"])
        return magcache.official(self.variant.name)

    @property
    def caches(self) -> dict[str, StepCache]:
        """The step caches that this checkpoint is calibrated for, by name."""
        known = {"teacache": self.teacache, "magcache": self.magcache}
        return {name: model for name, model in known.items() if model is not None}

    def load_dit(self, device=None, dtype: torch.dtype | None = None) -> WanDiT:
        """The DiT, whose files may hold FP8 layers (`X.weight` E4M3, `X.weight_scale` [out, 1]) beside ordinary ones."""
        _, tensors = self.variant, self.dit_tensors()
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
            module = WanVAE(config)
        fill(module, self.vae_tensors(), device, dtype)
        return module.channels_last()

    def load_text_encoder(self, device=None, dtype=None) -> TextEncoder:
        tensors = self.text_tensors()
        with torch.device("meta"):
            module = build_umt5(text_config(tensors))
        fill(module, tensors, device, dtype, ignore=frozenset({"encoder.embed_tokens.weight"}))
        module.encoder.set_input_embeddings(module.shared)
        return TextEncoder(module)


class DiffusersCheckpoint(Checkpoint):
    grid = "diffusers"

    def _component(self, name: str, stem: str, rename: Callable[[str], str] = lambda key: key) -> TensorFiles:
        directory = self.root / name
        if not directory.is_dir():
            raise CheckpointError(f"{self.root} has no {name}/")
        return TensorFiles(_shards(directory, stem), rename)

    def dit_tensors(self) -> TensorFiles:
        return self._component("transformer", "diffusion_pytorch_model", keys.dit_from_diffusers)

    def vae_tensors(self) -> TensorFiles:
        blocks = _read_json(self.root / "vae" / "config.json").get("num_res_blocks", 2)
        return self._component("vae", "diffusion_pytorch_model", keys.vae_from_diffusers(blocks))

    def text_tensors(self) -> TensorFiles:
        return self._component("text_encoder", "model")

    @property
    def tokenizer_directory(self) -> Path:
        return self.root / "tokenizer"

    def dit_config(self) -> DiTConfig:
        heads = _read_json(self.root / "transformer" / "config.json").get("num_attention_heads")
        return dit_config(self.dit_tensors(), heads)

    def vae_config(self) -> VAEConfig:
        stored = _read_json(self.root / "vae" / "config.json")
        return vae_config(
            self.vae_tensors(), stored.get("latents_mean", VAE21_MEAN), stored.get("latents_std", VAE21_STD)
        )


class OfficialCheckpoint(Checkpoint):
    grid = "wan"

    def _single(self, pattern: str, what: str) -> list[Path]:
        files = sorted(self.root.glob(pattern))
        if len(files) != 1:
            found = ", ".join(f.name for f in files) or "none"
            raise CheckpointError(f"{self.root}: expected one {what} file {pattern}, found {found}")
        return files

    def dit_tensors(self) -> TensorFiles:
        return TensorFiles(_shards(self.root, "diffusion_pytorch_model"))

    def vae_tensors(self) -> TensorFiles:
        return TensorFiles(self._single("*VAE*.pth", "VAE"))

    def text_tensors(self) -> TensorFiles:
        return TensorFiles(self._single("models_t5*.pth", "text encoder"), keys.umt5_from_official)

    @property
    def tokenizer_directory(self) -> Path:
        return self.root / "google" / "umt5-xxl"

    def dit_config(self) -> DiTConfig:
        return dit_config(self.dit_tensors(), _read_json(self.root / "config.json").get("num_heads"))

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


def load_dit(path: str | Path, device=None, dtype: torch.dtype | None = None) -> WanDiT:
    """Load the DiT of the checkpoint at `path`, in either layout; float32 on the CPU unless told otherwise."""
    return Checkpoint.open(path).load_dit(device, dtype)


def load_vae(path: str | Path, device=None, dtype: torch.dtype | None = None) -> WanVAE:
    """Load the VAE of the checkpoint at `path`, in either layout."""
    return Checkpoint.open(path).load_vae(device, dtype)


def load_text_encoder(path: str | Path, device=None, dtype: torch.dtype | None = None) -> TextEncoder:
    """Load the text encoder of the checkpoint at `path`, in either layout."""
    return Checkpoint.open(path).load_text_encoder(device, dtype)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load the tokenizer of the checkpoint at `path`, in either layout."""
    return Tokenizer(Checkpoint.open(path).tokenizer_directory)
