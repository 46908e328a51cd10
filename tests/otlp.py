"""A receiver of OTLP over HTTP, as a collector is one: what programs send is decoded and kept."""

import gzip
import time
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Received:
    name: str
    program: str
    trace: str
    id: str
    parent: str
    seconds: float
    failed: str  # the reason
    attributes: dict


class Receiver:
    def __init__(self, url: str):
        self.url, self.spans = url, []

    def take(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            program = _values(resource.resource.attributes)["service.name"]
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                seconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
                ids = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
                failed = span.status.message if span.status.code == span.status.STATUS_CODE_ERROR else ""
                self.spans.append(Received(span.name, program, *ids, seconds, failed, _values(span.attributes)))

    def of_trace(self, trace: str, *names: str, seconds: float = 15) -> dict[str, Received]:
        """The spans of one trace by name, once those with these names have arrived."""
        deadline = time.monotonic() + seconds
        while True:
            found = {span.name: span for span in list(self.spans) if span.trace == trace}
            if set(names) <= found.keys():
                return found
            assert time.monotonic() < deadline, f"of {names} only {list(found)} arrived"
            time.sleep(0.05)


def _values(attributes) -> dict:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in attributes}


@contextmanager
def receiver():
    """A Receiver on a free port, as long as the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == "/v1/traces"
            got.take(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    got = Receiver(f"http://127.0.0.1:{server.server_port}")
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
