"""Small pictures as SVG, without colours of their own: the stylesheet has those, for light and for dark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 600, 120
BELOW, ABOVE = 16, 14


@dataclass(frozen=True, slots=True)
class Line:
    """Values at even steps; `kind` is the class it is drawn by."""

    name: str
    kind: str
    values: Sequence[float]


def line_chart(title: str, lines: Sequence[Line], ends: tuple[str, str], unit: str = "") -> Markup:
    """Lines over time, all on one scale from 0 to the greatest value; `ends` are the words below the first and last."""
    top = max((value for line in lines for value in line.values), default=0) or 1
    drawn = [_path(line, top) for line in lines]
    said = ", ".join(f"{line.name} {line.values[-1]:g}{unit} at the end" for line in lines if line.values)
    legend = Markup("").join(
        Markup('<tspan class="{}">{}</tspan><tspan> &#160; </tspan>').format(f"of-{line.kind}", line.name)
        for line in lines
    )
    return Markup(
        '<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{title}: up to {top}{unit}; {said}">'
        '<line class="base" x1="0" x2="{width}" y1="{base}" y2="{base}"/>{lines}'
        '<text x="0" y="10">{top}{unit}</text><text x="{width}" y="10" class="end">{legend}</text>'
        '<text x="0" y="{below}">{first}</text><text x="{width}" y="{below}" class="end">{last}</text></svg>'
    ).format(
        width=WIDTH,
        height=HEIGHT,
        base=HEIGHT - BELOW,
        below=HEIGHT - 4,
        title=title,
        top=f"{top:,g}" if top < 100 else f"{top:,.0f}",
        unit=unit,
        said=said,
        lines=Markup("").join(drawn),
        legend=legend,
        first=ends[0],
        last=ends[1],
    )


def _path(line: Line, top: float) -> Markup:
    step = WIDTH / max(1, len(line.values) - 1)
    room = HEIGHT - BELOW - ABOVE
    points = " ".join(
        f"{number * step:.1f},{HEIGHT - BELOW - value / top * room:.1f}" for number, value in enumerate(line.values)
    )
    return Markup('<polyline class="line {}" points="{}"/>').format(f"of-{line.kind}", points)
