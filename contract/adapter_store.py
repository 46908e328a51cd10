"""The directory or bucket of adapters (`WAN_LORA_DIR`): their files, and an index of those that requests may name.

    <anything>.safetensors, <folder>/<anything>.safetensors      files that the operator put there
    index/<name>.json                                            one entry for each registered adapter

An entry is made by `POST /v1/loras`, which checks the file against the model, and holds the digest of what was checked; who
reads the file compares it.
"""

import hashlib
import json
import os
import re
import struct
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

import fsspec

from contract import lora_keys
from contract.adapters import NAME, Adapter
from contract.errors import InvalidRequest
from contract.lora_keys import LoraError, Shapes

FILE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,99}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.safetensors")
INDEX = "index"
CONFIG = "adapter_config.json"
CHUNK = 4 << 20
MAX_HEADER = 16 << 20


@dataclass(frozen=True)
class AdapterFile:
    """The file for one expert; `config`: PEFT's configuration beside it, as JSON."""

    path: str
    sha256: str
    bytes: int
    rank: int
    config: str | None = None


@dataclass(frozen=True)
class Entry:
    """A registered adapter. `files`: one for each expert of the model, None where that one stays as it is."""

    name: str
    model: str
    files: tuple[AdapterFile | None, ...]
    created: int

    @property
    def rank(self) -> int:
        return max((file.rank for file in self.files if file), default=0)

    @property
    def digest(self) -> str:
        """Of everything that decides what the adapter does."""
        parts = [file and [file.sha256, file.config] for file in self.files]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Entry":
        files = tuple(file and AdapterFile(**file) for file in values["files"])
        return cls(values["name"], values["model"], files, values["created"])


class AdapterStore:
    """`url`: a directory or what fsspec knows, such as s3://bucket/prefix; "": there are no adapters."""

    def __init__(self, url: str, endpoint_url: str = ""):
        self.url = url
        options: dict = {}
        if url.startswith("s3://") and endpoint_url:
            options["client_kwargs"] = {"endpoint_url": endpoint_url}
        if url:
            self.fs, self.root = fsspec.core.url_to_fs(url, use_listings_cache=False, **options)

    def names(self) -> list[str]:
        """Those of all registered adapters."""
        if not self.url:
            return []
        try:
            paths = self.fs.ls(f"{self.root}/{INDEX}", detail=False)
        except FileNotFoundError:
            return []
        return sorted(PurePosixPath(path).stem for path in paths if path.endswith(".json"))

    def get(self, name: str) -> Entry | None:
        """A registered adapter; None where there is none of this name."""
        if not self.url or not NAME.fullmatch(name):
            return None
        try:
            return Entry.from_dict(json.loads(self.fs.cat_file(self._entry(name))))
        except FileNotFoundError:
            return None

    def entries(self, wanted: Iterable[Adapter], model: str | None = None, field: str = "lora") -> list[Entry]:
        """Those of a request, in its order; InvalidRequest names one that is not there and says which are."""
        found = []
        for adapter in wanted:
            entry = self.get(adapter.name)
            if entry is None or model not in (None, entry.model):
                raise InvalidRequest(field, adapter.name, self._allowed(model))
            found.append(entry)
        return found

    def _allowed(self, model: str | None) -> str:
        if not self.url:
            return "none, as this server has no directory of adapters (WAN_LORA_DIR)"
        known = [n for n in self.names() if model is None or ((entry := self.get(n)) and entry.model == model)]
        return f"registered adapters of the model: {', '.join(known) or 'there are none'}"

    def add(self, entry: Entry) -> None:
        """Take an adapter into the index; who reads it meanwhile never sees half an entry."""
        path, text = self._entry(entry.name), json.dumps(asdict(entry)).encode()
        self.fs.makedirs(f"{self.root}/{INDEX}", exist_ok=True)
        if "file" not in self.fs.protocol:  # an object is there when it is complete
            self.fs.pipe_file(path, text)
            return
        temporary = f"{path}.{os.getpid()}.tmp"
        self.fs.pipe_file(temporary, text)
        os.replace(temporary, path)

    def remove(self, name: str) -> bool:
        """Take an adapter out of the index, its files stay; False where it was not in there."""
        if not self.url or not NAME.fullmatch(name) or not self.fs.exists(self._entry(name)):
            return False
        self.fs.rm_file(self._entry(name))
        return True

    def examine(self, path: str, weights: Shapes, expert: int = 0, experts: int = 1) -> AdapterFile:
        """A file of the directory, checked against a model with `weights`; raises LoraError."""
        if not FILE.fullmatch(path):
            raise LoraError(f"{path} is no file of the directory; allowed: NAME.safetensors or FOLDER/NAME.safetensors")
        try:
            tensors, metadata = self._header(path)
            config = self._beside(path) or metadata.get("lora_adapter_metadata")
            modules = lora_keys.matched(path, tensors, weights, expert, experts)
            lora_keys.check_beside(path, modules, tensors)
            lora_keys.adapter_alpha(path, config)
            sha256, size = self._digest(path)
        except FileNotFoundError:
            raise LoraError(f"{path} is not in the directory of adapters") from None
        except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise LoraError(f"{path} is not a readable safetensors file: {error!r}") from None
        return AdapterFile(path, sha256, size, lora_keys.rank(modules, tensors), config)

    def read(self, file: AdapterFile) -> bytes:
        """The file as it was registered; LoraError if it is another one by now, or gone."""
        try:
            data = self.fs.cat_file(f"{self.root}/{file.path}")
        except FileNotFoundError:
            raise LoraError(f"{file.path} is no longer in the directory of adapters") from None
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise LoraError(f"{file.path} has changed since it was registered")
        return data

    def _entry(self, name: str) -> str:
        return f"{self.root}/{INDEX}/{name}.json"

    def _header(self, path: str) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
        """Shapes by key, and the metadata, of a safetensors file."""
        with self.fs.open(f"{self.root}/{path}", "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > MAX_HEADER:
                raise ValueError(f"its header has {length} bytes")
            header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        return {key: tuple(map(int, about["shape"])) for key, about in header.items()}, metadata

    def _beside(self, path: str) -> str | None:
        """The text of PEFT's configuration in the folder of a file that has a folder of its own."""
        folder, separator, _ = path.rpartition("/")
        config = f"{self.root}/{folder}/{CONFIG}"
        return self.fs.cat_file(config).decode() if separator and self.fs.exists(config) else None

    def _digest(self, path: str) -> tuple[str, int]:
        digest, size = hashlib.sha256(), 0
        with self.fs.open(f"{self.root}/{path}", "rb") as file:
            while piece := file.read(CHUNK):
                digest.update(piece)
                size += len(piece)
        return digest.hexdigest(), size
