"""Chooses from offers what fits a query, for providers whose market does not do it itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nvidia_triton.providers.base import NoOffer, Offer, Query, Removed
from nvidia_triton.vast.images import version

Condition = tuple[str, str, Callable[[Offer], bool]]


def fitting(offers: Sequence[Offer], query: Query) -> Sequence[Offer]:
    """The cheapest first. What an offer leaves open counts as enough.

    Raises:
        NoOffer: none fits.
    """
    if not offers:
        raise NoOffer("There is no offer at all just now.")
    wanted = _conditions(query)
    found = [offer for offer in offers if all(holds(offer) for _, _, holds in wanted)]
    if not found:
        removed = [Removed(key, text, sum(not holds(offer) for offer in offers)) for key, text, holds in wanted]
        lines = "; ".join(f"{each.condition} removes {each.count} ({each.text})" for each in removed if each.count)
        raise NoOffer(f"None of {len(offers)} offers fits: {lines}.", removed)
    return sorted(found, key=lambda offer: (offer.price, offer.id))


def _conditions(query: Query) -> list[Condition]:
    names = {name.replace("_", " ") for name in query.gpu_names}
    price = query.max_price
    found: list[Condition] = [
        ("query.num_gpus", f"{query.gpus} GPUs", lambda offer: offer.gpus == query.gpus),
        ("query.gpu_ram", f"{query.vram_gb:g} GB of GPU memory", lambda offer: offer.vram_gb >= query.vram_gb),
        ("query.gpu_names", f"one of {', '.join(sorted(names))}", lambda offer: not names or offer.gpu in names),
        ("image.cuda", f"CUDA {query.cuda} for {query.image}", lambda offer: _enough(offer.cuda, query.cuda)),
        ("image.driver", f"driver {query.driver} for {query.image}", lambda offer: _enough(offer.driver, query.driver)),
        ("bid", "interruptible or not", lambda offer: offer.interruptible == (query.bid is not None)),
    ]
    if price is not None:
        found.append(("max_price", f"at most ${price:.2f} an hour", lambda offer: offer.price <= price))
    return found


def _enough(have: str, want: str) -> bool:
    return not have or not want or version(have) >= version(want)
