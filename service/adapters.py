"""The adapters of a deployment: registered once, checked against the model, named by requests ever after.

`python -m service.adapters NAME FILE` registers a file that lies in the directory WAN_LORA_DIR, as `POST /v1/loras` does; two
files for a model of two experts, `-` for one that stays as it is.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator, Sequence

from contract.adapter_store import AdapterStore, Entry
from contract.adapters import NAME, Adapter
from contract.card import ModelCard
from contract.errors import InvalidRequest as OutOfBounds
from contract.lora_keys import LoraError, unfolded
from service import options
from service.errors import Conflict, InvalidRequest, NotFound, ServiceError, SettingsError, Unavailable
from service.settings import Settings, load_settings

LISTED_SECONDS = 5.0  # how old a list may be


class Adapters:
    """What the gateway does with the index; one entry a file, so that several gateways may change it."""

    def __init__(self, settings: Settings):
        try:
            self._store = AdapterStore(settings.lora_dir, settings.storage_endpoint_url)
        except (ValueError, ImportError) as error:
            raise SettingsError(
                f"WAN_LORA_DIR is {settings.lora_dir!r}: {error}; allowed: a directory or s3://bucket/prefix"
            ) from None
        self._listed: tuple[float, list[Entry]] = (-LISTED_SECONDS, [])

    def named(self, wanted: Sequence[Adapter], model: str) -> list[Entry]:
        """The entries of a request's adapters; InvalidRequest names one that the model does not have, and those it has."""
        with _reached():
            try:
                return self._store.entries(wanted, model)
            except OutOfBounds as error:
                raise InvalidRequest(error.field, error.value, error.allowed) from None

    def all(self) -> list[Entry]:
        """Every registered adapter, by name; a few seconds old at most."""
        seen, entries = self._listed
        if time.monotonic() - seen > LISTED_SECONDS:
            with _reached():
                entries = [entry for name in self._store.names() if (entry := self._store.get(name))]
            self._listed = time.monotonic(), entries
        return entries

    def register(self, name: str, files: Sequence[str | None], model: str, card: ModelCard) -> Entry:
        """Check the files, one for each expert of the model, and take them in under `name`.

        InvalidRequest names what does not fit; Conflict where another adapter has the name.
        """
        if not self._store.url:
            raise InvalidRequest("file", files[0], "none: this server has no directory of adapters (WAN_LORA_DIR)")
        if not NAME.fullmatch(name):
            raise InvalidRequest("name", name, f"text that matches {NAME.pattern}")
        entry = Entry(name, model, self._examined(files, model, card), int(time.time()))
        with _reached():
            earlier = self._store.get(name)
            if earlier is not None:
                if (earlier.digest, earlier.model) != (entry.digest, model):
                    raise Conflict(f"another adapter is called {name!r}; delete it first, or take another name", "name")
                return earlier
            self._store.add(entry)
        self._listed = (-LISTED_SECONDS, [])
        return entry

    def _examined(self, files: Sequence[str | None], model: str, card: ModelCard) -> tuple:
        experts, weights = card.row.experts, unfolded(card.weights)
        if not weights:
            raise InvalidRequest("model", model, "a model whose card says its weights; export it again")
        if len(files) != experts or not any(files):
            allowed = "one file" if experts == 1 else f"{experts} files, one for each expert, that of high noise first"
            raise InvalidRequest("files", list(files), f"{allowed}: {model} has {experts} of them")
        with _reached():
            try:
                return tuple(path and self._store.examine(path, weights, i, experts) for i, path in enumerate(files))
            except LoraError as error:
                raise InvalidRequest("file", next(filter(None, files)), f"one that fits {model}: {error}") from None

    def remove(self, name: str) -> None:
        """Forget an adapter; NotFound where there is none. Jobs that name it and have not begun will fail."""
        with _reached():
            if not self._store.remove(name):
                raise NotFound(f"there is no adapter {name[:64]!r}", "name")
        self._listed = (-LISTED_SECONDS, [])


@contextlib.contextmanager
def _reached() -> Iterator[None]:
    """Unavailable where the directory or bucket cannot be read or written."""
    try:
        yield
    except ServiceError:
        raise
    except Exception as error:  # every object store has its own exceptions
        raise Unavailable(
            f"the directory of adapters does not answer: {type(error).__name__}: {error}"[:200]
        ) from error


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m service.adapters", description=__doc__.split("\n\n")[1])
    parser.add_argument("name", help="as requests call it")
    parser.add_argument("files", nargs="+", help="in WAN_LORA_DIR")
    options.add(parser)
    given = parser.parse_args(arguments)
    options.choose(given)
    options.serve_model(given.checkpoint, given.repository)
    try:
        settings = load_settings()
        files = [None if file == "-" else file for file in given.files]
        entry = Adapters(settings).register(given.name, files, settings.model_name, settings.card)
    except ServiceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{entry.name}: rank {entry.rank}, for {entry.model}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
