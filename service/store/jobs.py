"""The plain records that the job store takes and gives."""

import json
import secrets
from dataclasses import dataclass, field
from enum import IntEnum

from service.errors import Fault, NotFound, ServiceError

QUEUED, RUNNING, COMPLETED, FAILED, CANCELLED = "queued", "in_progress", "completed", "failed", "cancelled"
TERMINAL = (COMPLETED, FAILED, CANCELLED)


class Priority(IntEnum):
    """Order of the classes; a lower number goes first."""

    high = 0
    normal = 1
    low = 2


def new_job_id() -> str:
    """A job id that nobody can guess: 38 characters of [a-z0-9_]."""
    return f"video_{secrets.token_hex(16)}"


@dataclass(frozen=True)
class NewJob:
    """What a submission brings. `cost` and `raw_cost` are predicted GPU-seconds, calibrated and not; `deadline` is a
    number of seconds from now; `weight` is the owner's share."""

    owner: str
    request: dict
    cost: float
    raw_cost: float = 0.0
    priority: int = Priority.normal
    idempotency_key: str | None = None
    deadline: float | None = None
    webhook_url: str | None = None
    weight: float = 1.0
    model: str = ""  # "": the one of the store
    traceparent: str | None = None
    id: str = field(default_factory=new_job_id)


@dataclass(frozen=True)
class Progress:
    """What a heartbeat reports of a running job; None leaves a column as it is."""

    step: int | None = None
    steps: int | None = None
    skipped: int | None = None
    phase: str | None = None
    eta_seconds: float | None = None
    preview_key: str | None = None
    checkpoint_key: str | None = None
    checkpoint_step: int | None = None


@dataclass(frozen=True)
class Job:
    """One row of the table `jobs`; times in seconds since the epoch."""

    id: str
    owner: str
    status: str
    priority: int
    level: int
    turn: float
    cost: float
    raw_cost: float
    request: dict
    request_hash: str
    idempotency_key: str | None
    deadline: float | None
    created_at: float
    started_at: float | None
    leased_at: float | None
    completed_at: float | None
    expires_at: float | None
    not_before: float
    attempts: int
    fence: int
    worker: str | None
    lease_until: float | None
    excused: bool
    cancel_requested: bool
    deleted: bool
    step: int
    steps: int
    skipped: int
    phase: str | None
    eta_seconds: float | None
    preview_key: str | None
    checkpoint_key: str | None
    checkpoint_step: int | None
    leased_step: int
    losses: int
    preempt_requested: bool
    preemptions: int
    video_key: str | None
    video_bytes: int | None
    info: dict | None
    error_code: str | None
    error_message: str | None
    webhook_url: str | None
    updated_at: float
    model: str
    traceparent: str | None

    @classmethod
    def from_row(cls, row) -> "Job":
        values = dict(row._mapping)
        values["request"] = json.loads(values["request"])
        values["info"] = json.loads(values["info"]) if values["info"] else None
        values["cancel_requested"] = bool(values["cancel_requested"])
        values["deleted"] = bool(values["deleted"])
        values["excused"] = bool(values["excused"])
        values["preempt_requested"] = bool(values["preempt_requested"])
        return cls(**values)

    @property
    def advanced(self) -> bool:
        """Whether this attempt, or the one that ended last, stored a checkpoint newer than the one it began with."""
        return (self.checkpoint_step or 0) > self.leased_step

    @property
    def done(self) -> bool:
        return self.status in TERMINAL

    @property
    def video(self) -> tuple[str, int]:
        """Key and bytes of the stored file; NotFound while there is none."""
        if self.video_key is None or self.video_bytes is None:
            raise NotFound(f"the video is {self.status}; only a completed one can be downloaded", "id")
        return self.video_key, self.video_bytes

    @property
    def remaining(self) -> float:
        """Predicted GPU-seconds that are left."""
        if self.done:
            return 0.0
        share = self.step / self.steps if self.steps else 0.0
        return self.cost * (1 - 0.95 * share)


@dataclass(frozen=True)
class Loss:
    """How an attempt ended without a video; `gpu` is the UUID of the one that broke, where known."""

    fault: Fault
    code: str
    message: str
    gpu: str | None = None

    @classmethod
    def of(cls, error: ServiceError) -> "Loss":
        return cls(error.fault, error.code, str(error)[:2000], getattr(error, "gpu", None))


@dataclass(frozen=True)
class Bounds:
    """How many attempts a job gets.

    After `attempts` that healthy workers could not finish the job is at fault. After `losses` in a row that stored no newer
    checkpoint it is given up, whoever was at fault. At most `preemptions` times it makes room for an urgent job.
    """

    attempts: int = 3
    losses: int = 10
    preemptions: int = 3


@dataclass(frozen=True)
class Lease:
    """A worker's right to run a job; `fence` grows with every lease, and only the newest may write."""

    job: Job
    fence: int

    @property
    def request_id(self) -> str:
        """Names the attempt for Triton and in the run directory, so that a stale attempt shares no file with this one."""
        return f"{self.job.id}-{self.fence}"


@dataclass(frozen=True)
class Estimate:
    """Where a job stands: `position` 1 is next, seconds until start and until the video is there."""

    position: int
    start_seconds: float
    finish_seconds: float
