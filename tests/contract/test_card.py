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
        structure = Structure(dim, layers, *parts)
        found = recognise(structure)
        assert row.fits(structure)
        # rows of one structure differ in what they were trained for: the first is taken, wan.json may name another
        assert found == row or VARIANTS.index(found) < VARIANTS.index(row)
        assert found == row or row.distilled_steps is not None or found.sizes


@pytest.mark.parametrize(
    ("variant", "given", "message"),
    [
        ("t2v-14b", (), None),
        ("t2v-14b", ("video",), None),
        ("t2v-14b", ("image",), "image is 'given'; allowed: with this model: video"),
        ("t2v-a14b", ("video",), None),
        ("i2v-14b-480p", ("image",), None),
        ("i2v-14b-480p", (), "image is None; allowed: a file; this model needs image, or a video to go on from"),
        ("i2v-14b-480p", ("video",), None),
        ("i2v-14b-480p", ("image", "video"), "image is 'given beside video'"),
        ("i2v", ("image", "last_image"), None),
        ("i2v-a14b", ("image",), None),
        ("ti2v-5b", ("last_image",), "last_image is 'given'; allowed: with this model: image, video"),
        ("flf2v-14b-720p", ("image", "last_image"), None),
        ("flf2v-14b-720p", ("image",), "last_image is None; allowed: a file; this model needs image and last_image"),
        ("fun-inp-1.3b", (), None),
    ],
)
def test_media_that_a_model_does_not_take_or_lacks_are_refused_by_name(variant, given, message):
    card = ModelCard.from_dict({"variant": variant}, "here")
    if message is None:
        card.check_media(given)
    else:
        with pytest.raises(InvalidRequest, match=message):
            card.check_media(given)
    assert recognise(Structure(192, 2, parts=frozenset({"motion_encoder"}))) is None
