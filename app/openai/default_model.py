"""Which model answers a request that names none."""

from __future__ import annotations

from app.errors import invalid
from app.openai.requests import Sources
from app.services.callers import Caller
from app.services.catalog import shown


async def model_or_default(
    services: Sources, caller: Caller, named: str | None, field: str = "model", *, embeds: bool = False
) -> str:
    """The model that a request names, else the default, else the only one that chats, or that `embeds`.

    Raises:
        InvalidRequest: it names none, no default is set, and the caller may use several, or none.
    """
    chosen = named or (None if embeds else services.settings.default_model)
    if chosen:
        return chosen
    entries = [entry for entry in await services.catalog.models() if caller.may_use(entry.name)]
    served = [entry.name for entry in entries if entry.public_state != "unavailable"] or [
        entry.name for entry in entries
    ]
    able = {name: services.profiles.of(name).capabilities for name in served}
    fitting = [name for name, can in able.items() if can is None or (can.embed if embeds else can.chat)]
    if len(fitting) == 1:
        return fitting[0]
    there = f"there are {shown(fitting)}" if fitting else f"no server serves one that {'embeds' if embeds else 'chats'}"
    raise invalid(field, f"name the model{'' if embeds else ', or have DEFAULT_MODEL set'}: {there}")
