"""Takes BentoML's request timeout out of the way: it keeps every request, some 6 KB, until its time is over, answered or not.

`TimeoutMiddleware` of BentoML 1.4 starts a timer per request and never cancels it; with the hours that a synchronous video may
take, a gateway that is polled grows by gigabytes. The service bounds its own synchronous calls (`WAN_SYNC_TIMEOUT_SECONDS`),
all other calls answer at once.
"""

from bentoml._internal.server.http import traffic

TimeoutMiddleware = traffic.TimeoutMiddleware  # the one that is replaced


def no_timeout(app, timeout: float):
    """Stands in for the middleware; the application itself."""
    return app


def remove() -> None:
    """Before BentoML builds its application."""
    traffic.TimeoutMiddleware = no_timeout  # type: ignore[misc, assignment]  # called, never subclassed
