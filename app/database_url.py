"""A connection URL as libpq and psql read it, with the PG* variables for what it leaves out.

https://www.postgresql.org/docs/current/libpq-connect.html
"""

from __future__ import annotations

import os
import shlex
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

SCHEMES = ("postgresql", "postgres")
CONNECT_SECONDS = 5.0
SYSTEM_CA = "system"
SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
CHOICES = {
    "sslmode": SSL_MODES,
    "sslnegotiation": ("postgres", "direct"),
    "target_session_attrs": ("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
    "ssl_min_protocol_version": ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"),
    "ssl_max_protocol_version": ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"),
}
FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
# What asyncpg reads from the URL, or from these variables, by itself.
VARIABLES = {
    "host": "PGHOST",
    "port": "PGPORT",
    "dbname": "PGDATABASE",
    "user": "PGUSER",
    "password": "PGPASSWORD",
    "passfile": "PGPASSFILE",
    "service": "PGSERVICE",
    "sslmode": "PGSSLMODE",
    "sslnegotiation": "PGSSLNEGOTIATION",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "sslpassword": "",
    "sslcrl": "PGSSLCRL",
    "ssl_min_protocol_version": "PGSSLMINPROTOCOLVERSION",
    "ssl_max_protocol_version": "PGSSLMAXPROTOCOLVERSION",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
    "krbsrvname": "PGKRBSRVNAME",
}
# What is read here.
OWN_VARIABLES = {
    "options": "PGOPTIONS",
    "application_name": "PGAPPNAME",
    "fallback_application_name": "",
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "client_encoding": "PGCLIENTENCODING",
}
# Where the driver can do what one of these values asks for, and nothing else.
HARMLESS = {
    "channel_binding": ("disable", "prefer"),
    "gssencmode": ("disable", "prefer"),
    "load_balance_hosts": ("disable",),
    "sslcertmode": ("allow",),
    "sslcompression": ("0",),
    "sslsni": ("1",),
}
# libpq has them, and to pass over one could weaken the connection: they are refused, also as variables.
UNSUPPORTED_VARIABLES = {
    "channel_binding": "PGCHANNELBINDING",
    "gssencmode": "PGGSSENCMODE",
    "hostaddr": "PGHOSTADDR",
    "load_balance_hosts": "PGLOADBALANCEHOSTS",
    "require_auth": "PGREQUIREAUTH",
    "requirepeer": "PGREQUIREPEER",
    "sslcertmode": "PGSSLCERTMODE",
    "sslcrldir": "PGSSLCRLDIR",
}


@dataclass(frozen=True, slots=True)
class ConnectArguments:
    """How to connect; `dsn` goes to asyncpg, which reads the PG* variables for what it leaves out.

    `settings` are run-time parameters of the session, `timeout` is in seconds.
    """

    dsn: str
    settings: dict[str, str] = field(default_factory=dict)
    timeout: float = CONNECT_SECONDS
    ssl: ssl.SSLContext | None = None
    password: str = field(default="", repr=False)


def connect_arguments(
    url: str, name: str = "DATABASE_URL", environ: Mapping[str, str] = os.environ
) -> ConnectArguments:
    """Parses `url`; `name` is the setting it comes from.

    Raises:
        ValueError: one sentence that says what cannot work.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ValueError(f"{name} is no URL: {error}") from None
    if parts.scheme not in SCHEMES:
        raise ValueError(f"{name} must start with postgresql://")
    if parts.fragment:
        raise ValueError(f"{name} holds a #: write it as %23 where it belongs to the password or another part")
    given = _query(parts.query, name)
    for key, variable in UNSUPPORTED_VARIABLES.items():
        if key not in given and environ.get(variable):
            _refuse_unsupported(variable, key, environ[variable])
    effective = {
        key: given.get(key) or (environ.get(variable) or "" if variable else "")
        for key, variable in {**VARIABLES, **OWN_VARIABLES}.items()
    }
    for key, choices in CHOICES.items():
        if effective[key] and effective[key] not in choices:
            raise ValueError(f"{name}: {key} is one of {', '.join(choices)}; {effective[key]!r} is not")
    credentials, _, hosts = parts.netloc.rpartition("@")
    _check_hosts(unquote(hosts) or effective["host"], effective["port"], name)
    context = _system_context(effective, name) if effective["sslrootcert"] == SYSTEM_CA else None
    if context is None:
        _check_files(effective, name, environ)
    forwarded = {key: value for key, value in given.items() if key in VARIABLES}
    if context is not None:
        forwarded = {key: value for key, value in forwarded.items() if not key.startswith("ssl")}
    path = parts.path if parts.path != "/" else ""
    query = urlencode(forwarded, quote_via=quote)
    return ConnectArguments(
        dsn=f"postgresql://{parts.netloc}{path}" + (f"?{query}" if query else ""),
        settings=_settings(effective, name),
        timeout=_timeout(effective["connect_timeout"], name),
        ssl=context,
        password=unquote(credentials.partition(":")[2]) or effective["password"],
    )


def _query(text: str, name: str) -> dict[str, str]:
    try:
        # A plus sign is itself, as libpq has it.
        pairs = parse_qsl(text.replace("+", "%2B"), keep_blank_values=True, strict_parsing=bool(text))
    except ValueError:
        raise ValueError(f"{name}: what follows the ? is not of the form name=value&name=value") from None
    given = dict(pairs)
    if "database" in given:
        given["dbname"] = given.pop("database")
    for key, value in given.items():
        if key in UNSUPPORTED_VARIABLES or key in HARMLESS:
            _refuse_unsupported(f"{name}: {key}", key, value)
        elif key not in VARIABLES and key not in OWN_VARIABLES:
            raise ValueError(
                f"{name}: there is no connection parameter {key!r} here; run-time parameters of Postgres go into "
                f"options=-c%20name=value, and those known are {', '.join(sorted({**VARIABLES, **OWN_VARIABLES}))}"
            )
    return given


def _refuse_unsupported(where: str, key: str, value: str) -> None:
    harmless = HARMLESS.get(key, ())
    if value not in harmless:
        able = f"; it can be {' or '.join(harmless)}" if harmless else ""
        raise ValueError(f"{where}={value} is something that this service's driver cannot do: leave it out{able}")


def _check_hosts(hosts: str, ports: str, name: str) -> None:
    specs = [] if not hosts else hosts.split(",")
    for spec in specs:
        host, port = spec, ""
        if spec.startswith("["):
            host, _, port = spec.rpartition("]")
            port = port.removeprefix(":")
        elif not spec.startswith("/"):
            host, _, port = spec.partition(":")
        if not host:
            raise ValueError(f"{name}: a host is missing in {hosts!r}")
        _check_port(port, name)
    listed = ports.split(",") if ports else []
    for port in listed:
        _check_port(port, name)
    if len(listed) > 1 and len(specs) != len(listed):
        raise ValueError(f"{name}: {len(listed)} ports for {len(specs) or 1} hosts")


def _check_port(text: str, name: str) -> None:
    if text and not (text.isascii() and text.isdecimal() and 0 < int(text) < 65536):
        raise ValueError(f"{name}: {text!r} is no port from 1 to 65535")


def _timeout(text: str, name: str) -> float:
    if not text:
        return CONNECT_SECONDS
    try:
        seconds = int(text)
    except ValueError:
        raise ValueError(f"{name}: connect_timeout={text} is no number of seconds") from None
    # Without an end, to libpq; a process must notice.
    return float(seconds) if seconds > 0 else CONNECT_SECONDS


def _settings(effective: Mapping[str, str], name: str) -> dict[str, str]:
    """The run-time parameters that `options` sets as `-c name=value` or `--name=value`, and the application's name."""
    settings = {}
    if application := effective["application_name"] or effective["fallback_application_name"]:
        settings["application_name"] = application
    if effective["client_encoding"] and effective["client_encoding"].lower().replace("-", "") not in ("utf8", "auto"):
        raise ValueError(f"{name}: client_encoding is always UTF8 here; leave it out")
    try:
        words = shlex.split(effective["options"])
    except ValueError:
        words = ["'"]
    while words:
        word = words.pop(0)
        if word == "-c" and words:
            word = words.pop(0)
        elif word.startswith(("--", "-c")):
            word = word[2:]
        else:
            word = ""
        key, equals, value = word.partition("=")
        if not equals or not key.replace(".", "_").replace("-", "_").isidentifier():
            raise ValueError(f"{name}: options={effective['options']!r} is not a list of -c name=value")
        settings[key.replace("-", "_")] = value
    return settings


def _system_context(effective: Mapping[str, str], name: str) -> ssl.SSLContext:
    if effective["sslmode"] not in ("", "verify-full"):
        raise ValueError(f"{name}: sslrootcert=system needs sslmode=verify-full, as libpq does")
    context = ssl.create_default_context()
    context.set_alpn_protocols(["postgresql"])
    if effective["sslcert"]:
        _load_client_certificate(context, effective, name)
    return context


def _check_files(effective: Mapping[str, str], name: str, environ: Mapping[str, str]) -> None:
    """Loads once what each connection will load, so that what is amiss is said at the start."""
    mode = effective["sslmode"]
    if mode == "disable":
        return
    for key in FILES:
        if effective[key]:
            try:
                with Path(effective[key]).open("rb"):
                    pass
            except OSError as error:
                raise ValueError(
                    f"{name}: {key} names {effective[key]}, which cannot be read ({error.strerror})"
                ) from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for key in ("sslrootcert", "sslcrl"):
        if effective[key]:
            try:
                context.load_verify_locations(cafile=effective[key])
            except ssl.SSLError:
                raise ValueError(f"{name}: {key} names {effective[key]}, which is no PEM file") from None
    if effective["sslcert"]:
        _load_client_certificate(context, effective, name)
    authority = effective["sslrootcert"] or effective["service"]
    default = Path(environ.get("HOME", "")) / ".postgresql" / "root.crt"
    if mode.startswith("verify-") and not authority and not default.is_file():
        raise ValueError(
            f"{name}: sslmode={mode} needs sslrootcert, the file with the CA's certificate, or sslrootcert=system for "
            "the CAs that this machine trusts"
        )


def _load_client_certificate(context: ssl.SSLContext, effective: Mapping[str, str], name: str) -> None:
    password = effective["sslpassword"]
    try:
        context.load_cert_chain(effective["sslcert"], effective["sslkey"] or None, lambda: password)
    except (OSError, ssl.SSLError):
        raise ValueError(
            f"{name}: sslcert and sslkey are no certificate and its key in PEM, or sslpassword does not open the key"
        ) from None
