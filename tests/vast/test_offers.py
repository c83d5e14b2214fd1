"""Which offers are found, in which order, and what is said when none fits."""

import dataclasses
import re
from typing import Any

import pytest

from nvidia_triton.vast import offers
from nvidia_triton.vast.context import Context
from nvidia_triton.vast.vast import VastClient
from nvidia_triton.vast.wiring import open_context
from tests.vast.fake import FakeVast
from tests.vast.targets import make


@pytest.fixture
def context(vast_env: dict[str, str]) -> Context:
    return open_context(vast_env)


def with_query(context: Context, **changes: Any) -> Context:
    query = context.definition.query.model_copy(update=changes)
    return dataclasses.replace(context, definition=context.definition.model_copy(update={"query": query}))


def search(context: Context, max_price: float | None = None) -> list[dict[str, Any]]:
    return offers.search(VastClient(context.settings), context.definition.offer_query(max_price))


def ids(found: list[dict[str, Any]]) -> list[int]:
    return [row["id"] for row in found]


def test_the_cheapest_that_fits_comes_first(vast: FakeVast, context: Context) -> None:
    found = search(context)
    assert ids(found) == [9101001, 9101002, 9101003, 9101004]
    prices = [row["dph_total"] for row in found]
    assert prices == sorted(prices)


def test_the_search_has_the_shape_that_vast_takes(vast: FakeVast, context: Context) -> None:
    search(context)
    body = vast.calls("POST", "/bundles/")[0].body
    assert {name: body[name] for name in ("gpu_ram", "cuda_max_good", "dph_total", "type", "allocated_storage")} == {
        "gpu_ram": {"gte": 24000.0},
        "cuda_max_good": {"gte": "13.0"},
        "dph_total": {"lte": "0.8"},
        "type": "on-demand",
        "allocated_storage": 80.0,
    }
    assert body["rentable"] == {"eq": True}


def test_a_price_for_one_call(vast: FakeVast, context: Context) -> None:
    assert ids(search(context, 0.4)) == [9101001, 9101002]


def test_names_and_countries_narrow_the_search(vast: FakeVast, context: Context) -> None:
    narrowed = with_query(context, gpu_names=("RTX 4090", "RTX_5090"), countries=("SE", "NO"))
    assert ids(search(narrowed)) == [9101002, 9101004]


def test_each_condition_means_the_same_here_and_at_vast(vast: FakeVast, context: Context) -> None:
    """The count of what a condition removes is made here; the search itself at Vast.ai."""
    definition = with_query(context, gpu_names=("RTX 4090",), countries=("SE", "FR", "VN")).definition
    client = VastClient(context.settings)
    every = client.offers("rentable=true", storage=definition.disk, defaults=False)
    assert len(every) == len(vast.offers)
    for condition in offers.conditions(definition.offer_query()):
        if condition.key == "image.driver":
            # Vast.ai compares drivers as text.
            assert condition.clause == ""
            continue
        there = client.offers(condition.clause, storage=definition.disk, defaults=False)
        here = [row["id"] for row in every if condition.holds(row)]
        assert sorted(ids(there)) == sorted(here), condition.clause
        assert 0 < len(here) < len(every), f"{condition.clause} proves nothing"


def test_no_fit_says_which_condition_removes_how_many(vast: FakeVast, context: Context) -> None:
    with pytest.raises(offers.NoOffer) as raised:
        search(context, 0.1)
    text = str(raised.value)
    assert "None of the 13 offers that Vast.ai lists fits" in text
    removed = dict(re.findall(r"(\S+) +removes +(\d+):", text))
    assert (removed["max_price"], removed["query.gpu_ram"], removed["image.cuda"]) == ("12", "1", "1")
    assert "without max_price: 6 would fit, from $0.237 an hour" in text


def test_several_conditions_at_once_are_told_apart_from_one(vast: FakeVast, context: Context) -> None:
    with pytest.raises(offers.NoOffer, match="No single one is to blame"):
        search(with_query(context, num_gpus=4), 0.01)


def test_an_empty_market(vast: FakeVast, context: Context) -> None:
    vast.offers.clear()
    with pytest.raises(offers.NoOffer, match="lists no offer at all just now"):
        search(context)


def test_the_target_prints_a_table(vast: FakeVast, vast_env: dict[str, str]) -> None:
    done = make(vast_env, "search-instance")
    assert done.returncode == 0, done.stderr
    for cell in ("offer id", "9101002", "RTX 4090", "24 GB", "0.377", "13.0", "580.95.05", "99.5%", "900 Mbit/s", "SE"):
        assert cell in done.stdout
    assert "make create-instance INSTANCE_ID=9101001" in done.stdout
    nothing = make(vast_env, "search-instance", MAX_PRICE="0.1")
    assert nothing.returncode != 0
    assert "removes" in nothing.stderr
    assert "Traceback" not in nothing.stderr
    odd = make(vast_env, "search-instance", MAX_PRICE="cheap")
    assert "MAX_PRICE=cheap is not a price" in odd.stderr
