"""The tables as SQLAlchemy Core sees them; `migrations.py` creates them."""

from sqlalchemy import BigInteger, Column, ColumnClause, Float, Integer, MetaData, String, Table, and_, literal_column

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
    Column("excused", Integer),  # how often the lease began anew after a jump of time without being renewed
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
    Column("leased_step", Integer),  # of the checkpoint that there was when the job was leased
    Column("losses", Integer),  # attempts in a row that a worker's fault ended before a newer checkpoint was stored
    Column("preempt_requested", Integer),
    Column("preemptions", Integer),
    Column("video_key", String),
    Column("video_bytes", BigInteger),
    Column("info", String),
    Column("error_code", String),
    Column("error_message", String),
    Column("webhook_url", String),
    Column("updated_at", Float),
    Column("model", String),  # "": of a release that knew one model only, see `models.adopt`
    Column("traceparent", String),  # of the request that made the job, see `contract/traces.py`
)

# Written as literals, not bound values: only then do the planners see that a partial index fits.
IS_QUEUED = jobs.c.status == literal_column("'queued'")
IS_RUNNING = jobs.c.status == literal_column("'in_progress'")
MAY_RISE = jobs.c.level > literal_column("0")
SOMETHING_WAITS: ColumnClause[bool] = literal_column("flows.queued > 0")

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
    Column("node", String),
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

# The attempts that ended without a video, written under the lock of their job.
attempts = Table(
    "attempts",
    metadata,
    Column("job_id", String, primary_key=True),
    Column("fence", Integer, primary_key=True),
    Column("worker", String),
    Column("node", String),
    Column("gpu", String),
    Column("began_at", Float),
    Column("ended_at", Float),
    Column("fault", String),  # job, worker, dependency, operator
    Column("code", String),
    Column("message", String),
    Column("step", Integer),
    Column("advanced", Integer),  # 1: a newer checkpoint was stored, or no attempt before came as far
    Column("counted", Integer),  # 1: the worker was healthy, so it counts against the job
)
BLAMED_WORKER = attempts.c.fault == literal_column("'worker'")
SUSPECTED = and_(BLAMED_WORKER, attempts.c.advanced == literal_column("0"), attempts.c.counted == literal_column("0"))

# What everybody depends on and somebody could not use a moment ago (`JobStore.report_trouble`).
troubles = Table("troubles", metadata, Column("name", String, primary_key=True), Column("until", Float))

# Keys that an admin made over the API or on the command line; of the key itself only the digest is kept.
api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String),  # the owner of its jobs; several keys may have one
    Column("sha256", String),
    Column("hint", String),
    Column("limits", String),  # JSON
    Column("created_at", Float),
    Column("created_by", String),
    Column("revoked_at", Float),
)

# What is left of a minute's requests of each caller that has a limit.
rates = Table(
    "rates",
    metadata,
    Column("name", String, primary_key=True),
    Column("tokens", Float),
    Column("filled_at", Float),
)

# GPU-seconds and videos by day and owner, see `budgets.py`.
usage = Table(
    "usage",
    metadata,
    Column("day", Integer, primary_key=True),
    Column("owner", String, primary_key=True),
    Column("gpu_seconds", Float),
    Column("videos", Integer),
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
