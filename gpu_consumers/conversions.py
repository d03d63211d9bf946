"""Which way leads from a deployment's outputs to each robot type that it serves; made once, when the worker starts."""

from __future__ import annotations

from collections.abc import Mapping

from runtime.errors import Fatal
from schemas.cards import CUSTOM, CannotConvert, CardSet, Conversion, ModelCard


def conversions_of(card: ModelCard, cards: CardSet) -> dict[str, Conversion]:
    """Robot type -> conversion. Robots with a card of their customer's own get the outputs as they are: the gate
    lets only those through that want them so. Raises Fatal for a pairing that leads nowhere.
    """
    ways: dict[str, Conversion] = {}
    for name in card.embodiments:
        robot = cards.embodiment(name)
        if name == CUSTOM:
            ways[name] = Conversion()
        elif robot is None:
            raise Fatal(f"deployment {card.deployment} names robot type {name}, which has no card")
        else:
            try:
                ways[name] = card.conversion(robot)
            except (CannotConvert, KeyError) as error:
                raise Fatal(f"deployment {card.deployment} cannot drive {name}: {error}") from error
    return ways


def conversion_for(robot_type: str, ways: Mapping[str, Conversion]) -> Conversion | None:
    """None for a robot type that the deployment does not serve."""
    return ways.get(robot_type, ways.get(CUSTOM))
