"""The span of an HTTP request, which continues the trace of a caller that sent a `traceparent`."""

from collections.abc import Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers
from starlette.types import Message, Scope, Send

from contract import traces

SERVER_ERROR = 500


@contextmanager
def traced(scope: Scope, send: Send) -> Iterator[Send]:
    """Gives the `send` that tells the span of the answer."""
    if not traces.on():
        yield send
        return
    method = scope["method"]
    about = {"http.request.method": method, "url.path": scope["path"], "wan.request": scope["wan.request_id"]}
    sent = Headers(scope=scope).get("traceparent")
    with traces.span(method, about, parent=sent, kind="server", new=True) as span:

        async def telling(message: Message) -> None:
            if message["type"] == "http.response.start":
                status, route = message["status"], getattr(scope.get("route"), "path", None)
                span.note({"http.response.status_code": status})
                if route is not None:  # the router has put it into the scope by now
                    span.note({"http.route": route})
                    span.rename(f"{method} {route}")
                if status >= SERVER_ERROR:
                    span.failed(f"status {status}")
            await send(message)

        yield telling
