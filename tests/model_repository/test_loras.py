"""An adapter through the real server: registered over HTTP, named over HTTP and gRPC, in the video as in process."""

import hashlib
import json

import httpx
import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tritonclient.utils import InferenceServerException

from contract.lora_keys import unfolded
from service.worker.triton import TritonGenerator
from tests.model_repository.client import generate
from tests.service.running import gateway, settings_for, wait_for, worker
from tests.wan.adapter_files import FAMILIES, pairs
from wan.lora import Lora
from wan.pipeline import Pipeline

ASKED = {"prompt": "a red circle moves left on a black background", "seed": 3, "num_frames": 5, "steps": 6}


class InTheWorkersLoop:
    """A TritonGenerator that is made where it is first used, as its client belongs to one event loop."""

    def __init__(self, url: str):
        self._url, self._made = url, None

    def __getattr__(self, name: str):
        self._made = self._made or TritonGenerator(self._url)
        return getattr(self._made, name)


@pytest.fixture(scope="module")
def weights(repository):
    return unfolded(json.loads((repository / "card.json").read_text())["weights"])


@pytest.fixture(scope="module")
def client(triton, repository, weights, tmp_path_factory):
    """An admin of a gateway whose worker calls the real server; its directory of adapters holds one file."""
    folder = triton.run_dir.parent / "loras"
    folder.mkdir(exist_ok=True)
    save_file(FAMILIES["kohya, musubi"](pairs(weights, rank=8, size=0.2)), folder / "random.safetensors")
    state = tmp_path_factory.mktemp("state")
    digest = hashlib.sha256(b"key").hexdigest()
    (state / "keys.json").write_text(json.dumps([{"name": "boss", "sha256": digest, "admin": True}]))
    settings = settings_for(
        state, model_card=repository / "card.json", lora_dir=str(folder), run_dir=triton.run_dir,
        api_keys_file=state / "keys.json",
    )  # fmt: skip
    headers = {"Authorization": "Bearer key"}
    with (
        gateway(settings) as url,
        worker(settings, InTheWorkersLoop(triton.grpc_url)),
        httpx.Client(base_url=url, headers=headers, timeout=30) as client,
    ):
        yield client


def test_an_adapter_does_over_http_and_grpc_what_it_does_in_process(client, triton, checkpoint, weights):
    made = client.post("/v1/loras", json={"name": "random", "file": "random.safetensors"})
    assert (made.status_code, made.json()["rank"]) == (200, 8), made.text

    tensors = {name.upper(): value for name, value in ASKED.items()}
    frames, info = generate(triton.grpc_url, **tensors, LORA='[{"name": "random", "strength": 0.8}]')
    assert info["lora"] == [{"name": "random", "strength": 0.8}]
    lora = Lora("random", load_file(triton.run_dir.parent / "loras" / "random.safetensors"), weights)
    pipeline = Pipeline.from_checkpoint(checkpoint)
    expected = pipeline(**ASKED, lora="random:0.8", adapters={"random": [lora]}).frames
    plain, _ = generate(triton.grpc_url, **tensors)
    assert np.abs(frames.astype(int) - expected.astype(int)).mean() < 0.05
    assert np.abs(frames.astype(int) - plain.astype(int)).mean() > 1
    assert np.array_equal(plain, generate(triton.grpc_url, **tensors)[0])

    job = client.post("/v1/videos", json=ASKED | {"lora": [{"name": "random", "strength": 0.8}]}).json()
    done = wait_for(client, job["id"], seconds=60)
    assert (done["status"], done["lora"]) == ("completed", [{"name": "random", "strength": 0.8}])
    assert done["frames_sha256"] == hashlib.sha256(frames.tobytes()).hexdigest()


def test_what_is_not_registered_is_refused_by_the_gateway_and_by_the_tokenizer(client, triton):
    answer = client.post("/v1/videos", json=ASKED | {"lora": "nobody"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "lora")
    with pytest.raises(
        InferenceServerException, match="LORA is 'nobody'; allowed: registered adapters of the model: random"
    ):
        generate(triton.grpc_url, PROMPT="x", LORA="nobody")
    with pytest.raises(InferenceServerException, match="LORA is .* no paths or addresses"):
        generate(triton.grpc_url, PROMPT="x", LORA="https://example.org/x.safetensors")
