"""What the export left for a stage, and the check that it fits before anything is loaded."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from contract.card import ModelCard

FORMAT = 2
MANIFEST = "manifest.json"


class ArtifactError(Exception):
    """The repository's artifacts are missing, damaged or made for something else; the message says what to run."""


@dataclass(frozen=True)
class Artifacts:
    """The exported files of one model and the manifest of the repository they belong to."""

    manifest: dict
    folder: Path  # <repository>/<model>/<version>
    device: str | None = None  # that Triton gave the instance, or the export chose; None: not said

    @classmethod
    def open(cls, args: dict) -> "Artifacts":
        """From the `args` of a Triton Python model's `initialize`; raises ArtifactError."""
        model = Path(args["model_repository"])
        on_gpu = args.get("model_instance_kind") == "GPU"
        device = f"cuda:{args['model_instance_device_id']}" if on_gpu else None
        return cls._opened(model, args["model_version"], device)

    @classmethod
    def of(cls, repository: Path, model: str, version: str = "1") -> "Artifacts":
        """Those of a model in `repository`, on the first GPU where the export placed it; raises ArtifactError."""
        gpus = _read_manifest(repository).get("placement", {}).get(model)
        return cls._opened(repository / model, version, f"cuda:{gpus[0]}" if gpus else None)

    @classmethod
    def _opened(cls, model: Path, version: str, device: str | None) -> "Artifacts":
        manifest = _read_manifest(model.parent)
        # The tritonserver of a workstation knows no GPUs; its stages take the one that the export chose.
        artifacts = cls(manifest, model / version, device or manifest.get("device"))
        artifacts._check(model.parent, model.name)
        return artifacts

    @cached_property
    def card(self) -> ModelCard:
        """What the served checkpoint is to its callers."""
        return ModelCard.from_dict(self.manifest["card"], f"{MANIFEST}: card")

    def __getitem__(self, name: str) -> Path:
        return self.folder / name

    @property
    def command(self) -> str:
        """What to run to make these artifacts again."""
        return _command(self.manifest, self.folder.parent.parent)

    def _check(self, repository: Path, model: str) -> None:
        for name, entry in self.manifest["artifacts"].items():
            # A model's configuration is the operator's to change; its files are not.
            if not name.startswith(f"{model}/{self.folder.name}/"):
                continue
            path = repository / name
            if not path.is_file():
                raise ArtifactError(f"{path} is missing; {_command(self.manifest, repository)}")
            if path.stat().st_size != entry["bytes"]:
                raise ArtifactError(
                    f"{path} has {path.stat().st_size} bytes, the manifest says {entry['bytes']}; {_command(self.manifest, repository)}"
                )


def _read_manifest(repository: Path) -> dict:
    path = repository / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing; {_command({}, repository)}") from None
    except json.JSONDecodeError as error:
        raise ArtifactError(f"{path} is not JSON ({error}); {_command({}, repository)}") from error
    if manifest.get("format") != FORMAT:
        raise ArtifactError(
            f"{path} has format {manifest.get('format')}, this code reads {FORMAT}; {_command(manifest, repository)}"
        )
    return manifest


def _command(manifest: dict, repository: Path) -> str:
    if manifest.get("command"):
        return f"run: {manifest['command']}"
    source = manifest.get("source", {}).get("path", "CHECKPOINT")
    target = manifest.get("target", "cpu")
    return f"run: python -m export {source} --target {target} --out {repository}"
