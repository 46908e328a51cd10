"""Keys that admins make, what a key used, and limits that gateways share."""

import hashlib
import json
import time

import httpx
import pytest

from service import apikeys
from service.api import auth
from service.store import JobStore
from tests.service.fake_triton import FakeTriton
from tests.service.running import gateway, settings_for, wait_for, worker


def as_caller(url, key):
    return httpx.Client(base_url=url, timeout=30, headers={"Authorization": f"Bearer {key}"})


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Two gateways of one database, with an admin's key in their settings."""
    folder = tmp_path_factory.mktemp("accounts")
    entry = {"name": "root", "sha256": hashlib.sha256(b"kr").hexdigest(), "admin": True}
    (folder / "keys.json").write_text(json.dumps([entry]))
    settings = settings_for(folder, api_keys_file=folder / "keys.json", key_metrics=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auth, "KNOWN_SECONDS", 0.5)
        with gateway(settings) as one, gateway(settings) as other, worker(settings, FakeTriton(settings.runs, 0.001)):
            yield one, other


def make(root, **about):
    answer = root.post("/v1/admin/keys", json=about)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_key_is_shown_once_works_at_every_gateway_and_ends_when_it_is_revoked(site):
    with as_caller(site[0], "kr") as root:
        made = make(root, name="carol", weight=2, max_priority="normal")
        assert made["created_by"] == "root"
        with as_caller(site[1], made["key"]) as carol:
            assert carol.get("/v1/videos").status_code == 200
            assert carol.post("/v1/videos", json={"prompt": "x", "priority": "high"}).status_code == 403
            for method, path in (("POST", "keys"), ("GET", "keys"), ("DELETE", f"keys/{made['id']}")):
                answer = carol.request(method, f"/v1/admin/{path}", json={"name": "mallory"})
                assert answer.json()["error"]["code"] == "forbidden"
            listed = root.get("/v1/admin/keys")
            assert made["key"] not in listed.text
            assert "sha256" not in listed.text
            (shown,) = [key for key in listed.json()["data"] if key["id"] == made["id"]]
            assert (shown["name"], shown["weight"], shown["revoked_at"]) == ("carol", 2.0, None)
            assert made["key"].startswith(shown["hint"])
            assert root.delete(f"/v1/admin/keys/{made['id']}").json()["revoked_at"] is not None
            deadline = time.monotonic() + 5
            while carol.get("/v1/videos").status_code != 401:
                assert time.monotonic() < deadline, "the other gateway still takes a revoked key"
                time.sleep(0.2)
        with as_caller(site[0], made["key"]) as gone:
            assert gone.get("/v1/videos").status_code == 401
        assert root.get("/v1/videos").status_code == 200  # keys of the settings go on


@pytest.mark.parametrize(
    ("body", "param"),
    [({}, "name"), ({"name": "a b"}, "name"), ({"name": "a", "weight": 0}, "weight"),
     ({"name": "a", "gpu_seconds_per_day": -1}, "gpu_seconds_per_day"), ({"name": "a", "sha256": "0" * 64}, "sha256")],
)  # fmt: skip
def test_a_malformed_key_is_refused_by_the_name_of_the_field(site, body, param):
    with as_caller(site[0], "kr") as root:
        answer = root.post("/v1/admin/keys", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param
        assert root.delete("/v1/admin/keys/key_nobodys").status_code == 404


def test_a_spent_budget_is_refused_with_its_size_and_when_it_renews(site):
    with (
        as_caller(site[0], "kr") as root,
        as_caller(site[1], make(root, name="dave", gpu_seconds_per_day=1e9)["key"]) as rich,
    ):
        video = {"prompt": "x", "steps": 20, "seed": 1}
        job = rich.post("/v1/videos", json=video).json()
        price = job["predicted_gpu_seconds"]
        wait_for(rich, job["id"])
        used = rich.get("/v1/usage").json()
        assert used["days"][0]["videos"] == 1
        assert 0 < used["used"] == used["days"][0]["gpu_seconds"]
        assert used["left"] == pytest.approx(1e9 - used["used"])
        assert f'wan_key_gpu_seconds{{key="dave"}} {used["used"]:g}' in rich.get("/metrics").text
        budget = used["used"] + 0.5 * price if used["used"] > price else 1.1 * price
        with as_caller(site[1], make(root, name="dave", gpu_seconds_per_day=budget)["key"]) as poor:
            refused = [poor.post("/v1/videos", json=video) for _ in range(2)][-1]
            error = refused.json()["error"]
            assert (refused.status_code, error["code"]) == (429, "budget_spent")
            assert f"{budget:g} GPU-seconds" in error["message"]
            assert "it renews at" in error["message"]
            assert int(refused.headers["retry-after"]) <= 86_400
            assert poor.get("/v1/usage").json()["renews_at"] % 86_400 == 0


def test_gateways_hold_a_key_to_one_rate_together(site):
    with as_caller(site[0], "kr") as root:
        key = make(root, name="erin", requests_per_minute=10)["key"]
    with as_caller(site[0], key) as one, as_caller(site[1], key) as other:
        answers = [(one, other)[number % 2].get("/v1/usage") for number in range(24)]
    passed = [answer for answer in answers if answer.status_code == 200]
    assert 10 <= len(passed) <= 12  # the bucket refills while this runs
    assert answers[-1].json()["error"]["code"] == "rate_limited"


def test_the_first_key_in_the_database_closes_an_open_service_and_revoking_it_does_not_open_it(
    tmp_path, monkeypatch, capsys
):
    settings = settings_for(tmp_path)
    with gateway(settings) as url:
        assert httpx.get(f"{url}/v1/usage").json()["key"] == "anonymous"
    monkeypatch.setenv("WAN_STATE_DIR", str(tmp_path))
    assert apikeys.main(["root", "--store", "--admin"]) == 0
    key = capsys.readouterr().out.split()[-1]
    with gateway(settings) as url, as_caller(url, key) as root:
        assert httpx.get(f"{url}/v1/usage").status_code == 401
        (own,) = root.get("/v1/admin/keys").json()["data"]
        root.delete(f"/v1/admin/keys/{own['id']}")
        assert httpx.get(f"{url}/v1/usage").status_code == 401
        assert root.get("/v1/usage").status_code == 401


def test_a_gateway_that_cannot_ask_the_database_lets_nobody_pass_as_anonymous(tmp_path):
    settings = settings_for(tmp_path, database_url="postgresql://nobody@127.0.0.1:9/none")
    with gateway(settings) as url:
        assert httpx.get(f"{url}/v1/models").status_code == 503
        assert httpx.get(f"{url}/livez").status_code in (200, 404)  # 404: BentoML's own route, not there alone


def test_the_command_prints_an_entry_that_the_settings_read(capsys, tmp_path):
    assert apikeys.main(["frank", "--gpu-seconds-per-day", "5"]) == 0
    key, entry = capsys.readouterr().out.strip().split("\n")
    (tmp_path / "keys.json").write_text(f"[{entry.partition(': ')[2]}]")
    with (
        gateway(settings_for(tmp_path, api_keys_file=tmp_path / "keys.json")) as url,
        as_caller(url, key.split()[-1]) as frank,
    ):
        assert frank.get("/v1/usage").json()["gpu_seconds_per_day"] == 5
    assert not JobStore.from_settings(settings_for(tmp_path)).has_keys()
    with pytest.raises(SystemExit):
        apikeys.main(["a b"])
