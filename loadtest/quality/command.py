"""`python -m loadtest quality [OPTIONS …]`: what sets of options cost in quality and bring in speed.

Exit code: 0 every floor is met, 1 one is not, 2 the command could not be carried out.
"""

import argparse
import sys
from pathlib import Path

import torch

from loadtest.base.inputs import LoadTestError
from loadtest.quality import gate, perceptual, report
from loadtest.quality.evaluate import Case, Evaluation, scene_cases
from loadtest.quality.settings import COMPILED, DEFAULT, Setting, parse
from wan import compile
from wan.errors import WanError


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("options", nargs="*", help="e.g. teacache=0.1 linear=fp8 magcache=0.1+attention=int8")
    parser.add_argument("--checkpoint", default="models/tiny")
    parser.add_argument("--count", type=int, default=20, help="prompts of the tiny model's world")
    parser.add_argument(
        "--prompts", type=Path, help="text file, one prompt a line, instead; obedience is not checked then"
    )
    parser.add_argument("--floors", type=Path, default=gate.FLOORS_FILE)
    parser.add_argument("--out", type=Path, default=Path("build/quality"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def _cases(given: argparse.Namespace) -> list[Case]:
    if given.prompts is None:
        return scene_cases(given.count)
    lines = [line.strip() for line in given.prompts.read_text(encoding="utf-8").splitlines()]
    return [Case(line, seed) for seed, line in enumerate(line for line in lines if line)]


def _settings(given: argparse.Namespace) -> list[Setting]:
    """Those that were asked for, or all that this machine can run."""
    reason = compile.missing(torch.device(given.device))
    if not given.options and reason:
        print(f"left out: {COMPILED}, which {reason}", file=sys.stderr)
    default = [name for name in DEFAULT if not (reason and name == COMPILED)]
    return [parse(text) for text in given.options or default]


def handle(given: argparse.Namespace) -> int:
    try:
        floors = gate.load_floors(given.floors)
        evaluation = Evaluation(given.checkpoint, _settings(given), given.device)
        rows = evaluation.run(_cases(given), report=lambda text: print(text, file=sys.stderr))
    except (WanError, OSError) as error:
        raise LoadTestError(error) from error
    lacking = perceptual.lacking()
    about = {
        "checkpoint": str(given.checkpoint),
        "device": given.device,
        "torch": torch.__version__,
        "lacking": lacking,
    }
    report.write(rows, given.out, about)
    print(report.table(rows))
    for figure, needed in lacking.items():
        print(f"not measured: {figure}, this ffmpeg has no filter {needed}", file=sys.stderr)
    failed = gate.failures(rows, floors)
    for sentence in failed:
        print(f"below its floor: {sentence}", file=sys.stderr)
    return 1 if failed else 0
