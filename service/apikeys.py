"""`python -m service.apikeys NAME`: makes an API key and prints it once, with the entry for `WAN_API_KEYS_FILE`."""

import hashlib
import json
import secrets
import sys


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m service.apikeys NAME", file=sys.stderr)
        return 2
    key = f"wan_{secrets.token_urlsafe(32)}"
    entry = {"name": arguments[0], "sha256": hashlib.sha256(key.encode()).hexdigest()}
    print(f"key (shown only now): {key}\nentry for the keys file: {json.dumps(entry)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
