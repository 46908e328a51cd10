"""Errors that everybody shares.

WanError
├── InvalidRequest(field, value, allowed)   the caller must change a parameter
└── InvalidCard                             the operator must fix a wan.json
"""


class WanError(Exception):
    """Root of every error that the model and its contract raise on purpose."""


class InvalidRequest(WanError):
    """A request parameter is outside its bounds; names the field, its value and what is allowed."""

    def __init__(self, field: str, value, allowed: str):
        self.field, self.value, self.allowed = field, value, allowed
        shown = repr(value)
        if len(shown) > 80:
            shown = f"{shown[:60]}… ({len(shown)} characters)"
        super().__init__(f"{field} is {shown}; allowed: {allowed}")


class InvalidCard(WanError):
    """The description of a checkpoint (`wan.json`, `card.json`) has an unknown key or a value out of bounds."""
