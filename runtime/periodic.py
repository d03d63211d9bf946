"""A task that a thread of its own repeats."""

from __future__ import annotations

import threading
from collections.abc import Callable

from runtime.lifecycle import Deadline


class Periodic:
    """Runs `task` every `interval_s` until closed. An exception ends the thread and goes to `on_failure`."""

    def __init__(
        self, name: str, interval_s: float, task: Callable[[], None], on_failure: Callable[[BaseException], None]
    ) -> None:
        self._interval_s = interval_s
        self._task = task
        self._on_failure = on_failure
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, deadline: Deadline) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=deadline.remaining_s)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._task()
                self._stop.wait(self._interval_s)
        except Exception as error:
            self._on_failure(error)
