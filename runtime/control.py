"""Which robots, models and fleets an operator has stopped. Thread-safe: a view writes, the gate reads."""

from __future__ import annotations

import threading

from schemas.messages import Control

ALL = "all"


def robot_target(customer_id: str, robot_id: str) -> str:
    return f"robot:{customer_id}/{robot_id}"


class StopList:
    """The newest word of vla.control.v1 on every target."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stopped: dict[str, Control] = {}

    def update(self, key: bytes, value: bytes | None, appended_at_ms: int) -> None:
        target = key.decode("utf-8", "replace")
        control = Control.FromString(value) if value is not None else None
        with self._lock:
            if control is not None and control.stopped:
                self._stopped[target] = control
            else:
                self._stopped.pop(target, None)

    def stop_of(self, *, customer_id: str, robot_id: str, model: str) -> Control | None:
        """The stop that holds for a robot, the widest one first; None if it may move."""
        with self._lock:
            if not self._stopped:
                return None
            for target in (ALL, f"fleet:{customer_id}", f"model:{model}", robot_target(customer_id, robot_id)):
                if target in self._stopped:
                    return self._stopped[target]
        return None
