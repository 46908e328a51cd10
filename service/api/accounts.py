"""The routes of callers rather than videos: what a key used, and for admins the keys of the database."""

import logging
from datetime import UTC, datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from service.api.auth import Caller, KeyLimits, NamedKey
from service.api.videos import TheCaller, TheGateway, errors
from service.errors import Forbidden
from service.store import keys
from service.store.budgets import DAY
from service.store.keys import StoredKey

logger = logging.getLogger(__name__)
router = APIRouter(prefix="/v1")
MOST = 100_000
KeyId = Annotated[str, Path(alias="id", pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class UsedDay(BaseModel):
    day: str
    gpu_seconds: float
    videos: int


class UsageAnswer(BaseModel):
    """GPU-seconds of the caller; `promised` is what its waiting and running jobs are predicted to need."""

    object: Literal["usage"] = "usage"
    key: str
    gpu_seconds_per_day: float | None
    used: float
    promised: float
    left: float | None
    renews_at: int
    days: list[UsedDay]


class KeyAnswer(KeyLimits):
    """A key of the database; the key itself is told once, when it is made."""

    id: str
    object: Literal["api_key"] = "api_key"
    name: str
    hint: str
    created_at: int
    created_by: str
    revoked_at: int | None
    used_today: float = 0.0


class NewKeyAnswer(KeyAnswer):
    key: str


class KeyList(BaseModel):
    object: Literal["list"] = "list"
    data: list[KeyAnswer]


@router.get("/usage", response_model=UsageAnswer, responses=errors(400))
async def usage(
    gateway: TheGateway,
    caller: TheCaller,
    days: Annotated[int, Query(ge=1, le=400, description="How many days back, today included (UTC)")] = 30,
):
    """What the caller's jobs used, what is left of today's budget and when it renews."""
    found = await run_in_threadpool(gateway.store.usage, caller.name, days)
    budget = caller.gpu_seconds_per_day
    return UsageAnswer(
        key=caller.name,
        gpu_seconds_per_day=budget,
        used=found.used,
        promised=found.promised,
        left=None if budget is None else max(0.0, budget - found.used - found.promised),
        renews_at=found.renews_at,
        days=[UsedDay(day=_date(row.day), gpu_seconds=row.gpu_seconds, videos=row.videos) for row in found.days],
    )


def _date(day: int) -> str:
    return datetime.fromtimestamp(day * DAY, UTC).date().isoformat()


@router.post("/admin/keys", response_model=NewKeyAnswer, responses=errors(400, 403))
async def create_key(gateway: TheGateway, caller: TheCaller, wanted: NamedKey):
    """Make a key. The answer is the only place where it is ever shown."""
    _check_admin(caller)
    key, limits = keys.generate(), wanted.model_dump(exclude={"name"}, exclude_defaults=True)
    made = await run_in_threadpool(gateway.store.create_key, key, wanted.name, limits, caller.name)
    logger.info("API key made", extra={"key": made.id, "owner": made.name, "by": caller.name})
    return NewKeyAnswer(key=key, **_shown(made, {}))


@router.get("/admin/keys", response_model=KeyList, responses=errors(403))
async def list_keys(gateway: TheGateway, caller: TheCaller):
    """The keys of the database, the oldest first, revoked ones too. Those of the settings are not among them."""
    _check_admin(caller)
    used = await run_in_threadpool(gateway.store.used_today, MOST)
    return KeyList(data=[KeyAnswer(**_shown(key, used)) for key in await run_in_threadpool(gateway.store.stored_keys)])


@router.delete("/admin/keys/{id}", response_model=KeyAnswer, responses=errors(400, 403, 404))
async def revoke_key(gateway: TheGateway, caller: TheCaller, key_id: KeyId):
    """Revoke a key: it is refused at once here, and within five seconds at every gateway. Its jobs go on."""
    _check_admin(caller)
    key = await run_in_threadpool(gateway.store.revoke_key, key_id)
    gateway.keys.forget()
    logger.info("API key revoked", extra={"key": key.id, "owner": key.name, "by": caller.name})
    return KeyAnswer(**_shown(key, {}))


def _check_admin(caller: Caller) -> None:
    if not caller.admin:
        raise Forbidden('only a key with "admin": true may manage keys')


def _shown(key: StoredKey, used: dict[str, float]) -> dict:
    times = {"created_at": int(key.created_at), "revoked_at": None if key.revoked_at is None else int(key.revoked_at)}
    about = {name: getattr(key, name) for name in ("id", "name", "hint", "created_by")}
    return about | times | key.limits | {"used_today": used.get(key.name, 0.0)}
