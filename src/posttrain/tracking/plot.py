"""Curves of runs as one SVG picture, which notebooks show and any browser opens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from posttrain.common.files import expanded, write_text
from posttrain.common.suggest import did_you_mean
from posttrain.tracking.columns import Points
from posttrain.tracking.report import Metrics, read_lines, read_metrics, thin

WIDTH, HEIGHT = 270, 180
"""Size of a panel in pixels."""
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 26, 34
"""Margins of a panel: the numbers at its axes, and its title."""
IN_A_ROW = 3
COLOURS = ("#3b7dd8", "#e0752d", "#3a9d5d", "#b4539f", "#8a6d3b", "#d04a4a", "#2aa5a0", "#7a6fd0")
GREY = "#808080"
"""Grey that can be read on a white page and on a black one."""
MOST_DOTS = 30
"""With more points than this, a curve is a line without dots."""


@dataclass(frozen=True)
class Panel:
    """The curves of one metric."""

    metric: str
    curves: Mapping[str, Points]
    """By the name of the run: its steps and values; runs without the metric are left out."""


@dataclass(frozen=True)
class Plot:
    """Curves of one or several runs; a notebook shows the picture, `print` the figures."""

    panels: tuple[Panel, ...]
    """One for each metric."""
    labels: tuple[str, ...]
    """The names of the runs, in the order of their colours."""

    def __repr__(self) -> str:
        return "\n".join(line for panel in self.panels for line in _lines(panel, self.labels))

    def _repr_svg_(self) -> str:
        return svg(self)

    def save(self, path: str | Path) -> Path:
        """Write the picture to an SVG file and return its path; raise ValueError for another."""
        path = Path(expanded(str(path)))
        if path.suffix != ".svg":
            raise ValueError(f"{path}: the picture is SVG: give a name that ends in .svg")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, svg(self))
        return path


def curves(runs: Mapping[str, Path], metrics: Sequence[str]) -> Plot:
    """Return the plot of these metrics, one panel for each, with a curve for each run that has it.

    Raises ValueError if no run has a metric."""
    if not runs or not metrics:
        raise ValueError("nothing to plot: name at least one run and one metric, such as loss")
    if strange := [metric for metric in metrics if not isinstance(metric, str)]:
        raise ValueError(f"{strange[0]!r} is not the name of a metric: write each as an argument")
    wanted = set(metrics)
    files = {label: folder / "metrics.jsonl" for label, folder in runs.items()}
    of_runs = {k: read_metrics(file, lambda _, name: name in wanted) for k, file in files.items()}
    panels = {metric: _panel(of_runs, metric) for metric in metrics}
    for metric, panel in panels.items():
        if not panel.curves:
            names = {
                name for file in files.values() for _, line in read_lines(file) for name in line
            }
            known = sorted(names - {"time", "step"})
            nearest = did_you_mean(metric, known) if known else "none has written one yet"
            raise ValueError(f"no run has the metric {metric!r}; {nearest}")
    return Plot(tuple(panels[metric] for metric in metrics), tuple(runs))


def points_of(metrics: Metrics, metric: str) -> Points:
    """Return the steps and values of a metric; steps without a finite value are left out."""
    return [
        (step, value)
        for step, line in metrics.items()
        if isinstance(value := line.get(metric), int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    ]


def _panel(of_runs: Mapping[str, Metrics], metric: str) -> Panel:
    points = {label: points_of(metrics, metric) for label, metrics in of_runs.items()}
    return Panel(metric, {label: curve for label, curve in points.items() if curve})


def _lines(panel: Panel, labels: Sequence[str]) -> Iterator[str]:
    """Yield a line for each curve: where it begins and ends, and how far it went."""
    for label, points in panel.curves.items():
        (first, start), (last, end) = points[0], points[-1]
        values = [value for _, value in points]
        name = _printable(f"{panel.metric}, {label}" if len(labels) > 1 else panel.metric)
        yield (
            f"{name}: {start:.4g} at step {first}, {end:.4g} at step {last}, "
            f"between {min(values):.4g} and {max(values):.4g}"
        )


def svg(plot: Plot) -> str:
    """Return the picture: the panels in rows, and a legend if there are several runs."""
    columns = min(IN_A_ROW, len(plot.panels))
    rows = math.ceil(len(plot.panels) / columns)
    legend = plot.labels if len(plot.labels) > 1 else ()
    width, height = columns * WIDTH, rows * HEIGHT + 18 * len(legend) + (4 if legend else 0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" style="max-width: 100%; height: auto" '
        f'font-family="sans-serif" font-size="11" fill="{GREY}">'
    ]
    for i, panel in enumerate(plot.panels):
        parts.append(f'<g transform="translate({i % columns * WIDTH} {i // columns * HEIGHT})">')
        parts += [*_drawn(panel, plot.labels), "</g>"]
    for i, label in enumerate(legend):
        y = rows * HEIGHT + 18 * i + 10
        parts.append(
            f'<path d="M{LEFT} {y}h22" stroke="{_colour(i)}" stroke-width="3"/>'
            f'<text x="{LEFT + 30}" y="{y + 4}">{_safe(label)}</text>'
        )
    return "".join([*parts, "</svg>"])


def _drawn(panel: Panel, labels: Sequence[str]) -> Iterator[str]:
    """Yield the elements of a panel: title, axes with numbers, curves."""
    everything = [point for points in panel.curves.values() for point in points]
    x_low, x_high = _range([float(step) for step, _ in everything])
    y_low, y_high = _range([value for _, value in everything])
    inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(step: float) -> float:
        return LEFT + inner_width * (step - x_low) / (x_high - x_low)

    def y(value: float) -> float:
        return TOP + inner_height * (1 - (value / 2 - y_low / 2) / (y_high / 2 - y_low / 2))

    yield f'<text x="{LEFT}" y="16" font-size="13" font-weight="bold">{_safe(panel.metric)}</text>'
    bottom = TOP + inner_height
    for tick in ticks(y_low, y_high):
        at = f"{y(tick):.1f}"
        yield (
            f'<path d="M{LEFT} {at}h{inner_width}" stroke="{GREY}" stroke-opacity="0.25"/>'
            f'<text x="{LEFT - 6}" y="{float(at) + 4:.1f}" text-anchor="end">{tick:.7g}</text>'
        )
    for tick in ticks(x_low, x_high):
        if tick == int(tick):
            yield (
                f'<text x="{x(tick):.1f}" y="{bottom + 15}" text-anchor="middle">{tick:.0f}</text>'
            )
    yield f'<text x="{LEFT + inner_width}" y="{bottom + 28}" text-anchor="end">step</text>'
    for label, points in panel.curves.items():
        colour = _colour(labels.index(label))
        places = [(f"{x(step):.1f}", f"{y(value):.1f}") for step, value in thin(points)]
        line = " ".join(f"{a},{b}" for a, b in places)
        yield f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.6"/>'
        if len(places) <= MOST_DOTS:
            dots = "".join(f'<circle cx="{a}" cy="{b}" r="2.6"/>' for a, b in places)
            yield f'<g fill="{colour}">{dots}</g>'


def ticks(low: float, high: float, number: int = 4) -> list[float]:
    """Return about `number` round values between the ends: multiples of 1, 2 or 5 times 10^k."""
    rough = high / number - low / number  # the difference itself may overflow
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((s * power for s in (1, 2, 5) if s * power >= rough), 10 * power)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [i * step for i in range(first, last + 1)]


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Return the lowest and highest value; a range around a single one."""
    low, high = min(values), max(values)
    around = max(abs(low) * 0.05, 1e-9) if low else 1.0
    # a range so narrow that the ticks could not be told apart is widened like a single value
    return (low, high) if high / 2 - low / 2 > around * 2e-4 else (low - around, high + around)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _safe(text: str) -> str:
    return escape(_printable(text))


def _printable(text: str) -> str:
    """Return a text without control characters, which XML does not have and terminals obey."""
    return "".join(c if c.isprintable() else " " for c in text)
