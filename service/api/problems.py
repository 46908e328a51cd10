"""Error answers: one shape, `{"error": {"code", "message", "param", "type"}}`, whoever noticed the error."""

import json
import logging
from http import HTTPStatus

from starlette.responses import JSONResponse

from service.errors import ServiceError

logger = logging.getLogger(__name__)
OPENROUTER = "/api/v1/"
CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large", 415: "unsupported_media_type"}


def answer(error: ServiceError, path: str) -> JSONResponse:
    """The answer to a request that failed with `error`."""
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after is not None else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status >= 500:
        logger.warning("request failed", extra={"path": path, "reason": str(error)})
    envelope = error.envelope()
    if path.startswith(OPENROUTER):  # its clients read the code as a number
        envelope["error"] |= {"code": error.status, "metadata": {"reason": error.code}}
    return JSONResponse(envelope, error.status, headers)


def of_status(status: int, message: str) -> ServiceError:
    """The error for an answer of which only the status and a text are known."""
    error = ServiceError(message)
    error.status, error.code = status, CODES.get(status, "internal_error" if status == 500 else "http_error")
    error.type = "invalid_request_error" if status < 500 else "server_error"
    return error


def shaped(status: int, body: bytes) -> bytes | None:
    """The body of an error answer that some library wrote, in our shape; None if it has it already."""
    try:
        content = json.loads(body)
    except ValueError:
        content = body.decode(errors="replace").strip()
    if isinstance(content, list) and content:
        content = content[0]  # BentoML puts some of its errors into a list
    text = content.get("error", content.get("detail")) if isinstance(content, dict) else content
    if isinstance(text, dict) and "code" in text:
        return None
    message = text[:300] if isinstance(text, str) and text else HTTPStatus(status).phrase
    return json.dumps(of_status(status, message).envelope(), ensure_ascii=False).encode()
