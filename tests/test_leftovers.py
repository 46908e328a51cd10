"""The check at the end of the suite finds what it is there to find, and nothing else."""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.leftovers import MARK, SHARED_MEMORY, Session


@pytest.fixture
def session(tmp_path, monkeypatch):
    """A session within the session: its mark and its temporary folder are those of this test."""
    monkeypatch.setenv(MARK, tmp_path.name)
    return Session(tmp_path)


def of(session: Session, kind: str) -> list[str]:
    return [line for line in session.left() if line.startswith(kind)]


def test_a_program_that_outlives_its_parent_is_named_with_its_port(session):
    listen = "import socket, time; s = socket.create_server(('127.0.0.1', 0)); print(flush=True); time.sleep(60)"
    code = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {listen!r}], stdout=subprocess.PIPE, " \
           "stderr=subprocess.DEVNULL, start_new_session=True); p.stdout.readline(); print(p.pid)"  # fmt: skip
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    try:
        (found,) = (line for line in of(session, "process") if f"process {pid} " in line)
        assert "create_server" in found
        assert "none" not in found
    finally:
        os.kill(pid, 9)
    assert not [line for line in session.left_after(10) if f"process {pid} " in line]


def test_a_port_of_a_forgotten_server_in_this_process_is_named(session):
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert of(session, "port") == [f"port {server.getsockname()[1]}: this process listens"]
    assert of(session, "port") == []


def test_a_shared_memory_segment_is_named(session):
    with tempfile.NamedTemporaryFile(dir=SHARED_MEMORY, prefix="wan-test-") as segment:
        assert f"shared memory {segment.name}" in of(session, "shared memory")
    assert f"shared memory {segment.name}" not in of(session, "shared memory")


def test_a_segment_that_another_session_uses_is_not_ours(session):
    path = SHARED_MEMORY / f"wan-test-of-another-{os.getpid()}"
    code = f"import mmap; f = open({str(path)!r}, 'w+b'); f.truncate(4096); m = mmap.mmap(f.fileno(), 4096); print(flush=True); input()"
    environment = {key: value for key, value in os.environ.items() if key != MARK}
    # A child of the test process counts as ours even without the mark; only one that is no child is a stranger.
    launch = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdin=0, stdout=1); print(p.pid, flush=True)"
    stranger = subprocess.Popen([sys.executable, "-c", launch, code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    try:
        stranger.wait(20)
        assert len(stranger.stdout.readline() + stranger.stdout.readline()) > 1
        assert path.exists()
        assert f"shared memory {path}" not in of(session, "shared memory")
    finally:
        stranger.stdin.close()
        stranger.stdout.read()
        path.unlink(missing_ok=True)


def test_a_temporary_folder_is_named_and_a_cache_is_not(session, tmp_path):
    (tmp_path / "torchinductor_root").mkdir()
    assert of(session, "temporary") == []
    (tmp_path / "wan-abc").mkdir()
    assert of(session, "temporary") == [f"temporary {tmp_path / 'wan-abc'}"]


def test_temporary_files_of_the_suite_go_to_its_own_folder():
    assert Path(tempfile.gettempdir()).name == os.environ[MARK]
