"""One side of a comparison in a process of its own: `python -m loadtest bench.worker SIDE CASE` obeys lines on stdin.

run: run once, answer {"seconds", "cpu_seconds"}. flops: the operations of one run, counted by PyTorch. peak: the machine's best
matrix product. engine: how it computed. save PATH: store the last result. memory: peak memory of the runs. One JSON line answers each.
"""

import gc
import json
import re
import sys
import time
from pathlib import Path

import torch

from loadtest.bench.cases import Case
from loadtest.bench.implementations import SIDES

PEAK_SIZE = {"cpu": 2048, "cuda": 8192}


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def peak_flops(device: str, dtype: torch.dtype, repeats: int = 5) -> float:
    """Operations a second of a large square matrix product by the fastest library at hand."""
    from wan import onednn

    n = PEAK_SIZE[torch.device(device).type]
    a, b = torch.randn(2, n, n, device=device).to(dtype).unbind(0)
    product = onednn.linear if onednn.missing(torch.device(device)) is None else torch.mm
    best = float("inf")
    for _ in range(repeats + 1):
        synchronize(device)
        began = time.perf_counter()
        product(a, b)
        synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best


def _forget_peak(device: str) -> None:
    """Let the peak memory of this process (proc(5), clear_refs) or GPU start again from what it holds now."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    Path("/proc/self/clear_refs").write_text("5")


def _peak_rss() -> int:
    """Bytes."""
    found = re.findall(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return 1024 * int(found[0])


class Worker:
    def __init__(self, side: str, case: Case):
        if case.threads:
            torch.set_num_threads(case.threads)
        self._case, self._result = case, torch.empty(0)
        self._run = SIDES[side](case)
        gc.collect()
        _forget_peak(case.device)  # loading may take more than running, and is not what is compared

    def run(self) -> dict:
        synchronize(self._case.device)
        began, cpu_began = time.perf_counter(), time.process_time()
        self._result = self._run()
        synchronize(self._case.device)
        return {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu_began}

    def flops(self) -> dict:
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            self._run()
        return {"flops": float(counter.get_total_flops())}

    def peak(self) -> dict:
        return {"peak_flops": peak_flops(self._case.device, getattr(torch, self._case.dtype))}

    def memory(self) -> dict:
        """Peak bytes of the runs, loaded model included: of the allocator on a GPU, else of the process."""
        on_gpu = self._case.device.startswith("cuda")
        return {"peak_bytes": torch.cuda.max_memory_allocated(self._case.device) if on_gpu else _peak_rss()}

    def engine(self) -> dict:
        """How the last run computed, as INFO says it; empty for what is not the DiT."""
        loaded = getattr(self._run, "denoiser", None)
        return {"engine": loaded.engine if loaded else {}}

    def save(self, path: str) -> dict:
        torch.save(self._result.float().cpu(), path)
        return {}


def main() -> None:
    side, case = sys.argv[1], Case.from_dict(json.loads(sys.argv[2]))
    with torch.inference_mode():
        worker = Worker(side, case)
        print("{}", flush=True)  # ready
        for line in sys.stdin:
            command, *given = line.split()
            print(json.dumps(getattr(worker, command)(*given)), flush=True)


if __name__ == "__main__":
    main()
