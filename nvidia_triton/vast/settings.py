"""What the targets are told: by the environment, then the untracked file .env.vast, then the vastai CLI's key file."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import SecretStr

from nvidia_triton.vast.errors import TargetError

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_VAST_URL = "https://console.vast.ai"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
DEFAULT_API_URL = "http://127.0.0.1:8887"
DEFAULT_KEYS = ("id_ed25519", "id_rsa")
HIDDEN = "[hidden]"


@dataclass(frozen=True)
class VastSettings:
    """`local_dir` holds the state of this checkout; `poll_seconds` is the pause between questions to Vast."""

    root: Path
    local_dir: Path
    vast_url: str
    api_url: str
    poll_seconds: float
    api_key: SecretStr | None = None
    hf_token: SecretStr | None = None
    ssh_key: Path | None = None
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)

    def require_api_key(self) -> str:
        if self.api_key is None:
            raise TargetError(
                "There is no Vast.ai API key. Make one on https://cloud.vast.ai/manage-keys/ and put a line "
                "VAST_API_KEY=... into .env.vast at the top level (untracked), or export VAST_API_KEY."
            )
        return self.api_key.get_secret_value()

    def require_ssh_key(self) -> Path:
        """The private key, which has its public half beside it."""
        if self.ssh_key is None or not self.ssh_key.is_file():
            where = f"{self.ssh_key} does not exist" if self.ssh_key else "~/.ssh holds neither id_ed25519 nor id_rsa"
            raise TargetError(
                f"There is no SSH key pair: {where}. Make one with `ssh-keygen -t ed25519`, or name another with "
                "SSH_KEY=/path/to/key."
            )
        if not public_half(self.ssh_key).is_file():
            raise TargetError(
                f"{public_half(self.ssh_key)}, the public half of the key, is missing. Write it with "
                f"`ssh-keygen -y -f {self.ssh_key} > {public_half(self.ssh_key)}`."
            )
        return self.ssh_key

    def redact(self, text: str) -> str:
        """`text` without any secret these settings know."""
        for secret in (self.api_key, self.hf_token):
            if secret is not None and secret.get_secret_value():
                text = text.replace(secret.get_secret_value(), HIDDEN)
        return text


def public_half(key: Path) -> Path:
    return key.with_name(key.name + ".pub")


def load_settings(environ: Mapping[str, str], root: Path = ROOT) -> VastSettings:
    """Reads the settings; a missing key or key pair is an error only where it is needed.

    Raises:
        TargetError: one of them cannot be meant.
    """
    try:
        file = {name: value for name, value in dotenv_values(root / ".env.vast", interpolate=False).items() if value}
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise TargetError(f".env.vast cannot be read: {reason}. It holds lines NAME=value.") from None
    merged = {**file, **{name: value for name, value in environ.items() if value}}
    api_key = (merged.get("VAST_API_KEY") or _key_of_cli(merged) or "").strip()
    if not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
        raise TargetError("VAST_API_KEY holds characters that no key has: copy it anew, without quotes or blanks.")
    poll = merged.get("VAST_POLL_SECONDS", "10")
    try:
        poll_seconds = float(poll)
        if not 0 < poll_seconds < 3600:
            raise ValueError
    except ValueError:
        raise TargetError(f"VAST_POLL_SECONDS={poll!r} is not a number of seconds, above 0 and below 3600.") from None
    return VastSettings(
        root=root,
        local_dir=Path(merged.get("LOCAL_DIR") or root / ".local").absolute(),
        vast_url=_vast_url(merged.get("VAST_URL", DEFAULT_VAST_URL)),
        api_url=merged.get("API_URL", DEFAULT_API_URL).rstrip("/"),
        poll_seconds=poll_seconds,
        api_key=SecretStr(api_key) if api_key else None,
        hf_token=SecretStr(merged["HF_TOKEN"]) if merged.get("HF_TOKEN") else None,
        ssh_key=_ssh_key(merged),
        environ=merged,
    )


def _vast_url(text: str) -> str:
    """The API key goes there with every request, so in clear text it goes no further than this machine."""
    try:
        url = urlsplit(text)
        known, host = url.scheme in ("http", "https") and bool(url.hostname), url.hostname
    except ValueError:
        known, host = False, None
    if not known:
        raise TargetError(f"VAST_URL={text!r} is not a URL: leave it out for {DEFAULT_VAST_URL}.")
    if url.scheme == "http" and host not in LOOPBACK:
        raise TargetError(f"VAST_URL={text!r} would send the API key unencrypted to {host}: use https.")
    return text.rstrip("/")


def _key_of_cli(merged: Mapping[str, str]) -> str | None:
    config = Path(merged.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    file = config / "vastai" / "vast_api_key"
    try:
        return file.read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _ssh_key(merged: Mapping[str, str]) -> Path | None:
    if named := merged.get("SSH_KEY"):
        return Path(os.path.expanduser(named)).absolute()
    return next((key for name in DEFAULT_KEYS if (key := Path.home() / ".ssh" / name).is_file()), None)
