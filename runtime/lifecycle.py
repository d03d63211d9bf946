"""How a process starts, stays and ends: signals, one monotonic deadline, an ordered close."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from runtime.errors import EXIT_FATAL, Fatal

log = logging.getLogger(__name__)


class Deadline:
    """A budget that several steps share. Monotonic: a clock that is set does not move it."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds

    @property
    def remaining_s(self) -> float:
        return max(self._end - self._clock(), 0.0)

    @property
    def passed(self) -> bool:
        return self.remaining_s <= 0.0


class Lifecycle:
    """Collects what must be closed and closes it in reverse order under one deadline.

    The order of shutdown is: stop intake, drain, flush, commit, close. A second signal ends the process at once.
    """

    def __init__(self, shutdown_timeout_s: float) -> None:
        self.stopping = threading.Event()
        self._shutdown_timeout_s = shutdown_timeout_s
        self._closers: list[tuple[str, Callable[[Deadline], None]]] = []
        self._failure: BaseException | None = None
        self._on_stop: list[Callable[[], None]] = []

    def on_close(self, name: str, close: Callable[[Deadline], None]) -> None:
        """Close this at the end, before everything that was registered earlier."""
        self._closers.append((name, close))

    def on_stop(self, wake: Callable[[], None]) -> None:
        """Called once when stopping begins, from a signal handler or any thread: wake up whoever waits."""
        self._on_stop.append(wake)

    def stop(self) -> None:
        if not self.stopping.is_set():
            self.stopping.set()
            for wake in self._on_stop:
                wake()

    def fail(self, error: BaseException) -> None:
        """A part cannot go on: stop the whole process with an error."""
        if self._failure is None:
            self._failure = error
            log.critical("stopping: %s", error, extra={"action": "fail"}, exc_info=error)
        self.stop()

    @property
    def failure(self) -> BaseException | None:
        return self._failure

    @contextmanager
    def signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT stop; a second one ends the process at once. Old handlers come back afterwards."""

        def handle(signum: int, frame: FrameType | None) -> None:
            if self.stopping.is_set():
                os._exit(128 + signum)
            log.info("stopping on %s", signal.Signals(signum).name, extra={"action": "stop"})
            self.stop()

        previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def close(self) -> int:
        """Run every closer, last registered first; returns the process's exit status."""
        deadline = Deadline(self._shutdown_timeout_s)
        while self._closers:
            name, close = self._closers.pop()
            try:
                close(deadline)
            except Exception:
                log.exception("closing %s failed", name, extra={"action": "close"})
        log.info("stopped, %.1f s left", deadline.remaining_s, extra={"action": "stopped"})
        if self._failure is None:
            return 0
        return self._failure.exit_status if isinstance(self._failure, Fatal) else EXIT_FATAL


def exit_now(reason: str) -> None:
    """End without any further acknowledgement or commit: what is in work is read again after the restart."""
    log.critical("ending at once: %s", reason, extra={"action": "exit_now", "reason": reason})
    logging.shutdown()
    os._exit(EXIT_FATAL)
