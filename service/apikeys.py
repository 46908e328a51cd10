"""`python -m service.apikeys NAME`: makes an API key and prints it once, with the entry for `WAN_API_KEYS_FILE`.

With `--store` the digest goes into the database (`WAN_DATABASE_URL`) instead, as over `POST /v1/admin/keys`; so does the first
admin's key come there.
"""

import argparse
import json
import sys

from pydantic import ValidationError

from service.api.auth import NamedKey
from service.errors import ServiceError
from service.settings import load_settings
from service.store import JobStore, keys


def parse(arguments: list[str]) -> tuple[NamedKey, bool]:
    """The key that is wanted, and whether it goes into the database."""
    parser = argparse.ArgumentParser(prog="python -m service.apikeys", description="Makes an API key.")
    parser.add_argument("name", help="the owner of its jobs")
    parser.add_argument("--store", action="store_true", help="keep the digest in the database of the service")
    parser.add_argument("--admin", action="store_true", help="may make and revoke keys")
    parser.add_argument("--gpu-seconds-per-day", type=float, help="budget of a day, UTC")
    given = vars(parser.parse_args(arguments))
    store = given.pop("store")
    try:
        return NamedKey(**given), store
    except ValidationError as error:
        first = error.errors()[0]
        parser.error(f"{first['loc'][0]} is {first['input']!r}: {first['msg']}")


def main(arguments: list[str]) -> int:
    wanted, store = parse(arguments)
    key = keys.generate()
    if store:
        try:
            _keep(key, wanted)
        except ServiceError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        print(f"key (shown only now): {key}")
        return 0
    entry = {"name": wanted.name, "sha256": keys.digest(key)} | wanted.model_dump(
        exclude={"name"}, exclude_defaults=True
    )
    print(f"key (shown only now): {key}\nentry for the keys file: {json.dumps(entry)}")
    return 0


def _keep(key: str, wanted: NamedKey) -> None:
    store = JobStore.from_settings(load_settings(), connections=1)
    limits = wanted.model_dump(exclude={"name"}, exclude_defaults=True)
    store.create_key(key, wanted.name, limits, "command line")
    store.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
