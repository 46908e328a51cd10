"""Request counts and durations by route.

BentoML's own HTTP metrics are off: they are labelled with the path, so every job id would become time series that never go away
(43 KB of memory for each job). Here the label is the route, `/v1/videos/{id}`.
"""

import functools
import time

from starlette.types import Message, Scope, Send

from service.metrics import STEP_BUCKETS


class HttpMetrics:
    """Made on first use, see `service.metrics`."""

    def __init__(self):
        from prometheus_client import Counter, Histogram

        labels = ["method", "route"]
        self.requests = Counter("wan_http_requests", "HTTP requests", [*labels, "status"])
        self.seconds = Histogram("wan_http_request_seconds", "Until the answer begins", labels, buckets=STEP_BUCKETS)


@functools.cache
def http_metrics() -> HttpMetrics:
    return HttpMetrics()


METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


def counted(scope: Scope, send: Send) -> Send:
    """Counts the answer when it begins; the router has put the route into the scope by then."""
    began = time.perf_counter()

    async def counting(message: Message) -> None:
        if message["type"] == "http.response.start":
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in METHODS else "other"
            metrics = http_metrics()
            metrics.requests.labels(method, route, message["status"]).inc()
            metrics.seconds.labels(method, route).observe(time.perf_counter() - began)
        await send(message)

    return counting
