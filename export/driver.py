"""Runs the steps of a target. The repository appears complete or not at all; a second run with nothing changed does nothing."""

import fcntl
import json
import os
import shutil
from pathlib import Path

from export import manifest, memory, paths
from export.atomic import Journal
from export.build import Build, Report
from export.dit import package
from export.onnx import kept
from export.options import Options
from export.repository import exchange
from export.targets import TARGETS, Target
from stages.artifacts import FORMAT

JOURNAL = "journal.json"
DEFAULTS = Options()


def export(
    source: Path, target: str, out: Path, options: Options = DEFAULTS, command: str = "", report: Report = print
) -> bool:
    """Export `source` to `out`; returns whether anything was written.

    `command` is what to run to go on, for messages. Raises WanError and GraphMismatch.
    """
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    with paths.lock(out).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second export of the same repository waits, then finds it current
        return _export_locked(Build(source, out, options, command, report), target)


def _export_locked(build: Build, name: str) -> bool:
    target, out, old = TARGETS[name], build.out, manifest.read(build.out)
    build.check()
    build.wanted = {
        "format": FORMAT,
        "target": name,
        "command": build.command,
        "options": target.described(build),
        "source": _source(build, target, old),
        "code": manifest.describe_code(target.code),
    }
    if old and manifest.is_current(out, old, build.wanted, build.report) and target.fits(old, build.report):
        build.report(f"{out} is up to date")
        return False
    if target.placed:
        build.report(memory.table(build.memory, build.placement, build.gpus, build.video))
        build.report(build.dit_packages.words(build.blocks_on_device))
    if target.resumable:
        _keep_package(out, build.repository)
        _run(build, target)
    else:
        shutil.rmtree(build.repository, ignore_errors=True)
        try:
            _run(build, target)
        finally:
            shutil.rmtree(build.repository, ignore_errors=True)
    build.report(f"{out} is complete after {build.seconds:.0f} s")
    if (
        build.options.plan.version_compatible
    ):  # Triton loads such plans, which carry code of their own, only when told to
        build.report("start Triton with --backend-config=tensorrt,version-compatible=true")
    return True


def _run(build: Build, target: Target) -> None:
    build.journal = _journal(build.repository, build.key(build.wanted["options"]))
    built: dict = {}
    for name, step in target.steps.items():
        build.say(name)
        built |= step(build)
    manifest.write_json(paths.card(build.repository), build.card.to_dict())
    artifacts = manifest.describe_artifacts(build.repository)
    del artifacts[JOURNAL]  # needed until the manifest is there
    manifest.write(build.repository, build.wanted | built | {"artifacts": artifacts})
    build.journal.path.unlink()
    exchange(build.repository, build.out)
    kept.prune(paths.kept_graphs(build.out))


def _source(build: Build, target: Target, old: dict | None) -> dict:
    """The description of the checkpoint; hashes of unchanged files are kept, since reading 70 GB again takes minutes."""
    if not target.resumable:
        return manifest.describe_source(build.checkpoint, (old or {}).get("source"))
    build.graphs.mkdir(parents=True, exist_ok=True)
    stored = build.graphs / "source.json"
    try:
        known = json.loads(stored.read_text())
    except (OSError, ValueError):
        known = None
    described = manifest.describe_source(build.checkpoint, known)
    manifest.write_json(stored, described)
    return described


def _journal(repository: Path, key: str) -> Journal:
    """The journal of the working directory, which is emptied if it belongs to other sources, code or options.

    The shards of the DiT stay: each names what it was made from, and packaging takes only those that fit.
    """
    journal = Journal(repository / JOURNAL, key)
    if journal.is_void:
        for entry in repository.iterdir() if repository.exists() else ():
            if entry.name != "denoise":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    repository.mkdir(parents=True, exist_ok=True)
    journal.write()
    return journal


def _keep_package(old: Path, building: Path) -> None:
    """Give the working directory the DiT shards of a finished repository; files are replaced, never changed, so links do."""
    source, target = paths.dit_checkpoint(old), paths.dit_checkpoint(building)
    for file in source.rglob(f"{package.STEM}-*") if source.is_dir() else ():
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            os.link(file, place)
