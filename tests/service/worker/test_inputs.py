"""Pictures and clips between the store and Triton."""

import hashlib

import pytest

from service.errors import GenerationRejected, InputLost
from service.storage import Storage, input_key
from service.worker.inputs import read_all


@pytest.fixture
def stored(tmp_path):
    files, data = Storage(str(tmp_path / "videos")), bytes(range(256)) * 5000
    (tmp_path / "picture").write_bytes(data)
    key = input_key("video_1", "image.png")
    files.put(tmp_path / "picture", key)
    return files, data, {"key": key, "sha256": hashlib.sha256(data).hexdigest(), "type": "image/png"}


def test_files_are_read_whole(stored):
    files, data, said = stored
    assert read_all(files, {"image": said}) == {"image": data}
    assert read_all(files, {}) == {}


def test_a_file_that_is_gone_or_changed_is_an_error_that_no_other_attempt_mends(stored, tmp_path):
    files, _, said = stored
    with pytest.raises(InputLost, match="image was changed"):
        read_all(files, {"image": said | {"sha256": "0" * 64}})
    files.delete(said["key"])
    with pytest.raises(InputLost, match="image is no longer stored"):
        read_all(files, {"image": said})
    assert issubclass(InputLost, GenerationRejected)
