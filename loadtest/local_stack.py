"""The whole service on this machine with a given number of workers, for measurements: `python -m loadtest.local_stack`.

A worker is a worker process with one slot and a denoise instance of its own in the one Triton server.
"""

import argparse
import signal
import sys
import threading
from pathlib import Path

from service.errors import SettingsError
from service.stack import ROOT, Stack, StackError
from service.tritonserver import TritonServerError

FOLDER = ROOT / "build" / "loadtest-stack"


def main(arguments: list[str] | None = None) -> int:
    """Export with as many denoise instances as there are workers, and serve until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.local_stack", description=__doc__.split(":")[0])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--port", type=int, default=3000)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "models" / "tiny")
    given = parser.parse_args(arguments)
    ended = threading.Event()
    for order in (signal.SIGTERM, signal.SIGINT):
        signal.signal(order, lambda *_: ended.set())
    try:
        repository = exported(given.checkpoint, given.workers)
        settings = {"WAN_SLOTS": "1", "WAN_MODEL_CARD": str(given.checkpoint.absolute() / "wan.json")}
        state = FOLDER / f"state-{given.workers}"
        with Stack(repository, state, given.port, workers=given.workers, environment=settings):
            print(f"serving on port {given.port} with {given.workers} workers", flush=True)
            ended.wait()
    except (StackError, SettingsError, TritonServerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def exported(checkpoint: Path, workers: int) -> Path:
    """The model repository of the checkpoint with one denoise instance per worker; made or brought up to date."""
    from export.__main__ import export

    repository = FOLDER / f"repository-{workers}"
    export(checkpoint, "cpu", repository, denoise_instances=workers, report=lambda text: print(text, flush=True))
    return repository


if __name__ == "__main__":
    sys.exit(main())
