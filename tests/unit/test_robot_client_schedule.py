"""What is executed when: chunks in time, holds, blends, and what a robot says that it did. A virtual clock of ticks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from robot_client import ActionChunk, Axes, Late, Refused, RobotClientError, ScheduleRule, Unreachable
from robot_client.blend import Blend, CrossFade, Ensemble, Newest, Weighted, blended
from robot_client.schedule import Command, Schedule, Source, Verdict
from schemas.cards import ActionKind
from tests.unit.robot_client_case import chunk
from tests.unit.test_robot_client_messages import card

#: A delta, an absolute value, a switch.
AXES = Axes(moves=(True, False, False), switches=(False, False, True))
RATE_HZ = 10.0
BLENDS: tuple[Blend, ...] = (Newest(), Weighted(0.7), Weighted(1.0), CrossFade(3), Ensemble(0.01), Ensemble(-0.5))


def rows(first: float, horizon: int) -> NDArray[np.float32]:
    """Each number of each row is another one: (horizon, 3)."""
    numbers = np.arange(horizon * 3, dtype=np.float32).reshape(horizon, 3) / 64
    return (numbers + np.float32(first)).astype(np.float32)


def answer(first: float = 1.0, horizon: int = 8, **changes: object) -> ActionChunk:
    return chunk(actions=rows(first, horizon), control_rate_hz=RATE_HZ, **changes)


def schedule(rule: ScheduleRule | None = None, ticks_per_step: int = 1) -> Schedule:
    return Schedule(AXES, rule, control_rate_hz=RATE_HZ, ticks_per_step=ticks_per_step)


def action_of(command: Command) -> NDArray[np.float32]:
    assert command.action is not None
    return command.action


def refused(code: str) -> Refused:
    return Refused("no", code=code, status=422, request_id="r")


@pytest.mark.parametrize("came", [0, 1, 5, 7])
def test_a_chunk_is_executed_from_the_step_that_matches_now(came: int) -> None:
    plan, sent = schedule(), []
    plan.asked(0)
    for tick in range(10):
        if tick == came:
            assert plan.answered(0, tick, answer()) is Verdict.TAKEN
        sent.append(plan.command(tick))
    assert [command.source for command in sent] == [Source.START] * came + [Source.CHUNK] * (8 - came) + [
        Source.STALE
    ] * 2
    for tick in range(came, 8):
        np.testing.assert_array_equal(action_of(sent[tick]), rows(1.0, 8)[tick])


def test_an_answer_whose_steps_are_all_over_is_not_executed() -> None:
    plan = schedule()
    plan.asked(0)
    assert plan.answered(0, 8, answer()) is Verdict.PAST
    assert plan.command(8).source is Source.START


def test_what_is_held_stops_deltas_repeats_targets_and_keeps_the_gripper() -> None:
    plan = schedule()
    assert plan.command(0) == Command(action=None, source=Source.START)
    plan.asked(1)
    plan.answered(1, 1, answer(horizon=2))
    last = [action_of(plan.command(tick)) for tick in (1, 2)][-1]
    held = plan.command(3)
    assert held.source is Source.STALE
    np.testing.assert_array_equal(action_of(held), [0, last[1], last[2]])


def test_an_answer_is_executed_once_and_its_replay_never() -> None:
    plan = schedule()
    plan.asked(0)
    assert plan.answered(0, 1, answer(1.0)) is Verdict.TAKEN
    assert plan.answered(0, 2, answer(5.0, replayed=True)) is Verdict.NOT_AWAITED
    np.testing.assert_array_equal(action_of(plan.command(2)), rows(1.0, 8)[2])


def test_the_first_answer_to_a_repeated_request_is_executed_though_the_service_had_decided_before() -> None:
    plan = schedule()
    plan.asked(0)
    assert plan.answered(0, 3, answer(replayed=True)) is Verdict.TAKEN
    np.testing.assert_array_equal(action_of(plan.command(3)), rows(1.0, 8)[3])


def test_an_expired_answer_is_never_executed() -> None:
    plan = schedule()
    plan.asked(0)
    assert plan.answered(0, 1, answer(replayed=True, expired=True)) is Verdict.EXPIRED
    assert plan.command(1).action is None


def test_an_older_observations_answer_does_not_replace_a_newer_ones() -> None:
    plan = schedule()
    plan.asked(0)
    plan.asked(2)
    assert plan.answered(2, 3, answer(2.0)) is Verdict.TAKEN
    assert plan.answered(0, 4, answer(1.0)) is Verdict.SUPERSEDED
    np.testing.assert_array_equal(action_of(plan.command(4)), rows(2.0, 8)[2])


@pytest.mark.parametrize("changes", [{"control_rate_hz": 20.0}, {"actions": np.zeros((8, 4), np.float32)}])
def test_a_chunk_for_another_robot_is_not_executed_and_ends_what_was_planned(changes: Mapping[str, object]) -> None:
    plan = schedule()
    plan.asked(0)
    plan.answered(0, 0, answer())
    plan.asked(1)
    misfit = chunk(**{"actions": rows(2.0, 8), "control_rate_hz": RATE_HZ, **changes})
    assert plan.answered(1, 1, misfit) is Verdict.MISFIT
    assert plan.command(1).source is Source.REFUSED


@pytest.mark.parametrize(
    "code", ["stopped", "unsafe_action", "policy_refused", "invalid_image", "forbidden", "new_code"]
)
def test_a_refusal_of_the_scene_or_the_robot_holds_at_once(code: str) -> None:
    plan = schedule()
    plan.asked(0)
    plan.answered(0, 0, answer())
    plan.command(0)
    plan.asked(1)
    plan.failed(1, 1, refused(code))
    held = plan.command(1)
    assert held.source is Source.REFUSED
    assert action_of(held)[0] == 0


@pytest.mark.parametrize(
    "error",
    [refused("overloaded"), refused("no_live_worker"), Late("late", request_id="r"), Unreachable("no", request_id="r")],
)
def test_where_the_service_has_no_room_the_fresh_chunk_is_played_to_its_end_and_then_held(
    error: RobotClientError,
) -> None:
    plan = schedule()
    plan.asked(0)
    plan.answered(0, 0, answer(horizon=4))
    plan.asked(1)
    plan.failed(1, 2, error)
    assert [plan.command(tick).source for tick in (2, 3, 4)] == [Source.CHUNK, Source.CHUNK, Source.STALE]


def test_nothing_is_asked_for_while_the_service_wants_to_be_left_alone() -> None:
    plan = schedule()
    plan.asked(0)
    plan.failed(0, 2, refused("overloaded"), pause_ticks=3)
    assert [tick for tick in range(2, 8) if plan.due(tick, 1)] == [5, 6, 7]


def test_one_answer_is_awaited_at_a_time_and_only_the_first_tick_of_a_step_is_looked_at() -> None:
    plan = schedule(ticks_per_step=5)
    assert [tick for tick in range(11) if plan.due(tick, 3)] == [0, 5, 10]
    plan.asked(0)
    assert not any(plan.due(tick, 3) for tick in range(100))
    with pytest.raises(ValueError, match="first of its step"):
        plan.asked(3)


def test_the_next_chunk_is_asked_for_when_what_is_left_lasts_no_longer_than_an_answer() -> None:
    plan = schedule(ScheduleRule(margin_steps=1))
    plan.asked(0)
    plan.answered(0, 0, answer(horizon=8))
    assert next(tick for tick in range(9) if plan.due(tick, 3)) == 4
    assert plan.due(1, None), "while no latency is known, as early as may be"


def test_a_robot_may_look_again_before_its_chunk_runs_out() -> None:
    plan = schedule(ScheduleRule(look_again_steps=2))
    plan.asked(0)
    plan.answered(0, 0, answer(horizon=8))
    assert [plan.due(tick, 1) for tick in range(4)] == [False, False, True, True]


@given(st.integers(1, 12), st.integers(0, 3), st.integers(1, 5), st.integers(0, 40))
def test_with_steady_latency_and_long_enough_chunks_no_tick_is_stale(
    latency: int, margin: int, ticks_per_step: int, more: int
) -> None:
    # The next answer must be there before the end of a chunk that was itself `latency` old when it came.
    shortest = 2 * latency + (margin + 2) * ticks_per_step
    horizon = math.ceil(shortest / ticks_per_step) + more
    plan = schedule(ScheduleRule(margin_steps=margin), ticks_per_step)
    asked: int | None = None
    sources = []
    for tick in range(6 * horizon * ticks_per_step):
        if asked is not None and tick == asked + latency:
            plan.answered(asked, tick, answer(horizon=horizon))
            asked = None
        if plan.due(tick, latency):
            plan.asked(tick)
            asked = tick
        sources.append(plan.command(tick).source)
    assert Source.STALE not in sources
    assert sources.count(Source.START) == latency


@given(st.integers(1, 6), st.integers(1, 10), st.integers(0, 5))
def test_a_faster_loop_moves_as_far_and_no_faster(ticks_per_step: int, horizon: int, steps_late: int) -> None:
    plan = schedule(ticks_per_step=ticks_per_step)
    plan.asked(0)
    late = min(steps_late, horizon - 1) * ticks_per_step
    plan.answered(0, late, answer(horizon=horizon))
    sent = np.stack([action_of(plan.command(tick)) for tick in range(late, horizon * ticks_per_step)])
    steps = sent.reshape(-1, ticks_per_step, 3)
    wanted = rows(1.0, horizon)[late // ticks_per_step :]
    np.testing.assert_allclose(steps[:, :, 0].sum(axis=1), wanted[:, 0], rtol=1e-5)
    assert (steps[:, :, 1:] == wanted[:, None, 1:]).all()
    executed = plan.asked(horizon * ticks_per_step)
    assert executed is not None
    np.testing.assert_allclose(executed, wanted, rtol=1e-5)


@dataclass
class Model:
    """What the schedule must do, told naively: the newest chunk that covers a tick, or a hold."""

    chunks: dict[int, NDArray[np.float32]] = field(default_factory=dict)

    def row(self, tick: int) -> NDArray[np.float32] | None:
        covering = [begin for begin, actions in self.chunks.items() if begin <= tick < begin + len(actions)]
        return self.chunks[max(covering)][tick - max(covering)] if covering else None


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["nothing", "ask", "answer", "answer", "replay", "expired", "stopped", "overloaded", "skip"]),
        st.integers(0, 5),
        st.integers(1, 9),
    ),
    max_size=60,
)


@given(EVENTS)
def test_whatever_happens_each_tick_gets_its_own_row_of_the_newest_chunk_or_a_hold(
    events: list[tuple[str, int, int]],
) -> None:
    plan, model = schedule(), Model()
    awaited: list[int] = []
    done: list[int] = []
    sent: list[NDArray[np.float32]] = []
    told: list[NDArray[np.float32]] = []
    tick, last = 0, None
    for number, (event, which, horizon) in enumerate(events):
        pick = awaited[which % len(awaited)] if awaited else None
        if event == "skip":
            tick += which
        if event == "ask" and tick not in (*awaited, *done):
            awaited.append(tick)
            executed = plan.asked(tick)
            told.extend(executed if executed is not None else [])
        if event == "replay" and done:
            assert plan.answered(done[which % len(done)], tick, answer(99.0)) is Verdict.NOT_AWAITED
        if pick is not None and event in ("answer", "expired", "stopped", "overloaded"):
            awaited.remove(pick)
            done.append(pick)
            if event in ("answer", "expired"):
                late = event == "expired"
                verdict = plan.answered(pick, tick, answer(number, horizon, expired=late))
                newest = max((b for b, a in model.chunks.items() if b + len(a) > tick - 1), default=-1)
                if not late and pick + horizon > tick and pick >= newest:
                    assert verdict is Verdict.TAKEN
                    model.chunks[pick] = rows(number, horizon)
                else:
                    assert verdict is not Verdict.TAKEN
            else:
                plan.failed(pick, tick, refused(event))
                if event == "stopped":
                    model.chunks.clear()
        command, wanted = plan.command(tick), model.row(tick)
        if wanted is not None:
            assert command.source is Source.CHUNK
            np.testing.assert_array_equal(action_of(command), wanted)
        elif last is None:
            assert command.action is None
        else:
            assert command.source is not Source.CHUNK
            np.testing.assert_array_equal(action_of(command), [0, last[1], last[2]])
        if command.action is not None:
            last = command.action
            sent.append(command.action)
        tick += 1
    executed = plan.asked(tick)
    told.extend(executed if executed is not None else [])
    # Each action is reported once, in the order in which it was executed.
    np.testing.assert_array_equal(np.array(told), np.array(sent))


ROW = st.tuples(*[st.floats(-3, 3, width=32)] * 3).map(lambda values: np.array(values, np.float32))


@pytest.mark.parametrize("blend", BLENDS, ids=str)
@given(layers=st.lists(st.tuples(ROW, st.floats(0, 20)), min_size=1, max_size=5))
def test_what_is_blended_lies_between_what_the_gate_has_passed(
    blend: Blend, layers: list[tuple[NDArray[np.float32], float]]
) -> None:
    mean = blended(layers, blend, AXES)
    stack = np.stack([row for row, _ in layers])
    assert (mean >= stack.min(axis=0) - 1e-5).all()
    assert (mean <= stack.max(axis=0) + 1e-5).all()
    assert mean[2] == layers[-1][0][2], "a switch is what the newest chunk says"


@given(st.lists(ROW, min_size=1, max_size=6), st.floats(-1, 1))
def test_the_ensemble_weighs_by_age_as_published(layers: list[NDArray[np.float32]], decay: float) -> None:
    weights = np.exp(-decay * np.arange(len(layers)))
    # The second axis is not averaged across half a turn, so the published formula is compared on the first.
    wanted = float((weights * [row[0] for row in layers]).sum() / weights.sum())
    mean = blended([(row, 0.0) for row in layers], Ensemble(decay), AXES)
    assert mean[0] == pytest.approx(wanted, abs=1e-4)


def test_lerobots_weights_are_an_option() -> None:
    old, new = np.array([1, 1, 0], np.float32), np.array([2, 2, 1], np.float32)
    np.testing.assert_allclose(blended([(old, 3), (new, 0)], Weighted(0.7), AXES), [1.7, 1.7, 1.0], rtol=1e-6)


def test_a_cross_fade_begins_with_mostly_the_old_and_ends_with_the_new() -> None:
    old, new = np.zeros(3, np.float32), np.ones(3, np.float32)
    shares = [float(blended([(old, 9), (new, steps)], CrossFade(3), AXES)[0]) for steps in range(5)]
    np.testing.assert_allclose(shares, [0.25, 0.5, 0.75, 1.0, 1.0])


def test_angles_on_both_sides_of_half_a_turn_are_not_averaged() -> None:
    old, new = np.array([0, 3.1, 0], np.float32), np.array([0, -3.1, 0], np.float32)
    assert blended([(old, 0), (new, 0)], Weighted(0.5), AXES)[1] == np.float32(-3.1)


def test_overlapping_chunks_are_joined_by_the_rules_blend() -> None:
    plan = schedule(ScheduleRule(blend=Weighted(0.7)))
    plan.asked(0)
    plan.answered(0, 0, answer(1.0))
    plan.asked(2)
    plan.answered(2, 3, answer(3.0))
    wanted = 0.3 * rows(1.0, 8)[3] + 0.7 * rows(3.0, 8)[1]
    sent = action_of(plan.command(3))
    np.testing.assert_allclose(sent[:2], wanted[:2], rtol=1e-5)
    assert sent[2] == rows(3.0, 8)[1][2]


def test_axes_are_read_from_the_card() -> None:
    axes = Axes.of(card(ActionKind.DELTA, ActionKind.ABSOLUTE, ActionKind.BINARY, ActionKind.DELTA, gripper=3))
    assert axes.moves == (True, False, False, False)
    assert axes.switches == (False, False, True, True)


@pytest.mark.parametrize(("moves", "switches"), [((), ()), ((True,), (False, False)), ((True,), (True,))])
def test_axes_that_contradict_themselves_are_not_taken(moves: tuple[bool, ...], switches: tuple[bool, ...]) -> None:
    with pytest.raises(ValueError, match=r"dimension"):
        Axes(moves, switches)
