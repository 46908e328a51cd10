"""Graphs that an earlier export wrote: models of a family share text encoder and VAE, and tracing these takes minutes.

An entry is hard links to the files of a repository, so it costs no disk; one that no repository uses any more is dropped.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from export.manifest import sha256_file

RESULT = "result.json"


def once(path: Path | None, made_of: list[str], folder: Path, make: Callable[[], dict]) -> dict:
    """The result of `make`, which writes the graph `path` or nothing; both are taken from `folder` if it has those of `made_of`."""
    key = hashlib.sha256(json.dumps([path and path.name, *made_of]).encode()).hexdigest()
    entry, files = folder / key, _files(path)
    for file in files:
        file.unlink(missing_ok=True)  # never written over: an entry may share it
    if (result := _taken(entry, files)) is None:
        result = make()
        _keep(entry, [file for file in files if file.exists()], result)
    return result


def _files(path: Path | None) -> list[Path]:
    """Of a graph: itself, and the weights that are too large for it."""
    return [] if path is None else [path, path.with_name(path.name + ".data")]


def _taken(entry: Path, files: list[Path]) -> dict | None:
    """None where there is no entry, where its files are damaged, or where links to them cannot be made."""
    try:
        kept = json.loads((entry / RESULT).read_text())
        if any(sha256_file(entry / name) != digest for name, digest in kept["sha256"].items()):
            shutil.rmtree(entry)
            return None
        for file in files:
            if file.name in kept["sha256"]:
                os.link(entry / file.name, file)
    except (OSError, ValueError):
        return None
    return kept["result"]


def _keep(entry: Path, files: list[Path], result: dict) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(dir=entry.parent, prefix=".new-"))
    new.chmod(0o755)  # for the next one, which may be another user's
    try:
        for file in files:
            os.link(file, new / file.name)
        kept = {"sha256": {file.name: sha256_file(file) for file in files}, "result": result}
        (new / RESULT).write_text(json.dumps(kept))
        new.rename(entry)
    except OSError:  # another file system, or another export was first
        shutil.rmtree(new)


def prune(folder: Path) -> None:
    """Drop the graphs that no repository holds any more."""
    for entry in folder.iterdir() if folder.is_dir() else ():
        graphs = [file for file in entry.iterdir() if file.name != RESULT]
        if graphs and all(file.stat().st_nlink == 1 for file in graphs):
            shutil.rmtree(entry, ignore_errors=True)
