"""Where webhooks may go."""

from ipaddress import ip_address

import pytest

from app.config import Settings
from app.errors import InvalidRequest
from app.services.addresses import AddressPolicy, is_public, literal
from app.services.webhooks import Webhook, accepted

PUBLIC = ["8.8.8.8", "93.184.215.14", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
LOCAL = ["127.0.0.1", "127.8.9.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "::1", "fd12::1", "::ffff:127.0.0.1"]
LOCAL += ["64:ff9b::a00:1"]
# Refused also where private addresses are allowed.
NEVER = ["0.0.0.0", "::", "169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "fd00:ec2::254"]
NEVER += ["168.63.129.16", "100.100.100.200", "fe80::1", "224.0.0.1", "ff02::1", "240.0.0.1", "255.255.255.255"]
NEVER += ["2002:7f00:1::", "2002:a9fe:a9fe::1", "::7f00:1", "64:ff9b:1::1", "100.64.0.1", "192.0.0.192"]


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses_are_reached(text: str) -> None:
    assert is_public(ip_address(text))
    assert AddressPolicy().allows(ip_address(text))


@pytest.mark.parametrize("text", LOCAL)
def test_private_addresses_are_reached_where_they_are_allowed(text: str) -> None:
    assert not AddressPolicy().allows(ip_address(text))
    assert AddressPolicy(private=True).allows(ip_address(text))


@pytest.mark.parametrize("text", NEVER)
def test_some_addresses_are_never_reached(text: str) -> None:
    assert not AddressPolicy().allows(ip_address(text))
    assert not AddressPolicy(private=True).allows(ip_address(text))


def test_an_allowed_network_is_reached_and_nothing_beside_it() -> None:
    policy = AddressPolicy.of(False, ["10.1.0.0/16", "fd12::/64"])
    assert [policy.allows(ip_address(each)) for each in ("10.1.2.3", "fd12::5", "::ffff:10.1.2.3")] == [True] * 3
    assert [policy.allows(ip_address(each)) for each in ("10.2.2.3", "fd13::5", "127.0.0.1")] == [False] * 3


def test_numeric_forms_of_an_address_are_that_address() -> None:
    assert {str(literal(text)) for text in ("127.1", "2130706433", "0x7f.1", "0177.0.0.1", "127.0.0.1")} == {
        "127.0.0.1"
    }
    assert literal("example.com") is None


def url_of(url: str, **settings: object) -> str:
    stored = accepted(Webhook(url=url), Settings(**settings))  # type: ignore[arg-type]
    assert stored is not None
    return str(stored["url"])


def test_a_url_is_stored_in_its_normal_form() -> None:
    assert url_of("HTTPS://Example.COM:443/a b?c=d#e") == "https://example.com/a%20b?c=d"
    assert url_of("https://例え.jp/") == "https://xn--r8jz45g.jp/"
    assert url_of("http://8.8.8.8:8080/") == "http://8.8.8.8:8080/"
    assert url_of("https://[2606:4700::1111]/x") == "https://[2606:4700::1111]/x"


@pytest.mark.parametrize(
    "url",
    [
        "x",
        "ftp://example.com/",
        "file:///etc/passwd",
        "https:///path",
        "https://user:secret@example.com/",
        "https://a\\@127.0.0.1/",
        "http://127.0.0.1/",
        "http://127.1/",
        "http://2130706433/",
        "http://0/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[fe80::1%25eth0]/",
        "http://169.254.169.254/latest/meta-data/",
        "http://localhost/",
        "http://x.localhost./",
        "http://exa%2emple.com/",
        "http://a..b/",
        "https://example.com:0/",
        "https://example.com:70000/",
        "https://example.com/\r\nX: y",
        "https://example.com/" + "é" * 900,
    ],
)
def test_urls_that_lead_nowhere_or_inside_are_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match=r"webhook\.url: ") as refused:
        url_of(url)
    assert refused.value.errors is not None
    assert refused.value.errors[0]["field"] == "webhook.url"


def test_production_takes_https_alone_unless_allowed() -> None:
    production = {"environment": "production", "database_url": "postgresql://a:something-long@db/x"}
    assert url_of("https://example.com/", **production) == "https://example.com/"
    assert url_of("http://example.com/", **production, webhook_allow_http=True) == "http://example.com/"
    with pytest.raises(InvalidRequest, match="WEBHOOK_ALLOW_HTTP"):
        url_of("http://example.com/", **production)


def test_a_network_that_is_none_is_named_at_the_start() -> None:
    with pytest.raises(ValueError, match=r"WEBHOOK_ALLOW_NETWORKS: '10\.1\.2\.3/16'"):
        Settings(webhook_allow_networks=("10.1.2.3/16",))
