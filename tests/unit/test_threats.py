"""docs/security.md names what is tried against the system: every attempt, and no test that is not there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
_DEFINED = re.compile(r"^(?:async )?def (test_\w+)\(", re.MULTILINE)
_LOCKED = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(\[[^]]*\])?==[^\s;]+", re.MULTILINE)


def names_in(pattern: str) -> set[str]:
    return {name for path in ROOT.glob(pattern) for name in _DEFINED.findall(path.read_text())}


def test_every_attempt_is_named_in_the_threat_model() -> None:
    attempts = names_in("tests/unit/test_break_in_*.py")
    assert attempts
    assert attempts - set(re.findall(r"test_\w+", PAGE)) == set()


def test_every_test_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert named - names_in("tests/**/test_*.py") == set()


def test_every_file_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`((?:ingest_api|runtime|schemas|stream_agents|gpu_consumers|tests)/[\w/]+\.py)`", PAGE))
    assert named
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_every_requirement_is_pinned_to_one_version_and_its_hashes() -> None:
    files = sorted((ROOT / "requirements").glob("*.txt"))
    assert files
    for path in files:
        entries = re.split(r"\n(?=[A-Za-z0-9])", re.sub(r"^\s*(#.*)?\n", "", path.read_text(), flags=re.MULTILINE))
        for entry in entries:
            assert _LOCKED.match(entry), f"{path.name}: {entry.splitlines()[0]} is not pinned"
            assert "--hash=sha256:" in entry, f"{path.name}: {entry.splitlines()[0]} has no hash"
