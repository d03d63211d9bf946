"""`vlastream robots`: what is listed, and that a card file's faults are told by line and field."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from runtime.errors import Fatal
from runtime.robot_commands import check_card, list_robots, show_robot
from runtime.settings import Settings
from schemas.cards import CardSet
from tests.unit.test_own_robots import own, served

#: What every line of a card file could be wrong about.
GOOD = """robot_type: my_arm
title: Two joints
source: measured
verified: false
control_rate_hz: 20
state:
  - {name: a, unit: rad}
  - {name: b, unit: rad, low: -1, high: 1}
actions:
  - {name: a, unit: rad, kind: absolute, low: -1, high: 1}
  - {name: g, unit: "1", kind: binary, low: 0, high: 1}
gripper: {action_index: 1, open_value: 1, closed_value: 0}
"""


@pytest.fixture
def said() -> list[str]:
    return []


def installation(folder: Path, cards: CardSet | None = None) -> Settings:
    for kind, all_of_kind in (("models", (cards or served()).models), ("embodiments", (cards or served()).embodiments)):
        (folder / kind).mkdir(parents=True)
        for i, card in enumerate(all_of_kind):
            (folder / kind / f"{i}.yaml").write_text(yaml.safe_dump(card.model_dump(mode="json")))
    return Settings(_env_file=None, cards_dir=folder)


def written(folder: Path, text: str) -> str:
    path = folder / "card.yaml"
    path.write_text(text)
    return str(path)


def test_every_type_is_listed_with_what_drives_it(tmp_path: Path, said: list[str]) -> None:
    list_robots(installation(tmp_path / "cards"), say=said.append)
    assert len(said) == 1
    assert said[0].split()[:2] == ["test_arm", "verified"]
    assert "test-model" in said[0]


def test_one_type_is_shown_whole_and_an_unknown_one_finds_its_neighbour(tmp_path: Path, said: list[str]) -> None:
    settings = installation(tmp_path / "cards")
    show_robot(settings, "test_arm", say=said.append)
    text = "\n".join(said)
    assert "driven by: test-model" in text
    assert "gripper gripper: 0 opens, 1 closes" in text
    assert "-0.1 to 0.1 [m], at most 0.8 a second" in text
    with pytest.raises(Fatal, match="did you mean test_arm"):
        show_robot(settings, "testarm", say=said.append)


def test_a_card_that_holds_is_told_which_deployments_it_fits(tmp_path: Path, said: list[str]) -> None:
    settings = installation(tmp_path / "cards")
    assert check_card(settings, written(tmp_path, yaml.safe_dump(own())), say=said.append) == 0
    assert "monitor mode" in said[0]
    assert said[-1] == "  test-model-a: fits"
    assert check_card(settings, written(tmp_path, GOOD), say=said.append) == 0
    assert said[-1] == "  test-model-a: the model gives 3 values, the robot takes 2"


@pytest.mark.parametrize(
    ("old", "new", "line", "field", "detail"),
    [
        ("low: -1, high: 1}\nactions", "low: 2, high: 1}\nactions", 8, "state.1", "must be below"),
        ("kind: absolute", "kind: sideways", 10, "actions.0.kind", "absolute"),
        ("title: Two joints\n", "", 1, "title", "required"),
        ("title: Two joints", "title: Two joints\ncolour: red", 3, "colour", "not permitted"),
        ("action_index: 1", "action_index: 7", 1, "", "does not exist"),
        ("closed_value: 0", "closed_value: 1", 12, "gripper", "must differ"),
        ("my_arm", "unknown", 1, "", "no robot may be called"),
        ("verified: false", "verified: [", 6, "", "not YAML"),
        (GOOD, "- a list", 1, "", "mapping of fields"),
    ],
)
def test_each_fault_of_a_card_is_told_with_its_line_and_field(
    old: str, new: str, line: int, field: str, detail: str, tmp_path: Path, said: list[str]
) -> None:
    file = written(tmp_path, GOOD.replace(old, new))
    assert check_card(installation(tmp_path / "cards"), file, say=said.append) == 1
    (told,) = said
    assert told.startswith(f"{file}: line {line}: {field}")
    assert detail in told


def test_a_file_that_is_not_text_is_no_card(tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "card.yaml").write_bytes(b"\xff\xfe\x00")
    assert check_card(installation(tmp_path / "cards"), str(tmp_path / "card.yaml"), say=said.append) == 1
    assert len(said) == 1
