"""The tables as SQLAlchemy Core sees them; `migrations.py` creates them."""

from sqlalchemy import BigInteger, Column, Float, Integer, MetaData, String, Table, literal_column

metadata = MetaData()

jobs = Table(
    "jobs",
    metadata,
    Column("id", String, primary_key=True),
    Column("owner", String),
    Column("status", String),
    Column("priority", Integer),  # what the caller asked for
    Column("level", Integer),  # what it has become by waiting
    Column("turn", Float),  # order within owner and level: time of submission + ageing x cost
    Column("cost", Float),
    Column("raw_cost", Float),
    Column("request", String),
    Column("request_hash", String),  # no longer read; releases with schema version 1 need it
    Column("idempotency_key", String),
    Column("deadline", Float),
    Column("created_at", Float),
    Column("started_at", Float),
    Column("leased_at", Float),
    Column("completed_at", Float),
    Column("expires_at", Float),
    Column("not_before", Float),
    Column("attempts", Integer),
    Column("fence", Integer),
    Column("worker", String),
    Column("lease_until", Float),
    Column("excused", Integer),  # 1: the lease began anew after a jump of time; if it runs out, that is not counted
    Column("cancel_requested", Integer),
    Column("deleted", Integer),
    Column("step", Integer),
    Column("steps", Integer),
    Column("skipped", Integer),
    Column("phase", String),
    Column("eta_seconds", Float),
    Column("preview_key", String),
    Column("checkpoint_key", String),
    Column("checkpoint_step", Integer),
    Column("video_key", String),
    Column("video_bytes", BigInteger),
    Column("info", String),
    Column("error_code", String),
    Column("error_message", String),
    Column("webhook_url", String),
    Column("updated_at", Float),
    Column("model", String),  # "": of a release that knew one model only, see `models.adopt`
)

# Written as literals, not bound values: only then do the planners see that a partial index fits.
IS_QUEUED = jobs.c.status == literal_column("'queued'")
IS_RUNNING = jobs.c.status == literal_column("'in_progress'")
MAY_RISE = jobs.c.level > literal_column("0")
SOMETHING_WAITS = literal_column("flows.queued > 0")

# Fair queueing between owners: `vtime` is the GPU-seconds an owner has been given, divided by its weight.
owners = Table(
    "owners",
    metadata,
    Column("owner", String, primary_key=True),
    Column("vtime", Float),
    Column("weight", Float),
)

# How much waits per owner and level, kept in step with `jobs` by every transaction that queues or unqueues.
flows = Table(
    "flows",
    metadata,
    Column("owner", String, primary_key=True),
    Column("level", Integer, primary_key=True),
    Column("queued", Integer),
    Column("cost", Float),
)

workers = Table(
    "workers",
    metadata,
    Column("id", String, primary_key=True),
    Column("state", String),
    Column("slots", Integer),
    Column("busy", Integer),
    Column("seen_at", Float),
    Column("model", String),
)

# What workers said that they serve; rows stay, so that a model whose pool was scaled to zero is still known.
models = Table(
    "models",
    metadata,
    Column("name", String, primary_key=True),
    Column("card", String),
    Column("costs", String),
    Column("announced_at", Float),
)

outbox = Table(
    "outbox",
    metadata,
    Column("job_id", String, primary_key=True),
    Column("url", String),
    Column("body", String),
    Column("attempts", Integer),
    Column("next_at", Float),
    Column("delivered_at", Float),
    Column("last_error", String),
)

# One row: when the leases were looked after last, which shows jumps of time (`upkeep.look_at_clock`).
clock = Table("clock", metadata, Column("id", Integer, primary_key=True), Column("seen_at", Float))

counters = Table("counters", metadata, Column("name", String, primary_key=True), Column("value", BigInteger))

# Running mean of log(actual / predicted) GPU-seconds of finished jobs. (`calibration` is what releases with one model write.)
calibrations = Table(
    "calibrations",
    metadata,
    Column("model", String, primary_key=True),
    Column("log_ratio", Float),
    Column("samples", Integer),
)
