"""Outputs of results that are files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from app.errors import OutputNotFound, Removed
from app.queue.outputs import OutputStore
from app.services.callers import Caller
from app.services.results import Results


@dataclass(frozen=True, slots=True)
class FoundFile:
    """`key` is the result, the response, the name and the element."""

    key: tuple[UUID, int, str, int]
    media_type: str
    bytes: int


class Outputs:
    def __init__(self, store: OutputStore, results: Results) -> None:
        self._store = store
        self._results = results

    async def get(self, caller: Caller, result_id: UUID, response: int, name: str, element: int) -> FoundFile:
        """
        Raises:
            ResultNotFound: no such result.
            OutputNotFound: it has no such file.
        """
        row = await self._store.get(result_id, response, name, element, caller.owner_id)
        if row is None:
            await self._results.get(caller, result_id)
            raise OutputNotFound(
                f"Result {result_id} has no file of this output, response and element: GET /results/{result_id} lists "
                "its outputs with the paths of those that are files, once it is completed."
            )
        return FoundFile((result_id, response, name, element), row["media_type"], row["bytes"])

    async def content(self, file: FoundFile) -> AsyncIterator[bytes]:
        """The parts of a file, which come to its `bytes`.

        Raises:
            Removed: it was deleted in the middle.
        """
        sent = 0
        while sent < file.bytes:
            part = await self._store.part(*file.key, sent)
            if not part:
                raise Removed(f"The output of result {file.key[0]} was deleted while it was read.")
            yield part
            sent += len(part)

    async def elements(self, caller: Caller, result_id: UUID, output: Mapping[str, Any]) -> list[bytes]:
        """Of an output of BYTES, as the stored answer has it, each element, whether it is a file or not.

        Raises:
            Removed: it was deleted meanwhile.
        """
        if output.get("data") is not None:
            return [text.encode() for text in output["data"]]
        elements = []
        for element in range(len(output["files"])):
            file = await self.get(caller, result_id, output["response"], output["name"], element)
            elements.append(b"".join([part async for part in self.content(file)]))
        return elements
