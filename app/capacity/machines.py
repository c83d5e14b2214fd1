"""Which machines are worth their money, and which are left alone for a while."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from app.capacity.forecast import rate
from app.capacity.plan import Failure, Market, Measured, Pool
from nvidia_triton.providers.base import Offer

# A machine that failed is avoided for this many seconds, times how often it did in the last week.
AVOIDED = 6 * 3600.0
# After so many failures of one pool within an hour the machines are hardly to blame: each further one doubles a pause.
BLAMELESS = 3
PAUSE = 300.0
MAX_PAUSE = 3600.0
# A host that was refused is asked for again after so many seconds; after each further refusal in a row, twice as many.
REFUSED, MAX_REFUSED = 30.0, 600.0


def refused_for(times: int) -> float:
    """Seconds until a pool asks for a host again that its provider has refused so many times in a row."""
    return min(REFUSED * 2.0 ** min(times - 1, 10), MAX_REFUSED)


def avoided(now: float, failures: Iterable[Failure]) -> set[str]:
    """Machines that are not rented again yet."""
    times: Counter[str] = Counter()
    last: dict[str, float] = {}
    for failure in failures:
        if not failure.machine:
            continue
        times[failure.machine] += 1
        last[failure.machine] = max(failure.at, last.get(failure.machine, failure.at))
    return {machine for machine, at in last.items() if now - at < AVOIDED * times[machine]}


def paused_until(now: float, pool: str, failures: Iterable[Failure]) -> tuple[float, str]:
    """When the pool may rent again after a row of failures, and the last one's reason; (0, "") when at once."""
    recent = sorted((each.at, each.reason) for each in failures if each.pool == pool and now - each.at < 3600)
    if len(recent) < BLAMELESS:
        return 0.0, ""
    at, reason = recent[-1]
    until = at + min(PAUSE * 2 ** (len(recent) - BLAMELESS), MAX_PAUSE)
    return (until, reason) if until > now else (0.0, "")


def chosen(
    pool: Pool, offers: Iterable[Offer], measured: Measured, without: Collection[str], tokens_per_second: float
) -> Offer | None:
    """The next host where so much is missing, of offers that fit and are not on machines `without`: the cheapest that
    does it alone; where none does, the one with most tokens for a dollar.

    A GPU that was never measured counts as the pool says, so that among those the cheapest goes first.
    """
    fit = ranked(pool, offers, measured, without)
    enough = [offer for offer in fit if rate(pool, offer.gpu, measured) >= tokens_per_second]
    return min(enough, key=lambda offer: offer.price, default=None) or (fit[0] if fit else None)


def ranked(pool: Pool, offers: Iterable[Offer], measured: Measured, without: Collection[str]) -> list[Offer]:
    """Offers that fit and are not on machines `without`, most tokens for a dollar first."""
    fit = [offer for offer in offers if not misfit(pool, offer) and offer.machine not in without]
    return sorted(fit, key=lambda offer: (-rate(pool, offer.gpu, measured) / max(offer.price, 1e-9), offer.id))


def misfit(pool: Pool, offer: Offer) -> str:
    """The condition of the pool that an offer does not meet; empty where it fits."""
    if offer.price > pool.max_price:
        return f"max_price (${pool.max_price:.2f} an hour)"
    if offer.vram_gb < pool.vram:
        return f"vram ({pool.vram:g} GB)"
    if offer.interruptible and not pool.interruptible:
        return "interruptible (false)"
    return ""


def absence(pool: Pool, market: Market, without: Collection[str]) -> str:
    """Why no offer is left, with the condition that removes most."""
    if market.error:
        return f"{pool.provider} could not be asked for offers: {market.error}"
    if market.refusal:
        return f"no host of {pool.provider} can be made: {market.refusal}"
    if not market.offers:
        return _removed_by_query(pool, market)
    conditions: Counter[str] = Counter(misfit(pool, offer) or _failed(offer, without) for offer in market.offers)
    named = ", ".join(f"{condition} removes {count}" for condition, count in conditions.most_common())
    return f"none of {len(market.offers)} offers can be rented: {named}"


def _failed(offer: Offer, without: Collection[str]) -> str:
    return "a machine that failed or stalls" if offer.machine in without else "another host of the plan"


def _removed_by_query(pool: Pool, market: Market) -> str:
    if not market.removed:
        return f"{pool.provider} lists no offer at all just now"
    most = sorted(market.removed, key=lambda each: -each.count)
    named: Sequence[str] = [f"{each.condition} removes {each.count} ({each.text})" for each in most if each.count]
    return f"no offer of {pool.provider} fits: {', '.join(named) or 'all conditions together remove them'}"
