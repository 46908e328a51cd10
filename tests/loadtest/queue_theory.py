"""What queueing theory says exactly, for the tests of the harness."""

from collections.abc import Sequence

from loadtest.base.stats import mg1_wait


def md1_wait(utilisation: float, service: float) -> float:
    """Mean wait in the M/D/1 queue (Pollaczek-Khinchine with no variance): rho S / (2 (1 - rho))."""
    return mg1_wait(utilisation, service, 0.0)


def lindley(arrivals: Sequence[float], services: Sequence[float]) -> list[float]:
    """The exact wait of each arrival at one first-come-first-served server (Lindley 1952)."""
    free, waits = 0.0, []
    for at, service in zip(arrivals, services, strict=True):
        start = max(at, free)
        waits.append(start - at)
        free = start + service
    return waits
