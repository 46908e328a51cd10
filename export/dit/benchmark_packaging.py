"""`python -m export.dit.benchmark_packaging CHECKPOINT`: peak memory and time of packaging the DiT.

Anonymous memory is what packaging allocates itself; the resident set also counts pages of the mapped source files,
which the kernel drops when it needs the room. The bar: one shard plus one tensor, over what the process held before.
"""

import argparse
import json
import tempfile
import threading
import time
from math import prod
from pathlib import Path

from export.dit.formats import DitWeights
from export.dit.package import SHARD_BYTES, contents, package, shards
from export.dit.precision import PRESETS, Precision
from wan.checkpoint import Checkpoint

MIB = 1 << 20
INTERVAL = 0.005
# Of the tensor at hand: the float32 source, the quotient, and the difference for the error report.
TENSOR_COPIES = 3


def _status(field: str) -> int:
    """Bytes of one line of /proc/self/status, such as RssAnon."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {field}")


class Peak:
    """Largest anonymous and resident memory while the block runs, sampled."""

    def __enter__(self) -> "Peak":
        self.before = _status("RssAnon")
        self.anonymous = self.resident = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._stop.wait(INTERVAL):
            self.anonymous = max(self.anonymous, _status("RssAnon"))
            self.resident = max(self.resident, _status("VmRSS"))

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()


def benchmark(source: Path, folder: Path, preset: str, shard_bytes: int = SHARD_BYTES) -> dict:
    """Package the DiT of `source` into `folder`; returns what it took, in MiB and seconds."""
    checkpoint = Checkpoint.open(source)
    weights, precision = DitWeights(checkpoint.dit_tensors()), Precision(preset)
    entries = contents(weights, precision, checkpoint.dit_config().num_layers)
    largest_shard = max(sum(entry.bytes for entry in group) for group in shards(entries, shard_bytes))
    largest_tensor = max(4 * prod(entry.shape) for entry in entries)
    began = time.monotonic()
    with Peak() as peak:
        described = package(checkpoint, weights, folder, precision, [], "benchmark", shard_bytes=shard_bytes)
    return {
        "checkpoint": source.name,
        "precision": preset,
        "package_mib": described["bytes"] // MIB,
        "source_mib": sum(4 * prod(entry.shape) for entry in entries) // MIB,
        "largest_shard_mib": largest_shard // MIB,
        "largest_tensor_float32_mib": largest_tensor // MIB,
        "allowed_mib": (largest_shard + TENSOR_COPIES * largest_tensor) // MIB,
        "peak_anonymous_mib": (peak.anonymous - peak.before) // MIB,
        "peak_resident_mib": peak.resident // MIB,
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m export.dit.benchmark_packaging", description=__doc__.split("\n")[0]
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--precision", choices=PRESETS, default="fp8")
    parser.add_argument("--shard-mib", type=int, default=SHARD_BYTES // MIB)
    parser.add_argument(
        "--scratch", type=Path, help="where the package is written and deleted (default: the temporary directory)"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        print(
            json.dumps(
                benchmark(options.checkpoint, Path(folder), options.precision, options.shard_mib * MIB), indent=1
            )
        )


if __name__ == "__main__":
    main()
