"""The report of a capacity search: latency against offered load, and the answer in one sentence."""

from loadtest.plots import PALETTE, Chart, Layer
from loadtest.report import page, plots, table


def sentence(found: dict) -> str:
    """What was found, with its bounds."""
    low, high = found["between"]
    confidence = f"{found['confidence']:.0%} confidence"
    if low is None:
        return f"no capacity: the SLO already fails at {high:.4g} videos per minute ({confidence})"
    if high is None:
        return f"capacity is at least {low:.4g} videos per minute ({confidence}); --high was too low to see it break"
    return f"capacity {low:.4g} videos per minute ({confidence}); at {high:.4g} the SLO no longer holds for sure"


def capacity_page(found: dict) -> str:
    """The HTML of a capacity search."""
    rows = [
        (
            p["per_minute"],
            {True: "holds", False: "fails", None: "unsure"}[p["holds"]],
            p["probability"],
            p["requests"],
            p["throughput_per_minute"],
            p["wait"]["p95"],
            p["total"]["p50"],
            p["total"]["p95"],
            p["total"]["p99"],
            "yes" if p["growing"] else "",
        )
        for p in found["probes"]
    ]
    header = [
        "videos/min",
        "SLO",
        "P(holds)",
        "requests",
        "completed/min",
        "wait p95",
        "total p50",
        "total p95",
        "total p99",
        "queue grows",
    ]
    return page(
        f"Capacity: {found['profile']['name']}",
        sentence(found),
        ["<h2>Rates tried</h2>", table(header, rows), "<h2>Plots</h2>", plots(charts(found))],
    )


def charts(found: dict) -> list[Chart]:
    probes = found["probes"]

    def curve(part: str, name: str) -> list[tuple[float, float]]:
        return [(p["per_minute"], p[part][name]) for p in probes if p[part][name] is not None]

    limits = found["profile"]["slo"]["total"]
    limit = next(((value, f"SLO total {name}") for name, value in limits.items()), None)
    latency = [
        Layer(f"{part} {name}", curve(part, name), "line", PALETTE[k])
        for k, (part, name) in enumerate((("total", "p50"), ("total", "p95"), ("total", "p99"), ("wait", "p95")))
    ]
    done = [(p["per_minute"], p["throughput_per_minute"]) for p in probes]
    offered = [(p["per_minute"], p["per_minute"]) for p in probes]
    sure = [(p["per_minute"], p["probability"]) for p in probes]
    return [
        Chart("latency-against-rate", "Latency against offered load", "videos per minute", "seconds", latency, limit),
        Chart(
            "throughput-against-rate",
            "Completed against offered",
            "videos per minute offered",
            "videos per minute",
            [Layer("completed", done, "line", PALETTE[2]), Layer("offered", offered, "line", PALETTE[7])],
        ),
        Chart(
            "confidence",
            "How sure it is that the SLO holds",
            "videos per minute",
            "probability",
            [Layer("P(SLO holds)", sure, "dots")],
            (found["confidence"], "asked"),
        ),
    ]
