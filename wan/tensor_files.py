"""The tensors of weight files, safetensors or PyTorch, under names of our own; nothing is read before it is asked for."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from wan.errors import CheckpointError

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.")


class TensorFiles:
    """The tensors of one component under the names that our modules use; read one at a time."""

    def __init__(self, files: list[Path], rename: Callable[[str], str] = lambda key: key):
        if not files:
            raise CheckpointError("no weight files")
        self.files = files
        self._where: dict[str, tuple[Callable[[], Tensor], tuple[int, ...], torch.dtype | str]] = {}
        for file in files:
            if not file.is_file():
                raise CheckpointError(f"{file} is missing")
            for key, entry in (self._safetensors if file.suffix == ".safetensors" else self._pickle)(file):
                name = rename(_strip_prefix(key))
                if name in self._where:
                    raise CheckpointError(f"{file}: tensor {name} occurs twice")
                self._where[name] = entry

    @staticmethod
    def _safetensors(file: Path) -> Iterator:
        try:
            handle = safe_open(file, framework="pt")
        except Exception as error:
            raise CheckpointError(f"{file} is not a readable safetensors file: {error}") from error
        for key in handle.keys():  # noqa: SIM118 (safe_open is not a mapping)
            view = handle.get_slice(key)
            yield key, (lambda key=key: handle.get_tensor(key), tuple(view.get_shape()), view.get_dtype())

    @staticmethod
    def _pickle(file: Path) -> Iterator:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:
            raise CheckpointError(f"{file} is not a readable weights-only PyTorch file: {error}") from error
        state = state.get("model_state", state)
        for key, tensor in state.items():
            yield key, (lambda tensor=tensor: tensor, tuple(tensor.shape), tensor.dtype)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    @property
    def names(self) -> set[str]:
        return set(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self._where:
            raise CheckpointError(f"{self.files[0]}: tensor {name} is missing")
        return self._where[name][1]

    def dtype(self, name: str) -> torch.dtype | str:
        """The stored type: a safetensors name such as "F8_E4M3", or a torch dtype."""
        return self._where[name][2]

    def load(self, name: str) -> Tensor:
        return self._where[name][0]()

    def split(self, name: str, parts: Sequence[str]) -> None:
        """Take the tensor `name`, whose rows are stacked, as so many tensors."""
        load, (rows, *rest), dtype = self._where.pop(name)
        for i, part in enumerate(parts):
            shape = (rows // len(parts), *rest)

            def cut(i: int = i) -> Tensor:
                return load().chunk(len(parts))[i].clone()

            self._where[part] = (cut, shape, dtype)

    def unwrap(self, name: str) -> None:
        """Take the tensor `name` [1, ...] without its first dimension."""
        load, (_, *rest), dtype = self._where[name]
        self._where[name] = (lambda: load()[0], tuple(rest), dtype)

    def count(self, pattern: str) -> int:
        """One more than the largest index that `pattern` (one group) finds in the names."""
        found = [int(m[1]) for name in self._where if (m := re.match(pattern, name))]
        return 1 + max(found, default=-1)


def _strip_prefix(key: str) -> str:
    for prefix in PREFIXES:
        if key.startswith(prefix):
            return key[len(prefix) :]
    return key
