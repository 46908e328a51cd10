"""Around a video: pictures of it, formats, and a finished one that is given again."""

import io

import pytest
from PIL import Image

from service.storage import Storage
from tests.service.running import wait_for


@pytest.fixture
def job(client):
    return wait_for(client, client.post("/v1/videos", json={"prompt": "around", "steps": 2, "seed": 5}).json()["id"])


def picture(client, job, variant):
    answer = client.get(f"/v1/videos/{job['id']}/content?variant={variant}")
    assert answer.status_code == 200, answer.text
    return Image.open(io.BytesIO(answer.content))


def test_thumbnail_and_spritesheet_show_the_whole_video(client, job):
    assert picture(client, job, "thumbnail").size == (64, 64)
    assert picture(client, job, "spritesheet").size == (256, 192)  # 9 of 17 frames, 4 in a row


def test_pictures_are_made_once_and_go_with_the_job(client, job, site, monkeypatch):
    first = client.get(f"/v1/videos/{job['id']}/content?variant=thumbnail")
    again = client.get(job["thumbnail_url"], headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304
    client.delete(f"/v1/videos/{job['id']}")
    assert client.get(job["thumbnail_url"]).status_code == 404


def test_a_job_that_is_not_over_has_no_pictures(client):
    job = client.post("/v1/videos", json={"prompt": "long", "steps": 900}).json()
    assert client.get(f"/v1/videos/{job['id']}/content?variant=thumbnail").status_code == 404
    client.delete(f"/v1/videos/{job['id']}")


@pytest.mark.parametrize(
    ("said", "param"),
    [
        ({"crf": 64}, "crf"),
        ({"crf": 52}, "body"),
        ({"output_format": "gif", "crf": 1}, "body"),
        ({"output_format": "avi"}, "output_format"),
    ],
)
def test_a_quality_that_the_format_lacks_is_refused(client, said, param):
    error = client.post("/v1/videos", json={"prompt": "x"} | said).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", param)


def test_an_identical_request_gets_the_finished_video_if_it_asks_for_that(client, job):
    same = {"prompt": "around", "steps": 2, "seed": 5, "reuse_finished": True}
    again = client.post("/v1/videos", json=same)
    assert again.json()["status"] == "completed"
    assert again.headers["idempotent-replayed"] == "true"
    for change in ({"seed": 6}, {"prompt": "around "}, {"output_format": "gif"}, {"reuse_finished": False}):
        other = client.post("/v1/videos", json=same | change).json()
        assert other["status"] == "queued", change
        client.delete(f"/v1/videos/{other['id']}")


def test_the_place_of_a_file_names_disk_or_bucket(tmp_path):
    assert Storage(str(tmp_path)).location("job/video-1.mp4") == f"{tmp_path}/job/video-1.mp4"
    assert Storage("memory://store").location("job/video-1.mp4").startswith("memory://")
