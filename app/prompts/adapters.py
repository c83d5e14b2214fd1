"""LoRA adapters: which a model has, and which model and adapter a name in OpenAI's API stands for.

Triton tells no adapters. They are read where its backend reads them, in `<model>/1/multi_lora.json` of the model
repository, as the chat templates are.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from app.config import Settings
from app.errors import AdapterNotFound, InvalidRequest, ModelNotFound
from app.services.callers import Caller
from app.services.catalog import ModelCatalog, model_not_found, shown
from app.services.repository import ABSENT, VERSION, files_of, stamp_of
from app.telemetry import logger

log = logger("adapters")

CONFIG_FILE = "config.pbtxt"
ARGUMENTS_FILE = "model.json"
ADAPTERS_FILE = "multi_lora.json"
SEPARATOR = ":"

Names = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Chosen:
    """A model the fleet serves, and the adapter it is asked for with."""

    model: str
    adapter: str | None = None

    @property
    def qualified(self) -> str:
        return self.model if self.adapter is None else f"{self.model}{SEPARATOR}{self.adapter}"


class Adapters:
    """A file that changed is read again."""

    def __init__(self, catalog: ModelCatalog, settings: Settings) -> None:
        self._catalog = catalog
        self._repository = Path(settings.model_repository)
        self._read: dict[str, tuple[tuple[tuple[int, int], ...], Names | None]] = {}

    def of(self, model: str) -> Names | None:
        """The names of a model's adapters; None where it is not known, because the model's folder is not here."""
        of_version = (f"{VERSION}/{name}" for name in (ARGUMENTS_FILE, ADAPTERS_FILE))
        files = files_of(self._repository, model, CONFIG_FILE, *of_version)
        if files is None:
            return None
        stamps = tuple(map(stamp_of, files))
        read = self._read.get(model)
        if read is None or read[0] != stamps:
            read = self._read[model] = (stamps, _names(model, *files))
        return read[1]

    async def require(self, model: str, adapter: str | None) -> None:
        """
        Raises:
            ModelNotFound: an adapter is named, and no server has ever served the model.
            AdapterNotFound: it is known which adapters the model has, and this is none of them.
        """
        if adapter is None:
            return
        await self._catalog.require(model)
        names = self.of(model)
        if names is not None and adapter not in names:
            message = _missing(model, adapter, names)
            raise AdapterNotFound(message, errors=[{"field": "parameters.lora_name", "message": message}])

    async def resolve(self, caller: Caller, id_: str) -> Chosen:
        """What an id of GET /v1/models stands for: a model, an adapter, or `<model>:<adapter>`.

        Raises:
            ModelNotFound: none of them, as far as is known.
            ModelNotAllowed: the caller may not use it.
            InvalidRequest: adapters of several models have this name.
        """
        try:
            chosen = await self._resolve(id_)
        except ModelNotFound:
            # The names of the others are not for this key.
            if caller.models is not None:
                raise model_not_found(id_, list(caller.models)) from None
            raise
        caller.require_model(chosen.model, chosen.adapter)
        return chosen

    async def _resolve(self, id_: str) -> Chosen:
        if self._catalog.knows(id_):
            return Chosen(id_)
        for fresh in (False, True):
            known = await self._catalog.names(fresh=fresh)
            if found := self._among(id_, known):
                return found
        raise model_not_found(id_, list(self.ids(known)))

    def ids(self, models: Iterable[str]) -> dict[str, Chosen]:
        """Every id that chooses one of these models, or one of their adapters; the short form where it is unique."""
        models = sorted(models)
        adapters = [Chosen(model, adapter) for model in models for adapter in self.of(model) or ()]
        uses = Counter([*models, *(each.adapter for each in adapters)])
        listed = {model: Chosen(model) for model in models}
        for each in adapters:
            short = each.adapter if uses[each.adapter] == 1 else None
            listed.setdefault(short or each.qualified, each)
        return listed

    def _among(self, id_: str, models: frozenset[str]) -> Chosen | None:
        if id_ in models:
            return Chosen(id_)
        # Both names may hold the separator.
        places = [place for place, character in enumerate(id_) if character == SEPARATOR]
        split = [(id_[:place], id_[place + 1 :]) for place in places if id_[:place] in models and id_[place + 1 :]]
        for model, adapter in split:
            names = self.of(model)
            if names is None or adapter in names:
                return Chosen(model, adapter)
        having = sorted(model for model in models if id_ in (self.of(model) or ()))
        if len(having) > 1:
            choices = ", ".join(Chosen(model, id_).qualified for model in having)
            message = f"several models have an adapter named {id_!r}; say whose: {choices}"
            raise InvalidRequest(f"model: {message}", errors=[{"field": "model", "message": message}])
        if having:
            return Chosen(having[0], id_)
        if split:
            model, adapter = split[0]
            names = self.of(model) or ()
            qualified = [Chosen(model, name).qualified for name in names]
            raise ModelNotFound(_missing(model, adapter, names), models=[model, *qualified])
        return None


def _names(model: str, config: Path, arguments: Path, adapters: Path) -> Names | None:
    if stamp_of(adapters) == ABSENT:
        # A folder with its configuration is whole; templates alone may lie here without the rest.
        return None if stamp_of(config) == ABSENT else ()
    try:
        if stamp_of(arguments) != ABSENT:
            enabled = json.loads(arguments.read_text("utf-8")).get("enable_lora", "")
            # The backend takes the text as well.
            if str(enabled).lower() != "true":
                return ()
        return tuple(json.loads(adapters.read_text("utf-8")).keys())
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        log.warning(
            "the model's adapters cannot be read", model=model, file=f"{VERSION}/{ADAPTERS_FILE}", reason=str(error)
        )
        return None


def _missing(model: str, adapter: str, names: Names) -> str:
    there = f"Its adapters are: {shown(names)}." if names else "It has none."
    return f"The model {model!r} has no adapter named {adapter!r}. {there}"
