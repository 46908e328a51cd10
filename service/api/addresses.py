"""Addresses that callers name: which of them this service may call at all.

The address is resolved once and the connection goes to exactly that address, so that a name cannot change between the check
and the call. Redirects are not followed.
"""

import asyncio
import ipaddress
import re
import socket

import httpx

from service.errors import InvalidRequest

LOOKUP_SECONDS = 10.0
LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # a name that ends so is read as an IPv4 address: 127.1, 0x7f.1
PRIVATE_DOMAINS = ("localhost", "local", "internal")


class RefusedAddress(Exception):
    """The host is not on the public internet."""


def check_url(url: str, allow_private: bool, field: str = "webhook_url", ports: tuple[int, ...] = ()) -> None:
    """Refuse at submission what could never be called; without `ports` every port will do."""
    try:
        parsed = httpx.URL(url)
        host = parsed.raw_host.decode().rstrip(".").lower()
        complete = parsed.scheme in ("http", "https") and bool(parsed.host) and not parsed.userinfo
        port = {"http": 80, "https": 443}.get(parsed.scheme, 0) if parsed.port is None else parsed.port
        callable_ = complete and 0 < port < 65536 and _callable(host, allow_private)
    except (httpx.InvalidURL, ValueError):  # a malformed international name is a ValueError
        callable_ = False
    if callable_ and ports and port not in ports:
        raise InvalidRequest(field, url, f"one of the ports {', '.join(map(str, ports))}")
    if not callable_:
        raise InvalidRequest(field, url, "http(s)://HOST/PATH on the public internet, without user name")


def _callable(host: str, allow_private: bool) -> bool:
    try:
        literal = ipaddress.ip_address(host)
    except ValueError:
        labels = host.split(".")
        if len(host) > 253 or not all(LABEL.fullmatch(label) for label in labels) or NUMBER.fullmatch(labels[-1]):
            return False
        # the addresses of a name are checked when it is called
        return allow_private or (len(labels) > 1 and labels[-1] not in PRIVATE_DOMAINS)
    return allow_private or public(literal)


# IPv6 networks whose addresses stand for an IPv4 address, and where in them its 32 bits are.
CARRY_IPV4 = [
    (ipaddress.IPv6Network(network), shift)
    for network, shift in (
        ("::ffff:0:0/96", 0),  # mapped, RFC 4291
        ("::/96", 0),  # compatible, RFC 4291
        ("::ffff:0:0:0/96", 0),  # translated, RFC 2765
        ("64:ff9b::/96", 0),  # NAT64, RFC 6052
        ("2002::/16", 80),  # 6to4, RFC 3056
    )
]
# Private, or leading to a machine that only the own network knows; `is_global` is true for some of them.
NOT_PUBLIC = [
    ipaddress.ip_network(network)
    for network in (
        "64:ff9b:1::/48",  # local NAT64, RFC 8215: where the IPv4 address is, the operator decides
        "2001::/32",  # Teredo, RFC 4380
        "fec0::/10",  # site-local, RFC 3879
        "fc00::/7",  # unique local, RFC 4193
        "5f00::/16",  # segment routing, RFC 9602
        "3fff::/20",  # documentation, RFC 9637
        "2001:db8::/32",  # documentation, RFC 3849
        "2001:10::/28",  # ORCHID, RFC 4843
        "2001:20::/28",  # ORCHIDv2, RFC 7343
        "100::/63",  # discarded and dummy, RFC 6666 and 9780
        "192.88.99.0/24",  # 6to4 relays, RFC 7526
        "192.0.0.0/24",  # protocol assignments, RFC 6890
        "2001:2::/48",  # benchmarks, RFC 5180
    )
]
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # all that IANA has given out


def public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an address is on the public internet; IPv4 inside IPv6 counts as IPv4."""
    if address.version == 6:
        for network, shift in CARRY_IPV4:
            if address in network:
                return public(ipaddress.IPv4Address(int(address) >> shift & 0xFFFFFFFF))
        if address not in GLOBAL_UNICAST:
            return False
    listed = any(address.version == network.version and address in network for network in NOT_PUBLIC)
    return address.is_global and not address.is_multicast and not listed


async def resolve(host: str, port: int, allow_private: bool) -> str:
    """One address of the host; RefusedAddress if any of them is private."""
    loop = asyncio.get_running_loop()
    found = await asyncio.wait_for(loop.getaddrinfo(host, port, type=socket.SOCK_STREAM), LOOKUP_SECONDS)
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    if not allow_private and not all(public(address) for address in addresses):
        raise RefusedAddress(f"{host} has an address that is not public")
    return str(addresses[0])


async def request(client: httpx.AsyncClient, method: str, address: str, allow_private: bool, **more) -> httpx.Request:
    """A request of `client` to the one address of the URL's host; RefusedAddress if that is private."""
    url = httpx.URL(address)
    port = url.port or {"http": 80, "https": 443}[url.scheme]
    resolved = await resolve(url.host, port, allow_private)
    headers = {"Host": url.netloc.decode(), **more.pop("headers", {})}
    extensions = {"sni_hostname": url.host}
    return client.build_request(method, url.copy_with(host=resolved), headers=headers, extensions=extensions, **more)
