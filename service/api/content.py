"""File downloads with byte ranges (RFC 9110, section 14)."""

import re
from collections.abc import Iterator

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from service import formats
from service.errors import RangeNotSatisfiable
from service.storage import Storage
from service.store import Job

RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")

DOCUMENTED: dict = {
    200: {"content": {"video/mp4": {}, "video/webm": {}, "image/webp": {}, "image/gif": {}, "image/jpeg": {}}},
    206: {"content": {"video/mp4": {}, "video/webm": {}, "image/webp": {}, "image/gif": {}, "image/jpeg": {}}},
}
DOCUMENTED[200]["description"], DOCUMENTED[206]["description"] = "The file", "A part of it"


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """[start, stop) of a Range header; None to send everything (no header, or one that may be ignored)."""
    match = RANGE.fullmatch(header.replace(" ", "")) if header else None
    if match is None or match.groups() == ("", ""):
        return None  # several ranges or another unit: a server may ignore them
    first, last = match.groups()
    if first == "":
        start, stop = max(0, size - int(last)), size
        satisfiable = int(last) > 0 and size > 0
    else:
        start = int(first)
        stop = min(size, int(last) + 1) if last else size
        if last and int(last) < start:
            return None
        satisfiable = start < size
    if not satisfiable:
        raise RangeNotSatisfiable(f"Range is {header!r}; allowed: within bytes 0-{size - 1}", "Range")
    return start, stop


def file_response(request: Request, files: Storage, key: str, size: int, media_type: str, name: str) -> Response:
    """Stream a stored file, whole or in part."""
    etag = f'"{key.replace("/", "-")}-{size}"'
    headers = {
        "Accept-Ranges": "bytes",
        "ETag": etag,
        "Cache-Control": "private, max-age=3600",
        "Content-Disposition": f'inline; filename="{name}"',
    }
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    wanted = request.headers.get("range")
    if request.headers.get("if-range", etag) != etag:
        wanted = None
    part = byte_range(wanted, size)
    start, stop = part or (0, size)
    headers["Content-Length"] = str(stop - start)
    if part:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    if request.method == "HEAD":
        return Response(status_code=206 if part else 200, headers=headers, media_type=media_type)
    pieces: Iterator[bytes] = files.read(key, start, stop)
    return StreamingResponse(pieces, 206 if part else 200, headers, media_type)


def video_response(request: Request, files: Storage, job: Job) -> Response:
    """The video of a completed job."""
    key, _ = job.video
    made = formats.BY_SUFFIX[key.rpartition(".")[2]]
    return file_response(request, files, key, files.size(key), made.media_type, f"{job.id}.{made.suffix}")
