"""`python -m loadtest gpu`: is this GPU's arithmetic right, and how near its limit is it? No weights are needed.

Steps of random weights are timed and stand for a whole run. What was measured is kept, so that a run which was
interrupted, or whose minutes were over, continues. On a CPU its small form runs, which shows that the command works.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from loadtest.base.inputs import LoadTestError
from loadtest.base.report import markdown
from loadtest.bench.cases import ARCHITECTURES, GEOMETRY, Case, random_weights
from loadtest.bench.checks import checks
from loadtest.bench.compare import compare
from wan.attention import BACKENDS, EIGHT_BIT, unusable
from wan.fp8 import is_native

TIMED_STEPS = 2
SMALL = {"dim": 256, "num_layers": 1, "num_heads": 2, "ffn_dim": 512}


@dataclass(frozen=True)
class Shape:
    """A video whose making is measured, and the number of steps that its time is given for."""

    architecture: str
    width: int
    height: int
    frames: int
    steps: int

    @property
    def title(self) -> str:
        return f"{self.architecture} {self.width}x{self.height}x{self.frames}"


SHAPES = (
    Shape("t2v-1.3b", 832, 480, 81, 50),
    Shape("t2v-14b", 832, 480, 81, 40),
    Shape("t2v-14b", 1280, 720, 81, 20),  # MLPerf's
)
SMALL_SHAPES = (Shape("small", 64, 64, 5, 20),)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=10.0, help="begin nothing after so long; run again to go on")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"))


def levels(device: torch.device) -> dict[str, dict]:
    """Options at loading, from lossless to what loses most."""
    found: dict[str, dict] = {"lossless": {}, "FP8": {"linear": "fp8"}}
    if is_native(device):
        found["FP8, sums of 14 bits"] = {"linear": "fp8-fast"}
    for name in EIGHT_BIT:
        if unusable(BACKENDS[name], device) is None:
            found[f"FP8, {name} attention"] = {"linear": "fp8", "attention": name}
            break
    return found


def _architectures(device: torch.device) -> dict[str, dict]:
    return {"small": SMALL} if device.type == "cpu" else ARCHITECTURES


def _denoise(shape: Shape, loading: dict, device: str) -> dict:
    """Of all steps, from those that were timed."""
    size = (shape.width, shape.height, shape.frames)
    if shape.architecture == "small":
        request = dict(zip(("width", "height", "num_frames"), size, strict=True)) | {"steps": TIMED_STEPS}
        latents = GEOMETRY.latent_shape(*size)
        case = Case(shape.title, "denoise", shape=latents, architecture=SMALL, loading=loading, request=request)
    else:
        case = random_weights(shape.architecture, *size, TIMED_STEPS, device, loading)[1]
    found = compare(case, 1, reference=False)
    return {
        "seconds": found.ours_seconds * shape.steps / TIMED_STEPS, "steps": shape.steps, "bytes": found.ours_bytes,
        "share_of_peak": found.share_of_peak, "engine": found.engine,
    }  # fmt: skip


def _decode(shape: Shape, device: str) -> dict:
    latents = GEOMETRY.latent_shape(shape.width, shape.height, shape.frames)
    found = compare(Case(f"decode {shape.title}", "vae", device=device, shape=latents), 1, reference=False)
    return {"seconds": found.ours_seconds, "bytes": found.ours_bytes}


def jobs(device: str) -> Iterator[tuple[str, Callable[[], dict]]]:
    """Named measurements, the cheap and telling ones first."""
    kind = torch.device(device)
    shapes = SMALL_SHAPES if kind.type == "cpu" else SHAPES
    for shape in shapes:
        yield f"checks {shape.title}", partial(_checked, shape, kind)
    for level, loading in levels(kind).items():
        for shape in shapes:
            yield f"denoise {shape.title}, {level}", partial(_denoise, shape, loading, device)
    for shape in {(s.width, s.height, s.frames): s for s in shapes}.values():
        yield f"decode {shape.width}x{shape.height}x{shape.frames}", partial(_decode, shape, device)


@torch.inference_mode()
def _checked(shape: Shape, device: torch.device) -> dict:
    tokens = GEOMETRY.tokens(shape.width, shape.height, shape.frames)
    return {"rows": [c.row() for c in checks(device, _architectures(device)[shape.architecture], tokens)]}


def measure(job: Callable[[], dict]) -> dict:
    """The result of a job; what went wrong is one too."""
    try:
        return job()
    except (LoadTestError, RuntimeError) as error:
        return {"failed": str(error)[-500:]}
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the next one may be another process


def handle(given: argparse.Namespace) -> int:
    began, path = time.monotonic(), given.out / "gpu.json"
    machine = torch.cuda.get_device_name(given.device) if given.device.startswith("cuda") else "CPU, small form"
    about = {"machine": machine, "torch": torch.__version__}
    known = json.loads(path.read_text()) if path.is_file() and not given.fresh else {}
    done: dict[str, dict] = known.get("done", {}) if known.get("about") == about else {}
    given.out.mkdir(parents=True, exist_ok=True)
    left = 0
    for name, job in jobs(given.device):
        if name in done and "failed" not in done[name]:
            continue
        if time.monotonic() - began > 60 * given.minutes:
            left += 1
            continue
        print(name, file=sys.stderr, flush=True)
        done[name] = measure(job)
        path.write_text(json.dumps({"about": about, "done": done}, indent=1) + "\n")
    text = report(machine, done, left)
    (given.out / "gpu.md").write_text(text + "\n")
    print(text)
    return 0 if not left and all_right(done) else 1


def all_right(done: dict[str, dict]) -> bool:
    """Whether nothing failed and every check was met."""
    rows = [row for found in done.values() for row in found.get("rows", [])]
    return not any("failed" in found for found in done.values()) and all(row.get("right", True) for row in rows)


def report(machine: str, done: dict[str, dict], left: int) -> str:
    """Two tables, and which rows of the README they fill."""
    right, timed, fill = [], [], []
    for name, found in done.items():
        for row in found.get("rows", []):
            verdict = row.get("missing") or row.get("failed") or ("right" if row["right"] else "WRONG")
            right.append((row["name"], f"{row['difference']:.1e}" if "difference" in row else "", verdict))
        if "failed" in found:
            timed.append((name, "failed", "", "", ""))
        elif "seconds" in found:
            share = found.get("share_of_peak")
            cells = (f"{found['seconds']:.1f} s", str(found.get("steps", "")), f"{100 * share:.0f} %" if share else "")
            timed.append((name, *cells, f"{found['bytes'] / 1e9:.1f} GB"))
            if machine != "CPU, small form":
                fill.append(f"| {machine} | {name}: {found['seconds']:.1f} s | `python -m loadtest gpu` |")
    tables = [
        markdown(right, ("computation", "relative difference from float32", "verdict")),
        markdown(timed, (machine, "time", "steps", "of the best matrix product", "peak memory")),
    ]
    filled = "\n".join(["README, in the place of `H100/H200 | not measured`:", *fill])
    closing = filled if fill else "README: nothing to fill in; figures of a GPU need a GPU."
    unfinished = [f"{left} measurements are left; the same command goes on."] if left else []
    return "\n\n".join([*tables, *unfinished, closing])
