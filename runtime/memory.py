"""How often a process that runs for days looks for garbage."""

from __future__ import annotations

import gc

#: Objects that are made and not freed before the youngest are looked at; Python looks after 700.
_COLLECT_AFTER = 10_000


def collect_less_often() -> None:
    """Leave what is built by now out of every later collection. To be called when a process has started."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)
