"""The tokenizer stage: checks the whole request before anything expensive runs, then turns its prompts into ids."""

import json
import time
from dataclasses import asdict, replace

import numpy as np

from contract.adapter_store import AdapterStore
from contract.parameters import steps_of_clip
from stages.artifacts import Artifacts
from stages.inputs import generation_request
from stages.limits import Limits
from stages.media import GivenMedia
from stages.run_directory import RunDirectory
from stages.settings import StageSettings
from wan.text import Tokenizer


class TokenizerStage:
    """Refuses what a later stage would refuse, so that a bad request never waits behind a running video."""

    def __init__(self, artifacts: Artifacts, settings: StageSettings):
        self._card, self._settings, self._limits = artifacts.card, settings, Limits.of(artifacts, settings)
        self._adapters = AdapterStore(settings.lora_dir, settings.storage_endpoint_url)
        self._tokenizer = Tokenizer(artifacts["tokenizer"])
        self._tokens("PROMPT", "warm up")

    def handle(self, request) -> dict[str, np.ndarray]:
        directory = RunDirectory.of_request(self._settings.run_dir, request.request_id())
        generation, drawn = generation_request(request, self._card)
        self._limits.check(generation)
        self._adapters.entries(generation.lora, field="LORA")
        media = GivenMedia.of(request, self._card, self._settings.max_media_bytes)
        media.check()
        if "video" in media.names and not self._card.continues:
            steps_of_clip(generation.steps, generation.strength, generation.sampler)
        if drawn and directory and (seed := directory.checkpoint_seed()) is not None:
            # The server drew the seed of the interrupted run; this one goes on with it.
            generation = replace(generation, seed=seed)
        ids, mask = self._tokens("PROMPT", generation.prompt)
        negative_ids, negative_mask = self._tokens("NEGATIVE_PROMPT", generation.negative_prompt)
        if not generation.guided:
            # Not used: an empty mask costs the encoder nothing and is the same for every request.
            negative_ids, negative_mask = np.zeros_like(negative_ids), np.zeros_like(negative_mask)
        resolved = asdict(generation) | {"tokenized_at": time.monotonic(), "media": media.hashes}
        size = np.array([generation.width, generation.height, generation.num_frames], np.int32)
        return ({"SIZE": size} if self._card.takes else {}) | {
            "REQUEST": np.array([json.dumps(resolved)], np.object_),
            "IDS": ids,
            "MASK": mask,
            "NEGATIVE_IDS": negative_ids,
            "NEGATIVE_MASK": negative_mask,
        }

    def _tokens(self, name: str, prompt: str) -> tuple[np.ndarray, np.ndarray]:
        ids, mask = self._tokenizer([prompt], name)
        return ids.numpy(), mask.numpy()
