"""Webhooks: signed as the Standard Webhooks specification says, retried, and never sent to private addresses unless allowed.

The address is resolved once and the connection goes to exactly that address, so that a name cannot change between the check
and the call. Redirects are not followed.
"""

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import json
import logging
import re
import socket
import time

import httpx

from service.api.shapes import notices
from service.errors import InvalidRequest
from service.settings import Settings
from service.store.outbox import Delivery

logger = logging.getLogger(__name__)
TIMEOUT_SECONDS = 10.0
LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # a name that ends so is read as an IPv4 address: 127.1, 0x7f.1
PRIVATE_DOMAINS = ("localhost", "local", "internal")


class RefusedAddress(Exception):
    """The webhook's host is not on the public internet."""


def check_url(url: str, allow_private: bool, ports: tuple[int, ...] = ()) -> None:
    """Refuse at submission what could never be called; without `ports` every port will do."""
    try:
        parsed = httpx.URL(url)
        host = parsed.raw_host.decode().rstrip(".").lower()
        complete = parsed.scheme in ("http", "https") and bool(parsed.host) and not parsed.userinfo
        port = {"http": 80, "https": 443}.get(parsed.scheme, 0) if parsed.port is None else parsed.port
        callable_ = complete and 0 < port < 65536 and _callable(host, allow_private)
    except (httpx.InvalidURL, ValueError):  # a malformed international name is a ValueError
        callable_ = False
    if callable_ and ports and port not in ports:
        raise InvalidRequest("webhook_url", url, f"one of the ports {', '.join(map(str, ports))}")
    if not callable_:
        raise InvalidRequest("webhook_url", url, "http(s)://HOST/PATH on the public internet, without user name")


def _callable(host: str, allow_private: bool) -> bool:
    try:
        literal = ipaddress.ip_address(host)
    except ValueError:
        labels = host.split(".")
        if len(host) > 253 or not all(LABEL.fullmatch(label) for label in labels) or NUMBER.fullmatch(labels[-1]):
            return False
        # the addresses of a name are checked when it is called
        return allow_private or (len(labels) > 1 and labels[-1] not in PRIVATE_DOMAINS)
    return allow_private or public(literal)


# IPv6 networks whose addresses stand for an IPv4 address, and where in them its 32 bits are.
CARRY_IPV4 = [
    (ipaddress.IPv6Network(network), shift)
    for network, shift in (
        ("::ffff:0:0/96", 0),  # mapped, RFC 4291
        ("::/96", 0),  # compatible, RFC 4291
        ("::ffff:0:0:0/96", 0),  # translated, RFC 2765
        ("64:ff9b::/96", 0),  # NAT64, RFC 6052
        ("2002::/16", 80),  # 6to4, RFC 3056
    )
]
# Private, or leading to a machine that only the own network knows; `is_global` is true for some of them.
NOT_PUBLIC = [
    ipaddress.ip_network(network)
    for network in (
        "64:ff9b:1::/48",  # local NAT64, RFC 8215: where the IPv4 address is, the operator decides
        "2001::/32",  # Teredo, RFC 4380
        "fec0::/10",  # site-local, RFC 3879
        "fc00::/7",  # unique local, RFC 4193
        "5f00::/16",  # segment routing, RFC 9602
        "3fff::/20",  # documentation, RFC 9637
        "2001:db8::/32",  # documentation, RFC 3849
        "2001:10::/28",  # ORCHID, RFC 4843
        "2001:20::/28",  # ORCHIDv2, RFC 7343
        "100::/63",  # discarded and dummy, RFC 6666 and 9780
        "192.88.99.0/24",  # 6to4 relays, RFC 7526
        "192.0.0.0/24",  # protocol assignments, RFC 6890
        "2001:2::/48",  # benchmarks, RFC 5180
    )
]
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # all that IANA has given out


def public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an address is on the public internet; IPv4 inside IPv6 counts as IPv4."""
    if address.version == 6:
        for network, shift in CARRY_IPV4:
            if address in network:
                return public(ipaddress.IPv4Address(int(address) >> shift & 0xFFFFFFFF))
        if address not in GLOBAL_UNICAST:
            return False
    listed = any(address.version == network.version and address in network for network in NOT_PUBLIC)
    return address.is_global and not address.is_multicast and not listed


async def resolve(host: str, port: int, allow_private: bool) -> str:
    """One address of the host; RefusedAddress if any of them is private."""
    loop = asyncio.get_running_loop()
    found = await asyncio.wait_for(loop.getaddrinfo(host, port, type=socket.SOCK_STREAM), TIMEOUT_SECONDS)
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    if not allow_private and not all(public(address) for address in addresses):
        raise RefusedAddress(f"{host} has an address that is not public")
    return str(addresses[0])


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
        url, stamp = httpx.URL(delivery.url), int(time.time())
        port = url.port or {"http": 80, "https": 443}[url.scheme]
        address = await resolve(url.host, port, self.settings.webhook_allow_private)
        headers = {
            "Host": url.netloc.decode(),
            "Content-Type": "application/json",
            "User-Agent": "wan-webhook/1",
            "webhook-id": f"msg_{delivery.job_id}",
            "webhook-timestamp": str(stamp),
        }
        if self.settings.webhook_secret:
            headers["webhook-signature"] = signature(self.settings.webhook_secret, headers["webhook-id"], stamp, body)
            headers |= notices.more_signatures(event, self.settings.webhook_secret, stamp, body)
        async with httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=TIMEOUT_SECONDS) as client:
            request = client.build_request(
                "POST",
                url.copy_with(host=address),
                headers=headers,
                content=body,
                extensions={"sni_hostname": url.host},
            )
            response = await client.send(request, stream=True)  # its body is of no interest
            await response.aclose()
        if not 200 <= response.status_code < 300:
            raise httpx.HTTPStatusError(f"status {response.status_code}", request=request, response=response)
