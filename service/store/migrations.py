"""Versioned schema changes in SQL that SQLite and PostgreSQL both understand; append, never edit."""

from sqlalchemy import Connection, text

from service.errors import SettingsError

MIGRATIONS: list[tuple[str, ...]] = [
    (
        """CREATE TABLE jobs (
            id TEXT PRIMARY KEY, owner TEXT NOT NULL, status TEXT NOT NULL,
            priority INTEGER NOT NULL, level INTEGER NOT NULL, turn DOUBLE PRECISION NOT NULL,
            cost DOUBLE PRECISION NOT NULL, raw_cost DOUBLE PRECISION NOT NULL,
            request TEXT NOT NULL, request_hash TEXT NOT NULL, idempotency_key TEXT, deadline DOUBLE PRECISION,
            created_at DOUBLE PRECISION NOT NULL, started_at DOUBLE PRECISION, leased_at DOUBLE PRECISION,
            completed_at DOUBLE PRECISION, expires_at DOUBLE PRECISION, not_before DOUBLE PRECISION NOT NULL DEFAULT 0,
            attempts INTEGER NOT NULL DEFAULT 0, fence INTEGER NOT NULL DEFAULT 0,
            worker TEXT, lease_until DOUBLE PRECISION,
            cancel_requested INTEGER NOT NULL DEFAULT 0, deleted INTEGER NOT NULL DEFAULT 0,
            step INTEGER NOT NULL DEFAULT 0, steps INTEGER NOT NULL DEFAULT 0, skipped INTEGER NOT NULL DEFAULT 0,
            phase TEXT, eta_seconds DOUBLE PRECISION, preview_key TEXT, checkpoint_key TEXT, checkpoint_step INTEGER,
            video_key TEXT, video_bytes BIGINT, info TEXT, error_code TEXT, error_message TEXT, webhook_url TEXT,
            updated_at DOUBLE PRECISION NOT NULL)""",
        "CREATE INDEX jobs_queue ON jobs (level, owner, turn, id) WHERE status = 'queued'",
        "CREATE INDEX jobs_running ON jobs (lease_until) WHERE status = 'in_progress'",
        "CREATE INDEX jobs_page ON jobs (owner, created_at, id)",
        "CREATE INDEX jobs_ageing ON jobs (created_at) WHERE status = 'queued' AND level > 0",
        "CREATE INDEX jobs_deadline ON jobs (deadline) WHERE status = 'queued' AND deadline IS NOT NULL",
        "CREATE INDEX jobs_expiry ON jobs (expires_at) WHERE expires_at IS NOT NULL",
        "CREATE UNIQUE INDEX jobs_idempotency ON jobs (owner, idempotency_key) WHERE idempotency_key IS NOT NULL",
        "CREATE TABLE owners (owner TEXT PRIMARY KEY, vtime DOUBLE PRECISION NOT NULL, weight DOUBLE PRECISION NOT NULL)",
        """CREATE TABLE flows (owner TEXT NOT NULL, level INTEGER NOT NULL, queued INTEGER NOT NULL,
            cost DOUBLE PRECISION NOT NULL, PRIMARY KEY (owner, level))""",
        "CREATE INDEX flows_waiting ON flows (level) WHERE queued > 0",
        """CREATE TABLE workers (id TEXT PRIMARY KEY, state TEXT NOT NULL, slots INTEGER NOT NULL,
            busy INTEGER NOT NULL, seen_at DOUBLE PRECISION NOT NULL)""",
        """CREATE TABLE outbox (job_id TEXT PRIMARY KEY, url TEXT NOT NULL, body TEXT NOT NULL,
            attempts INTEGER NOT NULL DEFAULT 0, next_at DOUBLE PRECISION, delivered_at DOUBLE PRECISION,
            last_error TEXT)""",
        "CREATE INDEX outbox_due ON outbox (next_at) WHERE next_at IS NOT NULL",
        "CREATE TABLE counters (name TEXT PRIMARY KEY, value BIGINT NOT NULL)",
        """CREATE TABLE calibration (id INTEGER PRIMARY KEY, log_ratio DOUBLE PRECISION NOT NULL,
            samples INTEGER NOT NULL)""",
    ),
    (
        "ALTER TABLE jobs ADD COLUMN excused INTEGER NOT NULL DEFAULT 0",
        "CREATE TABLE clock (id INTEGER PRIMARY KEY, seen_at DOUBLE PRECISION NOT NULL)",
        "CREATE INDEX jobs_worker ON jobs (worker) WHERE status = 'in_progress'",
        "CREATE INDEX jobs_checkpoint ON jobs (status) WHERE checkpoint_key IS NOT NULL",
    ),
    (
        "ALTER TABLE jobs ADD COLUMN leased_step INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE jobs ADD COLUMN losses INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE jobs ADD COLUMN preempt_requested INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE jobs ADD COLUMN preemptions INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE workers ADD COLUMN node TEXT",
        """CREATE TABLE attempts (job_id TEXT NOT NULL, fence INTEGER NOT NULL, worker TEXT, node TEXT, gpu TEXT,
            began_at DOUBLE PRECISION, ended_at DOUBLE PRECISION NOT NULL, fault TEXT NOT NULL, code TEXT NOT NULL,
            message TEXT NOT NULL, step INTEGER NOT NULL, advanced INTEGER NOT NULL, counted INTEGER NOT NULL,
            PRIMARY KEY (job_id, fence))""",
        "CREATE INDEX attempts_suspected ON attempts (worker) WHERE fault = 'worker' AND advanced = 0 AND counted = 0",
        "CREATE TABLE troubles (name TEXT PRIMARY KEY, until DOUBLE PRECISION NOT NULL)",
    ),
    (
        "ALTER TABLE jobs ADD COLUMN model TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE workers ADD COLUMN model TEXT NOT NULL DEFAULT ''",
        "CREATE INDEX jobs_model ON jobs (model, level, owner, turn, id) WHERE status = 'queued'",
        "CREATE TABLE models (name TEXT PRIMARY KEY, card TEXT NOT NULL, costs TEXT NOT NULL, announced_at DOUBLE PRECISION NOT NULL)",
        "CREATE TABLE calibrations (model TEXT PRIMARY KEY, log_ratio DOUBLE PRECISION NOT NULL, samples INTEGER NOT NULL)",
        "INSERT INTO calibrations (model, log_ratio, samples) SELECT '', log_ratio, samples FROM calibration",
    ),
    (
        "ALTER TABLE jobs ADD COLUMN traceparent TEXT",
        """CREATE TABLE api_keys (id TEXT PRIMARY KEY, name TEXT NOT NULL, sha256 TEXT NOT NULL UNIQUE, hint TEXT NOT NULL,
            limits TEXT NOT NULL, created_at DOUBLE PRECISION NOT NULL, created_by TEXT NOT NULL,
            revoked_at DOUBLE PRECISION)""",
        "CREATE TABLE rates (name TEXT PRIMARY KEY, tokens DOUBLE PRECISION NOT NULL, filled_at DOUBLE PRECISION NOT NULL)",
        """CREATE TABLE usage (day INTEGER NOT NULL, owner TEXT NOT NULL, gpu_seconds DOUBLE PRECISION NOT NULL,
            videos INTEGER NOT NULL, PRIMARY KEY (day, owner))""",
    ),
]


def migrate(conn: Connection, migrations: list[tuple[str, ...]] = MIGRATIONS) -> int:
    """Bring the schema to the newest version inside the caller's transaction; returns the version that it has then.

    A migration only adds what the release before can do without, so each release also runs against the next one's schema: a
    fleet is upgraded one by one, and an upgrade can be undone. What is no longer used is removed a release later.
    """
    if conn.dialect.name == "postgresql":
        conn.execute(text("SELECT pg_advisory_xact_lock(7246301)"))  # one process migrates, the others wait
    conn.execute(text("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)"))
    version = conn.execute(text("SELECT max(version) FROM schema_version")).scalar() or 0
    if version > len(migrations) + 1:
        raise SettingsError(
            f"the database has schema version {version}, this release knows {len(migrations)} and can run with "
            f"{len(migrations) + 1}; run a newer release"
        )
    for number, statements in enumerate(migrations[version:], start=version + 1):
        for statement in statements:
            conn.execute(text(statement))
        conn.execute(text("INSERT INTO schema_version (version) VALUES (:v)"), {"v": number})
    return max(version, len(migrations))
