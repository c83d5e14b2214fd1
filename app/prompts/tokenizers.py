"""Token ids, by the tokenizer in the model's folder: `<model>/1/tokenizer.json`, as it lies beside the weights."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from app.config import Settings
from app.errors import NoTokenizer, invalid
from app.services.repository import ABSENT, VERSION, folder_of, stamp_of

TOKENIZER_FILE = "tokenizer.json"
# Each takes tens of megabytes.
MOST_KEPT = 4
# Beyond this many characters or ids the work leaves the event loop.
LONG = 4_000


class Tokenizers:
    """A file that changed is read again."""

    def __init__(self, settings: Settings) -> None:
        self._repository = Path(settings.model_repository)
        self._kept: OrderedDict[str, tuple[tuple[int, int], Tokenizer]] = OrderedDict()
        self._reading = asyncio.Lock()

    async def encode(self, model: str, text: str, *, special: bool) -> list[int]:
        """The ids of a text, with the model's special tokens around it where `special`.

        Raises:
            NoTokenizer: the model's folder has none that can be read.
        """
        tokenizer = await self._of(model)

        def work() -> list[int]:
            found: list[int] = tokenizer.encode(text, add_special_tokens=special).ids
            return found

        return await asyncio.to_thread(work) if len(text) > LONG else work()

    async def decode(self, model: str, ids: list[int], where: str) -> str:
        """The text of token ids, special tokens too; `where` is how the request calls them.

        Raises:
            NoTokenizer: the model's folder has none that can be read.
            InvalidRequest: the model has no such token.
        """
        tokenizer = await self._of(model, where)
        size = tokenizer.get_vocab_size(with_added_tokens=True)
        if wrong := next((id_ for id_ in ids if not 0 <= id_ < size), None):
            raise invalid(where, f"{wrong} is no token of the model, which has {size:,}")

        def work() -> str:
            text: str = tokenizer.decode(ids, skip_special_tokens=False)
            return text

        return await asyncio.to_thread(work) if len(ids) > LONG else work()

    async def names(self, model: str, ids: list[int]) -> list[str]:
        """What the vocabulary calls each token."""
        tokenizer = await self._of(model)
        return [tokenizer.id_to_token(id_) or "" for id_ in ids]

    async def _of(self, model: str, where: str = "") -> Any:
        folder = folder_of(self._repository, model)
        file = None if folder is None else folder / VERSION / TOKENIZER_FILE
        stamp = ABSENT if file is None else stamp_of(file)
        if file is None or stamp == ABSENT:
            message = (
                f"The model {model!r} has no tokenizer here: add {model}/{VERSION}/{TOKENIZER_FILE} to the model "
                "repository (MODEL_REPOSITORY), as it comes with the model, or send text."
            )
            raise NoTokenizer(message, errors=[{"field": where, "message": message}] if where else None)
        async with self._reading:
            kept = self._kept.get(model)
            if kept is None or kept[0] != stamp:
                kept = self._kept[model] = (stamp, await asyncio.to_thread(_read, model, file))
            self._kept.move_to_end(model)
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        return kept[1]


def _read(model: str, file: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # The library raises nothing narrower.
        raise NoTokenizer(
            f"{TOKENIZER_FILE} of the model {model!r} cannot be read: the operator has to correct it."
        ) from error
