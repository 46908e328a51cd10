"""Errors of the service and the one table that maps them to HTTP.

ServiceError
├── InvalidRequest(param, value, allowed)   400  the caller must change a field
├── Unauthorized                            401  the caller must send a valid API key
├── Forbidden                               403  the key may not do this
├── NotFound                                404  no such video, or not the caller's
├── MethodNotAllowed                        405  the path exists, the method does not
├── Conflict                                409  the video is not in a state that allows this
├── BodyTooLarge                            413  the caller must send less
├── UnsupportedMedia                        415  the caller must send JSON or a multipart form
├── RangeNotSatisfiable                     416  the caller must ask for bytes that exist
├── IdempotencyMismatch                     422  the key was used for another request
├── DeadlineUnreachable                     422  the caller must allow more time
├── QueueFull                               429  come back after `retry_after` seconds
├── RateLimited                             429  this key sends too much
├── BudgetSpent                             429  come back when the key's daily budget renews
├── Unavailable                             503  database or storage cannot be reached at the moment
└── not meant for HTTP
    ├── SettingsError                       the operator must fix a setting
    ├── LeaseLost                           the worker must drop the job: another one owns it
    ├── GenerationRejected                  Triton says that the request itself is wrong; no retry
    │   └── InputLost                       a picture or clip of the job is not in the store any more
    ├── GenerationCancelled                 the denoise loop saw the cancel file
    ├── GenerationFailed                    Triton or a stage broke; another attempt may succeed
    │   ├── ServerStopped                   Triton went away during the request
    │   ├── StageHung                       a stage answers nobody until Triton is restarted
    │   └── CheckpointRefused               the stage cannot go on from this checkpoint
    └── StorageError                        the video store refused or did not answer
"""

import math
from datetime import UTC, datetime
from enum import StrEnum

from contract import traces


class Fault(StrEnum):
    """Whose fault it is that an attempt ended without a video; only the job's own count against it."""

    job = "job"  # bad input, or a job that breaks one healthy worker after the other
    worker = "worker"  # process, machine or GPU
    dependency = "dependency"  # database or store
    operator = "operator"  # drain, upgrade, preemption


class ServiceError(Exception):
    """Root of every error that this package raises on purpose."""

    fault = Fault.worker
    status = 500
    code = "internal_error"
    type = "server_error"

    def __init__(self, message: str, param: str | None = None, retry_after: int | None = None):
        super().__init__(message)
        self.message, self.param, self.retry_after = message, param, retry_after

    def envelope(self) -> dict:
        """The body of an error answer."""
        error = {"code": self.code, "message": self.message, "param": self.param, "type": self.type}
        trace = traces.trace_id()
        return {"error": error | ({"trace_id": trace} if trace else {})}


def shown(value) -> str:
    """The value as an error message shows it, at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}… ({len(text)} characters)"


class InvalidRequest(ServiceError):
    """A field is missing or outside its bounds; the message names field, value and what is allowed."""

    status, code, type = 400, "invalid_value", "invalid_request_error"

    def __init__(self, param: str, value, allowed: str):
        super().__init__(f"{param} is {shown(value)}; allowed: {allowed}", param)
        self.value, self.allowed = value, allowed


class Unauthorized(ServiceError):
    status, code, type = 401, "invalid_api_key", "authentication_error"


class Forbidden(ServiceError):
    status, code, type = 403, "forbidden", "permission_error"


class NotFound(ServiceError):
    status, code, type = 404, "not_found", "invalid_request_error"


class MethodNotAllowed(ServiceError):
    status, code, type = 405, "method_not_allowed", "invalid_request_error"


class Conflict(ServiceError):
    status, code, type = 409, "conflict", "invalid_request_error"


class BodyTooLarge(ServiceError):
    status, code, type = 413, "body_too_large", "invalid_request_error"


class UnsupportedMedia(ServiceError):
    status, code, type = 415, "unsupported_media_type", "invalid_request_error"


class RangeNotSatisfiable(ServiceError):
    status, code, type = 416, "range_not_satisfiable", "invalid_request_error"


class IdempotencyMismatch(ServiceError):
    status, code, type = 422, "idempotency_key_reused", "invalid_request_error"


class DeadlineUnreachable(ServiceError):
    status, code, type = 422, "deadline_unreachable", "invalid_request_error"


class QueueFull(ServiceError):
    status, code, type = 429, "queue_full", "rate_limit_error"


class RateLimited(ServiceError):
    status, code, type = 429, "rate_limited", "rate_limit_error"


class BudgetSpent(ServiceError):
    status, code, type = 429, "budget_spent", "rate_limit_error"

    def __init__(
        self, owner: str, budget: float, used: float, promised: float, cost: float, renews_at: int, now: float
    ):
        wait = max(1, math.ceil(renews_at - now))
        renewal = datetime.fromtimestamp(renews_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        super().__init__(
            f"the daily budget of {owner!r} is {budget:g} GPU-seconds: {used:.0f} are used, {promised:.0f} promised to jobs "
            f"that wait or run, and this video takes {cost:.0f}; it renews at {renewal}, in {wait} s",
            retry_after=wait,
        )


class Unavailable(ServiceError):
    status, code, type = 503, "unavailable", "server_error"

    def __init__(self, message: str, retry_after: int = 5):
        super().__init__(message, retry_after=retry_after)


class SettingsError(ServiceError):
    code = "bad_settings"


class LeaseLost(ServiceError):
    code = "lease_lost"


class GenerationRejected(ServiceError):
    fault = Fault.job
    code, type = "invalid_value", "invalid_request_error"


class InputLost(GenerationRejected):
    code, type = "input_lost", "server_error"


class GenerationCancelled(ServiceError):
    code = "cancelled"


class GenerationFailed(ServiceError):
    code = "generation_failed"

    def __init__(self, message: str, code: str | None = None, gpu: str | None = None):
        super().__init__(message)
        self.code, self.gpu = code or self.code, gpu


class ServerStopped(GenerationFailed):
    code = "worker_lost"


class StageHung(GenerationFailed):
    code = "stage_hung"


class CheckpointRefused(GenerationFailed):
    fault = Fault.dependency  # the file is not what the store was given, or another release made it
    code = "checkpoint_refused"


class StorageError(ServiceError):
    fault = Fault.dependency
    status = 503
    code = "storage_unavailable"
