"""Reads request bodies: JSON or forms. How large they may be is the guard's matter."""

import json

from starlette.requests import Request

from service.errors import InvalidRequest, UnsupportedMedia


async def read(request: Request) -> dict:
    """The fields of the body."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/json", "multipart/form-data", "application/x-www-form-urlencoded"):
        raise UnsupportedMedia(
            f"Content-Type is {kind!r}; allowed: application/json, multipart/form-data", "Content-Type"
        )
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMedia("Content-Encoding is not supported; send the body as it is", "Content-Encoding")
    return _json(await request.body()) if kind == "application/json" else await _form(request)


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
