"""What DATABASE_URL may hold, and the sentence for what it may not."""

from pathlib import Path

import pytest

from app.config import Settings, SettingsError, load_settings
from app.database_url import connect_arguments

HOST = "postgresql://u:p@h/d"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://h/d", "must start with postgresql://"),
        (f"{HOST}?sslmod=require", "no connection parameter 'sslmod'"),
        (f"{HOST}?statement_timeout=5s", "options=-c%20name=value"),
        (f"{HOST}?sslmode=on", "sslmode is one of disable, allow, prefer, require, verify-ca, verify-full"),
        (f"{HOST}?target_session_attrs=master", "target_session_attrs is one of"),
        (f"{HOST}?sslmode=verify-full&sslrootcert=/nowhere/ca.pem", "sslrootcert names /nowhere/ca.pem, which cannot"),
        (f"{HOST}?sslmode=verify-full&sslrootcert={__file__}", "is no PEM file"),
        (f"{HOST}?sslmode=require&sslcert={__file__}&sslkey={__file__}", "no certificate and its key in PEM"),
        (f"{HOST}?sslmode=verify-ca", "needs sslrootcert"),
        (f"{HOST}?sslmode=require&sslrootcert=system", "needs sslmode=verify-full"),
        (f"{HOST}?channel_binding=require", "channel_binding=require is something"),
        (f"{HOST}?require_auth=scram-sha-256", "require_auth=scram-sha-256 is something"),
        (f"{HOST}?sslmode", "name=value&name=value"),
        (f"{HOST}?options=-x", "is not a list of -c name=value"),
        (f"{HOST}?connect_timeout=soon", "is no number of seconds"),
        ("postgresql://u:p@h:99999/d", "'99999' is no port"),
        ("postgresql://u:p@a:1,b:x/d", "'x' is no port"),
        ("postgresql://u:p@a,b,c/d?port=1,2", "2 ports for 3 hosts"),
        ("postgresql://u:p#q@h/d", "%23"),
    ],
)
def test_what_cannot_work_is_named_at_the_start(
    url: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("DATABASE_URL", "DATABASE_LISTEN_URL"):
        with monkeypatch.context() as patch:
            patch.setenv(name, url)
            with pytest.raises(SettingsError) as refused:
                load_settings()
        assert words in str(refused.value)
        assert name in str(refused.value)
        assert "p@h" not in str(refused.value)


def test_a_variable_that_cannot_be_heeded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGCHANNELBINDING", "require")
    with pytest.raises(ValueError, match="PGCHANNELBINDING=require"):
        connect_arguments(HOST)


def test_what_goes_where() -> None:
    url = "postgresql://u:p%2B@a:1,b:2/d?target_session_attrs=read-write&options=-c%20jit%3Don%20--search-path=x"
    arguments = connect_arguments(f"{url}&application_name=me&connect_timeout=9&channel_binding=prefer", environ={})
    assert arguments.settings == {"application_name": "me", "jit": "on", "search_path": "x"}
    assert arguments.timeout == 9
    assert arguments.dsn == "postgresql://u:p%2B@a:1,b:2/d?target_session_attrs=read-write"
    assert arguments.password == "p+"


@pytest.mark.parametrize("setting", ["database_url", "database_listen_url"])
def test_a_development_password_is_refused_in_production_wherever_it_stands(
    setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = "postgresql://u:long-and-random@h/d"
    values = {"environment": "production", "database_url": good}
    for bad in ("postgresql://u:changeme@h/d", "postgresql://u@h/d?password=changeme"):
        with pytest.raises(ValueError, match=f"{setting.upper()} holds a development password"):
            Settings(**{**values, setting: bad})
    monkeypatch.setenv("PGPASSWORD", "changeme")
    with pytest.raises(ValueError, match="development password"):
        Settings(**{**values, setting: "postgresql://u@h/d"})
