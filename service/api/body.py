"""Reads request bodies: JSON or multipart forms, never more than the limit."""

import asyncio
import json

from starlette.requests import Request

from service.errors import BodyTooLarge, InvalidRequest, UnsupportedMedia

READ_SECONDS = 30.0


async def read(request: Request, limit: int) -> dict:
    """The fields of the body."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/json", "multipart/form-data", "application/x-www-form-urlencoded"):
        raise UnsupportedMedia(
            f"Content-Type is {kind!r}; allowed: application/json, multipart/form-data", "Content-Type"
        )
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMedia("Content-Encoding is not supported; send the body as it is", "Content-Encoding")
    request._body = await _limited(request, limit)  # form() reads it from here
    return _json(request._body) if kind == "application/json" else await _form(request)


async def _limited(request: Request, limit: int) -> bytes:
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limit:
        raise BodyTooLarge(f"the body has {declared} bytes; allowed: {limit}")
    body = bytearray()
    try:
        async with asyncio.timeout(READ_SECONDS):
            async for piece in request.stream():
                body += piece
                if len(body) > limit:
                    raise BodyTooLarge(f"the body has more than {limit} bytes; allowed: {limit}")
    except TimeoutError:
        raise InvalidRequest("body", "incomplete", f"a body that arrives within {READ_SECONDS:g} s") from None
    return bytes(body)


def _json(body: bytes) -> dict:
    try:
        values = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise InvalidRequest("body", body[:60].decode(errors="replace"), "valid JSON") from None
    if not isinstance(values, dict):
        raise InvalidRequest("body", values, "a JSON object")
    return values


def _no_constant(name: str):
    raise ValueError(f"{name} is not JSON")


async def _form(request: Request) -> dict:
    try:
        form = await request.form(max_files=4, max_fields=64)
    except Exception as error:  # starlette raises HTTPException, python-multipart its own
        raise InvalidRequest("body", "…", f"a valid form ({str(getattr(error, 'detail', error))[:100]})") from None
    values: dict = {}
    for name, value in form.multi_items():
        if name in values:
            raise InvalidRequest(name, "several values", "one value")
        values[name] = value if isinstance(value, str) else "a file"
    for name in ("extra_params", "extra_body"):
        if isinstance(values.get(name), str):
            values |= _json(values.pop(name).encode())
    await form.close()
    return values
