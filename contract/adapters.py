"""Adapters (LoRAs) that a request names, each with a strength; what they are is said in the index of `contract.adapter_store`."""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from contract.errors import InvalidRequest

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
STRONGEST = 4.0
MOST = 8
WORDS = (
    f'a list of at most {MOST} {{"name": "…", "strength": -{STRONGEST:g} to {STRONGEST:g}}}, each name once, or NAME:STRENGTH,NAME '
    "as text; names of registered adapters, no paths or addresses"
)
STRENGTHS = ("strength", "scale")  # the second is vLLM-Omni's word


@dataclass(frozen=True)
class Adapter:
    name: str
    strength: float = 1.0


def parse(given: Any, field: str = "lora") -> tuple[Adapter, ...]:
    """The adapters of a list of objects or names, of one of these, or of text: JSON or `NAME:STRENGTH,NAME`.

    Raises InvalidRequest.
    """
    try:
        adapters = tuple(map(_one, _entries(given)))
    except (ValueError, TypeError, RecursionError):
        raise InvalidRequest(field, given, WORDS) from None
    names = [adapter.name for adapter in adapters]
    if len(names) > MOST or len(set(names)) < len(names):
        raise InvalidRequest(field, given, WORDS)
    return adapters


def _entries(given: Any) -> Iterable[Any]:
    if given is None:
        return ()
    if isinstance(given, str):
        text = given.strip()
        return _entries(json.loads(text)) if text[:1] in ("[", "{") else [part for part in text.split(",") if part]
    return given if isinstance(given, list | tuple) else [given]


def _one(entry: Any) -> Adapter:
    """Raises ValueError."""
    if isinstance(entry, Adapter):
        entry = {"name": entry.name, "strength": entry.strength}
    if isinstance(entry, str):
        called, separator, number = entry.strip().partition(":")
        entry = {"name": called} | ({"strength": float(number)} if separator else {})
    if not isinstance(entry, dict) or set(entry) - {"name", *STRENGTHS} or set(STRENGTHS) <= set(entry):
        raise ValueError
    name, strength = entry.get("name"), next((entry[word] for word in STRENGTHS if word in entry), 1.0)
    if isinstance(strength, bool) or not math.isfinite(strength) or abs(strength) > STRONGEST:
        raise ValueError
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError
    return Adapter(name, float(strength))
