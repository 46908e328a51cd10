"""The report of a run: one HTML page with its verdict, its figures, and charts of the records and the metric series."""

import json
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from html import escape
from pathlib import Path

from loadtest.base.charts import PALETTE, Chart, Layer, Point
from loadtest.base.report import page, plots, table
from loadtest.base.stats import mean, percentile
from loadtest.traffic.record import STAGES, Record, Result
from loadtest.traffic.summary import totals, waits

SECONDS = (
    ("wait (intended arrival → start of work)", "wait"),
    ("total (intended arrival → video)", "total"),
    ("accept (intended arrival → job id)", "accept"),
    ("overhead (neither queue nor stage)", "overhead"),
)

POINT_LIMIT = 3000
BAR_LIMIT = 160
OUTCOME_COLOURS = {
    "completed": PALETTE[2],
    "failed": PALETTE[5],
    "error": PALETTE[5],
    "timeout": PALETTE[1],
    "rejected": PALETTE[3],
    "cancelled": PALETTE[7],
    "dropped": PALETTE[6],
}


def charts(result: Result) -> list[Chart]:
    """All charts of a run; those without data are left out by the report, with a note."""
    records = sorted(result.records, key=lambda record: record.intended)
    slo = result.profile.get("slo", {})
    return [
        over_time(records),
        against_load(records),
        percentiles(records, slo),
        stages(records),
        throughput(records, result.summary["elapsed_seconds"]),
        in_system(records),
        outcomes(records, result.summary["elapsed_seconds"]),
        device_seconds(records),
        *metric_charts(result.series),
    ]


def over_time(records: list[Record]) -> Chart:
    done = [r for r in records if r.ok]
    lost = [(r.intended, 0.0) for r in records if not r.ok]
    return Chart(
        "latency-over-time",
        "Latency by intended arrival",
        "intended arrival (s)",
        "seconds",
        [
            Layer("total", thin([(r.intended, r.total) for r in done]), "dots"),
            Layer("wait", thin([(r.intended, r.wait) for r in done if r.wait is not None]), "dots", PALETTE[1]),
            Layer("no video", thin(lost), "cross", PALETTE[5]),
        ],
    )


def against_load(records: list[Record]) -> Chart:
    """Latency against the number of requests already in the system when this one was due."""
    done = [r for r in records if r.ok]
    groups = grouped([(float(r.in_system), r.total) for r in done], 12)
    return Chart(
        "latency-against-load",
        "Latency against load",
        "requests in the system at arrival",
        "seconds",
        [
            Layer("total", thin([(r.in_system, r.total) for r in done]), "dots", PALETTE[4]),
            Layer("p50", [(x, percentile(ys, 50)) for x, ys in groups], "line", PALETTE[0]),
            Layer("p95", [(x, percentile(ys, 95)) for x, ys in groups], "line", PALETTE[5]),
        ],
    )


def percentiles(records: list[Record], slo: dict) -> Chart:
    """The whole distribution: seconds at each percentile; requests without a video are missing at the right end."""
    limits = [(value, f"SLO total {name}") for name, value in slo.get("total", {}).items()]
    layers = []
    for label, values, colour in (("total", totals(records), PALETTE[0]), ("wait", waits(records), PALETTE[1])):
        curve = [(q, percentile(values, q)) for q in (*range(1, 99), 98.5, 99, 99.5, 100) if values]
        layers.append(Layer(label, [(q, v) for q, v in curve if math.isfinite(v)], "line", colour))
    return Chart("percentiles", "Latency distribution", "percentile", "seconds", layers, limits[0] if limits else None)


def stages(records: list[Record]) -> Chart:
    """Seconds per stage and request, stacked; long runs show the mean of groups of neighbours."""
    known = [r for r in records if r.ok and r.stages]
    size = math.ceil(len(known) / BAR_LIMIT) or 1
    groups = [known[start : start + size] for start in range(0, len(known), size)]
    names = [stage for stage in STAGES if any(stage in r.stages for r in known)]
    layers = [
        Layer(
            stage,
            [(i * size, mean([r.stages.get(stage, 0.0) for r in g])) for i, g in enumerate(groups)],
            "bars",
            PALETTE[k],
        )
        for k, stage in enumerate(names)
    ]
    unit = "request" if size == 1 else f"request (mean of {size})"
    return Chart("stages", "Time in each stage", unit, "seconds", layers, stacked=True)


def throughput(records: list[Record], elapsed: float) -> Chart:
    width = bin_width(elapsed)
    offered = rates([r.intended for r in records], width, elapsed)
    done = rates([r.finished for r in records if r.ok and r.finished is not None], width, elapsed)
    return Chart(
        "throughput",
        f"Throughput (bins of {width:g} s)",
        "time (s)",
        "videos per minute",
        [Layer("offered", offered, "step", PALETTE[1]), Layer("completed", done, "step", PALETTE[2])],
    )


def in_system(records: list[Record]) -> Chart:
    changes = sorted(
        [(r.intended, 1) for r in records if r.sent is not None]
        + [(r.delivered or r.finished, -1) for r in records if r.ok and r.finished is not None]
    )
    level, points = 0, []
    for at, change in changes:
        level += change
        points.append((at, float(level)))
    return Chart(
        "in-system", "Requests in the system", "time (s)", "requests", [Layer("in system", thin(points), "step")]
    )


def outcomes(records: list[Record], elapsed: float) -> Chart:
    """How the requests of each moment ended; errors stand out by colour."""
    width = bin_width(elapsed)
    names = sorted({r.outcome for r in records}, key=lambda name: name != "completed")
    layers = []
    for name in names:
        counts = defaultdict(float, {(int(r.intended / width) + 0.5) * width: 0.0 for r in records})
        for r in records:
            if r.outcome == name:
                counts[(int(r.intended / width) + 0.5) * width] += 1
        layers.append(Layer(name, sorted(counts.items()), "bars", OUTCOME_COLOURS.get(name, PALETTE[7])))
    return Chart("outcomes", "Outcomes by intended arrival", "intended arrival (s)", "requests", layers, stacked=True)


def device_seconds(records: list[Record]) -> Chart:
    """Measured device seconds of each video, by shape, against the service's own prediction where it gives one."""
    done = [r for r in records if r.ok and r.compute_seconds is not None]
    shapes = sorted({r.shape for r in done})
    layers = [
        Layer(
            shape,
            thin([(float(r.index), r.compute_seconds or 0.0) for r in done if r.shape == shape]),
            "dots",
            PALETTE[k % len(PALETTE)],
        )
        for k, shape in enumerate(shapes)
    ]
    predicted = [(float(r.index), r.predicted_gpu_seconds) for r in done if r.predicted_gpu_seconds is not None]
    return Chart(
        "gpu-seconds",
        "GPU-seconds per video (device seconds of the model's stages)",
        "request",
        "seconds",
        [*layers, Layer("predicted", thin(predicted), "cross", PALETTE[7])],
    )


def metric_charts(series: dict[str, list[list[float]]]) -> list[Chart]:
    """One chart per metric family: gauges as they are, counters per second, histograms as mean over each step."""
    families: dict[str, dict[str, list[list[float]]]] = defaultdict(dict)
    for key, points in series.items():
        name, _, labels = key.partition("{")
        if name.endswith("_count") and name[:-6] + "_sum" in {k.partition("{")[0] for k in series}:
            continue  # it is the denominator of its histogram's mean
        families[name][labels.rstrip("}")] = points
    found = []
    for name, members in sorted(families.items()):
        layers = []
        for k, (labels, points) in enumerate(sorted(members.items())[: len(PALETTE)]):
            shown = re.sub(r',?instance="[^"]*"|,?job="[^"]*"', "", labels).strip(",") or name
            layers.append(Layer(shown, thin(_readable(name, labels, points, series)), "line", PALETTE[k]))
        found.append(Chart(f"metric-{name}", _metric_title(name), "time (s)", "", layers))
    return found


def _metric_title(name: str) -> str:
    if name.endswith("_sum"):
        return f"{name[:-4]} (mean of each step)"
    return f"{name} (per second)" if is_counter(name) else name


def is_counter(name: str) -> bool:
    return name.endswith(("_total", "_count", "_success", "_failure")) and not name.endswith("pending_request_count")


def _readable(name: str, labels: str, points: list[list[float]], series: dict) -> list[Point]:
    if name.endswith("_sum"):
        key = name[:-4] + "_count" + (f"{{{labels}}}" if labels else "")
        counts = dict((t, v) for t, v in series.get(key, []))
        steps = zip(points, points[1:], strict=False)
        return [
            (b[0], (b[1] - a[1]) / (counts[b[0]] - counts[a[0]]))
            for a, b in steps
            if b[0] in counts and a[0] in counts and counts[b[0]] > counts[a[0]]
        ]
    if is_counter(name):
        return [
            (b[0], max(0.0, b[1] - a[1]) / (b[0] - a[0]))
            for a, b in zip(points, points[1:], strict=False)
            if b[0] > a[0]
        ]
    return [(t, v) for t, v in points]


def thin(points: Sequence[Point]) -> list[Point]:
    """At most POINT_LIMIT points, evenly chosen, so that the report of a long run still opens."""
    step = max(1, math.ceil(len(points) / POINT_LIMIT))
    return list(points[::step])


def bin_width(elapsed: float) -> float:
    return next((width for width in (1, 2, 5, 10, 30, 60, 120, 300, 600) if elapsed / width <= 60), 1800)


def rates(times: list[float], width: float, elapsed: float) -> list[Point]:
    """Events per minute in bins of `width` seconds; empty bins are zero."""
    counts = [0] * (int(elapsed / width) + 1)
    for at in times:
        counts[min(len(counts) - 1, int(at / width))] += 1
    return [(index * width, count * 60 / width) for index, count in enumerate(counts)] if times else []


def grouped(points: list[Point], groups: int) -> list[tuple[float, list[float]]]:
    """Sort by x and cut into groups of equal size: [(mean x, [y, …]), …]."""
    ordered = sorted(points)
    size = max(1, math.ceil(len(ordered) / groups))
    parts = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    merged = {mean([x for x, _ in part]): [y for _, y in part] for part in parts}
    return sorted(merged.items())


def verdict_lines(verdict: dict) -> str:
    """The SLO section."""
    if not verdict["checks"]:
        return '<h2>SLO</h2><p class="soft">The profile sets no thresholds.</p>'
    word = '<b class="ok">met</b>' if verdict["ok"] else '<b class="bad">not met</b>'
    rows = [
        (
            check["name"],
            check["limit"],
            check["measured"] if check["measured"] is not None else "no video",
            "ok" if check["ok"] else "FAILED",
        )
        for check in verdict["checks"]
    ]
    return f"<h2>SLO: {word}</h2>{table(['threshold', 'limit', 'measured', ''], rows)}"


def run_report(result: Result) -> str:
    """The report of one run."""
    figures, profile, machine = result.summary, result.profile, result.environment
    subtitle = (
        f"{result.window['started_at']} · {profile['target']['kind']} at {profile['target']['url']} · "
        f"load {profile['load']['kind']} · seed {profile['seed']} · "
        f"sent from {machine['cpu'] or machine['machine']}, {machine['cores']} cores"
    )
    sections = [
        verdict_lines(result.verdict),
        *_figures(figures),
        "<h2>Plots</h2>",
        plots(charts(result)),
        _errors(figures["errors"]),
        f"<h2>Profile</h2><pre>{escape(json.dumps(profile, indent=1))}</pre>",
    ]
    return page(f"Load test: {result.name}", subtitle, sections)


def _figures(figures: dict) -> list[str]:
    """The tables: facts of the whole run, seconds by percentile, and the shapes of the mix."""
    facts = [
        ("requests", figures["requests"]),
        ("elapsed (s)", figures["elapsed_seconds"]),
        ("offered (videos/min)", figures["offered_per_minute"]),
        ("completed (videos/min)", figures["throughput_per_minute"]),
        ("error rate", figures["error_rate"]),
        ("device seconds per video", figures["device_seconds_per_video"]),
        ("sender lag p99 (s)", figures["sender_lag"]["p99"]),
        *((f"outcome: {name}", count) for name, count in figures["outcomes"].items()),
    ]
    if expected := figures.get("expected_wait"):
        facts.append((f"M/G/1 mean wait at utilisation {expected['utilisation']:.2f} (s)", expected["mean_wait"]))
    columns = ("mean", "p50", "p90", "p95", "p99", "max")
    rows = [(about, *(figures[key][column] for column in columns)) for about, key in SECONDS]
    shapes = [
        (name, s["requests"], s["completed"], s["wait"]["p95"], s["total"]["p50"], s["total"]["p95"],
         s["device_seconds_per_video"])
        for name, s in figures["by_shape"].items()
    ]  # fmt: skip
    header = ["shape", "sent", "completed", "wait p95", "total p50", "total p95", "device s"]
    return ["<h2>Figures</h2>", table(["", "value"], facts), "<h2>Seconds</h2>", table(["", *columns], rows),
            "<h2>By shape</h2>", table(header, shapes)]  # fmt: skip


def _errors(errors: dict[str, int]) -> str:
    return f"<h2>Errors</h2>{table(['message', 'requests'], errors.items())}" if errors else ""


def write_run(result: Result, folder: Path) -> None:
    """result.json, records.csv and report.html."""
    result.save(folder)
    (folder / "report.html").write_text(run_report(result), encoding="utf-8")
