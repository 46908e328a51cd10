"""The harness against queueing theory, at any length: `python -m tests.loadtest.md1 --requests 4000`.

Four means of the wait at one server with a constant service time S and Poisson arrivals at utilisation rho (M/D/1):

- theory: rho S / (2 (1 - rho))
- on paper: the very same arrivals put through an exact queue (Lindley's recursion); differs from theory by sampling only
- open loop: what the harness measures at a server with that service time; differs from paper by the harness's error only
- closed loop: one user who asks as often, but never before the last answer: such a user cannot see the queue at all
"""

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from loadtest.base.stats import block_bootstrap, interval, mean, percentile
from loadtest.traffic.profile import Profile, schedule
from loadtest.traffic.record import Record, Result
from loadtest.traffic.session import run_profile
from tests.loadtest.queue_theory import lindley, md1_wait

STANDIN = Path(__file__).with_name("standin.py")
TOLERANCE = 0.05


@dataclass(frozen=True)
class Comparison:
    """Mean waits in seconds. `sent_on_paper` is the exact wait of the requests at the moments they were really sent."""

    theory: float
    on_paper: float
    measured: float
    sent_on_paper: float
    sender_lag: float

    @property
    def against_theory(self) -> float:
        return self.measured / self.theory - 1

    @property
    def against_paper(self) -> float:
        return self.measured / self.on_paper - 1

    @property
    def recording_error(self) -> float:
        """What is left once the machine's own lateness in sending is taken out."""
        return self.measured / (self.sent_on_paper + self.sender_lag) - 1


def open_loop(url: str, service: float, utilisation: float, requests: int, seed: int) -> Profile:
    """Poisson arrivals at `utilisation` of one server that takes `service` seconds."""
    return Profile(
        name="md1",
        seed=seed,
        workers=1,
        target={"url": url},
        load={"kind": "poisson", "per_minute": utilisation / service * 60},
        limits={"requests": requests, "seconds": 86_400, "warmup_requests": 5},
    )


def closed_loop(url: str, service: float, utilisation: float, requests: int) -> Profile:
    """One user with the same throughput, who thinks until the next request is due."""
    think = service / utilisation - service
    load = {"kind": "closed", "users": 1, "think_seconds": think}
    limits = {"requests": requests, "seconds": 86_400, "warmup_requests": 5}
    return Profile(name="md1-closed", target={"url": url}, load=load, limits=limits)


def typical_seed(service: float, utilisation: float, requests: int) -> int:
    """The first seed whose arrivals wait on paper, within 0.5 %, as long as the formula says.

    The mean of a finite queue scatters (500 waits at 0.8: by a third), so a comparison with theory needs arrivals that
    are known to be typical; they are chosen before anything is measured.
    """
    theory = md1_wait(utilisation, service)
    for seed in range(10_000):
        arrivals = [order.at for order in schedule(open_loop("http://localhost", service, utilisation, requests, seed))]
        if abs(mean(lindley(arrivals, [service] * requests)) / theory - 1) < 0.005:
            return seed
    raise ValueError(f"no typical arrivals of {requests} requests at utilisation {utilisation:g}")


def compare(result: Result, utilisation: float) -> Comparison:
    """Measured waits against those of the same arrivals on paper, with the service times that the server reports."""
    records = sorted(result.records, key=lambda record: record.intended)
    services = [served(record) for record in records]
    lags = [record.sent - record.intended for record in records]
    return Comparison(
        theory=md1_wait(utilisation, mean(services)),
        on_paper=mean(lindley([record.intended for record in records], services)),
        measured=mean([record.wait for record in records]),
        sent_on_paper=mean(lindley([record.sent for record in records], services)),
        sender_lag=mean(lags),
    )


def served(record: Record) -> float:
    """Seconds that the server worked on one request."""
    return sum(seconds for stage, seconds in record.stages.items() if stage != "queue")


def report(found: Comparison, opened: Result, closed: Result) -> list[str]:
    """The table and the sentence under it."""
    waits, blind = ([record.wait for record in result.records] for result in (opened, closed))
    low, high = interval(block_bootstrap(waits, lambda x: float(x.mean())))
    rates = [result.summary["throughput_per_minute"] for result in (opened, closed)]
    return [
        "| wait (ms) | mean | p95 | videos/min |",
        "|---|---|---|---|",
        f"| theory, rho S / (2 (1 - rho)) | {found.theory * 1e3:.2f} | | |",
        f"| the same arrivals on paper | {found.on_paper * 1e3:.2f} | | |",
        f"| measured, open loop | {mean(waits) * 1e3:.2f} | {percentile(waits, 95) * 1e3:.1f} | {rates[0]:.0f} |",
        f"| measured, closed loop, one user | {mean(blind) * 1e3:.2f} | {percentile(blind, 95) * 1e3:.1f} | {rates[1]:.0f} |",
        "",
        f"open loop against theory {found.against_theory:+.1%}, against paper {found.against_paper:+.1%} "
        f"(of which the sender's own lateness {found.sender_lag / found.on_paper:+.1%}); "
        f"sampling alone: {low * 1e3:.1f} to {high * 1e3:.1f} ms at 95 %",
    ]


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1 if the measured wait is more than 5 % from theory or from paper."""
    parser = argparse.ArgumentParser(prog="python -m tests.loadtest.md1", description=__doc__.split(": `")[0] + ".")
    parser.add_argument("--requests", type=int, default=4000, help="open-loop requests (default: 4000)")
    parser.add_argument("--service", type=float, default=0.05, help="seconds per request (default: 0.05)")
    parser.add_argument("--utilisation", type=float, default=0.8, help="below 1 (default: 0.8)")
    given = parser.parse_args(arguments)
    command = [sys.executable, str(STANDIN), "--service", str(given.service)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        load = (given.service, given.utilisation, given.requests)
        opened = run_profile(open_loop(url, *load, typical_seed(*load)))
        closed = run_profile(closed_loop(url, given.service, given.utilisation, max(1, given.requests // 20)))
        server.stdin.close()
    found = compare(opened, given.utilisation)
    print("\n".join(report(found, opened, closed)))
    return 0 if max(abs(found.against_theory), abs(found.against_paper)) <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
