"""Bodies as real clients send them: compressed, and with a byte order mark."""

import gzip
import json
import zlib

import pytest
import zstandard

from tests.service import Service

BODY = json.dumps({"content": "Grüße. " * 400}).encode()
JSON = {"Content-Type": "application/json"}


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


PACKED = {
    "gzip": gzip.compress(BODY),
    "GZIP": gzip.compress(BODY[:10]) + gzip.compress(BODY[10:]),
    "x-gzip": gzip.compress(BODY),
    "deflate": zlib.compress(BODY),
    "Deflate": raw_deflate(BODY),
    "zstd": zstandard.compress(BODY),
    "identity": BODY,
    "": BODY,
}


@pytest.mark.parametrize("coding", PACKED)
async def test_a_compressed_body_is_read(api: Service, coding: str) -> None:
    answer = await api.client.post("/contexts/", content=PACKED[coding], headers=JSON | {"Content-Encoding": coding})
    assert answer.status_code == 201, answer.text
    stored = (await api.client.get(f"/contexts/{answer.json()['id']}")).json()
    assert stored["content"] == json.loads(BODY)["content"]


@pytest.mark.parametrize("type_", ["application/json; charset=utf-8", "application/json;charset=UTF-8"])
async def test_a_byte_order_mark_and_a_charset_are_no_error(api: Service, type_: str) -> None:
    body = b"\xef\xbb\xbf" + BODY
    answer = await api.client.post("/contexts/", content=body, headers={"Content-Type": type_})
    assert answer.status_code == 201, answer.text


@pytest.mark.parametrize("coding", ["br", "gzip, gzip", "compress"])
async def test_another_coding_is_an_unsupported_media_type(api: Service, coding: str) -> None:
    answer = await api.client.post("/contexts/", content=BODY, headers=JSON | {"Content-Encoding": coding})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
    assert "zstd" in answer.json()["detail"]


@pytest.mark.parametrize("coding", ["gzip", "deflate", "Deflate", "zstd"])
@pytest.mark.parametrize("how", ["cut", "other"])
async def test_what_is_not_whole_or_not_compressed_is_malformed(api: Service, coding: str, how: str) -> None:
    body = PACKED[coding][:-10] if how == "cut" else b"\xff" * 50
    answer = await api.client.post("/contexts/", content=body, headers=JSON | {"Content-Encoding": coding})
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_body")


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
async def test_the_limit_holds_for_what_comes_out(api: Service, coding: str) -> None:
    bomb = b" " * 64 * 1024 * 1024
    packed = {"gzip": gzip.compress, "deflate": zlib.compress, "zstd": zstandard.compress}[coding](bomb)
    assert len(packed) < api.settings.max_body_bytes
    answer = await api.client.post("/contexts/", content=packed, headers=JSON | {"Content-Encoding": coding})
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
