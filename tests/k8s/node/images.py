"""The image files assembled as they say, by buildah, on bases made by debootstrap: no registry is asked for anything.

Everything lies in /var/tmp/wan-images-check (WAN_IMAGES_FOLDER) and is kept: a second run builds only what changed. It must not lie in the
project, whose tree `bentoml build` walks. `WAN_IMAGES_OPTIONS` holds more options for every
build, such as `--volume /etc/pip.conf:/etc/pip.conf:ro` where packages come from an index of your own.
"""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests.k8s.rendering import K8S, ROOT

FOLDER = Path(os.environ.get("WAN_IMAGES_FOLDER", "/var/tmp/wan-images-check"))
HERE = Path(__file__).parent
TOOLS = ("buildah", "debootstrap", "runc", "ip")
# What python:3.11-slim-bookworm has beside Debian's smallest set: an interpreter with its library, pip, certificates.
PYTHON = "python3,python3-pip,libpython3.11,ca-certificates,netbase,tzdata"


def run(*command: str, **options) -> str:
    """The standard output of a command; raises with all that it said."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout


def buildah(*arguments: str) -> str:
    return run("buildah", "--root", str(FOLDER / "storage"), "--runroot", str(FOLDER / "run"), *arguments)


@dataclass(frozen=True)
class Image:
    """What a runtime takes from an image; `root` is its mounted file system, to be read only."""

    name: str
    root: Path
    command: list[str]
    environment: dict[str, str]
    folder: str
    user: str


@dataclass(frozen=True)
class Recipe:
    """An image file, its context, the base that stands in for the one of its FROM line, and what that one sets."""

    file: Path
    context: Path = ROOT
    environment: dict[str, str] = field(default_factory=dict)


def base() -> str:
    """The name of an image with Debian bookworm and Python 3.11, made on the first call."""
    name = "localhost/wan-check/python"
    if name in buildah("images", "--format", "{{.Name}}").split():
        return name
    tree = FOLDER / "bookworm"
    shutil.rmtree(tree, ignore_errors=True)
    run("debootstrap", "--variant=minbase", f"--include={PYTHON}", "bookworm", str(tree))
    # As in the official image: `python` is there, and pip may install beside the system's packages.
    (tree / "usr/bin/python").symlink_to("python3")
    (tree / "usr/lib/python3.11/EXTERNALLY-MANAGED").unlink(missing_ok=True)
    shutil.rmtree(tree / "var/cache/apt/archives")
    container = buildah("from", "scratch").strip()
    buildah("add", "--quiet", container, str(tree), "/")
    buildah("config", "--cmd", "python3", "--env", "PATH=/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin", container)
    buildah("commit", "--quiet", "--rm", container, name)
    shutil.rmtree(tree)
    return name


def assemble(name: str, recipe: Recipe) -> Image:
    """Build an image file and mount the result."""
    start = base()
    if recipe.environment:
        start = with_environment(start, recipe.environment)
    more = shlex.split(os.environ.get("WAN_IMAGES_OPTIONS", ""))
    target = f"localhost/wan-check/{name}"
    buildah(
        "build", "--layers", "--network=host", "--runtime=runc", "--format=docker", "--from", start, "--tag", target,
        "--file", str(recipe.file), *more, str(recipe.context),
    )  # fmt: skip
    return mounted(name, target)


def with_environment(start: str, variables: dict[str, str]) -> str:
    """A base with variables of its own; made once, because a base that is made again makes everything above it again."""
    settings = [f"--env={key}={value}" for key, value in sorted(variables.items())]
    made = f"localhost/wan-check/python-{hashlib.sha256(repr(settings).encode()).hexdigest()[:12]}"
    if made not in buildah("images", "--format", "{{.Name}}").split():
        container = buildah("from", start).strip()
        buildah("config", *settings, container)
        buildah("commit", "--quiet", "--rm", container, made)
    return made


def mounted(name: str, target: str) -> Image:
    container = f"wan-check-{name}"
    if container in buildah("containers", "--format", "{{.ContainerName}}").split():
        buildah("rm", container)
    buildah("from", "--name", container, target)
    config = json.loads(buildah("inspect", "--type", "image", target))["Docker"]["config"]
    return Image(
        name=name,
        root=Path(buildah("mount", container).strip()),
        command=(config.get("Entrypoint") or []) + (config.get("Cmd") or []),
        environment=dict(pair.split("=", 1) for pair in config.get("Env") or []),
        folder=config.get("WorkingDir") or "/",
        user=config.get("User", ""),
    )


def unmount(image: Image) -> None:
    buildah("rm", f"wan-check-{image.name}")


def bento() -> Path:
    """The folder that `bentoml build` writes."""
    tool = [str(ROOT / ".venv/bin/bentoml")]
    environment = os.environ | {"BENTOML_HOME": str(FOLDER / "bentoml"), "BENTOML_DO_NOT_TRACK": "true"}
    shutil.rmtree(FOLDER / "bentoml", ignore_errors=True)
    run(*tool, "build", cwd=ROOT, env=environment)
    return Path(run(*tool, "get", "wan:latest", "-o", "path", cwd=ROOT, env=environment).strip())


def recipes() -> dict[str, Recipe]:
    """Every image that a pod of the overlays runs, by the name that the check gives it."""
    return {
        "server-cpu": Recipe(K8S / "images/server-cpu.Dockerfile"),
        "gateway": Recipe(K8S / "images/gateway.Dockerfile", bento()),
        # The versions that the base of release 26.04 announces.
        "server": Recipe(K8S / "images/server.Dockerfile", environment={"CUDA_VERSION": "13.2.1.011", "TRT_VERSION": "10.16.1.11+cuda13.2"}),
        "postgres": Recipe(HERE / "postgres.Dockerfile", HERE),
    }  # fmt: skip
