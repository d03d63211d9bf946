"""`vlastream stop`, `resume` and `stops`: the operator's hand on vla.control.v1, without an API in between."""

from __future__ import annotations

import asyncio
import difflib
import os
import pwd
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

from runtime.control import (
    ALL,
    StopList,
    control_record,
    fleet_target,
    model_target,
    publish_control,
    robot_target,
)
from runtime.errors import Fatal, Unavailable
from runtime.kafka import build_consumer, build_producer, wait_for_kafka
from runtime.lifecycle import Deadline
from runtime.metrics import Metrics
from runtime.publisher import Publisher
from runtime.settings import Settings
from runtime.view import CompactedView
from schemas.card_files import load_cards
from schemas.ids import customer_named
from schemas.messages import Control
from schemas.topics import CONTROL

_CLIENT_ID = "vlastream-control"
_TIMEOUT_S = 15.0


def set_stop(
    settings: Settings,
    kind: str,
    name: str,
    *,
    stopped: bool,
    reason: str,
    by: str | None,
    warn: Callable[[str], None],
) -> str:
    """Stop or resume a target and wait until the broker has it; returns the sentence to print.

    kind, name: "robot" CUSTOMER/ROBOT, "model" NAME, "fleet" CUSTOMER, or "all" and nothing.
    Raises Reject or Fatal for a target that cannot be, Unavailable while Kafka is away.
    """
    target = _target(settings, kind, name, must_exist=stopped, warn=warn)
    control = control_record(target, stopped=stopped, who=by if by is not None else login_name(), why=reason)
    wait_for_kafka(settings, timeout_s=_TIMEOUT_S)
    publisher = Publisher(build_producer(settings, _CLIENT_ID), Metrics())
    try:
        where = asyncio.run(publish_control(publisher, control, origin="cli"))
    finally:
        publisher.close(_TIMEOUT_S)
    done = "stopped: no action reaches it from within a second on" if stopped else "resumed"
    return f"{target} is {done} ({where.topic}/{where.partition}/{where.offset})"


def list_stops(settings: Settings, *, history: bool) -> list[str]:
    """One line for each stop that holds; with `history` for each stop and resume that the topic still has.

    Compaction keeps the last record of every target, and all of those of the days that schemas/topics.py says.
    Raises Unavailable while Kafka is away.
    """
    stops = StopList()
    records: list[tuple[int, Control]] = []

    def take(key: bytes, value: bytes | None, appended_at_ms: int) -> None:
        stops.update(key, value, appended_at_ms)
        if value is not None:
            records.append((appended_at_ms, Control.FromString(value)))

    wait_for_kafka(settings, timeout_s=_TIMEOUT_S)
    view = CompactedView(partial(build_consumer, settings, _CLIENT_ID, group=None), CONTROL, take)
    view.start()
    try:
        if not view.wait_ready(_TIMEOUT_S):
            raise Unavailable(f"{CONTROL} could not be read to its end: did `vlastream topics apply` run?")
    finally:
        view.close(Deadline(_TIMEOUT_S))
    if history:
        return [_line(control, at_ms) for at_ms, control in records] or ["nobody has stopped anything"]
    return [_line(control, control.at_ms) for control in stops.stopped()] or ["nothing is stopped"]


def login_name() -> str:
    """Who runs this command, as the operating system has it."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


def _target(settings: Settings, kind: str, name: str, *, must_exist: bool, warn: Callable[[str], None]) -> str:
    if kind == ALL:
        return ALL
    if kind == "model":
        models = sorted({card.model for card in load_cards(settings.cards_dir).models})
        if must_exist and name not in models:
            near = difflib.get_close_matches(name, models, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(models)}"
            raise Fatal(f"no model is named {name!r}: {hint}")
        return model_target(name)
    whose, slash, robot = name.partition("/")
    if kind == "robot" and not robot:
        raise Fatal("name the robot with its customer: `robot CUSTOMER/ROBOT`")
    customer = known_customer(settings, whose, warn)
    return robot_target(customer, robot) if kind == "robot" else fleet_target(customer + slash + robot)


def known_customer(settings: Settings, named: str, warn: Callable[[str], None]) -> str:
    """A customer's id from what was typed: id, e-mail address, or the name of a fleet. `warn` hears of the rest."""
    customer = customer_named(named)
    if customer != named:
        warn(f"{named} is customer {customer}")
    if customer not in settings.fleets and not _is_uuid(customer):
        warn(f"note: {customer} is neither a fleet of FLEETS nor a customer id: see `vlastream customers list`")
    return customer


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def _line(control: Control, at_ms: int) -> str:
    when = datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    word = "stopped" if control.stopped else "resumed"
    return _printable(f"{when}  {word}  {control.target}  by {control.who or 'nobody named'}: {control.why}")


def _printable(text: str) -> str:
    """Text for a terminal: the topic's writers do not get to move its cursor."""
    return "".join(c if c.isprintable() else "?" for c in text)
