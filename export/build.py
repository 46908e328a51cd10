"""One export at work: the checkpoint with its options, where the results go, and all that follows from these.

What cannot be is refused by `check`, before anything is built.
"""

import hashlib
import json
import time
from collections.abc import Callable
from functools import cached_property
from math import prod
from pathlib import Path

from export import memory, paths
from export.atomic import Journal
from export.dit import package
from export.dit.formats import DitWeights, with_dit
from export.dit.lora import Lora
from export.options import Options
from export.placement import Gpu, Placement, choose, detect_gpus, parse_gpus
from export.tensorrt.graphs import parameters
from export.tensorrt.sizes import Sizes, parse_sizes
from export.tensorrt.vae_cache import decoder_slots
from export.workstation import Fit, Needs, find
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
        _ = self.checkpoint.card, self.loras

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
    def weights(self) -> DitWeights:
        """The DiT's weights; raises UnsupportedCheckpoint for a format that is not known."""
        weights = DitWeights(self.checkpoint.dit_tensors())
        weights.check()
        return weights

    @cached_property
    def loras(self) -> list[Lora]:
        shapes = {name: self.weights.shape(name) for name in self.weights.names}
        return [Lora(path, strength, shapes) for path, strength in self.options.loras]

    @cached_property
    def quantised(self) -> list[package.Entry]:
        """What a package in the precision that was asked for will hold."""
        return package.contents(self.weights, self.options.precision, self.dit.num_layers)

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
    def memory(self) -> dict[str, memory.StageMemory]:
        tensors = self.checkpoint.vae_tensors()
        decoder = sum(prod(tensors.shape(name)) for name in tensors.names if name.startswith(("decoder.", "conv2.")))
        text_parameters = parameters(self.checkpoint.text_tensors())
        return {
            "text_encoder": memory.text_encoder(self.text, text_parameters, TEXT_LENGTH, batch=2),
            "denoise": memory.denoise(self.dit, package.package_bytes(self.quantised), self.video, self.vae),
            "vae_decoder": memory.vae_decoder(self.vae, decoder, decoder_slots(self.vae), self.video),
        }

    @cached_property
    def fit(self) -> Fit:
        """How the stages of a workstation compute; raises PlacementError with the numbers if nothing fits."""
        tensors = self.checkpoint.vae_tensors()
        d = self.checkpoint.card.defaults
        video = memory.Video(d.width, d.height, d.num_frames)
        text, table = parameters(self.checkpoint.text_tensors()), self.text.vocab_size * self.text.d_model
        vae = memory.vae_decoder(
            self.vae, sum(map(prod, map(tensors.shape, tensors.names))), decoder_slots(self.vae), video
        )
        weights = memory.BF16 * sum(prod(self.weights.shape(name)) for name in self.weights.names)
        denoise = memory.denoise(self.dit, weights, video, self.vae)
        needs = Needs(
            dit=weights, dit_fp8=package.package_bytes(self.quantised), text_encoder=memory.BF16 * text,
            text_streamed=memory.BF16 * (table + 2 * (text - table) // self.text.num_layers),
            # the decoder computes in float32, twice what a plan in bfloat16 takes
            rest=denoise.activations + denoise.caches + 2 * (vae.total - vae.context),
        )  # fmt: skip
        return find(needs, self.options.device)

    @cached_property
    def placement(self) -> Placement:
        """Chosen or checked; raises PlacementError with the numbers if it cannot fit."""
        totals = {stage: needs.total for stage, needs in self.memory.items()}
        return choose(self.options.placement, self.gpus, totals, self.options.denoise_instances, self.report)

    def template_values(self) -> dict[str, int]:
        """What the placeholders of the configuration templates stand for."""
        instances = self.options.denoise_instances
        return {"text_len": TEXT_LENGTH, "text_dim": self.text.d_model, "z_dim": self.vae.z_dim} | {
            "denoise_instances": instances
        }

    def key(self, *values) -> str:
        """Hash of the source, the code and `values`. The source's path does not count, so another machine can continue."""
        return _hash([self.wanted["source"]["sha256"], self.wanted["code"], *values])

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
