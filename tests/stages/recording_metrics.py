"""Stands in for the metrics part of `triton_python_backend_utils`, which exists only inside a stub."""


class Metric:
    def __init__(self, labels, buckets=None):
        self.labels, self.buckets, self.value, self.observed = labels, buckets, 0.0, []

    def increment(self, amount):
        assert amount >= 0, "a counter cannot fall"
        self.value += amount

    def set(self, value):
        self.value = value

    def observe(self, value):
        self.observed.append(value)


class Family:
    def __init__(self, backend, name, kind):
        self.backend, self.name, self.kind = backend, name, kind

    def Metric(self, labels, buckets=None):
        metric = Metric(labels, buckets)
        assert (buckets is not None) == (self.kind == "histogram")
        key = (self.name, *sorted(labels.items()))
        assert key not in self.backend.metrics, "Triton refuses a label set that is taken"
        self.backend.metrics[key] = metric
        return metric


class RecordingBackend:
    """`.metrics` by name and labels; `.of(name, **labels)` finds one."""

    def __init__(self):
        self.metrics: dict[tuple, Metric] = {}
        backend = self

        class MetricFamily:
            COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"

            def __new__(cls, name, description, kind):
                assert description
                return Family(backend, name, kind)

        self.MetricFamily = MetricFamily

    def of(self, name: str, **labels: str) -> Metric:
        found = [m for key, m in self.metrics.items() if key[0] == name and labels.items() <= m.labels.items()]
        assert len(found) == 1, (name, labels)
        return found[0]
