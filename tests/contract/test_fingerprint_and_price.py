"""What enters the fingerprint of a resumable run and the price of a request, by the declaration."""

from dataclasses import asdict, replace

import pytest

from contract import PARAMETERS, Geometry, ModelCard
from contract.adapters import Adapter
from contract.cost import PRICED, CostModel
from contract.parameters import BY_NAME, Defaults
from contract.rules import Choice, Text

CARD = ModelCard("t2v-a14b", defaults=Defaults(width=64, height=64, num_frames=17, steps=20, guidance_scale_2=2.0))
REQUEST = CARD.request(prompt="a cat", seed=1, guidance_scale=3.0, cache_threshold=0.1, guidance_end=0.8)
OTHER = {
    "width": 128, "height": 128, "num_frames": 33, "steps": 10, "guidance_scale": 1.0, "guidance_scale_2": 1.0,
    "guidance_end": 0.9, "flow_shift": 9.0, "strength": 0.3, "cache_threshold": 0.3, "cache_start": 0.5, "cache_end": 0.5,
    "seed": 2, "lora": (Adapter("ink", 0.5),),
}  # fmt: skip
COST = CostModel(
    overhead=0.5, per_token=1e-4, per_token_squared=1e-8, per_pixel=1e-6, per_step=0.01, per_skipped_step=0.001,
    plans={"teacache": {20: {0.1: "10" * 10, 0.3: "1000" * 5}}, "magcache": {20: {0.1: "1" * 19 + "0"}}},
)  # fmt: skip


def changed(name):
    """REQUEST with another value of one parameter."""
    rule, value = BY_NAME[name].rule, getattr(REQUEST, name)
    if isinstance(rule, Choice):
        return replace(REQUEST, **{name: next(n for n in rule.names if n != value)})
    return replace(REQUEST, **{name: value + "!" if isinstance(rule, Text) else OTHER[name]})


@pytest.mark.parametrize("name", [p.name for p in PARAMETERS if p.fingerprint])
def test_another_value_is_another_run(name):
    assert changed(name).fingerprint("m") != REQUEST.fingerprint("m")


def test_another_model_is_another_run():
    assert REQUEST.fingerprint("m") == REQUEST.fingerprint("m") != REQUEST.fingerprint("n")


def test_another_picture_is_another_run():
    of = REQUEST.fingerprint
    assert len({of("m"), of("m", {"image": "a"}), of("m", {"image": "b"}), of("m", {"last_image": "a"})}) == 4
    assert of("m", {}) == of("m")


def test_another_strength_or_file_of_an_adapter_is_another_run():
    run, stronger = (replace(REQUEST, lora=(Adapter("ink", strength),)) for strength in (0.5, 0.6))
    marks = {run.fingerprint("m", None, {"ink": "a"}), run.fingerprint("m", None, {"ink": "b"})}
    assert len(marks | {stronger.fingerprint("m", None, {"ink": "a"}), REQUEST.fingerprint("m")}) == 4


def test_an_adapter_costs_by_its_rank():
    values = asdict(REQUEST)
    plain, some, more = (COST.predict(values, Geometry(), rank=rank) for rank in (0, 16, 64))
    assert plain < some < more < 1.2 * plain


def test_a_picture_costs_its_encoding_and_a_changed_clip_fewer_steps():
    values = asdict(REQUEST) | {"cache_threshold": 0.0}
    plain, pictured = COST.predict(values, Geometry()), COST.predict(values, Geometry(), ["image"])
    continued = COST.predict(values, Geometry(), ["video"], continues=True)
    changed_clip = COST.predict(values | {"strength": 0.5}, Geometry(), ["video"])
    assert plain < pictured == continued
    assert changed_clip < pictured
    assert COST.predict(values | {"strength": 0.5}, Geometry()) == plain


@pytest.mark.parametrize("name", [p.name for p in PARAMETERS if p.tensor])
def test_exactly_the_priced_parameters_change_the_price(name):
    before, after = (COST.predict(asdict(r), Geometry(), media=("video",)) for r in (REQUEST, changed(name)))
    assert (before != after) == (name in PRICED)


def test_the_price_follows_the_geometry():
    values = asdict(REQUEST)
    assert COST.predict(values, Geometry()) > COST.predict(values, Geometry(spatial_stride=16))


def test_each_expert_is_priced_by_its_own_guidance():
    """Of 20 steps 5 are the first expert's: its guidance costs a third of what the second's does."""
    cost = replace(COST, switches={20: 5, 40: 10})
    values = asdict(REQUEST) | {"cache_threshold": 0.0, "guidance_end": 1.0}
    full, first, second = (
        cost.predict(values | changed, Geometry())
        for changed in ({}, {"guidance_scale": 1.0}, {"guidance_scale_2": 1.0})
    )
    assert full - second == pytest.approx(3 * (full - first))
    assert cost.first_steps(80) == 20
    assert cost.predict(values | {"guidance_scale_2": None}, Geometry()) == pytest.approx(full)


def test_the_switches_survive_the_file(tmp_path):
    replace(COST, switches={20: 5}).write(tmp_path / "cost.json", {})
    assert CostModel.load(tmp_path / "cost.json").switches == {20: 5}


@pytest.mark.parametrize(
    ("sampler", "whole", "half"), [("unipc", 5, 0), ("euler", 8, 0), ("euler", 16, 12), ("dpm++", 16, 6)]
)
def test_steps_that_a_clip_leaves_out_are_those_of_the_first_expert(sampler, whole, half):
    """Half of 20 steps, or with Euler all of them from half the noise: what the first expert's guidance costs of them."""
    cost = replace(COST, switches={20: whole})
    values = asdict(REQUEST) | {"cache_threshold": 0.0, "guidance_end": 1.0, "strength": 0.5, "sampler": sampler}
    full, unguided = (
        cost.predict(values | changed, Geometry(), media=("video",)) for changed in ({}, {"guidance_scale": 1.0})
    )
    tokens = Geometry().tokens(64, 64, 17)
    assert full - unguided == pytest.approx(half * (cost.step(tokens, 2, True) - cost.step(tokens, 1, True)))
