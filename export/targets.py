"""What each `--target` is: named steps in order, each of which leaves its part of the manifest, and the options it takes.

To add a target, add a row to TARGETS. Steps share the working directory, so that one may read what another wrote.
"""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

import torch
from tqdm import tqdm

from export import paths
from export.build import Build
from export.dit import package
from export.dit.precision import Precision
from export.dit.quality import measure, plot_errors
from export.inputs import VAE_ENCODER, encoders
from export.manifest import sha256_file
from export.onnx.checks import parity
from export.onnx.graphs import Graph, clip_graph, decoder_graphs, encoder_graphs, text_encoder_graph, write
from export.preview_projection import fit_projection
from export.repository import render, render_gpu
from export.tensorrt import graphs, plans
from export.tensorrt.builder import load_tensorrt
from export.tensorrt.vae_cache import decoder_slots, encoder_slots
from stages.artifacts import ArtifactError
from stages.trt_plans import check_plan
from stages.trt_runtime import import_tensorrt
from wan.text import TEXT_LENGTH

Step = Callable[[Build], dict]
ERROR_PLOT = "fp8_errors.png"
GPU_TRITON = Path("/opt/tritonserver/backends/tensorrt")  # of NVIDIA's image; the wheel's server knows no GPUs
COPIED_FORMATS = ("float", "rows")  # which the denoise stage reads as they are


@dataclass(frozen=True)
class Target:
    """One value of `--target`."""

    steps: dict[str, Step]
    options: frozenset[str]  # of the command line, beside those of every target
    code: tuple[str, ...]  # packages under export/ whose change makes it export again
    described: Callable[[Build], dict]  # the options that decide what is written
    placed: bool = False  # on GPUs, with a look at their memory first
    resumable: bool = False  # the working directory survives an interruption, and the next run continues there
    fits: Callable[[dict, Callable[[str], None]], bool] = lambda manifest, report: (
        True
    )  # a finished one fits this machine


def configurations(build: Build) -> dict:
    render(build.repository, build.template_values())
    return {"instances": {"denoise": build.options.denoise_instances}}


def gpu_configurations(build: Build) -> dict:
    placement = build.placement
    render_gpu(build.repository, build.template_values(), placement)
    return {
        "instances": placement.slots,
        "placement": {stage: list(at) for stage, at in placement.gpus.items()},
        "parallel": str(placement.parallel),
        "blocks_on_device": build.blocks_on_device,
        "memory": {stage: asdict(needs) | {"total": needs.total} for stage, needs in build.memory.items()},
    }


def tokenizer(build: Build) -> dict:
    shutil.copytree(build.checkpoint.tokenizer_directory, paths.tokenizer(build.repository), dirs_exist_ok=True)
    return {}


def float32_graphs(build: Build) -> dict:
    """Text encoder, VAE and CLIP, in the places where ONNX Runtime reads them."""
    encoder = text_encoder_graph(build.checkpoint.load_text_encoder(), build.text.vocab_size)
    compared = _written(build, "text_encoder", [encoder])
    vae = build.checkpoint.load_vae()
    compared |= _written(build, "vae_decoder", decoder_graphs(vae))
    for model in encoders(build.template_values()):
        made = encoder_graphs(vae) if model == VAE_ENCODER else [clip_graph(build.checkpoint.load_clip())]
        compared |= _written(build, model, made)
    return {"parity": compared}


def _written(build: Build, model: str, made: list[Graph]) -> dict:
    compared = {}
    for graph in made:
        path = paths.version(build.repository, model) / graph.file

        def run(graph=graph, path=path) -> dict:
            build.say(f"{model}/{graph.file}")
            write(graph, path.parent)
            build.say(f"{model}/{graph.file} against PyTorch")
            return parity(graph, path, graph)

        compared[f"{model}/{graph.file}"] = build.once(model, path, run)
    return compared


def bf16_graphs(build: Build) -> dict:
    results = graphs.export_graphs(build.checkpoint, build.graphs, build.key(), build.say, build.once)
    return {"graphs": results, "parity": {name: result["parity"] for name, result in results.items()}}


def dit(build: Build) -> dict:
    """The DiT as it is; written in float32 where LoRAs or another file change it, or its format is not read here."""
    copied = all(weights.format in COPIED_FORMATS for weights in build.weights)
    if build.loras or build.options.dit or not copied:
        return {"dit_package": _packaged(build, None)}
    package.copy_dit(build.checkpoint, paths.dit_checkpoint(build.repository))
    return {}


def quantised_dit(build: Build) -> dict:
    """The DiT in the precision that was asked for, with what that costs."""
    folder = paths.dit_checkpoint(build.repository)
    files = [place / package.PRECISION_FILE for place in package.report_folders(build.checkpoint, folder)]
    described = build.journal.step("DiT package", files, lambda: _packaged(build, build.options.precision))

    def quality() -> dict:
        if not build.options.quality:
            return {"skipped": "--no-quality"}
        return measure(build.checkpoint, build.weights, build.loras, folder, build.say)

    return {"dit_package": described | {"quality": build.journal.step("quality", [], quality)}}


def _packaged(build: Build, precision: Precision | None) -> dict:
    build.say(f"DiT weights in {precision.preset if precision else 'float32'}")
    folder = paths.dit_checkpoint(build.repository)
    elements = sum(prod(weights.shape(name)) for weights in build.weights for name in weights.names)
    with tqdm(total=elements, unit="el", unit_scale=True, desc="DiT", leave=False, disable=None) as bar:

        def progress(name: str, count: int) -> None:
            bar.update(count)

        recipe = precision, build.loras, build.key(*build.recipe)
        described = [
            package.package(build.checkpoint, weights, folder, *recipe, progress=progress, expert=expert)
            for expert, weights in enumerate(build.weights)
        ]
    for place in package.report_folders(build.checkpoint, folder) if described[0]["errors"] else ():
        try:
            plot_errors(place / package.ERRORS_FILE, place / ERROR_PLOT)
        except ImportError:  # the images that serve have no matplotlib
            build.say(f"without matplotlib {package.ERRORS_FILE} is not drawn")
    return described[0] if len(described) == 1 else {"experts": described}


def workstation_dit(build: Build) -> dict:
    """In FP8 only where nothing else fits the GPU."""
    build.report(build.residency)
    if build.fit.precision != "fp8":
        return dit(build)
    return {"dit_package": _packaged(build, Precision("fp8"))}


def preview(build: Build) -> dict:
    def fitted() -> dict:
        return build.once("vae_preview", None, lambda: fit_projection(build.checkpoint.load_vae()))

    return {"preview": build.journal.step("preview", [], fitted)}


def tensorrt_plans(build: Build) -> dict:
    """Raises TensorRTMissing, with the command that continues, where nothing but the plans is left to build."""
    trt = load_tensorrt(build.command)
    options, cache = build.options.plan, build.graphs / "timing.cache"
    networks: dict = {"vae_decoder": build.vae}
    for model in encoders(build.template_values()):
        networks[model] = build.vae if model == VAE_ENCODER else build.checkpoint.clip_config()
    jobs = plans.jobs(build.repository, build.graphs, build.sizes, networks, options, cache)
    return {"plans": plans.build_plans(trt, jobs, build.placement, build.journal, build.say)}


def description(build: Build) -> dict:
    """What the stages need to know of the checkpoint."""
    config = build.checkpoint.clip_config() if build.dit.image_dim else None
    seen = {"pictures": 1 + bool(build.dit.image_positions)}
    clip = None if config is None else asdict(config) | {"tokens": config.tokens} | seen
    return {
        "clip": clip,
        "card": build.card.to_dict(),
        "caches": sorted(set.intersection(*map(set, build.checkpoint.caches))),
        "text": {"length": TEXT_LENGTH, "dim": build.text.d_model},
        "dit": asdict(build.dit),
        "precision": {"text_encoder": "float32", "denoise": "float32", "vae_decoder": "float32"},
        "model": build.model,
    }


def workstation_description(build: Build) -> dict:
    """Text encoder and decoder stay in the checkpoint, where their stages read them."""
    precise = "float32" if build.fit.device == "cpu" else "bfloat16"
    return description(build) | {
        "device": build.fit.device,
        "stream_text_encoder": build.fit.stream_text_encoder,
        "blocks_on_device": build.fit.blocks_on_device,
        "precision": {"text_encoder": precise, "denoise": build.fit.precision, "vae_decoder": "float32"},
    }


def gpu_description(build: Build) -> dict:
    described = description(build)
    slots = {"cache": decoder_slots(build.vae), "encoder_cache": encoder_slots(build.vae)}
    denoise = build.options.precision.preset
    return described | {
        "vae": {name: [[slot.channels, slot.frames, slot.scale] for slot in found] for name, found in slots.items()},
        "sizes": build.sizes.described(),
        "precision": {"text_encoder": "bfloat16", "denoise": denoise, "vae_decoder": "bfloat16"},
    }


def _cpu_options(build: Build) -> dict:
    """LoRAs count by content; another DiT is part of the source."""
    loras = [{"sha256": sha256_file(path), "strength": strength} for path, strength in build.options.loras]
    return {"denoise_instances": build.options.denoise_instances, "loras": loras}


def _workstation_options(build: Build) -> dict:
    precision = {"precision": asdict(Precision("fp8"))} if build.fit.precision == "fp8" else {}
    return _cpu_options(build) | {"fit": asdict(build.fit)} | precision


def _gpu_options(build: Build) -> dict:
    options, names = build.options, ("sizes", "size_range", "max_frames", "quality")
    nested = {"precision": asdict(options.precision), "plan": asdict(options.plan)}
    placement = {stage: list(at) for stage, at in build.placement.gpus.items()}
    placed = {"placement": placement, "parallel": str(build.placement.parallel), "blocks": build.blocks_on_device}
    return _cpu_options(build) | {name: getattr(options, name) for name in names} | nested | placed


def _plans_fit(manifest: dict, report: Callable[[str], None]) -> bool:
    """Whether the plans of a finished repository run here; on a machine without TensorRT or a GPU nothing says they do not."""
    try:
        trt = import_tensorrt()
    except ImportError:
        return True
    if not torch.cuda.is_available():
        return True
    try:
        for name, plan in manifest["plans"].items():
            check_plan(name, plan, trt.__version__, torch.cuda.get_device_capability(), "building it again")
    except ArtifactError as error:
        report(str(error))
        return False
    return True


def automatic() -> str:
    """The best target of this machine: plans need TensorRT and a Triton that serves on GPUs."""
    if not torch.cuda.is_available():
        return "cpu"
    try:
        import_tensorrt()
    except ImportError:
        return "workstation"
    return "gpu" if GPU_TRITON.is_dir() else "workstation"


TARGETS = {
    "cpu": Target(
        steps={
            "configurations": configurations,
            "tokenizer": tokenizer,
            "ONNX graphs": float32_graphs,
            "DiT weights": dit,
            "preview colours": preview,
            "description": description,
        },
        options=frozenset({"denoise_instances", "dit", "lora"}),
        code=("*.py", "onnx/*.py", "dit/*.py"),
        described=_cpu_options,
    ),
    "workstation": Target(
        steps={
            "configurations": configurations,
            "tokenizer": tokenizer,
            "DiT weights": workstation_dit,
            "preview colours": preview,
            "description": workstation_description,
        },
        options=frozenset({"denoise_instances", "dit", "lora", "device", "vram"}),
        code=("*.py", "dit/*.py"),
        described=_workstation_options,
    ),
    "gpu": Target(
        steps={
            "configurations": gpu_configurations,
            "tokenizer": tokenizer,
            "ONNX graphs": bf16_graphs,
            "DiT package": quantised_dit,
            "preview colours": preview,
            "TensorRT plans": tensorrt_plans,
            "description": gpu_description,
        },
        options=frozenset(
            {"denoise_instances", "dit", "lora", "precision", "keep_first", "keep_last", "no_quality", "placement"}
            | {"gpus", "sizes", "size_range", "max_frames", "workspace_gib", "optimization_level", "weight_streaming"}
            | {"version_compatible", "hardware_compatibility"}
        ),
        code=("**/*.py", "tensorrt/operators.json"),
        described=_gpu_options,
        placed=True,
        resumable=True,
        fits=_plans_fit,
    ),
}
