"""Robots as a data set or a simulator commands them: action spaces that no robot description states.

Numbers are read out of the software that holds them; where it names none, the card has none and is unverified.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from deploy.descriptions.build import Content
from deploy.descriptions.checkouts import Checkouts

#: Commanded by tool deltas: names of the six values.
_MOVES = ("dx", "dy", "dz")
_TURNS = ("drx", "dry", "drz")

_ROBOSUITE = ("ARISE-Initiative/robosuite", "robosuite/controllers/config/osc_pose.json")
_LIBERO = ("Lifelong-Robot-Learning/LIBERO", "libero/libero/envs/env_wrapper.py")
_DROID = ("droid-dataset/droid", "droid/robot_env.py")
_DROID_IK = ("droid-dataset/droid", "droid/robot_ik/robot_ik_solver.py")
_DROID_ARM = ("droid-dataset/droid", "droid/franka/robot.py")
_BRIDGE = ("rail-berkeley/bridge_data_robot", "widowx_envs/widowx_envs/base/robot_base_env.py")
_BRIDGE_RATE = ("openvla/openvla", "experiments/robot/bridge/run_bridgev2_eval.py")
_SIMPLER = ("simpler-env/SimplerEnv", "README.md")
_MANISKILL = ("simpler-env/ManiSkill2_real2sim", "mani_skill2_real2sim/agents/configs/{}/defaults.py")
_NUMBER = r"(-?[\d.]+)"


def libero(checkouts: Checkouts) -> Content:
    """The Panda of LIBERO under robosuite's OSC_POSE: values within -1..1, scaled by the controller."""
    controller = json.loads(checkouts.text(*_ROBOSUITE))
    low, high = float(controller["input_min"]), float(controller["input_max"])
    metres, radians = float(controller["output_max"][0]), float(controller["output_max"][3])
    state = [("eef_x", "m"), ("eef_y", "m"), ("eef_z", "m"), ("eef_rx", "rad"), ("eef_ry", "rad"), ("eef_rz", "rad")]
    fingers = [("left_finger", "m"), ("right_finger", "m")]
    return {
        "robot_type": "libero",
        "title": "Franka Panda in LIBERO, tool deltas of robosuite's OSC_POSE controller",
        "source": _sources(checkouts, _ROBOSUITE, _LIBERO),
        "verified": True,
        "control_rate_hz": _stated(checkouts, _LIBERO, rf"control_freq={_NUMBER}"),
        "state": [{"name": name, "unit": unit} for name, unit in (*state, *fingers)],
        "actions": [
            *({"name": name, "unit": "1", "kind": "delta", "low": low, "high": high} for name in (*_MOVES, *_TURNS)),
            {"name": "gripper", "unit": "1", "kind": "binary", "low": -1.0, "high": 1.0},
        ],
        "gripper": {"action_index": 6, "open_value": -1.0, "closed_value": 1.0},
        "space": _tool("axis_angle", metres_per_unit=metres, radians_per_unit=radians, state_index=list(range(6))),
    }


def droid(checkouts: Checkouts) -> Content:
    """The Panda of DROID: joint velocities within -1..1 of 0.2 rad a step, gripper position 0 open, 1 closed."""
    per_step = _stated(checkouts, _DROID_IK, rf"relative_max_joint_delta = np\.array\(\[{_NUMBER}")
    rate = _stated(checkouts, _DROID, rf"self\.control_hz = {_NUMBER}")
    limit = _stated(checkouts, _DROID, rf"action\.max\(\) <= {_NUMBER}\)")
    # max_gripper_width * (1 - command): the command is how closed it is.
    if not re.search(r"self\._max_gripper_width \* \(1 - command\)", checkouts.text(*_DROID_ARM)):
        raise ValueError(f"{_DROID_ARM[1]} does not say any more which way the gripper works")
    joints = [f"joint_{i}" for i in range(1, 8)]
    return {
        "robot_type": "droid",
        "title": "Franka Panda with Robotiq 2F-85 as in DROID, joint velocities",
        "source": _sources(checkouts, _DROID, _DROID_IK, _DROID_ARM),
        "verified": True,
        "control_rate_hz": rate,
        "state": [*({"name": name, "unit": "rad"} for name in joints), _unit_gripper()],
        "actions": [
            *({"name": name, "unit": "1", "kind": "velocity", "low": -limit, "high": limit} for name in joints),
            {**_unit_gripper(), "kind": "absolute"},
        ],
        "gripper": {"action_index": 7, "open_value": 0.0, "closed_value": 1.0},
        "space": {
            "name": "joint_velocity",
            "control": "joint_velocity",
            "radians_per_unit": round(per_step * rate, 6),
            "state_index": list(range(7)),
        },
    }


def simplerenv_widowx(checkouts: Checkouts) -> Content:
    """WidowX in SimplerEnv: rotation vectors about the base's axes; the gripper takes -1 closed, 1 open."""
    rate = _stated(checkouts, _SIMPLER, rf"Bridge environments use a control frequency of {_NUMBER}hz")
    gripper = {"name": "gripper", "unit": "1", "kind": "binary", "low": -1.0, "high": 1.0}
    ends = {"action_index": 6, "open_value": 1.0, "closed_value": -1.0}
    return _simpler(checkouts, "widowx", "WidowX 250 6DOF in SimplerEnv (Bridge)", rate, gripper, ends)


def simplerenv_google(checkouts: Checkouts) -> Content:
    """Google Robot in SimplerEnv. Its client turns the openness 0..1 into the relative, sticky command itself."""
    rate = _stated(checkouts, _SIMPLER, rf"Google Robot environments use a control frequency of {_NUMBER}hz")
    gripper = {**_unit_gripper(), "kind": "absolute"}
    ends = {"action_index": 6, "open_value": 1.0, "closed_value": 0.0}
    return _simpler(checkouts, "google_robot", "Google Robot in SimplerEnv (Fractal)", rate, gripper, ends)


def bridge(checkouts: Checkouts) -> Content:
    """The WidowX's second action space: tool deltas as the Bridge data set records them."""
    low = _row(checkouts, _BRIDGE, r"spaces\.Box\(\s*np\.asarray\(\[([^\]]+)\]")
    high = _row(checkouts, _BRIDGE, r"spaces\.Box\(\s*np\.asarray\(\[[^\]]+\]\),\s*np\.asarray\(\[([^\]]+)\]")
    units = ("m", "m", "m", "rad", "rad", "rad", "1")
    kinds = (*["delta"] * 6, "absolute")
    names = (*_MOVES, *_TURNS, "gripper")
    return {
        "source": _sources(checkouts, _BRIDGE, _BRIDGE_RATE),
        "verified": True,
        "control_rate_hz": _stated(checkouts, _BRIDGE_RATE, rf"control_frequency: float = {_NUMBER}"),
        "actions": [
            {"name": name, "unit": unit, "kind": kind, "low": a, "high": b}
            for name, unit, kind, a, b in zip(names, units, kinds, low, high, strict=True)
        ],
        "gripper": {"action_index": 6, "open_value": high[6], "closed_value": low[6]},
        "space": _tool("euler_xyz"),
    }


#: Whole cards, by robot type.
SETUPS: dict[str, Callable[[Checkouts], Content]] = {
    "libero": libero,
    "simplerenv_widowx": simplerenv_widowx,
    "simplerenv_google": simplerenv_google,
    "droid": droid,
}
#: Action spaces beside those of a description, by robot type.
FURTHER_SPACES: dict[str, Callable[[Checkouts], Content]] = {"widowx": bridge}


def _simpler(
    checkouts: Checkouts, robot: str, title: str, rate: float, gripper: Content, ends: dict[str, Any]
) -> Content:
    repository, path = _MANISKILL
    names = ("x", "y", "z", "qw", "qx", "qy", "qz", "gripper")
    return {
        "robot_type": f"simplerenv_{robot.partition('_')[0]}",
        "title": title,
        "source": _sources(checkouts, (repository, path.format(robot)), _SIMPLER),
        # Its controllers state no limit of a step.
        "verified": False,
        "control_rate_hz": rate,
        "state": [{"name": name, "unit": "m" if i < 3 else "1"} for i, name in enumerate(names)],
        "actions": [
            *({"name": name, "unit": "m", "kind": "delta"} for name in _MOVES),
            *({"name": name, "unit": "rad", "kind": "delta"} for name in _TURNS),
            gripper,
        ],
        "gripper": ends,
        "space": _tool("axis_angle"),
    }


def _tool(rotation: str, **changes: Any) -> Content:
    return {"name": "ee_delta", "control": "ee_delta", "rotation": rotation, "frame": "base", **changes}


def _unit_gripper() -> Content:
    return {"name": "gripper", "unit": "1", "low": 0.0, "high": 1.0}


def _sources(checkouts: Checkouts, *files: tuple[str, str]) -> str:
    return "; ".join(
        f"https://github.com/{repository}@{checkouts.commit(repository)}:{path}" for repository, path in files
    )


def _found(checkouts: Checkouts, file: tuple[str, str], pattern: str) -> str:
    """What a file says. Raises ValueError where it does not say it (any more)."""
    found = re.search(pattern, checkouts.text(*file))
    if found is None:
        raise ValueError(f"{file[0]}:{file[1]} has nothing like {pattern}")
    return found.group(1)


def _stated(checkouts: Checkouts, file: tuple[str, str], pattern: str) -> float:
    return float(_found(checkouts, file, pattern))


def _row(checkouts: Checkouts, file: tuple[str, str], pattern: str) -> list[float]:
    return [float(value) for value in _found(checkouts, file, pattern).split(",")]
