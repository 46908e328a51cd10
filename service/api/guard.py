"""Stands before every route, BentoML's included: request ids, keys, bodies, headers and the shape of errors.

A route that is added later is covered without doing anything: only what `PUBLIC` names is answered without a key, no body is
larger than the limit, and no error leaves in another shape.
"""

import asyncio
import re
import secrets
import time
from contextlib import AbstractContextManager, nullcontext

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import logs
from service.api import problems
from service.api.gateway import Gateway
from service.api.http_metrics import counted
from service.api.traced import traced
from service.errors import BodyTooLarge, InvalidRequest, ServiceError, Unavailable

READ_SECONDS = 30.0
REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,128}")
# what a browser and a cluster must reach without a key; none of it tells of jobs
PUBLIC = frozenset({"/", "/livez", "/healthz", "/readyz", "/metrics", "/openapi.json", "/schema.json"})
# where bodies may be as large as the files that the model takes, and are passed on while they arrive
WITH_FILES = frozenset({
    "/v1/videos", "/v1/videos/sync", "/v1/videos/edits", "/v1/videos/extensions", "/v1/videos/generations",
    "/v1/tasks/video", "/v1/tasks/video/", "/v1/tasks/video/form", "/api/v1/videos", "/generate",
})  # fmt: skip
KINDS_WITH_FILES = frozenset({"application/json", "multipart/form-data"})
PUBLIC_FOLDER = "/web/"


class ClientLeft(Exception):
    """The connection was closed before the body was complete; nobody waits for an answer."""


class Guard:
    """ASGI middleware; the outermost one counts where an application is mounted into another."""

    def __init__(self, app: ASGIApp, gateway: Gateway):
        self.app, self.gateway = app, gateway
        self._uploads = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # no route speaks it
        elif scope["type"] != "http" or "wan.request_id" in scope:
            await self.app(scope, receive, send)
        else:
            await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        scope["wan.request_id"] = _request_id(headers.get("x-request-id"))
        token = logs.request_id.set(scope["wan.request_id"])
        try:
            with _spanned(scope, send) as watched:
                await self._answer(scope, headers, receive, _Answer(scope, counted(scope, watched)).send)
        finally:
            logs.request_id.reset(token)

    async def _answer(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        scope["wan.text_limit"], scope["wan.files"] = self.gateway.settings.max_body_bytes, []
        try:
            await self._admit(scope, headers)
            if self._may_carry_files(scope, headers):
                await self._pass_files(scope, headers, receive, send)
            else:
                body = await _read(headers, receive, self.gateway.settings.max_body_bytes)
                await self.app(scope, _replay(body, receive), send)
        except ServiceError as error:
            await problems.answer(error, scope["path"])(scope, receive, send)
        except ClientLeft:
            pass
        finally:
            for reader in scope["wan.files"]:
                reader.close()

    def _may_carry_files(self, scope: Scope, headers: Headers) -> bool:
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        wanted = scope["method"] == "POST" and scope["path"] in WITH_FILES and kind in KINDS_WITH_FILES
        declared = headers.get("content-length", "")
        small = declared.isdecimal() and int(declared) <= self.gateway.settings.max_body_bytes
        return wanted and not small and self.gateway.intake.most_bytes > 0

    async def _pass_files(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        """Give a large body to the application while it arrives; a few at a time, since their files are on disk."""
        settings = self.gateway.settings
        if self._uploads >= settings.max_uploads:
            raise Unavailable(f"{self._uploads} uploads are under way, as many as are taken at once")
        # base64 makes three bytes four
        limit = settings.max_body_bytes + self.gateway.intake.most_bytes * 4 // 3
        self._uploads += 1
        try:
            await self.app(scope, _metered(headers, receive, limit, settings.upload_seconds), send)
        finally:
            self._uploads -= 1

    async def _admit(self, scope: Scope, headers: Headers) -> None:
        if _is_public(scope["path"]):
            return
        address = scope["client"][0] if scope.get("client") else ""
        caller = await self.gateway.keys.caller(headers.get("authorization"), address)
        scope.setdefault("state", {})["caller"] = caller


def _is_public(path: str) -> bool:
    return path in PUBLIC or path.startswith(PUBLIC_FOLDER)


def _spanned(scope: Scope, send: Send) -> AbstractContextManager[Send]:
    """Probes, metrics and the page are not worth a span."""
    return nullcontext(send) if _is_public(scope["path"]) else traced(scope, send)


def _request_id(sent: str | None) -> str:
    return sent if sent is not None and REQUEST_ID.fullmatch(sent) else f"req_{secrets.token_hex(12)}"


async def _read(headers: Headers, receive: Receive, limit: int) -> bytes:
    """The whole body, if there is one; BodyTooLarge as soon as it is known to be."""
    declared = headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limit:
        raise BodyTooLarge(f"the body has {declared} bytes; allowed: {limit}")
    body = bytearray()
    if declared == "0" and "transfer-encoding" not in headers:
        return b""
    try:
        async with asyncio.timeout(READ_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientLeft
                body += message.get("body", b"")
                if len(body) > limit:
                    raise BodyTooLarge(f"the body has more than {limit} bytes; allowed: {limit}")
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise InvalidRequest("body", "incomplete", f"a body that arrives within {READ_SECONDS:g} s") from None


def _metered(headers: Headers, receive: Receive, limit: int, seconds: float) -> Receive:
    """Passes a body on; BodyTooLarge or InvalidRequest as soon as it is known to be too large or too slow."""
    declared = headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limit:
        raise BodyTooLarge(f"the body has {declared} bytes; allowed: {limit}")
    left, deadline, complete = limit, time.monotonic() + seconds, False

    async def metered() -> Message:
        nonlocal left, complete
        if complete:
            return await receive()
        try:
            async with asyncio.timeout(min(READ_SECONDS, deadline - time.monotonic())):
                message = await receive()
        except TimeoutError:
            raise InvalidRequest("body", "incomplete", f"a body that arrives within {seconds:g} s") from None
        left -= len(message.get("body", b""))
        if left < 0:
            raise BodyTooLarge(f"the body has more than {limit} bytes; allowed: {limit}")
        complete = not message.get("more_body", False)
        return message

    return metered


def _replay(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read to the application, then whatever the server tells."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}] if body else []

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed


class _Answer:
    """Completes the headers of an answer, and gives errors their shape: these are held until they are whole."""

    def __init__(self, scope: Scope, send: Send):
        self._scope, self._send = scope, send
        self._held: Message | None = None
        self._body = bytearray()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._complete(MutableHeaders(scope=message))
            if message["status"] < 400 or self._scope["method"] == "HEAD":
                await self._send(message)
            else:
                self._held = message
        elif self._held is None:
            await self._send(message)
        elif message["type"] == "http.response.body":
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._send_error(self._held)

    def _complete(self, headers: MutableHeaders) -> None:
        headers.setdefault("X-Request-Id", self._scope["wan.request_id"])
        headers.setdefault("X-Content-Type-Options", "nosniff")
        static = self._scope["path"].startswith(PUBLIC_FOLDER)
        headers.setdefault("Cache-Control", "no-cache" if static else "no-store")

    async def _send_error(self, start: Message) -> None:
        self._held, body = None, bytes(self._body)
        other = problems.shaped(start["status"], body)
        if other is not None:
            headers, body = MutableHeaders(scope=start), other
            headers["Content-Type"], headers["Content-Length"] = "application/json", str(len(body))
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})
