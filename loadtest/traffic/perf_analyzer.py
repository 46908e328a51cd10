"""NVIDIA's perf_analyzer on the ensemble and on each stage, beside our own measurement of the same requests."""

import argparse
import json
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table

from loadtest.base.inputs import ProfileError, ToolError
from loadtest.base.stats import mean, percentile
from loadtest.traffic.options import add_profile_options, add_serve_options, folder_of, target_of
from loadtest.traffic.perf_binary import perf_analyzer
from loadtest.traffic.perf_data import write_input_data
from loadtest.traffic.profile import Closed, Profile, orders
from loadtest.traffic.session import run_profile


@dataclass(frozen=True)
class Measured:
    """One model's figures, in seconds; requests is how many were measured."""

    model: str
    tool: str
    requests: int
    mean: float
    p50: float
    p95: float
    per_minute: float

    @classmethod
    def of(cls, model: str, tool: str, seconds: list[float], per_minute: float) -> "Measured":
        median, p95 = percentile(seconds, 50), percentile(seconds, 95)
        return cls(model, tool, len(seconds), mean(seconds), median, p95, per_minute)


def measure_all(profile: Profile, folder: Path, allow_remote: bool, stages: bool = True) -> list[Measured]:
    """perf_analyzer on every model with one request in flight, then ours on the ensemble with the same inputs."""
    if profile.target.kind != "triton-grpc":
        raise ProfileError(f"target.kind is {profile.target.kind!r}; perf-analyzer needs triton-grpc")
    count = profile.limits.requests
    inputs = list(orders(profile, [0.0] * count))
    files = write_input_data(profile.target, inputs, folder)
    found = [
        run_tool(model, file, profile.target.url, count, profile.limits.request_seconds, folder)
        for model, file in files.items()
        if stages or model == profile.target.model
    ]
    return [*found, _ours(profile, allow_remote)]


def run_tool(model: str, data: Path, url: str, count: int, timeout: float, folder: Path) -> Measured:
    """perf_analyzer with exactly `count` requests, one after the other; its own export is the source of the figures.

    Its default windows (three of five seconds that agree) never settle when a request takes longer than a window.
    """
    binary, environment = perf_analyzer()
    export = folder / f"{model}.perf.json"
    export.unlink(missing_ok=True)  # of an earlier run: perf_analyzer refuses a path that exists
    command = [
        str(binary.absolute()),
        "-m",
        model,
        "-i",
        "grpc",
        "-u",
        urlsplit(url).netloc,
        "--async",
        "--input-data",
        str(data),
        "--concurrency-range",
        "1",
        "--request-count",
        str(count),
        "--profile-export-file",
        str(export),
    ]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise ToolError(f"perf_analyzer on {model} took more than {timeout:g} s") from error
    (folder / f"{model}.perf.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode or not export.is_file():
        said = done.stderr or done.stdout  # may be a page of options under the one line that matters
        cause = next((line for line in said.splitlines() if "error" in line.lower()), said[-600:])
        raise ToolError(f"perf_analyzer on {model} ended with status {done.returncode}: {cause}")
    return figures(model, export)


def figures(model: str, export: Path) -> Measured:
    """Read perf_analyzer's --profile-export-file: nanosecond timestamps of each request and its responses."""
    try:
        requests = json.loads(export.read_text(encoding="utf-8"))["experiments"][0]["requests"]
        spans = sorted((r["timestamp"] / 1e9, r["response_timestamps"][-1] / 1e9) for r in requests)
    except (ValueError, KeyError, IndexError) as error:
        raise ToolError(f"{export}: not an export of perf_analyzer: {error!r}") from error
    seconds = [end - start for start, end in spans]
    elapsed = max(end for _, end in spans) - spans[0][0]
    return Measured.of(model, "perf_analyzer", seconds, len(seconds) / elapsed * 60)


def _ours(profile: Profile, allow_remote: bool) -> Measured:
    """The same requests by our own client, one user in a closed loop."""
    closed = profile.model_copy(update={"load": Closed(kind="closed", users=1)})
    result = run_profile(closed, allow_remote)
    seconds = [record.total for record in result.records if record.ok]
    if not seconds:
        raise ToolError(f"no request of ours succeeded: {result.summary['errors']}")
    return Measured.of(profile.target.model, "loadtest", seconds, result.summary["throughput_per_minute"])


def disagreement(found: list[Measured], model: str) -> float:
    """Relative difference of both tools' mean latency on the ensemble."""
    by_tool = {measured.tool: measured.mean for measured in found if measured.model == model}
    return by_tool["perf_analyzer"] / by_tool["loadtest"] - 1


def add(parser: argparse.ArgumentParser) -> None:
    add_profile_options(parser)
    add_serve_options(parser)
    parser.add_argument("--no-stages", action="store_true", help="the ensemble only")
    parser.add_argument("--tolerance", type=float, default=0.1, help="how far the two tools' means may be apart")


def handle(given: argparse.Namespace) -> int:
    """Print both tools' figures; exit code 1 if they disagree."""
    with target_of(given) as (profile, _):
        folder = folder_of(given, f"perf-{profile.name}")
        found = measure_all(profile, folder, given.allow_remote, not given.no_stages)
    (folder / "perf.json").write_text(json.dumps([asdict(one) for one in found], indent=1), encoding="utf-8")
    table = Table("model", "tool", "requests", "mean (s)", "p50 (s)", "p95 (s)", "per minute", box=None)
    for one in found:
        table.add_row(
            one.model,
            one.tool,
            str(one.requests),
            *(f"{v:.4f}" for v in (one.mean, one.p50, one.p95)),
            f"{one.per_minute:.1f}",
        )
    Console().print(table)
    apart = disagreement(found, profile.target.model)
    print(f"perf_analyzer's mean on {profile.target.model} is {apart:+.1%} against ours; files: {folder}")
    return 0 if abs(apart) <= given.tolerance else 1
