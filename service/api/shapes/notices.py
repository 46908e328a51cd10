"""What a webhook says: OpenAI's types and our job, or for a job of OpenRouter's shape what that sends."""

import hashlib
import hmac
from datetime import UTC, datetime

from service.api import answers
from service.store import Job

OPENROUTER = "openrouter"
EXPIRED = "deadline_exceeded"  # the error of a job that nobody could begin in time


def openrouter_status(job: Job) -> str:
    """pending, in_progress, completed, failed, cancelled, or expired."""
    if job.error_code == EXPIRED:
        return "expired"
    return {"queued": "pending"}.get(job.status, job.status)


def event(job: Job, told: dict) -> dict:
    """The whole event; `told`: its type and time as they were noted when the job ended."""
    if job.request.get("shape") != OPENROUTER:
        return told | {"data": answers.video(job, None).model_dump()}
    status = openrouter_status(job)
    data: dict[str, object] = {"id": job.id, "status": status, "generation_id": job.id, "model": job.model}
    if status == "completed":
        data["unsigned_urls"] = [content_path(job.id)]
    if job.error_message:
        data["error"] = job.error_message
    when = datetime.fromtimestamp(told["created_at"], UTC).isoformat().replace("+00:00", "Z")
    return {"type": f"video.generation.{status}", "created_at": when, "data": data}


def content_path(job_id: str) -> str:
    return f"/api/v1/videos/{job_id}/content?index=0"


def more_signatures(event: dict, secret: str, stamp: int, body: bytes) -> dict[str, str]:
    """OpenRouter's header, over `time,body` in hex, beside that of Standard Webhooks."""
    if not event["type"].startswith("video.generation."):
        return {}
    digest = hmac.new(secret.encode(), f"{stamp},".encode() + body, hashlib.sha256).hexdigest()
    return {"X-OpenRouter-Signature": f"t={stamp},v1={digest}"}
