"""The embodiment cards that ship: each from a source that it names, and the generator that writes them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from deploy.descriptions.build import card_of
from deploy.descriptions.checkouts import Checkouts, MissingSource
from deploy.descriptions.generate import CARDS, describe, main, rendered
from deploy.descriptions.joints import read_mjcf, read_urdf
from deploy.descriptions.robots import DESCRIPTIONS, Description
from deploy.descriptions.setups import SETUPS
from deploy.descriptions.table import PAGE, with_table
from schemas.card_files import load_cards
from schemas.cards import ActionKind, EmbodimentCard

SHIPPED = load_cards(CARDS.parent).embodiments
GENERATED = [card for card in SHIPPED if card.robot_type in {*SETUPS, *(d.robot_type for d in DESCRIPTIONS)}]
_SOURCE = re.compile(r"https://github\.com/[\w.-]+/[\w.-]+@[0-9a-f]{40}:[\w./-]+")
#: A description as robots have it: an arm, a wheel, fingers that follow each other, a limit that nobody knows.
_URDF = """<robot name="r">
  <joint name="base" type="fixed"/>
  <joint name="lift" type="prismatic"><limit lower="0" upper="0.5" velocity="0.1" effort="40"/></joint>
  <joint name="elbow" type="revolute"><limit lower="-2" upper="1.5" velocity="3.0000004" effort="0"/></joint>
  <joint name="roll" type="continuous"><limit velocity="2" effort="5"/></joint>
  <joint name="finger" type="prismatic"><limit lower="0" upper="0.04" velocity="0.2" effort="1"/></joint>
  <joint name="other_finger" type="prismatic"><limit lower="0" upper="0.04" velocity="0.2"/><mimic joint="finger"/>
  </joint>
</robot>"""
_MJCF = """<mujoco><compiler angle="radian"/>
  <default><default class="j"><joint range="-1 1"/></default></default>
  <worldbody><body><joint name="a" class="j"/><body><joint name="b" range="-0.5 2"/></body></body></worldbody>
</mujoco>"""


def description(**changes: object) -> Description:
    fields: dict[str, object] = {
        "robot_type": "lifter",
        "title": "Lifter",
        "repository": "someone/robots",
        "path": "urdf/lifter.urdf",
        "joints": "lift|elbow|roll|finger",
        "grippers": ("finger",),
    }
    return Description(**{**fields, **changes})  # type: ignore[arg-type] # the fields of a description


def repository(folder: Path, files: dict[str, str]) -> Path:
    """A checkout of someone/robots with these files."""
    place = folder / "someone" / "robots"
    for name, text in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    author = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    for command in (("init", "-q"), ("add", "."), (*author, "commit", "-qm", "robots")):
        subprocess.run(["git", "-C", str(place), *command], check=True, capture_output=True)
    return folder


def test_every_robot_type_of_the_reference_list_has_a_card() -> None:
    names = (
        "franka_panda franka_fr3 ur3 ur3e ur5 ur5e ur10 ur10e ur16e abb_yumi abb_irb1200 abb_irb1600 abb_irb6700 "
        "kuka_iiwa7 kuka_iiwa14 kuka_lbr_med kinova_gen3 kinova_gen3_lite kinova_jaco sawyer baxter xarm5 xarm6 xarm7 "
        "lite6 fetch freight toyota_hsr pr2 tiago berkeley_blue stanford_pupper so100 so101 koch aloha widowx "
        "google_robot unitree_g1 libero simplerenv_widowx simplerenv_google droid"
    )
    assert set(names.split()) <= {card.robot_type for card in SHIPPED}


@pytest.mark.parametrize("card", GENERATED, ids=lambda card: card.robot_type)
def test_a_generated_card_names_commit_and_file_and_has_limits_that_can_be(card: EmbodimentCard) -> None:
    for part in (card, *card.alternatives):
        assert all(_SOURCE.fullmatch(source) for source in part.source.split("; ")), part.source
        assert part.verified == all(dim.is_limited for dim in part.actions)
        assert part.space.control is not None
        assert part.convention.arm_indices
        for dim in part.actions:
            assert dim.max_velocity is None or 0 < dim.max_velocity < 1e5
            assert dim.low is None or dim.high is None or dim.high - dim.low <= 100
        grips = part.gripper.indices if part.gripper is not None else ()
        for i in grips:
            low, high = part.actions[i].range
            assert part.gripper is not None
            assert {part.gripper.open_value, part.gripper.closed_value} == {low, high}


@pytest.mark.parametrize("card", GENERATED, ids=lambda card: card.robot_type)
def test_a_generated_card_is_as_the_generator_wrote_it(card: EmbodimentCard) -> None:
    text = (CARDS / f"{card.robot_type}.yaml").read_text()
    assert rendered(yaml.safe_load(text)) == text


def test_the_page_of_robots_shows_the_cards_of_now() -> None:
    page = PAGE.read_text()
    assert page == with_table(page), "run python -m deploy.descriptions.table"
    with pytest.raises(ValueError, match="no place"):
        with_table("a page")


def test_joint_speeds_and_positions_share_joints_and_polarity() -> None:
    for card in GENERATED:
        for part in card.alternatives:
            if part.space.name == "joint_velocity":
                assert [dim.name for dim in part.actions] == [dim.name for dim in card.actions]
                assert part.gripper == card.gripper
                speeds = [part.actions[i].max_velocity for i in part.convention.arm_indices]
                assert speeds == [card.actions[i].max_velocity for i in card.convention.arm_indices]


def test_a_description_becomes_a_card_with_what_it_states_and_nothing_else() -> None:
    card = EmbodimentCard.model_validate(card_of(description(), read_urdf(_URDF), "here"))
    assert [dim.name for dim in card.actions] == ["lift", "elbow", "roll", "finger"]
    lift, elbow, roll, finger = card.actions
    assert (lift.unit, lift.low, lift.high, lift.max_velocity, lift.max_effort) == ("m", 0, 0.5, 0.1, 40)
    assert (elbow.max_velocity, elbow.max_effort) == (3.0, None)
    assert (roll.low, roll.high, roll.max_velocity) == (None, None, 2)
    # Told its end at once, a gripper goes there at its own speed.
    assert finger.max_velocity is None
    assert card.gripper is not None
    assert (card.gripper.open_value, card.gripper.closed_value) == (0.04, 0)
    assert card.control_rate_hz is card.reach_m is card.payload_kg is None
    assert card.in_space("joint_velocity").actions[1].kind is ActionKind.VELOCITY


def test_a_joint_without_any_limit_leaves_the_card_unverified() -> None:
    free = _URDF.replace('<limit velocity="2" effort="5"/>', "")
    content = card_of(description(), read_urdf(free), "here")
    assert not content["verified"]
    assert "alternatives" not in content
    EmbodimentCard.model_validate(content)


def test_two_arms_of_one_description_are_named_and_grip_apart() -> None:
    card = EmbodimentCard.model_validate(card_of(description(arms=("left", "right")), read_urdf(_URDF), "here"))
    assert [card.actions[i].name for i in card.convention.gripper_indices] == ["left_finger", "right_finger"]
    assert len(card.actions) == 8


def test_mjcf_ranges_come_from_the_joint_or_its_class() -> None:
    assert [(j.name, j.low, j.high, j.velocity) for j in read_mjcf(_MJCF)] == [("a", -1, 1, None), ("b", -0.5, 2, None)]
    with pytest.raises(ValueError, match="degrees"):
        read_mjcf(_MJCF.replace("radian", "degree"))


def test_a_card_is_written_from_a_checkout_and_says_which(tmp_path: Path) -> None:
    checkouts = Checkouts(repository(tmp_path, {"urdf/lifter.urdf": _URDF}))
    try:
        content = describe(description(), checkouts)
        commit = checkouts.commit("someone/robots")
    finally:
        checkouts.close()
    assert content["source"] == f"https://github.com/someone/robots@{commit}:urdf/lifter.urdf"
    assert EmbodimentCard.model_validate(yaml.safe_load(rendered(content))) == EmbodimentCard.model_validate(content)


def test_plain_files_of_a_named_commit_will_do(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    (tmp_path / "someone" / f"robots@{commit}").mkdir(parents=True)
    (tmp_path / "someone" / f"robots@{commit}" / "a.txt").write_text("here")
    checkouts = Checkouts(tmp_path)
    assert (checkouts.commit("someone/robots"), checkouts.text("someone/robots", "a.txt")) == (commit, "here")
    checkouts.close()


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"grippers": ("claw",)}, "claw"), ({"joints": "nothing", "grippers": ()}, "matches nothing")],
)
def test_a_description_that_is_not_as_expected_makes_no_card(changes: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        card_of(description(**changes), read_urdf(_URDF), "here")


def test_a_missing_checkout_is_named_and_no_card_is_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkouts = Checkouts(tmp_path)
    with pytest.raises(MissingSource, match=r"git clone https://github.com/someone/robots"):
        checkouts.text("someone/robots", "a.urdf")
    checkouts.close()
    assert main(["--checkouts", str(tmp_path), "--out", str(tmp_path), "--only", "baxter", "libero"]) == 1
    assert "RethinkRobotics/baxter_common" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.yaml"))
