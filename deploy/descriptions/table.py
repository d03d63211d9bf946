"""The table of docs/robots.md, from the cards: `python -m deploy.descriptions.table` writes it anew."""

from __future__ import annotations

import re
from pathlib import Path

from deploy.descriptions.generate import CARDS
from schemas.card_files import load_cards
from schemas.embodiments import Commanded, EmbodimentCard

PAGE = Path(__file__).resolve().parents[2] / "docs" / "robots.md"
_BEGIN, _END = "<!-- table: python -m deploy.descriptions.table -->", "<!-- end of table -->"


def table() -> str:
    """One row a robot type, by name."""
    rows = ["| robot type | robot | state -> actions | action spaces | gripper opens / closes | limits from |",
            "|---|---|---|---|---|---|"]  # fmt: skip
    return "\n".join([*rows, *map(_row, load_cards(CARDS.parent).embodiments)])


def with_table(page: str) -> str:
    """The page with the table of now. Raises ValueError for a page without its place."""
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"no place for the table: it stands between {_BEGIN} and {_END}")
    return f"{before}{_BEGIN}\n{table()}\n{_END}{after}"


def _row(card: EmbodimentCard) -> str:
    spaces = ", ".join(
        f"{part.space.name}{'' if part.verified else ' (monitor)'}" for part in (card, *card.alternatives)
    )
    ends = sorted({_ends(part) for part in (card, *card.alternatives) if part.gripper is not None})
    sources = dict.fromkeys(source for part in (card, *card.alternatives) for source in part.source.split("; "))
    cells = (
        f"`{card.robot_type}`",
        card.title,
        f"{len(card.state)} -> {len(card.actions)}",
        spaces,
        "; ".join(ends) or "-",
        ", ".join(map(_link, sources)),
    )
    return f"| {' | '.join(cells)} |"


def _ends(part: Commanded) -> str:
    assert part.gripper is not None
    return f"{part.gripper.open_value:g} / {part.gripper.closed_value:g}"


def _link(source: str) -> str:
    """A source as a link to the file at its commit."""
    found = re.fullmatch(r"(https://github\.com/([^@]+))@([0-9a-f]{40}):(.+)", source)
    return f"[{found[2]}]({found[1]}/blob/{found[3]}/{found[4]})" if found is not None else source


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
