"""Joints and their limits out of robot descriptions: URDF and MJCF. Only numbers are taken, nothing of the files."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

_LINEAR = ("prismatic", "slide")


@dataclass(frozen=True, slots=True, kw_only=True)
class Joint:
    """One joint that moves by its own motor. None: the description does not say it.

    low, high, velocity, effort: rad, rad/s and N m of an angle; m, m/s and N of a length.
    """

    name: str
    linear: bool
    low: float | None
    high: float | None
    velocity: float | None
    effort: float | None

    @property
    def unit(self) -> str:
        return "m" if self.linear else "rad"


def read_urdf(text: str) -> list[Joint]:
    """Movable joints in the order of the file, without those that follow another one (mimic).

    A velocity or effort of 0 would be a joint that cannot move: descriptions write it for what is not known.
    """
    joints = []
    for element in ET.fromstring(text).findall("joint"):
        kind = element.get("type", "fixed")
        if kind not in ("revolute", "continuous", "prismatic") or element.find("mimic") is not None:
            continue
        limit = element.find("limit")
        stated = dict(limit.attrib) if limit is not None else {}
        endless = kind == "continuous"
        joints.append(
            Joint(
                name=element.get("name", ""),
                linear=kind in _LINEAR,
                low=None if endless else _number(stated.get("lower")),
                high=None if endless else _number(stated.get("upper")),
                velocity=_number(stated.get("velocity")) or None,
                effort=_number(stated.get("effort")) or None,
            )
        )
    return joints


def read_mjcf(text: str) -> list[Joint]:
    """Joints of a MuJoCo model with the ranges of their default classes. MJCF knows no highest velocity."""
    root = ET.fromstring(text)
    compiler = root.find("compiler")
    if compiler is None or compiler.get("angle", "degree") != "radian":
        raise ValueError('angles are in degrees: only models with <compiler angle="radian"> are read')
    ranges = {
        default.get("class", ""): joint.get("range")
        for default in root.iter("default")
        for joint in default.findall("joint")
        if joint.get("range") is not None
    }
    joints = []
    for element in root.iter("joint"):
        name = element.get("name")
        if name is None:
            continue
        low, high = _pair(element.get("range") or ranges.get(element.get("class", "")))
        linear = element.get("type") in _LINEAR
        joints.append(Joint(name=name, linear=linear, low=low, high=high, velocity=None, effort=None))
    return joints


def _number(text: str | None) -> float | None:
    return None if text is None else float(text)


def _pair(text: str | None) -> tuple[float | None, float | None]:
    if text is None:
        return None, None
    low, high = map(float, text.split())
    return low, high
