"""Tables of the benchmark, in Markdown."""

from loadtest.base.report import markdown
from loadtest.bench.compare import Result

UNKNOWN = "not measured"


def _shown(value: float | None, text: str) -> str:
    return UNKNOWN if value is None else text.format(value)


def comparison_table(results: list[Result]) -> str:
    """Ours beside diffusers: seconds, ratio, difference of the results, rate, share of the machine's peak, memory."""
    header = ("part", "ours s", "diffusers s", "ratio", "of CPU time", "difference", "GFLOP/s", "of peak",
              "peak memory, ours / diffusers MB")  # fmt: skip
    rows = []
    for r in results:
        megabytes = " / ".join(_shown(b and b / 1e6, "{:.0f}") for b in (r.ours_bytes, r.theirs_bytes))
        cells = (
            r.name,
            f"{r.ours_seconds:.3f}",
            _shown(r.theirs_seconds, "{:.3f}"),
            _shown(r.ratio, "{:.2f}"),
            _shown(r.cpu_ratio, "{:.2f}"),
            _shown(r.error, "{:.0e}"),
            _shown(r.flops_per_second and r.flops_per_second / 1e9, "{:.0f}"),
            _shown(r.share_of_peak and 100 * r.share_of_peak, "{:.0f} %"),
            megabytes,
        )
        rows.append(cells)
    return markdown(rows, header)


def ablation_table(rows: list[dict]) -> str:
    """One option more in each row."""
    cells = [
        (row["option"], "yes" if row["lossless"] else "lossy", f"{row['seconds']:.3f}", f"{row['speed_up']:.2f}x")
        for row in rows
    ]
    return markdown(cells, ("option added", "lossless", "seconds", "faster than plain"))
