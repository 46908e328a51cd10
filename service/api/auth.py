"""API keys: kept as SHA-256 only, from `WAN_API_KEYS` or `WAN_API_KEYS_FILE`; without any, everybody is `anonymous`.

[{"name": "alice", "sha256": "…", "weight": 2, "max_queued": 20, "requests_per_minute": 60, "max_priority": "high"}]
"""

import hashlib
import json
import re
import time
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from service.api.guessing import Guessing
from service.errors import Forbidden, RateLimited, SettingsError, Unauthorized
from service.settings import Settings
from service.store import Priority

ANONYMOUS = "anonymous"  # everybody, where there are no keys


class ApiKey(BaseModel):
    """One caller and its limits."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9._@-]{1,64}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    weight: float = Field(1.0, gt=0, le=1000)
    max_queued: int | None = Field(None, ge=1)
    requests_per_minute: int | None = Field(None, ge=1)
    max_priority: Literal["high", "normal", "low"] = "high"
    admin: bool = False  # may see how any job's attempts ended


@dataclass(frozen=True)
class Caller:
    """Who sent a request."""

    name: str
    weight: float = 1.0
    max_queued: int | None = None
    requests_per_minute: int = 0
    max_priority: str = "high"
    admin: bool = False

    def allow(self, wanted: str, named: bool) -> str:
        """The priority of a job: as wanted, or where the request named none the highest that this key may use."""
        if Priority[wanted] >= Priority[self.max_priority]:
            return wanted
        if named:
            raise Forbidden(f"priority is {wanted!r}; this key may use {self.max_priority!r} at most", "priority")
        return self.max_priority


class Keys:
    """Looks callers up by their key and holds them to their rate."""

    def __init__(self, settings: Settings):
        self._by_hash = {key.sha256: key for key in read_keys(settings)}
        self._default_rate = settings.requests_per_minute
        self._buckets: dict[str, tuple[float, float]] = {}  # name -> (tokens, time)
        self._guessing = Guessing(settings.wrong_keys_per_minute)

    @property
    def required(self) -> bool:
        return bool(self._by_hash)

    def caller(self, authorization: str | None, address: str) -> Caller:
        """The caller of a request from this address; Unauthorized or RateLimited otherwise."""
        if not self._by_hash:
            caller = Caller(ANONYMOUS, requests_per_minute=self._default_rate)
        else:
            key = self._key(authorization, address)
            rate = key.requests_per_minute or self._default_rate
            caller = Caller(key.name, key.weight, key.max_queued, rate, key.max_priority, key.admin)
        self._spend(caller)
        return caller

    def _key(self, authorization: str | None, address: str) -> ApiKey:
        scheme, _, token = (authorization or "").partition(" ")
        token = token.strip() if scheme.lower() == "bearer" else ""
        key = self._by_hash.get(hashlib.sha256(token.encode()).hexdigest()) if token else None
        if token:
            self._guessing.check(address, key.name if key else None)
        if key is not None:
            return key
        if token:
            self._guessing.failed(address)
        raise Unauthorized("send a valid API key as 'Authorization: Bearer KEY'", "Authorization")

    def _spend(self, caller: Caller) -> None:
        """Token bucket of one minute's requests."""
        rate = caller.requests_per_minute
        if not rate:
            return
        now = time.monotonic()
        tokens, since = self._buckets.get(caller.name, (float(rate), now))
        tokens = min(rate, tokens + (now - since) * rate / 60)
        if tokens < 1:
            wait = max(1, round((1 - tokens) * 60 / rate))
            raise RateLimited(f"more than {rate} requests a minute; next in {wait} s", retry_after=wait)
        self._buckets[caller.name] = (tokens - 1, now)


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
