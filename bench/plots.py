"""Pictures of what was measured, as SVG that any viewer shows: light, without scripts and without fonts of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from bench.figure import Figure

WIDTH, ROW, MARGIN = 900, 34, 12
# Where the bars begin, and how long one is that just meets its target.
LEFT, TARGET_WIDTH = 20, 480
# A figure that is so many times better than its target is drawn no longer than that.
MOST_TIMES = 1.6
MET, SHORT, INK, FAINT = "#2e7d4f", "#c0392b", "#1c2128", "#8b949e"
PANEL, ABOVE, BELOW = 120, 30, 22
STYLE = "text{font:13px system-ui,sans-serif;fill:#1c2128}.small{font-size:11px;fill:#57606a}"


@dataclass(frozen=True, slots=True)
class Series:
    """Values at even steps, in `unit`."""

    name: str
    unit: str
    values: Sequence[float]


def targets_plot(figures: Mapping[str, Figure]) -> str:
    """A bar for each figure that has a target, as long as the part of the target that it comes to."""
    rows = [(figure, part) for figure in figures.values() if (part := _part_of_target(figure)) is not None]
    height = 2 * MARGIN + ROW * len(rows) + 18
    drawn = []
    for number, (figure, part) in enumerate(rows):
        y = MARGIN + 18 + number * ROW
        width = min(part, MOST_TIMES) * TARGET_WIDTH
        drawn.append(
            Markup(
                '<text x="{}" y="{}">{} <tspan class="small">{} against {}</tspan></text>'
                '<rect x="{}" y="{}" width="{:.1f}" height="8" fill="{}"/>'
                '<text class="small" x="{:.1f}" y="{}">{:.2f}, target {}</text>'
            ).format(
                *(LEFT, y + 11, figure.name, figure.ours, figure.theirs),
                *(LEFT, y + 17, width, MET if figure.met else SHORT),
                *(LEFT + width + 6, y + 25, figure.value, figure.target),
            )
        )
    line = LEFT + TARGET_WIDTH
    drawn.append(
        Markup(
            '<line x1="{0}" x2="{0}" y1="{1}" y2="{2}" stroke="{3}" stroke-dasharray="3 3"/>'
            '<text class="small" x="{0}" y="{4}" text-anchor="middle">target</text>'
        ).format(line, MARGIN + 18, height - MARGIN, FAINT, MARGIN + 8)
    )
    return _svg(height, "Each figure and its target", drawn)


def panels_plot(title: str, panels: Sequence[Series], ends: tuple[str, str]) -> str:
    """One line below the other, each on a scale of its own from 0; `ends` are the words below the first and last."""
    drawn = []
    for number, series in enumerate(panels):
        top = max(series.values, default=0.0) or 1.0
        y = MARGIN + number * (PANEL + ABOVE)
        base = y + ABOVE + PANEL - 10
        step = (WIDTH - 2 * LEFT) / max(1, len(series.values) - 1)
        points = " ".join(
            f"{LEFT + at * step:.1f},{base - value / top * (PANEL - 20):.1f}" for at, value in enumerate(series.values)
        )
        drawn.append(
            Markup(
                '<text x="{left}" y="{words}">{name} <tspan class="small">up to {top}{unit}</tspan></text>'
                '<line x1="{left}" x2="{right}" y1="{base}" y2="{base}" stroke="{faint}"/>'
                '<polyline points="{points}" fill="none" stroke="{ink}" stroke-width="1.5"/>'
            ).format(
                left=LEFT,
                right=WIDTH - LEFT,
                words=y + 16,
                base=base,
                name=series.name,
                top=f"{top:,.0f}" if top >= 100 else f"{top:.3g}",
                unit=series.unit,
                points=points,
                ink=INK,
                faint=FAINT,
            )
        )
    height = MARGIN + len(panels) * (PANEL + ABOVE) + BELOW
    drawn.append(
        Markup(
            '<text class="small" x="{}" y="{y}">{}</text><text class="small" x="{}" y="{y}" text-anchor="end">{}</text>'
        ).format(LEFT, ends[0], WIDTH - LEFT, ends[1], y=height - 8)
    )
    return _svg(height, title, drawn)


def _part_of_target(figure: Figure) -> float | None:
    """1 is the target, more is better; None for a figure that is only reported."""
    found = re.search(r"\d+(\.\d+)?", figure.target)
    if found is None or figure.value <= 0:
        return None
    target = float(found[0])
    return figure.value / target if figure.target.startswith("≥") else target / figure.value


def _svg(height: int, title: str, drawn: Sequence[Markup]) -> str:
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img"'
        ' aria-label="{title}"><style>{style}</style><rect width="{w}" height="{h}" fill="#ffffff"/>{drawn}</svg>\n'
    ).format(w=WIDTH, h=height, title=title, style=Markup(STYLE), drawn=Markup("").join(drawn))
