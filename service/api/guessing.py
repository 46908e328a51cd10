"""Slows down those who guess API keys: a bucket of failed keys for each client address, in bounded memory."""

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable

from service.errors import RateLimited

MAX_ADDRESSES = 10_000  # the ones that were quiet longest are forgotten first


class Guessing:
    """Failures by address. An address that used them up is refused for a while, but for keys that were valid from it before."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic):
        self._rate, self._clock = per_minute, clock
        self._addresses: OrderedDict[str, tuple[float, float]] = OrderedDict()  # network -> (failures left, time)
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()  # (network, name of a key that was valid)

    def __len__(self) -> int:
        return max(len(self._addresses), len(self._known))

    def check(self, address: str, name: str | None) -> None:
        """RateLimited if this address failed too often; `name`: whose key it sent, None if it is nobody's."""
        network = _network(address)
        if (network, name) in self._known:
            return
        left, wait = self._left(network)
        if left < 1:
            raise RateLimited(f"too many wrong API keys from {network}; next try in {wait} s", "Authorization", wait)
        if name is not None:
            _keep(self._known, (network, name), None)

    def failed(self, address: str) -> None:
        network = _network(address)
        _keep(self._addresses, network, (self._left(network)[0] - 1, self._clock()))

    def _left(self, network: str) -> tuple[float, int]:
        """Failures that are left, and seconds until the next one is."""
        left, since = self._addresses.get(network, (float(self._rate), self._clock()))
        left = min(self._rate, left + (self._clock() - since) * self._rate / 60)
        return left, max(1, round((1 - left) * 60 / self._rate))


def _keep(entries: OrderedDict, key, value) -> None:
    entries[key] = value
    entries.move_to_end(key)
    if len(entries) > MAX_ADDRESSES:
        entries.popitem(last=False)


def _network(address: str) -> str:
    """One customer has a whole /64 of IPv6 addresses."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(parsed) if parsed.version == 4 else str(ipaddress.ip_network((parsed, 64), strict=False))
