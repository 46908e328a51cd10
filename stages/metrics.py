"""The stages' own metrics, which Triton shows on its metrics port while a request runs.

Triton's built-in counters move only when a request ends, which for jobs of minutes is too late. `slot` is the number
of the model instance: two processes may not own the same set of labels. Every update is a message to Triton's own
process, so they come once a step, not more often. The worker measures stages and steps of its jobs too; the names here
begin with `wan_triton_`, so that a query never adds up both.
"""

from collections.abc import Mapping

# Seconds; a 14B video takes minutes, a tiny one fractions of a second.
STAGE_BUCKETS = [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600]
STEP_BUCKETS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 3600]
KINDS = ("computed", "cached", "resumed")


class StageMetrics:
    """`wan_triton_stage_seconds` and `wan_triton_gpu_seconds_total` {stage, slot}: of whatever device runs the stage."""

    def __init__(self, pb_utils, stage: str, slot: str):
        self._pb_utils, self._labels = pb_utils, {"stage": stage, "slot": slot}
        self._families: list = []  # a family must outlive its metrics
        self._seconds = self._metric(
            "wan_triton_stage_seconds", "Run time of one stage of a request", "HISTOGRAM", STAGE_BUCKETS
        )
        self._device_seconds = self._metric(
            "wan_triton_gpu_seconds_total", "Device seconds spent on requests", "COUNTER"
        )

    def _metric(self, name: str, description: str, metric_type: str, buckets=None, **labels: str):
        families = self._pb_utils.MetricFamily
        family = families(name=name, description=description, kind=getattr(families, metric_type))
        self._families.append(family)
        return family.Metric(labels=self._labels | labels, **({"buckets": buckets} if buckets else {}))

    def finished(self, seconds: float) -> None:
        self._seconds.observe(seconds)
        self._device_seconds.increment(seconds)


class DenoiseMetrics(StageMetrics):
    """Adds what moves during a request: steps, requests in flight, and the time of the last sign of life."""

    def __init__(self, pb_utils, slot: str):
        super().__init__(pb_utils, "denoise", slot)
        self._backends: list = []
        self._step_seconds = self._metric(
            "wan_triton_denoise_step_seconds", "Time of one computed step", "HISTOGRAM", STEP_BUCKETS
        )
        self._steps = {
            kind: self._metric("wan_triton_denoise_steps_total", "Steps by how they were made", "COUNTER", kind=kind)
            for kind in KINDS
        }
        self._in_flight = self._metric("wan_denoise_inflight", "Requests in the denoise loop", "GAUGE")
        self._heartbeat = self._metric("wan_denoise_heartbeat_timestamp_seconds", "Unix time of the last step", "GAUGE")
        self._counted_seconds = 0.0

    def attention(self, milliseconds: Mapping[str, float], chosen: str) -> None:
        """What was measured at the start of the backends of attention, and which of them serves."""
        for backend, value in milliseconds.items():
            labels = {"backend": backend, "chosen": str(backend == chosen).lower()}
            gauge = self._metric(
                "wan_triton_attention_milliseconds", "Attention of one sequence at the start", "GAUGE", **labels
            )
            gauge.set(value)
            self._backends.append(gauge)

    def started(self, now: float) -> None:
        self._in_flight.set(1)
        self._heartbeat.set(now)
        self._counted_seconds = 0.0

    def stepped(self, kind: str, seconds: float, now: float) -> None:
        """One step of `kind`; its seconds count at once, so that a long request shows its device time while it runs."""
        self._steps[kind].increment(1)
        if kind == "computed":
            self._step_seconds.observe(seconds)
        self._device_seconds.increment(seconds)
        self._counted_seconds += seconds
        self._heartbeat.set(now)

    def resumed(self, steps: int) -> None:
        self._steps["resumed"].increment(steps)

    def ended(self, seconds: float, success: bool) -> None:
        """The request left the loop after `seconds`, however it ended."""
        self._device_seconds.increment(max(seconds - self._counted_seconds, 0.0))
        if success:
            self._seconds.observe(seconds)
        self._in_flight.set(0)


def slot(args: dict) -> str:
    """The number of a model instance, such as "0_1" of denoise_0_1."""
    return args["model_instance_name"].removeprefix(args["model_name"] + "_")
