"""The one-command run: a video at the end, and no process left behind, also after Ctrl-C."""

import os
import signal
import subprocess
import sys
import time

import httpx
import psutil
import pytest

from contract.arguments import given_media
from service import options, run
from service.client import submit
from service.stack import StackError


def command(repository, checkpoint, state, *more):
    # the repository of the test session is current, so the export does nothing
    return [sys.executable, "-c", STARTER, "--prompt", "a red circle", "--state", str(state),
            "--repository", str(repository), "--checkpoint", str(checkpoint), *more]  # fmt: skip


# Leaves out the export, which has its own tests and would render the session's repository with other options.
STARTER = "import sys, service.run as run; run.exported = lambda *_: None; sys.exit(run.main(sys.argv[1:]))"


def left_behind(state):
    """Processes whose environment names this run's state directory."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(state) in process.environ().get("WAN_RUN_DIR", ""):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def test_run_prints_the_path_of_a_video_and_stops_everything(repository, checkpoint, tmp_path):
    out = tmp_path / "out.mp4"
    result = subprocess.run(
        command(repository, checkpoint, tmp_path / "s", "--steps", "4", "--out", str(out)),
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(out)
    assert out.read_bytes()[4:8] == b"ftyp"
    assert "step 4/4" in result.stderr
    assert left_behind(tmp_path / "s") == []


@pytest.mark.parametrize("after", ["Triton: ", pytest.param("waiting for the gateway", marks=pytest.mark.slow)])
def test_ctrl_c_leaves_no_process(repository, checkpoint, tmp_path, after):
    state = tmp_path / "s"
    process = subprocess.Popen(
        command(repository, checkpoint, state, "--steps", "900"),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in process.stderr:
        if line.startswith(after):
            break
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 130
    time.sleep(0.5)
    assert left_behind(state) == []


def sent(*options):
    """The request that `make run` submits."""
    seen = []

    def answer(request):
        request.read()
        seen.append(request)
        return httpx.Response(200, json={"id": "x"})

    with httpx.Client(base_url="http://x", transport=httpx.MockTransport(answer)) as client:
        submit(client, run.parse(["--prompt", "p", *options]))
    return seen[0]


def test_a_picture_goes_with_the_request_and_gives_the_video_its_shape(tmp_path):
    photo = tmp_path / "photo.png"
    photo.write_bytes(b"the picture")
    request = sent("--image", str(photo), "--steps", "3")
    assert request.headers["content-type"].startswith("multipart/form-data")
    for part in (
        b'name="image"; filename="photo.png"',
        b"the picture",
        b'name="size"\r\n\r\nauto',
        b'name="steps"\r\n\r\n3',
    ):
        assert part in request.content
    assert b"auto" not in sent("--image", str(photo), "--width", "64").content
    assert sent().headers["content-type"] == "application/json"


def test_a_picture_that_is_not_there_is_said_before_anything_starts(tmp_path):
    with pytest.raises(StackError, match="--last-image is .*nothing.png'; allowed: an existing file"):
        run.check_media(run.parse(["--prompt", "p", "--last-image", str(tmp_path / "nothing.png")]))


def chosen(*arguments):
    choice = run.parse(["--prompt", "p", *arguments])
    options.choose(choice, given_media(choice))
    return choice.checkpoint.name, choice.repository.name


def test_without_a_checkpoint_a_picture_is_for_the_bundled_model_that_takes_one(tmp_path):
    assert chosen() == ("tiny", "repository")
    assert chosen("--video", "clip.mp4") == ("tiny", "repository")
    assert chosen("--image", "photo.png") == ("tiny-i2v", "repository-tiny-i2v")
    name = "Wan2.1-I2V-14B-480P"
    own = str(tmp_path / name)
    assert chosen("--image", "photo.png", "--checkpoint", f"{own}/") == (name, f"repository-{name}")
    assert chosen("--checkpoint", own, "--repository", "build/mine")[1] == "mine"
