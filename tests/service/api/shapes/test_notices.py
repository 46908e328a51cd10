"""What a webhook says to a caller of OpenRouter's shape, checked as its documentation tells receivers to."""

import hashlib
import hmac
from dataclasses import dataclass

from service.api.shapes import notices


@dataclass
class Ended:
    id: str = "video_1"
    status: str = "completed"
    error_code: str | None = None
    error_message: str | None = None
    request: dict | None = None
    model: str = "wan-test"


def told(job):
    job.request = {"shape": "openrouter"}
    return notices.event(job, {"type": f"video.{job.status}", "created_at": 1_700_000_000})


def test_a_callback_names_the_video_and_its_address():
    event = told(Ended())
    assert (event["type"], event["created_at"]) == ("video.generation.completed", "2023-11-14T22:13:20Z")
    assert event["data"]["unsigned_urls"] == ["/api/v1/videos/video_1/content?index=0"]


def test_a_deadline_that_passed_is_expired():
    event = told(Ended(status="failed", error_code="deadline_exceeded", error_message="the deadline passed"))
    assert (event["type"], event["data"]["status"]) == ("video.generation.expired", "expired")
    assert event["data"]["error"] == "the deadline passed"


def test_the_signature_is_over_time_and_body():
    event, body = {"type": "video.generation.failed"}, b'{"id": 1}'
    header = notices.more_signatures(event, "secret", 17, body)["X-OpenRouter-Signature"]
    stamp, digest = (part.partition("=")[2] for part in header.split(","))
    assert digest == hmac.new(b"secret", f"{stamp},".encode() + body, hashlib.sha256).hexdigest()
    assert notices.more_signatures({"type": "video.completed"}, "secret", 17, body) == {}
