"""Other people's clients: the official OpenAI one, and schemathesis over our own OpenAPI document."""

import subprocess
import sys
import time

import openai
import pytest


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the Sora service, not of the client
def test_the_openai_client_needs_no_special_code(site):
    client = openai.OpenAI(base_url=f"{site}/v1", api_key="unused")
    video = client.videos.create(prompt="a red circle", model="wan-test", size="64x64", seconds="1")
    assert video.status == "queued"
    assert video.size == "64x64"
    deadline = time.monotonic() + 20
    while (video := client.videos.retrieve(video.id)).status not in ("completed", "failed"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert (video.status, video.progress) == ("completed", 100)
    assert client.videos.download_content(video.id).read()[4:8] == b"ftyp"
    assert video.id in [listed.id for listed in client.videos.list(limit=5)]
    assert client.videos.delete(video.id).deleted is True
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)
    with pytest.raises(openai.BadRequestError, match="size is '7x7'"):
        client.videos.create(prompt="x", size="7x7")


def test_generated_requests_get_no_server_error_and_no_answer_outside_the_document(site, tmp_path):
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{site}/openapi.json", "--checks", checks,
               "--max-examples", "8", "--seed", "7", "--request-timeout", "10", "--generation-database", "none",
               # a sync call waits for its video, and its body is the same as that of the plain call
               "--exclude-path", "/v1/videos/sync", "--exclude-path", "/v1/videos/generations", "--phases", "coverage,fuzzing", "--no-color"]  # fmt: skip
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout[-6000:]
