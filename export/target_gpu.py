"""The GPU target: TensorRT plans for the text encoder and the VAE decoder, an FP8 or BF16 package of the DiT.

In this order, so that what can be refused is refused before anything is built: sources and LoRAs, memory and placement,
configurations, ONNX graphs with their checks, the DiT package, plans. Only the last needs TensorRT and a GPU. The
working directory survives an interruption, and the next run with the same sources and options continues there.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path

from tqdm import tqdm

from export import fp8_package, gpu_graphs, gpu_plans, memory, paths
from export.atomic import Journal
from export.components import check_components, model_values
from export.error_plot import plot_errors
from export.fp8_formats import DitWeights, with_dit
from export.lora import Lora
from export.manifest import sha256_file
from export.placement import Gpu, Placement, choose, detect_gpus, parse_gpus
from export.precision import Precision
from export.preview_projection import fit_projection
from export.quality import measure
from export.repository_gpu import render_gpu
from export.sizes import Sizes, parse_sizes
from export.tensorrt_builder import PlanOptions, load_tensorrt
from export.vae_cache import decoder_slots
from wan.checkpoint import Checkpoint
from wan.text import TEXT_LENGTH

Step = Callable[[str], None]
JOURNAL = "journal.json"
ERROR_PLOT = "fp8_errors.png"


@dataclass(frozen=True)
class GpuOptions:
    """Everything that the command line says about a GPU export."""

    precision: Precision = field(default_factory=Precision)
    dit: Path | None = None
    loras: tuple[tuple[Path, float], ...] = ()
    placement: str = "auto"
    gpus: str | None = None
    denoise_instances: int = 1
    sizes: str | None = None
    size_range: str | None = None
    max_frames: int | None = None
    plan: PlanOptions = field(default_factory=PlanOptions)
    quality: bool = True

    def described(self) -> dict:
        """What changes the artifacts beside source and placement; LoRAs count by content, another DiT is part of the source."""
        plain = ("sizes", "size_range", "max_frames", "denoise_instances", "quality")
        loras = [{"sha256": sha256_file(path), "strength": strength} for path, strength in self.loras]
        nested = {"precision": asdict(self.precision), "plan": asdict(self.plan), "loras": loras}
        return {name: getattr(self, name) for name in plain} | nested


class GpuExport:
    """One checkpoint with its options; properties are what follows from them."""

    def __init__(self, checkpoint: Checkpoint, options: GpuOptions):
        self.checkpoint, self.options = with_dit(checkpoint, options.dit), options
        self.weights = DitWeights(self.checkpoint.dit_tensors())
        self.weights.check()
        self.dit, self.vae, self.text = check_components(self.checkpoint)
        shapes = {name: self.weights.shape(name) for name in self.weights.names}
        self.loras = [Lora(path, strength, shapes) for path, strength in options.loras]
        self.entries = fp8_package.plan(self.weights, options.precision, self.dit.num_layers)
        self.sizes: Sizes = parse_sizes(options.sizes, options.size_range, checkpoint.defaults)

    @cached_property
    def gpus(self) -> list[Gpu]:
        return parse_gpus(self.options.gpus) if self.options.gpus else detect_gpus()

    @cached_property
    def video(self) -> memory.Video:
        """The largest video that the plans allow."""
        return memory.Video(*self.sizes.largest, self.options.max_frames or self.checkpoint.defaults.num_frames)

    @cached_property
    def memory(self) -> dict[str, memory.StageMemory]:
        text_parameters = gpu_graphs.parameters(self.checkpoint.text_tensors())
        tensors = self.checkpoint.vae_tensors()
        decoder = sum(prod(tensors.shape(name)) for name in tensors.names if name.startswith(("decoder.", "conv2.")))
        slots = decoder_slots(self.vae)
        return {
            "text_encoder": memory.text_encoder(self.text, text_parameters, TEXT_LENGTH, batch=2),
            "denoise": memory.denoise(self.dit, fp8_package.package_bytes(self.entries), self.video, self.vae),
            "vae_decoder": memory.vae_decoder(self.vae, decoder, slots, self.video),
        }

    def place(self, say: Step) -> Placement:
        """Choose or check the placement; raises PlacementError with the numbers if it cannot fit."""
        totals = {stage: needs.total for stage, needs in self.memory.items()}
        return choose(self.options.placement, self.gpus, totals, self.options.denoise_instances, say)

    def memory_table(self, placement: Placement) -> str:
        return memory.table(self.memory, placement, self.gpus, self.video)


@dataclass(frozen=True)
class Keys:
    """Hashes of what the parts of an export depend on; what was made under another one is made again."""

    build: str
    graphs: str
    package: str


def build(
    job: GpuExport, placement: Placement, repository: Path, graphs: Path, keys: Keys, command: str, step: Step
) -> dict:
    """Write a complete repository except for its manifest, or continue one; returns the manifest's part about it.

    Raises TensorRTMissing, with the `command` that continues, when only the plans are left to build.
    """
    journal = _journal(repository, keys.build)
    step("configurations and tokenizer")
    render_gpu(repository, model_values(job.dit, job.vae, job.text), placement)
    shutil.copytree(job.checkpoint.tokenizer_directory, paths.tokenizer(repository), dirs_exist_ok=True)
    graph_results = gpu_graphs.export_graphs(job.checkpoint, graphs, keys.graphs, step)
    package = _package(job, repository, keys.package, journal, step)
    preview = journal.step("preview", [], lambda: _preview(job.checkpoint, step))
    quality = journal.step("quality", [], lambda: _quality(job, paths.dit_checkpoint(repository), step))
    trt = load_tensorrt(command)
    all_jobs = gpu_plans.jobs(repository, graphs, job.sizes, job.vae, job.options.plan, graphs / "timing.cache")
    plans = gpu_plans.build_plans(trt, all_jobs, placement, journal, step)
    return describe(job, placement) | {
        "plans": plans,
        "graphs": graph_results,
        "parity": {name: result["parity"] for name, result in graph_results.items()},
        "dit_package": package | {"quality": quality},
        "preview": preview,
    }


def _journal(repository: Path, key: str) -> Journal:
    """The journal of the working directory, which is emptied if it belongs to other sources, code or options.

    The shards of the DiT stay: each names what it was made from, and packaging takes only those that fit.
    """
    journal = Journal(repository / JOURNAL, key)
    if journal.is_void:
        for entry in repository.iterdir() if repository.exists() else ():
            if entry.name != "denoise":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    repository.mkdir(parents=True, exist_ok=True)
    journal.write()
    return journal


def _package(job: GpuExport, repository: Path, recipe: str, journal: Journal, step: Step) -> dict:
    folder = paths.dit_checkpoint(repository)

    def run() -> dict:
        step(f"DiT weights in {job.options.precision.preset}")
        elements = sum(prod(entry.shape) for entry in job.entries)
        with tqdm(total=elements, unit="el", unit_scale=True, desc="DiT", leave=False, disable=None) as bar:
            recipe_parts = job.options.precision, job.loras, recipe
            described = fp8_package.package(
                job.checkpoint, job.weights, folder, *recipe_parts, progress=lambda name, count: bar.update(count)
            )
        if described["errors"]:
            plot_errors(folder / fp8_package.ERRORS_FILE, folder / ERROR_PLOT)
        return described

    return journal.step("DiT package", [folder / fp8_package.PRECISION_FILE], run)


def _preview(checkpoint: Checkpoint, step: Step) -> dict:
    step("preview colours")
    return fit_projection(checkpoint.load_vae())


def _quality(job: GpuExport, folder: Path, step: Step) -> dict:
    if not job.options.quality:
        return {"skipped": "--no-quality"}
    return measure(job.checkpoint, job.weights, job.loras, folder, step)


def describe(job: GpuExport, placement: Placement) -> dict:
    """The manifest's part that follows from the checkpoint and the placement."""
    vae = {"z_dim": job.vae.z_dim, "spatial_stride": job.vae.spatial_stride, "temporal_stride": job.vae.temporal_stride}
    slots = [[slot.channels, slot.frames, slot.scale] for slot in decoder_slots(job.vae)]
    return {
        "defaults": asdict(job.checkpoint.defaults),
        "caches": sorted(job.checkpoint.caches),
        "text": {"length": TEXT_LENGTH, "dim": job.text.d_model},
        "vae": vae | {"cache": slots},
        "dit": asdict(job.dit),
        "sizes": job.sizes.described(),
        "instances": {stage: len(placement.gpus[stage]) * placement.instances(stage) for stage in placement.gpus},
        "placement": {stage: list(indices) for stage, indices in placement.gpus.items()},
        "memory": {stage: asdict(needs) | {"total": needs.total} for stage, needs in job.memory.items()},
        "precision": {"text_encoder": "bfloat16", "denoise": job.options.precision.preset, "vae_decoder": "bfloat16"},
    }


def keep_package(old: Path, building: Path) -> None:
    """Give the working directory the DiT shards of a finished repository; files are replaced, never changed, so links do."""
    source, target = paths.dit_checkpoint(old), paths.dit_checkpoint(building)
    for file in source.rglob(f"{fp8_package.STEM}-*") if source.is_dir() else ():
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            os.link(file, place)
