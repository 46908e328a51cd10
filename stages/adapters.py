"""The adapters that requests name: found in the deployment's directory, kept in memory for the next request."""

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from safetensors import SafetensorError
from safetensors.torch import load

from contract.adapter_store import AdapterFile, AdapterStore, Entry
from contract.adapters import Adapter
from contract.errors import InvalidRequest
from contract.lora_keys import LoraError, Shapes
from wan.lora import Lora

logger = logging.getLogger(__name__)


class LoadedAdapters:
    """Loads adapters for a model with `weights` and so many `experts`; those used last stay, up to `most_bytes` together."""

    def __init__(self, store: AdapterStore, weights: Shapes, experts: int, most_bytes: int):
        self._store, self._weights, self._experts, self._most_bytes = store, weights, experts, most_bytes
        self._kept: OrderedDict[tuple[str, int], Lora | None] = OrderedDict()  # by the entry's digest and expert

    def named(self, wanted: Sequence[Adapter]) -> list[Entry]:
        """The entries of a request's adapters; InvalidRequest names one that is not registered, or not for such a model."""
        entries = self._store.entries(wanted, field="LORA")
        for entry in entries:
            if len(entry.files) != self._experts:
                count = f"an adapter with {self._experts} files, one for each expert of the model"
                raise InvalidRequest("LORA", entry.name, count)
        return entries

    def load(self, entries: Sequence[Entry]) -> Mapping[str, list[Lora | None]]:
        """What `Denoiser.run` takes; InvalidRequest for a file that is not what was registered."""
        loaded = {entry.name: [self._of(entry, expert) for expert in range(self._experts)] for entry in entries}
        self._make_room({(entry.digest, expert) for entry in entries for expert in range(self._experts)})
        return loaded

    @property
    def bytes(self) -> int:
        return sum(lora.bytes for lora in self._kept.values() if lora)

    def _of(self, entry: Entry, expert: int) -> Lora | None:
        key = entry.digest, expert
        if key not in self._kept:
            file = entry.files[expert]
            self._kept[key] = None if file is None else self._read(entry, file, expert)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _read(self, entry: Entry, file: AdapterFile, expert: int) -> Lora:
        try:
            tensors = load(self._store.read(file))
            return Lora(file.path, tensors, self._weights, config=file.config, expert=expert, experts=self._experts)
        except (LoraError, SafetensorError) as error:
            raise InvalidRequest("LORA", entry.name, f"an adapter as it was registered: {error}") from None

    def _make_room(self, used: set[tuple[str, int]]) -> None:
        """Forget those that were used longest ago, but none of the request's own."""
        for key in [key for key in self._kept if key not in used]:
            if self.bytes <= self._most_bytes:
                return
            del self._kept[key]
