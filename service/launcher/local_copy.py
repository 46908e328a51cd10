"""`python -m service.launcher.local_copy --source /source --to /repository /repository/NAME`: a model repository on this node's own disk.

What lies there already and has the digest of the repository's manifest stays; everything else is copied, checked while it is read.
A second pod of the node waits for the first, then finds everything there.
"""

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

MANIFEST = "manifest.json"  # written by the export, last: with the digest of every other file
CONFIGURATION = "config.pbtxt"  # the operator's to change
BLOCK_BYTES = 1 << 22
SPARE_BYTES = 1 << 30  # of the disk, left to others


class CopyError(Exception):
    """The repository cannot be copied; the message says what to do."""


def copy(source: Path, target: Path) -> tuple[int, int]:
    """Make `target` what `source` is; returns how many files were copied and how many were there. Raises CopyError."""
    wanted = _manifest(source)
    target.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (target / MANIFEST).unlink(missing_ok=True)  # its presence says that the rest is complete
        _remove_others(target, set(wanted))
        missing = [name for name, entry in wanted.items() if not _is_there(target / name, name, entry)]
        _check_room(target, sum(wanted[name]["bytes"] for name in missing))
        for name in missing:
            _copy_file(source / name, target / name, None if name.endswith(CONFIGURATION) else wanted[name]["sha256"])
        _copy_file(source / MANIFEST, target / MANIFEST, None)
    return len(missing), len(wanted) - len(missing)


def _manifest(source: Path) -> dict[str, dict]:
    """Relative path -> bytes and sha256 of every file."""
    path = source / MANIFEST
    try:
        found = json.loads(path.read_text())["artifacts"]
    except (OSError, ValueError, KeyError) as error:
        raise CopyError(f"{path}: {error!r}; build the repository first (python -m export)") from None
    for name in found:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise CopyError(f"{path} names {name!r}; allowed: files inside the repository")
    return found


def _remove_others(target: Path, wanted: set[str]) -> None:
    """Files of an earlier export of this name, and what a copy that was broken off left."""
    for path in list(target.rglob("*")):
        if path.is_file() and str(path.relative_to(target)) not in wanted:
            path.unlink()


def _is_there(path: Path, name: str, entry: dict) -> bool:
    if name.endswith(CONFIGURATION) or not path.is_file() or path.stat().st_size != entry["bytes"]:
        return False
    digest = hashlib.sha256()
    for block in _blocks(path):
        digest.update(block)
    return digest.hexdigest() == entry["sha256"]


def _check_room(target: Path, needed: int) -> None:
    free = shutil.disk_usage(target).free
    if needed + SPARE_BYTES > free:
        others = sorted(path.name for path in target.parent.iterdir() if path.is_dir() and path != target)
        raise CopyError(
            f"{target} needs {needed:,} bytes and leaves {SPARE_BYTES:,} free, {free:,} are there; "
            f"remove what no pod of this node serves any more: {', '.join(others) or 'nothing of ours'}"
        )


def _copy_file(source: Path, target: Path, sha256: str | None) -> None:
    """To a name of its own, then in place: nobody sees half a file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part, digest = target.with_name(f"{target.name}.part"), hashlib.sha256()
    with part.open("wb") as file:
        for block in _blocks(source):
            digest.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    if sha256 is not None and digest.hexdigest() != sha256:
        part.unlink()
        raise CopyError(
            f"{source} has SHA-256 {digest.hexdigest()}, its manifest says {sha256}; build the repository again"
        )
    part.replace(target)


def _blocks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                yield block
    except OSError as error:
        raise CopyError(f"{path}: {error.strerror}; build the repository again") from None


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m service.launcher.local_copy", description="Copies a model repository."
    )
    parser.add_argument("--source", type=Path, required=True, help="where the shared volume is mounted")
    parser.add_argument("--to", type=Path, required=True, help="where the node's disk is mounted, as Triton sees it")
    parser.add_argument("repository", type=Path, help="below --to")
    given = parser.parse_args(arguments)
    if not given.repository.is_relative_to(given.to) or given.repository == given.to:
        parser.error(f"repository is {str(given.repository)!r}; allowed: a folder below {str(given.to)!r}")
    began = time.monotonic()
    try:
        copied, kept = copy(given.source / given.repository.relative_to(given.to), given.repository)
    except (CopyError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{given.repository}: {copied} files copied, {kept} were there, {time.monotonic() - began:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
