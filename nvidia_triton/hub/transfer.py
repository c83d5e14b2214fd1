"""One file from a Hugging Face hub: opened at a byte, with the errors that a user can mend told from those that pass.

Only the standard library, and Python 3.10: this file also runs on a rented host, whatever its Python has installed.
"""

from __future__ import annotations

import http.client
import json
import ssl
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

ENDPOINT = "https://huggingface.co"
TIMEOUT_SECONDS = 60


class DownloadError(Exception):
    """The sentence is for the user."""


class Passing(Exception):
    """Another try may succeed; after `seconds`, where the hub has said so."""

    def __init__(self, reason: str, seconds: float | None = None) -> None:
        super().__init__(reason)
        self.seconds = seconds


class _Redirects(urllib.request.HTTPRedirectHandler):
    """The token stays with the hub: where it redirects to, a signed URL is enough."""

    def redirect_request(self, request: Any, file: Any, code: int, text: str, headers: Any, url: str) -> Any:
        digest = (headers.get("X-Linked-Etag") or "").strip('W/"')
        expected = getattr(request, "sha256", None)
        if expected and len(digest) == 64 and digest != expected:
            raise DownloadError(
                f"{request.what} is another file than the one in source.json: its SHA-256 is {digest}. Write "
                "source.json anew, with REPO and REVISION."
            )
        following = super().redirect_request(request, file, code, text, headers, url)
        if following is not None:
            following.sha256, following.what = expected, request.what  # type: ignore[attr-defined]
            same = urllib.parse.urlsplit(url).netloc == urllib.parse.urlsplit(request.full_url).netloc
            if same and request.get_header("Authorization"):
                following.add_unredirected_header("Authorization", request.get_header("Authorization"))
        return following


class Hub:
    """A hub at `endpoint`. The token is sent to it and to no other address, and stands in no message."""

    def __init__(self, endpoint: str = "", token: str = "") -> None:
        self.endpoint = (endpoint or ENDPOINT).rstrip("/")
        self._token = token
        self._opener = urllib.request.build_opener(_Redirects)

    def read(self, repository: str, revision: str, path: str, start: int = 0, sha256: str = "") -> Any:
        """A response whose body is the file from byte `start` on; its status is 200 where it is the whole file.

        Raises:
            DownloadError: this cannot succeed: no such file, no access, another file than `sha256`.
            Passing: it may later.
        """
        quoted = urllib.parse.quote(path)
        url = f"{self.endpoint}/{repository}/resolve/{urllib.parse.quote(revision, safe='')}/{quoted}"
        headers = {"Range": f"bytes={start}-"} if start else {}
        return self._open(url, headers, repository, revision, f"{path} of {repository}", sha256)

    def listing(self, repository: str, revision: str) -> dict[str, Any]:
        """What the hub knows of a revision; `siblings` are its files. Raises as `read` does."""
        url = f"{self.endpoint}/api/models/{repository}/revision/{urllib.parse.quote(revision, safe='')}?blobs=true"
        with self._open(url, {}, repository, revision, repository, "") as answer:
            try:
                found = json.loads(answer.read())
            except ValueError:
                found = None
        if not isinstance(found, dict) or not isinstance(found.get("siblings"), list) or not found.get("sha"):
            raise DownloadError(f"{self.endpoint} does not answer as a Hugging Face hub does: is HF_ENDPOINT right?")
        return found

    def _check_endpoint(self) -> None:
        try:
            url = urllib.parse.urlsplit(self.endpoint)
            usable = url.scheme in ("http", "https") and bool(url.hostname)
        except ValueError:
            usable = False
        if not usable or not self.endpoint.isascii() or any(character.isspace() for character in self.endpoint):
            raise DownloadError(f"HF_ENDPOINT={self.endpoint} is not a URL: leave it out for {ENDPOINT}.")

    def _open(self, url: str, headers: dict[str, str], repository: str, revision: str, what: str, sha256: str) -> Any:
        self._check_endpoint()
        try:
            request = urllib.request.Request(  # noqa: S310 - http or https, which has been checked
                url, headers={"Accept-Encoding": "identity", "User-Agent": "triton-tickets", **headers}
            )
            request.sha256, request.what = sha256, what  # type: ignore[attr-defined]
            if self._token:
                request.add_unredirected_header("Authorization", f"Bearer {self._token}")
            return self._opener.open(request, timeout=TIMEOUT_SECONDS)
        except urllib.error.HTTPError as error:
            raise self._told(error, repository, revision, what) from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise DownloadError(f"The certificate of {self.endpoint} cannot be verified: {error.reason}") from None
            raise Passing(f"{self.endpoint} does not answer ({error.reason})") from None
        except (OSError, http.client.HTTPException) as error:
            raise Passing(f"{self.endpoint} broke the connection ({type(error).__name__})") from None

    def _told(self, error: urllib.error.HTTPError, repository: str, revision: str, what: str) -> Exception:
        code = error.headers.get("X-Error-Code", "")
        where = urllib.parse.urlsplit(self.endpoint).netloc
        if error.code in (408, 429) or error.code >= 500:
            said = error.headers.get("Retry-After", "")
            return Passing(f"{where} answers {error.code}", float(said) if said.isdigit() else None)
        if code == "RevisionNotFound":
            return DownloadError(
                f"{repository} on {where} has no revision {revision}: correct it in source.json, or write that file "
                "anew with REPO and REVISION."
            )
        if code == "EntryNotFound":
            return DownloadError(f"{repository} on {where} has no file {what.split(' of ')[0]} at {revision}.")
        if code == "GatedRepo" or error.code == 403:
            return DownloadError(
                f"{repository} is open only to those who have accepted its terms: accept them at "
                f"{self.endpoint}/{repository} and set HF_TOKEN to a token of that account."
            )
        if code == "RepoNotFound" or error.code in (401, 404):
            token = "and HF_TOKEN does not open it" if self._token else "and needs HF_TOKEN"
            return DownloadError(f"There is no {repository} on {where}, or it is private {token}.")
        return DownloadError(f"{where} answers {error.code} for {what}.")
