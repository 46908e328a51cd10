"""`python -m loadtest bench`: ours beside diffusers on this machine, then one option after the other.

With --random-weights the real sizes run on a GPU without a checkpoint.
"""

import argparse
import json
import platform
import re
import sys
from pathlib import Path

import torch

from loadtest.base.inputs import LoadTestError
from loadtest.bench import cases, report
from loadtest.bench.ablation import ablate, steps
from loadtest.bench.compare import Result, compare
from wan.checkpoint import Checkpoint
from wan.errors import WanError


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", default="models/tiny", help="in the Diffusers layout")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each side; the median counts")
    parser.add_argument("--only", choices=("dit", "denoise", "vae", "text", "ablation"), help="one part")
    parser.add_argument("--random-weights", choices=tuple(cases.ARCHITECTURES), help="a real size without a checkpoint")
    parser.add_argument("--size", default="832x480", help="WIDTHxHEIGHT with --random-weights")
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--linear", default="auto")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: on a GPU")
    parser.add_argument("--no-reference", action="store_true", help="without diffusers")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="of each process; 0 = all cores")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))


def _cases(given: argparse.Namespace) -> list[cases.Case]:
    if not given.random_weights:
        chosen = cases.standard(given.checkpoint, given.device, given.threads)
    else:
        width, height = map(int, given.size.split("x"))
        loading = {"linear": given.linear, "attention": given.attention, "compile": given.compile}
        size = (width, height, given.frames, given.steps)
        chosen = cases.random_weights(given.random_weights, *size, given.device, loading)
    return [case for case in chosen if given.only in (None, case.part)]


def _ablation(given: argparse.Namespace, chosen: list[cases.Case]) -> list[dict]:
    denoising = [case for case in chosen if case.part == "denoise"]
    if given.only not in (None, "ablation"):
        return []
    case = denoising[0] if denoising else cases.standard(given.checkpoint, given.device, given.threads)[2]
    caches = Checkpoint.open(case.checkpoint).caches[0] if case.checkpoint else {}
    thresholds = {"teacache": 0.1, "magcache": 0.1}
    rows = steps(torch.device(given.device), {name: thresholds[name] for name in caches})
    return ablate(case, rows, given.repeats)


def handle(given: argparse.Namespace) -> int:
    try:
        chosen = _cases(given)
        results = []
        for case in chosen:
            results.append(compare(case, given.repeats, reference=not given.no_reference))
            print(report.comparison_table(results[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
        _write(given, results, [])  # the ablation may still fail
        rows = _ablation(given, chosen)
    except (WanError, OSError, ValueError) as error:
        raise LoadTestError(error) from error
    print(_write(given, results, rows))
    return 0


def _write(given: argparse.Namespace, results: list[Result], rows: list[dict]) -> str:
    """bench.json and bench.md; returns the tables."""
    on_gpu = given.device.startswith("cuda")
    machine = torch.cuda.get_device_name() if on_gpu else _processor()
    about = {"machine": machine, "torch": torch.__version__, "threads": given.threads or torch.get_num_threads()}
    given.out.mkdir(parents=True, exist_ok=True)
    content = about | {"results": [r.as_dict() for r in results], "ablation": rows}
    (given.out / "bench.json").write_text(json.dumps(content, indent=1) + "\n")
    tables = [report.comparison_table(results)] if results else []
    tables += [report.ablation_table(rows)] if rows else []
    text = "\n\n".join(tables)
    (given.out / "bench.md").write_text(text + "\n")
    return text


def _processor() -> str:
    names = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"{len(names)} x {names[0]}" if names else platform.machine()
