"""Draws the error report of an FP8 package: the relative error of each layer over the depth of the model."""

import json
from pathlib import Path

from export.atomic import replacing


def plot_errors(report: Path, image: Path) -> None:
    """Read `fp8_errors.json`, write a PNG; one line for each kind of layer, one point for each block."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines: dict[str, list[tuple[int, float]]] = {}
    for layer in json.loads(report.read_text())["layers"]:
        _, block, kind = layer["layer"].split(".", 2)
        lines.setdefault(kind, []).append((int(block), 100 * layer["relative_error"]))
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for kind, points in sorted(lines.items()):
        axes.plot(*zip(*sorted(points), strict=True), marker=".", linewidth=1, label=kind)
    axes.set(
        xlabel="block",
        ylabel="relative error of the weights, %",
        title="FP8 quantisation error by layer",
        ylim=(0, None),
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", ncols=2)
    with replacing(image) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
