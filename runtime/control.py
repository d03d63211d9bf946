"""Which robots, models and fleets an operator has stopped, and the record that stops or resumes them.

A stop holds until a resume of the same target: lifting the stop of a robot does not lift that of its fleet.
"""

from __future__ import annotations

import re
import threading
import time

from runtime.audit import control_source
from runtime.errors import Reject
from runtime.publisher import Delivered, PublisherPort
from schemas import headers as h
from schemas.codes import Code
from schemas.messages import Control
from schemas.topics import CONTROL

ALL = "all"

#: Longest `who` and `why` of a record, characters.
MAX_WHO = 200
MAX_WHY = 500
_MAX_NAME = 200
#: What the gate lets pass as a robot id: a stop of any other could never match a robot.
ROBOT_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


def robot_target(customer_id: str, robot_id: str) -> str:
    """Raises Reject for a robot id that no robot can have."""
    if not ROBOT_ID.fullmatch(robot_id):
        raise _refused("robot_id", "a robot id has 1 to 64 of A-Z, a-z, 0-9, '.', '_', ':' and '-'")
    return f"robot:{_named(customer_id, 'customer_id')}/{robot_id}"


def fleet_target(customer_id: str) -> str:
    return f"fleet:{_named(customer_id, 'customer_id')}"


def model_target(model: str) -> str:
    return f"model:{_named(model, 'model')}"


def control_record(target: str, *, stopped: bool, who: str, why: str, now_s: float | None = None) -> Control:
    """A stop (or a resume) of a target of this module. Raises Reject where it would not say who or why."""
    for field, text, limit in (("by", who, MAX_WHO), ("reason", why, MAX_WHY)):
        if not text.strip() or len(text) > limit or not text.isprintable():
            raise _refused(field, f"say it in 1 to {limit} printable characters")
    at_ms = round((time.time() if now_s is None else now_s) * 1000)
    return Control(target=target, stopped=stopped, who=who.strip(), why=why.strip(), at_ms=at_ms)


async def publish_control(publisher: PublisherPort, control: Control, *, origin: str) -> Delivered:
    """Write the record and wait until the broker has it: every gate reads it within a second.

    origin: from where it was asked for, a client address or "cli".

    Raises Retry, Unavailable or Fatal: it is then not known to hold.
    """
    attributes = h.cloud_event(
        event_type="vla.control.v1",
        event_id=f"{control.at_ms}",
        source=control_source(origin),
        now_s=control.at_ms / 1000,
    )
    key = control.target.encode()
    return await publisher.send(CONTROL, control.SerializeToString(), key=key, headers=h.encode(attributes))


class StopList:
    """The newest word of vla.control.v1 on every target. Thread-safe: a view writes, others read."""

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
            # Names are taken as they come: a request is asked about before anybody has judged its robot id.
            for target in (ALL, f"fleet:{customer_id}", f"model:{model}", f"robot:{customer_id}/{robot_id}"):
                if target in self._stopped:
                    return self._stopped[target]
        return None

    def stopped(self) -> list[Control]:
        """Every stop that holds, by target."""
        with self._lock:
            return [self._stopped[target] for target in sorted(self._stopped)]


def _named(name: str, field: str) -> str:
    if not 0 < len(name) <= _MAX_NAME or not name.isprintable() or name != name.strip() or "/" in name:
        raise _refused(field, f"this is no name: 1 to {_MAX_NAME} printable characters without '/'")
    return name


def _refused(field: str, detail: str) -> Reject:
    return Reject(Code.MALFORMED, f"{field}: {detail}", field=field)
