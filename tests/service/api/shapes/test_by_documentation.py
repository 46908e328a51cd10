"""Requests as the documentation of servers without a client on PyPI has them: vLLM-Omni, SGLang, TensorRT-LLM, LightX2V."""

import base64
import time
from pathlib import Path

import pytest

from service.api.shapes import table
from tests.service.running import wait_for

VLLM_OMNI = {  # every field of its create form, most with the values that its own client sends
    "prompt": "a red circle", "model": "wan-test", "seconds": "1", "size": "64x64", "user": "me", "fps": "16",
    "num_inference_steps": "3", "guidance_scale": "4.0", "flow_shift": "5.0",
    "true_cfg_scale": "1.0", "seed": "42", "negative_prompt": "blurry", "enable_frame_interpolation": "false",
    "frame_interpolation_exp": "1", "extra_params": '{"sample_shift": null}',
}  # fmt: skip
SGLANG = {
    "prompt": "a red circle", "model": "wan-test", "size": "64x64", "seconds": 1, "fps": 16, "seed": 1024,
    "generator_device": "cuda", "num_inference_steps": 3, "guidance_scale": 3.0, "guidance_scale_2": None,
    "true_cfg_scale": None, "negative_prompt": "blurry", "enable_teacache": False, "output_quality": "default",
    "output_path": None, "diffusers_kwargs": None, "input_reference": None, "num_outputs_per_prompt": 1,
}  # fmt: skip
MLPERF = {  # mlcommons/endpoints, api_type videogen
    "prompt": "a red circle", "negative_prompt": "blurry", "size": "64x64", "seconds": 1.0, "fps": 16,
    "num_inference_steps": 3, "guidance_scale": 4.0, "guidance_scale_2": None, "seed": 42, "latent_path": None,
    "output_format": "mp4",
}  # fmt: skip
LIGHTX2V = {  # scripts/server/post.py
    "prompt": "a red circle", "negative_prompt": "blurry", "image_path": "", "seed": 42, "infer_steps": 3,
    "save_result_path": "./output.mp4", "target_video_length": 17, "target_shape": [64, 96], "use_prompt_enhancer": False,
    "lora_name": None, "lora_strength": 1.0, "num_fragments": 1, "video_duration": 5, "target_fps": 16,
}  # fmt: skip


def refused(answer, param):
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    return error["message"]


def test_vllm_omni_creates_with_a_multipart_form(client):
    form = {name: (None, value) for name, value in VLLM_OMNI.items() if name != "extra_params"}
    job = client.post("/v1/videos", files=form | {"extra_params": (None, '{"sampler": "euler"}')}).json()
    done = wait_for(client, job["id"])
    assert (done["status"], done["seed"], done["steps"], done["sampler"]) == ("completed", 42, 3, "euler")
    refused(
        client.post("/v1/videos", files=form | {"enable_frame_interpolation": (None, "true")}),
        "enable_frame_interpolation",
    )
    refused(client.post("/v1/videos", files=form | {"lora": (None, '{"name": "x"}')}), "lora")


def test_sglang_creates_lists_and_cancels(client):
    answer = client.post("/v1/videos", json=SGLANG | {"num_inference_steps": 900})
    assert answer.status_code == 200, answer.text
    job = answer.json()
    assert job["id"] in [video["id"] for video in client.get("/v1/videos?limit=5&order=desc").json()["data"]]
    client.post(f"/v1/videos/{job['id']}/cancel")
    assert wait_for(client, job["id"])["status"] == "cancelled"
    for name, value in (("enable_teacache", True), ("output_path", "/etc/x"), ("output_quality", "low")):
        refused(client.post("/v1/videos", json=SGLANG | {name: value}), name)


def test_mlperfs_client_gets_bytes_or_the_place_of_the_file(client):
    answer = client.post("/v1/videos/generations", json=MLPERF | {"response_format": "video_bytes"})
    assert base64.b64decode(answer.json()["video_bytes"])[4:8] == b"ftyp"
    assert "video_path" not in answer.json()
    answer = client.post("/v1/videos/generations", json=MLPERF | {"response_format": "video_path"}).json()
    assert Path(answer["video_path"]).read_bytes() == client.get(f"/v1/videos/{answer['video_id']}/content").content
    refused(client.post("/v1/videos/generations", json=MLPERF | {"latent_path": "/data/latent.pt"}), "latent_path")
    refused(client.post("/v1/videos/generations", json=MLPERF | {"response_format": "url"}), "response_format")


def test_lightx2v_creates_asks_fetches_and_cancels(client):
    task = client.post("/v1/tasks/video/", json=LIGHTX2V).json()
    assert task["task_status"] == "pending"
    done = wait_for(client, task["task_id"])
    assert (done["size"], done["steps"]) == ("96x64", 3)
    state = client.get(f"/v1/tasks/{task['task_id']}/status").json()
    assert (state["status"], state["error"]) == ("completed", None)
    assert client.get(f"/v1/tasks/{task['task_id']}/result").content[4:8] == b"ftyp"
    assert client.delete(f"/v1/tasks/{task['task_id']}").json()["stop_status"] == "do_nothing"

    long = client.post("/v1/tasks/video", json=LIGHTX2V | {"infer_steps": 900}).json()["task_id"]
    while client.get(f"/v1/tasks/{long}/status").json()["status"] != "processing":
        time.sleep(0.02)
    queue = client.get("/v1/tasks/queue/status").json()
    assert (queue["is_processing"], queue["active_count"], queue["queue_size"]) == (True, 1, 1000)
    assert client.get(f"/v1/tasks/{long}/result").status_code == 404
    assert client.delete("/v1/tasks/all/running").json()["stop_status"] == "success"
    assert wait_for(client, long)["status"] == "cancelled"
    listed = {state["task_id"]: state["status"] for state in client.get("/v1/tasks/").json()["tasks"]}
    assert (listed[long], listed[task["task_id"]]) == ("cancelled", "completed")
    assert client.get("/v1/tasks/video_unknown/status").status_code == 404


@pytest.mark.parametrize(
    ("name", "value"), [("task_id", "mine"), ("audio_path", "/x.wav"), ("infer_steps", 0), ("lora_name", "x")]
)
def test_lightx2vs_fields_are_refused_under_the_names_they_came_with(client, name, value):
    refused(client.post("/v1/tasks/video/", json=LIGHTX2V | {name: value}), name)


def test_openrouter_errors_name_the_callers_fields(client):
    body = {"model": "wan-test", "prompt": "x"}
    refused(client.post("/api/v1/videos", json=body | {"duration": 1000}), "duration")
    refused(client.post("/api/v1/videos", json=body | {"callback_url": "http://127.0.0.1/"}), "callback_url")
    refused(client.post("/api/v1/videos", json=body | {"resolution": "64p", "size": "64x64"}), "size")
    refused(client.post("/api/v1/videos", json=body | {"generate_audio": True}), "generate_audio")


def test_every_shape_is_described_and_wrong_methods_are_told_the_right_ones(client):
    paths = client.get("/openapi.json").json()["paths"]
    for router in table.ROUTERS:
        for route in router.routes:
            assert route.path in paths or not route.include_in_schema
    assert client.put("/api/v1/videos").status_code == 405


def test_the_document_has_the_table_of_the_shapes():
    assert table.markdown() in (Path(__file__).parents[4] / "docs" / "clients.md").read_text()
