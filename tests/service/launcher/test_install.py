"""The checks before Triton starts, each with its advice."""

import os
import sys
from pathlib import Path

import pytest

from service.launcher import install
from service.launcher.install import Installation, PythonNotSupported, SharedMemoryTooSmall


def test_the_wheel_is_found_with_the_stub_of_this_python():
    found = install.find_installation()
    assert found.binary.is_file()
    assert found.libs.is_dir()
    assert install.stub_python(found.stub) == f"{sys.version_info[0]}.{sys.version_info[1]}"


def test_a_wheel_without_a_stub_for_this_python_lists_those_it_has(tmp_path):
    for version in ("3.8", "3.10", "3.9"):
        folder = tmp_path / "pytriton" / "tritonserver" / "python_backend_stubs" / version
        folder.mkdir(parents=True)
        (folder / install.STUB).touch()
    with pytest.raises(
        PythonNotSupported, match=r"no Python backend stub for Python 3\.\d+; .* one of 3\.8, 3\.9, 3\.10"
    ):
        install._wheel(tmp_path / "pytriton")


def test_a_python_without_its_shared_library_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(install.sysconfig, "get_config_var", lambda name: str(tmp_path))
    monkeypatch.setattr(install.sys, "base_prefix", str(tmp_path))
    monkeypatch.setattr(install.ctypes.util, "find_library", lambda name: None)
    with pytest.raises(PythonNotSupported, match=r"apt-get install libpython3\.\d+.*uv python install"):
        install.find_libpython()


def test_too_little_shared_memory_says_how_much_is_needed_and_where_to_set_it():
    install.check_shm(1 << 20)
    with pytest.raises(
        SharedMemoryTooSmall,
        match=r"/dev/shm has \d+ MiB free, this repository needs at least 1073741824 MiB.*--shm-size",
    ):
        install.check_shm(1 << 50)


def test_the_memory_needed_grows_with_the_video():
    small = install.required_shm({"card": {"defaults": {"width": 64, "height": 64, "num_frames": 17}}})
    large = install.required_shm({"card": {"defaults": {"width": 1280, "height": 720, "num_frames": 81}}})
    assert large - small == 2 * 3 * (1280 * 720 * 81 - 64 * 64 * 17)


def test_free_ports_differ():
    ports = install.free_ports("127.0.0.1", 3)
    assert len(set(ports)) == 3
    assert all(port > 1023 for port in ports)


def test_the_environment_of_the_stubs_begins_with_this_python_and_the_project(monkeypatch, tmp_path):
    monkeypatch.setenv("LD_LIBRARY_PATH", "/already/there")
    found = Installation(Path("b"), Path("c"), Path("d"), Path("e"), libs=Path("/triton/libs"))
    values = install.environment(found, tmp_path, {"WAN_RUN_DIR": "/runs"})
    assert values["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert values["PYTHONPATH"].split(os.pathsep)[0] == str(tmp_path)
    libraries = values["LD_LIBRARY_PATH"].split(os.pathsep)
    assert libraries[0] == "/triton/libs"
    assert libraries[-1] == "/already/there"
    assert values["WAN_RUN_DIR"] == "/runs"


def test_a_configured_library_folder_that_may_not_be_read_is_passed_over(monkeypatch, tmp_path):
    if os.geteuid() == 0:
        locked = PermissionError(13, "Permission denied")  # root may read everything
        monkeypatch.setattr(os, "stat", lambda *a, **k: (_ for _ in ()).throw(locked))
    (tmp_path / "lib").mkdir(mode=0)
    monkeypatch.setattr(install.sysconfig, "get_config_var", lambda name: str(tmp_path / "lib"))
    monkeypatch.setattr(install.sys, "base_prefix", "/nowhere")
    monkeypatch.setattr(install.ctypes.util, "find_library", lambda name: "libpython.so")
    assert install.find_libpython() is None
