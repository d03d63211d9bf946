"""Notices a policy that does not come back. Thread-safe.

The process that hangs is ended and started again, and what it had in work is read again. A request that makes a
policy hang comes back, too; by then it is mostly past its deadline and is refused as expired, unread by the policy.
So it can end a worker once for each time that the limit fits into its time to live, and never for ever.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Watchdog:
    """Knows since when each thread has been inside the policy."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        #: Thread -> the step it is in, and since when.
        self._inside: dict[int, tuple[str, float]] = {}

    @contextmanager
    def watching(self, step: str) -> Iterator[None]:
        """The calling thread is inside the policy: `prepare`, `infer` or `finish`. Not to be nested."""
        thread = threading.get_ident()
        with self._lock:
            self._inside[thread] = (step, self._clock())
        try:
            yield
        finally:
            with self._lock:
                del self._inside[thread]

    def longest(self) -> tuple[str, float]:
        """The step that has been running longest, and for how many seconds; 0 where none runs."""
        with self._lock:
            running = list(self._inside.values())
        now = self._clock()
        step, since = min(running, key=lambda entry: entry[1], default=("", now))
        return step, max(now - since, 0.0)
