"""Paths as a client may write them: with ids of nothing, and spelled in every way that may be taken for the same."""

from collections.abc import Iterator
from uuid import uuid4

CONTROLS = (b"%00", b"%01", b"%08", b"%09", b"%0A", b"%0a", b"%0B", b"%0D", b"%0D%0A", b"%1F", b"%7F", b"%C2%85")
LINE_ENDS = (b"%E2%80%A8", b"%E2%80%A9")


def concrete(path: str) -> str:
    """The path with ids of nothing."""
    ids = (
        "context_id",
        "result_id",
        "delivery_id",
        "comparison_id",
        "instructions_id",
        "key_id",
        "server_id",
        "host_id",
    )
    for name in ids:
        path = path.replace(f"{{{name}}}", str(uuid4()))
    for name, prefix in (("completion_id", "chatcmpl-"), ("response_id", "resp_"), ("file_id", "file-")):
        path = path.replace(f"{{{name}}}", prefix + uuid4().hex)
    return (
        path.replace("{batch_id}", "batch_" + uuid4().hex)
        .replace("{model_name}", "tiny")
        .replace("{model:path}", "tiny")
        .replace("{setting}", "LOG_LEVEL")
    )


def mutations(path: bytes, host: bytes) -> Iterator[bytes]:
    """The path, written in all ways that some server, proxy or router has once taken for the same."""
    yield path
    for control in (*CONTROLS, *LINE_ENDS):
        yield path + control
    yield b"/%0A" + path[1:]
    yield path.rstrip(b"/") + b"%0A/"
    yield path + b"/"
    yield path.rstrip(b"/")
    yield b"/" + path
    yield path.replace(b"/", b"//")
    yield path + b"//"
    yield b"/." + path
    yield path + b"."
    yield path + b"/."
    yield path + b"/.."
    yield b"/health/live/.." + path
    yield b"/health/../" + path[1:]
    yield b"/docs/.." + path
    yield b"/v1/models/../.." + path
    yield b"/health/live/%2e%2e" + path
    yield b"/%2e" + path
    yield path.upper()
    yield path.title()
    yield path + b";x"
    yield path + b";/health/live"
    yield b"/;x" + path
    yield path.rstrip(b"/") + b";x=y/"
    yield b"/" + path[1:].replace(b"/", b"%2F")
    yield b"/" + path[1:].replace(b"/", b"%2f")
    yield b"/%2F" + path[1:]
    yield path + b"%2F"
    yield path + b"%5C"
    yield path.replace(b"/", b"\\")
    yield path + b"%20"
    yield path + b"%3F"
    yield path + b"%23"
    yield path + b"?/health/live"
    yield path + b"?_method=POST"
    yield path + b"#/health/live"
    yield path + b"%250A"
    yield path + b"%C0%8A"
    yield path + b"%EF%BC%8F"
    yield b"/" + b"".join(b"%%%02X" % byte for byte in path[1:])
    yield b"http://" + host + path
    yield b"http://" + host + path + b"%0A"
    yield b"http://elsewhere.example" + path
    yield b"http://" + host + b"//" + path
    yield b"http:" + path
    yield path[1:]
    yield path + b"\x0b"
    yield path + b"\x01"
    yield path + b"\x7f"
