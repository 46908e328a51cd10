"""The results as a table, as JSON and as a plot of quality against speed-up, one line for each method."""

import json
from pathlib import Path

from loadtest.base.charts import PALETTE, Chart, Layer
from loadtest.base.report import markdown
from loadtest.quality.evaluate import Row

STYLE = (
    "text{font:11px sans-serif;fill:#444}.grid{stroke:#ddd}.axis{stroke:#888}"
    ".legend-text{font:11px sans-serif}rect.paper{fill:#fff}"
)
COLUMNS = ("options", "steps", "forwards", "speed-up", "PSNR dB", "SSIM", "VMAF", "MS-SSIM", "XPSNR dB", "obeys")
FIGURES = {
    "psnr": ("PSNR in dB", 1),
    "ssim": ("SSIM", 3),
    "vmaf": ("VMAF", 1),
    "ms_ssim": ("MS-SSIM", 3),
    "xpsnr": ("XPSNR in dB", 1),
}


def table(rows: list[Row]) -> str:
    """Rows as a Markdown table; steps are computed + skipped."""
    made = []
    for r in rows:
        obeys = f"{r.obeyed} of {r.checked}" if r.checked else "not checked"
        quality = ["-" if r.name == rows[0].name else _shown(r, figure) for figure in FIGURES]
        steps = f"{r.steps_computed:g} + {r.steps_skipped:g}"
        made.append((r.name, steps, f"{r.forwards:g}", f"{r.speed_up:.2f}x", *quality, obeys))
    return markdown(made, COLUMNS)


def _shown(row: Row, figure: str) -> str:
    value = getattr(row, figure)
    return "not measured" if value is None else f"{value:.{FIGURES[figure][1]}f}"


def _layers(rows: list[Row], figure: str) -> list[Layer]:
    methods = list(dict.fromkeys(r.method for r in rows[1:]))
    layers = []
    for i, method in enumerate(methods):
        points = sorted(
            (r.speed_up, getattr(r, figure)) for r in rows[1:] if r.method == method and getattr(r, figure) is not None
        )
        layers.append(Layer(method, points, colour=PALETTE[i % len(PALETTE)]))
    return layers


def chart(rows: list[Row], figure: str, label: str) -> Chart:
    title = f"{label} against the speed-up of the denoise loop"
    return Chart(f"quality-{figure}", title, "times faster than the baseline", label, _layers(rows, figure))


def standalone(made: Chart) -> str:
    """The chart as an SVG file of its own, with its legend inside."""
    figure = made.svg()
    svg = figure[figure.index("<svg") : figure.index("</svg>")]
    legend = "".join(
        f'<text class="legend-text" x="80" y="{24 + 14 * i}" style="fill:{layer.colour}">{layer.label}</text>'
        for i, layer in enumerate(made.layers)
    )
    style = f'<style>{STYLE}</style><rect class="paper" width="100%" height="100%"/>'
    head, _, body = svg.partition(">")
    return f'{head} xmlns="http://www.w3.org/2000/svg">{style}{body}{legend}</svg>\n'


def write(rows: list[Row], folder: Path, about: dict) -> None:
    """quality.json, quality.md and one SVG for each figure that was measured in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    content = about | {"rows": [r.as_dict() for r in rows]}
    (folder / "quality.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / "quality.md").write_text(table(rows) + "\n")
    for figure, (label, _) in FIGURES.items():
        if any(getattr(r, figure) is not None for r in rows[1:]):
            (folder / f"quality-{figure}.svg").write_text(standalone(chart(rows, figure, label)))
