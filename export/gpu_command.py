"""`python -m export CHECKPOINT --target gpu ...`: its options, and the run that continues or does nothing where it can."""

import argparse
import fcntl
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from export import manifest, paths
from export.lora import parse_lora_argument
from export.placement import GIB
from export.precision import PRESETS, Precision
from export.repository import exchange
from export.target_gpu import JOURNAL, GpuExport, GpuOptions, Keys, build, keep_package
from export.tensorrt_builder import HARDWARE, PlanOptions
from stages.artifacts import FORMAT, ArtifactError
from stages.plans import check_plan
from stages.trt_runtime import import_tensorrt
from wan.checkpoint import Checkpoint

Report = Callable[[str], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that only `--target gpu` knows."""
    model = parser.add_argument_group("GPU target: the DiT")
    model.add_argument("--precision", default="fp8", metavar="PRESET", help=f"{', '.join(PRESETS)} (default: fp8)")
    model.add_argument("--keep-first", type=int, default=0, metavar="N", help="first blocks that stay in bfloat16")
    model.add_argument("--keep-last", type=int, default=0, metavar="N", help="last blocks that stay in bfloat16")
    model.add_argument(
        "--dit", type=Path, metavar="PATH", help="take the DiT from this file or directory, FP8 formats included"
    )
    model.add_argument(
        "--lora", action="append", default=[], metavar="FILE[=STRENGTH]", help="merge before quantisation; repeatable"
    )
    model.add_argument(
        "--no-quality", action="store_true", help="do not compare frames with those of the unquantised model"
    )
    where = parser.add_argument_group("GPU target: placement")
    where.add_argument(
        "--placement", default="auto", help="as text_encoder=0,denoise=1-6,vae_decoder=7 (default: auto)"
    )
    where.add_argument("--gpus", metavar="NxGIB", help="GPUs of the target, as 8x80; default: those of this machine")
    plans = parser.add_argument_group("GPU target: TensorRT plans")
    plans.add_argument("--sizes", metavar="WxH,...", help="video sizes to tune for (default: 480p and 720p, both ways)")
    plans.add_argument("--size-range", metavar="WxH:WxH", help="smallest and largest size of an additional range")
    plans.add_argument("--max-frames", type=int, metavar="N", help="longest video, for the memory table")
    plans.add_argument("--workspace-gib", type=float, metavar="N", help="memory that building a plan may use")
    plans.add_argument("--optimization-level", type=int, default=3, help="0 to 5 (default: 3)")
    plans.add_argument("--weight-streaming", action="store_true", help="VAE plans may keep weights on the host")
    plans.add_argument(
        "--version-compatible", action="store_true", help="plans for later TensorRT versions of the same major"
    )
    plans.add_argument("--hardware-compatibility", choices=HARDWARE, default="none")


def options_of(parsed: argparse.Namespace) -> GpuOptions:
    """The parsed command line as options; raises WanError for values that cannot be."""
    plan = PlanOptions(
        workspace_bytes=int(parsed.workspace_gib * GIB) if parsed.workspace_gib else None,
        optimization_level=parsed.optimization_level,
        weight_streaming=parsed.weight_streaming,
        version_compatible=parsed.version_compatible,
        hardware_compatibility=parsed.hardware_compatibility,
    )
    return GpuOptions(
        precision=Precision(parsed.precision, parsed.keep_first, parsed.keep_last),
        dit=parsed.dit,
        loras=tuple(parse_lora_argument(text) for text in parsed.lora),
        placement=parsed.placement,
        gpus=parsed.gpus,
        denoise_instances=parsed.denoise_instances,
        sizes=parsed.sizes,
        size_range=parsed.size_range,
        max_frames=parsed.max_frames,
        plan=plan,
        quality=not parsed.no_quality,
    )


def export_gpu(source: Path, out: Path, options: GpuOptions, command: str = "", report: Report = print) -> bool:
    """Export `source` to `out`; returns whether anything was written.

    `command` is what to run to go on, for messages. Raises WanError and GraphMismatch.
    """
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    with paths.lock(out).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _export_locked(source, out, options, command, report)


def _export_locked(source: Path, out: Path, options: GpuOptions, command: str, report: Report) -> bool:
    checkpoint = Checkpoint.open(source.resolve())
    job = GpuExport(checkpoint, options)
    placement = job.place(report)
    old, building, graphs = manifest.read(out), paths.building(out), paths.graphs(out)
    wanted = {
        "format": FORMAT,
        "target": "gpu",
        "command": command,
        "options": options.described() | {"placement": {stage: list(at) for stage, at in placement.gpus.items()}},
        "source": _source(job.checkpoint, graphs),
        "code": manifest.describe_code(),
    }
    if manifest.is_current(out, old, wanted, report) and _plans_fit(old, report):
        report(f"{out} is up to date")
        return False
    report(job.memory_table(placement))
    keep_package(out, building)
    began = time.monotonic()
    built = build(job, placement, building, graphs, _keys(wanted), command, _clocked(began, report))
    artifacts = manifest.describe_artifacts(building)
    del artifacts[JOURNAL]  # needed until the manifest is there
    manifest.write(building, wanted | built | {"model": _model(wanted), "artifacts": artifacts})
    (building / JOURNAL).unlink()
    exchange(building, out)
    report(f"{out} is complete after {time.monotonic() - began:.0f} s")
    if options.plan.version_compatible:  # Triton loads such plans, which carry code of their own, only when told to
        report("start Triton with --backend-config=tensorrt,version-compatible=true")
    return True


def _clocked(began: float, report: Report) -> Report:
    return lambda what: report(f"[{time.monotonic() - began:5.1f} s] {what}")


def _source(checkpoint: Checkpoint, graphs: Path) -> dict:
    """The description of the checkpoint; hashes are kept with the graphs, since reading 70 GB again takes minutes."""
    graphs.mkdir(parents=True, exist_ok=True)
    stored = graphs / "source.json"
    try:
        known = json.loads(stored.read_text())
    except (OSError, ValueError):
        known = None
    described = manifest.describe_source(checkpoint, known)
    manifest.write_json(stored, described)
    return described


def _keys(wanted: dict) -> Keys:
    """What each part of the export depends on. The checkpoint's path does not count, so another machine can continue."""

    def key(*values) -> str:
        return hashlib.sha256(
            json.dumps([wanted["source"]["sha256"], wanted["code"], *values], sort_keys=True).encode()
        ).hexdigest()

    options = wanted["options"]
    return Keys(build=key(options), graphs=key(), package=key(options["precision"], options["loras"]))


def _model(wanted: dict) -> str:
    """What the weights are, whatever code made them: a step saved by one model is not continued by another."""
    parts = [wanted["source"]["sha256"], wanted["options"]["precision"], wanted["options"]["loras"]]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _plans_fit(old: dict, report: Report) -> bool:
    """Whether the plans of a finished repository run here; on a machine without TensorRT or a GPU nothing says they do not."""
    try:
        trt = import_tensorrt()
    except ImportError:
        return True
    if not torch.cuda.is_available():
        return True
    for name, plan in old["plans"].items():
        try:
            check_plan(name, plan, trt.__version__, torch.cuda.get_device_capability(), "building it again")
        except ArtifactError as error:
            report(str(error))
            return False
    return True
