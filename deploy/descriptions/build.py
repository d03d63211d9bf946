"""From joints to the content of an embodiment card. What the description does not state is left out of the card."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from deploy.descriptions.joints import Joint
from deploy.descriptions.robots import Description

#: Digits that are kept of a limit: a micrometre, a microradian.
_DIGITS = 6
Content = dict[str, Any]


def chosen(description: Description, joints: Sequence[Joint]) -> list[Joint]:
    """The joints that are commanded: those of the arm in the order of the file, then the grippers, arm by arm."""
    wanted = [joint for joint in joints if re.fullmatch(description.joints, joint.name)]
    if missing := set(description.grippers) - {joint.name for joint in wanted}:
        raise ValueError(
            f"{description.robot_type}: no joint {', '.join(sorted(missing))} among those of the description"
        )
    arm = [joint for joint in wanted if joint.name not in description.grippers]
    return [*arm, *(joint for name in description.grippers for joint in wanted if joint.name == name)]


def card_of(description: Description, joints: Sequence[Joint], source: str) -> Content:
    """A card with the robot commanded by joint positions, and by joint velocities where all of them are limited."""
    names = description.arms or ("",)
    parts = chosen(description, joints)
    if not parts:
        raise ValueError(f"{description.robot_type}: no joint of {description.path} matches {description.joints}")
    commanded = [(f"{arm}_{joint.name}" if arm else joint.name, joint) for arm in names for joint in parts]
    gripper = _gripper(description, commanded)
    grips = {gripper["action_index"], *gripper.get("further_indices", [])} if gripper else set()
    arm_index = [i for i in range(len(commanded)) if i not in grips]
    positions = [_position(name, joint) for name, joint in commanded]
    for i in grips:
        # A gripper is told its end at once and goes there at its own speed: a target that jumps is no fault.
        positions[i].pop("max_velocity", None)
    card: Content = {
        "robot_type": description.robot_type,
        "title": description.title,
        "source": source,
        "verified": all("low" in dim or "max_velocity" in dim for dim in positions),
        "state": [_state(name, joint) for name, joint in commanded],
        "actions": positions,
        **({"gripper": gripper} if gripper else {}),
        "space": {"name": "joint_position", "control": "joint_position", "state_index": arm_index},
    }
    if any(commanded[i][1].velocity is None for i in arm_index):
        return card
    speeds = [_speed(name, joint) if i in arm_index else positions[i] for i, (name, joint) in enumerate(commanded)]
    velocity: Content = {
        "source": source,
        "verified": card["verified"],
        "actions": speeds,
        **({"gripper": gripper} if gripper else {}),
        "space": {"name": "joint_velocity", "control": "joint_velocity", "state_index": arm_index},
    }
    return {**card, **velocity} if description.speeds_only else {**card, "alternatives": [velocity]}


def _gripper(description: Description, commanded: Sequence[tuple[str, Joint]]) -> Content | None:
    indices = [i for i, (_, joint) in enumerate(commanded) if joint.name in description.grippers]
    if not indices:
        return None
    joint = commanded[indices[0]][1]
    if joint.low is None or joint.high is None:
        raise ValueError(f"{description.robot_type}: gripper {joint.name} has no range")
    ends = (joint.high, joint.low) if description.opens_at == "upper" else (joint.low, joint.high)
    opened, closed = (round(end, _DIGITS) for end in ends)
    further = {"further_indices": indices[1:]} if len(indices) > 1 else {}
    return {"action_index": indices[0], **further, "open_value": opened, "closed_value": closed}


def _position(name: str, joint: Joint) -> Content:
    stated = {"low": joint.low, "high": joint.high, "max_velocity": joint.velocity, "max_effort": joint.effort}
    return {"name": name, "unit": joint.unit, "kind": "absolute", **_rounded(stated)}


def _speed(name: str, joint: Joint) -> Content:
    limit = joint.velocity
    assert limit is not None
    stated = {"low": -limit, "high": limit, "max_velocity": limit, "max_effort": joint.effort}
    return {"name": name, "unit": f"{joint.unit}/s", "kind": "velocity", **_rounded(stated)}


def _state(name: str, joint: Joint) -> Content:
    return {"name": name, "unit": joint.unit, **_rounded({"low": joint.low, "high": joint.high})}


def _rounded(stated: dict[str, float | None]) -> Content:
    return {field: round(value, _DIGITS) for field, value in stated.items() if value is not None}
