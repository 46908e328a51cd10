"""How much GPU memory each stage needs, from the checkpoint alone, before anything is built.

Weights and caches are exact. Activations count the tensors that live at the widest point of a forward pass; the real
number depends on kernels, so they are rounded up and 5 % of each GPU stay unused (placement.USABLE).
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from export.dit.package import Entry
from export.placement import GIB, Gpu, Placement
from export.tensorrt.vae_cache import CacheSlot
from wan.config import ClipConfig, DiTConfig, TextConfig, VAEConfig

Row = tuple[str, ...]
CONTEXT = 600 << 20  # a CUDA context with its modules, for each process
BF16, FP32 = 2, 4
HOST_USABLE = 0.8  # of the host's memory; what a GPU reads by itself cannot be swapped out


@dataclass(frozen=True)
class StageMemory:
    """Bytes of one instance of a stage."""

    weights: int
    caches: int
    activations: int
    context: int = CONTEXT

    @property
    def total(self) -> int:
        return self.weights + self.caches + self.activations + self.context


@dataclass(frozen=True)
class DitBytes:
    """Weights of a DiT in one precision, all `experts` of it: its largest block, and what is not in blocks of any.

    A number of blocks on the device is that of `wan.offload.stream`, for all experts together; None: everything stays there.
    """

    experts: int
    blocks: int
    block: int
    outside: int
    total: int

    @classmethod
    def of(cls, experts: Sequence[Sequence[Entry]]) -> "DitBytes":
        """From what the package of each expert holds."""
        blocks: Counter[tuple[int, int]] = Counter()
        outside = 0
        for expert, entries in enumerate(experts):
            for entry in entries:
                if entry.name.startswith("blocks."):
                    blocks[expert, int(entry.name.split(".")[1])] += entry.bytes
                else:
                    outside += entry.bytes
        return cls(
            len(experts), len(blocks) // len(experts), max(blocks.values()), outside, outside + sum(blocks.values())
        )

    def on_device(self, blocks: int | None) -> int:
        return self.total if blocks is None else self.outside + blocks * self.block

    def on_host(self, blocks: int | None) -> int:
        """Memory of the host for the blocks that come from there: all of them."""
        return 0 if blocks is None else self.experts * self.blocks * self.block

    @property
    def counts(self) -> tuple[int | None, ...]:
        """What can be asked for, the most first. With one expert all of its blocks are everything."""
        return (None, *range(self.blocks - (self.experts == 1), 1, -1))

    def words(self, blocks: int | None) -> str:
        """What `blocks` means, for people."""
        all_of_it = "both experts stay" if self.experts > 1 else "the DiT stays"
        if blocks is None:
            return f"{all_of_it} on the GPU, {self.total / GIB:.1f} GiB"
        which = "one expert at a time is" if self.experts > 1 else "the DiT is"
        part = "" if blocks == self.blocks else f", {blocks} of its {self.blocks} blocks at a time"
        host = self.on_host(blocks) / GIB
        return f"{which} on the GPU{part}, {self.on_device(blocks) / GIB:.1f} GiB; {host:.1f} GiB of the host's memory hold all blocks"


@dataclass(frozen=True)
class Video:
    """The largest video that is served."""

    width: int
    height: int
    frames: int


def of_host() -> int:
    """Bytes of this machine's memory that weights may take."""
    return int(HOST_USABLE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def text_encoder(config: TextConfig, parameters: int, length: int, batch: int) -> StageMemory:
    """Weights in BF16; the widest point is either attention (scores in float32, and their softmax) or the gated FFN."""
    attention = (
        config.num_heads * length * length * (FP32 + FP32 + BF16) + 4 * length * config.num_heads * config.d_kv * BF16
    )
    ffn = length * (3 * config.d_ff * BF16 + config.d_model * FP32)
    return StageMemory(parameters * BF16, 0, batch * max(attention, ffn) + 2 * batch * length * config.d_model * FP32)


def denoise(config: DiTConfig, weight_bytes: int, video: Video, vae: VAEConfig) -> StageMemory:
    """Bytes for each token: the residual stream and its normalised copy, then either attention or the feed-forward layer.

    Attention holds q, k, v, their float32 forms during the rotation and the output; the feed-forward layer its hidden
    values, their activation and what FP8 quantisation makes of them (a float32 copy, the quotient, the FP8 values).
    """
    tokens = _tokens(video, vae)
    stream = config.dim * (2 * FP32 + FP32 + BF16)
    attention = config.dim * (3 * BF16 + 3 * FP32 + BF16)
    ffn = config.ffn_dim * (2 * BF16 + 2 * FP32 + 1)
    residuals = 2 * tokens * config.dim * FP32  # TeaCache, one for each guidance branch
    text = 2 * config.num_layers * 2 * config.text_len * config.dim * BF16  # cross-attention keys and values
    return StageMemory(weight_bytes, residuals + text, tokens * (stream + max(attention, ffn)))


def _tokens(video: Video, vae: VAEConfig) -> int:
    frames = 1 + (video.frames - 1) // vae.temporal_stride
    return frames * (video.height // (2 * vae.spatial_stride)) * (video.width // (2 * vae.spatial_stride))


def vae(config: VAEConfig, parameters: int, slots: list[CacheSlot], video: Video) -> StageMemory:
    """Of decoder or encoder: two sets of caches in BF16; the widest layers have `dim` channels for a chunk of frames at full size.

    In Wan 2.2 they are those where the last stage begins, at the size that patches of pixels leave.
    There live the input, the convolution's input with its past, the float32 form inside a norm and its result.
    """
    h, w = video.height // config.spatial_stride, video.width // config.spatial_stride
    caches = 2 * BF16 * sum(prod(slot.shape(h, w)) for slot in slots)
    wide = config.dim if config.patch == 1 else (config.decoder_dim or config.dim) * config.dim_mult[1]
    widest = wide * config.temporal_stride * (video.width // config.patch) * (video.height // config.patch)
    frames = 3 * config.temporal_stride * video.width * video.height * FP32
    both_engines = 2 * parameters * BF16  # first and next step each hold the weights
    return StageMemory(both_engines, caches, widest * (3 * BF16 + 2 * FP32) + frames)


def image_encoder(config: ClipConfig, parameters: int) -> StageMemory:
    """Weights in BF16; the widest point is either attention (scores in float32, and their softmax) or the feed-forward layer."""
    attention = config.num_heads * config.tokens * (FP32 + FP32 + BF16) + 4 * config.dim * BF16
    ffn = 2 * config.ffn_dim * BF16
    return StageMemory(parameters * BF16, 0, config.tokens * (max(attention, ffn) + 2 * config.dim * FP32))


def table(stages: dict[str, StageMemory], placement: Placement, gpus: list[Gpu], video: Video) -> str:
    """What each stage and each GPU needs, for people."""
    rows: list[Row] = [("stage", "weights", "caches", "activations", "context", "total", "GPUs")]
    for name, stage in stages.items():
        where = ", ".join(map(str, placement.gpus[name]))
        where += f" (x{placement.instances(name)})" if placement.instances(name) > 1 else ""
        numbers = (stage.weights, stage.caches, stage.activations, stage.context, stage.total)
        rows.append((name, *(f"{number / GIB:.2f}" for number in numbers), where))
    lines = [f"GPU memory in GiB for {video.width}x{video.height}, {video.frames} frames", *_aligned(rows)]
    totals = {name: stage.total for name, stage in stages.items()}
    known = {gpu.index: gpu for gpu in gpus}
    rows = [("GPU", "needed", "of", "stages")]
    for index in placement.used:
        of = f"{known[index].memory / GIB:.1f} {known[index].name}".strip() if index in known else "unknown"
        on = ", ".join(stage for stage, at in placement.gpus.items() if index in at)
        rows.append((str(index), f"{placement.load(index, totals) / GIB:.2f}", of, on))
    return "\n".join([*lines, "", *_aligned(rows)])


def _aligned(rows: list[Row]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
