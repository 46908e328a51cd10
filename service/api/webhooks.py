"""Webhooks: signed as the Standard Webhooks specification says, retried, and never sent to private addresses unless allowed."""

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import time

import httpx

from contract import traces
from service.api import addresses
from service.api.addresses import RefusedAddress
from service.api.shapes import notices
from service.settings import Settings
from service.store.outbox import Delivery

logger = logging.getLogger(__name__)
TIMEOUT_SECONDS = 10.0


def signature(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """`v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`; a secret `whsec_…` is base64."""
    key = base64.b64decode(secret.removeprefix("whsec_")) if secret.startswith("whsec_") else secret.encode()
    content = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()


class Sender:
    """Delivers one webhook at a time, with at most `TIMEOUT_SECONDS` for each."""

    def __init__(self, settings: Settings):
        self.settings = settings

    async def send(self, delivery: Delivery, event: dict) -> tuple[str | None, float | None]:
        """Try once; returns (None, None) when delivered, else (reason, seconds until the next try or None)."""
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await self._post(delivery, event)
            logger.info("webhook delivered", extra={"job": delivery.job_id, "attempt": delivery.attempts})
            return None, None
        except RefusedAddress as error:
            reason, again = str(error), False
        except Exception as error:  # whatever the other side does must not stop the queue
            reason, again = f"{type(error).__name__}: {str(error)[:200]}", True
        logger.warning("webhook failed", extra={"job": delivery.job_id, "attempt": delivery.attempts, "reason": reason})
        if not again or delivery.attempts >= self.settings.webhook_attempts:
            return reason, None
        return reason, min(5.0 * 3 ** (delivery.attempts - 1), 3600.0)

    async def _post(self, delivery: Delivery, event: dict) -> None:
        body = json.dumps(event, ensure_ascii=False).encode()
        stamp = int(time.time())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "wan-webhook/1",
            "webhook-id": f"msg_{delivery.job_id}",
            "webhook-timestamp": str(stamp),
        }
        if (trace := traces.traceparent()) is not None:
            headers["traceparent"] = trace
        if self.settings.webhook_secret:
            headers["webhook-signature"] = signature(self.settings.webhook_secret, headers["webhook-id"], stamp, body)
            headers |= notices.more_signatures(event, self.settings.webhook_secret, stamp, body)
        async with httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=TIMEOUT_SECONDS) as client:
            private = self.settings.webhook_allow_private
            request = await addresses.request(client, "POST", delivery.url, private, headers=headers, content=body)
            response = await client.send(request, stream=True)  # its body is of no interest
            await response.aclose()
        if not 200 <= response.status_code < 300:
            raise httpx.HTTPStatusError(f"status {response.status_code}", request=request, response=response)
