"""Which letters go when some are purged. Pure. Kafka deletes from the front of a partition, up to an offset."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from runtime.dlq.letters import Letter, Selection

#: Topic and partition of letters.
Place = tuple[str, int]


@dataclass(slots=True)
class Part:
    """One partition of a purge: everything before `before` goes."""

    before: int
    matching: int = 0
    #: Letters in front of the last matching one that the selection does not mean.
    others: int = 0


@dataclass(slots=True)
class Plan:
    parts: dict[Place, Part] = field(default_factory=dict)

    @property
    def matching(self) -> int:
        return sum(part.matching for part in self.parts.values())

    @property
    def others(self) -> int:
        return sum(part.others for part in self.parts.values())

    def only_matching(self) -> Plan:
        """The partitions in which nothing else stands in front."""
        return Plan({place: part for place, part in self.parts.items() if not part.others})


def plan_purge(letters: Iterable[Letter], selection: Selection) -> Plan:
    """Letters come in offset order of each partition. A partition without a match is left alone."""
    plan = Plan()
    passed: dict[Place, int] = {}
    for letter in letters:
        place = (letter.place.topic, letter.place.partition)
        if not selection.matches(letter):
            passed[place] = passed.get(place, 0) + 1
            continue
        part = plan.parts.setdefault(place, Part(before=0))
        part.before = letter.place.offset + 1
        part.matching += 1
        part.others = passed.get(place, 0)
    return plan
