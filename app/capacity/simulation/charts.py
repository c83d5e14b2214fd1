"""Queue, hosts and dollars over time as one SVG picture, light or dark as its reader has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import log10
from xml.sax.saxutils import escape

from app.capacity.simulation.world import Sample

WIDTH, HEIGHT = 760, 150
LEFT, RIGHT, TOP, GAP = 56, 8, 44, 30
# Of the name of a point.
NAME_WIDTH, NAME_HEIGHT = 90, 14
# Points of a line; of each span of time the greatest value counts.
POINTS = 300
# Seconds that 95 of 100 tickets waited at most, and dollars.
Point = tuple[float, float]
STYLE = """
svg { font: 12px system-ui, sans-serif; background: #fff; }
text { fill: #444; } .grid { stroke: #ddd; } path { fill: none; stroke-width: 1.5; }
.l0 { stroke: #0969da; stroke-width: 2.5; } .l1 { stroke: #9a6700; } .l2 { stroke: #cf222e; } .l3 { stroke: #8250df; }
circle { stroke: none; } circle.l0 { fill: #0969da; } circle.l1 { fill: #9a6700; }
circle.l2 { fill: #cf222e; } circle.l3 { fill: #8250df; }
text.l0, text.l1, text.l2, text.l3 { stroke: none; } text.l0 { fill: #0969da; font-weight: 600; }
text.l1 { fill: #9a6700; } text.l2 { fill: #cf222e; } text.l3 { fill: #8250df; }
@media (prefers-color-scheme: dark) {
  svg { background: #0d1117; } text { fill: #b0b8c1; } .grid { stroke: #30363d; }
  .l0 { stroke: #4493f8; } .l1 { stroke: #d29922; } .l2 { stroke: #f85149; } .l3 { stroke: #ab7df8; }
  circle.l0 { fill: #4493f8; } circle.l1 { fill: #d29922; } circle.l2 { fill: #f85149; } circle.l3 { fill: #ab7df8; }
  text.l0 { fill: #4493f8; } text.l1 { fill: #d29922; } text.l2 { fill: #f85149; } text.l3 { fill: #ab7df8; }
}
"""


def picture(title: str, runs: Mapping[str, Sequence[Sample]]) -> str:
    """Runs by the name of their controller."""
    end = max(samples[-1].at for samples in runs.values())
    panels = (
        _panel("tickets that wait", 0, runs, end, lambda each: each.waiting, logarithmic=True),
        _panel("hosts that bill", 1, runs, end, lambda each: each.hosts),
        _panel("dollars", 2, runs, end, lambda each: each.dollars),
    )
    height = TOP + 3 * (HEIGHT + GAP)
    legend = "".join(
        f'<text class="l{number}" x="{LEFT + number * 150}" y="34">{escape(name)}</text>'
        for number, name in enumerate(runs)
    )
    said = "; ".join(f"{name} ${samples[-1].dollars:.2f}" for name, samples in runs.items())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}, simulated: {escape(said)}"><style>{STYLE}</style>'
        f'<text x="{LEFT}" y="15">{escape(title)} (a simulation)</text>{legend}{"".join(panels)}</svg>\n'
    )


def frontier(title: str, lines: Mapping[str, Sequence[Point]], points: Mapping[str, Point]) -> str:
    """Dollars over the p95 wait: lines over a knob, each by its name, and single points."""
    of_lines = [each for line in lines.values() for each in line]
    every = [*of_lines, *points.values()]
    bottom, right = TOP + 2 * HEIGHT, WIDTH - RIGHT
    dollars = _ticks(max(each[1] for each in every))
    waits = [0, 10, 60, 600, 3600, 6 * 3600, 24 * 3600]
    longest = log10(1 + max(each[0] for each in every) * 1.6)

    def place(wait: float) -> float:
        return round(LEFT + 8 + log10(1 + wait) / longest * (right - LEFT - 8), 1)

    def height(of: float) -> float:
        return round(bottom - of / dollars[-1] * (2 * HEIGHT - 18), 1)

    grid = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{height(each):.0f}" y2="{height(each):.0f}"/>'
        f'<text x="{LEFT - 6}" y="{height(each) + 4:.0f}" text-anchor="end">${each:g}</text>'
        for each in dollars
    )
    named = ("0", "10 s", "1 min", "10 min", "1 h", "6 h", "24 h")
    under = "".join(
        f'<text x="{place(wait):.0f}" y="{bottom + 16}" text-anchor="middle">{name}</text>'
        for wait, name in zip(waits, named, strict=True)
        if log10(1 + wait) <= longest
    )
    drawn = ""
    for number, line in enumerate(lines.values()):
        dots = "".join(f'<circle class="l0" cx="{place(x)}" cy="{height(y)}" r="3"/>' for x, y in line)
        dashed = ' stroke-dasharray="4 3"' if number else ""
        drawn += f'<path class="l0"{dashed} d="M{" ".join(f"{place(x)},{height(y)}" for x, y in line)}"/>{dots}'
    named_at: list[Point] = []
    for number, (name, (x, y)) in enumerate(points.items(), 1):
        end = ' text-anchor="end"' if place(x) > WIDTH / 2 else ""
        across, up = round(place(x) + (-8 if end else 8), 1), round(height(y) - 8, 1)
        # Above the names of others that would be in its place.
        while any(abs(across - other) < NAME_WIDTH and abs(up - level) < NAME_HEIGHT for other, level in named_at):
            up = round(up - NAME_HEIGHT, 1)
        named_at.append((across, up))
        drawn += (
            f'<circle class="l{number}" cx="{place(x)}" cy="{height(y)}" r="5"/>'
            f'<text class="l{number}" x="{across}" y="{up}"{end}>{escape(name)}</text>'
        )
    legend = "; ".join(f"{'dashed' if number else 'line'}: {name}" for number, name in enumerate(lines))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 26}" role="img" '
        f'aria-label="{escape(title)}, simulated: dollars over the p95 wait"><style>{STYLE}</style>'
        f'<text x="{LEFT}" y="15">{escape(title)}: dollars over the p95 wait (a simulation)</text>'
        f'<text class="l0" x="{LEFT}" y="34">{escape(legend)}</text>{grid}{under}{drawn}</svg>\n'
    )


def _panel(
    title: str,
    number: int,
    runs: Mapping[str, Sequence[Sample]],
    end: float,
    value: Callable[[Sample], float],
    *,
    logarithmic: bool = False,
) -> str:
    top, bottom = TOP + number * (HEIGHT + GAP), TOP + number * (HEIGHT + GAP) + HEIGHT
    greatest = max(max(value(each) for each in samples) for samples in runs.values()) or 1.0
    ticks = _powers(greatest) if logarithmic else _ticks(greatest)

    def height(of: float) -> float:
        part = log10(1 + of) / log10(1 + ticks[-1]) if logarithmic else of / ticks[-1]
        return bottom - part * (HEIGHT - 18)

    def place(at: float) -> float:
        return LEFT + at / end * (WIDTH - LEFT - RIGHT)

    grid = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height(each):.0f}" y2="{height(each):.0f}"/>'
        f'<text x="{LEFT - 6}" y="{height(each) + 4:.0f}" text-anchor="end">{each:,g}</text>'
        for each in ticks
    )
    hours = "".join(
        f'<text x="{place(hour * 3600):.0f}" y="{bottom + 14}" text-anchor="middle">{hour}:00</text>'
        for hour in range(0, int(end // 3600) + 1, 3 if end < 30 * 3600 else 6)
    )
    lines = "".join(
        f'<path class="l{place_}" d="{_line(samples, end, value, place, height)}"/>'
        for place_, samples in reversed(list(enumerate(runs.values())))
    )
    return f'<text x="{LEFT}" y="{top + 10}">{escape(title)}</text>{grid}{hours}{lines}'


def _line(
    samples: Sequence[Sample],
    end: float,
    value: Callable[[Sample], float],
    place: Callable[[float], float],
    height: Callable[[float], float],
) -> str:
    most: dict[int, float] = {}
    for each in samples:
        number = int(each.at / end * POINTS)
        most[number] = max(most.get(number, 0.0), value(each))
    points = [(round(place(number / POINTS * end), 1), round(height(each), 1)) for number, each in most.items()]
    # What lies on a level line between two others says nothing.
    kept = [
        point
        for before, point, after in zip([None, *points], points, [*points[1:], None], strict=False)
        if before is None or after is None or not before[1] == point[1] == after[1]
    ]
    return "M" + " ".join(f"{x:g},{y:g}" for x, y in kept)


def _ticks(greatest: float) -> list[float]:
    step = 10.0 ** int(log10(greatest) // 1)
    for each in (step / 5, step / 2, step, step * 2, step * 5):
        if greatest / each <= 5:
            step = each
            break
    return [step * number for number in range(int(-(-greatest // step)) + 1)]


def _powers(greatest: float) -> list[float]:
    ticks = [0.0, 10.0]
    while ticks[-1] < greatest:
        ticks.append(ticks[-1] * 10)
    return ticks
