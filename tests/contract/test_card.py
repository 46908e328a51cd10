import json

import pytest

from contract import PARAMETERS, Geometry, ModelCard
from contract.errors import InvalidCard, InvalidRequest
from contract.variants import BY_NAME, VARIANTS, Structure, recognise

WAN22 = {"latent_channels": 48, "spatial_stride": 16}


def test_a_card_survives_its_file(tmp_path):
    card = ModelCard.from_dict({"variant": "t2v-1.3b", "geometry": WAN22, "defaults": {"steps": 7}}, "here")
    (tmp_path / "card.json").write_text(json.dumps(card.to_dict()))
    assert ModelCard.load(tmp_path / "card.json") == card


def test_defaults_fill_in_the_row_of_the_variant():
    card = ModelCard.from_dict({"variant": "t2v-1.3b", "defaults": {"steps": 7}}, "here")
    assert (card.defaults.steps, card.defaults.flow_shift) == (7, 8.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fps": 16}, r"here: unknown keys \['fps'\]; known: "),
        ({"variant": "t2v-9b"}, "here: variant is 't2v-9b'; allowed: t2v-1.3b, "),
        ({"defaults": {"step": 1}}, r"here: defaults: unknown keys \['step'\]"),
        ({"defaults": {"steps": 0}}, "here: defaults: steps is 0; allowed: 1 to 1000"),
        ({"geometry": {"patch": 0}}, "here: geometry: patch is 0; allowed: an integer of at least 1"),
        ({"geometry": {"stride": 8}}, r"here: geometry: unknown keys \['stride'\]"),
        ([], "here holds list"),
    ],
)
def test_a_bad_card_is_refused_with_what_is_allowed(values, message):
    with pytest.raises(InvalidCard, match=message):
        ModelCard.from_dict(values, "here")


def test_bounds_and_words_follow_the_geometry():
    wide = ModelCard(geometry=Geometry(temporal_stride=8, spatial_stride=16))
    limits = wide.limits()
    assert (limits["width"]["multipleOf"], limits["width"]["minimum"]) == (32, 32)
    assert limits["num_frames"]["allowed"] == "8n + 1, 1 to 257"
    with pytest.raises(InvalidRequest, match="height is 48; allowed: a multiple of 32, 32 to 2048"):
        wide.request(prompt="x", height=48)
    assert set(limits) == {p.name for p in PARAMETERS} - BY_NAME["t2v"].unused
    assert set(ModelCard("t2v-a14b").limits()) == {p.name for p in PARAMETERS}


def test_every_row_is_found_by_its_own_structure():
    for row in VARIANTS:
        dim, layers = (row.sizes.dim, row.sizes.num_layers) if row.sizes else (192, 2)
        parts = (row.latent_channels, row.condition_channels, row.parts, row.experts)
        found = Structure(dim, layers, *parts)
        assert row.fits(found)
        if row.distilled_steps is None:  # nothing tells distilled weights from those they come from
            assert recognise(found) == row
    assert recognise(Structure(192, 2, parts=frozenset({"motion_encoder"}))) is None
