"""API keys: kept as SHA-256 only, in the database and in `WAN_API_KEYS` or `WAN_API_KEYS_FILE`; as long as there never was any,
everybody is `anonymous`.

[{"name": "alice", "sha256": "…", "weight": 2, "max_queued": 20, "requests_per_minute": 60, "max_priority": "high",
  "gpu_seconds_per_day": 3600}]
"""

import json
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.concurrency import run_in_threadpool

from service.api.guessing import Guessing
from service.errors import Forbidden, RateLimited, SettingsError, Unauthorized, Unavailable
from service.settings import Settings
from service.store import JobStore, Priority
from service.store.keys import digest

ANONYMOUS = "anonymous"  # everybody, where there are no keys
KNOWN_SECONDS = 5.0  # how long a gateway believes what it read of a stored key


class KeyLimits(BaseModel):
    """What a key may do."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    weight: float = Field(1.0, gt=0, le=1000, description="Share of the GPUs beside other callers.")
    max_queued: int | None = Field(None, ge=1, le=1_000_000, description="Jobs that may wait.")
    requests_per_minute: int | None = Field(None, ge=1, le=1_000_000, description="At all gateways together.")
    max_priority: Literal["high", "normal", "low"] = "high"
    gpu_seconds_per_day: float | None = Field(None, gt=0, le=1e9, description="Budget of a day, UTC.")
    admin: bool = Field(False, description="May manage keys, and see how any job's attempts ended.")


class NamedKey(KeyLimits):
    """A key as an admin asks for it."""

    name: str = Field(pattern=r"^[A-Za-z0-9._@-]{1,64}$", description="The owner of its jobs; keys may share one.")


class ApiKey(NamedKey):
    """One caller and its limits."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


@dataclass(frozen=True)
class Caller:
    """Who sent a request."""

    name: str
    weight: float = 1.0
    max_queued: int | None = None
    requests_per_minute: int = 0
    max_priority: str = "high"
    admin: bool = False
    gpu_seconds_per_day: float | None = None

    def allow(self, wanted: str, named: bool) -> str:
        """The priority of a job: as wanted, or where the request named none the highest that this key may use."""
        if Priority[wanted] >= Priority[self.max_priority]:
            return wanted
        if named:
            raise Forbidden(f"priority is {wanted!r}; this key may use {self.max_priority!r} at most", "priority")
        return self.max_priority


class Keys:
    """Looks callers up by their key and holds them to their rate."""

    def __init__(self, settings: Settings, store: Callable[[], JobStore]):
        self._of_settings = {key.sha256: key for key in read_keys(settings)}
        self._settings, self._store = settings, store
        self._known: dict[str, tuple[float, ApiKey]] = {}  # digest of a stored key -> (when it was read, the key)
        self._any_stored, self._looked = False, float("-inf")
        self._passes: dict[str, int] = {}  # name -> requests that may pass before the database is asked again
        self._refused: dict[str, float] = {}  # name -> until when the database need not be asked
        self._guessing = Guessing(settings.wrong_keys_per_minute)

    async def caller(self, authorization: str | None, address: str) -> Caller:
        """The caller of a request from this address; Unauthorized or RateLimited otherwise."""
        settings = self._settings
        limits, name = KeyLimits(), ANONYMOUS
        if await self._required():
            limits = key = await self._key(authorization, address)
            name = key.name
        caller = Caller(
            name,
            limits.weight,
            limits.max_queued,
            limits.requests_per_minute or settings.requests_per_minute,
            limits.max_priority,
            limits.admin,
            limits.gpu_seconds_per_day or settings.gpu_seconds_per_day or None,
        )
        await self._spend(caller)
        return caller

    def forget(self) -> None:
        """Read stored keys anew: one was revoked."""
        self._known.clear()

    async def _required(self) -> bool:
        """Whether there are keys. Where nobody could look yet, nobody may pass."""
        if self._of_settings or self._any_stored:
            return True
        if time.monotonic() - self._looked > KNOWN_SECONDS:
            try:
                self._any_stored = await run_in_threadpool(self._store().has_keys)
            except Unavailable:
                if self._looked == float("-inf"):
                    raise
            else:
                self._looked = time.monotonic()
        return self._any_stored

    async def _key(self, authorization: str | None, address: str) -> ApiKey:
        scheme, _, token = (authorization or "").partition(" ")
        token = token.strip() if scheme.lower() == "bearer" else ""
        if token:
            key = await self._find(digest(token), address)
            self._guessing.check(address, key.name if key else None)
            if key is not None:
                return key
            self._guessing.failed(address)
        raise Unauthorized("send a valid API key as 'Authorization: Bearer KEY'", "Authorization")

    async def _find(self, sha256: str, address: str) -> ApiKey | None:
        if (key := self._of_settings.get(sha256)) is not None:
            return key
        read_at, known = self._known.get(sha256, (float("-inf"), None))
        if time.monotonic() - read_at < KNOWN_SECONDS:
            return known
        if known is None:
            self._guessing.check(address, None)  # who guesses costs no query
        try:
            stored = await run_in_threadpool(self._store().find_key, sha256)
        except Unavailable:
            if known is None:
                raise
            return known  # without the database it can do little; better than to call a good key wrong
        if stored is None:
            self._known.pop(sha256, None)
            return None
        key = ApiKey(name=stored.name, sha256=sha256, **stored.limits)
        self._known[sha256] = time.monotonic(), key
        return key

    async def _spend(self, caller: Caller) -> None:
        """One of a minute's requests; all gateways take them out of one bucket, a few at a time."""
        name, rate = caller.name, caller.requests_per_minute
        if not rate:
            return
        wait = self._refused.get(name, 0.0) - time.monotonic()
        if wait <= 0 and self._passes.get(name, 0) < 1:
            taken, wait = await run_in_threadpool(self._store().take_requests, name, rate)
            self._passes[name] = self._passes.get(name, 0) + taken
            if not taken:
                self._refused[name] = time.monotonic() + wait
        if wait > 0 or self._passes.get(name, 0) < 1:
            seconds = max(1, math.ceil(wait))
            raise RateLimited(f"more than {rate} requests a minute; next in {seconds} s", retry_after=seconds)
        self._passes[name] -= 1


def read_keys(settings: Settings) -> list[ApiKey]:
    """All keys of the settings; SettingsError never shows a hash."""
    keys = []
    for entry in filter(None, (part.strip() for part in settings.api_keys.split(","))):
        name, _, digest = entry.partition(":")
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise SettingsError(f"WAN_API_KEYS: the entry of {name!r} is malformed; allowed: NAME:SHA256,NAME:SHA256")
        keys.append(ApiKey(name=name, sha256=digest))
    if settings.api_keys_file is not None:
        try:
            keys += TypeAdapter(list[ApiKey]).validate_python(json.loads(settings.api_keys_file.read_text()))
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise SettingsError(f"WAN_API_KEYS_FILE {settings.api_keys_file}: {place}: {first['msg']}") from None
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"WAN_API_KEYS_FILE is {str(settings.api_keys_file)!r}: {error}; allowed: a JSON list"
            ) from None
    return keys
