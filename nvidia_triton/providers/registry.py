"""Which providers there are, and what a program needs to open one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvidia_triton.providers.base import Provider, Refused
from nvidia_triton.providers.command import CommandProvider
from nvidia_triton.providers.ec2 import Ec2Provider
from nvidia_triton.providers.vast import VastProvider
from nvidia_triton.vast.definition import InstanceDefinition, load_definition
from nvidia_triton.vast.errors import TargetError
from nvidia_triton.vast.preflight import check_login
from nvidia_triton.vast.settings import VastSettings, load_settings

NAMES = ("vast", "command", "ec2")


def open_provider(name: str, options: Mapping[str, Any], settings: VastSettings) -> Provider:
    """`options` are the provider's own: none of Vast.ai, see `CommandOptions` and `Ec2Options`.

    Raises:
        Refused: there is no such provider, or it cannot be used so.
    """
    match name:
        case "vast":
            if options:
                raise Refused(f"The provider vast has no settings of its own: leave out {', '.join(options)}.")
            try:
                settings.require_api_key()
            except TargetError as error:
                raise Refused(str(error)) from None
            return VastProvider(settings)
        case "command":
            return CommandProvider(options, settings)
        case "ec2":
            return Ec2Provider(options)
        case _:
            raise Refused(f"There is no provider {name}: use one of {', '.join(NAMES)}.")


def open_settings(environ: Mapping[str, str]) -> VastSettings:
    """Keys and the folder for state, from the environment and .env.vast.

    Raises:
        Refused: one of them cannot be meant, or nobody could log in to a host.
    """
    try:
        settings = load_settings(environ)
        check_login(settings)
    except TargetError as error:
        raise Refused(str(error)) from None
    return settings


def open_definition(path: Path, **changes: Any) -> InstanceDefinition:
    """The definition in a file, with keys of it changed: those of a pool.

    Raises:
        Refused: the file or a key cannot be used.
    """
    try:
        return load_definition(path, changes)
    except TargetError as error:
        raise Refused(str(error)) from None
