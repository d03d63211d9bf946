"""The action gate's rules: pure, numpy only, and shared by the gate, by REST evaluation and by the tests.

Every check looks at every step of the chunk and scores 0..1; the safety score is the minimum. Within its
limit a check scores 1; beyond it at most 0.5, falling to 0 at twice the limit, so that no breach passes
the default minimum of 0.7.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from schemas.action_space import ArmControl
from schemas.cards import ActionKind, EmbodimentCard
from schemas.messages import SafetyMode, SafetyReport, Violation

Actions = NDArray[np.float32]
#: Slack on a range, as a share of its span: rounding is not a breach.
RANGE_SLACK = 0.01

#: Names of the checks, in the order in which they are made.
CHECKS = ("dims", "finite", "range", "velocity", "jerk", "workspace", "continuity", "gripper")


@dataclass(frozen=True, slots=True)
class Breach:
    """One value that is out of its limit. `field` is actions[step].name."""

    field: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the rules say of one chunk. `actions` (horizon, dim) is what may be executed if `passed`."""

    score: float
    checks: dict[str, float]
    violations: tuple[Breach, ...]
    passed: bool
    modified: bool
    mode: SafetyMode.ValueType
    actions: Actions

    @property
    def worst_check(self) -> str:
        return min(self.checks, key=lambda name: self.checks[name])

    def report(self) -> SafetyReport:
        return SafetyReport(
            score=self.score,
            mode=self.mode,
            modified=self.modified,
            checks=self.checks,
            violations=[Violation(field=b.field, reason=b.reason, detail=b.detail) for b in self.violations],
        )


@dataclass(frozen=True, slots=True)
class _Case:
    chunk: NDArray[np.float64]
    card: EmbodimentCard
    state: NDArray[np.float64] | None
    previous: NDArray[np.float64] | None

    def columns(self, *kinds: ActionKind) -> list[int]:
        return [i for i, dim in enumerate(self.card.actions) if dim.kind in kinds]


@dataclass(slots=True)
class _Finding:
    score: float = 1.0
    breaches: list[Breach] = field(default_factory=list)


def effective_mode(requested: SafetyMode.ValueType, card: EmbodimentCard) -> SafetyMode.ValueType:
    """An unverified card knows no limits that one could act on: it is monitored, whatever was asked for."""
    if not card.verified:
        return SafetyMode.SAFETY_MODE_MONITOR
    if requested == SafetyMode.SAFETY_MODE_UNSPECIFIED:
        return SafetyMode.SAFETY_MODE_REJECT
    return requested


def evaluate_chunk(
    chunk: Actions,
    card: EmbodimentCard,
    *,
    state: NDArray[np.float32] | None,
    previous: Actions | None,
    mode: SafetyMode.ValueType,
    min_score: float,
) -> Verdict:
    """Score a chunk and decide on it.

    chunk: (horizon, dim) in the units of the card. state: (state_dim,) before the chunk, None if unknown.
    previous: the chunk that this robot got before, (horizon, dim), None if there is none.
    """
    mode = effective_mode(mode, card)
    checks, breaches = _examine(chunk, card, state, previous)
    score = min(checks.values())
    actions, modified = chunk, False
    deliverable = checks["dims"] == 1.0 and checks.get("finite") == 1.0
    if score < min_score and mode == SafetyMode.SAFETY_MODE_CLAMP and deliverable:
        actions = clamp(chunk, card, state=state)
        modified = not np.array_equal(actions, chunk)
        checks, _ = _examine(actions, card, state, previous)
        score = min(checks.values())
    # NaN and a wrong shape cannot be executed by anyone: no mode lets them pass.
    passed = deliverable and (score >= min_score or mode == SafetyMode.SAFETY_MODE_MONITOR)
    return Verdict(
        score=score,
        checks=checks,
        violations=tuple(breaches),
        passed=passed,
        modified=modified,
        mode=mode,
        actions=actions,
    )


def clamp(chunk: Actions, card: EmbodimentCard, *, state: NDArray[np.float32] | None) -> Actions:
    """The nearest chunk within range, velocity, workspace and gripper values; (horizon, dim) float32, finite."""
    clamped = chunk.astype(np.float64)
    for i, dim in enumerate(card.actions):
        low, high = dim.range
        if dim.max_velocity is not None and dim.kind is ActionKind.VELOCITY:
            low, high = max(low, -dim.max_velocity), min(high, dim.max_velocity)
        elif dim.max_velocity is not None and dim.kind is ActionKind.DELTA and card.control_rate_hz is not None:
            step = dim.max_velocity / card.control_rate_hz
            low, high = max(low, -step), min(high, step)
        clamped[:, i] = np.clip(clamped[:, i], low, high)
    _slow_down(clamped, card, state)
    workspace = card.workspace
    if workspace is not None and state is not None:
        for axis, (s, a) in enumerate(zip(workspace.state_index, workspace.action_index, strict=True)):
            position = float(state[s])
            low, high = min(workspace.low[axis], position), max(workspace.high[axis], position)
            for step_index in range(len(clamped)):
                target = float(np.clip(position + clamped[step_index, a], low, high))
                clamped[step_index, a] = target - position
                position = target
    gripper = card.gripper
    if gripper is not None and gripper.tolerance is not None:
        for i in gripper.indices:
            nearer_open = np.abs(clamped[:, i] - gripper.open_value) <= np.abs(clamped[:, i] - gripper.closed_value)
            clamped[:, i] = np.where(nearer_open, gripper.open_value, gripper.closed_value)
    return clamped.astype(np.float32)


def _slow_down(chunk: NDArray[np.float64], card: EmbodimentCard, state: NDArray[np.float32] | None) -> None:
    """Bring targets (horizon, dim) as near to what was asked for as the joints' speed allows; in place."""
    if card.control_rate_hz is None:
        return
    starts = _starts(card, state)
    for i, dim in enumerate(card.actions):
        if dim.kind is ActionKind.ABSOLUTE and dim.max_velocity is not None:
            # A little less than the limit, which float32 would round beyond it.
            reach = 0.999 * dim.max_velocity / card.control_rate_hz
            at = starts.get(i, chunk[0, i])
            for step in range(len(chunk)):
                at = chunk[step, i] = min(max(chunk[step, i], at - reach), at + reach)


def _starts(card: EmbodimentCard, state: NDArray[np.floating] | None) -> dict[int, float]:
    """Action dimension -> where its joint stands before the chunk, of joint targets whose state is known."""
    space = card.space
    if state is None or len(state) != len(card.state) or space.control is not ArmControl.JOINT_POSITION:
        return {}
    return {i: float(state[s]) for i, s in zip(card.arm_indices, space.state_index, strict=False)}


def _examine(
    chunk: Actions, card: EmbodimentCard, state: NDArray[np.float32] | None, previous: Actions | None
) -> tuple[dict[str, float], list[Breach]]:
    wanted = len(card.actions)
    if chunk.ndim != 2 or chunk.shape[0] < 1 or chunk.shape[1] != wanted:
        detail = f"a chunk for {card.robot_type} is (horizon, {wanted}), this one is {tuple(chunk.shape)}"
        return {"dims": 0.0}, [Breach("actions", "wrong_shape", detail)]
    bad = np.argwhere(~np.isfinite(chunk))
    if len(bad):
        step, i = (int(index) for index in bad[0])
        where = _field(card, step, i)
        return {"dims": 1.0, "finite": 0.0}, [Breach(where, "not_finite", f"{len(bad)} values are NaN or infinite")]
    usable = previous is not None and previous.ndim == 2 and previous.shape[1] == wanted and len(previous) > 0
    case = _Case(
        chunk.astype(np.float64),
        card,
        state.astype(np.float64) if state is not None and len(state) == len(card.state) else None,
        previous.astype(np.float64) if usable and previous is not None else None,
    )
    checks = {"dims": 1.0, "finite": 1.0}
    breaches: list[Breach] = []
    for name, check in _VALUE_CHECKS.items():
        if name in _RATED and card.control_rate_hz is None:
            continue  # what was not checked is not reported as passed
        finding = check(case)
        checks[name] = finding.score
        breaches.extend(finding.breaches)
    return checks, breaches


def _range(case: _Case) -> _Finding:
    low, high = np.array([dim.range for dim in case.card.actions]).T
    # A range that is open to one side has no span: its one limit gives the measure.
    one_limit = np.where(np.isfinite(low), low, np.where(np.isfinite(high), high, 0.0))
    span = np.where(np.isfinite(high - low), high - low, np.maximum(np.abs(one_limit), 1.0))
    outside = np.maximum(low - case.chunk, case.chunk - high)
    ratio = np.where(outside > RANGE_SLACK * span, 1.0 + outside / span, 1.0)
    return _worst(
        case, ratio, "out_of_range", lambda s, i: f"{case.chunk[s, i]:.4g} is outside {low[i]:.4g} to {high[i]:.4g}"
    )


def _velocity(case: _Case) -> _Finding:
    velocity = _velocities(case)
    limits = [dim.max_velocity for dim in case.card.actions]
    return _limited(case, velocity, limits, "too_fast", "/s")


def _jerk(case: _Case) -> _Finding:
    velocity = _velocities(case)
    if len(velocity) < 3:
        return _Finding()
    jerk = np.diff(velocity, n=2, axis=0) * (case.card.control_rate_hz or 0.0) ** 2
    return _limited(case, jerk, [dim.max_jerk for dim in case.card.actions], "too_jerky", "/s3")


def _workspace(case: _Case) -> _Finding:
    box = case.card.workspace
    if box is None or case.state is None:
        return _Finding()
    start = case.state[list(box.state_index)]
    positions = start + np.cumsum(case.chunk[:, list(box.action_index)], axis=0)
    low, high = np.array(box.low), np.array(box.high)
    # A robot that already stands outside is let back in: only going further out counts.
    already = np.maximum(np.maximum(low - start, start - high), 0.0)
    beyond = np.maximum(np.maximum(low - positions, positions - high), 0.0) - already
    worst = float(beyond.max())
    if worst <= 1e-9:
        return _Finding()
    step, axis = (int(v) for v in np.unravel_index(int(beyond.argmax()), beyond.shape))
    unit = case.card.state[box.state_index[axis]].unit
    detail = f"the tool would leave the workspace by {worst:.4g} {unit} at step {step}"
    breach = Breach(_field(case.card, step, box.action_index[axis]), "leaves_workspace", detail)
    return _Finding(max(0.0, 1.0 - worst / box.tolerance), [breach])


def _continuity(case: _Case) -> _Finding:
    limits = np.array([dim.max_chunk_jump or np.inf for dim in case.card.actions])
    if case.previous is None or not np.isfinite(limits).any():
        return _Finding()
    # How many steps of the previous chunk the robot executed is unknown here: the nearest one counts.
    jumps = np.abs(case.chunk[0] - case.previous) / limits
    nearest = jumps[int(jumps.max(axis=1).argmin())]
    i = int(nearest.argmax())
    return _Finding(
        _score(float(nearest[i])),
        []
        if nearest[i] <= 1.0
        else [Breach(_field(case.card, 0, i), "jumps", f"jumps by {nearest[i] * limits[i]:.4g} from the last chunk")],
    )


def _gripper(case: _Case) -> _Finding:
    gripper = case.card.gripper
    if gripper is None or gripper.tolerance is None:
        return _Finding()
    columns = list(gripper.indices)
    values = case.chunk[:, columns]
    off = np.minimum(np.abs(values - gripper.open_value), np.abs(values - gripper.closed_value))
    ratio = np.ones_like(case.chunk)
    ratio[:, columns] = off / gripper.tolerance
    return _worst(
        case,
        ratio,
        "gripper_between",
        lambda s, i: (
            f"{case.chunk[s, i]:.3g} is neither open ({gripper.open_value}) nor closed ({gripper.closed_value})"
        ),
    )


_VALUE_CHECKS: dict[str, Callable[[_Case], _Finding]] = {
    "range": _range,
    "velocity": _velocity,
    "jerk": _jerk,
    "workspace": _workspace,
    "continuity": _continuity,
    "gripper": _gripper,
}


#: Checks that need to know how long a step takes.
_RATED = ("velocity", "jerk")


def _velocities(case: _Case) -> NDArray[np.float64]:
    """Units per second of every moving dimension, one row a step; binary dimensions stay at zero."""
    rate = case.card.control_rate_hz or 0.0
    velocity = np.zeros_like(case.chunk)
    delta, absolute = case.columns(ActionKind.DELTA), case.columns(ActionKind.ABSOLUTE)
    speed = case.columns(ActionKind.VELOCITY)
    velocity[:, speed] = case.chunk[:, speed]
    velocity[:, delta] = case.chunk[:, delta] * rate
    velocity[1:, absolute] = np.diff(case.chunk[:, absolute], axis=0) * rate
    # The way from where the joints stand to the first target counts too.
    for i, start in _starts(case.card, case.state).items():
        velocity[0, i] = (case.chunk[0, i] - start) * rate
    return velocity


def _limited(case: _Case, values: NDArray[np.float64], limits: list[float | None], reason: str, per: str) -> _Finding:
    known = np.array([limit if limit is not None else np.inf for limit in limits])
    units = [dim.unit for dim in case.card.actions]
    return _worst(
        case,
        np.abs(values) / known,
        reason,
        lambda s, i: f"{abs(values[s, i]):.4g} {units[i]}{per} is above {known[i]:.4g}",
    )


def _worst(case: _Case, ratio: NDArray[np.float64], reason: str, describe: Callable[[int, int], str]) -> _Finding:
    """Score of the worst value, and a breach for the worst step of each dimension that is beyond its limit."""
    breaches = []
    for i in range(ratio.shape[1]):
        step = int(ratio[:, i].argmax())
        if ratio[step, i] > 1.0:
            breaches.append(Breach(_field(case.card, step, i), reason, describe(step, i)))
    return _Finding(_score(float(ratio.max())), breaches)


def _score(ratio: float) -> float:
    """1 within the limit (ratio <= 1), 0.5 just beyond it, 0 from twice the limit on."""
    return 1.0 if ratio <= 1.0 else max(0.0, 0.5 * (2.0 - ratio))


def _field(card: EmbodimentCard, step: int, dim: int) -> str:
    return f"actions[{step}].{card.actions[dim].name}"
