"""The run directory of a request: how progress, cancel, checkpoints and previews pass between worker and denoise.

Triton carries no cancel into a running ensemble step and a unary ensemble has no progress, so these go by files:

    $WAN_RUN_DIR/<request id>/
        progress.json            written by the stages
        cancel                   made by the worker; its existence stops the loop before the next step
        checkpoint.safetensors   written by denoise, read by the denoise that goes on
        preview.webp             written by denoise on request
        frames.rgb               appended to by vae_decoder on request

Every file is written under a temporary name and renamed, so a reader never sees half of one. A file that cannot be written
(the disk is full) is left out: it tells or saves something, but the video does not depend on it.

A checkpoint is a safetensors file and after it the digest of its bytes, which is compared before anything in it is believed:
on the way through disks and object stores bits change, and a video from changed bits looks like any other.

Who makes a directory removes it. Those that a stage made, for a caller that only sent a request id, hold a mark which the stage
locks while it works there; `sweep` keeps the newest of them for an hour.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from wan.errors import InvalidRequest

REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
CHECKPOINT_FORMAT = "1"
DIGEST_BYTES = 32
MARK = ".made-by-a-stage"
KEPT_DIRECTORIES = 32
KEPT_SECONDS = 3600.0
logger = logging.getLogger(__name__)


class CheckpointRefused(Exception):
    """The run directory holds a checkpoint of another request or of another version of this program."""


class CheckpointDamaged(Exception):
    """The bytes of a checkpoint are not those that were written."""


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

    @classmethod
    def of_request(cls, root: Path | None, request_id: str) -> "RunDirectory | None":
        """The directory of a request, made or not; None where there is no root or no id."""
        if root is None or not request_id:
            return None
        return cls(root, request_id)

    def open(self) -> Self:
        """Make the directory if the caller did not; a stage that works in one it made itself keeps it from the sweep."""
        try:
            self.path.mkdir(parents=True)
        except FileExistsError:
            made_here = (self.path / MARK).exists()
        else:
            made_here = True
        if made_here:
            sweep(self.path.parent, keep=KEPT_DIRECTORIES - 1, without=self.path)
            with contextlib.suppress(OSError):  # on a full disk the directory is no worse than the caller's
                mark = os.open(self.path / MARK, os.O_CREAT | os.O_RDWR, 0o644)
                weakref.finalize(self, os.close, mark)  # with this object, when the request is answered
                fcntl.flock(mark, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return self

    @property
    def checkpoint_path(self) -> Path:
        return self.path / "checkpoint.safetensors"

    def cancelled(self) -> bool:
        """Asked to stop, or nobody's any more: a worker that gave the request up may remove its directory at once."""
        return (self.path / "cancel").exists() or not self.path.exists()

    def write_progress(self, progress: dict) -> None:
        self.replace("progress.json", lambda path: path.write_text(json.dumps(progress)))

    def frames(self) -> "FrameFile":
        return FrameFile(self.path / "frames.rgb")

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
        content = save(tensors, metadata)

        def write(path: Path) -> None:
            with path.open("wb") as file:
                file.write(content)
                file.write(_digest(content))

        self.replace(self.checkpoint_path.name, write)

    def remove_checkpoint(self) -> None:
        """A finished request needs none, and the next one of the same id must not meet it."""
        self.checkpoint_path.unlink(missing_ok=True)

    def checkpoint_seed(self) -> int | None:
        """The seed of the checkpoint, for a request that left its seed to the server; None without a sound checkpoint."""
        try:
            found = self._read()
        except CheckpointDamaged:
            return None  # denoise says so
        return int(found[0]["seed"]) if found else None

    def load_checkpoint(self, fingerprint: str) -> StepCheckpoint | None:
        """The checkpoint if there is one; raises CheckpointRefused if it is not of this very request, CheckpointDamaged."""
        found = self._read()
        if found is None:
            return None
        metadata, content = found
        if metadata["fingerprint"] != fingerprint:
            raise CheckpointRefused(
                f"{self.checkpoint_path.name} of request {self.path.name} was written for fingerprint "
                f"{metadata['fingerprint'][:12]}, this request has {fingerprint[:12]}: the model, a parameter, the seed or "
                "the prompt differs. Send the original request, or remove the checkpoint to start over"
            )
        return StepCheckpoint(int(metadata["step"]), int(metadata["seed"]), load(content))

    def _read(self) -> tuple[dict, bytes] | None:
        """Metadata and safetensors bytes; None without a checkpoint."""
        try:
            stored = self.checkpoint_path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CheckpointDamaged(f"{self.checkpoint_path.name} cannot be read ({error})") from error
        content, digest = stored[:-DIGEST_BYTES], stored[-DIGEST_BYTES:]
        if digest != _digest(content):
            raise CheckpointDamaged(
                f"{self.checkpoint_path.name} ({len(stored)} bytes) does not have the digest that was written with it"
            )
        header = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + header])["__metadata__"]
        if metadata.get("format") != CHECKPOINT_FORMAT:
            raise CheckpointRefused(
                f"{self.checkpoint_path.name} of request {self.path.name} has format {metadata.get('format')}, "
                f"this server reads format {CHECKPOINT_FORMAT}; remove it to start over"
            )
        return metadata, content


class FrameFile:
    """Raw frames as they are decoded, for a worker that shows them at once; one that cannot be written is given up."""

    def __init__(self, path: Path):
        self._path, self._mode = path, "wb"  # what an earlier decoding of this request left goes

    def append(self, frames: np.ndarray) -> None:
        """Frames uint8 [n, H, W, 3]."""
        if not self._mode:
            return
        try:
            with self._path.open(self._mode) as file:
                file.write(np.ascontiguousarray(frames).data)
            self._mode = "ab"
        except OSError as error:
            logger.warning("frames of request %s are not shown early: %s", self._path.parent.name, error)
            self._path.unlink(missing_ok=True)
            self._mode = ""


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


def sweep(root: Path, keep: int = KEPT_DIRECTORIES, without: Path | None = None) -> None:
    """Remove the directories that stages made, but for those in use and the newest `keep` that are not an hour old."""
    ages = {path.parent: _changed(path.parent) for path in root.glob(f"*/{MARK}") if path.parent != without}
    newest_first = sorted(ages, key=ages.__getitem__, reverse=True)
    for i, path in enumerate(newest_first):
        if i >= keep or time.time() - ages[path] > KEPT_SECONDS:
            _remove_unless_in_use(path)


def _changed(path: Path) -> float:
    """When something was last written there: every file is put in its place by a rename."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _remove_unless_in_use(path: Path) -> None:
    with contextlib.suppress(OSError), (path / MARK).open("rb") as mark:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
