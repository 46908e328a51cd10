"""What must be refused, and how it is said."""

import hashlib
import json
import socket
import time

import httpx
import pytest

from service.errors import Fault
from service.store import JobStore, Loss
from tests.service.running import gateway, settings_for

REFUSED = [
    ({}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": "  \n"}, "prompt"),
    ({"prompt": "x" * 8001}, "prompt"),
    ({"prompt": "a\x00b"}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": "x", "width": 70}, "width"),
    ({"prompt": "x", "width": 4096}, "width"),
    ({"prompt": "x", "height": True}, "height"),
    ({"prompt": "x", "size": "64by64"}, "size"),
    ({"prompt": "x", "size": "64x65"}, "size"),
    ({"prompt": "x", "num_frames": 16}, "num_frames"),
    ({"prompt": "x", "seconds": 100, "fps": 60}, "seconds"),
    ({"prompt": "x", "steps": 0}, "steps"),
    ({"prompt": "x", "steps": 10**30}, "steps"),
    ({"prompt": "x", "guidance_scale": -1}, "guidance_scale"),
    ({"prompt": "x", "seed": -1}, "seed"),
    ({"prompt": "x", "seed": 2**63}, "seed"),
    ({"prompt": "x", "sampler": "magic"}, "sampler"),
    ({"prompt": "x", "model": "sora-2"}, "model"),
    ({"prompt": "x", "priority": "urgent"}, "priority"),
    ({"prompt": "x", "input_reference": "data:image/png;base64,AAAA"}, "input_reference"),
    ({"prompt": "x", "unknown": 1}, "unknown"),
    ({"prompt": "x", "webhook_url": "http://127.0.0.1/hook"}, "webhook_url"),
    ({"prompt": "x", "webhook_url": "http://localhost:80/"}, "webhook_url"),
    ({"prompt": "x", "webhook_url": "http://169.254.169.254/latest/meta-data"}, "webhook_url"),
    ({"prompt": "x", "webhook_url": "http://[::1]/"}, "webhook_url"),
    ({"prompt": "x", "webhook_url": "http://[::ffff:10.0.0.1]/"}, "webhook_url"),
    ({"prompt": "x", "webhook_url": "file:///etc/passwd"}, "webhook_url"),
    ({"prompt": "x", "webhook_url": "https://user:pw@example.com/"}, "webhook_url"),
    ({"prompt": "x", "webhook_url": "gopher://example.com/"}, "webhook_url"),
]


@pytest.mark.parametrize(("body", "param"), REFUSED)
def test_a_bad_parameter_is_named_with_value_and_limits(client, body, param):
    answer = client.post("/v1/videos", json=body)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert "allowed:" in error["message"]
    assert len(error["message"]) < 400


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[1]", "application/json", 400),
        (b'{"prompt": NaN}', "application/json", 400),
        (b"[" * 20_000, "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b'{"prompt": "\\ud800"}', "application/json", 400),
        (b"prompt", "text/plain", 415),
        (b"--x\r\nbroken", "multipart/form-data; boundary=x", 400),
        (b"data", "multipart/form-data", 400),
        (b'{"prompt": "' + b"x" * 60_000 + b'"}', "application/json", 413),
    ],
)
def test_a_bad_body_is_refused(client, content, kind, status):
    answer = client.post("/v1/videos", content=content, headers={"Content-Type": kind})
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_a_body_without_a_length_is_cut_at_the_limit(client):
    def endless():
        for _ in range(200):
            yield b"x" * 1000

    answer = client.post("/v1/videos", content=endless(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


def test_a_compressed_body_is_refused(client):
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert client.post("/v1/videos", content=b"\x1f\x8b", headers=headers).status_code == 415


def test_an_uploaded_image_is_refused(client):
    answer = client.post(
        "/v1/videos", data={"prompt": "x"}, files={"input_reference": ("a.png", b"\x89PNG", "image/png")}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "input_reference"


@pytest.mark.parametrize("path", ["..%2f..%2fetc%2fpasswd", "%2e%2e/x", "video_%00", "a b", "x" * 65, "é"])
def test_ids_cannot_traverse_paths(client, path):
    for suffix in ("", "/content", "/events"):
        assert client.get(f"/v1/videos/{path}{suffix}").status_code in (400, 404)
    assert client.delete(f"/v1/videos/{path}").status_code in (400, 404, 405)


@pytest.mark.parametrize("path", ["/web/../service.py", "/web/%2e%2e/settings.py", "/web/..%5csettings.py", "/web/"])
def test_the_page_serves_its_own_files_only(client, path):
    assert client.get(path).status_code in (404, 405)


def test_headers_cannot_be_injected(client):
    for key in ("a\tb", "x" * 256, "ключ"):
        answer = client.post("/v1/videos", json={"prompt": "x"}, headers={"Idempotency-Key": key.encode()})
        assert answer.status_code == 400


def test_wrong_paths_and_methods_answer_in_the_same_shape(client):
    assert client.get("/v1/nothing").json()["error"]["code"] == "not_found"
    wrong = client.put("/v1/videos")
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "GET, POST"
    assert wrong.json()["error"]["code"] == "method_not_allowed"


def test_a_slow_or_broken_connection_does_not_block_others(site, client):
    host, port = site.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as slow:
        slow.sendall(
            b"POST /v1/videos HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
        )
        began = time.monotonic()
        assert client.get("/v1/models").status_code == 200
        assert time.monotonic() - began < 2


def test_a_client_that_leaves_in_the_middle_of_its_body_logs_no_error(tmp_path, capsys):
    with gateway(settings_for(tmp_path, log_level="DEBUG")) as url:
        host, port = url.removeprefix("http://").split(":")
        for _ in range(3):
            with socket.create_connection((host, int(port))) as leaving:
                leaving.sendall(b"POST /v1/videos HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                                b"Content-Length: 1000\r\n\r\n{")  # fmt: skip
                time.sleep(0.1)
        time.sleep(0.3)
        assert httpx.get(f"{url}/v1/models").status_code == 200
    assert "Traceback" not in (written := capsys.readouterr().err)
    assert '"level": "ERROR"' not in written


@pytest.mark.parametrize("sent", ["a", "req-1.2_3", "x" * 128])
def test_a_request_id_is_given_back(client, sent):
    assert client.get("/v1/models", headers={"X-Request-Id": sent}).headers["x-request-id"] == sent
    assert client.get("/v1/nothing", headers={"X-Request-Id": sent}).headers["x-request-id"] == sent


@pytest.mark.parametrize("sent", [b"", b"x" * 129, b"a b", b"a/b", b"a\tb", b"\xff", b'{"a"}'])
def test_a_request_id_that_could_confuse_is_replaced(client, sent):
    given = client.get("/v1/models", headers={"X-Request-Id": sent}).headers["x-request-id"]
    assert given.startswith("req_")
    assert given != client.get("/v1/models").headers["x-request-id"]


def test_the_log_tells_which_request_it_was(tmp_path, capsys):
    with gateway(settings_for(tmp_path, log_level="INFO")) as url:
        httpx.post(f"{url}/v1/videos", json={"prompt": "x"}, headers={"X-Request-Id": "mine-7"})
    assert '"request": "mine-7"' in capsys.readouterr().err


def digest(key):
    return hashlib.sha256(key.encode()).hexdigest()


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def test_keys_separate_callers_and_limit_them(tmp_path):
    import json

    keys = [
        {"name": "alice", "sha256": digest("ka"), "max_queued": 1, "max_priority": "normal"},
        {"name": "bob", "sha256": digest("kb"), "requests_per_minute": 3},
    ]
    (tmp_path / "keys.json").write_text(json.dumps(keys))
    with (
        gateway(settings_for(tmp_path, api_keys_file=tmp_path / "keys.json")) as url,
        httpx.Client(base_url=url) as client,
    ):
        for headers in ({}, bearer("wrong"), {"Authorization": "Basic ka"}, {"Authorization": "Bearer"}):
            answer = client.get("/v1/videos", headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
        job = client.post("/v1/videos", json={"prompt": "mine"}, headers=bearer("ka")).json()
        assert client.get(f"/v1/videos/{job['id']}", headers=bearer("kb")).status_code == 404
        assert client.get("/v1/videos", headers=bearer("kb")).json()["data"] == []
        full = client.post("/v1/videos", json={"prompt": "second"}, headers=bearer("ka"))
        assert full.status_code == 429
        assert int(full.headers["retry-after"]) >= 1
        assert full.json()["error"]["code"] == "queue_full"
        urgent = client.post("/v1/videos", json={"prompt": "x", "priority": "high"}, headers=bearer("ka"))
        assert urgent.status_code == 403
        assert client.get("/v1/models", headers=bearer("kb")).status_code == 200
        limited = client.get("/v1/models", headers=bearer("kb"))
        assert limited.status_code == 429
        assert limited.json()["error"]["code"] == "rate_limited"
        assert int(limited.headers["retry-after"]) <= 20


def test_who_guesses_keys_is_slowed_down_and_who_has_one_is_not(tmp_path):
    settings = settings_for(tmp_path, api_keys=f"alice:{digest('ka')},bob:{digest('kb')}", wrong_keys_per_minute=3)
    with gateway(settings) as url, httpx.Client(base_url=url) as client:
        assert client.get("/v1/models", headers=bearer("ka")).status_code == 200
        statuses = [client.get("/v1/models", headers=bearer(f"guess-{n}")).status_code for n in range(6)]
        assert statuses == [401, 401, 401, 429, 429, 429]
        hit = client.get("/v1/models", headers=bearer("kb"))
        assert hit.status_code == 429
        assert 1 <= int(hit.headers["retry-after"]) <= 20
        assert client.get("/v1/models", headers=bearer("ka")).status_code == 200
        assert client.get("/v1/models").status_code == 401  # no key is no guess
        assert client.get("/livez").status_code != 429


def test_a_job_without_a_priority_takes_what_its_key_may_use(tmp_path):
    import json

    keys = [{"name": name, "sha256": digest(name), "max_priority": name} for name in ("low", "normal", "high")]
    (tmp_path / "keys.json").write_text(json.dumps(keys))
    with gateway(settings_for(tmp_path, api_keys_file=tmp_path / "keys.json")) as url:
        for name, expected in (("low", "low"), ("normal", "normal"), ("high", "normal")):
            made = httpx.post(f"{url}/v1/videos", json={"prompt": "x"}, headers=bearer(name))
            assert made.json()["priority"] == expected
        named = httpx.post(f"{url}/v1/videos", json={"prompt": "x", "priority": "normal"}, headers=bearer("low"))
        assert named.status_code == 403


def test_event_streams_are_bounded(tmp_path):
    with gateway(settings_for(tmp_path, max_streams=2)) as url, httpx.Client(base_url=url) as client:
        path = f"/v1/videos/{client.post('/v1/videos', json={'prompt': 'x'}).json()['id']}/events"
        with client.stream("GET", path) as one, client.stream("GET", path) as two:
            lines = [one.iter_lines(), two.iter_lines()]  # a connection is closed with its iterator
            for _ in range(3):
                assert all(next(iterator) is not None for iterator in lines)  # up to the job: both follow it now
            full = client.get(path)
            assert (full.status_code, full.json()["error"]["code"]) == (503, "unavailable")
            assert int(full.headers["retry-after"]) >= 1
        time.sleep(0.3)
        with client.stream("GET", path) as again:
            assert again.status_code == 200


def test_prompts_and_keys_do_not_reach_the_logs(tmp_path, capsys):
    settings = settings_for(tmp_path, api_keys=f"alice:{digest('very-secret')}", log_level="DEBUG")
    with gateway(settings) as url:
        httpx.post(f"{url}/v1/videos", json={"prompt": "my private idea"}, headers=bearer("very-secret"))
        httpx.post(f"{url}/v1/videos", json={"prompt": "my private idea"}, headers=bearer("very-secret-wrong"))
    written = capsys.readouterr().err
    assert "submitted" in written
    assert "prompt_sha256" in written
    assert "private idea" not in written
    assert "very-secret" not in written


def test_too_much_work_in_one_job_is_refused(tmp_path):
    with gateway(settings_for(tmp_path, max_job_gpu_seconds=2)) as url:
        answer = httpx.post(f"{url}/v1/videos", json={"prompt": "x", "steps": 1000, "size": "1024x1024"})
    assert answer.status_code == 400
    assert "predicted GPU-seconds" in answer.json()["error"]["message"]


def test_only_an_admin_key_sees_how_attempts_ended(tmp_path):
    keys = [{"name": "root", "sha256": digest("kr"), "admin": True}, {"name": "alice", "sha256": digest("ka")}]
    file = tmp_path / "keys.json"
    file.write_text(json.dumps(keys))
    settings = settings_for(tmp_path, api_keys_file=file)
    with gateway(settings) as url, httpx.Client(base_url=url, timeout=30) as client:
        alice, root = ({"Authorization": f"Bearer {key}"} for key in ("ka", "kr"))
        job = client.post("/v1/videos", json={"prompt": "x", "steps": 2}, headers=alice).json()
        store = JobStore.from_settings(settings)
        store.report_worker("w1", "busy", 1, 1, "node-3")
        store.ended(store.lease("w1"), Loss(Fault.worker, "device_error", "the GPU broke", "GPU-1"))
        assert client.get(f"/v1/videos/{job['id']}/attempts", headers=alice).status_code == 403
        assert client.get("/v1/videos/video_0/attempts", headers=root).status_code == 404
        (attempt,) = client.get(f"/v1/videos/{job['id']}/attempts", headers=root).json()["data"]
        assert 'wan_attempts_lost_total{fault="worker"} 1' in client.get("/metrics", headers=root).text
        store.close()
    shown = {"number": 1, "fault": "worker", "code": "device_error", "gpu": "GPU-1", "worker": "w1", "node": "node-3"}
    assert shown.items() <= attempt.items()
    assert attempt["counted"] is False
