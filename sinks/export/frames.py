"""From an episode's keyframes to the frames of a dataset: pure rules.

A keyframe is a request: what the robot saw and where it was. Between two of them it executes actions without asking,
and a dataset wants a frame for each control step: those frames repeat the keyframe's image and state, and say so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

import numpy as np
from numpy.typing import NDArray

Actions = NDArray[np.float32]
#: A rate by the clock this near to the declared one is the declared one, with waits for answers in between.
_SAME_RATE = 0.25


@dataclass(frozen=True, slots=True)
class Keyframe:
    """One request of an episode. Actions are (steps, action_dim) in the embodiment's units."""

    row_id: str
    step: int
    instruction: str
    state: tuple[float, ...]
    #: The chunk as delivered; None where the request was refused.
    chunk: Actions | None
    #: What the robot says it did since its request before; None where it does not say.
    executed: Actions | None
    #: What should have been done, from feedback; goes before all else.
    corrected: Actions | None = None
    #: The robot's own clock; 0: not said.
    captured_at_ms: int = 0


@dataclass(frozen=True, slots=True)
class Frame:
    """`keyframe` is the number of the keyframe whose image and state this frame shows."""

    step: int
    keyframe: int
    action: Actions
    is_keyframe: bool


@dataclass(slots=True)
class Gaps:
    """What an episode lacks."""

    #: Control steps that nothing is known of.
    steps: int = 0
    #: Requests of a step that was asked about before: the last one counts.
    repeated: int = 0
    #: Requests without any action, refused and never told what was done instead.
    silent: int = field(default=0)


def frames_of(keyframes: Sequence[Keyframe]) -> tuple[list[Frame], Gaps]:
    """Frames in the order of their steps. keyframes: of one episode, in the order in which they were asked."""
    gaps = Gaps()
    ordered = _one_a_step(keyframes, gaps)
    frames: list[Frame] = []
    for number, keyframe in enumerate(ordered):
        following = ordered[number + 1] if number + 1 < len(ordered) else None
        steps = following.step - keyframe.step if following is not None else 1
        known = list(_actions(keyframe, following, steps))
        if not known:
            gaps.silent += 1
        gaps.steps += steps - len(known)
        for ahead, action in enumerate(known):
            frames.append(Frame(keyframe.step + ahead, number, action, is_keyframe=ahead == 0))
    return frames, gaps


def fps_of(episodes: Iterable[Sequence[Keyframe]], declared_hz: float) -> int:
    """Frames a second: the control rate that the robots' clocks show, which mostly is the declared one.

    The median over all pairs of neighbouring keyframes; declared_hz where no clock tells.
    """
    rates = []
    for keyframes in episodes:
        ordered = kept(keyframes)
        for one, other in pairwise(ordered):
            elapsed_s = (other.captured_at_ms - one.captured_at_ms) / 1000
            if one.captured_at_ms and elapsed_s > 0:
                rates.append((other.step - one.step) / elapsed_s)
    shown_hz = median(rates) if rates else declared_hz
    near = abs(shown_hz - declared_hz) <= _SAME_RATE * declared_hz
    return max(1, round(declared_hz if near else shown_hz))


def kept(keyframes: Sequence[Keyframe]) -> list[Keyframe]:
    """The keyframes that `Frame.keyframe` counts: one a step, by step."""
    return _one_a_step(keyframes, Gaps())


def _one_a_step(keyframes: Sequence[Keyframe], gaps: Gaps) -> list[Keyframe]:
    by_step = {keyframe.step: keyframe for keyframe in keyframes}
    gaps.repeated += len(keyframes) - len(by_step)
    return [by_step[step] for step in sorted(by_step)]


def _actions(keyframe: Keyframe, following: Keyframe | None, steps: int) -> Iterator[Actions]:
    """The action of each step up to the next keyframe, as far as one is known.

    A correction goes first, then what the robot did, then what it was told to do.
    """
    done = following.executed if following is not None else None
    # What was done since the request before counts back from the next keyframe: what is missing is missing in front.
    offset = steps - len(done) if done is not None else 0
    for ahead in range(steps):
        if keyframe.corrected is not None and ahead < len(keyframe.corrected):
            yield keyframe.corrected[ahead]
        elif done is not None and 0 <= ahead - offset < len(done):
            yield done[ahead - offset]
        elif keyframe.chunk is not None and ahead < len(keyframe.chunk):
            yield keyframe.chunk[ahead]
        else:
            return
