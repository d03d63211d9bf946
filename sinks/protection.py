"""What happens to a row right before it comes to rest in the lake: erased ones go, ids, texts and images are protected.

At the last moment, because a batch may wait for minutes while a customer changes what it allows.
"""

from __future__ import annotations

from typing import Any

from runtime import anonymize
from runtime.anonymize.images import image as anonymized_image
from runtime.consent import ConsentList, Level
from sinks.rows import Row

_IDS = ("customer_id", "robot_id")
#: The time that an erasure goes by, whichever the dataset has.
_TIMES = ("requested_at", "at")


class Protection:
    """salt: key of the hashes that stand for ids."""

    def __init__(self, consents: ConsentList, salt: str) -> None:
        self._consents = consents
        self._salt = salt

    def may_stay(self, row: Row) -> bool:
        """Whether it is not erased. The row still has its plain ids."""
        at = next(row[name] for name in _TIMES if name in row)
        return not self._consents.is_erased(row["customer_id"], round(at.timestamp() * 1000))

    def protected(self, row: Row) -> Row:
        """The row as the customer's level wants it."""
        level = self._consents.level(row["customer_id"])
        if level == "none":
            return row
        changed: Row = {name: anonymize.hashed(row[name], self._salt) for name in _IDS}
        if row.get("instruction"):
            changed["instruction"] = anonymize.text(row["instruction"], level)
        if row.get("images"):
            changed["images"] = [_protected(picture, level) for picture in row["images"]]
        return {**row, **changed}


def _protected(picture: dict[str, Any], level: Level) -> dict[str, Any]:
    """Pixels that cannot be made safe are not kept, nor is a reference to ones that nobody has looked at."""
    data = picture["data"]
    if data is not None:
        size = {"width": picture["width"], "height": picture["height"]}
        data = anonymized_image(data, picture["encoding"], level, **size)
    return {**picture, "data": data, "claim_uri": None, "claim_sha256": None, "claim_bytes": None}
