"""The tabletop: its world, its expert, its pictures, and the trained policy in closed loop."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from examples.tabletop.expert import act, demonstrate
from examples.tabletop.render import encode_jpeg, render, scene_of
from examples.tabletop.world import (
    COLOURS,
    MAX_STEP_M,
    MAX_STEPS,
    TASKS,
    TabletopWorld,
    Worlds,
    instruction_of,
    sample,
)
from schemas.action_rules import evaluate_chunk
from schemas.card_files import load_cards
from schemas.cards import EmbodimentCard
from schemas.messages import SafetyMode

CARDS = Path(__file__).resolve().parents[2] / "deploy" / "cards"
HOLD = np.zeros(7)


@functools.cache
def arm_card() -> EmbodimentCard:
    card = load_cards(CARDS).embodiment("tabletop_arm")
    assert card is not None
    return card


def action(dx: float = 0.0, dy: float = 0.0, dz: float = 0.0, gripper: float = 0.0) -> NDArray[np.float64]:
    return np.array([dx, dy, dz, 0, 0, 0, gripper])


def play(worlds: Worlds) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The expert plays; who succeeded and who failed first."""
    won, lost = np.zeros(worlds.count, bool), np.zeros(worlds.count, bool)
    for _ in range(MAX_STEPS):
        worlds.step(act(worlds))
        won |= worlds.success & ~lost
        lost |= worlds.failed & ~won
    return won, lost


@pytest.mark.parametrize("task", range(len(TASKS)), ids=TASKS)
@pytest.mark.parametrize("wide", [False, True], ids=["fresh", "disturbed"])
def test_the_expert_succeeds_in_every_world(task: int, wide: bool) -> None:
    won, lost = play(sample(np.random.default_rng(task), 200, task=task, wide=wide))
    assert won.all()
    assert not lost.any()


def test_a_robot_that_does_nothing_neither_succeeds_nor_goes_on_for_ever() -> None:
    for seed in range(8):
        world = TabletopWorld(seed)
        world.reset("push left")
        for _ in range(MAX_STEPS):
            assert not world.success
            world.step(HOLD)
        assert world.failed


def test_the_same_seed_gives_the_same_episodes() -> None:
    one, other = TabletopWorld(5), TabletopWorld(5)
    for _ in range(3):
        assert one.reset() == other.reset()
        np.testing.assert_array_equal(one.frame(), other.frame())
        assert one.observe()[0] == other.observe()[0]
    assert not np.array_equal(one.frame(), TabletopWorld(6).frame())


def test_an_observation_is_a_small_jpeg_and_eight_float32() -> None:
    world = TabletopWorld(1)
    world.reset()
    jpeg, state = world.observe()
    picture = Image.open(io.BytesIO(jpeg))
    assert (picture.format, picture.size, picture.mode) == ("JPEG", (224, 224), "RGB")
    assert 3_000 < len(jpeg) < 20_000
    assert state.shape == (8,)
    assert state.dtype == np.float32


def test_a_delta_action_moves_the_state_by_itself_in_metres() -> None:
    world = TabletopWorld(2)
    world.reset()
    before = world.state()
    world.step(action(0.02, -0.03, 0.01))
    np.testing.assert_allclose(world.state()[:3] - before[:3], [0.02, -0.03, 0.01], atol=1e-6)


def test_no_step_is_longer_than_the_limit_and_none_leaves_the_table() -> None:
    world = TabletopWorld(2)
    world.reset()
    before = world.state()
    world.step(action(1.0, -1.0, 0.0))
    assert np.abs(world.state()[:2] - before[:2]).max() <= MAX_STEP_M + 1e-6
    for _ in range(30):
        world.step(action(1.0, 1.0, 1.0))
    x, y, z = world.state()[:3]
    assert 0 <= x <= 1
    assert 0 <= y <= 1
    assert 0 <= z <= 0.4


def test_lifting_a_block_that_was_not_named_fails() -> None:
    worlds = sample(np.random.default_rng(0), 50, task=TASKS.index("pick"))
    named = worlds.target.copy()
    worlds.target = (named + 1) % 3
    for _ in range(MAX_STEPS):
        actions = act(worlds)
        worlds.target = named
        assert not worlds.success.any()
        worlds.step(actions)
        worlds.target = (named + 1) % 3
    worlds.target = named
    assert worlds.failed.all()


@pytest.mark.parametrize("task", range(len(TASKS)), ids=TASKS)
@pytest.mark.parametrize("colour", range(len(COLOURS)), ids=COLOURS)
def test_instructions_name_the_colour_in_at_least_three_words(task: int, colour: int) -> None:
    text = instruction_of(task, colour)
    assert COLOURS[colour] in text
    assert len(text.split()) >= 3


def test_demonstrating_leaves_the_worlds_as_they_were_and_agrees_with_acting() -> None:
    worlds = sample(np.random.default_rng(3), 20, wide=True)
    before = worlds.copy()
    chunks = demonstrate(worlds, 8)
    for name, value in vars(before).items():
        np.testing.assert_array_equal(getattr(worlds, name), value)
    for step in range(8):
        np.testing.assert_array_equal(act(worlds), chunks[:, step])
        worlds.step(chunks[:, step])


def test_a_small_picture_equals_a_large_one_scaled_down() -> None:
    """What the policy is trained on against what it is served with: 224 pixels, JPEG, scaled down."""
    scene = scene_of(sample(np.random.default_rng(4), 8, wide=True))
    small, large = render(scene, 32).astype(float), render(scene, 224)
    for one, other in zip(small, large, strict=True):
        served = Image.open(io.BytesIO(encode_jpeg(other))).resize((32, 32), Image.Resampling.BOX)
        assert np.abs(one - np.asarray(served, float)).mean() < 2.0


def test_every_block_colour_and_the_grippers_opening_show() -> None:
    worlds = sample(np.random.default_rng(5), 1)
    first = render(scene_of(worlds), 64)
    worlds.colours = (worlds.colours + 1) % len(COLOURS)
    assert np.abs(first.astype(int) - render(scene_of(worlds), 64)).max() > 60
    second = render(scene_of(worlds), 64)
    worlds.closed = ~worlds.closed
    assert np.abs(second.astype(int) - render(scene_of(worlds), 64)).max() > 60


@pytest.mark.parametrize("task", range(len(TASKS)), ids=TASKS)
def test_the_expert_stays_within_the_limits_of_the_embodiment_card(task: int) -> None:
    worlds = sample(np.random.default_rng(task), 40, task=task)
    previous = None
    for _ in range(5):
        chunks = demonstrate(worlds, 8).astype(np.float32)
        for i, state in enumerate(worlds.states()):
            assert verdict_passes(chunks[i], state, None if previous is None else previous[i])
        for step in range(4):
            worlds.step(chunks[:, step].astype(float))
        previous = chunks


@pytest.mark.parametrize(
    ("step", "dim", "value"),
    [(3, 0, 0.2), (0, 2, -0.15), (5, 6, 2.0), (2, 3, 0.5), (7, 1, np.nan)],
    ids=["too far", "too fast", "no gripper value", "turns too far", "not a number"],
)
def test_the_embodiment_card_catches_a_fault(step: int, dim: int, value: float) -> None:
    chunk = np.zeros((8, 7), np.float32)
    state = np.array([0.5, 0.5, 0.2, 0, 0, 0, 0.04, 0.04], np.float32)
    assert verdict_passes(chunk, state)
    chunk[step, dim] = value
    assert not verdict_passes(chunk, state)


def test_the_embodiment_card_catches_shaking_and_leaving_the_table() -> None:
    state = np.array([0.5, 0.5, 0.2, 0, 0, 0, 0.04, 0.04], np.float32)
    shaking = np.zeros((8, 7), np.float32)
    shaking[:, 0] = 0.08 * (-1.0) ** np.arange(8)
    assert not verdict_passes(shaking, state)
    leaving = np.zeros((8, 7), np.float32)
    leaving[:, 1] = 0.08
    assert not verdict_passes(leaving, state + np.array([0, 0.4, 0, 0, 0, 0, 0, 0], np.float32))


def verdict_passes(
    chunk: NDArray[np.float32], state: NDArray[np.float32], previous: NDArray[np.float32] | None = None
) -> bool:
    mode = SafetyMode.SAFETY_MODE_REJECT
    return evaluate_chunk(chunk, arm_card(), state=state, previous=previous, mode=mode, min_score=0.7).passed


def test_the_trained_policy_does_its_tasks_in_closed_loop_within_the_limits() -> None:
    from examples.tabletop.evaluate import PolicyActor, run
    from gpu_consumers.policies.registry import load_policy

    card = load_cards(CARDS).deployment("tabletop-pi0")
    assert card is not None
    actor = PolicyActor(load_policy(card, "cpu"), arm_card())
    result = run(actor, 8, batch=8)
    assert result.wins.total() >= 7
    assert actor.refused.total() <= actor.chunks // 50


def test_a_policy_that_is_told_something_else_does_something_else() -> None:
    from examples.tabletop.evaluate import AnyInstruction

    worlds = [TabletopWorld(seed) for seed in range(20)]
    say = AnyInstruction()
    told = [say(world) for world in worlds]
    assert told == [say(world) for world in worlds]
    assert sum(text == world.instruction for text, world in zip(told, worlds, strict=True)) < 5
