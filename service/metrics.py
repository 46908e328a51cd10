"""Prometheus metrics: what workers measure, and what the gateway reads out of the job store.

Workers observe times (histograms and counters of this module). Gateways show the store's numbers; every gateway shows the
same ones, so take `max` over gateways, not `sum`. On one machine the gateway's /metrics contains the workers' too: they share
`WAN_METRICS_DIR`, prometheus_client's multiprocess directory.
"""

import functools
import os
from pathlib import Path

from service.errors import Fault
from service.store import Priority
from service.store.jobs import TERMINAL

# up to an hour: a 14B video takes minutes
BUCKETS = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 240, 480, 900, 1800, 3600)
STEP_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64)


class WorkerMetrics:
    """Made on first use: prometheus_client decides at that moment where values live."""

    def __init__(self):
        from prometheus_client import Counter, Gauge, Histogram

        self.queue_wait = Histogram("wan_queue_wait_seconds", "From submission to the first lease", buckets=BUCKETS)
        self.job = Histogram("wan_job_seconds", "From submission to the video", buckets=BUCKETS)
        self.stage = Histogram(
            "wan_stage_seconds",
            "Time in a stage: queue, text_encoder, denoise, vae_decoder, encode (MP4)",
            ["stage"],
            buckets=BUCKETS,
        )
        self.step = Histogram("wan_denoise_step_seconds", "One denoise step", buckets=STEP_BUCKETS)
        self.steps = Counter("wan_denoise_steps", "Denoise steps by how they were obtained", ["kind"])
        self.sick = Gauge("wan_worker_sick", "1: takes no jobs until it has proved itself", multiprocess_mode="livemax")
        self.gpu_seconds = Counter("wan_gpu_seconds", "Seconds that Triton's stages worked on jobs")


def _labelled(name: str, values: dict[str, float]) -> dict[str, float]:
    return {f'{{{name}="{label}"}}': value for label, value in values.items()}


@functools.cache
def worker_metrics() -> WorkerMetrics:
    return WorkerMetrics()


def store_metrics(stats: dict[str, dict]) -> str:
    """The job store's numbers in the text format; model -> `JobStore.stats`."""
    lines = []

    def family(name: str, kind: str, text: str, values: dict[str, float]) -> None:
        lines.append(f"# HELP {name} {text}\n# TYPE {name} {kind}")
        lines.extend(f"{name}{labels} {value:g}" if isinstance(value, float) else f"{name}{labels} {value}"
                     for labels, value in values.items())  # fmt: skip

    def of_models(label: str, values) -> dict[str, float]:
        """Samples of every model; `values` makes {label value: number} of a model's numbers."""
        return {
            f'{{model="{model}",{label}="{key}"}}': value
            for model, numbers in stats.items()
            for key, value in values(numbers).items()
        }

    of_all = next(iter(stats.values()))  # which holds what is not counted by model
    finished = {status: of_all["finished"].get(status, 0) for status in TERMINAL}
    family("wan_jobs_total", "counter", "Jobs that ended", _labelled("status", finished))
    faults = {fault.value: of_all["faults"].get(fault.value, 0) for fault in Fault}
    family("wan_attempts_lost_total", "counter", "Attempts that made no video", _labelled("fault", faults))
    queued = of_models("priority", lambda n: {priority.name: n["queued"][priority] for priority in Priority})
    family("wan_queue_jobs", "gauge", "Jobs that wait", queued)
    backlog = of_models("state", lambda n: {"queued": n["backlog_queued"], "running": n["backlog_running"]})
    family("wan_backlog_gpu_seconds", "gauge", "Predicted work that is left", backlog)
    oldest = {f'{{model="{model}"}}': numbers["oldest_seconds"] for model, numbers in stats.items()}
    family("wan_queue_oldest_seconds", "gauge", "Age of the job that has waited longest", oldest)
    family(
        "wan_demand_slots",
        "gauge",
        "Denoise slots worth having: a job counts for its predicted seconds / WAN_SLOT_SECONDS, for one slot at most",
        {f'{{model="{model}"}}': numbers["demand_slots"] for model, numbers in stats.items()},
    )
    states = ("idle", "busy", "draining", "waiting", "sick")
    workers = of_models("state", lambda n: {state: n["workers"].get(state, 0) for state in states})
    family("wan_workers", "gauge", "Workers that report", workers)
    return "\n".join(lines) + "\n"


def used_metrics(used: dict[str, float]) -> str:
    """GPU-seconds of today by the name of the key."""
    lines = ["# HELP wan_key_gpu_seconds GPU-seconds that jobs of a key used since midnight UTC",
             "# TYPE wan_key_gpu_seconds gauge"]  # fmt: skip
    lines += [f"wan_key_gpu_seconds{labels} {value:g}" for labels, value in _labelled("key", used).items()]
    return "\n".join(lines) + "\n"


def measured_metrics(shared: Path | None) -> str:
    """What this program's processes and the workers that share their folder measured."""
    from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    own = os.environ.get("PROMETHEUS_MULTIPROC_DIR")  # BentoML's choice, for all of its worker processes
    folders = {str(folder) for folder in (own, shared) if folder is not None and Path(folder).is_dir()}
    text = "" if own else generate_latest(REGISTRY).decode()
    for folder in sorted(folders):
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=folder)
        text += generate_latest(registry).decode()
    return text
