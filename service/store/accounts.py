"""What the store knows of callers rather than jobs: their keys, their rate, what they used."""

from sqlalchemy import Connection

from service.errors import NotFound
from service.store import budgets, keys
from service.store.budgets import Usage
from service.store.database import Database, transaction
from service.store.keys import StoredKey

IN_METRICS = 200  # owners; each is a time series


class Accounts:
    """The part of `JobStore` that concerns callers."""

    database: Database

    @transaction()
    def create_key(self, conn: Connection, key: str, name: str, limits: dict, by: str) -> StoredKey:
        """Store the digest of a key that `keys.generate` made."""
        return keys.create(conn, self.database.now(conn), key, name, limits, by)

    @transaction()
    def revoke_key(self, conn: Connection, key_id: str) -> StoredKey:
        """End a key for good; it stays in the list. Revoking it twice is no error."""
        if (found := keys.revoke(conn, self.database.now(conn), key_id)) is None:
            raise NotFound("no such key", "id")
        return found

    def find_key(self, sha256: str) -> StoredKey | None:
        with self.database.read() as conn:
            return keys.find(conn, sha256)

    def stored_keys(self) -> list[StoredKey]:
        with self.database.read() as conn:
            return keys.all_keys(conn)

    def has_keys(self) -> bool:
        """Whether the database ever had a key; revoking the last one must not open the service to everybody."""
        with self.database.read() as conn:
            return keys.any_ever(conn)

    @transaction(durable=False)
    def take_requests(self, conn: Connection, name: str, rate: int) -> tuple[int, int]:
        """Requests of this caller that the gateway may let pass, and the seconds to wait if there are none."""
        return keys.take(conn, self.database.now(conn), name, rate)

    def usage(self, owner: str, days: int = 1) -> Usage:
        with self.database.read() as conn:
            return budgets.read(conn, self.database.now(conn), owner, days)

    def used_today(self, most: int = IN_METRICS) -> dict[str, float]:
        """GPU-seconds of today by owner, of those that used most."""
        with self.database.read() as conn:
            return budgets.of_today(conn, self.database.now(conn), most)
