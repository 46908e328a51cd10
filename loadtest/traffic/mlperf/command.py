"""`python -m loadtest mlperf`: SingleStream, Offline or Server by LoadGen, against the service or the bare ensemble.

Exit code 0: LoadGen calls the result valid, and its figure and ours differ by at most 2 %.
"""

import argparse
import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

from loadtest.base.inputs import ToolError
from loadtest.traffic import local_stack
from loadtest.traffic.mlperf.referee import SCENARIOS, Rules, judge
from loadtest.traffic.mlperf.system import Ensemble, Service, System
from loadtest.traffic.mlperf.workload import WORKLOADS, requests
from loadtest.traffic.options import add_serve_options, folder_of
from loadtest.traffic.targets.guard import refuse_remote

AGREE = 0.02
SHARE = {"Server": 0.5, "Offline": 4.0}  # of the rate of one request at a time; Offline must expect enough to last
SERVICE, ENSEMBLE = "http://127.0.0.1:3000", "127.0.0.1:8001"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scenario", choices=SCENARIOS, default=SCENARIOS[0])
    parser.add_argument("--target", choices=("service", "ensemble"), default="service", help="what is measured")
    parser.add_argument("--url", help=f"of the service ({SERVICE}), or HOST:PORT of Triton's gRPC ({ENSEMBLE})")
    parser.add_argument("--api-key", help="for a service that asks for one")
    parser.add_argument("--workload", choices=tuple(WORKLOADS), default="tiny", help="what is asked for")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="one a line; the project's own if not given")
    parser.add_argument("--accuracy", action="store_true", help="every prompt once, and the videos are kept")
    parser.add_argument("--min-seconds", type=float, default=60.0, help="600 in MLPerf")
    parser.add_argument("--min-queries", type=int, default=100, help="LoadGen needs 64 to be sure of a 90th percentile")
    parser.add_argument(
        "--rate",
        type=float,
        help="videos a second: sent (Server; half of what one request at a time reaches if not given) or expected (Offline)",
    )
    parser.add_argument("--latency", type=float, default=10.0, help="seconds that 90 %% may take (Server)")
    parser.add_argument("--at-once", type=int, default=64, help="most requests under way")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder of the result")
    parser.add_argument("--allow-remote", action="store_true", help="permit targets that are not this machine")
    add_serve_options(parser)


def handle(given: argparse.Namespace) -> int:
    """Measure, and leave LoadGen's logs and `mlperf.json` in the folder."""
    folder = folder_of(given, f"mlperf-{given.scenario}")
    with _system(given) as system:
        system.check()
        wanted = requests(given.workload, given.prompts)
        rate = given.rate or SHARE.get(given.scenario, 1) / _seconds_alone(system, wanted[0])
        rules = Rules(given.scenario, given.min_seconds, given.min_queries, rate, given.latency, given.accuracy)
        result = judge(system, wanted, rules, given.at_once, folder)
    result |= {"target": given.target, "workload": given.workload, "prompts": str(given.prompts or "own, not MLPerf's")}
    (folder / "mlperf.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1), f"LoadGen's logs: {folder}", sep="\n")
    return 0 if result["valid"] and result.get("difference", 0) <= AGREE else 1


def _seconds_alone(system: System, request: dict) -> float:
    """What a video takes; the first one may load or compile something."""
    system.make(request)
    begin = time.perf_counter()
    system.make(request)
    return time.perf_counter() - begin


@contextlib.contextmanager
def _system(given: argparse.Namespace) -> Iterator[System]:
    with contextlib.ExitStack() as stack:
        url = given.url or (SERVICE if given.target == "service" else ENSEMBLE)
        if given.serve:
            try:
                running = stack.enter_context(local_stack.serving(given.checkpoint, given.repository))
            except local_stack.Failure as error:
                raise ToolError(f"--serve: {error}") from error
            url = running.url if given.target == "service" else running.server.grpc_url
        refuse_remote(url if "://" in url else f"grpc://{url}", given.allow_remote)
        yield Service(url, given.api_key) if given.target == "service" else Ensemble(url)
