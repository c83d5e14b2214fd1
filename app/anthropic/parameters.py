"""What becomes of each parameter: `python -m app.anthropic.parameters` prints the table of docs/clients.md."""

from __future__ import annotations

import sys

from app.anthropic.request import UNSUPPORTED, WITHOUT_EFFECT, CountRequest


def rows() -> list[tuple[str, str, str]]:
    """Name, outcome, and why or how."""
    made = [
        (name, "honoured", (field.description or "").partition(";")[0])
        for name, field in CountRequest.model_fields.items()
    ]
    made += [(name, "no effect", reason) for name, reason in WITHOUT_EFFECT.items()]
    made += [(name, "refused", reason) for name, reason in UNSUPPORTED.items()]
    return sorted(made)


def table() -> str:
    """In Markdown."""
    lines = [("parameter", "messages", ""), ("---", "---", "---")]
    lines += [(f"`{name}`", outcome, reason) for name, outcome, reason in rows()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    sys.stdout.write(table())
