"""How many ride together: what a batch size costs against what it serves. Pure."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

from gpu_consumers.cost import CostModel


def bucket(n: int, sizes: Sequence[int]) -> int:
    """The smallest batch size of the card (`sizes`, ascending) that holds n; shapes are compiled for these alone."""
    return next((size for size in sizes if size >= n), sizes[-1])


def usual_size(alive: int, sizes: Sequence[int], cost: CostModel) -> int:
    """All that wait, or the largest full bucket where padding up to the next one costs more than a second batch."""
    if alive >= sizes[-1]:
        return sizes[-1]
    full = max((size for size in sizes if size <= alive), default=0)
    if not full or full == alive:
        return alive
    together = cost.seconds(bucket(alive, sizes))
    apart = cost.seconds(full) + cost.seconds(bucket(alive - full, sizes))
    return alive if together <= apart else full


def size_in_time(left_s: Sequence[float], usual: int, sizes: Sequence[int], cost: CostModel) -> int:
    """How many of those who wait ride now, at least 1: `usual`, or fewer where that many would come too late.

    left_s: time to each deadline, ascending. Where all fit into one batch, whatever lets most of them be in time
    (the batch and one after it); where more wait than fit, what serves most in time per second.
    """

    def seconds(n: int) -> float:
        return cost.seconds(bucket(n, sizes))

    def in_time(took_s: float) -> int:
        return len(left_s) - bisect_left(left_s, took_s)

    if in_time(seconds(usual)) >= usual:
        return usual
    best, best_worth = 0, (0.0, 0.0)
    for size in {*sizes, usual}:
        first_s = seconds(size)
        riders = min(size, in_time(first_s))
        if not riders:
            continue
        if len(left_s) > sizes[-1]:
            worth = (riders / first_s if first_s else math.inf, float(riders))
        else:
            rest = left_s[len(left_s) - in_time(first_s) + riders :]
            second_s = first_s + seconds(len(rest)) if rest else first_s
            worth = (riders + float(len(rest) - bisect_left(rest, second_s)), -second_s)
        if best == 0 or worth > best_worth:
            best, best_worth = riders, worth
    return best or usual
