"""Videos, checkpoints and previews in a directory or an object store, by fsspec URL."""

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec

from service.errors import NotFound, StorageError

KEY = re.compile(r"[A-Za-z0-9_-]{1,64}/[A-Za-z0-9_.-]{1,80}")
CHECKPOINT = re.compile(r"checkpoint-(\d+)\.safetensors")
VIDEO = re.compile(r"video-\d+\.\w+")
CHUNK = 1 << 20


def video_key(job_id: str, fence: int, suffix: str = "mp4") -> str:
    return f"{job_id}/video-{fence}.{suffix}"


def checkpoint_key(job_id: str, fence: int) -> str:
    return f"{job_id}/checkpoint-{fence}.safetensors"


def early_key(job_id: str, fence: int, number: int) -> str:
    """A piece of what is shown while the rest is decoded; it stays as long as the job, since somebody may still be reading."""
    return f"{job_id}/early-{fence}-{number}.mp4"


def preview_key(job_id: str) -> str:
    return f"{job_id}/preview.webp"


def input_key(job_id: str, name: str) -> str:
    """`name`: of the medium, with the ending of its kept form."""
    return f"{job_id}/input-{name}"


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Storage:
    """Whole files under keys `<job id>/<name>`; a reader never sees half of one. Raises StorageError."""

    def __init__(self, url: str, endpoint_url: str = ""):
        options: dict = {}
        if url.startswith("s3://"):
            # the client's own retries are kept short: the worker retries, and says so
            options["config_kwargs"] = {"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 2}}
            if endpoint_url:
                options["client_kwargs"] = {"endpoint_url": endpoint_url}
        try:
            self.fs, self.root = fsspec.core.url_to_fs(url, use_listings_cache=False, **options)
        except (ValueError, ImportError) as error:
            raise StorageError(
                f"WAN_STORAGE_URL is {url!r}: {error}; allowed: a directory or s3://bucket/prefix"
            ) from None
        self.local = "file" in self.fs.protocol

    def _path(self, key: str) -> str:
        if not KEY.fullmatch(key) or "/." in key:
            raise StorageError(f"storage key {key!r}; allowed: <job id>/<file name>")
        return f"{self.root}/{key}"

    def put(self, source: Path, key: str) -> int:
        """Store a file and return its size in bytes."""
        path = self._path(key)
        with _storage_errors("write"):
            if self.local:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                temporary = f"{path}.{os.getpid()}.tmp"
                try:
                    with source.open("rb") as reader, open(temporary, "wb") as writer:
                        shutil.copyfileobj(reader, writer, CHUNK)
                        writer.flush()
                        os.fsync(writer.fileno())
                    os.replace(temporary, path)
                finally:
                    if os.path.exists(temporary):
                        os.unlink(temporary)
            else:
                self.fs.put_file(str(source), path)
            return source.stat().st_size

    def get(self, key: str, target: Path) -> None:
        """Fetch a file; it appears under its name only when complete."""
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        with _storage_errors("read"):
            self.fs.get_file(self._path(key), str(temporary))
            os.replace(temporary, target)

    def location(self, key: str) -> str:
        """Where a file is, for somebody with access to the same disk or bucket."""
        return self._path(key) if self.local else self.fs.unstrip_protocol(self._path(key))

    def size(self, key: str) -> int:
        with _storage_errors("read"):
            return self.fs.size(self._path(key))

    def read(self, key: str, start: int, stop: int) -> Iterator[bytes]:
        """The bytes [start, stop) in pieces of a megabyte."""
        path = self._path(key)
        with _storage_errors("read"):
            for offset in range(start, stop, CHUNK):
                yield self.fs.cat_file(path, start=offset, end=min(offset + CHUNK, stop))

    def delete(self, key: str) -> None:
        path = self._path(key)
        with _storage_errors("delete"), contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(path)

    def delete_checkpoints(self, job_id: str, before: int | None = None) -> None:
        """Remove the job's checkpoints; with `before` only those of attempts with a smaller fence."""
        folder = os.path.dirname(self._path(f"{job_id}/x"))
        with _storage_errors("delete"), contextlib.suppress(FileNotFoundError):
            for path in self.fs.ls(folder, detail=False):
                match = CHECKPOINT.fullmatch(os.path.basename(path))
                if match and (before is None or int(match[1]) < before):
                    self.fs.rm_file(path)

    def delete_videos(self, job_id: str, but: str | None) -> None:
        """Remove the job's videos except the one of the key `but`: an attempt may store one and die before it says so."""
        folder = os.path.dirname(self._path(f"{job_id}/x"))
        with _storage_errors("delete"), contextlib.suppress(FileNotFoundError):
            for path in self.fs.ls(folder, detail=False):
                name = os.path.basename(path)
                if VIDEO.fullmatch(name) and f"{job_id}/{name}" != but:
                    self.fs.rm_file(path)

    def delete_job(self, job_id: str) -> None:
        """Remove everything that was stored for a job."""
        folder = os.path.dirname(self._path(f"{job_id}/x"))
        with _storage_errors("delete"), contextlib.suppress(FileNotFoundError):
            self.fs.rm(folder, recursive=True)

    def try_out(self) -> None:
        """StorageError when a megabyte cannot be written."""
        path = self._path(f"try-out/{os.getpid()}")
        with _storage_errors("write"):
            if self.local:
                os.makedirs(os.path.dirname(path), exist_ok=True)
            try:
                self.fs.pipe_file(path, bytes(CHUNK))
            finally:
                self.delete(f"try-out/{os.getpid()}")

    def ping(self) -> None:
        """StorageError when the store does not answer."""
        with _storage_errors("reach"):
            if self.local:
                os.makedirs(self.root, exist_ok=True)
            else:
                self.fs.exists(f"{self.root}/ping")


@contextlib.contextmanager
def _storage_errors(verb: str):
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound("the file is no longer stored", "id") from error
    except StorageError:
        raise
    except Exception as error:  # every object store has its own exceptions
        raise StorageError(f"cannot {verb} the video store: {type(error).__name__}: {str(error)[:200]}") from error
