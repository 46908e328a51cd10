"""The refusal to load machines that nobody meant."""

import ipaddress
import socket
from urllib.parse import urlsplit

from loadtest.base.inputs import TargetRefused, TargetUnavailable


def refuse_remote(url: str, allow_remote: bool) -> None:
    """Raise unless every address of the URL's host is loopback, or remote targets were allowed explicitly."""
    host = urlsplit(url).hostname
    if not host:
        raise TargetRefused(f"{url!r} names no host")
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except socket.gaierror as error:
        raise TargetUnavailable(f"{url}: host {host!r} is unknown: {error.strerror}") from error
    remote = sorted(address for address in found if not ipaddress.ip_address(address.partition("%")[0]).is_loopback)
    if remote and not allow_remote:
        raise TargetRefused(
            f"{url}: {host!r} is {', '.join(remote)}, not this machine. A load test can take a service "
            "down; give --allow-remote if you may do that to this one."
        )
