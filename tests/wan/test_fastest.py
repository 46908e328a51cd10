import itertools
import json
import time

import pytest
import torch

from wan import attention, fastest
from wan.attention import Backend
from wan.errors import InvalidRequest

CPU = torch.device("cpu")
SHAPE = (1, 40, 2, 16)


def backend(name: str, seconds: float = 0.0, lossless: bool = True) -> Backend:
    def function(q, k, v, bias=None):
        time.sleep(seconds)
        return attention.sdpa(q, k, v, bias)

    return Backend(name, function, lossless, lambda device: None)


@pytest.fixture
def machine(monkeypatch):
    """Has the given backends and nothing else; nothing was measured on it."""

    def having(*backends: Backend) -> None:
        monkeypatch.setattr(attention, "BACKENDS", {b.name: b for b in backends})
        lossless, lossy = (tuple(b.name for b in backends if b.lossless == kind) for kind in (True, False))
        monkeypatch.setattr(attention, "CHOICES", {"auto": lossless, "auto-8bit": lossless + lossy})
        monkeypatch.setattr(fastest, "_MEASURED", {})

    return having


def chosen(name: str, **options) -> fastest.Choice:
    return fastest.choose(name, CPU, 2, 16, **{"tokens": 40} | options)


def test_the_faster_of_two_is_chosen_whatever_the_order_and_its_figures_are_told(machine):
    machine(backend("slow", 0.03), backend("quick"))
    choice = chosen("auto")
    assert choice.backend.name == "quick"
    assert choice.milliseconds["slow"] > 30 > choice.milliseconds["quick"]


def test_eight_bits_are_chosen_only_where_they_were_allowed_and_win(machine):
    machine(backend("exact", 0.03), backend("rounded", lossless=False))
    assert chosen("auto").backend.name == "exact"
    assert chosen("auto-8bit").backend.name == "rounded"
    machine(backend("exact"), backend("rounded", 0.03, lossless=False))
    assert chosen("auto-8bit").backend.name == "exact"


def test_a_tie_falls_to_the_first_every_time():
    two = [backend("first"), backend("second")]
    assert fastest.pick(two, {"first": 10.4, "second": 10.0}, 0.05).name == "first"
    assert fastest.pick(two, {"first": 10.6, "second": 10.0}, 0.05).name == "second"


def test_they_take_turns_the_first_calls_do_not_count_and_slow_ones_are_not_repeated_for_long():
    calls = []

    def named(name: str) -> Backend:
        return Backend(name, lambda *_: calls.append(name), True, lambda device: None)

    lengths = (9, 8, 0.3, 0.3, 0.1, 0.4, 0.5)  # seconds of each call; compiling takes 9 and 8 of them
    ticks = itertools.accumulate(itertools.chain.from_iterable((0, length) for length in lengths))
    found = fastest.measure([named("one"), named("two")], CPU, SHAPE, clock=lambda: next(ticks))
    assert found == {"one": 100.0, "two": 300.0}
    assert calls == ["one", "two"] * 3  # more than 1 s


def test_a_backend_that_fails_at_the_size_in_use_is_left_out(caplog):
    def too_large(q, k, v, bias=None):
        raise torch.OutOfMemoryError("tried to allocate 80 GiB")

    found = fastest.measure([Backend("large", too_large, True, lambda _: None), backend("small")], CPU, SHAPE)
    assert list(found) == ["small"]
    assert "80 GiB" in caplog.text
    with pytest.raises(InvalidRequest, match="computes a video of this size"):
        fastest.pick([backend("large")], {}, 0.05)


def test_what_is_wrong_is_not_measured(machine):
    def noise(q, k, v, bias=None):
        return torch.randn_like(q).flatten(2)

    machine(backend("right"), Backend("noise", noise, True, lambda device: None))
    assert chosen("auto") == (attention.BACKENDS["right"], {})


def test_a_process_that_starts_again_chooses_the_same(machine, tmp_path):
    machine(backend("one", 0.03), backend("two"))
    before = chosen("auto", keep=tmp_path)
    machine(backend("one"), backend("two", 0.03))  # as a noisy neighbour makes it
    assert chosen("auto", keep=tmp_path).milliseconds == before.milliseconds
    machine(backend("one"), backend("three", 0.03))  # not the machine that was measured
    assert chosen("auto", keep=tmp_path).backend.name == "one"
    assert len(json.loads((tmp_path / "attention.json").read_text())) == 2


@pytest.mark.parametrize("broken", ["damaged", "a directory", "not writable"])
def test_a_file_that_cannot_be_read_or_written_costs_a_measurement_only(broken, machine, tmp_path):
    machine(backend("slow", 0.01), backend("quick"))
    if broken == "damaged":
        (tmp_path / "attention.json").write_text("{")
    elif broken == "a directory":
        (tmp_path / "attention.json").mkdir()
    keep = tmp_path / "attention.json" if broken == "not writable" else tmp_path
    keep.touch()
    assert chosen("auto", keep=keep).backend.name == "quick"


def test_a_named_backend_is_taken_unmeasured():
    assert fastest.choose("sdpa", CPU, 2, 16, 40) == (attention.BACKENDS["sdpa"], {})
    with pytest.raises(InvalidRequest, match="attention is 'flash9'; allowed: auto, auto-8bit, sdpa"):
        fastest.choose("flash9", CPU, 2, 16, 40)
