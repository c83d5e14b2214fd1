"""The settings as this process has them, for people; what may hold a password is only said to be set or not."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from app.config import Settings

# Addresses that may hold a password, or are one.
SECRETS = frozenset({"database_url", "database_listen_url", "capacity_webhook_url", "otel_exporter_otlp_endpoint"})
LINK = re.compile(r"\[([^\]]+)\]\([^)]+\)")


@dataclass(frozen=True, slots=True)
class SettingView:
    """`name` is that of the environment variable; `meaning` is Markdown without links."""

    name: str
    value: str
    default: str
    changed: bool
    meaning: str


def listed(settings: Settings) -> list[SettingView]:
    views = []
    for name, field in Settings.model_fields.items():
        value, default = getattr(settings, name), field.default
        changed = value != default
        said, usual = _shown(value), _shown(default)
        if name in SECRETS:
            said, usual = ("set" if changed else "not set"), "not set"
        views.append(SettingView(name.upper(), said, usual, changed, LINK.sub(r"\1", field.description or "")))
    return views


def _shown(value: Any) -> str:
    if value is None or value == () or value == "":
        return ""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
