"""Soak: a service that leaks is named, one that does not is not."""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import psycopg
import pytest

from loadtest.__main__ import main
from loadtest.base.databases import Postgres, find_binaries
from loadtest.base.inputs import TargetUnavailable
from loadtest.traffic.probe import Watch, find_roots, label
from loadtest.traffic.soak import findings

HERE = Path(__file__).parents[1]
PROFILE = "name: soak\nload: {kind: poisson, per_minute: 3000}\nslo: {error_rate: 0}\n"


@pytest.fixture
def soaked(tmp_path):
    """Soak the leaky service for some seconds; returns (exit code, soak.json, out folder)."""

    def run(seconds: float, **leaks: int):
        command = [sys.executable, str(HERE / "leaky.py"), "--state", str(tmp_path)]
        command += [f"--{name}={value}" for name, value in leaks.items()]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            url = f"http://127.0.0.1:{process.stdout.readline().strip()}"
            (tmp_path / "soak.yaml").write_text(PROFILE)
            arguments = ["soak", str(tmp_path / "soak.yaml"), "--url", url, "--minutes", str(seconds / 60)]
            arguments += ["--state-dir", str(tmp_path), "--every", "0.15", "--out", str(tmp_path / "out"), "--quiet"]
            code = main(arguments)
            process.stdin.close()
        return code, json.loads((tmp_path / "out" / "soak.json").read_text()), tmp_path / "out"

    return run


def test_every_kind_of_leak_is_named(soaked):
    code, data, out = soaked(5, bytes=200_000, files=1, threads=1, folders=1, shared=1, rows=20_000)
    assert code == 1
    assert not data["ok"]
    series = ("rss python", "fds python", "threads python", "run directories", "shm bytes", "shm entries", "database")
    for start in series:
        assert any(said.startswith(f"leak of {start}") for said in data["problems"]), (
            start,
            data["problems"],
        )
    assert "LEAKS" in (out / "soak.html").read_text()
    assert (out / "report.html").is_file()


def test_a_leak_of_memory_alone_names_the_process_and_nothing_else(soaked):
    code, data, _ = soaked(5, bytes=200_000)
    assert code == 1
    assert len(data["problems"]) == 1
    assert data["problems"][0].startswith("leak of rss python leaky.py")


def test_a_soak_too_short_to_judge_is_not_called_flat(soaked):
    code, data, _ = soaked(0.5)
    assert code == 1
    assert "samples were taken; at least 15 are needed" in data["problems"][0]


def test_what_was_not_watched_is_told(standin, tmp_path, capsys):
    (tmp_path / "soak.yaml").write_text(PROFILE)
    arguments = ["soak", str(tmp_path / "soak.yaml"), "--url", standin("--service", 0.005), "--minutes", "0.05"]
    assert main([*arguments, "--every", "0.1", "--out", str(tmp_path / "out"), "--quiet"]) == 0
    assert json.loads((tmp_path / "out" / "soak.json").read_text())["not_watched"] == [
        "run directories",
        "database bytes",
    ]
    assert "not watched: run directories, database bytes" in capsys.readouterr().out


@pytest.mark.skipif(find_binaries() is None, reason="PostgreSQL is not installed (apt: postgresql)")
def test_the_size_of_a_postgresql_database_is_watched():
    server = Postgres()
    try:
        watch = Watch([], database=server.url())
        watch.sample()
        with psycopg.connect(server.url()) as conn:
            conn.execute("CREATE TABLE t AS SELECT repeat('x', 1000) FROM generate_series(1, 5000)")
        watch.sample()
    finally:
        server.stop()
    before, after = watch.values["database bytes"]
    assert after - before > 4_000_000
    with pytest.raises(TargetUnavailable, match="--database"):
        watch.sample()


def test_a_service_that_does_not_leak_is_flat(soaked):
    code, data, _ = soaked(4.5)
    assert data["problems"] == []
    assert code == 0
    names = [finding["name"].split(" (")[0] for finding in data["findings"]]
    assert {"shm bytes", "shm entries", "run directories", "database bytes"} <= set(names)
    assert any(name.startswith("rss") for name in names)


def series(values) -> Watch:
    watch = Watch([])
    watch.times["rss x"], watch.values["rss x"] = [float(k) for k in range(len(values))], [float(v) for v in values]
    return watch


def test_a_cache_that_fills_and_then_stays_is_no_leak():
    fills = [min(1 << 30, (1 << 28) + k * (1 << 22)) for k in range(400)]
    assert not findings(series(fills))[0].leaks
    grows = [(1 << 28) + k * (1 << 22) for k in range(400)]
    assert findings(series(grows))[0].leaks


def test_growth_below_what_matters_is_no_leak():
    assert not findings(series([(1 << 30) + k * 1000 for k in range(400)]))[0].leaks


def test_a_process_that_ends_is_noticed():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        watch = Watch([psutil.Process(process.pid)])
        watch.sample()
        name = label(psutil.Process(process.pid))
        process.communicate(b"\n")
    watch.sample()
    assert list(watch.gone) == [name]


def test_processes_are_found_by_port_or_told_how_to_name(standin):
    url = standin("--service", 1)
    assert [root.cmdline()[1].endswith("standin.py") for root in find_roots([], url)] == [True]
    with pytest.raises(TargetUnavailable, match="--pid"):
        find_roots([], "http://127.0.0.1:9")
    with pytest.raises(TargetUnavailable, match="--pid"):
        find_roots([2**22 - 1], url)
