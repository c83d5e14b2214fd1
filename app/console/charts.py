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
    # A line of nothing would lie on the base line and hide what is there.
    drawn = [_path(line, top) for line in lines if any(line.values)]
    said = ", ".join(f"{line.name} {_worded(line.values[-1], unit)} at the end" for line in lines if line.values)
    shown = _worded(top, unit)
    return _framed(f"{title}: up to {shown}; {said}", shown, drawn, lines, ends)


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a whole; `kind` is the class it is drawn by, the name stands below the pointer."""

    name: str
    kind: str
    value: float


def share_bar(title: str, shares: Sequence[Share], whole: float) -> Markup:
    """Parts of a whole beside each other; the title says what they come to."""
    drawn, at = [], 0.0
    for share in shares:
        width = min(WIDTH - at, share.value / whole * WIDTH)
        if width > 0:
            # Seen even where it is one in thousands.
            shown = max(width, 2.0)
            drawn.append(
                Markup('<rect class="{}" x="{}" width="{}" height="8"><title>{}</title></rect>').format(
                    f"of-{share.kind}", f"{min(at, WIDTH - shown):.1f}", f"{shown:.1f}", share.name
                )
            )
        at += width
    return Markup(
        '<svg class="shares" viewBox="0 0 {} 8" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
    ).format(WIDTH, title, Markup("").join(drawn))


def _path(line: Line, top: float) -> Markup:
    step = WIDTH / max(1, len(line.values) - 1)
    room = HEIGHT - BELOW - ABOVE
    points = " ".join(
        f"{number * step:.1f},{HEIGHT - BELOW - value / top * room:.1f}" for number, value in enumerate(line.values)
    )
    return Markup('<polyline class="line {}" points="{}"/>').format(f"of-{line.kind}", points)


def bar_chart(title: str, lines: Sequence[Line], names: Sequence[str], unit: str = "") -> Markup:
    """A bar for each name, the lines' values on one another; below the pointer, a bar says its numbers."""
    sums = [sum(values) for values in zip(*(line.values for line in lines), strict=True)]
    top = max(sums, default=0) or 1
    room = HEIGHT - BELOW - ABOVE
    step = WIDTH / max(1, len(names))
    bars = []
    for number, name in enumerate(names):
        y = float(HEIGHT - BELOW)
        parts = []
        for line in lines:
            height = line.values[number] / top * room
            y -= height
            parts.append(
                Markup('<rect class="bar of-{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
                    line.kind, number * step + step * 0.1, y, step * 0.8, height
                )
            )
        said = ", ".join(f"{line.name} {_worded(line.values[number], unit)}" for line in lines)
        # A bar of nothing has its place below the pointer too.
        parts.append(
            Markup('<rect class="room" x="{:.1f}" y="{}" width="{:.1f}" height="{}"/>').format(
                number * step, ABOVE, step, room
            )
        )
        bars.append(Markup("<g><title>{}: {}</title>{}</g>").format(name, said, Markup("").join(parts)))
    said = ", ".join(f"{line.name} {_worded(sum(line.values), unit)}" for line in lines)
    shown = _worded(top, unit)
    ends = (names[0], names[-1]) if names else ("", "")
    return _framed(f"{title}: {said} in all, {shown} at most", shown, bars, lines, ends)


def _framed(label: str, top: str, drawn: Sequence[Markup], lines: Sequence[Line], ends: tuple[str, str]) -> Markup:
    """A chart on its base line, with the scale's `top`, the lines' names and the words at its `ends`."""
    legend = Markup("").join(
        Markup('<tspan class="of-{}">{}</tspan><tspan> &#160; </tspan>').format(line.kind, line.name) for line in lines
    )
    return Markup(
        '<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
        '<line class="base" x1="0" x2="{width}" y1="{base}" y2="{base}"/>{drawn}'
        '<text x="0" y="10">{top}</text><text x="{width}" y="10" class="end">{legend}</text>'
        '<text x="0" y="{below}">{first}</text><text x="{width}" y="{below}" class="end">{last}</text></svg>'
    ).format(
        width=WIDTH,
        height=HEIGHT,
        base=HEIGHT - BELOW,
        below=HEIGHT - 4,
        label=label,
        top=top,
        drawn=Markup("").join(drawn),
        legend=legend,
        first=ends[0],
        last=ends[1],
    )


def _worded(value: float, unit: str) -> str:
    number = f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
    return f"${number}" if unit == "$" else f"{number}{unit}"
