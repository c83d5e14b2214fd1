"""A client of a comparison's stream that keeps what it was sent, and goes on where it was cut."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from tests.service import Service


@dataclass
class ComparisonFollower:
    comparison_id: str
    headers: dict[str, str] = field(default_factory=dict)
    cursor: str | None = None
    cursors: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    signals: list[tuple[str, str]] = field(default_factory=list)

    async def follow(self, service: Service, most: int | None = None) -> ComparisonFollower:
        """Reads to the end of the stream, or `most` events, after the last one it has."""
        headers = self.headers | ({} if self.cursor is None else {"Last-Event-ID": self.cursor})
        url = f"/comparisons/{self.comparison_id}/stream"
        fields: dict[str, str] = {}
        async with service.client.stream("GET", url, headers=headers, timeout=60) as answer:
            assert answer.status_code == 200, await answer.aread()
            assert answer.headers["content-type"].startswith("text/event-stream")
            async for line in answer.aiter_lines():
                name, _, value = line.partition(":")
                if line:
                    fields[name] = value.lstrip(" ")
                    continue
                if "data" in fields:
                    self._take(fields["event"], fields["id"], json.loads(fields["data"]))
                    most = None if most is None else most - 1
                fields = {}
                if most == 0:
                    break
        return self

    def _take(self, event: str, cursor: str, data: dict[str, Any]) -> None:
        id_ = data["result_id"]
        assert id_ not in self.results, f"{event} after the end"
        self.models[id_] = data["model"]
        self.cursor = cursor
        self.cursors.append(cursor)
        match event:
            case "delta":
                self.texts[id_] = self.texts.get(id_, "") + "".join(each["text"] for each in data["deltas"])
            case "restarted" | "removed":
                self.signals.append((event, id_))
                self.texts.pop(id_, None)
            case _:
                assert event == data["result"]["status"]
                self.results[id_] = data["result"]

    def check(self) -> None:
        """Every result's text came once, whole."""
        assert len(set(self.cursors)) == len(self.cursors)
        for id_, result in self.results.items():
            assert (result["id"], result["model"]) == (id_, self.models[id_])
            assert self.texts.get(id_, "") == (result["output"] or "")
