"""The gateway as it is deployed, a BentoML process: what stands before every route, and `generate`."""

import json
import threading

import bentoml
import httpx
import pytest

from loadtest.drills.gateway import gateway_process
from tests.service.api.test_safety import bearer, digest
from tests.service.fake_triton import FakeTriton
from tests.service.running import CARD, settings_for, worker

MIB = 2**20
KEYS = [
    {"name": "alice", "sha256": digest("ka"), "max_queued": 2},
    {"name": "bob", "sha256": digest("kb"), "max_priority": "low"},
]
FORM = "multipart/form-data; boundary=x"
ROUTES = ("/generate", "/v1/videos", "/v1/videos/sync", "/livez", "/", "/web/page.js", "/nothing")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """URL and process of a gateway with keys, and a worker beside it."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "keys.json").write_text(json.dumps(KEYS))
    settings = settings_for(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WAN_API_KEYS_FILE", str(folder / "keys.json"))
        patch.setenv("WAN_WRONG_KEYS_PER_MINUTE", "1000")
        patch.setenv("WAN_MODEL_NAME", settings.model_name)
        with gateway_process(folder, CARD) as (url, process), worker(settings, FakeTriton(settings.runs)):
            yield url, process


@pytest.fixture
def alice(site):
    with httpx.Client(base_url=site[0], headers=bearer("ka"), timeout=30) as client:
        yield client


def error_of(answer):
    error = answer.json()["error"]
    assert error.keys() == {"code", "message", "param", "type"}
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    return error


def spaces(total):
    piece = b" " * 65536
    for _ in range(total // len(piece)):
        yield piece


def test_400_mib_to_any_route_are_refused_in_bounded_memory(site, alice):
    _, process = site
    before = peak = process.memory_info().rss
    ended = threading.Event()

    def watch():
        nonlocal peak
        while not ended.wait(0.01):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for route in ROUTES:
        for length in ({}, {"Content-Length": str(400 * MIB)}):
            headers = {"Content-Type": "application/json"} | length
            answer = alice.post(route, content=spaces(400 * MIB), headers=headers)
            assert answer.status_code == 413, route
            assert error_of(answer)["code"] == "body_too_large"
    ended.set()
    watcher.join()
    assert (peak - before) / MIB < 20


@pytest.mark.parametrize(
    "path", ["/generate", "/v1/videos", "/docs.json", "/static_content/x", "/nothing", "//v1/models"]
)
def test_every_route_that_is_not_named_public_needs_a_key(site, path):
    for method in ("GET", "POST", "HEAD"):
        answer = httpx.request(method, site[0] + path)
        assert answer.status_code == 401, (method, path)
        assert answer.headers["www-authenticate"] == "Bearer"
    assert error_of(httpx.get(site[0] + path))["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    "path", ["/", "/livez", "/healthz", "/readyz", "/metrics", "/openapi.json", "/schema.json", "/web/page.js"]
)
def test_probes_metrics_page_and_descriptions_need_none(site, path):
    answer = httpx.get(site[0] + path)
    assert answer.status_code == 200
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"]


@pytest.mark.parametrize(
    ("content", "kind", "status", "param"),
    [
        (b'{"prompt": "x", "unknown": 1}', "application/json", 400, "unknown"),
        (b'{"prompt": "x", "width": 17}', "application/json", 400, "width"),
        (b'{"prompt": "x", "webhook_url": "http://127.0.0.1/"}', "application/json", 400, "webhook_url"),
        (b"{}", "application/json", 400, "prompt"),
        (b"", "application/json", 400, "body"),
        (b"{", "application/json", 400, "body"),
        (b"[1]", "application/json", 400, "body"),
        (b"--x\r\nbroken", FORM, 400, "body"),
        (b"\x00\xff", FORM, 400, "body"),
        (b"data", "multipart/form-data", 400, "body"),
        (b"prompt", "text/plain", 415, "Content-Type"),
        (b"\x80\x04N.", "application/vnd.bentoml+pickle", 415, None),
    ],
)
def test_generate_refuses_what_v1_videos_refuses(alice, content, kind, status, param):
    answer = alice.post("/generate", content=content, headers={"Content-Type": kind})
    assert (answer.status_code, error_of(answer)["param"]) == (status, param)
    if param is not None:
        same = alice.post("/v1/videos", content=content, headers={"Content-Type": kind})
        assert error_of(same) == error_of(answer)


def test_generate_makes_the_video(alice):
    answer = alice.post("/generate", json={"prompt": "x", "steps": 2, "size": "32x48", "seed": 4, "priority": "high"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "video/mp4")
    assert answer.content[4:8] == b"ftyp"
    job = alice.get(f"/v1/videos/{answer.headers['x-request-id']}").json()
    assert (job["size"], job["seed"], job["priority"]) == ("32x48", 4, "high")


def test_generate_honours_an_idempotency_key(alice):
    made = [
        alice.post("/generate", json={"prompt": "x", "steps": 1}, headers={"Idempotency-Key": "order-1"})
        for _ in range(2)
    ]
    assert made[0].headers["x-request-id"] == made[1].headers["x-request-id"]
    assert alice.post("/generate", json={"prompt": "x"}, headers={"Idempotency-Key": "a b"}).status_code == 400


def test_generate_holds_a_key_to_its_priority_and_its_place_in_the_queue(site, alice):
    urgent = httpx.post(f"{site[0]}/generate", json={"prompt": "x", "priority": "high"}, headers=bearer("kb"))
    assert (urgent.status_code, error_of(urgent)["param"]) == (403, "priority")
    made = httpx.post(f"{site[0]}/generate", json={"prompt": "x", "steps": 1}, headers=bearer("kb"), timeout=30)
    job = httpx.get(f"{site[0]}/v1/videos/{made.headers['x-request-id']}", headers=bearer("kb")).json()
    assert job["priority"] == "low"
    jobs = [alice.post("/v1/videos", json={"prompt": "x", "steps": 900}).json() for _ in range(3)]
    full = alice.post("/generate", json={"prompt": "x"})
    for job in jobs:
        if "id" in job:
            alice.delete(f"/v1/videos/{job['id']}")
    assert (full.status_code, error_of(full)["code"]) == (429, "queue_full")
    assert int(full.headers["retry-after"]) >= 1


def test_bentomls_own_client_calls_generate(site):
    with bentoml.SyncHTTPClient(site[0], token="ka") as client:
        made = client.generate(prompt="x", steps=1, width=32)
    assert made.read_bytes()[4:8] == b"ftyp"


def test_bentomls_own_errors_have_the_shape_of_all_others(alice):
    assert error_of(alice.get("/generate"))["code"] == "method_not_allowed"
    assert error_of(alice.get("/nothing"))["code"] == "not_found"
    assert alice.head("/nothing").content == b""
