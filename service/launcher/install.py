"""Finds an installed Triton server, checks that it can run on this machine, and prepares its directories and environment.

TritonServerError
├── TritonNotFound        no tritonserver binary
├── PythonNotSupported    no stub or no libpython for the running Python
├── PortInUse             a requested port is taken
├── SharedMemoryTooSmall  /dev/shm cannot hold the videos
├── RepositoryMissing     nothing was exported to the given path
├── ModelLoadFailed       a model refused to load; quotes its own error
└── TritonExited          the server ended or hung for any other reason; quotes its log
"""

import ctypes.util
import json
import os
import re
import shutil
import socket
import sys
import sysconfig
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

STUB = "triton_python_backend_stub"
CONTAINER_ROOT = Path("/opt/tritonserver")
# Each Python stub maps 1 MiB and grows by what its tensors need; regions only grow.
SHM_BASE_BYTES = 64 << 20


class TritonServerError(Exception):
    """Root of every error of the launcher."""


class TritonNotFound(TritonServerError):
    """Install Triton or name its binary."""


class PythonNotSupported(TritonServerError):
    """Run under another Python or install its shared library."""


class PortInUse(TritonServerError):
    """Stop the other program or choose another port."""


class SharedMemoryTooSmall(TritonServerError):
    """Give the machine or container a larger /dev/shm."""


class RepositoryMissing(TritonServerError):
    """Run the export."""


class ModelLoadFailed(TritonServerError):
    """Fix what the model's own message says."""


class TritonExited(TritonServerError):
    """Read the log; the message quotes its end."""


@dataclass(frozen=True)
class Installation:
    """Where the parts of one Triton installation lie. `libs` may be None (the system's loader finds them)."""

    binary: Path
    backends: Path
    caches: Path
    stub: Path
    libs: Path | None


def python_tag(version: tuple[int, int] | None = None) -> str:
    major, minor = version or sys.version_info[:2]
    return f"{major}.{minor}"


def find_installation(binary: str | os.PathLike | None = None) -> Installation:
    """The Triton of `binary` if given, else of the nvidia-pytriton wheel, of PATH, or of /opt/tritonserver."""
    if binary is None:
        spec = find_spec("pytriton")
        if spec and spec.origin:
            return _wheel(Path(spec.origin).parent)
        binary = shutil.which("tritonserver") or CONTAINER_ROOT / "bin" / "tritonserver"
    binary = Path(binary)
    if not binary.is_file():
        raise TritonNotFound(
            f"no tritonserver at {binary}: install the nvidia-pytriton package (pip install nvidia-pytriton), "
            "or run inside a tritonserver container, or pass the path of the binary (--tritonserver)"
        )
    return _tree(binary.resolve())


def _wheel(package: Path) -> Installation:
    root = package / "tritonserver"
    stubs = root / "python_backend_stubs"
    stub = stubs / python_tag() / STUB
    if not stub.is_file():
        offered = sorted((p.name for p in stubs.glob("*") if (p / STUB).is_file()), key=lambda v: int(v.split(".")[1]))
        raise PythonNotSupported(
            f"nvidia-pytriton has no Python backend stub for Python {python_tag()}; "
            f"create the environment with one of {', '.join(offered) or 'the versions of another nvidia-pytriton release'}"
        )
    return Installation(
        binary=root / "bin" / "tritonserver",
        backends=root / "backends",
        caches=root / "caches",
        stub=stub,
        libs=package.parent / "nvidia_pytriton.libs",
    )


def _tree(binary: Path) -> Installation:
    """An installation in NVIDIA's own layout: bin/, backends/, caches/, lib/."""
    root = binary.parent.parent
    stub = root / "backends" / "python" / STUB
    if not stub.is_file():
        raise PythonNotSupported(
            f"{root} has no Python backend: {stub} is missing; use a tritonserver image that includes it"
        )
    built_for = stub_python(stub)
    if built_for and built_for != python_tag():
        raise PythonNotSupported(
            f"{stub} is built for Python {built_for}, this is Python {python_tag()}; start the program with python{built_for}"
        )
    libs = root / "lib"
    return Installation(binary, root / "backends", root / "caches", stub, libs if libs.is_dir() else None)


def stub_python(stub: Path) -> str | None:
    """The Python version a stub binary is linked with, such as "3.11"; None if it names none."""
    match = re.search(rb"libpython(3\.\d+)\.so", stub.read_bytes())
    return match[1].decode() if match else None


def find_libpython() -> Path | None:
    """The directory of the running version's libpython.so; None if the system's loader finds it by itself."""
    name = f"libpython{python_tag()}.so.1.0"
    for folder in (sysconfig.get_config_var("LIBDIR"), f"{sys.base_prefix}/lib"):
        # os.path: a folder that may not be read, as some images configure it, is one without the library.
        if folder and os.path.isfile(os.path.join(folder, name)):
            return Path(folder)
    if ctypes.util.find_library(f"python{python_tag()}"):
        return None
    raise PythonNotSupported(
        f"{name} was not found: this Python ({sys.executable}) was built without its shared library. "
        f"Install it (Debian, Ubuntu: apt-get install libpython{python_tag()}), or create the environment with a Python that "
        "has it (uv python install, conda, or pyenv with PYTHON_CONFIGURE_OPTS=--enable-shared)"
    )


def prepare_backends(found: Installation, folder: Path) -> Path:
    """A backend directory whose Python backend has its stub; the wheel keeps the stubs of all versions elsewhere."""
    if found.stub.parent == found.backends / "python":
        return found.backends
    backends = folder / "backends"
    for source in sorted((found.backends / "python").iterdir()):
        if source.name != "__pycache__":
            _link(source, backends / "python" / source.name)
    # A copy: the loader resolves the stub's $ORIGIN to where it really lies, and a wheel may lose the executable bit.
    stub = backends / "python" / STUB
    shutil.copyfile(found.stub, stub)
    stub.chmod(0o755)
    for other in sorted(found.backends.iterdir()):
        if other.is_dir() and other.name != "python":
            _link(other, backends / other.name)
    return backends


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source)


def environment(found: Installation, project_root: Path, extra: dict[str, str]) -> dict[str, str]:
    """The process environment of Triton and its stubs, which are plain Pythons embedded by a C++ program."""
    inherited = dict(os.environ)
    libraries = [found.libs, find_libpython(), inherited.get("LD_LIBRARY_PATH")]
    packages = [project_root, sysconfig.get_path("purelib"), inherited.get("PYTHONPATH")]
    # The stub takes the environment of the first python3 on PATH.
    programs = [Path(sys.executable).parent, inherited.get("PATH")]
    joined: dict[str, list] = {
        "LD_LIBRARY_PATH": libraries,
        "PYTHONPATH": packages,
        "PATH": programs,
    }
    # Several stages and the service share the cores. OpenMP's default, to spin for milliseconds while waiting for the
    # slowest thread, makes a loaded machine ten times slower; to sleep at once makes an idle one half as fast. This is between.
    if "OMP_WAIT_POLICY" not in inherited:
        inherited.setdefault("GOMP_SPINCOUNT", "1000")
    inherited.update({key: os.pathsep.join(str(part) for part in parts if part) for key, parts in joined.items()})
    return inherited | {"PYTHONUNBUFFERED": "1"} | extra


def check_port(host: str, port: int, name: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortInUse(
                f"{name} port {port} cannot be opened on {host} ({error.strerror}); "
                f"stop the program that holds it or choose another {name} port (0 takes a free one)"
            ) from error


def free_ports(host: str, count: int) -> list[int]:
    """Ports that were free a moment ago; held together while choosing, so that they differ."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind((host, 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def read_manifest(repository: Path) -> dict:
    """The export's manifest; raises RepositoryMissing if there is no repository."""
    path = repository / "manifest.json"
    if not path.is_file():
        raise RepositoryMissing(
            f"{repository} is not an exported model repository (no manifest.json); "
            f"run: python -m export CHECKPOINT --target cpu --out {repository}"
        )
    return json.loads(path.read_text())


def required_shm(manifest: dict) -> int:
    """Bytes of /dev/shm that one request at the checkpoint's default size needs: its frames, in and out of the decoder."""
    defaults = manifest.get("card", {}).get("defaults", {})
    frames = 3 * defaults.get("width", 0) * defaults.get("height", 0) * defaults.get("num_frames", 0)
    return SHM_BASE_BYTES + 2 * frames


def check_shm(required: int, shm: str = "/dev/shm") -> None:
    stat = os.statvfs(shm)
    free = stat.f_bavail * stat.f_frsize
    if free < required:
        raise SharedMemoryTooSmall(
            f"{shm} has {free >> 20} MiB free, this repository needs at least {-(-required >> 20)} MiB: tensors travel between "
            f"Triton and its Python models there. Free or enlarge it: mount -o remount,size={-(-required >> 20) * 2}m {shm}; in "
            "Docker --shm-size, in Kubernetes an emptyDir with medium: Memory on /dev/shm"
        )
