"""Webhooks arrive signed, once, and never at private addresses unless allowed."""

import asyncio
import hmac
import ipaddress
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from service.api import addresses, webhooks
from service.errors import InvalidRequest
from service.store.outbox import Delivery
from tests.service.running import gateway, settings_for, wait_for, worker

SECRET = "whsec_c2VjcmV0LW9mLXRoZS10ZXN0"


def http_server(port=0):
    """An HTTP server that keeps what it got and answers with the statuses in `answers`, then 200."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            server.got.append((dict(self.headers), body))
            time.sleep(server.delay)
            self.send_response(server.answers.pop(0) if server.answers else 200)
            self.send_header("Location", "http://127.0.0.1:1/")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.got, server.answers, server.delay = [], [], 0.0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture
def receiver():
    server = http_server()
    yield server
    server.shutdown()
    server.server_close()


def wait_until(check, seconds):
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def url_of(server):
    return f"http://127.0.0.1:{server.server_port}/hook"


def test_a_finished_job_calls_its_webhook_signed(tmp_path, receiver):
    settings = settings_for(tmp_path, webhook_allow_private=True, webhook_secret=SECRET)
    with gateway(settings) as url, worker(settings), httpx.Client(base_url=url) as client:
        job = client.post("/v1/videos", json={"prompt": "x", "steps": 2, "webhook_url": url_of(receiver)}).json()
        wait_for(client, job["id"])
        deadline = time.monotonic() + 10
        while not receiver.got:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)
    assert len(receiver.got) == 1
    headers, body = receiver.got[0]
    event = json.loads(body)
    assert event["type"] == "video.completed"
    assert event["data"]["id"] == job["id"]
    expected = webhooks.signature(SECRET, headers["webhook-id"], int(headers["webhook-timestamp"]), body)
    assert hmac.compare_digest(headers["webhook-signature"], expected)


def test_the_signature_is_that_of_the_specification():
    # test vector of standardwebhooks.com, section "Signature scheme"
    made = webhooks.signature(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def send(settings, url, attempts=1):
    return asyncio.run(
        webhooks.Sender(settings).send(Delivery("video_1", url, "{}", attempts), {"type": "video.failed"})
    )


def test_failures_are_retried_with_growing_pauses_and_then_given_up(tmp_path, receiver):
    settings = settings_for(tmp_path, webhook_allow_private=True, webhook_attempts=3)
    receiver.answers = [500, 302]
    reason, first = send(settings, url_of(receiver), 1)
    assert "status 500" in reason
    _, second = send(settings, url_of(receiver), 2)  # a redirect is not followed
    assert 0 < first < second
    assert send(settings, "http://127.0.0.1:9/", 3)[1] is None
    assert send(settings, url_of(receiver), 3) == (None, None)


def test_a_receiver_that_hangs_is_left(tmp_path, receiver, monkeypatch):
    monkeypatch.setattr(webhooks, "TIMEOUT_SECONDS", 0.3)
    receiver.delay = 2
    began = time.monotonic()
    reason, again = send(settings_for(tmp_path, webhook_allow_private=True), url_of(receiver))
    assert "Timeout" in reason
    assert again
    assert time.monotonic() - began < 1.5


def test_a_receiver_that_hangs_delays_no_other_and_gets_its_call_later(tmp_path, receiver, monkeypatch):
    monkeypatch.setattr(webhooks, "TIMEOUT_SECONDS", 3.0)
    settings = settings_for(tmp_path, webhook_allow_private=True)
    hanging = socket.create_server(("127.0.0.1", 0))  # accepts, and never answers
    port = hanging.getsockname()[1]
    with gateway(settings) as url, worker(settings), httpx.Client(base_url=url) as client:
        body = {"prompt": "x", "steps": 1}
        slow = client.post("/v1/videos", json=body | {"webhook_url": f"http://127.0.0.1:{port}/"}).json()
        connection, _ = hanging.accept()
        began = time.monotonic()
        client.post("/v1/videos", json=body | {"webhook_url": url_of(receiver)})
        wait_until(lambda: len(receiver.got) == 1, 20)
        assert time.monotonic() - began < webhooks.TIMEOUT_SECONDS
        assert wait_for(client, slow["id"])["status"] == "completed"
        hanging.close()
        connection.close()
        later = http_server(port)
        wait_until(lambda: len(later.got) == 1, 20)  # the first retry comes after five seconds
        assert json.loads(later.got[0][1])["data"]["id"] == slow["id"]
        later.shutdown()
        later.server_close()


def test_a_name_that_leads_to_a_private_address_is_never_called(tmp_path, receiver, monkeypatch):
    async def lookup(self, host, port, **_):
        return [(2, 1, 6, "", ("93.184.216.34", port)), (2, 1, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", lookup)
    reason, again = send(settings_for(tmp_path), f"http://rebinding.example:{receiver.server_port}/")
    assert "not public" in reason
    assert again is None
    assert receiver.got == []


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", True), ("10.1.2.3", False), ("100.64.0.1", False), ("169.254.1.1", False), ("0.0.0.0", False),
        ("224.0.0.1", False), ("2606:4700::1111", True), ("fd00::1", False), ("fe80::1", False), ("::ffff:127.0.0.1", False),
        ("2002:7f00:1::", False), ("64:ff9b::7f00:1", False), ("64:ff9b::808:808", True),
        ("::", False), ("::1", False), ("::127.0.0.1", False), ("::8.8.8.8", True), ("::ffff:8.8.8.8", True),
        ("::ffff:0:127.0.0.1", False), ("::ffff:0:8.8.8.8", True), ("64:ff9b:1::7f00:1", False), ("64:ff9b:1::808:808", False),
        ("2002:a00:1::", False), ("2002:808:808::", True), ("2001:0:4136:e378:8000:63bf:3fff:fdd2", False),
        ("2001:0:808:808::f7f7:f7f7", False), ("fec0::1", False), ("fc00::1", False), ("fe80::1%eth0", False), ("ff02::1", False),
        ("ff0e::1", False), ("2001:db8::1", False), ("3fff::1", False), ("100::1", False), ("100:0:0:1::1", False),
        ("2001:2::1", False), ("2001:10::1", False), ("2001:20::1", False), ("5f00::1", False), ("4000::1", False),
        ("192.0.0.8", False), ("192.88.99.1", False), ("192.0.2.1", False), ("198.18.0.1", False), ("240.0.0.1", False),
        ("255.255.255.255", False), ("172.31.0.1", False), ("192.168.0.1", False),
    ],
)  # fmt: skip
def test_public_addresses(address, expected):
    assert addresses.public(ipaddress.ip_address(address)) is expected


@pytest.mark.parametrize(
    "url",
    [
        "http://xn--/", "http://xn--a.com/", "http://a..b/", "http://-.com/", "http://a b.com/", "http://a.b%00c/", "http://",
        "http://127.1/", "http://0x7f.1/", "http://2130706433/", "http://0177.0.0.1/", "http://127.0.0.1./", "http://[::1",
        f"http://{'a' * 64}.com/", "http://example.com:0/", "http://example.com:65536/", "http://x.localhost/", "http://db/",
        "http://[::127.0.0.1]/", "http://[64:ff9b:1::7f00:1]/", "http://[::ffff:0:127.0.0.1]/", "http://[fec0::1]/",
    ],
)  # fmt: skip
def test_an_address_that_cannot_or_must_not_be_called_is_refused(url):
    with pytest.raises(InvalidRequest, match="webhook_url is"):
        addresses.check_url(url, allow_private=False)


@pytest.mark.parametrize("url", ["https://example.com:8443/x?y=z", "http://8.8.8.8/", "http://[2606:4700::1111]/",
                                 "https://bücher.example/", "http://a_b.example.com./"])  # fmt: skip
def test_public_addresses_may_be_called(url):
    addresses.check_url(url, allow_private=False)


def test_private_names_may_be_called_where_that_is_allowed():
    for url in ("http://receiver:8080/", "http://127.0.0.1/", "http://[::1]/", "http://x.svc.cluster.local/"):
        addresses.check_url(url, allow_private=True)
    with pytest.raises(InvalidRequest):
        addresses.check_url("http://xn--/", allow_private=True)


@pytest.mark.parametrize(("url", "fits"), [("https://example.com/", True), ("https://example.com:8443/", True),
                                           ("http://example.com/", False), ("https://example.com:8080/", False)])  # fmt: skip
def test_a_port_that_the_network_would_drop_is_refused_by_name(url, fits):
    if fits:
        return addresses.check_url(url, False, ports=(443, 8443))
    with pytest.raises(InvalidRequest, match="one of the ports 443, 8443"):
        addresses.check_url(url, False, ports=(443, 8443))
