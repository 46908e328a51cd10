"""Pictures and clips of a card."""

import json

import pytest

from contract import ModelCard
from contract.errors import InvalidCard


def test_a_card_says_which_media_a_request_may_and_must_carry():
    card = ModelCard.from_dict({"takes": ["image", "last_image"], "needs": ["image"]}, "card")
    assert (card.takes, card.needs) == (("image", "last_image"), ("image",))
    assert ModelCard.from_dict(json.loads(json.dumps(card.to_dict())), "card") == card
    assert ModelCard().takes == ()
    with pytest.raises(InvalidCard, match="takes is \\['sound'\\]; allowed: a list of image, last_image, video"):
        ModelCard.from_dict({"takes": ["sound"]}, "card")
