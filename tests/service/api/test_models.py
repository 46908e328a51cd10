"""Models that workers announce appear in the API: listed, priced and refused by name."""

import json
from dataclasses import asdict

import httpx
import pytest

from contract import ModelCard
from service.store import JobStore
from tests.service import running


@pytest.fixture
def announced(tmp_path):
    """A gateway of `wan-test` and the store as a worker of another model opens it."""
    settings = running.settings_for(tmp_path)
    other = JobStore(settings.database, model="wan-14b")
    with running.gateway(settings) as url, httpx.Client(base_url=url, timeout=20) as client:
        yield client, other, settings
    other.close()


def announce(store: JobStore, settings, **costs) -> None:
    card = ModelCard.from_dict({"defaults": {"steps": 7, "width": 64, "height": 64, "num_frames": 5}}, "card")
    store.announce(json.loads(json.dumps(card.to_dict())), asdict(settings.costs) | costs)


def test_a_model_that_nobody_announced_is_refused(announced):
    client, _, _ = announced
    error = client.post("/v1/videos", json={"prompt": "x", "model": "wan-14b"}).json()["error"]
    assert (error["param"], error["message"]) == ("model", "model is 'wan-14b'; allowed: 'wan-test'")


def test_an_announced_model_takes_its_own_defaults_and_price_at_once(announced):
    client, other, settings = announced
    announce(other, settings, overhead=settings.costs.overhead + 50)
    job = client.post("/v1/videos", json={"prompt": "x", "model": "wan-14b"}).json()
    assert (job["model"], job["steps"]) == ("wan-14b", 7)
    assert 50 < job["predicted_gpu_seconds"] < 60
    assert client.get(f"/v1/videos/{job['id']}").json()["model"] == "wan-14b"
    assert other.lease("w").job.id == job["id"]


def test_all_models_are_listed_with_their_workers_the_own_one_first(announced):
    client, other, settings = announced
    announce(other, settings)
    other.report_worker("w", "idle", 1, 0)
    client.post("/v1/videos", json={"prompt": "x", "model": "wan-14b"})
    listed = client.get("/v1/models").json()["data"]
    assert [(model["id"], model["workers"]) for model in listed] == [("wan-test", 0), ("wan-14b", 1)]
    assert listed[1]["defaults"]["steps"] == 7
    assert 'wan_demand_slots{model="wan-14b"} 0.' in client.get("/metrics").text


def test_a_card_that_this_gateway_cannot_read_is_left_out(announced):
    client, other, _ = announced
    other.announce({"variant": "of tomorrow"}, {})
    error = client.post("/v1/videos", json={"prompt": "x", "model": "wan-14b"}).json()["error"]
    assert error["param"] == "model"
