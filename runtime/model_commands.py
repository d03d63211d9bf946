"""`vlastream models list`: the deployments that the cards describe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from runtime.errors import Fatal
from runtime.settings import Settings
from schemas.card_files import CardError, load_cards, load_model_card
from schemas.cards import CUSTOM, ModelCard


def list_models(settings: Settings, *, say: Callable[[str], object]) -> None:
    """One line a deployment, in file order. Raises Fatal where the cards cannot be used."""
    try:
        cards = load_cards(settings.cards_dir)
    except CardError as error:
        raise Fatal(str(error)) from error
    for card in cards.models:
        name = f"{card.model} (default)" if card.model == cards.default_model else card.model
        shape = f"{card.horizon} x {card.action_dim}"
        say(f"{card.deployment:<28} {name:<28} {card.policy:<14} {shape:<8} {', '.join(card.embodiments)}")


def find_card(settings: Settings, name: str) -> ModelCard:
    """The card of a deployment, or of a file where `name` is one. Raises Fatal with what there is, or what is wrong.

    A card that is not among the installation's own has to fit the installation's robot types as well.
    """
    try:
        installed = load_cards(settings.cards_dir)
        if not Path(name).suffix:
            found = installed.deployment(name)
            if found is None:
                known = ", ".join(card.deployment for card in installed.models) or "none"
                raise Fatal(f"no deployment {name}: give a card's file, or one of: {known}")
            return found
        card = load_model_card(Path(name))
        for robot_type in card.embodiments:
            embodiment = installed.embodiment(robot_type)
            if embodiment is None and robot_type != CUSTOM:
                raise Fatal(f"{name} names robot type {robot_type}, which has no card in {settings.cards_dir}")
            if embodiment is not None and (misfit := card.misfit(embodiment)):
                raise Fatal(f"{name} cannot drive robot type {robot_type}: {misfit}")
    except CardError as error:
        raise Fatal(str(error)) from error
    return card
