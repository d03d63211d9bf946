"""Which action is executed at which tick of the control loop, and when the next chunk is asked for. Pure.

Time is counted in ticks of the loop's own monotonic clock, and never in a clock of anybody else. A control step of
the embodiment lasts `ticks_per_step` ticks. An observation is taken at the first tick of a step; row k of the chunk
that it brings is for the step k steps later, whenever the chunk arrives: rows whose time has passed are never made
up for. A delta is divided among the ticks of its step, so that a loop that is faster than the embodiment's control
rate moves as fast as the gate has judged; anything else is repeated.

What is executed at a tick is a row of a chunk for that tick, or the hold rule's action (robot_client/hold.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from robot_client.axes import Axes
from robot_client.blend import Blend, Newest, Row, blended
from robot_client.chunk import ActionChunk
from robot_client.errors import Refused, RobotClientError
from schemas.codes import Code

#: Refusals that say nothing about the scene or the robot: what is left of a fresh chunk may still be played.
PLAY_ON = frozenset(
    {
        Code.QUOTA,
        Code.OVERLOADED,
        Code.NO_WORKER,
        Code.UNAVAILABLE,
        Code.EXPIRED,
        Code.SUPERSEDED,
        Code.TIMEOUT,
    }
)
#: How far the rate that a chunk states may lie from the schedule's, relatively.
RATE_TOLERANCE = 0.01


class Source(StrEnum):
    """Why a command is what it is."""

    CHUNK = "chunk"
    #: Held: no chunk has come yet.
    START = "start"
    #: Held: the steps of the last chunk are over and no other has come.
    STALE = "stale"
    #: Held: the service has refused, so what was planned is no longer executed.
    REFUSED = "refused"


class Verdict(StrEnum):
    """What became of an answer."""

    TAKEN = "taken"
    #: Nobody waits for it: it was taken before (a replay), or its request was given up.
    NOT_AWAITED = "not awaited"
    EXPIRED = "expired"
    #: A chunk of a later observation is there already.
    SUPERSEDED = "superseded"
    #: All its steps are over.
    PAST = "past"
    #: Of another action dimension or control rate than this robot's.
    MISFIT = "misfit"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleRule:
    """When the next chunk is asked for, and how it is joined to the one before.

    It is asked for at the last step from which its answer is expected `margin_steps` before the newest chunk is
    over. look_again_steps: also as soon as that many of its steps are over, so that a robot
    that could play a long chunk to its end looks again earlier; None: as late as possible.
    """

    look_again_steps: int | None = None
    margin_steps: int = 1
    blend: Blend = field(default_factory=Newest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """`action` (action_dim,) is to be sent at this tick; None: send nothing."""

    action: Row | None
    source: Source


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """A chunk in time: row k covers the ticks from `begin + k * ticks_per_step` on."""

    begin: int
    taken: int
    actions: NDArray[np.float32]

    def end(self, ticks_per_step: int) -> int:
        return self.begin + len(self.actions) * ticks_per_step


class Schedule:
    """One robot's schedule from the beginning of an episode. Ticks only ever grow."""

    def __init__(
        self, axes: Axes, rule: ScheduleRule | None = None, *, control_rate_hz: float, ticks_per_step: int = 1
    ) -> None:
        if ticks_per_step < 1:
            raise ValueError(f"ticks_per_step must be at least 1, not {ticks_per_step}")
        self._axes = axes
        self._hold = axes.hold
        self._rule = rule or ScheduleRule()
        self._control_rate_hz = control_rate_hz
        self._ticks_per_step = ticks_per_step
        self._divisor = np.where(np.array(axes.moves), np.float32(ticks_per_step), np.float32(1))
        #: By the tick of their observation, ascending.
        self._plans: list[_Plan] = []
        #: Ticks of observations whose answer is awaited.
        self._awaited: set[int] = set()
        self._not_before = 0
        self._idle = Source.START
        self._last: Row | None = None
        #: Control step -> what was sent in it, since the last request.
        self._executed: dict[int, Row] = {}

    def step_of(self, tick: int) -> int:
        return tick // self._ticks_per_step

    def due(self, tick: int, latency_ticks: int | None) -> bool:
        """Whether an observation is to be taken and sent now. latency_ticks: what an answer takes; None: unknown."""
        if tick % self._ticks_per_step or self._awaited or tick < self._not_before:
            return False
        if not self._plans or latency_ticks is None:
            return True
        newest = self._plans[-1]
        left = newest.end(self._ticks_per_step) - tick
        # The next chance to ask comes a step later.
        if left < latency_ticks + (self._rule.margin_steps + 1) * self._ticks_per_step:
            return True
        again = self._rule.look_again_steps
        return again is not None and tick - newest.begin >= again * self._ticks_per_step

    def asked(self, tick: int) -> NDArray[np.float32] | None:
        """An observation is taken at this tick. Returns what was executed since the last: (steps, action_dim) or None.

        Deltas are sums over the ticks of a step. Raises ValueError for a tick that is not the first of its step.
        """
        if tick % self._ticks_per_step:
            raise ValueError(f"tick {tick} is not the first of its step: an observation belongs to one")
        self._awaited.add(tick)
        executed = [row for _, row in sorted(self._executed.items())]
        self._executed.clear()
        return np.stack(executed) if executed else None

    def answered(self, asked: int, tick: int, chunk: ActionChunk) -> Verdict:
        """A chunk came, at `tick`, for the observation of tick `asked`."""
        if asked not in self._awaited:
            return Verdict.NOT_AWAITED
        self._awaited.discard(asked)
        if chunk.expired:
            return Verdict.EXPIRED
        if not self._fits(chunk):
            self._drop()
            return Verdict.MISFIT
        plan = _Plan(begin=asked, taken=tick, actions=chunk.actions)
        if self._plans and asked < self._plans[-1].begin:
            return Verdict.SUPERSEDED
        if plan.end(self._ticks_per_step) <= tick:
            return Verdict.PAST
        self._plans.append(plan)
        self._idle = Source.STALE
        return Verdict.TAKEN

    def failed(self, asked: int, tick: int, error: RobotClientError, *, pause_ticks: int = 0) -> None:
        """No chunk comes for the observation of tick `asked`, and none is asked for in the next `pause_ticks` ticks.

        A refusal that speaks of the scene, the robot or an operator's stop ends what is planned; where the service
        had no room or no time, or could not be reached, what is left of the last chunk is still fresh and is played.
        """
        self._awaited.discard(asked)
        self._not_before = max(self._not_before, tick + pause_ticks)
        if isinstance(error, Refused) and error.code not in PLAY_ON:
            self._drop()

    def command(self, tick: int) -> Command:
        """What to send at this tick, which counts as executed. Call once a tick; ticks may be left out."""
        self._plans = [plan for plan in self._plans if plan.end(self._ticks_per_step) > tick]
        if self._plans:
            rows = [
                (plan.actions[(tick - plan.begin) // self._ticks_per_step], self._steps_since(plan.taken, tick))
                for plan in self._plans
            ]
            whole = blended(rows, self._rule.blend, self._axes)
            command = Command(action=(whole / self._divisor).astype(np.float32), source=Source.CHUNK)
        else:
            command = Command(action=self.held(), source=self._idle)
        if command.action is not None:
            self._note(tick, command.action)
        return command

    def held(self) -> Row | None:
        """The action (action_dim,) that holds now; None: send nothing."""
        return self._hold.action(self._last)

    def _steps_since(self, taken: int, tick: int) -> float:
        return (tick - taken) / self._ticks_per_step

    def _fits(self, chunk: ActionChunk) -> bool:
        rate_hz = chunk.control_rate_hz
        in_time = rate_hz == 0 or abs(rate_hz - self._control_rate_hz) <= RATE_TOLERANCE * self._control_rate_hz
        return chunk.actions.shape[1] == self._axes.dim and in_time

    def _drop(self) -> None:
        self._plans.clear()
        self._idle = Source.REFUSED

    def _note(self, tick: int, action: Row) -> None:
        self._last = action
        step = self.step_of(tick)
        before = self._executed.get(step)
        moves = np.array(self._axes.moves)
        self._executed[step] = action if before is None else np.where(moves, before + action, action)
