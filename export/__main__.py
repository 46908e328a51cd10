"""`python -m export CHECKPOINT --target cpu|workstation|gpu|auto --out build/repository`: a checkpoint to a Triton model repository.

The repository appears complete or not at all. A second run with nothing changed does nothing.
"""

import argparse
import logging
import shlex
import sys
from pathlib import Path

from export.dit.lora import parse_lora_argument
from export.dit.precision import PRESETS, Precision
from export.driver import export
from export.onnx.graphs import GraphMismatch
from export.options import Options
from export.placement import GIB
from export.targets import TARGETS, automatic
from export.tensorrt.builder import HARDWARE, PlanOptions
from wan.errors import WanError

OF_EVERY_TARGET = {"checkpoint", "target", "out"}


class OptionError(WanError):
    """An option was given that the target cannot follow."""


def _positive(kind):
    def parse(text: str):
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"is {text}; allowed: {'1 or more' if kind is int else 'more than 0'}")
        return value

    return parse


def _parser() -> argparse.ArgumentParser:
    """No option has a default here, so that `_refuse` sees what was given."""
    parser = argparse.ArgumentParser(prog="python -m export", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="directory in the official Wan or the Diffusers layout")
    parser.add_argument(
        "--target", choices=(*TARGETS, "auto"), default="cpu", help="auto: what this machine serves best"
    )
    parser.add_argument("--out", type=Path, default=Path("build/repository"))
    add = parser.add_argument
    add("--denoise-instances", type=_positive(int), metavar="N", help="requests that denoise runs at once (default: 1)")
    add(
        "--dit", type=Path, metavar="PATH", action="append",
        help="take the DiT from this file or directory, FP8 formats included; twice for two experts, high noise first",
    )  # fmt: skip
    add("--lora", action="append", metavar="FILE[=STRENGTH]", help="merge into the DiT; repeatable")
    add("--device", metavar="cuda:N", help="of the workstation target, cpu to try it (default: the first GPU)")
    add(
        "--vram", type=_positive(float), metavar="GIB", help="memory that the workstation target may use (default: all)"
    )
    add = parser.add_argument_group("GPU target: the DiT").add_argument
    add("--precision", metavar="PRESET", help=f"{', '.join(PRESETS)} (default: fp8)")
    add("--keep-first", type=int, metavar="N", help="first blocks that stay in bfloat16")
    add("--keep-last", type=int, metavar="N", help="last blocks that stay in bfloat16")
    add("--no-quality", action="store_true", default=None, help="do not compare frames with the unquantised model's")
    add = parser.add_argument_group("GPU target: placement").add_argument
    add("--placement", help="as text_encoder=0,denoise=1-6,vae_decoder=7; denoise=0-7:cfg2xulysses4 (default: auto)")
    add("--gpus", metavar="NxGIB", help="GPUs of the target, as 8x80; default: those of this machine")
    add = parser.add_argument_group("GPU target: TensorRT plans").add_argument
    add("--sizes", metavar="WxH,...", help="video sizes to tune for (default: 480p and 720p, both ways)")
    add("--size-range", metavar="WxH:WxH", help="smallest and largest size of an additional range")
    add("--max-frames", type=_positive(int), metavar="N", help="longest video, for the memory table")
    add("--workspace-gib", type=_positive(float), metavar="N", help="memory that building a plan may use")
    add("--optimization-level", type=int, help="0 to 5 (default: 3)")
    add("--weight-streaming", action="store_true", default=None, help="VAE plans may keep weights on the host")
    add("--version-compatible", action="store_true", default=None, help="for later TensorRT versions of the same major")
    add("--hardware-compatibility", choices=HARDWARE)
    return parser


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _refuse(given: dict, target: str) -> None:
    """Raises OptionError for an option that the target would ignore."""
    allowed = TARGETS[target].options
    for name in given:
        if name not in allowed:
            shown = ", ".join(map(_flag, sorted(allowed)))
            raise OptionError(f"{_flag(name)} means nothing to --target {target}; allowed with it: {shown}")


def _options(given: dict) -> Options:
    """What was given as options; raises WanError for values that cannot be."""

    def some(*names: str) -> dict:
        return {name: given[name] for name in names if name in given}

    plan = some("optimization_level", "weight_streaming", "version_compatible", "hardware_compatibility")
    if "workspace_gib" in given:
        plan["workspace_bytes"] = int(given["workspace_gib"] * GIB)
    precision = some("keep_first", "keep_last") | {"preset": given.get("precision", Precision.preset)}
    return Options(
        precision=Precision(**precision),
        loras=tuple(parse_lora_argument(text) for text in given.get("lora", ())),
        quality="no_quality" not in given,
        plan=PlanOptions(**plan),
        dit=tuple(given.get("dit", ())),
        **some("denoise_instances", "device", "vram", "placement", "gpus", "sizes", "size_range", "max_frames"),
    )


def main(arguments: list[str] | None = None) -> int:
    parsed = _parser().parse_args(arguments)
    given = {k: v for k, v in vars(parsed).items() if v is not None and k not in OF_EVERY_TARGET}
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):  # their notes are about the exporter, not about this export
        logging.getLogger(name).setLevel(logging.ERROR)
    command = shlex.join(["python", "-m", "export", *(sys.argv[1:] if arguments is None else arguments)])
    try:
        target = automatic() if parsed.target == "auto" else parsed.target
        _refuse(given, target)
        options = _options(given)
        export(parsed.checkpoint, target, parsed.out, options, command, lambda text: print(text, flush=True))
    except (WanError, GraphMismatch, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
