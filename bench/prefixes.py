"""Batches whose lines share beginnings, in two orders, before a prefix cache: `python -m bench.prefixes`.

The cache keeps the beginnings that were used last. One order runs batch after batch, in each all lines of one beginning
together, as the service does; the other runs all lines of one beginning together whichever batch they are of.
"""

from __future__ import annotations

import random
import statistics
from collections import OrderedDict

SEED = 7
# Batches, lines of each, beginnings that all of them share, and how many of these the cache holds.
CASES = ((20, 1000, 1, 4), (20, 1000, 10, 4), (20, 1000, 10, 16), (200, 20, 10, 4), (200, 20, 10, 16))


def misses(order: list[int], room: int) -> int:
    cache: OrderedDict[int, None] = OrderedDict()
    count = 0
    for beginning in order:
        if beginning not in cache:
            count += 1
        cache[beginning] = None
        cache.move_to_end(beginning)
        if len(cache) > room:
            cache.popitem(last=False)
    return count


def mean_end(batches: list[int]) -> float:
    """When a batch has ended on average, 1 being the end of all."""
    last = {batch: place for place, batch in enumerate(batches, 1)}
    return statistics.mean(last.values()) / len(batches)


def main() -> None:
    draw = random.Random(SEED)
    print("batches  lines  beginnings  cached | computed anew: in each batch, across | mean end: in each batch, across")
    for batches, lines, beginnings, room in CASES:
        queue = []
        for batch in range(batches):
            drawn = [draw.randrange(beginnings) for _ in range(lines)]
            first = {beginning: place for place, beginning in reversed(list(enumerate(drawn)))}
            queue += [(batch, beginning) for beginning in sorted(drawn, key=first.__getitem__)]
        across = sorted(queue, key=lambda line: line[1])
        shares = [100 * misses([line[1] for line in order], room) / len(queue) for order in (queue, across)]
        ends = [mean_end([line[0] for line in order]) for order in (queue, across)]
        print(
            f"{batches:7} {lines:6} {beginnings:11} {room:7} | {shares[0]:21.2f} %, {shares[1]:4.2f} % |"
            f" {ends[0]:23.2f}, {ends[1]:6.2f}"
        )


if __name__ == "__main__":
    main()
