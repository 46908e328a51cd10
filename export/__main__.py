"""`python -m export CHECKPOINT --target cpu|gpu --out build/repository`: a checkpoint to a Triton model repository.

The repository appears complete or not at all. A second run with nothing changed does nothing.
"""

import argparse
import fcntl
import logging
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from export import gpu_command, manifest, paths, target_cpu
from export.onnx_graphs import GraphMismatch
from export.repository import exchange
from stages.artifacts import FORMAT
from wan.checkpoint import Checkpoint
from wan.errors import WanError

TARGETS = {"cpu": target_cpu.build}


def export(
    source: Path, target: str, out: Path, denoise_instances: int = 1, report: Callable[[str], None] = print
) -> bool:
    """Export `source` to `out`; returns whether anything was written. Raises WanError or GraphMismatch."""
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    with paths.lock(out).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second export of the same repository waits, then finds it current
        return _export_locked(source, target, out, denoise_instances, report)


def _export_locked(source: Path, target: str, out: Path, denoise_instances: int, report: Callable[[str], None]) -> bool:
    checkpoint = Checkpoint.open(source.resolve())
    old = manifest.read(out)
    wanted = {
        "format": FORMAT,
        "target": target,
        "options": {"denoise_instances": denoise_instances},
        "source": manifest.describe_source(checkpoint, (old or {}).get("source")),
        "code": manifest.describe_code(manifest.CPU_CODE),
    }
    if manifest.is_current(out, old, wanted, report):
        report(f"{out} is up to date")
        return False
    building = paths.building(out)
    shutil.rmtree(building, ignore_errors=True)
    began = time.monotonic()
    try:
        built = TARGETS[target](checkpoint, building, denoise_instances, _clocked(report))
        manifest.write(building, wanted | built | {"artifacts": manifest.describe_artifacts(building)})
        exchange(building, out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    report(f"{out} is complete after {time.monotonic() - began:.0f} s")
    return True


def _clocked(report: Callable[[str], None]) -> Callable[[str], None]:
    began = time.monotonic()
    return lambda what: report(f"[{time.monotonic() - began:5.1f} s] {what}")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"is {text}; allowed: 1 or more")
    return value


def _run(options: argparse.Namespace, arguments: list[str]) -> None:
    def report(text: str) -> None:
        print(text, flush=True)

    if options.target == "gpu":
        command = shlex.join(["python", "-m", "export", *arguments])
        gpu_command.export_gpu(options.checkpoint, options.out, gpu_command.options_of(options), command, report)
    else:
        export(options.checkpoint, options.target, options.out, options.denoise_instances, report)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m export", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="directory in the official Wan or the Diffusers layout")
    parser.add_argument("--target", choices=[*TARGETS, "gpu"], default="cpu")
    parser.add_argument("--out", type=Path, default=Path("build/repository"))
    parser.add_argument("--denoise-instances", type=_positive, default=1, help="requests that denoise runs at once")
    gpu_command.add_arguments(parser)
    options = parser.parse_args(arguments)
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):  # their notes are about the exporter, not about this export
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        _run(options, sys.argv[1:] if arguments is None else arguments)
    except (WanError, GraphMismatch, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
