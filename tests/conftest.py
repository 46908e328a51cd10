"""Fixtures of the whole suite: the tiny checkpoint and one real Triton server that serves it."""

import atexit
import os
import re
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path

# Before torch loads: threads that spin for long while they wait take the cores from the server under test.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import pytest

from tests.leftovers import Session, mark_session

PROJECT_ROOT = Path(__file__).resolve().parent.parent
TINY = PROJECT_ROOT / "models" / "tiny"
REPOSITORY = PROJECT_ROOT / "build" / "test-repository"
# Repositories in temporary folders take the graphs of the session's one where text encoder and VAE are the same.
os.environ.setdefault("WAN_GRAPH_CACHE", str(PROJECT_ROOT / "build" / "test-graph-cache"))


def pytest_terminal_summary(terminalreporter):
    """Name the system packages that would enable what was skipped; a reason for skipping says `apt: PACKAGE`."""
    reasons = [report.longrepr[-1] for report in terminalreporter.getreports("skipped") if report.longrepr]
    missing = Counter(
        found[1] for reason in reasons if (found := re.search(r"apt(?:-get install|:) ([\w.+-]+)", reason))
    )
    if missing:
        counts = ", ".join(f"{package} ({count})" for package, count in missing.most_common())
        terminalreporter.write_line(f"Skipped for want of system packages: {counts}")
        terminalreporter.write_line(f"To run them: apt-get install {' '.join(sorted(missing))}")


def pytest_unconfigure():
    """Triton's bindings say at exit which of their objects live that long; the summary shall be the last that is said."""
    if "triton" in sys.modules:
        atexit.register(lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), 2))  # pytest gives the descriptor back before


TEMPORARY = mark_session()
# A shell that starts the suite in the background lets it ignore Ctrl-C, and the programs under test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_behind():
    """Set up before everything and so torn down after it: no process, port, shared memory or temporary file of ours is left."""
    session = Session(TEMPORARY)
    yield
    left = session.left_after(15)
    shutil.rmtree(TEMPORARY, ignore_errors=True)
    assert not left, "the tests left behind:\n" + "\n".join(left)


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """The checkpoint that ships with the project."""
    return TINY if (TINY / "transformer").is_dir() else PROJECT_ROOT / "build" / "tiny-random"


@pytest.fixture(scope="session")
def repository(checkpoint) -> Path:
    """The exported model repository with two denoise instances; kept between runs, exported again when anything changed."""
    from export.driver import export
    from export.options import Options

    export(checkpoint, "cpu", REPOSITORY, Options(denoise_instances=2), report=lambda text: None)
    return REPOSITORY


@pytest.fixture(scope="session")
def triton(repository, tmp_path_factory):
    """A real Triton server for the whole session: `.grpc_url`, `.http_url`, `.http_address`, `.metrics_url`, `.run_dir`.

    Steps of the tiny model take milliseconds, so checkpoints and previews are written after every one. Adapters may be put
    into the folder `loras` beside `.run_dir`.
    """
    from service.launcher.server import TritonServer

    folder = tmp_path_factory.mktemp("triton")
    eager = {"WAN_CHECKPOINT_SECONDS": "0.001", "WAN_PREVIEW_SECONDS": "0.001", "WAN_LORA_DIR": str(folder / "loras")}
    with TritonServer(repository, run_dir=folder / "run", log_path=folder / "triton.log", environment=eager) as server:
        yield server
