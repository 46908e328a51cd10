"""Embeds token ids with the exported text encoder."""

from pathlib import Path
from typing import Protocol

import numpy as np
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from stages.vae_runtime import onnx_session
from wan.errors import InvalidRequest

MODEL = "model.onnx"


class TextRuntime(Protocol):
    """Embeds one prompt."""

    def encode(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Ids and mask int32 [1, L] to the context float32 [1, L, D], zero after the true length."""


class OnnxTextEncoder:
    """The encoder graph under ONNX Runtime on a CPU."""

    def __init__(self, folder: Path, threads: int):
        self._session = onnx_session(folder / MODEL, threads)

    def encode(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        # Padding never changes the rest, so only the columns that the text has are computed.
        used = int(mask.sum())
        try:
            hidden = self._session.run(["CONTEXT"], {"IDS": ids[:, :used], "MASK": mask[:, :used]})[0]
        except InvalidArgument as error:  # types and shapes are right: it can only be a number
            raise InvalidRequest("IDS", int(ids.max()), "token ids of the model's vocabulary") from error
        return np.pad(hidden, ((0, 0), (0, ids.shape[1] - used), (0, 0)))
