"""Adapters are registered by admins, checked against the model, and named by requests; nothing is ever fetched."""

import hashlib
import json

import httpx
import pytest
from safetensors.torch import save_file

from contract.lora_keys import folded
from service import adapters
from tests.service import running
from tests.service.fake_triton import FakeTriton
from tests.wan.adapter_files import FAMILIES, pairs
from wan.checkpoint import weight_shapes
from wan.config import DiTConfig

WEIGHTS = weight_shapes(DiTConfig(dim=64, num_layers=2, num_heads=4, ffn_dim=128, text_dim=32, freq_dim=32))
KEYS = {"boss": {"admin": True}, "ann": {}}
INK, CHALK = (FAMILIES["kohya, musubi"](pairs(WEIGHTS, rank, seed=rank)) for rank in (8, 32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    (folder / "peft").mkdir()
    save_file(INK, folder / "ink.safetensors")
    save_file(CHALK, folder / "chalk.safetensors")
    save_file(INK, folder / "peft" / "adapter_model.safetensors")
    (folder / "peft" / "adapter_config.json").write_text('{"lora_alpha": 4, "r": 8}')
    save_file({"blocks.9.ffn.0.diff_b": WEIGHTS and INK["lora_unet_blocks_0_ffn_0.alpha"]}, folder / "odd.safetensors")
    (folder / "broken.safetensors").write_bytes(b"\xff" * 64)
    return folder


@pytest.fixture(scope="module")
def shop(folder, tmp_path_factory):
    """A gateway with two keys, its worker, and the settings."""
    home = tmp_path_factory.mktemp("site")
    (home / "card.json").write_text(json.dumps(json.loads(running.CARD.read_text()) | {"weights": folded(WEIGHTS)}))
    keys = [{"name": n, "sha256": hashlib.sha256(n.encode()).hexdigest()} | about for n, about in KEYS.items()]
    (home / "keys.json").write_text(json.dumps(keys))
    settings = running.settings_for(
        home, model_card=home / "card.json", lora_dir=str(folder), api_keys_file=home / "keys.json"
    )
    triton = FakeTriton(settings.runs, step_seconds=0.001)
    with running.gateway(settings) as url, running.worker(settings, triton):
        clients = {n: httpx.Client(base_url=url, headers={"Authorization": f"Bearer {n}"}, timeout=20) for n in KEYS}
        yield clients["boss"], clients["ann"], settings
        for client in clients.values():
            client.close()


@pytest.fixture
def boss(shop):
    client, _, _ = shop
    yield client
    for lora in client.get("/v1/loras").json()["data"]:
        client.delete(f"/v1/loras/{lora['id']}")


@pytest.fixture
def ann(shop):
    return shop[1]


def register(client, name: str, **more) -> httpx.Response:
    return client.post("/v1/loras", json={"name": name, "file": f"{name}.safetensors"} | more)


def problem(answer: httpx.Response) -> tuple[int, str, str]:
    error = answer.json()["error"]
    return answer.status_code, error["param"], error["message"]


def test_a_registered_adapter_is_listed_with_the_models_and_by_itself(boss, ann):
    made = register(boss, "ink").json()
    assert (made["id"], made["model"], made["rank"]) == ("ink", "wan-test", 8)
    assert made["files"][0]["file"] == "ink.safetensors"
    assert ann.get("/v1/loras").json()["data"] == [made]
    assert ann.get("/v1/models").json()["data"][0]["loras"] == ["ink"]
    assert register(boss, "ink").json()["created"] == made["created"]  # again: nothing to do
    assert boss.delete("/v1/loras/ink").json() == {"id": "ink", "object": "lora.deleted", "deleted": True}
    assert ann.get("/v1/loras").json()["data"] == []
    assert boss.delete("/v1/loras/ink").status_code == 404


def test_only_admin_keys_change_the_list(boss, ann):
    assert problem(register(ann, "ink"))[0] == 403
    register(boss, "ink")
    assert problem(ann.delete("/v1/loras/ink"))[0] == 403
    assert len(ann.get("/v1/loras").json()["data"]) == 1


@pytest.mark.parametrize(("body", "message"), [
    ({"file": "odd.safetensors"}, "key blocks.9.ffn.0.diff_b fits no tensor of the model"),
    ({"file": "broken.safetensors"}, "broken.safetensors is not a readable safetensors file"),
    ({"file": "absent.safetensors"}, "absent.safetensors is not in the directory"),
    ({"file": "../keys.json"}, "../keys.json is no file of the directory"),
    ({"file": "https://example.org/x.safetensors"}, "is no file of the directory"),
    ({"files": ["ink.safetensors", "ink.safetensors"]}, "one file: wan-test has 1"),
    ({"name": "a/b"}, "allowed: text that matches"),
    ({"file": "ink.safetensors", "model": "other"}, "model is 'other'; allowed: 'wan-test'"),
    ({}, "one of file and files"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_at_registration(boss, body, message):
    body = {"name": "x"} | body | ({"file": "ink.safetensors"} if "name" in body else {})
    status, _, said = problem(boss.post("/v1/loras", json=body))
    assert status == 400
    assert message in said


def test_another_file_under_a_taken_name_is_a_conflict(boss):
    register(boss, "ink")
    status, _, said = problem(register(boss, "ink", file="chalk.safetensors"))
    assert (status, "another adapter is called 'ink'" in said) == (409, True)
    # what the configuration beside a file says counts too
    assert problem(register(boss, "ink", file="peft/adapter_model.safetensors"))[0] == 409


@pytest.mark.parametrize(
    "lora",
    [
        {"lora": [{"name": "ink", "strength": 0.5}, {"name": "chalk"}]},
        {"loras": '[{"name": "ink", "scale": 0.5}, "chalk"]'},
        {"lora_path": "ink:0.5,chalk"},
    ],
)
def test_a_request_names_adapters_in_its_own_and_other_servers_words(boss, ann, lora):
    register(boss, "ink")
    register(boss, "chalk")
    small = {"prompt": "x", "width": 128, "height": 128, "num_frames": 17, "steps": 40}
    job = ann.post("/v1/videos", json=small | lora).json()
    assert job["lora"] == [{"name": "ink", "strength": 0.5}, {"name": "chalk", "strength": 1.0}]
    plain = ann.post("/v1/videos", json=small).json()
    assert plain["lora"] == []
    assert job["predicted_gpu_seconds"] > plain["predicted_gpu_seconds"]
    assert running.wait_for(ann, job["id"])["status"] == "completed"


def test_lightx2vs_task_names_one_by_its_own_fields(boss, ann):
    register(boss, "ink")
    task = ann.post("/v1/tasks/video/", data={"prompt": "x", "lora_name": "ink", "lora_strength": "0.7"}).json()
    assert ann.get(f"/v1/videos/{task['task_id']}").json()["lora"] == [{"name": "ink", "strength": 0.7}]
    assert problem(ann.post("/v1/tasks/video/", json={"prompt": "x", "lora_name": "nope"}))[1] == "lora_name"


@pytest.mark.parametrize(("lora", "message"), [
    ("nope", "lora is 'nope'; allowed: registered adapters of the model: ink"),
    ([{"name": "ink", "strength": 40}], "strength"),
    ([{"name": "ink"}, {"name": "ink"}], "each name once"),
    ([{"name": "ink", "path": "/models/ink.safetensors"}], "no paths or addresses"),
    ("https://example.org/ink.safetensors", "no paths or addresses"),
    (["ink", 7], "names of registered adapters"),
    ("[" * 5000, "names of registered adapters"),
])  # fmt: skip
def test_an_adapter_that_is_not_there_or_not_meant_is_refused_by_name(boss, ann, lora, message):
    register(boss, "ink")
    status, param, said = problem(ann.post("/v1/videos", json={"prompt": "x", "lora": lora}))
    assert (status, param) == (400, "lora")
    assert message in said


def test_the_command_registers_as_the_route_does(shop, boss, ann, monkeypatch, capsys):
    settings = shop[2]
    monkeypatch.setenv("WAN_LORA_DIR", settings.lora_dir)
    monkeypatch.setenv("WAN_MODEL_CARD", str(settings.model_card))
    monkeypatch.setenv("WAN_MODEL_NAME", "wan-test")
    assert adapters.main(["ink", "odd.safetensors"]) == 1
    assert "fits no tensor" in capsys.readouterr().err
    assert adapters.main(["ink", "ink.safetensors"]) == 0
    assert ann.post("/v1/videos", json={"prompt": "x", "lora": "ink"}).status_code == 200


def test_a_server_without_a_directory_says_so(client):
    message = client.post("/v1/videos", json={"prompt": "x", "lora": "ink"}).json()["error"]["message"]
    assert message == "lora is 'ink'; allowed: none, as this server has no directory of adapters (WAN_LORA_DIR)"
    assert client.get("/v1/loras").json()["data"] == []
