"""What Kubernetes and Prometheus ask a worker over HTTP.

/live     200 while its own loop comes round; a thread that answers says nothing about the others
/ready    200 unless it is sick or draining
/metrics  Prometheus' text format
"""

import http.server
import threading
from typing import Protocol

from prometheus_client import REGISTRY, generate_latest

STUCK_SECONDS = 90.0  # without a turn of the loop; the waits in it end within 30 s, whatever is away


class Watched(Protocol):
    @property
    def loop_age(self) -> float: ...  # seconds

    @property
    def ready(self) -> bool: ...


def answer(path: str, worker: Watched) -> tuple[int, bytes]:
    """Status and body."""
    if path == "/live":
        age = worker.loop_age
        return (200 if age < STUCK_SECONDS else 503), f"the loop came round {age:.0f} s ago\n".encode()
    if path == "/ready":
        return (200, b"ready\n") if worker.ready else (503, b"sick or draining\n")
    return (200, generate_latest(REGISTRY)) if path == "/metrics" else (404, b"")


def serve_status(port: int, worker: Watched) -> http.server.ThreadingHTTPServer:
    """Answer on this port (0: a free one) for as long as the process lives."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answer(self.path.partition("?")[0], worker)
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("", port), Handler)
    threading.Thread(target=server.serve_forever, name="wan-status", daemon=True).start()
    return server
