"""How a video is divided: what can be written, and what it is predicted to bring."""

import pytest

from contract.cost import CostModel
from contract.errors import InvalidRequest
from contract.geometry import Geometry
from contract.parallel import Degrees


@pytest.mark.parametrize("text", ["cfg2", "ulysses4", "cfg2xulysses4", "ulysses12"])
def test_degrees_are_written_as_they_are_read(text):
    assert str(Degrees.parse(text)) == text


@pytest.mark.parametrize("text", ["", "cfg3", "ulysses", "ulysses1", "ulysses0", "cfg2ulysses2", "xulysses2", "cfg2x"])
def test_degrees_that_mean_nothing_are_refused(text):
    with pytest.raises(InvalidRequest, match="parallel is .*; allowed: cfg2"):
        Degrees.parse(text)


def test_a_number_of_ranks_that_does_not_divide_the_heads_is_refused():
    Degrees.parse("cfg2xulysses4").check(12)
    with pytest.raises(InvalidRequest, match="ulysses8.*1, 2, 3, 4, 6, 12"):
        Degrees.parse("ulysses8").check(12)


def test_the_price_on_several_devices_follows_their_number_and_the_guidance():
    one = CostModel(overhead=1, per_token=1e-3, per_token_squared=1e-6, per_pixel=1e-6, per_skipped_token=1e-5)
    size, geometry = (832, 480, 81), Geometry()

    def seconds(degrees: str, branches: int) -> float:
        model = one.on(Degrees.parse(degrees))
        return model.seconds(size, [(True, branches)], geometry) - model.seconds(size, [], geometry)

    alone = one.step(geometry.tokens(*size), 2, True)
    assert seconds("cfg2", 2) == pytest.approx(alone / 2)
    assert seconds("cfg2", 1) == pytest.approx(alone / 2)  # without guidance the second half has nothing to do
    assert alone / 4 < seconds("ulysses4", 2) < alone / 3
    assert alone / 8 < seconds("cfg2xulysses4", 2) < alone / 6
    assert one.on(Degrees()) == one


def test_a_file_that_was_measured_on_one_device_is_scaled_and_another_is_not(tmp_path):
    path, four = tmp_path / "cost.json", Degrees.parse("cfg2xulysses2")
    model = CostModel(overhead=1, per_token=1e-3, per_token_squared=1e-6, per_pixel=1e-6)
    model.write(path, {"engine": {"linear": "fp8"}})
    assert CostModel.load(path, four) == model.on(four)
    model.on(four).write(path, {"engine": {"parallel": "cfg2xulysses2"}})
    assert CostModel.load(path, four) == model.on(four)
