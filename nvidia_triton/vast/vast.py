"""The Vast.ai API: the one importer of its SDK, and the one place that knows its odd shapes and its errors."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from types import NoneType
from typing import Any, TypeVar

import requests
from vastai import VastAI

from nvidia_triton.vast.context import Instance
from nvidia_triton.vast.errors import TargetError
from nvidia_triton.vast.rows import Row, parse, part
from nvidia_triton.vast.settings import VastSettings
from nvidia_triton.vast.work import Work

# Seconds between calls of a kind, as Vast.ai documents them.
PAUSES = {"show": 2.0, "search": 2.0, "create": 4.5, "destroy": 3.0, "change": 3.0, "ssh": 1.0}
TRIES = 6
FIRST_BACKOFF_SECONDS = 2.0
LONGEST_BACKOFF_SECONDS = 20.0
READ_TIMEOUT_SECONDS = 30.0
CREATE_TIMEOUT_SECONDS = 60.0
PAGES = 200
OFFERS = 512
# What the SDK raises when it takes an answer apart that is not as it expects.
OTHER_SHAPE = (ValueError, KeyError, TypeError, AttributeError)

T = TypeVar("T")


class OfferGone(TargetError):
    """Somebody else has rented it; nothing was made."""


class Doubtful(TargetError):
    """The answer to a create was lost or unclear: an instance may exist."""


class InstanceGone(TargetError):
    """Vast.ai knows no such instance (any more)."""


class Refused(TargetError):
    """Vast.ai understood and said no."""


class Unavailable(TargetError):
    """Vast.ai does not answer, is in trouble, or asks to slow down; later it may work."""


class SlowDown(Unavailable):
    """Turned away before anything was done."""


class VastClient:
    """Calls to Vast.ai, paced as it asks for. Reads and changes are repeated while it is in trouble, create never."""

    def __init__(self, settings: VastSettings, work: Work | None = None, *, tries: int = TRIES) -> None:
        self._settings = settings
        self._work = work or Work()
        self._tries = tries
        self._called: dict[str, float] = {}
        # retry counts the tries. The SDK would repeat a create that answered 503 after it made the instance.
        self._sdk = VastAI(api_key=settings.require_api_key(), server_url=settings.vast_url, retry=1)
        self._sdk.client.timeout = READ_TIMEOUT_SECONDS

    def offers(self, query: str, *, storage: float, defaults: bool = True, kind: str = "on-demand") -> list[Row]:
        """Offers for a query of the vastai CLI's language, the cheapest first; `storage` in GB, `kind` also `bid`."""

        found = self._repeated(
            "search",
            lambda: self._sdk.search_offers(
                query=query, type=kind, order="dph_total", limit=OFFERS, storage=storage, no_default=not defaults
            ),
        )
        return [row for row in found if isinstance(row, dict) and row.get("id")] if isinstance(found, list) else []

    def create(
        self,
        offer: int,
        *,
        image: str,
        disk: float,
        label: str,
        env: Mapping[str, str],
        onstart: str,
        bid: float | None = None,
    ) -> int:
        """Rents an offer, with a bid an interruptible one, and returns the contract id. Called once, whatever happens.

        Raises:
            OfferGone, Refused: nothing was made.
            Doubtful: look for the label.
        """
        self._pace("create")
        self._sdk.client.timeout = CREATE_TIMEOUT_SECONDS
        try:
            answer = self._sdk.create_instance(
                offer,
                image=image,
                disk=disk,
                label=label,
                env=dict(env),
                onstart_cmd=onstart,
                bid_price=bid,
                ssh=True,
                direct=True,
                cancel_unavail=True,
            )
        except requests.HTTPError as error:
            problem = self._problem(error)
            if isinstance(problem, Unavailable) and not isinstance(problem, SlowDown):
                raise Doubtful(str(problem)) from None
            raise (offer_gone() if isinstance(problem, InstanceGone) else problem) from None
        except (requests.RequestException, *OTHER_SHAPE) as error:
            raise Doubtful(str(self._silence(error))) from None
        finally:
            self._sdk.client.timeout = READ_TIMEOUT_SECONDS
        contract = answer.get("new_contract") if isinstance(answer, dict) else None
        if isinstance(contract, int) and answer.get("success", True):
            return contract
        if isinstance(answer, dict) and answer.get("success") is False:
            raise self._no(answer)
        raise Doubtful("Vast.ai's answer names no contract.")

    def instance(self, contract_id: int) -> Instance | None:
        """None when there is no such instance (any more)."""

        def show() -> Instance | None:
            # The SDK's show_instance fails on a row without start_date, which instances have while they are made.
            answer = self._sdk.client.get(f"/instances/{contract_id}/", query_args={"owner": "me"})
            answer.raise_for_status()
            row = part(answer.json(), "instances", dict, NoneType)
            return None if row is None else parse(row)

        try:
            return self._repeated("show", show)
        except InstanceGone:
            return None

    def instances(self) -> list[Instance]:
        """All instances of the account."""
        found: list[Instance] = []
        params: Row = {"select_filters": {}, "order_by": [{"col": "id", "dir": "asc"}], "limit": 25}
        for _ in range(PAGES):
            rows, token = self._repeated("show", partial(self._page, params))
            found += rows
            if not token:
                break
            params = params | {"after_token": token}
        return found

    def _page(self, params: Row) -> tuple[list[Instance], Any]:
        page = self._sdk.show_instances_v1(params)
        rows = [parse(row) for row in part(page, "instances", list) if isinstance(row, dict)]
        return rows, page.get("next_token")

    def start(self, contract_id: int) -> None:
        self._change(contract_id, lambda: self._sdk.start_instance(contract_id))

    def stop(self, contract_id: int) -> None:
        self._change(contract_id, lambda: self._sdk.stop_instance(contract_id))

    def destroy(self, contract_id: int) -> None:
        """An answer of success; the instance may take a moment to go. One that is gone already is fine."""
        try:
            self._agreed(self._repeated("destroy", lambda: self._sdk.destroy_instance(contract_id)))
        except InstanceGone:
            return

    def attach_key(self, contract_id: int, public_key: str) -> None:
        """Has Vast.ai put the key on the instance; one that is there already is fine."""
        try:
            self._agreed(self._repeated("ssh", lambda: self._sdk.attach_ssh(contract_id, public_key)))
        except Refused as refused:
            if "already" not in str(refused):
                raise

    def logs(self, contract_id: int, lines: int) -> str:
        """What the container has written: the pull of its image, onstart."""
        try:
            found = self._repeated("show", lambda: self._sdk.logs(contract_id, tail=str(lines)))
        except TimeoutError:
            raise Unavailable("Vast.ai has not handed out the container's log within 9 s: try again.") from None
        return self._settings.redact(found) if isinstance(found, str) else ""

    def _change(self, contract_id: int, call: Callable[[], Any]) -> None:
        try:
            self._agreed(self._repeated("change", call))
        except InstanceGone:
            raise no_such_instance(contract_id) from None

    def _pace(self, kind: str) -> None:
        pause = min(PAUSES[kind], self._settings.poll_seconds)
        wait = self._called.get(kind, -pause) + pause - time.monotonic()
        if kind in self._called and wait > 0:
            self._work.pause(wait)
        self._called[kind] = time.monotonic()

    def _repeated(self, kind: str, call: Callable[[], T]) -> T:
        """Makes a call that may be made twice; waits and repeats it while Vast.ai is in trouble."""
        scale = min(1.0, self._settings.poll_seconds / 10)
        for attempt in range(1, self._tries + 1):
            self._pace(kind)
            try:
                return call()
            except requests.HTTPError as error:
                problem: TargetError = self._problem(error)
                asked = _retry_after(error)
            except (requests.RequestException, *OTHER_SHAPE) as error:
                problem, asked = self._silence(error), None
            if not isinstance(problem, Unavailable) or attempt == self._tries:
                raise problem from None
            backoff = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** (attempt - 1)) * scale
            self._work.pause(asked if asked is not None else backoff)
        raise AssertionError("unreachable")

    def _agreed(self, answer: Any) -> None:
        """Vast.ai may answer 200 and mean no."""
        if isinstance(answer, dict) and answer.get("success") is False:
            raise self._no(answer)

    def _no(self, answer: Row) -> TargetError:
        if answer.get("error") == "no_such_ask":
            return offer_gone()
        return Refused(f"Vast.ai refuses: {self._said(answer) or 'it gives no reason'}.")

    def _said(self, answer: Row) -> str:
        text = " ".join(str(answer.get("msg") or answer.get("error") or answer.get("detail") or "").split())
        return self._settings.redact(text)[:300].rstrip(".")

    def _silence(self, error: Exception) -> Unavailable:
        """For what was no HTTP answer: the text of the exception would show the request."""
        if isinstance(error, requests.Timeout):
            return Unavailable(f"Vast.ai ({self._settings.vast_url}) does not answer in time: try again later.")
        if isinstance(error, requests.ConnectionError):
            return Unavailable(
                f"Vast.ai cannot be reached at {self._settings.vast_url}: check this machine's network, and VAST_URL "
                "if you set it."
            )
        return Unavailable(f"{self._settings.vast_url} answers with something that is not Vast.ai's API: see VAST_URL.")

    def _problem(self, error: requests.HTTPError) -> TargetError:
        response = error.response
        if response is None:
            return self._silence(error)
        try:
            found = response.json()
        except ValueError:
            found = None
        body = found if isinstance(found, dict) else {}
        status, kind, said = response.status_code, body.get("error"), self._said(body)
        if kind == "no_such_ask":
            return offer_gone()
        if status in (401, 403) or kind == "auth_error":
            return Refused(
                f"Vast.ai does not accept the API key ({said or f'HTTP {status}'}). Check VAST_API_KEY, or make "
                "another on https://cloud.vast.ai/manage-keys/; it needs to read, create and destroy instances."
            )
        if status == 429 and kind == "search_quota_exceeded":
            return Refused("The day's quota of searches is used up at Vast.ai; it is renewed at midnight UTC.")
        if status == 429:
            return SlowDown("Vast.ai asks for fewer calls (HTTP 429): wait a minute and try again.")
        if status >= 500:
            return Unavailable(f"Vast.ai is in trouble (HTTP {status}{f': {said}' if said else ''}): try again later.")
        # A page without JSON comes from something between here and Vast.ai, and says nothing about an instance.
        if status in (404, 410) and not body:
            return self._silence(error)
        if status in (404, 410):
            return InstanceGone(f"Vast.ai knows no such thing (HTTP {status}{f': {said}' if said else ''}).")
        return Refused(f"Vast.ai refuses the request (HTTP {status}): {said or 'it gives no reason'}.")


def offer_gone() -> OfferGone:
    return OfferGone(
        "This offer is not to be had: somebody has rented it, or the id is wrong. Nothing was made; "
        "`make search-instance` shows what there is now."
    )


def no_such_instance(contract_id: int) -> InstanceGone:
    return InstanceGone(f"There is no instance {contract_id} (any more): `make list-instances` shows those that exist.")


def _retry_after(error: requests.HTTPError) -> float | None:
    try:
        seconds = float(error.response.headers["Retry-After"]) if error.response is not None else -1.0
    except (KeyError, ValueError):
        return None
    return seconds if 0 <= seconds <= 60 else None
