"""Pictures of a comparison; matplotlib is imported only when one is drawn."""

import math
from pathlib import Path


def _axes(rows: int = 1):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt.subplots(rows, 1, figsize=(9, 3.2 * rows), sharex=rows > 1, layout="constrained")


def timelines(samples: dict[str, list], path: Path) -> None:
    """Queue and replicas over time, one line a rule."""
    figure, (queue, replicas) = _axes(2)
    for name, rows in samples.items():
        step = max(1, len(rows) // 2000)
        hours = [row[0] / 3600 for row in rows[::step]]
        queue.plot(hours, [row[1] for row in rows[::step]], label=name, linewidth=1)
        replicas.plot(hours, [row[3] for row in rows[::step]], label=name, linewidth=1)
    queue.set_ylabel("jobs waiting")
    replicas.set(ylabel="replicas", xlabel="hours")
    queue.legend()
    figure.savefig(path, dpi=120)


def frontier(curves: dict[str, list[dict]], path: Path) -> None:
    """GPU-hours per video against the 95th percentile of the wait, one line a rule."""
    figure, axes = _axes()
    for name, points in curves.items():
        axes.plot([p["wait_p95"] for p in points], [p["gpu_hours_per_video"] for p in points], marker="o", label=name)
        for point in points:
            axes.annotate(f"{point['target']:g}", (point["wait_p95"], point["gpu_hours_per_video"]), fontsize=7)
    axes.set(xlabel="wait p95 [s]", ylabel="GPU-hours per video", xscale="symlog")
    axes.legend()
    figure.savefig(path, dpi=120)


def shares(rows: dict[str, dict], path: Path) -> None:
    """Where the GPU-hours of each scenario go."""
    figure, axes = _axes()
    names = list(rows)
    left = [0.0] * len(names)
    for label, key in (("useful", None), ("idle", "idle"), ("cold", "cold"), ("lost", "lost")):
        values = [
            (row[f"{key}_gpu_seconds"] / 3600 / row["jobs"]) if key else row["useful_gpu_hours_per_video"]
            for row in rows.values()
        ]
        axes.barh(names, values, left=left, label=label)
        left = [a + b for a, b in zip(left, values, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("GPU-hours per video")
    axes.legend()
    figure.savefig(path, dpi=120)


def frontiers(mixes: dict[str, dict], ours: str, path: Path) -> None:
    """Mean cost against mean wait of every rule's targets, a panel a mix; a star is our rule at the target that it has."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.fonttype"] = "none"
    matplotlib.rcParams["svg.hashsalt"] = "frontier"  # the same numbers make the same file
    import matplotlib.pyplot as plt

    rows = math.ceil((len(mixes) + 1) / 2)
    figure, panels = plt.subplots(rows, 2, figsize=(9, 2.6 * rows), layout="constrained")
    for axes, (mix, found) in zip(panels.flat, mixes.items(), strict=False):
        for name, points in found["curves"].items():
            points = sorted(map(tuple, points))
            width, order = (2.2, 3) if name == ours else (1.0, 2)
            axes.plot(*zip(*points, strict=True), marker=".", label=name, linewidth=width, zorder=order)
        axes.plot(found["wait_p95"], found["cost"], "k*", zorder=4)
        axes.set(title=mix, xlim=(0, 3 * found["wait_p95"]), ylim=(0.8 * found["cost"], 1.6 * found["cost"]))
        axes.set(xlabel="wait p95 [s]", ylabel="GPU-hours a video")
    for axes in list(panels.flat)[len(mixes) :]:
        axes.axis("off")
    last = list(panels.flat)[-1]
    last.legend(*panels.flat[0].get_legend_handles_labels(), loc="center", fontsize=9)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
