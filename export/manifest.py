"""The manifest of an export: what it was made from, what lies in it, and how exact it is."""

import hashlib
import json
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from tqdm import tqdm

from export import paths
from export.atomic import write_json
from export.dit.package import dit_files
from wan.checkpoint import Checkpoint

PROJECT_ROOT = Path(__file__).resolve().parent.parent
# A change in any of these may change what an export writes, beside the target's own code under export/.
CODE = (
    "contract/*.py",
    "model_repository/**/*",
    "wan/vae.py",
    "wan/text.py",
    "wan/checkpoint.py",
    "wan/clip.py",
    "wan/known_frames.py",
    "wan/pictures.py",
    "wan/sizes.py",
    "wan/structure.py",
    "wan/keys.py",
    "wan/config.py",
    "stages/*_runtime.py",
    "stages/artifacts.py",
    "stages/media.py",
)
BLOCK_BYTES, SHOWN_BYTES = 1 << 20, 1 << 30
LIBRARIES = ("torch", "onnx", "onnxscript", "transformers")


def sha256_file(path: Path) -> str:
    """Hash of a file's content; shows a progress bar for one that takes more than moments to read."""
    size, digest = path.stat().st_size, hashlib.sha256()
    hidden = None if size > SHOWN_BYTES else True  # None: hidden only where there is no terminal
    with (
        path.open("rb") as file,
        tqdm(total=size, unit="B", unit_scale=True, desc=path.name, leave=False, disable=hidden) as bar,
    ):
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def source_files(checkpoint: Checkpoint) -> list[Path]:
    """Every file of the checkpoint that an export reads."""
    weights = checkpoint.vae_tensors().files + checkpoint.text_tensors().files
    if checkpoint.dit_config().image_dim:
        weights += checkpoint.clip_tensors().files
    beside = [path for file in weights for path in file.parent.glob("*.json")]
    tokenizer = [path for path in checkpoint.tokenizer_directory.rglob("*") if path.is_file()]
    return sorted({*dit_files(checkpoint), *weights, *beside, *tokenizer})


def file_name(path: Path, checkpoint: Checkpoint) -> str:
    """Of a file of the checkpoint or of its base, seen from the checkpoint; weights that were named on their own lie elsewhere."""
    if path.is_relative_to(checkpoint.root):
        return str(path.relative_to(checkpoint.root))
    in_base = checkpoint.base is not None and path.is_relative_to(checkpoint.base)
    return os.path.relpath(path, checkpoint.root) if in_base else path.name


def describe_source(checkpoint: Checkpoint, known: dict | None = None) -> dict:
    """Path, hash and files of the checkpoint. A file of the size and time that `known` has is not read again."""
    known_files = (known or {}).get("files", {})
    files = {}
    for path in source_files(checkpoint):
        name, stat = file_name(path, checkpoint), path.stat()
        entry = {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        old = known_files.get(name, {})
        unchanged = entry.items() <= old.items() and "sha256" in old
        files[name] = entry | {"sha256": old["sha256"] if unchanged else sha256_file(path)}
    together = hashlib.sha256("".join(f"{name} {files[name]['sha256']}\n" for name in sorted(files)).encode())
    return {"path": str(checkpoint.root), "sha256": together.hexdigest(), "files": files}


def describe_code(patterns: tuple[str, ...]) -> str:
    """Hash of the code and library versions that make the artifacts; `patterns` are of files under export/."""
    digest = hashlib.sha256(" ".join(f"{name}=={version(name)}" for name in LIBRARIES).encode())
    for pattern in (*(f"export/{pattern}" for pattern in patterns), *CODE):
        for path in sorted(PROJECT_ROOT.glob(pattern)):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(PROJECT_ROOT)} {sha256_file(path)}\n".encode())
    return digest.hexdigest()


def describe_artifacts(repository: Path) -> dict[str, dict]:
    """Size and hash of every file of the repository, by its path."""
    files = sorted(path for path in repository.rglob("*") if path.is_file() and path != paths.manifest(repository))
    return {
        str(path.relative_to(repository)): {"bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in files
    }


def read(repository: Path) -> dict | None:
    """The manifest of an earlier export; None if there is none that can be read."""
    try:
        return json.loads(paths.manifest(repository).read_text())
    except (OSError, ValueError):
        return None


def write(repository: Path, manifest: dict) -> None:
    write_json(paths.manifest(repository), manifest)


def is_current(repository: Path, old: dict | None, wanted: dict, report: Callable[[str], None]) -> bool:
    """Whether the repository is what an export with `wanted` (source, code, options) would write."""
    if old is None:
        return False
    for key, what in {
        "format": "the format",
        "target": "the target",
        "options": "an option",
        "code": "the code",
    }.items():
        if old.get(key) != wanted[key]:
            report(f"{repository}: {what} has changed")
            return False
    if old["source"]["sha256"] != wanted["source"]["sha256"]:
        report(f"{repository}: the checkpoint has changed")
        return False
    for name, entry in old["artifacts"].items():
        path = repository / name
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            report(f"{repository}: {name} is missing or damaged")
            return False
    return True
