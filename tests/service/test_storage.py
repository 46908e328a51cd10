"""The same contract for a directory and an S3 server."""

import socket

import pytest

from service.errors import NotFound, StorageError
from service.storage import Storage, checkpoint_key, video_key

JOB = "video_0123"


@pytest.fixture(scope="session")
def s3_endpoint():
    import os

    from moto.server import ThreadedMotoServer

    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    endpoint = f"http://127.0.0.1:{port}"
    import boto3

    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="videos")
    yield endpoint
    server.stop()


@pytest.fixture(params=["directory", "s3"])
def files(request, tmp_path):
    if request.param == "directory":
        return Storage(str(tmp_path / "store"))
    return Storage("s3://videos/prefix", request.getfixturevalue("s3_endpoint"))


def test_a_file_comes_back_whole_and_in_part(files, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 8192)  # two megabytes: more than one piece
    key = video_key(JOB, 1)
    assert files.put(source, key) == files.size(key) == source.stat().st_size
    files.get(key, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    assert b"".join(files.read(key, 1_000_000, 1_500_000)) == source.read_bytes()[1_000_000:1_500_000]


def test_a_newer_file_replaces_the_older(files, tmp_path):
    for content in (b"one", b"second"):
        (tmp_path / "c").write_bytes(content)
        files.put(tmp_path / "c", checkpoint_key(JOB, 1))
    assert b"".join(files.read(checkpoint_key(JOB, 1), 0, 6)) == b"second"


def test_deleting_a_job_removes_all_of_its_files_and_no_others(files, tmp_path):
    (tmp_path / "f").write_bytes(b"x")
    for key in (video_key(JOB, 1), checkpoint_key(JOB, 1), video_key("video_other", 1)):
        files.put(tmp_path / "f", key)
    files.delete_job(JOB)
    files.delete_job(JOB)
    files.delete(video_key(JOB, 1))
    with pytest.raises(NotFound):
        files.size(video_key(JOB, 1))
    assert files.size(video_key("video_other", 1)) == 1


def test_checkpoints_of_earlier_attempts_are_removed_without_the_newest(files, tmp_path):
    (tmp_path / "f").write_bytes(b"x")
    files.delete_checkpoints(JOB, before=9)  # nothing is stored yet
    for key in (*(checkpoint_key(JOB, fence) for fence in (1, 2, 10)), video_key(JOB, 1)):
        files.put(tmp_path / "f", key)
    files.delete_checkpoints(JOB, before=10)
    for fence in (1, 2):
        with pytest.raises(NotFound):
            files.size(checkpoint_key(JOB, fence))
    assert files.size(checkpoint_key(JOB, 10)) == 1
    files.delete_checkpoints(JOB)
    with pytest.raises(NotFound):
        files.size(checkpoint_key(JOB, 10))
    assert files.size(video_key(JOB, 1)) == 1


def test_videos_that_are_not_the_jobs_are_removed(files, tmp_path):
    (tmp_path / "f").write_bytes(b"x")
    files.delete_videos(JOB, but=None)  # nothing is stored yet
    for key in (video_key(JOB, 1), video_key(JOB, 2, "webm"), video_key(JOB, 3), checkpoint_key(JOB, 1)):
        files.put(tmp_path / "f", key)
    files.delete_videos(JOB, but=video_key(JOB, 3))
    for gone in (video_key(JOB, 1), video_key(JOB, 2, "webm")):
        with pytest.raises(NotFound):
            files.size(gone)
    assert files.size(video_key(JOB, 3)) == files.size(checkpoint_key(JOB, 1)) == 1
    files.delete_videos(JOB, but=None)
    with pytest.raises(NotFound):
        files.size(video_key(JOB, 3))


@pytest.mark.parametrize("key", ["../x", "a/../b", "/etc/passwd", "a/b/c", "a", "a/.hidden", ""])
def test_a_key_cannot_leave_the_store(files, key):
    with pytest.raises(StorageError, match="allowed: <job id>"):
        files.size(key)


def test_an_unreachable_store_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    blocked = Storage(str(tmp_path / "file"))
    with pytest.raises(StorageError, match="cannot write"):
        blocked.put(tmp_path / "file", video_key(JOB, 1))
    away = Storage("s3://videos", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match="cannot"):
        away.put(tmp_path / "file", video_key(JOB, 1))


def test_an_unknown_scheme_names_the_setting():
    with pytest.raises(StorageError, match="WAN_STORAGE_URL"):
        Storage("gopher://x")
