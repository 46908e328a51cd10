"""The whole service on this machine with a given number of workers, for measurements: `python -m loadtest serve`.

A worker is a worker process with one slot and a denoise instance of its own in the one Triton server.
"""

import argparse
import contextlib
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from loadtest.traffic.profile import Profile
from service.errors import SettingsError
from service.launcher.server import TritonServerError
from service.stack import ROOT, Stack, StackError

FOLDER = ROOT / "build" / "loadtest-stack"
CHECKPOINT = ROOT / "models" / "tiny"
Failure = (StackError, SettingsError, TritonServerError)


def add_options(parser: argparse._ActionsContainer) -> None:
    """What is served, for every program that starts this service."""
    parser.add_argument("--checkpoint", type=Path, metavar="FOLDER", default=CHECKPOINT, help="what it serves")
    parser.add_argument(
        "--repository",
        type=Path,
        metavar="FOLDER",
        help=f"serve this Triton model repository as it is; if not given, the checkpoint is exported to "
        f"{FOLDER.relative_to(ROOT)}/ as far as that is not up to date",
    )


@contextlib.contextmanager
def serving(checkpoint: Path, repository: Path | None, workers: int = 1, port: int = 0) -> Iterator[Stack]:
    """The service, without jobs of earlier runs, from ready to stopped; port 0 takes a free one."""
    folder = repository or exported(checkpoint, workers)
    settings = {"WAN_SLOTS": "1", "WAN_MODEL_CARD": str(checkpoint.absolute() / "wan.json")}
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="state-", dir=FOLDER) as state,
        Stack(folder, Path(state), port, workers=workers, environment=settings) as stack,
    ):
        yield stack


def exported(checkpoint: Path, workers: int) -> Path:
    """The model repository of the checkpoint with one denoise instance per worker; made or brought up to date."""
    repository = FOLDER / f"repository-{workers}"
    command = [sys.executable, "-m", "export", str(checkpoint.absolute()), "--target", "cpu"]
    command += ["--out", str(repository), "--denoise-instances", str(workers)]
    done = subprocess.run(command, cwd=ROOT, stdout=sys.stderr)
    if done.returncode:
        raise StackError(f"the export of {checkpoint} to {repository} ended with status {done.returncode}")
    return repository


def aimed(profile: Profile, stack: Stack) -> Profile:
    """The profile with the addresses of a running service in place of its own."""
    triton = stack.server
    urls = {"videos": stack.url, "triton-grpc": f"grpc://{triton.grpc_url}", "triton-http": triton.http_url}
    target = profile.target.model_copy(update={"url": urls[profile.target.kind]})
    metrics = profile.metrics
    if metrics.scrape:
        own = f"{stack.url}/metrics" if profile.target.kind == "videos" else triton.metrics_url
        metrics = metrics.model_copy(update={"scrape": (own,)})
    return profile.model_copy(update={"target": target, "metrics": metrics})


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, default=1, help="worker processes, each with a denoise instance")
    parser.add_argument("--port", type=int, default=3000, help="of the gateway; 0 takes a free one")
    add_options(parser)


def handle(given: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    ended = threading.Event()
    for order in (signal.SIGTERM, signal.SIGINT):
        signal.signal(order, lambda *_: ended.set())
    try:
        with serving(given.checkpoint, given.repository, given.workers, given.port) as stack:
            print(f"serving at {stack.url} with {given.workers} workers", flush=True)
            ended.wait()
    except Failure as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
