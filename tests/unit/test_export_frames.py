"""From keyframes to frames: which action belongs to which control step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinks.export.frames import Actions, Keyframe, fps_of, frames_of


def steps(count: int, start: float) -> Actions:
    return np.arange(start, start + count, dtype=np.float32).reshape(count, 1)


def keyframe(
    step: int,
    chunk: Actions | None = None,
    executed: Actions | None = None,
    corrected: Actions | None = None,
    *,
    at_ms: int = 0,
) -> Keyframe:
    return Keyframe(
        row_id=f"row-{step}",
        step=step,
        instruction="pick",
        state=(0.0,),
        chunk=chunk,
        executed=executed,
        corrected=corrected,
        captured_at_ms=at_ms,
    )


def values(keyframes: list[Keyframe]) -> list[tuple[int, float, bool]]:
    frames, _ = frames_of(keyframes)
    return [(frame.step, float(frame.action[0]), frame.is_keyframe) for frame in frames]


def test_between_two_keyframes_the_chunk_fills_every_control_step() -> None:
    found = values([keyframe(0, steps(4, 10)), keyframe(3, steps(4, 20))])
    assert found == [(0, 10, True), (1, 11, False), (2, 12, False), (3, 20, True)]


def test_what_the_robot_says_it_did_goes_before_the_chunk() -> None:
    found = values([keyframe(0, steps(4, 10)), keyframe(2, steps(4, 20), executed=steps(2, 50))])
    assert found[:2] == [(0, 50, True), (1, 51, False)]


def test_executed_steps_count_back_from_the_request_that_tells_of_them() -> None:
    found = values([keyframe(0, steps(4, 10)), keyframe(3, steps(1, 20), executed=steps(2, 50))])
    assert found[:3] == [(0, 10, True), (1, 50, False), (2, 51, False)]


def test_a_correction_goes_before_everything() -> None:
    found = values([keyframe(0, steps(4, 10), corrected=steps(1, 90)), keyframe(2, steps(1, 20), steps(2, 50))])
    assert found[:2] == [(0, 90, True), (1, 51, False)]


def test_steps_that_nothing_is_known_of_are_counted_and_not_made_up() -> None:
    frames, gaps = frames_of([keyframe(0, steps(2, 10)), keyframe(5, steps(1, 20))])
    assert [frame.step for frame in frames] == [0, 1, 5]
    assert gaps.steps == 3


def test_a_refused_request_without_a_later_word_gives_no_frame() -> None:
    frames, gaps = frames_of([keyframe(0, None), keyframe(1, steps(1, 20))])
    assert [frame.step for frame in frames] == [1]
    assert (gaps.silent, gaps.steps) == (1, 1)


def test_of_two_requests_of_one_step_the_last_counts() -> None:
    frames, gaps = frames_of([keyframe(0, steps(1, 10)), keyframe(0, steps(1, 20))])
    assert [float(frame.action[0]) for frame in frames] == [20]
    assert gaps.repeated == 1


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=20))
def test_every_step_between_the_first_and_the_last_is_a_frame_or_a_counted_gap(
    asked: list[tuple[int, int, int]],
) -> None:
    keyframes = [
        keyframe(step, steps(chunk, 0) if chunk else None, steps(done, 100) if done else None)
        for step, chunk, done in asked
    ]
    frames, gaps = frames_of(keyframes)
    taken = [frame.step for frame in frames]
    assert taken == sorted(set(taken))
    first, last = min(step for step, _, _ in asked), max(step for step, _, _ in asked)
    assert len(frames) + gaps.steps == last - first + 1
    assert all(frame.keyframe < len({step for step, _, _ in asked}) for frame in frames)


@pytest.mark.parametrize(
    ("gap_ms", "fps"),
    [(500, 10), (560, 10), (250, 20)],
    ids=["as declared", "with waits for answers", "at another rate"],
)
def test_the_rate_is_the_declared_one_unless_the_robots_clocks_say_otherwise(gap_ms: int, fps: int) -> None:
    episode = [keyframe(5 * number, at_ms=1_000_000 + gap_ms * number) for number in range(6)]
    assert fps_of([episode], 10.0) == fps


def test_without_clocks_the_declared_rate_is_taken() -> None:
    assert fps_of([[keyframe(0), keyframe(5)]], 30.0) == 30
