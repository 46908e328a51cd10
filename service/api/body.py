"""Reads request bodies: JSON or forms. How large they may be is the guard's matter."""

from urllib.parse import parse_qsl

from starlette.requests import ClientDisconnect, Request

from service.api.json_text import JsonText, parsed
from service.api.multipart import Form
from service.errors import InvalidRequest, UnsupportedMedia

JSON, MULTIPART, FORM = "application/json", "multipart/form-data", "application/x-www-form-urlencoded"


async def read(request: Request) -> dict:
    """The fields of the body; files among them are on disk, until the guard has seen the request end."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (JSON, MULTIPART, FORM):
        raise UnsupportedMedia(
            f"Content-Type is {kind!r}; allowed: application/json, multipart/form-data", "Content-Type"
        )
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMedia("Content-Encoding is not supported; send the body as it is", "Content-Encoding")
    if kind == FORM:
        return _with_extras(_pairs(await request.body()))
    limit = request.scope["wan.text_limit"]
    reader = JsonText(limit) if kind == JSON else Form(request.headers["content-type"].encode(), limit)
    request.scope["wan.files"].append(reader)
    try:
        async for piece in request.stream():
            reader.feed(piece)
        return reader.values() if kind == JSON else _with_extras(reader.values())
    except ClientDisconnect:
        raise InvalidRequest("body", "incomplete", "a body that arrives in full") from None


def _pairs(body: bytes) -> dict:
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=64, errors="strict")
    except ValueError as error:
        raise InvalidRequest("body", "…", f"a valid form ({str(error)[:100]})") from None
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise InvalidRequest(next(name for name in names if names.count(name) > 1), "several values", "one value")
    return values


def _with_extras(values: dict) -> dict:
    """A form's fields and what it says as JSON in `extra_params` or `extra_body`."""
    for name in ("extra_params", "extra_body"):
        if isinstance(values.get(name), str):
            values |= parsed(values.pop(name).encode())
    return values
