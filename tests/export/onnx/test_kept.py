"""A graph is traced once for all repositories of the same weights."""

import pytest

from export.onnx import kept


@pytest.fixture
def place(tmp_path):
    return tmp_path / "a" / "first.onnx", tmp_path / "b" / "first.onnx", tmp_path / "cache"


def writes(path, content: bytes, result: dict):
    def make() -> dict:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return result

    return make


def never() -> dict:
    raise AssertionError("was made again")


def test_the_second_repository_takes_file_and_result_of_the_first(place):
    first, second, cache = place
    kept.once(first, ["weights"], cache, writes(first, b"graph", {"parity": 1}))
    second.parent.mkdir()
    assert kept.once(second, ["weights"], cache, never) == {"parity": 1}
    assert second.read_bytes() == b"graph"
    assert second.stat().st_ino == first.stat().st_ino


def test_other_weights_are_made_without_touching_what_others_share(place):
    first, second, cache = place
    kept.once(first, ["weights"], cache, writes(first, b"graph", {}))
    second.parent.mkdir()
    kept.once(second, ["weights"], cache, never)
    kept.once(second, ["others"], cache, writes(second, b"another", {}))
    assert (first.read_bytes(), second.read_bytes()) == (b"graph", b"another")


def test_a_damaged_graph_is_made_again(place):
    first, second, cache = place
    kept.once(first, ["weights"], cache, writes(first, b"graph", {"made": 1}))
    first.write_bytes(b"grapH")  # the same file as the entry's
    second.parent.mkdir()
    assert kept.once(second, ["weights"], cache, writes(second, b"graph", {"made": 2})) == {"made": 2}


def test_large_weights_beside_the_graph_come_along(place):
    first, second, cache = place
    first.parent.mkdir()
    first.with_name("first.onnx.data").write_bytes(b"weights")
    make = writes(first, b"graph", {})

    def with_data() -> dict:
        first.with_name("first.onnx.data").write_bytes(b"weights")
        return make()

    kept.once(first, ["weights"], cache, with_data)
    second.parent.mkdir()
    kept.once(second, ["weights"], cache, never)
    assert second.with_name("first.onnx.data").read_bytes() == b"weights"


def test_what_no_repository_holds_is_dropped(place):
    first, second, cache = place
    kept.once(first, ["weights"], cache, writes(first, b"graph", {}))
    kept.once(second, ["others"], cache, writes(second, b"another", {}))
    second.unlink()
    kept.prune(cache)
    assert len(list(cache.iterdir())) == 1
    first.unlink()
    kept.prune(cache)
    assert list(cache.iterdir()) == []


def test_what_leaves_no_file_is_kept_as_well(place):
    cache = place[2]
    kept.once(None, ["weights"], cache, lambda: {"colours": [1.0]})
    kept.prune(cache)
    assert kept.once(None, ["weights"], cache, never) == {"colours": [1.0]}
