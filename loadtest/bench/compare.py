"""Times two sides of a case in turn: each in its own process, one run at a time, order changing every round."""

import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import IO, cast

import torch

from loadtest.base.inputs import LoadTestError
from loadtest.bench.cases import Case, dit_flops


class Process:
    """A `loadtest.bench.worker`; leaves its loop when the context ends."""

    def __init__(self, side: str, case: Case):
        self._side = side
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        command = [sys.executable, "-m", "loadtest.bench.worker", side, json.dumps(case.as_dict())]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self._input, self._output = cast("IO[str]", self._process.stdin), cast("IO[str]", self._process.stdout)

    def __enter__(self) -> "Process":
        self._answer()
        return self

    def __exit__(self, *_) -> None:
        self._input.close()
        self._process.wait()
        self._errors.close()

    def _answer(self) -> dict:
        line = self._output.readline()
        if not line:
            self._errors.seek(0)
            raise LoadTestError(f"the {self._side} process ended: {self._errors.read()[-2000:]}")
        return json.loads(line)

    def ask(self, *command: str) -> dict:
        self._input.write(" ".join(command) + "\n")
        self._input.flush()
        return self._answer()


@dataclass
class Result:
    """Medians of a case; `ratio` is ours over theirs, `cpu_ratio` that of the
    processor time, which neighbours on the machine disturb less; `error` the largest difference over the largest value."""

    name: str
    repeats: int
    ours_seconds: float
    theirs_seconds: float | None = None
    ratio: float | None = None
    cpu_ratio: float | None = None
    error: float | None = None
    flops_per_second: float | None = None
    share_of_peak: float | None = None
    ours_bytes: int | None = None
    theirs_bytes: int | None = None
    engine: dict | None = None  # how ours computed, as INFO says it

    def as_dict(self) -> dict:
        return asdict(self)


def times(sides: dict[str, Process], repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds and cpu_seconds of each side, after one run that is not counted."""
    runs: dict[str, list[dict]] = {name: [] for name in sides}
    for i in range(repeats + 1):
        names = list(sides) if i % 2 else list(sides)[::-1]
        for name in names:
            took = sides[name].ask("run")
            if i:
                runs[name].append(took)
    return {name: {key: median(r[key] for r in made) for key in made[0]} for name, made in runs.items()}


def _difference(sides: dict[str, Process]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        tensors = []
        for name, side in sides.items():
            path = str(Path(folder) / name)
            side.ask("save", path)
            tensors.append(torch.load(path))
    ours, theirs = tensors
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def compare(case: Case, repeats: int, reference: bool = True) -> Result:
    """Time `case`, with diffusers beside it if `reference`."""
    with ExitStack() as stack:
        sides = {name: stack.enter_context(Process(name, case)) for name in ("ours", "diffusers")[: 1 + reference]}
        ours = sides["ours"]
        took = times(sides, repeats)
        seconds = {name: t["seconds"] for name, t in took.items()}
        memory = {name: side.ask("memory")["peak_bytes"] for name, side in sides.items()}
        engine = ours.ask("engine")["engine"]
        result = Result(case.name, repeats, seconds["ours"], ours_bytes=memory["ours"], engine=engine)
        if reference:
            result.theirs_seconds, result.theirs_bytes = seconds["diffusers"], memory["diffusers"]
            result.ratio, result.error = seconds["ours"] / seconds["diffusers"], _difference(sides)
            result.cpu_ratio = took["ours"]["cpu_seconds"] / took["diffusers"]["cpu_seconds"]
        flops = _flops(case, sides)
        if flops:
            result.flops_per_second = flops / seconds["ours"]
            result.share_of_peak = result.flops_per_second / ours.ask("peak")["peak_flops"]
        return result


def _flops(case: Case, sides: dict[str, Process]) -> float | None:
    """Operations of the task, whoever does it: the reference's count or, without one, the formula of the DiT."""
    if "diffusers" in sides:
        return sides["diffusers"].ask("flops")["flops"]
    if case.part == "dit":
        return dit_flops(case.architecture, case.shape)
    if case.part == "denoise" and case.architecture:
        return case.request["steps"] * dit_flops(case.architecture, case.shape, batch=2)
    return None
