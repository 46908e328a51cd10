"""One export at work: the checkpoint with its options, where the results go, and all that follows from these.

What cannot be is refused by `check`, before anything is built.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from math import prod
from pathlib import Path

from contract.card import ModelCard
from export import manifest, memory, paths
from export.atomic import Journal
from export.dit import package
from export.dit.formats import DitWeights, with_dit
from export.dit.lora import Lora
from export.dit.precision import Precision
from export.inputs import encoders
from export.onnx import kept
from export.options import Options
from export.placement import GIB, STAGES, DoesNotFit, Gpu, Placement, PlacementError, choose, detect_gpus, parse_gpus
from export.tensorrt.graphs import parameters
from export.tensorrt.sizes import Sizes, parse_sizes
from export.tensorrt.vae_cache import decoder_slots, encoder_slots
from export.workstation import Fit, Needs, Networks, find
from wan.checkpoint import Checkpoint
from wan.errors import CheckpointError
from wan.text import TEXT_LENGTH

Report = Callable[[str], None]


class Build:
    """One export into `out`; `command` is what to run to go on, for messages. Nothing is read before it is asked for."""

    journal: Journal

    def __init__(self, source: Path, out: Path, options: Options, command: str = "", report: Report = print):
        self.checkpoint = with_dit(Checkpoint.open(source.resolve()), options.dit)
        self.out, self.options, self.command, self.report = out, options, command, report
        self.repository, self.graphs = paths.building(out), paths.graphs(out)
        self.wanted: dict = {}  # the manifest's part that is known before anything is built
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def say(self, what: str) -> None:
        """Report what begins now."""
        self.report(f"[{self.seconds:5.1f} s] {what}")

    def check(self) -> None:
        """Raises WanError where the networks of the checkpoint do not fit each other or a LoRA does not fit the DiT."""
        root = self.checkpoint.root
        if self.text.d_model != self.dit.text_dim:
            raise CheckpointError(
                f"{root}: text encoder width {self.text.d_model}, the DiT expects {self.dit.text_dim}"
            )
        if self.dit.image_dim and self.checkpoint.clip_config().dim != self.dit.image_dim:
            clip = self.checkpoint.clip_config()
            raise CheckpointError(f"{root}: CLIP's width {clip.dim}, the DiT expects {self.dit.image_dim}")
        if self.options.loras and len(self.weights) > 1:
            raise CheckpointError(f"{root} has two experts; merging a LoRA into one of them is not done by this export")
        _ = self.card, self.loras

    @property
    def card(self) -> ModelCard:
        """What is served."""
        return self.checkpoint.card

    @cached_property
    def dit(self):
        return self.checkpoint.dit_config()

    @cached_property
    def vae(self):
        return self.checkpoint.vae_config()

    @cached_property
    def text(self):
        return self.checkpoint.text_config()

    @cached_property
    def weights(self) -> list[DitWeights]:
        """Each expert's weights; raises UnsupportedCheckpoint for a format that is not known."""
        experts = range(len(self.checkpoint.dit_folders))
        weights = [DitWeights(self.checkpoint.dit_tensors(expert)) for expert in experts]
        for each in weights:
            each.check()
        return weights

    @cached_property
    def loras(self) -> list[Lora]:
        shapes = {name: self.weights[0].shape(name) for name in self.weights[0].names}
        return [Lora(path, strength, shapes) for path, strength in self.options.loras]

    def dit_bytes(self, precision: Precision | None) -> memory.DitBytes:
        """What all experts' weights take; None: float32."""
        return memory.DitBytes.of([package.contents(each, precision, self.dit.num_layers) for each in self.weights])

    @cached_property
    def dit_packages(self) -> memory.DitBytes:
        """In the precision that was asked for."""
        return self.dit_bytes(self.options.precision)

    @cached_property
    def sizes(self) -> Sizes:
        return parse_sizes(self.options.sizes, self.options.size_range, self.checkpoint.card)

    @cached_property
    def gpus(self) -> list[Gpu]:
        return parse_gpus(self.options.gpus) if self.options.gpus else detect_gpus()

    @cached_property
    def video(self) -> memory.Video:
        """The largest video that the TensorRT plans allow."""
        return memory.Video(*self.sizes.largest, self.options.max_frames or self.checkpoint.card.defaults.num_frames)

    @cached_property
    def _memory(self) -> dict[str, memory.StageMemory]:
        """With all of the DiT on the GPU."""
        tensors = self.checkpoint.vae_tensors()
        total = sum(prod(tensors.shape(name)) for name in tensors.names)
        decoder = sum(prod(tensors.shape(name)) for name in tensors.names if name.startswith(("decoder.", "conv2.")))
        text_parameters = parameters(self.checkpoint.text_tensors())
        every = {
            "text_encoder": memory.text_encoder(self.text, text_parameters, TEXT_LENGTH, batch=2),
            "denoise": memory.denoise(self.dit, self.dit_packages.total, self.video, self.vae),
            "vae_decoder": memory.vae(self.vae, decoder, decoder_slots(self.vae), self.video),
            "vae_encoder": memory.vae(self.vae, total - decoder, encoder_slots(self.vae), self.video),
        }
        if self.dit.image_dim:
            every["image_encoder"] = memory.image_encoder(
                self.checkpoint.clip_config(), parameters(self.checkpoint.clip_tensors())
            )
        return {stage: needs for stage, needs in every.items() if stage in (*STAGES, *encoders(self.template_values()))}

    def _memory_of(self, blocks: int | None) -> dict[str, memory.StageMemory]:
        weights = self.dit_packages.on_device(blocks)
        return self._memory | {"denoise": replace(self._memory["denoise"], weights=weights)}

    @property
    def memory(self) -> dict[str, memory.StageMemory]:
        """As it was placed."""
        return self._memory_of(self.blocks_on_device)

    @cached_property
    def needs(self) -> Needs:
        """What the stages of a workstation take for a video of the usual size."""
        tensors, d = self.checkpoint.vae_tensors(), self.checkpoint.card.defaults
        networks = Networks(
            self.dit, self.text, parameters(self.checkpoint.text_tensors()),
            self.vae, sum(map(prod, map(tensors.shape, tensors.names))),
            parameters(self.checkpoint.clip_tensors()) if self.dit.image_dim else 0,
            len(encoders(self.template_values())),
        )  # fmt: skip
        if self.options.device == "cpu":
            dit = {"float32": self.dit_bytes(None)}
        else:
            dit = {"bfloat16": self.dit_bytes(Precision("bf16")), "fp8": self.dit_packages}
        return Needs.of(networks, dit, memory.Video(d.width, d.height, d.num_frames))

    @cached_property
    def fit(self) -> Fit:
        """How the stages of a workstation compute; raises PlacementError with the numbers if nothing fits."""
        vram = self.options.vram
        return find(self.needs, self.options.device, None if vram is None else int(vram * GIB))

    @property
    def residency(self) -> str:
        """Where the DiT's weights of a workstation are, for people."""
        return f"{self.fit.precision}; {self.needs.dit[self.fit.precision].words(self.fit.blocks_on_device)}"

    @cached_property
    def placed(self) -> tuple[Placement, int | None]:
        """Chosen or checked, and how many of the DiT's blocks are on a GPU at a time, as many as fit.

        Raises PlacementError with the numbers if not even the fewest do.
        """
        for blocks in self.dit_packages.counts:
            totals = {stage: needs.total for stage, needs in self._memory_of(blocks).items()}
            given = self.options.placement, self.gpus, totals, self.options.denoise_instances, self.report
            try:
                placement = choose(*given)
            except DoesNotFit as error:
                refused = f"{error}; {self.dit_packages.words(blocks)}, which is the least"
                continue
            placement.parallel.check(self.dit.num_heads)
            self._check_host(placement, blocks)
            return placement, blocks
        raise PlacementError(refused)

    def _check_host(self, placement: Placement, blocks: int | None) -> None:
        """Raises PlacementError if blocks that come from the host do not fit there; another machine's memory is not known."""
        processes = len(placement.gpus["denoise"]) * placement.instances("denoise")
        needed, usable = processes * self.dit_packages.on_host(blocks), memory.of_host()
        if needed > usable and not self.options.gpus:
            raise PlacementError(
                f"the DiT fits the GPUs only in part, and {processes} processes that keep it on the host need"
                f" {needed / GIB:.1f} GiB there, {usable / GIB:.1f} are usable"
            )

    @property
    def placement(self) -> Placement:
        return self.placed[0]

    @property
    def blocks_on_device(self) -> int | None:
        return self.placed[1]

    def template_values(self) -> dict:
        """What the placeholders of the configuration templates stand for, and which media the checkpoint takes."""
        return {
            "text_len": TEXT_LENGTH,
            "text_dim": self.text.d_model,
            "z_dim": self.vae.z_dim,
            "denoise_instances": self.options.denoise_instances,
            "takes": self.card.takes,
            "image_dim": self.dit.image_dim,
        }

    def key(self, *values) -> str:
        """Hash of the source, the code and `values`. The source's path does not count, so another machine can continue."""
        return _hash([self.wanted["source"]["sha256"], self.wanted["code"], *values])

    def once(self, model: str, path: Path | None, make: Callable[[], dict]) -> dict:
        """The result of `make`, which depends on the weights of `model` and may write a graph; an earlier export's if there is one."""
        tensors, config = {
            "text_encoder": (self.checkpoint.text_tensors, self.checkpoint.text_config),
            "image_encoder": (self.checkpoint.clip_tensors, self.checkpoint.clip_config),
        }.get(model, (self.checkpoint.vae_tensors, self.checkpoint.vae_config))
        known = self.wanted["source"]["files"]
        weights = sorted(known[manifest.file_name(file, self.checkpoint)]["sha256"] for file in tensors().files)
        made_of = [model, self.wanted["target"], self.wanted["code"], repr(config()), *weights]
        return kept.once(path, made_of, paths.kept_graphs(self.out), make)

    @property
    def recipe(self) -> list:
        """What of the options decides the DiT's weights."""
        return [self.wanted["options"].get(name) for name in ("precision", "loras")]

    @property
    def model(self) -> str:
        """What the weights are, whatever code made them: a step saved by one model is not continued by another."""
        return _hash([self.wanted["source"]["sha256"], *self.recipe])


def _hash(parts: list) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
