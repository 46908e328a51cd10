"""Two models on two pools behind one gateway, alive: two exported repositories, two Triton servers, two workers."""

import json
import os
import shutil
import subprocess
import sys
import time

import httpx
import pytest

from service.launcher.server import TritonServer
from service.settings import DEFAULT_COSTS, Settings
from tests.service import running

pytestmark = pytest.mark.slow

SMALL = {"prompt": "a red circle", "num_frames": 5, "steps": 4, "seed": 3, "guidance_scale": 1.0}
DEAR = 3.0  # how many times as expensive the second model says it is


def worker(settings, triton, name: str, card, costs) -> subprocess.Popen:
    environment = {
        "WAN_STATE_DIR": str(settings.state_dir), "WAN_RUN_DIR": str(triton.run_dir), "WAN_TRITON_URL": triton.grpc_url,
        "WAN_MODEL_NAME": name, "WAN_MODEL_CARD": str(card), "WAN_COST_FILE": str(costs), "WAN_WORKER_ID": f"w-{name}",
        "WAN_HEARTBEAT_SECONDS": "0.5", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    return subprocess.Popen([sys.executable, "-m", "service.worker"], env=os.environ | environment)


@pytest.fixture(scope="module")
def second(checkpoint, repository, tmp_path_factory):
    """Another model: its defaults, and a repository of its own, kept between runs like the first one."""
    from export.driver import export
    from export.options import Options

    folder = repository.with_name("second-model")
    shutil.copytree(checkpoint, folder / "checkpoint", dirs_exist_ok=True)
    card = folder / "checkpoint/wan.json"
    values = json.loads(card.read_text())
    values["defaults"] = values.get("defaults", {}) | {"steps": 6}
    card.write_text(json.dumps(values))
    costs = folder / "cost.json"
    known = json.loads(DEFAULT_COSTS.read_text())
    kept = ("plans", "skipped_per_threshold")
    costs.write_text(
        json.dumps({k: v * DEAR if isinstance(v, float) and k not in kept else v for k, v in known.items()})
    )
    export(folder / "checkpoint", "cpu", folder / "repository", Options(), report=lambda text: None)
    place = tmp_path_factory.mktemp("second")
    with TritonServer(folder / "repository", run_dir=place / "run", log_path=place / "triton.log") as server:
        yield server, card, costs


@pytest.fixture(scope="module")
def pools(triton, checkpoint, second, tmp_path_factory):
    """A client of the gateway, and the two pools' workers by the name of their model."""
    server, card, costs = second
    settings = running.settings_for(
        tmp_path_factory.mktemp("gateway"), model_name="first", model_card=checkpoint / "wan.json"
    )
    with running.gateway(settings) as url, httpx.Client(base_url=url, timeout=60) as client:
        started = {}
        try:
            started["first"] = worker(settings, triton, "first", checkpoint / "wan.json", DEFAULT_COSTS)
            yield client, started, lambda: worker(settings, server, "second", card, costs)
        finally:
            for process in started.values():
                process.terminate()
            for process in started.values():
                process.wait(60)


def until(check, seconds: float = 90):
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)
    return found


def models(client) -> dict[str, dict]:
    return {model["id"]: model for model in client.get("/v1/models").json()["data"]}


def metric(client, name: str) -> float:
    return float(next(line.split()[-1] for line in client.get("/metrics").text.splitlines() if line.startswith(name)))


def test_a_model_that_nobody_announced_is_refused_by_name(pools):
    client, _, _ = pools
    answer = client.post("/v1/videos", json=SMALL | {"model": "second"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "model"
    assert "'second'; allowed: 'first'" in answer.json()["error"]["message"]


def test_a_pool_is_added_without_touching_the_gateway(pools):
    client, started, start = pools
    started["second"] = start()
    until(lambda: models(client).get("second", {}).get("workers") == 1)
    until(lambda: models(client)["first"]["workers"] == 1)
    found = models(client)
    assert list(found) == ["first", "second"]
    assert found["second"]["defaults"]["steps"] == 6
    assert found["second"]["defaults"] != found["first"]["defaults"]


def test_every_job_goes_to_the_pool_of_its_model(pools):
    client, _, _ = pools
    asked = ["first", "second", None, "second"]
    jobs = [client.post("/v1/videos", json=SMALL | ({"model": name} if name else {})).json() for name in asked]
    assert [job["model"] for job in jobs] == ["first", "second", "first", "second"]
    assert jobs[1]["predicted_gpu_seconds"] == pytest.approx(DEAR * jobs[0]["predicted_gpu_seconds"], rel=0.05)
    for job in jobs:
        assert running.wait_for(client, job["id"], seconds=120)["status"] == "completed"


def test_the_query_of_each_pool_gives_the_demand_of_its_own_mix(pools):
    """One pool is away: its jobs wait and only its own demand grows."""
    client, started, _ = pools
    long = {"prompt": "a red circle", "size": "512x512", "steps": 1000, "guidance_scale": 1.0, "cache_threshold": 0.0}
    started.pop("second").terminate()
    until(lambda: models(client)["second"]["workers"] == 0)
    waiting = [client.post("/v1/videos", json=long | {"model": "second"}).json() for _ in range(3)]
    slot = Settings.model_fields["slot_seconds"].default
    expected = sum(min(job["predicted_gpu_seconds"] / slot, 1) for job in waiting)
    assert expected > 1, "the jobs are too cheap to try the formula"
    until(lambda: metric(client, 'wan_demand_slots{model="second"}') == pytest.approx(expected, rel=1e-3))
    assert metric(client, 'wan_demand_slots{model="first"}') == 0
    for job in waiting:
        client.post(f"/v1/videos/{job['id']}/cancel")
    until(lambda: metric(client, 'wan_demand_slots{model="second"}') == 0)
