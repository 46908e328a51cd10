"""The text encoder stage: token ids of one prompt to its embedding."""

import time

import numpy as np

from stages.artifacts import Artifacts
from stages.device import NotFinite
from stages.inputs import array
from stages.metrics import StageMetrics
from stages.runtimes import open_text_encoder
from stages.settings import StageSettings
from wan.errors import InvalidRequest


class TextEncoderStage:
    """One call embeds one prompt, so that Triton's response cache holds one embedding an entry."""

    def __init__(self, artifacts: Artifacts, settings: StageSettings, metrics: StageMetrics):
        self._text = artifacts.manifest["text"]
        self._metrics = metrics
        self._runtime = open_text_encoder(artifacts, settings)
        self._encode(*self._warm_up())

    def _warm_up(self) -> tuple[np.ndarray, np.ndarray]:
        """The longest prompt there is, so that the runtime reserves its memory once."""
        ids = np.ones((1, self._text["length"]), np.int32)
        return ids, ids

    def _encode(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        if not mask.any():
            # Nothing to encode: what the tokenizer sends for a negative prompt that guidance 1 does not use.
            return np.zeros((*ids.shape, self._text["dim"]), np.float32)
        return self._runtime.encode(ids, mask)

    def handle(self, request) -> dict[str, np.ndarray]:
        dims = (1, self._text["length"])
        ids, mask = array(request, "IDS", "INT32", dims), array(request, "MASK", "INT32", dims)
        if not np.array_equal(mask, np.sort(mask != 0)[:, ::-1]):
            raise InvalidRequest("MASK", mask.tolist(), "ones, and zeros after them")
        if ids.min() < 0:
            raise InvalidRequest("IDS", int(ids.min()), "token ids, which begin at 0")
        began = time.monotonic()
        context = self._encode(ids, mask)
        if not np.isfinite(context).all():
            raise NotFinite("the embedding is NaN or infinite")
        seconds = time.monotonic() - began
        self._metrics.finished(seconds)
        return {"CONTEXT": context, "TIMING": np.array([began + seconds, seconds])}
