"""The denoise stage with adapters: what it keeps, what it refuses, and that no request is changed by those before it."""

import json
import random
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from contract.adapter_store import AdapterStore, Entry
from contract.adapters import Adapter
from contract.lora_keys import unfolded
from stages.adapters import LoadedAdapters
from stages.artifacts import Artifacts
from stages.denoise_stage import DenoiseStage
from stages.metrics import DenoiseMetrics
from stages.run_directory import CheckpointRefused
from stages.settings import StageSettings
from tests.stages.recording_metrics import RecordingBackend
from tests.stages.requests import Request, text
from tests.wan.adapter_files import FAMILIES, differences, pairs
from wan.errors import InvalidRequest

NAMES = ("ink", "chalk", "wool")


@pytest.fixture(scope="module")
def artifacts(repository):
    return Artifacts.of(repository, "denoise")


@pytest.fixture(scope="module")
def store(artifacts, tmp_path_factory):
    """A directory with three registered adapters for models/tiny."""
    folder = tmp_path_factory.mktemp("loras")
    weights = unfolded(artifacts.card.weights)
    found = AdapterStore(str(folder))
    for i, name in enumerate(NAMES):
        tensors = FAMILIES["LightX2V"](pairs(weights, rank=4 * 4**i, seed=i))
        save_file(tensors | (differences(weights) if name == "chalk" else {}), folder / f"{name}.safetensors")
        found.add(Entry(name, "wan", (found.examine(f"{name}.safetensors", weights),), 0))
    return found


@pytest.fixture(scope="module")
def stage(artifacts, store, tmp_path_factory):
    def build(**settings) -> DenoiseStage:
        common = {"run_dir": tmp_path_factory.mktemp("runs"), "checkpoint_seconds": 1e-6, "lora_dir": store.url,
                  "denoise_threads": torch.get_num_threads()}  # fmt: skip
        return DenoiseStage(artifacts, StageSettings(**common | settings), DenoiseMetrics(RecordingBackend(), "0"))

    return build


@pytest.fixture(scope="module")
def served(stage):
    return stage()


def ask(stage: DenoiseStage, lora: str = "", request_id: str = "", seed: int = 1, gone=None) -> tuple[bytes, dict]:
    """Bits of the latents, and INFO, of a short request."""
    card, given = stage._card, {"width": 32, "height": 32, "num_frames": 5, "steps": 4, "cache_threshold": 0.0}
    generation = card.request(prompt="a cat", seed=seed, lora=lora, **given)
    noise = np.random.default_rng(0).normal(size=(1, 512, stage._text["dim"])).astype(np.float32)
    noise[:, 9:] = 0
    tensors = {"CONTEXT": noise, "NEGATIVE_CONTEXT": np.zeros_like(noise),
               "REQUEST": text(json.dumps(asdict(generation) | {"tokenized_at": 0.0}))}  # fmt: skip
    request = Request(tensors, request_id)
    request.is_cancelled = gone or (lambda: False)
    answer = stage.handle(request)
    return answer["LATENTS"].tobytes(), json.loads(answer["INFO"][0])


def test_twenty_requests_with_adapters_at_random_are_each_what_they_are_alone(served, stage):
    chance = random.Random(0)
    asked = [
        (
            ",".join(f"{name}:{chance.choice((-0.5, 0.7, 1))}" for name in chance.sample(NAMES, chance.randint(0, 3))),
            seed,
        )
        for seed in range(20)
    ]
    together = [ask(served, lora, seed=seed)[0] for lora, seed in asked]
    assert len(set(together)) == 20
    again = chance.sample(range(20), 5)
    fresh = stage()
    for i in again:  # in another order, by a stage that has seen little else
        lora, seed = asked[i]
        assert ask(fresh, lora, seed=seed)[0] == together[i]
    for i in again:
        lora, seed = asked[i]
        assert ask(served, lora, seed=seed)[0] == together[i]


@pytest.mark.parametrize("linear", ["auto", "fp8"])
def test_an_adapter_changes_the_video_and_leaves_no_trace(stage, linear):
    here = stage(linear=linear)
    plain, _ = ask(here)
    changed, info = ask(here, "chalk:0.5,ink")
    assert info["lora"] == [{"name": "chalk", "strength": 0.5}, {"name": "ink", "strength": 1.0}]
    assert changed != plain == ask(here)[0]
    assert ask(here, "chalk:0")[0] == plain


def test_a_job_with_adapters_goes_on_where_it_stopped_to_the_bit(stage, served):
    whole, _ = ask(served, "ink,chalk:0.3")
    looks = iter([False, False, False, True])
    with pytest.raises(Exception, match="cancelled after step"):
        ask(served, "ink,chalk:0.3", "job-1", gone=lambda: next(looks))
    ask(served, "wool")
    resumed, info = ask(served, "ink,chalk:0.3", "job-1")
    assert info["resumed_from"] > 0
    assert resumed == whole
    for other in ("ink,chalk:0.4", "ink", ""):
        with pytest.raises(CheckpointRefused):
            ask(served, other, "job-1")


def test_another_file_under_the_name_does_not_continue_a_job(served, store):
    ask(served, "ink", "job-2")
    before = store.get("ink")
    store.add(replace(before, files=store.get("wool").files))
    try:
        with pytest.raises(CheckpointRefused):
            ask(served, "ink", "job-2")
    finally:
        store.add(before)


def test_an_adapter_that_is_not_registered_or_has_changed_is_refused_by_name(served, store, artifacts):
    with pytest.raises(
        InvalidRequest, match="LORA is 'nope'; allowed: registered adapters of the model: chalk, ink, wool"
    ):
        ask(served, "nope")
    kept = LoadedAdapters(store, unfolded(artifacts.card.weights), 1, 1 << 30)
    damaged = replace(store.get("ink").files[0], sha256="0" * 64)
    with pytest.raises(InvalidRequest, match="'ink'; allowed: .*ink.safetensors has changed since it was registered"):
        kept.load([replace(store.get("ink"), files=(damaged,))])
    with pytest.raises(InvalidRequest, match="an adapter with 2 files, one for each expert"):
        LoadedAdapters(store, {}, 2, 1).named([Adapter("ink")])


def test_those_used_last_stay_within_the_memory_that_is_allowed(store, artifacts, monkeypatch):
    weights, read = unfolded(artifacts.card.weights), []
    original = AdapterStore.read
    monkeypatch.setattr(AdapterStore, "read", lambda self, file: read.append(file.path) or original(self, file))
    largest = LoadedAdapters(store, weights, 1, 1 << 40)
    largest.load([store.get("wool")])
    kept = LoadedAdapters(store, weights, 1, largest.bytes + 1)
    read.clear()
    for name in ("ink", "chalk", "ink", "wool", "wool", "chalk", "ink"):
        kept.load([store.get(name)])
        assert kept.bytes <= largest.bytes + 1
    assert read == [f"{name}.safetensors" for name in ("ink", "chalk", "wool", "chalk", "ink")]
    everything = kept.load([store.get(name) for name in NAMES])  # those of a request all are there, whatever they take
    assert list(everything) == list(NAMES)
