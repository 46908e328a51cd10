"""The pictures and clips of a job, on their way from the store to Triton."""

import hashlib

from service.errors import InputLost, NotFound
from service.storage import Storage


def read_all(files: Storage, media: dict[str, dict]) -> dict[str, bytes]:
    """Name -> encoded file; InputLost when one is gone or is not what was submitted."""
    return {name: _read(files, name, said) for name, said in media.items()}


def _read(files: Storage, name: str, said: dict) -> bytes:
    try:
        data = b"".join(files.read(said["key"], 0, files.size(said["key"])))
    except NotFound:
        raise InputLost(f"{name} is no longer stored; submit the request again") from None
    if hashlib.sha256(data).hexdigest() != said["sha256"]:
        raise InputLost(f"{name} was changed in the store; submit the request again")
    return data
