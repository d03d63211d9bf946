"""`vlastream robots`: the robot types of the installation, and whether a card file holds."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from pathlib import Path

from runtime.errors import Fatal
from runtime.settings import Settings
from schemas.card_files import CardError, CardProblem, check_embodiment_file, load_cards
from schemas.cards import CardSet
from schemas.embodiments import Commanded

Say = Callable[[str], None]


def list_robots(settings: Settings, *, say: Say) -> None:
    """One line a robot type."""
    cards = _cards(settings)
    for card in cards.embodiments:
        models = ", ".join(_models(cards, card.robot_type)) or "-"
        trust = "verified" if card.verified else "monitor only"
        dims = f"{len(card.state):>3} -> {len(card.actions):<3}"
        say(f"{card.robot_type:<20} {trust:<13} {dims} {models:<24} {card.title}")


def show_robot(settings: Settings, robot_type: str, *, say: Say) -> None:
    """Everything about one type. Raises Fatal for one that is not known."""
    cards = _cards(settings)
    card = cards.embodiment(robot_type)
    if card is None:
        known = [known.robot_type for known in cards.embodiments]
        near = difflib.get_close_matches(robot_type, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "see `vlastream robots list`"
        raise Fatal(f"no robot type {robot_type}: {hint}")
    say(f"{card.robot_type}: {card.title}")
    say(f"driven by: {', '.join(_models(cards, robot_type)) or 'no deployment'}")
    say(f"reach: {_measure(card.reach_m, 'm')}, payload: {_measure(card.payload_kg, 'kg')}")
    say("state: " + ", ".join(f"{dim.name} [{dim.unit}]" for dim in card.state))
    for part in (card, *card.alternatives):
        for line in _space(part):
            say(line)


def check_card(settings: Settings, file: str, *, say: Say) -> int:
    """0 for a card that holds, with the deployments that it fits; 1 for one that does not, with every reason."""
    try:
        found = check_embodiment_file(Path(file))
    except CardError as error:
        found = [CardProblem(1, "", str(error))]
    if isinstance(found, list):
        for problem in found:
            say(f"{file}: {problem}")
        return 1
    trust = "verified" if found.verified else "not verified: its actions are watched, never refused (monitor mode)"
    say(f"{file}: {found.robot_type} holds, {trust}")
    cards = _cards(settings)
    taken = cards.embodiment(found.robot_type)
    if taken is not None and taken != found:
        say(f"the installation has another card of this name ({taken.title})")
    for model in cards.models:
        is_named = found.robot_type in model.embodiments
        why = model.misfit(found) if is_named else model.custom_misfit(found)
        say(f"  {model.deployment}: {'fits' if why is None else why}")
    return 0


def _space(part: Commanded) -> Iterator[str]:
    rate = _measure(part.control_rate_hz, "Hz")
    trust = "verified" if part.verified else "not verified"
    yield f"action space {part.space.name} at {rate}, {trust}, from {part.source}"
    for dim in part.actions:
        low, high = dim.range
        speed = "" if dim.max_velocity is None else f", at most {dim.max_velocity:g} a second"
        yield f"  {dim.name:<28} {dim.kind:<9} {low:g} to {high:g} [{dim.unit}]{speed}"
    if part.gripper is not None:
        names = ", ".join(part.actions[i].name for i in part.gripper.indices)
        yield f"  gripper {names}: {part.gripper.open_value:g} opens, {part.gripper.closed_value:g} closes"


def _measure(value: float | None, unit: str) -> str:
    return "not stated" if value is None else f"{value:g} {unit}"


def _models(cards: CardSet, robot_type: str) -> list[str]:
    return sorted({model.model for model in cards.models if robot_type in model.embodiments})


def _cards(settings: Settings) -> CardSet:
    try:
        return load_cards(settings.cards_dir)
    except CardError as error:
        raise Fatal(str(error)) from error
