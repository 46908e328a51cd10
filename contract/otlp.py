"""Spans of OpenTelemetry, sent by OTLP over HTTP from a thread of their own; `contract.traces` imports this where it is switched on.

The SDK reads its own variables too: OTEL_EXPORTER_OTLP_HEADERS for keys, OTEL_TRACES_SAMPLER for a share, OTEL_BSP_* for the
pace, OTEL_RESOURCE_ATTRIBUTES for where this runs.
"""

import socket
from collections.abc import Mapping

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

NANOSECONDS = 1_000_000_000
SEND_SECONDS = 3.0  # with all its repetitions; as long may a receiver that is away keep a process that wants to end
Attributes = Mapping[str, str | int | float | bool]


class OpenSpan:
    """A span that is sent when it ends."""

    def __init__(self, span):
        self._span = span
        context = span.get_span_context()
        self.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def note(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def failed(self, reason: str) -> None:
        self._span.set_status(Status(StatusCode.ERROR, reason[:1000]))

    def end(self, at: float | None = None) -> None:
        """`at`: seconds since the epoch; None: now."""
        self._span.end(None if at is None else int(at * NANOSECONDS))


class Exporter:
    """The spans of one process. Its provider is its own: BentoML has one for itself."""

    def __init__(self, endpoint: str, program: str):
        resource = Resource.create({"service.name": program, "host.name": socket.gethostname()})
        self._provider = TracerProvider(resource=resource)
        exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces", timeout=SEND_SECONDS)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("wan")

    def span(
        self, name: str, parent: object, kind: str, attributes: Attributes, began: float | None = None
    ) -> OpenSpan:
        carrier = {"traceparent": parent} if isinstance(parent, str) else {}
        context = TraceContextTextMapPropagator().extract(carrier, Context())
        start = None if began is None else int(began * NANOSECONDS)
        kinds = SpanKind[kind.upper()]
        return OpenSpan(self._tracer.start_span(name, context, kinds, attributes=attributes, start_time=start))

    def close(self) -> None:
        self._provider.shutdown()
