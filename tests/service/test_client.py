"""The command line client and `service.reproduce` as processes, against a gateway with a stand-in for Triton."""

import os
import pty
import re
import signal
import subprocess
import sys

import httpx
import pytest

from tests.service.fake_triton import FakeTriton
from tests.service.running import gateway, settings_for, until, wait_for, worker


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    settings = settings_for(tmp_path_factory.mktemp("site"))
    with gateway(settings) as url, worker(settings, FakeTriton(settings.runs, step_seconds=0.01)):
        yield url


def run(site, *arguments, module="client", **more):
    command = [sys.executable, "-m", f"service.{module}", *map(str, arguments), "--url", site]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **more)


def test_a_prompt_becomes_a_file_and_the_bar_is_drawn(site, tmp_path):
    done = run(site, "a red circle", "--steps", 6, "--out", tmp_path / "x.mp4")
    assert (done.returncode, done.stdout.strip()) == (0, str(tmp_path / "x.mp4")), done.stderr
    assert (tmp_path / "x.mp4").read_bytes()[4:8] == b"ftyp"
    assert re.search(r"\[#+\.*\] step \d+/6", done.stderr)


def test_the_ending_of_the_file_says_the_format(site, tmp_path):
    assert run(site, "a red circle", "--steps", 2, "--out", tmp_path / "x.gif").returncode == 0
    assert (tmp_path / "x.gif").read_bytes()[:6] == b"GIF89a"
    refused = run(site, "a red circle", "--out", tmp_path / "x.avi")
    assert refused.returncode == 2
    assert "allowed: a name that ends with .mp4" in refused.stderr


def test_errors_are_one_sentence(site, tmp_path):
    refused = run(site, "x", "--width", 17)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "error: width is 17; allowed" in refused.stderr
    assert run("http://127.0.0.1:9", "x").stderr.startswith("error: ")
    assert "no such video" in run(site, "--resume", "video_unknown").stderr


def test_an_earlier_job_is_fetched_by_its_id(site, tmp_path):
    job = httpx.post(f"{site}/v1/videos", json={"prompt": "x", "steps": 2}).json()
    assert run(site, "--resume", job["id"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": os.getcwd()}).returncode == 0
    assert (tmp_path / f"{job['id']}.mp4").exists()


@pytest.mark.parametrize(
    ("said", "status"), [(b"y\n", "cancelled"), pytest.param(b"n\n", "in_progress", marks=pytest.mark.slow)]
)
def test_ctrl_c_asks_whether_to_cancel(site, said, status, tmp_path):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "service.client", "long", "--steps", "900", "--url", site]
    with (
        subprocess.Popen(command, stdin=theirs, stderr=subprocess.PIPE) as process,
        httpx.Client(base_url=site) as http,
    ):
        job_id = process.stderr.readline().decode().split()[1]
        until(lambda: http.get(f"/v1/videos/{job_id}").json()["step"] > 0)
        process.send_signal(signal.SIGINT)
        os.write(ours, said)
        told = process.stderr.read().decode()
        assert process.wait(30) == 130
        assert "Cancel the job? [y/N]" in told
        assert wait_for(http, job_id, status)["status"] == status
        if status == "in_progress":
            assert f"--resume {job_id}" in told
            http.delete(f"/v1/videos/{job_id}")
    for end in (ours, theirs):
        os.close(end)


def test_a_file_is_made_again_pixel_by_pixel(site, tmp_path):
    body = {"prompt": "a red circle", "steps": 3, "output_format": "webm", "embed_prompt": True}
    with httpx.Client(base_url=site) as http:
        job = wait_for(http, http.post("/v1/videos", json=body).json()["id"])
        assert (job["media_type"], job["file_name"]) == ("video/webm", f"{job['id']}.webm")
        answer = http.get(job["url"])
    assert answer.headers["content-type"] == "video/webm"
    (tmp_path / "v.webm").write_bytes(answer.content)
    again = run(site, tmp_path / "v.webm", module="reproduce")
    assert (again.returncode, again.stderr.splitlines()[-1]) == (0, "the same video, pixel by pixel")
    other = run(site, tmp_path / "v.webm", "--prompt", "a blue circle", module="reproduce")
    assert other.returncode == 2
