"""What the shapes share: foreign fields that ask for nothing, names of fields in errors, submitting."""

import contextlib
from collections.abc import Iterator, Mapping

from service.api import requests
from service.api.auth import Caller
from service.api.gateway import Gateway
from service.api.requests import RequestBody
from service.errors import InvalidRequest
from service.store import Job

ANY = ("anything",)  # of a field that has no effect here, whatever it says
NOTHING = (None, "", "none", "null", "false", "0", "[]", "{}")


def without(values: dict, foreign: Mapping[str, tuple[str, ...]]) -> dict:
    """`values` less the `foreign` fields that ask for nothing; InvalidRequest names one that asks for something.

    `foreign`: field -> the values that ask for nothing beside an empty one, or ANY.
    """
    for name in sorted(foreign.keys() & values.keys()):
        value, harmless = values[name], foreign[name]
        said = value if value is None else str(value).lower()
        if harmless is not ANY and said not in NOTHING and said not in harmless:
            also = "".join(f" or {word!r}" for word in harmless)
            raise InvalidRequest(name, value, f"nothing{also}: this server cannot do that")
    return {name: value for name, value in values.items() if name not in foreign}


def renamed(values: dict, names: Mapping[str, str]) -> dict:
    """`values` under the names of `/v1/videos`; fields that say nothing are left out."""
    return {names.get(name, name): value for name, value in values.items() if value not in (None, "")}


@contextlib.contextmanager
def said_as(names: Mapping[str, str]) -> Iterator[None]:
    """Errors name a field as its caller does; `names`: theirs -> ours, as for `renamed`."""
    theirs = {ours: name for name, ours in names.items()}
    try:
        yield
    except InvalidRequest as error:
        if error.param not in theirs:
            raise
        raise InvalidRequest(theirs[error.param], error.value, error.allowed) from None


async def submit(
    gateway: Gateway, caller: Caller, values: dict, names: Mapping[str, str], about: dict | None = None
) -> tuple[Job, RequestBody]:
    """A job from fields under the caller's names; `about` is kept with it."""
    with said_as(names):
        wanted = requests.parse(renamed(values, names))
        job, _ = await gateway.submit(wanted, caller, None, about)
    return job, wanted
