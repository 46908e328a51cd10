"""API keys that the database keeps, by SHA-256 only, and the rate that all gateways hold a caller to together.

Every function runs inside the caller's transaction.
"""

import hashlib
import json
import math
import secrets
from dataclasses import dataclass

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from service.store.schema import api_keys, rates

SHARES = 20  # gateways take a twentieth of a minute's requests at a time, so that few requests write to the database


@dataclass(frozen=True)
class StoredKey:
    """One row of `api_keys`; `hint` is how the key begins, `limits` what `service.api.auth.KeyLimits` reads."""

    id: str
    name: str
    hint: str
    limits: dict
    created_at: float
    created_by: str
    revoked_at: float | None


def generate() -> str:
    """A key of 256 random bits."""
    return f"wan_{secrets.token_urlsafe(32)}"


def digest(key: str) -> str:
    """What is kept of a key. It is random, so that nobody can try the likely ones and one plain hash is enough."""
    return hashlib.sha256(key.encode()).hexdigest()


def create(conn: Connection, now: float, key: str, name: str, limits: dict, by: str) -> StoredKey:
    row = StoredKey(f"key_{secrets.token_hex(12)}", name, key[:8], limits, now, by, None)
    conn.execute(insert(api_keys).values(**(vars(row) | {"limits": json.dumps(limits), "sha256": digest(key)})))
    return row


def find(conn: Connection, sha256: str) -> StoredKey | None:
    """The key with this digest, unless it was revoked."""
    row = conn.execute(select(api_keys).where(api_keys.c.sha256 == sha256, api_keys.c.revoked_at.is_(None))).first()
    return _from_row(row) if row else None


def all_keys(conn: Connection) -> list[StoredKey]:
    """Revoked ones too, the oldest first."""
    return [_from_row(row) for row in conn.execute(select(api_keys).order_by(api_keys.c.created_at, api_keys.c.id))]


def any_ever(conn: Connection) -> bool:
    return conn.execute(select(api_keys.c.id).limit(1)).first() is not None


def revoke(conn: Connection, now: float, key_id: str) -> StoredKey | None:
    """The key, revoked now or earlier; None if there never was one of this id."""
    live = (api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
    conn.execute(update(api_keys).where(*live).values(revoked_at=now))
    row = conn.execute(select(api_keys).where(api_keys.c.id == key_id)).first()
    return _from_row(row) if row else None


def _from_row(row) -> StoredKey:
    values = dict(row._mapping)
    del values["sha256"]
    return StoredKey(**(values | {"limits": json.loads(values["limits"])}))


def take(conn: Connection, now: float, name: str, rate: int) -> tuple[int, int]:
    """Requests that a gateway may let pass now, of a bucket that fills with `rate` a minute; and seconds until there is one."""
    dialect = postgresql if conn.dialect.name == "postgresql" else sqlite
    full = dialect.insert(rates).values(name=name, tokens=float(rate), filled_at=now)
    # changes nothing in a row that exists, but locks it, so that the first two of a name see each other as well
    row = conn.execute(full.on_conflict_do_update(index_elements=["name"], set_={"name": name}).returning(rates)).one()
    tokens = min(float(rate), row.tokens + max(0.0, now - row.filled_at) * rate / 60)
    taken = min(max(1, rate // SHARES), int(tokens))
    conn.execute(update(rates).where(rates.c.name == name).values(tokens=tokens - taken, filled_at=now))
    return taken, 0 if taken else max(1, math.ceil((1 - tokens) * 60 / rate))
