"""A test under LoadGen: it decides when what is sent, and whether the result is valid."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import mlperf_loadgen as lg
import numpy as np

from loadtest.base.inputs import ToolError
from loadtest.traffic.mlperf.system import System

SCENARIOS = ("SingleStream", "Offline", "Server")
# Key of mlperf_log_detail.txt that is the result (the summary rounds it to hundredths), its unit, and our name of it.
RESULTS = {
    "SingleStream": ("result_90.00_percentile_latency_ns", 1e-9, "p90_seconds"),
    "Offline": ("result_samples_per_second", 1.0, "samples_per_second"),
    "Server": ("result_completed_samples_per_sec", 1.0, "completed_per_second"),
}
MARK = ":::MLLOG "


@dataclass(frozen=True)
class Rules:
    """`expected`: seconds a video takes alone; `rate`: videos a second (Server: to be sent, Offline: expected)."""

    scenario: str
    min_seconds: float
    min_queries: int
    rate: float
    latency_seconds: float
    accuracy: bool = False

    def settings(self) -> "lg.TestSettings":
        settings = lg.TestSettings()
        settings.scenario = getattr(lg.TestScenario, self.scenario)
        settings.mode = lg.TestMode.AccuracyOnly if self.accuracy else lg.TestMode.PerformanceOnly
        settings.min_duration_ms, settings.min_query_count = int(1000 * self.min_seconds), self.min_queries
        settings.single_stream_target_latency_percentile = 0.9
        settings.offline_expected_qps = self.rate
        settings.server_target_qps = self.rate
        settings.server_target_latency_ns = int(1e9 * self.latency_seconds)
        settings.server_target_latency_percentile = 0.9
        return settings


@dataclass
class Taken:
    """What our side saw: begin and end of every sample by its number at LoadGen, on one clock."""

    spans: dict[int, tuple[float, float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def figures(self) -> dict:
        seconds = sorted(end - begin for begin, end in self.spans.values())
        if not seconds:
            return {"samples": 0, "errors": len(self.errors)}
        whole = max(end for _, end in self.spans.values()) - min(begin for begin, _ in self.spans.values())
        place = min(len(seconds) - 1, int(0.9 * len(seconds)))  # as LoadGen counts
        return {"samples": len(seconds), "errors": len(self.errors), "p90_seconds": seconds[place],
                "samples_per_second": len(seconds) / whole,
                "completed_per_second": (len(seconds) - 1) / whole}  # as LoadGen's Server counts  # fmt: skip


def judge(system: System, requests: list[dict], rules: Rules, at_once: int, folder: Path) -> dict:
    """Run the test; LoadGen's logs go to `folder`. Returns its verdict and figures beside ours."""
    taken = Taken()
    videos = folder / "videos" if rules.accuracy else None
    if videos is not None:
        videos.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(at_once, "sample") as pool:
        queries = lg.ConstructSUT(_issue(system, requests, taken, pool, videos), lambda: None)
        library = lg.ConstructQSL(len(requests), len(requests), lambda samples: None, lambda samples: None)
        logs = lg.LogSettings()
        logs.log_output.outdir, logs.log_output.copy_summary_to_stdout = str(folder), False
        logs.enable_trace = False
        # no audit file: that is a matter of official submissions
        lg.StartTestWithLogSettings(queries, library, rules.settings(), logs, "")
        lg.DestroyQSL(library)
        lg.DestroySUT(queries)
    if videos is not None:
        samples = [{"file": f"{i}.{system.suffix}", **request} for i, request in enumerate(requests)]
        (videos / "samples.json").write_text(json.dumps(samples, ensure_ascii=False, indent=1))
    return _result(folder, rules, taken)


def _issue(system: System, requests: list[dict], taken: Taken, pool: ThreadPoolExecutor, videos: Path | None):
    """What LoadGen calls with samples; it must return at once."""

    def make(sample_id: int, index: int, begin: float) -> None:
        made = b""
        try:
            made = system.make(requests[index])
            if videos is not None:
                (videos / f"{index}.{system.suffix}").write_bytes(made)
        except Exception as error:  # LoadGen waits for an answer to every sample
            taken.errors.append(f"{type(error).__name__}: {error}"[:300])
        taken.spans[sample_id] = (begin, time.perf_counter())
        data = np.frombuffer(made or b"\0", np.uint8)
        lg.QuerySamplesComplete([lg.QuerySampleResponse(sample_id, data.ctypes.data, data.nbytes)])

    def issue(samples) -> None:
        begin = time.perf_counter()
        for sample in samples:
            pool.submit(make, sample.id, sample.index, begin)

    return issue


def _said(folder: Path) -> dict:
    """What LoadGen's log says, by key."""
    lines = (folder / "mlperf_log_detail.txt").read_text().splitlines()
    events = [json.loads(line.removeprefix(MARK)) for line in lines if line.startswith(MARK)]
    return {event["key"]: event["value"] for event in events}


def _result(folder: Path, rules: Rules, taken: Taken) -> dict:
    ours = taken.figures()
    result = {"scenario": rules.scenario, "ours": ours, "first_errors": taken.errors[:3]}
    if rules.accuracy:
        return result | {"valid": not taken.errors and ours["samples"] > 0, "videos": str(folder / "videos")}
    said = _said(folder)
    key, unit, name = RESULTS[rules.scenario]
    if key not in said:
        raise ToolError(f"mlperf_log_detail.txt in {folder} has no {key}")
    theirs = float(said[key]) * unit
    return result | {
        "valid": said.get("result_validity") == "VALID" and not taken.errors,
        "loadgen": {name: theirs},
        "measure": name,
        "difference": abs(ours[name] / theirs - 1) if theirs else 1.0,
    }
