"""A hub on loopback that speaks the parts of Hugging Face's API that downloads use, and fails on demand.

`python3 server.py PORT FOLDER LOG [PATH=BYTES ...]` serves `FOLDER/<owner>/<name>/<path>`, cuts what it sends of a path
once after so many bytes, and needs the standard library alone.
"""

import hashlib
import http.server
import json
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# Smaller files are in git itself: no SHA-256 is told of them, and no other address has them.
LARGE = 1000


class Asked(NamedTuple):
    """A request; `sent` are the bytes of a file that went out for it."""

    method: str
    path: str
    range: str
    authorization: str
    sent: int


class Hub:
    """`cut` and `flip` spoil the next answer with a file, by its path: after so many bytes, or in its middle byte."""

    def __init__(self, port: int = 0) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.requests: list[Asked] = []
        self.cut: dict[str, list[int]] = {}
        self.flip: Counter[str] = Counter()
        self.unavailable = 0
        self.without_ranges = False
        self.token = ""
        self.log: Path | None = None
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def serve(self) -> None:
        self._server.serve_forever(poll_interval=0.05)

    def sent(self, path: str) -> int:
        """The bytes of a file that went out, in all answers together."""
        return sum(each.sent for each in self.requests if each.path.endswith(path))


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        is_listing = parts[0] == "api"
        repository = "/".join(parts[2:4] if is_listing else parts[:2])
        revision = (parts[5:6] or ["main"])[0] if is_listing else parts[3]
        path = "/".join(parts[4:])
        files = self.hub.repositories.get(repository, {})
        if self.hub.unavailable:
            self.hub.unavailable -= 1
            self._error(503, "", **{"Retry-After": "0"})
        elif parts[0] == "cdn":
            self._send_file("/".join(parts[1:3]), "/".join(parts[3:]))
        elif not files or (self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}"):
            self._error(401, "RepoNotFound")
        elif revision not in (COMMIT, "main"):
            self._error(404, "RevisionNotFound")
        elif is_listing:
            listing = {"id": repository, "sha": COMMIT, "siblings": [_entry(*each) for each in files.items()]}
            self._send(200, json.dumps(listing).encode(), **{"Content-Type": "application/json"})
        elif path not in files:
            self._error(404, "EntryNotFound")
        elif len(files[path]) < LARGE:
            self._send_file(repository, path)
        else:
            # By another name of this machine, as the hub's files are at an address of their own.
            url = f"http://localhost:{self.hub.port}/cdn/{repository}/{path}?Signature=x"
            self._send(302, b"", Location=url, **_headers(files[path]))

    def _send_file(self, repository: str, path: str) -> None:
        whole = self.hub.repositories[repository][path]
        start = 0
        asked = self.headers.get("Range", "")
        headers = _headers(whole)
        if asked and not self.hub.without_ranges:
            start = int(asked.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(whole) - 1}/{len(whole)}"
        body = whole[start:]
        if self.hub.flip[path] and self.command == "GET":
            self.hub.flip[path] -= 1
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        self._send(206 if "Content-Range" in headers else 200, body, path=path, **headers)

    def _send(self, status: int, body: bytes, path: str = "", **headers: str) -> None:
        size = len(body)
        if self.command == "HEAD":
            body = b""
        elif cuts := self.hub.cut.get(path):
            body = body[: cuts.pop(0)]
            self.close_connection = True
        # Before anything is sent: whoever has the answer finds it in the log.
        self._log(len(body) if path else 0)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(size)}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _error(self, status: int, code: str, **headers: str) -> None:
        self._send(status, b"{}", **{"X-Error-Code": code, **headers})

    def _log(self, sent: int) -> None:
        headers = self.headers
        path = urlsplit(self.path).path
        asked = Asked(self.command, path, headers.get("Range", ""), headers.get("Authorization", ""), sent)
        self.hub.requests.append(asked)
        if self.hub.log:
            with self.hub.log.open("a") as log:
                log.write(json.dumps(asked) + "\n")


def _entry(path: str, content: bytes) -> dict[str, Any]:
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": git}
    if len(content) >= LARGE:
        entry["blobId"] = "0" * 40
        entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry


def _headers(content: bytes) -> dict[str, str]:
    if len(content) < LARGE:
        tag = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
    digest = hashlib.sha256(content).hexdigest()
    return {
        "ETag": f'"{digest}"',
        "X-Linked-Etag": f'"{digest}"',
        "X-Linked-Size": str(len(content)),
        "X-Repo-Commit": COMMIT,
        "Accept-Ranges": "bytes",
    }


def main(port: str, folder: str, log: str, *cuts: str) -> None:
    hub = Hub(int(port))
    hub.log = Path(log)
    hub.cut = {path: [int(size)] for path, _, size in (cut.partition("=") for cut in cuts)}
    for path in Path(folder).rglob("*"):
        if path.is_file():
            owner, name, *rest = path.relative_to(folder).parts
            hub.repositories.setdefault(f"{owner}/{name}", {})["/".join(rest)] = path.read_bytes()
    hub.log.touch()
    hub.serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
