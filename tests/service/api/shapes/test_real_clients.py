"""Clients as they are on PyPI: openai, litellm, openrouter. Create, poll, download, cancel, list, error."""

import openai
import pytest

from tests.service.running import wait_for

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the Sora service, not of the client


@pytest.fixture
def sora(site):
    with openai.OpenAI(base_url=f"{site}/v1", api_key="unused") as client:
        yield client


@pytest.fixture
def finished(sora):
    return sora.videos.create_and_poll(prompt="a red circle", size="64x64", seconds="1", extra_body={"seed": 7})


def test_the_openai_client_polls_as_often_as_it_is_told(sora, client):
    made = sora.videos.with_raw_response.create(prompt="a red circle", extra_body={"steps": 900})
    told = [made.headers, client.get(f"/v1/videos/{made.parse().id}").headers]
    client.delete(f"/v1/videos/{made.parse().id}")
    assert all(500 <= int(headers["openai-poll-after-ms"]) <= 10_000 for headers in told)


def test_the_openai_client_gets_the_video_and_pictures_of_it(sora, finished):
    begin = {
        variant: sora.videos.download_content(finished.id, variant=variant).read()[:12]
        for variant in ("video", "thumbnail", "spritesheet")
    }
    assert begin["video"][4:8] == b"ftyp"
    assert (begin["thumbnail"][:4], begin["thumbnail"][8:]) == (b"RIFF", b"WEBP")
    assert begin["spritesheet"][:3] == b"\xff\xd8\xff"


def test_a_remix_has_a_new_prompt_on_the_same_seed_and_settings(sora, finished, client):
    remix = sora.videos.remix(finished.id, prompt="a blue circle")
    assert (remix.prompt, remix.remixed_from_video_id, remix.size) == ("a blue circle", finished.id, "64x64")
    videos = [wait_for(client, video.id) for video in (finished, remix)]
    same = videos[0].keys() & {"seed", "steps", "num_frames", "negative_prompt", "guidance_scale", "fps"}
    assert len(same) == 5
    assert all(videos[0][name] == videos[1][name] for name in same)
    with pytest.raises(openai.BadRequestError, match="steps is 3; allowed: prompt only"):
        sora.videos.remix(finished.id, prompt="x", extra_body={"steps": 3})
    with pytest.raises(openai.NotFoundError):
        sora.videos.remix("video_unknown", prompt="x")


def test_what_the_checkpoint_cannot_do_is_refused_by_name(sora):
    for call in (
        lambda: sora.videos.edit(prompt="x", video=b"clip"),
        lambda: sora.videos.extend(prompt="x", seconds="4", video=b"clip"),
        lambda: sora.videos.create_character(name="x", video=b"clip"),
    ):
        # the served model changes clips, which this is none; characters there are none at all
        with pytest.raises(
            openai.BadRequestError, match=r"video is (a file of another kind|'a clip'; allowed: nothing)"
        ):
            call()


def test_litellm_creates_polls_downloads_and_reports_errors(site):
    litellm = pytest.importorskip("litellm")
    options = {"api_base": f"{site}/v1", "api_key": "unused", "custom_llm_provider": "openai"}
    video = litellm.video_generation(prompt="a green circle", model="wan-test", size="64x64", seconds="1", **options)
    assert video.status == "queued"
    while (state := litellm.video_status(video_id=video.id, **options)).status not in ("completed", "failed"):
        pass
    assert state.status == "completed"
    assert litellm.video_content(video_id=video.id, **options)[4:8] == b"ftyp"
    remix = litellm.video_remix(video_id=video.id, prompt="a pink circle", **options)
    assert remix.remixed_from_video_id
    with pytest.raises(Exception, match="size is '7x7'"):
        litellm.video_generation(prompt="x", model="wan-test", size="7x7", **options)


def test_the_openrouter_client_creates_polls_downloads_lists_models_and_reports_errors(site, client):
    openrouter = pytest.importorskip("openrouter")
    with openrouter.OpenRouter(api_key="unused", server_url=f"{site}/api/v1") as router:
        model = router.video_generation.list_videos_models().data[0]
        assert (model.id, model.supported_resolutions[0]) == ("wan-test", "64p")
        assert "64x64" in model.supported_sizes
        job = router.video_generation.generate(
            model=model.id, prompt="a square", aspect_ratio="1:1", resolution="480p", duration=1, seed=3
        )
        assert job.status == "pending"
        state = wait_for(client, job.id, seconds=60)
        assert (state["size"], state["seconds"], state["seed"]) == ("480x480", "1.0625", 3)
        done = router.video_generation.get_generation(job_id=job.id)
        assert (done.status, len(done.unsigned_urls)) == ("completed", 1)
        assert client.get(done.unsigned_urls[0]).content[4:8] == b"ftyp"
        assert router.video_generation.get_video_content(job_id=job.id).read()[4:8] == b"ftyp"
        with pytest.raises(Exception, match="aspect_ratio is '5:1'"):
            router.video_generation.generate(model=model.id, prompt="x", aspect_ratio="5:1")
