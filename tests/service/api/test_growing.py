"""The frames of a job whose later ones are still in the decoder."""

import httpx
import pytest

from service import ffmpeg
from service.errors import GenerationFailed
from tests.service.running import gateway, settings_for, until, wait_for, worker
from tests.service.slow_decoder import SlowDecoder

SIDE, FRAMES = 32, 33
BODY = {"prompt": "p", "size": f"{SIDE}x{SIDE}", "num_frames": FRAMES, "steps": 2, "seed": 200}


@pytest.fixture
def site(tmp_path):
    settings = settings_for(tmp_path)
    triton = SlowDecoder(settings.runs, step_seconds=0.01)
    with gateway(settings) as url, worker(settings, triton), httpx.Client(base_url=url, timeout=20) as client:
        yield client, triton, tmp_path
        triton.go_on.set()


def decoding(client, **more):
    """A job that is in its last stage."""
    job = client.post("/v1/videos", json=BODY | {"stream": True} | more).json()
    until(lambda: client.get(f"/v1/videos/{job['id']}").json()["stream_url"])
    return job


def frames_in(content, folder) -> list[bytes]:
    path = folder / "received.mp4"
    path.write_bytes(content)
    pixels = ffmpeg.run(["-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"])
    size = SIDE * SIDE * 3
    return [pixels[at : at + size] for at in range(0, len(pixels), size)]


def test_frames_can_be_watched_before_the_last_is_decoded(site):
    client, triton, folder = site
    job = decoding(client)
    received, early = b"", 0
    with client.stream("GET", f"/v1/videos/{job['id']}/content") as answer:
        assert (answer.headers["content-type"], "content-length" in answer.headers) == ("video/mp4", False)
        for piece in answer.iter_raw():
            received += piece
            if not early and b"mdat" in received and (early := len(frames_in(received, folder))):
                assert client.get(f"/v1/videos/{job['id']}").json()["status"] == "in_progress"
                triton.go_on.set()
    assert 0 < early <= FRAMES // 2
    frames = frames_in(received, folder)
    assert len(frames) == FRAMES
    assert abs(frames[-1][-1] - BODY["seed"]) < 10  # the grey that the stand-in draws


def test_afterwards_the_whole_video_is_served_as_ever(site):
    client, triton, _ = site
    job = decoding(client)
    triton.go_on.set()
    assert wait_for(client, job["id"])["stream_url"] is None
    part = client.get(f"/v1/videos/{job['id']}/content", headers={"Range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, b"ftyp")


def test_an_attempt_that_breaks_ends_what_is_watched_and_the_next_one_makes_the_video(site):
    client, triton, _ = site
    triton.broken = GenerationFailed("the stub died")
    job = decoding(client)
    with client.stream("GET", f"/v1/videos/{job['id']}/content") as answer:
        pieces = answer.iter_raw()
        assert next(pieces)
        triton.go_on.set()
        assert len(list(pieces)) < FRAMES  # it ends
    assert wait_for(client, job["id"])["status"] == "completed"
    assert len(triton.calls) == 2


def test_a_job_that_did_not_ask_is_not_served_before_its_end(site):
    client, triton, _ = site
    job = decoding(client)
    other = client.post("/v1/videos", json=BODY).json()
    answer = client.get(f"/v1/videos/{other['id']}/content")
    assert (answer.status_code, other["stream_url"]) == (404, None)
    assert client.head(f"/v1/videos/{job['id']}/content").headers["content-type"] == "video/mp4"
    triton.go_on.set()
    wait_for(client, other["id"])
