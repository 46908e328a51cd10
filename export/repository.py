"""Renders the model repository: configurations with their numbers filled in, beside the models' code."""

import shutil
from pathlib import Path
from string import Template

from export import paths


def exchange(building: Path, out: Path) -> None:
    """Put the new repository in the place of the old one; a server that runs keeps the files it has open."""
    replaced = paths.replaced(out)
    shutil.rmtree(replaced, ignore_errors=True)
    if out.exists():
        out.rename(replaced)
    building.rename(out)
    shutil.rmtree(replaced, ignore_errors=True)


def render(repository: Path, values: dict[str, int]) -> None:
    """Write every model's config.pbtxt and code; raises KeyError for a placeholder without a value."""
    for model in paths.MODELS:
        source = paths.TEMPLATES / model
        version = paths.version(repository, model)
        version.mkdir(parents=True, exist_ok=True)
        config = Template((source / "config.pbtxt").read_text()).substitute(values)
        (repository / model / "config.pbtxt").write_text(config)
        code = source / paths.VERSION / "model.py"
        if code.is_file():  # an ensemble has none
            shutil.copyfile(code, version / code.name)
