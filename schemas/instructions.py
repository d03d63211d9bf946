"""What is one instruction: pure rules."""

from __future__ import annotations

import hashlib
import re

_PUNCTUATION = re.compile(r"[^\w\s]", re.UNICODE)


def normalised(instruction: str) -> str:
    """Lower case, without punctuation, one space between words. Idempotent."""
    return " ".join(_PUNCTUATION.sub("", instruction.lower()).split())


def instruction_hash(instruction: str) -> str:
    """sha256 of the normalised text, lower-case hex."""
    return hashlib.sha256(normalised(instruction).encode()).hexdigest()
