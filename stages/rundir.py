"""The run directory of a request: how progress, cancel, checkpoints and previews pass between worker and denoise.

Triton carries no cancel into a running ensemble step and a unary ensemble has no progress, so these go by files:

    $WAN_RUN_DIR/<request id>/
        progress.json            written by the stages
        cancel                   made by the worker; its existence stops the loop before the next step
        checkpoint.safetensors   written by denoise, read by the denoise that goes on
        preview.webp             written by denoise on request

Every file is written under a temporary name and renamed, so a reader never sees half of one. A file that cannot be written
(the disk is full) is left out: it tells or saves something, but the video does not depend on it.
"""

import json
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from wan.errors import InvalidRequest

REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
CHECKPOINT_FORMAT = "1"
logger = logging.getLogger(__name__)


class CheckpointRefused(Exception):
    """The run directory holds a checkpoint of another request or one that cannot be read."""


@dataclass(frozen=True)
class StepCheckpoint:
    """What a denoise loop needs to go on: its state, the step it belongs to and the seed of the request."""

    step: int
    seed: int
    state: dict[str, Tensor]


class RunDirectory:
    """The files of one request below `root`. Raises InvalidRequest for an id that could leave the directory."""

    def __init__(self, root: Path, request_id: str):
        if not REQUEST_ID.fullmatch(request_id):
            raise InvalidRequest("request id", request_id, "1 to 64 of the characters A-Z a-z 0-9 _ -")
        self.path = Path(root) / request_id
        self.path.mkdir(parents=True, exist_ok=True)

    @classmethod
    def of_request(cls, root: Path | None, request_id: str) -> "RunDirectory | None":
        """The directory of a request; None where there is no root or no id."""
        if root is None or not request_id:
            return None
        return cls(root, request_id)

    @property
    def checkpoint_path(self) -> Path:
        return self.path / "checkpoint.safetensors"

    def cancelled(self) -> bool:
        return (self.path / "cancel").exists()

    def write_progress(self, progress: dict) -> None:
        self.replace("progress.json", lambda path: path.write_text(json.dumps(progress)))

    def replace(self, name: str, write: Callable[[Path], object]) -> None:
        """Let `write` fill a temporary file, then put it in the place of `name`; a warning in the log when that fails."""
        temporary = self.path / f".{name}.{os.getpid()}.tmp"
        try:
            write(temporary)
            os.replace(temporary, self.path / name)
        except (OSError, SafetensorError) as error:
            logger.warning("%s of request %s is not written: %s", name, self.path.name, error)
        finally:
            temporary.unlink(missing_ok=True)

    def save_checkpoint(self, checkpoint: StepCheckpoint, fingerprint: str) -> None:
        metadata = {
            "format": CHECKPOINT_FORMAT,
            "fingerprint": fingerprint,
            "step": str(checkpoint.step),
            "seed": str(checkpoint.seed),
        }
        tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in checkpoint.state.items()}
        self.replace(self.checkpoint_path.name, lambda path: save_file(tensors, path, metadata))

    def remove_checkpoint(self) -> None:
        """A finished request needs none, and the next one of the same id must not meet it."""
        self.checkpoint_path.unlink(missing_ok=True)

    def checkpoint_seed(self) -> int | None:
        """The seed of the checkpoint, for a request that left its seed to the server; None without a checkpoint."""
        return self._read(lambda file, metadata: int(metadata["seed"]))

    def load_checkpoint(self, fingerprint: str) -> StepCheckpoint | None:
        """The checkpoint if there is one; raises CheckpointRefused if it is not of this very request."""

        def read(file, metadata) -> StepCheckpoint:
            if metadata["fingerprint"] != fingerprint:
                raise CheckpointRefused(
                    f"{self.checkpoint_path.name} of request {self.path.name} was written for fingerprint "
                    f"{metadata['fingerprint'][:12]}, this request has {fingerprint[:12]}: the model, a parameter, the seed or "
                    "the prompt differs. Send the original request, or remove the checkpoint to start over"
                )
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return StepCheckpoint(int(metadata["step"]), int(metadata["seed"]), state)

        return self._read(read)

    def _read(self, use: Callable):
        if not self.checkpoint_path.exists():
            return None
        try:
            with safe_open(self.checkpoint_path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != CHECKPOINT_FORMAT:
                    raise CheckpointRefused(
                        f"{self.checkpoint_path.name} of request {self.path.name} has format {metadata.get('format')}, "
                        f"this server reads format {CHECKPOINT_FORMAT}; remove it to start over"
                    )
                return use(file, metadata)
        except (SafetensorError, KeyError, ValueError) as error:
            raise CheckpointRefused(
                f"{self.checkpoint_path.name} of request {self.path.name} cannot be read ({error}); remove it to start over"
            ) from error
