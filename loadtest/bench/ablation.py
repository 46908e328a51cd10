"""One option more in each row: what it brings to the whole denoise loop, and whether it loses anything."""

from dataclasses import dataclass

from loadtest.bench.cases import Case
from loadtest.bench.compare import Process, times
from wan.attention import BACKENDS, EIGHT_BIT, choose, unusable
from wan.compile import missing as compiler_missing
from wan.fp8 import is_native
from wan.fusion.blocks import missing as blocks_missing
from wan.onednn import missing as onednn_missing


@dataclass(frozen=True)
class Step:
    """A row of the ablation, on top of the ones above it."""

    option: str
    lossless: bool
    loading: dict
    request: dict


def steps(device, caches: dict[str, float]) -> list[Step]:
    """The rows that this machine can run; `caches` names a threshold for each calibrated step cache."""
    rows = [
        Step(
            "plain PyTorch, work once per request",
            True,
            {"linear": "dense", "attention": "sdpa", "compile": False, "fuse": False},
            {},
        )
    ]
    if onednn_missing(device) is None:
        rows.append(Step("oneDNN linear layers, GELU fused", True, {"linear": "onednn"}, {}))
    best = choose("auto", device).name
    if best != "sdpa":
        rows.append(Step(f"{best} attention", True, {"attention": best}, {}))
    if device.type == "cuda" and compiler_missing(device) is None:
        rows.append(Step("compiled blocks", True, {"compile": True}, {}))
    if blocks_missing(device) is None:
        rows.append(Step("our kernels between products", True, {"fuse": True}, {}))
    if device.type == "cuda":
        rows.append(Step("FP8 linear layers", False, {"linear": "fp8"}, {}))
        if is_native(device):
            rows.append(Step("sums of 14 bits", False, {"linear": "fp8-fast"}, {}))
        eight_bit = next((n for n in EIGHT_BIT if unusable(BACKENDS[n], device) is None), None)
        rows += [Step(f"{eight_bit} attention", False, {"attention": eight_bit}, {})] if eight_bit else []
    rows += [
        Step(f"{name} {threshold:g}", False, {}, {"cache": name, "cache_threshold": threshold})
        for name, threshold in list(caches.items())[:1]
    ]
    rows.append(Step("no guidance in the last quarter", False, {}, {"guidance_end": 0.75}))
    return rows


def ablate(case: Case, rows: list[Step], repeats: int) -> list[dict]:
    """Median seconds of `case` (a denoise) with each row's options and all above; speed-up against the first row."""
    loading: dict = {}
    request: dict = {}
    results: list[dict] = []
    for row in rows:
        loading, request = loading | row.loading, request | row.request
        one = Case(**case.as_dict() | {"loading": loading, "request": case.request | request})
        with Process("ours", one) as process:
            seconds = times({"ours": process}, repeats)["ours"]["seconds"]
            engine = process.ask("engine")["engine"]
        results.append({"option": row.option, "lossless": row.lossless, "seconds": seconds, "engine": engine})
    for result in results:
        result["speed_up"] = results[0]["seconds"] / result["seconds"]
    return results
