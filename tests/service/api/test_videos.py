"""The routes of /v1/videos over a real socket."""

import json
import time

import pytest

from tests.service.running import wait_for


def create(client, **more):
    return client.post("/v1/videos", json={"prompt": "a red circle", "steps": 3} | more)


def finished(client, **more):
    return wait_for(client, create(client, **more).json()["id"])


def test_a_video_is_made_watched_downloaded_and_deleted(client):
    answer = create(client, seed=42, size="48x32", seconds=0.3, user="me")
    assert answer.status_code == 200
    job = answer.json()
    assert answer.headers["location"] == f"/v1/videos/{job['id']}"
    assert (job["object"], job["status"], job["size"], job["num_frames"], job["seed"]) == (
        "video",
        "queued",
        "48x32",
        5,
        42,
    )
    assert job["queue_position"] >= 1
    assert job["eta_seconds"] > 0
    assert job["predicted_gpu_seconds"] > 0
    done = wait_for(client, job["id"])
    assert (done["status"], done["progress"], done["step"]) == ("completed", 100, 3)
    assert done["completed_at"] >= done["started_at"] >= done["created_at"]
    assert done["expires_at"] > done["completed_at"]
    assert done["stage_durations"]["denoise"] > 0
    video = client.get(done["url"])
    assert video.headers["content-type"] == "video/mp4"
    assert video.content[4:8] == b"ftyp"
    assert len(video.content) == done["file_bytes"]
    assert client.delete(f"/v1/videos/{job['id']}").json() == {
        "id": job["id"],
        "object": "video.deleted",
        "deleted": True,
    }
    assert client.get(f"/v1/videos/{job['id']}").status_code == 404


def test_a_multipart_form_means_the_same(client):
    fields = {"prompt": "form", "num_inference_steps": "3", "size": "32x32", "seed": "5", "preview": "true"}
    job = client.post("/v1/videos", files={name: (None, value) for name, value in fields.items()}).json()
    assert (job["prompt"], job["steps"], job["size"], job["seed"]) == ("form", 3, "32x32", 5)
    urlencoded = client.post("/v1/videos", data=fields).json()
    assert urlencoded["steps"] == 3


def test_a_form_may_ask_for_every_lossy_option_and_a_bad_one_is_named(client):
    def submit(**fields):
        return client.post(
            "/v1/videos", files={k: (None, v) for k, v in ({"prompt": "x", "steps": "20"} | fields).items()}
        )

    whole = submit()
    cheaper = submit(cache="magcache", cache_threshold="0.2", guidance_end="0.5")
    assert cheaper.json()["predicted_gpu_seconds"] < whole.json()["predicted_gpu_seconds"]
    for name, value in (("cache", "deepcache"), ("guidance_end", "1.5")):
        error = submit(**{name: value}).json()["error"]
        assert (error["param"], error["type"]) == (name, "invalid_request_error")
        assert value in error["message"]


def test_sync_answers_with_the_video(client):
    answer = client.post("/v1/videos/sync", json={"prompt": "sync", "steps": 3, "seed": 9})
    assert answer.status_code == 200
    assert answer.content[4:8] == b"ftyp"
    assert answer.headers["x-seed"] == "9"
    assert float(answer.headers["x-inference-time-s"]) > 0
    assert client.get(f"/v1/videos/{answer.headers['x-request-id']}").json()["status"] == "completed"


def test_leaving_a_sync_call_cancels_its_job(client):
    with pytest.raises(Exception, match="timed out"):
        client.post("/v1/videos/sync", json={"prompt": "left alone", "steps": 900}, timeout=1)
    job = next(job for job in client.get("/v1/videos").json()["data"] if job["prompt"] == "left alone")
    assert wait_for(client, job["id"], seconds=5)["status"] == "cancelled"


def test_events_tell_every_change_and_end_with_the_job(client):
    job = create(client, steps=60).json()
    seen = []
    with client.stream("GET", f"/v1/videos/{job['id']}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            if line.startswith("data: "):
                seen.append(json.loads(line[6:]))
    assert seen[-1]["status"] == "completed"
    steps = [video["step"] for video in seen]
    assert steps == sorted(steps)
    assert len(set(steps)) >= 3


def test_cancel_works_on_running_and_waiting_jobs(client):
    running = create(client, steps=900).json()
    waiting = create(client, steps=900).json()
    wait_for(client, running["id"], "in_progress")
    assert client.post(f"/v1/videos/{waiting['id']}/cancel").json()["status"] == "cancelled"
    assert client.post(f"/v1/videos/{running['id']}/cancel").status_code == 200
    assert wait_for(client, running["id"], seconds=5)["status"] == "cancelled"
    done = finished(client)
    conflict = client.post(f"/v1/videos/{done['id']}/cancel")
    assert conflict.status_code == 409
    assert conflict.json()["error"]["code"] == "conflict"


def test_previews_are_served_while_the_job_runs(client):
    job = create(client, steps=200, preview=True).json()
    deadline = time.monotonic() + 10
    while not (video := client.get(f"/v1/videos/{job['id']}").json())["preview_url"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    picture = client.get(video["preview_url"])
    assert picture.headers["content-type"] == "image/webp"
    assert picture.content.startswith(b"RIFF")
    client.post(f"/v1/videos/{job['id']}/cancel")


@pytest.mark.parametrize(
    ("header", "status", "start", "stop"),
    [
        ("bytes=0-99", 206, 0, 100),
        ("bytes=100-", 206, 100, None),
        ("bytes=-50", 206, -50, None),
        ("bytes=0-999999999", 206, 0, None),
        ("bytes=5-2", 200, 0, None),
        ("lines=1-2", 200, 0, None),
        ("bytes=0-1,5-6", 200, 0, None),
    ],
)
def test_ranges_of_the_video(client, header, status, start, stop):
    job = finished(client)
    whole = client.get(job["url"]).content
    part = client.get(job["url"], headers={"Range": header})
    assert part.status_code == status
    assert part.content == whole[start:stop]
    if status == 206:
        first = start if start >= 0 else len(whole) + start
        assert part.headers["content-range"] == f"bytes {first}-{first + len(part.content) - 1}/{len(whole)}"


def test_a_range_beyond_the_end_is_refused_and_an_etag_spares_the_download(client):
    job = finished(client)
    assert client.get(job["url"], headers={"Range": "bytes=99999999-"}).status_code == 416
    etag = client.get(job["url"]).headers["etag"]
    assert client.get(job["url"], headers={"If-None-Match": etag}).status_code == 304
    assert client.get(job["url"], headers={"Range": "bytes=0-9", "If-Range": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, 200), ({"Range": "bytes=0-99"}, 206), ({"Range": "bytes=99999999-"}, 416), ({"If-None-Match": "ETAG"}, 304)],
)
def test_head_tells_of_the_video_what_get_would(client, headers, status):
    job = finished(client)
    etag = client.get(job["url"]).headers["etag"]
    headers = {name: value.replace("ETAG", etag) for name, value in headers.items()}
    head, get = client.head(job["url"], headers=headers), client.get(job["url"], headers=headers)
    assert (head.status_code, get.status_code, head.content) == (status, status, b"")
    names = ("content-type", "content-length", "content-range", "accept-ranges", "etag", "content-disposition")
    assert [head.headers.get(name) for name in names] == [get.headers.get(name) for name in names]
    assert client.head("/v1/videos/video_none/content").status_code == 404


def test_no_answer_is_guessed_at_and_only_content_is_kept(client):
    job = finished(client)
    content = client.get(job["url"])
    assert content.headers["x-content-type-options"] == "nosniff"
    assert content.headers["cache-control"] == "private, max-age=3600"
    for path in (f"/v1/videos/{job['id']}", "/v1/videos", "/v1/models", "/v1/videos/none", "/metrics"):
        answer = client.get(path)
        assert answer.headers["cache-control"] == "no-store", path
        assert answer.headers["x-content-type-options"] == "nosniff", path


def test_content_of_an_unfinished_video_is_not_found(client):
    job = create(client, steps=900).json()
    answer = client.get(f"/v1/videos/{job['id']}/content")
    assert answer.status_code == 404
    assert "only a completed one" in answer.json()["error"]["message"]
    client.delete(f"/v1/videos/{job['id']}")


def test_an_idempotency_key_makes_one_job_even_without_a_seed(client):
    headers = {"Idempotency-Key": "order-1"}
    first = client.post("/v1/videos", json={"prompt": "once", "steps": 2}, headers=headers)
    again = client.post("/v1/videos", json={"prompt": "once", "steps": 2}, headers=headers)
    assert first.json()["id"] == again.json()["id"]
    assert again.headers["idempotent-replayed"] == "true"
    other = client.post("/v1/videos", json={"prompt": "twice", "steps": 2}, headers=headers)
    assert other.status_code == 422
    assert other.json()["error"]["code"] == "idempotency_key_reused"


def test_the_list_pages_in_both_directions(client):
    before, *ids = [create(client, steps=1).json()["id"] for _ in range(6)]
    page = client.get("/v1/videos", params={"limit": 2}).json()
    assert [video["id"] for video in page["data"]] == ids[:2:-1]
    assert page["has_more"] is True
    following = client.get("/v1/videos", params={"limit": 2, "after": page["last_id"]}).json()
    assert [video["id"] for video in following["data"]] == ids[2:0:-1]
    oldest_first = client.get("/v1/videos", params={"limit": 100, "order": "asc", "after": before}).json()["data"]
    assert [video["id"] for video in oldest_first] == ids


def test_a_deadline_that_cannot_be_met_is_refused(client):
    answer = create(client, steps=1000, deadline_seconds=0.1)
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "deadline_seconds"


def test_models_list_defaults_and_limits(client):
    model = client.get("/v1/models").json()["data"][0]
    assert model["id"] == "wan-test"
    assert model["defaults"]["steps"] == 20
    bounds = {"minimum": 16, "maximum": 2048, "multipleOf": 16, "type": "integer", "group": "main"}
    assert model["limits"]["width"].items() >= bounds.items()


def test_the_parameters_of_diffsynth_and_lightx2v_are_understood(client):
    diffsynth = create(client, steps=2, cfg_scale=1.5, sigma_shift=4.0, tea_cache_l1_thresh=0.1)
    assert diffsynth.status_code == 200
    lightx2v = client.post(
        "/v1/videos",
        json={"prompt": "x", "infer_steps": 2, "target_shape": [32, 48], "target_video_length": 9, "target_fps": 8},
    ).json()
    assert (lightx2v["size"], lightx2v["num_frames"], lightx2v["fps"], lightx2v["steps"]) == ("48x32", 9, 8, 2)


def test_metrics_are_by_route_and_never_by_job(client):
    job = create(client, steps=1).json()
    client.get(f"/v1/videos/{job['id']}")
    text = client.get("/metrics").text
    assert 'wan_http_requests_total{method="GET",route="/v1/videos/{id}",status="200"}' in text
    assert 'wan_queue_jobs{model="wan-test",priority="normal"}' in text
    assert "video_" not in text


def test_page_and_document_are_served(client):
    assert "<title>Wan video</title>" in client.get("/").text
    assert client.get("/web/page.js").status_code == 200
    document = client.get("/openapi.json").json()
    body = document["paths"]["/v1/videos"]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert body["cache"]["anyOf"][0]["enum"] == ["teacache", "magcache"]
    assert {"cache_threshold", "guidance_end"} <= body.keys()
    assert set(document["paths"]["/v1/videos"]["post"]["requestBody"]["content"]) == {
        "application/json",
        "multipart/form-data",
    }
