"""Pictures and clips over HTTP: every way to send one, where they are kept, who gets them and when they go."""

import base64
import hashlib
import io
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import openai
import pytest
from PIL import Image

from service.errors import Unavailable
from service.store import JobStore
from tests.service import pictures
from tests.service.fake_triton import FakeTriton
from tests.service.running import gateway, until, wait_for, worker

RED = pictures.picture(96, 64)
FAST = {"prompt": "p", "steps": 1, "size": "32x32", "num_frames": 5}


class Site:
    """A gateway and a worker whose model takes pictures and clips."""

    def __init__(self, folder, url, triton, settings):
        self.folder, self.url, self.triton, self.settings = folder, url, triton, settings
        self.client = httpx.Client(base_url=url, timeout=60)

    def files(self, job_id):
        folder = self.folder / "videos" / job_id
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []

    def received(self, job):
        """What Triton was given for a finished job."""
        assert wait_for(self.client, job["id"])["status"] == "completed"
        return self.triton.media[f"{job['id']}-1"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    settings = pictures.settings_with_media(folder, "image", "last_image", "video")
    triton = FakeTriton(settings.runs, step_seconds=0.01)
    with gateway(settings) as url, worker(settings, triton):
        yield Site(folder, url, triton, settings)


def made(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()


def as_file(site, **more):
    return site.client.post("/v1/videos", data=FAST | more, files={"input_reference": ("photo.png", RED, "image/png")})


def as_json(site, **more):
    return site.client.post("/v1/videos", json=FAST | more)


SENT = [
    as_file,
    lambda site: as_json(site, input_reference=pictures.data_url(RED)),
    lambda site: as_json(site, input_reference={"image_url": pictures.data_url(RED)}),
    lambda site: as_json(site, image={"image_url": {"url": pictures.data_url(RED)}}),
    lambda site: as_json(site, image=pictures.data_url(RED)),
    lambda site: site.client.post("/v1/videos", data=FAST, files={"first_image": ("a", RED)}),
    lambda site: site.client.post("/v1/videos", data=FAST, files={"image": (None, pictures.data_url(RED))}),
]


@pytest.mark.parametrize("send", SENT)
def test_a_picture_reaches_triton_however_it_is_sent(site, send):
    job = made(send(site))
    assert job["inputs"] == ["image"]
    received = Image.open(io.BytesIO(site.received(job)["image"]))
    assert (received.format, received.size, received.getpixel((0, 0))) == ("PNG", (96, 64), (255, 0, 0))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the Sora service, not of the client
def test_the_openai_client_sends_a_picture(site):
    client = openai.OpenAI(base_url=f"{site.url}/v1", api_key="unused")
    video = client.videos.create(prompt="p", size="32x32", input_reference=("photo.png", RED), extra_body={"steps": 1})
    assert set(site.received({"id": video.id})) == {"image"}


def test_two_pictures_reach_triton_under_their_names_and_so_does_a_clip(site):
    clip = site.client.post("/v1/videos", data=FAST, files={"input_video": pictures.clip()})
    files = {"image": RED, "end_image": pictures.picture(colour="blue")}
    received = site.received(made(site.client.post("/v1/videos", data=FAST, files=files)))
    assert set(received) == {"image", "last_image"}
    assert Image.open(io.BytesIO(received["last_image"])).getpixel((0, 0)) == (0, 0, 255)
    assert site.received(made(clip))["video"][4:8] == b"ftyp"


def test_the_row_holds_where_a_picture_is_and_its_digest_and_not_the_picture(site):
    job = made(as_file(site))
    store = JobStore.from_settings(site.settings)
    request = store.get(job["id"]).request
    store.close()
    (name,) = [name for name in site.files(job["id"]) if name.startswith("input-")]
    stored = (site.folder / "videos" / job["id"] / name).read_bytes()
    digest = hashlib.sha256(stored).hexdigest()
    assert request["media"] == {"image": {"key": f"{job['id']}/{name}", "sha256": digest, "type": "image/png"}}


def test_a_deleted_job_takes_its_files_with_it(site):
    job = made(as_file(site))
    wait_for(site.client, job["id"])
    assert site.files(job["id"]) == ["input-image.png", "video-1.mp4"]
    site.client.delete(f"/v1/videos/{job['id']}")
    until(lambda: site.files(job["id"]) == [])


@pytest.mark.parametrize(
    ("shape", "size"), [((640, 360), "80x48"), ((300, 300), "64x64"), ((96, 64), "64x48"), ((64, 512), "16x176")]
)
def test_the_size_auto_is_that_of_the_picture(site, shape, size):
    files = {"image": pictures.picture(*shape)}
    job = made(site.client.post("/v1/videos", data=FAST | {"size": "auto"}, files=files))
    assert job["size"] == size


def test_the_size_auto_needs_a_picture(site):
    answer = as_json(site, size="auto")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "size")
    assert "picture" in answer.json()["error"]["message"]


def test_the_same_key_with_the_same_picture_is_the_same_job_and_with_another_is_refused(site):
    def send(colour):
        files = {"image": pictures.picture(colour=colour)}
        return site.client.post("/v1/videos", data=FAST, files=files, headers={"Idempotency-Key": "photo-1"})

    first, again, other = send("red"), send("red"), send("blue")
    assert made(first)["id"] == made(again)["id"]
    assert again.headers["idempotent-replayed"] == "true"
    assert other.status_code == 422
    assert "another image" in other.json()["error"]["message"]
    ids = {video["id"] for video in site.client.get("/v1/videos?limit=100").json()["data"]}
    kept = {path.name for path in (site.folder / "videos").iterdir() if list(path.iterdir())}
    assert kept <= ids  # what was not made has left nothing


def test_a_picture_that_is_gone_or_changed_fails_the_job_at_once(site):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site.triton, "slot_count", 0)
        site.triton.is_ready = False
        until(lambda: 'state="waiting"} 1' in httpx.get(f"{site.url}/metrics").text)
        gone, changed = made(as_file(site)), made(as_file(site))
        (site.folder / "videos" / gone["id"] / "input-image.png").unlink()
        (site.folder / "videos" / changed["id"] / "input-image.png").write_bytes(b"other")
        site.triton.is_ready = True
        for job, said in ((gone, "image is no longer stored"), (changed, "image was changed")):
            over = wait_for(site.client, job["id"])
            assert (over["status"], over["error"]["code"], over["attempts"]) == ("failed", "input_lost", 1)
            assert said in over["error"]["message"]


def test_files_stored_for_a_job_that_was_never_submitted_go_with_its_reservation(tmp_path, monkeypatch):
    settings = pictures.settings_with_media(tmp_path, "image")

    def breaks(*_):
        raise Unavailable("the database is away")

    with gateway(settings) as url:
        monkeypatch.setattr(JobStore, "submit", breaks)
        assert httpx.post(f"{url}/v1/videos", data=FAST, files={"image": RED}).status_code == 503
        assert len(list((tmp_path / "videos").iterdir())) == 1
        assert httpx.get(f"{url}/v1/videos").json()["data"] == []
        store = JobStore.from_settings(settings)
        with store.database.write() as conn:
            conn.exec_driver_sql("UPDATE jobs SET expires_at = 0")
        until(lambda: list((tmp_path / "videos").iterdir()) == [])
        store.close()


def test_what_the_model_does_not_take_or_lacks_is_named(tmp_path):
    with gateway(pictures.settings_with_media(tmp_path, "image", needs=("image",))) as url:
        lacking = httpx.post(f"{url}/v1/videos", json=FAST)
        assert (lacking.status_code, lacking.json()["error"]["param"]) == (400, "image")
        assert "needs image" in lacking.json()["error"]["message"]
        clip = httpx.post(f"{url}/v1/videos", data=FAST, files={"image": RED, "input_video": RED})
        assert (clip.status_code, clip.json()["error"]["param"]) == (400, "input_video")
        media = httpx.get(f"{url}/v1/models").json()["data"][0]["media"]
        assert media["image"]["required"]
        assert set(media) == {"image"}


def test_sizes_are_limited_and_larger_bodies_are_for_files_only(tmp_path):
    settings = pictures.settings_with_media(
        tmp_path, "image", max_image_bytes=100_000, max_image_pixels=10_000, max_body_bytes=50_000
    )
    with gateway(settings) as url:
        large, many = pictures.noise(200, 200), pictures.picture(200, 100)
        file = httpx.post(f"{url}/v1/videos", data=FAST, files={"input_reference": large})
        assert (file.status_code, file.json()["error"]["param"]) == (413, "input_reference")
        assert "allowed: 100000" in file.json()["error"]["message"]
        assert httpx.post(f"{url}/v1/videos", data=FAST, files={"image": bytes(10**6)}).status_code == 413
        assert httpx.post(f"{url}/v1/videos", json=FAST | {"prompt": "x" * 60_000}).status_code == 413
        assert httpx.post(f"{url}/v1/videos", data=FAST | {"prompt": "x" * 60_000}).status_code == 413
        pixels = httpx.post(f"{url}/v1/videos", data=FAST, files={"image": many})
        assert (pixels.status_code, pixels.json()["error"]["param"]) == (400, "image")
        assert "at most 10000 pixels" in pixels.json()["error"]["message"]
        elsewhere = httpx.post(f"{url}/v1/models", content=bytes(60_000), headers={"Content-Type": "application/json"})
        assert elsewhere.status_code == 413


class Photos(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/photo.png")
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        try:
            self.wfile.write(RED if self.path == "/photo.png" else bytes(10**6))
            if self.path == "/slow":
                threading.Event().wait(3)
        except OSError:
            pass

    def log_message(self, *_):
        pass


@pytest.fixture
def photos():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Photos)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_addresses_are_called_only_where_that_is_allowed_and_within_limits(tmp_path, photos, site):
    off = as_json(site, input_reference={"image_url": f"{photos}/photo.png"})
    assert (off.status_code, off.json()["error"]["param"]) == (400, "input_reference")
    assert "calls no addresses" in off.json()["error"]["message"]
    (tmp_path / "public").mkdir()
    (tmp_path / "private").mkdir()
    public = pictures.settings_with_media(tmp_path / "public", "image", fetch_urls=True)
    with gateway(public) as url:
        for host in (
            photos,
            "http://localhost:1",
            "http://169.254.169.254/latest",
            "http://[::ffff:10.0.0.1]",
            "http://2130706433",
        ):
            refused = httpx.post(f"{url}/v1/videos", json=FAST | {"image": f"{host}/photo.png"})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "image")
            assert "public" in refused.json()["error"]["message"]
    private = pictures.settings_with_media(
        tmp_path / "private", "image", fetch_urls=True, fetch_allow_private=True, fetch_seconds=1, max_image_bytes=10**5
    )
    with gateway(private) as url:
        ask = lambda path: httpx.post(f"{url}/v1/videos", json=FAST | {"image": photos + path})  # noqa: E731
        assert made(ask("/photo.png"))["inputs"] == ["image"]
        for path, said in (
            ("/moved", "status 302"),
            ("/huge", "more than 100000 bytes"),
            ("/slow", "100000 bytes|within 1 s"),
        ):
            assert re.search(said, ask(path).json()["error"]["message"])


def test_a_remix_begins_with_the_same_picture(site):
    job = made(as_file(site))
    first = site.received(job)
    remix = made(site.client.post(f"/v1/videos/{job['id']}/remix", json={"prompt": "another"}))
    again = site.received(remix)
    assert Image.open(io.BytesIO(again["image"])).tobytes() == Image.open(io.BytesIO(first["image"])).tobytes()


def test_a_finished_video_is_reused_only_for_the_same_picture(site):
    def send(colour, **more):
        files = {"image": pictures.picture(colour=colour)}
        return made(
            site.client.post("/v1/videos", data=FAST | {"seed": 77, "reuse_finished": "true"} | more, files=files)
        )

    first = send("green")
    site.received(first)
    assert send("green")["id"] == first["id"]
    others = [send("yellow"), send("green", seed=78), made(as_json(site, seed=77, reuse_finished=True))]
    assert first["id"] not in {job["id"] for job in others}
    assert "inputs" not in others[2] or others[2]["inputs"] is None


def test_the_shapes_of_other_servers_carry_large_files(site):
    photo = pictures.data_url(pictures.noise(700, 700))
    assert len(photo) > site.settings.max_body_bytes
    task = site.client.post("/v1/tasks/video/", json={"prompt": "p", "infer_steps": 1, "image_path": photo})
    assert set(site.received({"id": made(task)["task_id"]})) == {"image"}
    frames = [{"type": "image_url", "frame_type": "last_frame", "image_url": {"url": photo}}]
    body = {"model": "wan-test", "prompt": "p", "size": "32x32", "duration": 1, "frame_images": frames}
    answer = site.client.post("/api/v1/videos", json=body)
    assert answer.status_code == 202, answer.text
    assert set(site.received({"id": answer.json()["id"]})) == {"last_image"}
    offered = site.client.get("/api/v1/videos/models").json()["data"][0]["supported_frame_images"]
    assert offered == ["first_frame", "last_frame"]


def test_a_clip_is_continued_where_the_model_does_that_and_not_changed(site):
    files = {"video": pictures.clip()}
    continued = site.client.post("/v1/videos/extensions", data=FAST, files=files)
    assert set(site.received(made(continued))) == {"video"}
    refused = site.client.post("/v1/videos/edits", data=FAST, files=files)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "video")
    assert "changes no clips" in refused.json()["error"]["message"]


def test_a_finished_video_is_extended_by_its_id_in_json_or_a_form(site):
    # openai 3.51 declares the reference but cannot send it: written after its documentation
    first = made(site.client.post("/v1/videos", json=FAST))
    site.received(first)
    path = "/v1/videos/extensions"
    in_json = site.client.post(path, json=FAST | {"video": {"id": first["id"]}})
    in_a_form = site.client.post(path, files={name: (None, str(value)) for name, value in FAST.items()}
                                 | {"video[id]": (None, first["id"])})  # fmt: skip
    for answer in (in_json, in_a_form):
        (clip,) = site.received(made(answer)).values()
        assert clip[4:8] == b"ftyp"
    unknown = site.client.post(path, json=FAST | {"video": {"id": "video_" + "0" * 32}})
    assert unknown.status_code == 404


def test_a_video_that_is_not_finished_cannot_be_extended(site):
    queued = made(site.client.post("/v1/videos", json=FAST | {"steps": 400}))
    answer = site.client.post("/v1/videos/extensions", json=FAST | {"video": {"id": queued["id"]}})
    assert (answer.status_code, "only a completed one" in answer.text) == (404, True)
    site.client.post(f"/v1/videos/{queued['id']}/cancel")


def test_a_body_in_json_may_have_its_slashes_escaped(site):
    body = json.dumps(FAST | {"image": pictures.data_url(RED)}).replace("/", "\\/")
    answer = site.client.post("/v1/videos", content=body, headers={"Content-Type": "application/json"})
    assert made(answer)["inputs"] == ["image"]


def test_the_sync_route_takes_a_picture_too(site):
    answer = site.client.post("/v1/videos/sync", data=FAST, files={"image": RED})
    assert answer.status_code == 200
    assert answer.content[4:8] == b"ftyp"
    assert base64.b64encode(RED) not in answer.content
