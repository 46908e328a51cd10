"""JSON logs on stderr, one object a line, with the job and the request they belong to; prompts only as a hash unless switched on."""

import contextvars
import hashlib
import json
import logging
import sys
import time

from contract import traces

job_id: contextvars.ContextVar[str | None] = contextvars.ContextVar("wan_job_id", default=None)
request_id: contextvars.ContextVar[str | None] = contextvars.ContextVar("wan_request_id", default=None)
_PLAIN = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """Time, level, logger, message, job and whatever was passed as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if job := job_id.get():
            line["job"] = job
        if request := request_id.get():
            line["request"] = request
        if trace := traces.trace_id():
            line["trace_id"] = trace
        line |= {name: value for name, value in vars(record).items() if name not in _PLAIN}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def setup(level: str) -> None:
    """Send the logs of this package to stderr as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("service")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(level)


def prompt_fields(prompt: str, show: bool) -> dict:
    """What a log line may say of a prompt."""
    fields = {"prompt_sha256": hashlib.sha256(prompt.encode()).hexdigest()[:16]}
    return fields | {"prompt": prompt} if show else fields
