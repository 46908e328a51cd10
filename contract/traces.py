"""Traces by option: how long gateway, worker and stages take for one request, as spans that are sent by OTLP.

Without `begin`, or without an endpoint, nothing is imported and every span is the same one that forgets what it is told.
A span is passed on as W3C's `traceparent`: in a header to the gateway, in the row of the job to the worker, and as a
parameter of the request to Triton's stages.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from contract.otlp import Attributes, Exporter, OpenSpan

EXPORTER = "opentelemetry.exporter.otlp.proto.http"
PARAMETER = "traceparent"  # of a request to Triton


class Untraced:
    """A piece of work that nobody traces."""

    traceparent: str | None = None

    def note(self, attributes: "Attributes") -> None:
        """Add what is known only now."""

    def rename(self, name: str) -> None: ...

    def failed(self, reason: str) -> None: ...

    def end(self) -> None: ...


UNTRACED = Untraced()
_exporter: "Exporter | None" = None
_current: "ContextVar[Untraced | OpenSpan]" = ContextVar("wan_span", default=UNTRACED)


def check(endpoint: str) -> str:
    """The endpoint; ValueError when it is no address, or when what sends spans is not installed."""
    if not endpoint:
        return endpoint
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("the address of an OTLP/HTTP receiver, such as http://localhost:4318")
    try:
        found = find_spec(EXPORTER)
    except ModuleNotFoundError:  # not even the packages around it
        found = None
    if found is None:
        raise ValueError("none before the extra `tracing` is installed: pip install 'wan-triton[tracing]'")
    return endpoint


def begin(endpoint: str, program: str) -> None:
    """From now on send the spans of this process to `endpoint`, as those of `program`; "": send none."""
    global _exporter
    end()
    if endpoint:
        from contract.otlp import Exporter

        _exporter = Exporter(endpoint, program)


def end() -> None:
    """Send what is left and trace no more."""
    global _exporter
    ended, _exporter = _exporter, None
    if ended is not None:
        ended.close()


def on() -> bool:
    return _exporter is not None


def traceparent() -> str | None:
    """Of the innermost span that is open here."""
    return _current.get().traceparent


def trace_id(parent: str | None = None) -> str | None:
    """Of a traceparent; without one, of the innermost span that is open here."""
    known = parent or traceparent()
    return known.split("-")[1] if known else None


def note(attributes: "Attributes") -> None:
    """Add to the innermost span."""
    _current.get().note(attributes)


@contextmanager
def span(
    name: str,
    attributes: "Attributes | None" = None,
    *,
    parent: object = None,
    kind: str = "internal",
    new: bool = False,
) -> "Iterator[Untraced | OpenSpan]":
    """A span around a block, below `parent` (a traceparent) or the innermost one; `new`: without either it begins a trace.

    A parent that is no traceparent counts as none. An error that leaves the block marks the span as failed.
    """
    if _exporter is None:
        yield UNTRACED
        return
    above = parent if parent is not None or new else traceparent()
    opened = _exporter.span(name, above, kind, attributes or {})
    token = _current.set(opened)
    try:
        yield opened
    except BaseException as error:
        opened.failed(f"{type(error).__name__}: {error}")
        raise
    finally:
        _current.reset(token)
        opened.end()


def spent(name: str, began: float, ended: float, parent: str | None) -> None:
    """A span of the past, such as the time in the queue; in seconds since the epoch."""
    if _exporter is not None:
        _exporter.span(name, parent, "internal", {}, began).end(max(began, ended))
