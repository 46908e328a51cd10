"""Charts as inline SVG, drawn by hand: no script, no network, readable in any browser and in print."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 14, 44
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a8a00", "#7f7f7f")  # Okabe and Ito

Point = tuple[float, float]


@dataclass(frozen=True)
class Layer:
    """One set of marks of a chart: `kind` is line, step, dots, bars (each from 0) or cross."""

    label: str
    points: Sequence[Point]
    kind: str = "line"
    colour: str = PALETTE[0]


@dataclass(frozen=True)
class Chart:
    """A chart with axes; limit is a horizontal dashed line with its label, e.g. an SLO threshold."""

    name: str
    title: str
    x_label: str
    y_label: str
    layers: Sequence[Layer]
    limit: tuple[float, str] | None = None
    stacked: bool = False

    @property
    def empty(self) -> bool:
        return not any(layer.points for layer in self.layers)

    def svg(self) -> str:
        """The chart as one <figure>; never call it on an empty chart."""
        layers = _stack(self.layers) if self.stacked else [(layer, None) for layer in self.layers if layer.points]
        points = [point for layer, _ in layers for point in layer.points]
        xs, ys = [x for x, _ in points], [y for _, y in points]
        limit = self.limit if self.limit and self.limit[0] < 2 * max(ys) else None  # a far one would flatten the curve
        ys += [limit[0]] if limit else []
        x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(0.0, *ys), max(ys))
        scale = Scale(x_ticks, y_ticks)
        parts = [*_axes(scale, self.x_label, self.y_label)]
        for layer, base in layers:
            parts.extend(_marks(layer, base, scale))
        if limit:
            parts.append(_limit(scale, *limit))
        legend = "".join(
            f'<span><i style="background:{layer.colour}"></i>{escape(layer.label)}</span>'
            for layer in self.layers
            if layer.points
        )
        return (
            f"<figure><figcaption>{escape(self.title)}</figcaption>"
            f'<svg data-plot="{escape(self.name)}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{escape(self.title)}">{"".join(parts)}</svg><div class="legend">{legend}</div></figure>'
        )


@dataclass(frozen=True)
class Scale:
    """Data to SVG coordinates; the axes span their outermost ticks."""

    x_ticks: Sequence[float]
    y_ticks: Sequence[float]

    def x(self, value: float) -> float:
        low, high = self.x_ticks[0], self.x_ticks[-1]
        return round(LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round tick values that cover low..high (steps of 1, 2 or 5 times a power of ten)."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / about
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def number(value: float) -> str:
    """A short label: 1200000 → 1.2M, 0.25 → 0.25."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            unit = 1e3 if suffix == "k" else size
            return f"{value / unit:.4g}{suffix}"
    return f"{value:.4g}"


def _axes(scale: Scale, x_label: str, y_label: str) -> Iterator[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for value in scale.y_ticks:
        y = scale.y(value)
        yield f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y}" y2="{y}"/>'
        yield f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{number(value)}</text>'
    for value in scale.x_ticks:
        x = scale.x(value)
        yield f'<line class="axis" x1="{x}" x2="{x}" y1="{bottom}" y2="{bottom + 4}"/>'
        yield f'<text x="{x}" y="{bottom + 17}" text-anchor="middle">{number(value)}</text>'
    yield f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
    yield f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>'
    middle = (TOP + bottom) / 2
    yield f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'


def _marks(layer: Layer, base: Sequence[float] | None, scale: Scale) -> Iterator[str]:
    at = [(scale.x(x), scale.y(y)) for x, y in layer.points]
    match layer.kind:
        case "line" | "step":
            path = _path(at, layer.kind == "step")
            yield f'<path class="mark" d="{path}" fill="none" stroke="{layer.colour}" stroke-width="1.8"/>'
            if len(at) == 1:  # a path of one point draws nothing
                yield f'<circle class="mark" cx="{at[0][0]}" cy="{at[0][1]}" r="3" fill="{layer.colour}"/>'
        case "dots":
            yield from (
                f'<circle class="mark" cx="{x}" cy="{y}" r="2.6" fill="{layer.colour}" fill-opacity=".65">'
                f"<title>{escape(layer.label)}: {number(px)}, {number(py)}</title></circle>"
                for (x, y), (px, py) in zip(at, layer.points, strict=True)
            )
        case "cross":
            yield from (
                f'<path class="mark" d="M{x - 4} {y - 4}l8 8m0 -8l-8 8" stroke="{layer.colour}" '
                'stroke-width="2" fill="none"/>'
                for x, y in at
            )
        case "bars":
            yield from _bars(layer, at, base or [0.0] * len(at), scale)


def _bars(layer: Layer, at: list[Point], base: Sequence[float], scale: Scale) -> Iterator[str]:
    width = max(1.0, min(48.0, (WIDTH - LEFT - RIGHT) / max(1, len(at)) * 0.8))
    for (x, y), low, (px, py) in zip(at, base, layer.points, strict=True):
        height = max(0.5, scale.y(low) - y)
        yield (
            f'<rect class="mark" x="{x - width / 2:.1f}" y="{y}" width="{width:.1f}" height="{height:.1f}" '
            f'fill="{layer.colour}"><title>{escape(layer.label)} at {number(px)}: {number(py - low)}</title></rect>'
        )


def _path(at: list[Point], step: bool) -> str:
    path = f"M{at[0][0]} {at[0][1]}"
    for x, y in at[1:]:
        path += f"H{x}V{y}" if step else f"L{x} {y}"
    return path


def _limit(scale: Scale, value: float, label: str) -> str:
    y = scale.y(value)
    return (
        f'<line class="limit" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
        f'<text class="limit" x="{WIDTH - RIGHT}" y="{y - 4}" text-anchor="end">{escape(label)}</text>'
    )


def _stack(layers: Sequence[Layer]) -> list[tuple[Layer, list[float]]]:
    """Raise each layer's points by the ones below it; all layers share their x values."""
    height: dict[float, float] = {}
    stacked = []
    for layer in layers:
        if not layer.points:
            continue
        base = [height.get(x, 0.0) for x, _ in layer.points]
        points = [(x, y + low) for (x, y), low in zip(layer.points, base, strict=True)]
        height.update(points)
        stacked.append((Layer(layer.label, points, layer.kind, layer.colour), base))
    return stacked
