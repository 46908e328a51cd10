"""`python -m loadtest cancel`: how fast does a cancel free the denoise stage of the real service?

Limit: one denoise step plus 200 ms. Exit code 1 if a run exceeds it.
"""

import argparse
import tempfile
import time
from pathlib import Path

import httpx

from contract.parameters import LOSSLESS
from service import options
from service.stack import ROOT, Stack

LIMIT_SECONDS = 0.2


def measure(url: str, runs: int) -> list[tuple[float, float]]:
    """(seconds from the call to the freed stage, seconds of the slowest step seen) for each run."""
    results = []
    with httpx.Client(base_url=url, timeout=30) as http:
        for number in range(runs):
            body = {
                "prompt": f"cancel {number}",
                "steps": 1000,
                "width": 64,
                "height": 64,
                "num_frames": 17,
                **LOSSLESS,
            }
            job = http.post("/v1/videos", json=body).raise_for_status().json()
            longest, step, changed = 0.0, 0, time.monotonic()
            while step < 8 + number % 5:
                video = http.get(f"/v1/videos/{job['id']}").json()
                if video["step"] > step > 0:
                    longest = max(longest, (time.monotonic() - changed) / (video["step"] - step))
                if video["step"] != step:
                    step, changed = video["step"], time.monotonic()
                time.sleep(0.01)
            began = time.monotonic()
            http.post(f"/v1/videos/{job['id']}/cancel").raise_for_status()
            while http.get(f"/v1/videos/{job['id']}").json()["status"] != "cancelled":
                time.sleep(0.005)
            results.append((time.monotonic() - began, longest))
    return results


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--repository", type=Path, default=ROOT / "build/repository")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "models/tiny")


def handle(given: argparse.Namespace) -> int:
    options.serve_model(given.checkpoint, given.repository)
    with tempfile.TemporaryDirectory(prefix="wan-cancel-") as folder, Stack(given.repository, Path(folder)) as stack:
        results = measure(stack.url, given.runs)
    late = [result for result in results if result[0] > result[1] + LIMIT_SECONDS]
    slowest = max(results)
    print(f"{len(results)} cancels, median {sorted(results)[len(results) // 2][0] * 1000:.0f} ms, ", end="")
    print(f"slowest {slowest[0] * 1000:.0f} ms (step {slowest[1] * 1000:.0f} ms); {len(late)} over one step + 200 ms")
    return 1 if late else 0
