"""The exec probes on real Triton servers: healthy, busy, with a dead stage, with a stuck slot, not there."""

import contextlib
import http.server
import os
import signal
import threading
import time
import urllib.request

import pytest

from service.launcher.probe import PROBES, ProbeFailed, main
from service.launcher.processes import find_stubs
from service.launcher.server import TritonServer
from tests.service.launcher import minimal_repository


class Unsupervised(TritonServer):
    """Nobody starts it again, as in a pod: there kubelet does, when the probe says so."""

    def _watch(self, found):
        self._stopping.wait()


@pytest.fixture
def server(tmp_path):
    with Unsupervised(minimal_repository.write(tmp_path), log_path=tmp_path / "triton.log") as running:
        yield running


def probe(kind: str, triton, *more: str) -> int:
    address = ["--url", triton.http_url, "--metrics-url", triton.metrics_url, "--server-pid", str(triton._guard.pid)]
    return main([kind, *address, *more])


def test_a_healthy_server_passes_every_probe(triton):
    assert [probe(kind, triton, "--timeout", "120") for kind in ("startup", "ready", "live")] == [0, 0, 0]


def test_a_long_job_fails_no_probe(triton):
    from tests.model_repository.client import generate

    request = {"PROMPT": "a long job", "SEED": 1, "NUM_FRAMES": 5, "STEPS": 400, "CACHE_THRESHOLD": 0.0}
    with contextlib.ExitStack() as stack:
        folder = triton.run_dir / "probe-long"
        thread = threading.Thread(
            target=lambda: _ignore(lambda: generate(triton.grpc_url, request_id="probe-long", **request))
        )
        thread.start()
        stack.callback(thread.join)
        stack.callback(lambda: (folder / "cancel").touch())
        _until(lambda: (folder / "progress.json").exists())
        began = time.monotonic()
        assert probe("live", triton, "--timeout", "60") == 0
        assert probe("ready", triton, "--timeout", "60") == 0
        assert thread.is_alive(), "the job should still run"
        assert time.monotonic() - began < 60


def test_a_dead_stage_fails_although_triton_says_it_is_ready(server, capsys):
    assert probe("ready", server) == 0
    victim = find_stubs(server._guard.pid)[0]
    os.kill(victim.process.pid, signal.SIGKILL)
    _until(victim.is_dead)
    with urllib.request.urlopen(server.http_url + "/v2/health/ready", timeout=5) as answer:
        assert answer.status == 200
    assert probe("ready", server) == probe("live", server) == 1
    assert "1 of 2 Python stages are dead" in capsys.readouterr().out


def test_a_missing_tokenizer_fails_the_canary(server, capsys):
    assert probe("live", server) == 1
    assert "tokenizer" in capsys.readouterr().out


def test_a_server_that_is_not_there_fails(capsys):
    assert main(["live", "--url", "http://127.0.0.1:9", "--timeout", "2"]) == 1
    assert "/v2/health/live" in capsys.readouterr().out


@pytest.mark.parametrize(("inflight", "age", "status"), [(1, 5000, 1), (1, 5, 0), (0, 5000, 0)])
def test_only_a_busy_slot_without_steps_is_stuck(inflight, age, status, monkeypatch):
    lines = [
        f'wan_denoise_inflight{{stage="denoise",slot="0_0"}} {inflight}.000000',
        f'wan_denoise_heartbeat_timestamp_seconds{{stage="denoise",slot="0_0"}} {time.time() - age:.6f}',
    ]
    with _metrics_page("\n".join(lines)) as url:
        from service.launcher.probe import Triton

        triton = Triton("http://127.0.0.1:9", url, timeout=2)
        if status:
            with pytest.raises(ProbeFailed, match="slot 0_0 is busy but made no step"):
                triton.check_slots(stall=1200)
        else:
            triton.check_slots(stall=1200)


@contextlib.contextmanager
def _metrics_page(text: str):
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode() + b"\n")

        def log_message(self, *_):
            pass

    page = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=page.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{page.server_port}/metrics"
    page.shutdown()
    page.server_close()


def _ignore(call) -> None:
    with contextlib.suppress(Exception):
        call()


def _until(check, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@pytest.mark.parametrize(("failures", "status"), [(1, 0), (1000, 1)])
def test_a_probe_that_may_wait_sees_a_start_soon_and_gives_up_in_time(failures, status, monkeypatch):
    """kubelet's own pauses would either miss the start for minutes or make its bound hours."""
    asked = []

    def starting(triton, options):
        asked.append(time.monotonic())
        if len(asked) <= failures:
            raise ProbeFailed("still loading")

    monkeypatch.setitem(PROBES, "ready", starting)
    assert main(["ready", "--within", "3"]) == status
    assert asked[-1] - asked[0] < 3
    assert len(asked) > 1
