"""Which deployment drives which robot, in which action space: what the cards say, and what the worker does by it."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from gpu_consumers.conversions import conversion_for, conversions_of
from schemas.action_space import ArmControl, Convention, Gripper, Rotation, Space
from schemas.cards import ActionDim, ActionKind, ActionSpace, CardSet, EmbodimentCard, ModelCard, Pairing, StateDim
from schemas.conversions import PolicyActions
from schemas.messages import Outcome
from tests.cards import cards, embodiment, model
from tests.gate_bench import GateBench, request
from tests.unit.worker_case import Running

#: OpenVLA's vector: translation, roll-pitch-yaw, gripper with 1 open.
OUTPUTS = Convention(
    control=ArmControl.EE_DELTA,
    rotation=Rotation.EULER_XYZ,
    dims=7,
    gripper=Gripper(action_index=6, open_value=1, closed_value=0),
)


def arm(**changes: object) -> EmbodimentCard:
    """An arm whose tool is moved by rotation vectors, with LIBERO's polarity; its joints are the alternative."""
    tool = [ActionDim(name=name, unit="1", low=-1, high=1) for name in ("x", "y", "z", "rx", "ry", "rz")]
    joints = [ActionDim(name=f"j{i}", unit="rad", kind=ActionKind.ABSOLUTE, low=-3, high=3) for i in range(6)]
    grip = ActionDim(name="gripper", unit="1", kind=ActionKind.BINARY, low=-1, high=1)
    fields: dict[str, object] = {
        "robot_type": "tool_arm",
        "state": tuple(StateDim(name=f"j{i}", unit="rad") for i in range(6)),
        "actions": (*tool, grip),
        "workspace": None,
        "gripper": Gripper(action_index=6, open_value=-1, closed_value=1),
        "space": Space(name="tool", control=ArmControl.EE_DELTA, rotation=Rotation.AXIS_ANGLE),
        "alternatives": (
            ActionSpace(
                source="made for tests",
                verified=True,
                control_rate_hz=50,
                actions=(*joints, grip),
                gripper=Gripper(action_index=6, open_value=-1, closed_value=1),
                space=Space(name="joints", control=ArmControl.JOINT_POSITION, state_index=tuple(range(6))),
            ),
        ),
    }
    return embodiment(**{**fields, **changes})


def policy(pairing: Pairing | None, **changes: object) -> ModelCard:
    fields: dict[str, object] = {"embodiments": ("tool_arm",), "state_dim": 6, "action_dim": 7, "horizon": 1}
    pairings = {} if pairing is None else {"tool_arm": pairing}
    return model(**{**fields, "pairings": pairings, **changes})


def test_a_pairing_says_which_space_is_commanded_and_how_outputs_become_it() -> None:
    card = policy(Pairing(outputs=OUTPUTS, control_rate_hz=5))
    both = cards(card, embodiments=(arm(),))
    robot = both.embodiment("tool_arm")
    assert robot is not None
    commanded = card.commanded(robot)
    assert commanded.space.name == "tool"
    assert commanded.control_rate_hz == 5
    [row] = card.conversion(robot)(PolicyActions(np.array([[0.1, 0, 0, 0.2, 0, 0, 1]], np.float32)), np.zeros(6, "f4"))
    assert row == pytest.approx([0.1, 0, 0, 0.2, 0, 0, -1])


def test_another_action_space_brings_its_own_limits_rate_and_names() -> None:
    outputs = Convention(control=ArmControl.JOINT_DELTA, dims=7, gripper=OUTPUTS.gripper)
    card = policy(Pairing(outputs=outputs, space="joints"))
    commanded = card.commanded(arm())
    assert [dim.name for dim in commanded.actions[:6]] == [f"j{i}" for i in range(6)]
    assert commanded.control_rate_hz == 50
    chunk = card.conversion(arm())(PolicyActions(np.full((2, 7), 0.1, np.float32)), np.full(6, 1.0, np.float32))
    assert chunk[:, 0] == pytest.approx([1.1, 1.2])
    assert chunk[:, 6].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("pairing", "changes", "why"),
    [
        (Pairing(outputs=OUTPUTS, space="elbow"), {}, "no action space 'elbow'"),
        (Pairing(outputs=OUTPUTS, space="joints"), {}, "kinematics"),
        (None, {"action_dim": 6}, "6 values"),
        (None, {"state_dim": 5}, "5 state values"),
        (Pairing(outputs=OUTPUTS), {"action_dim": 6}, "dims must be action_dim"),
        (Pairing(outputs=OUTPUTS), {"embodiments": ("other",)}, "not among the embodiments"),
        (Pairing(unnorm_key="libero"), {"policy_config": {"unnorm_key": "bridge_orig"}}, "one key"),
        (None, {"embodiments": ("custom",)}, "pairings.custom.outputs"),
        (None, {"embodiments": ("tool_arm", "nobody")}, "no card"),
    ],
)
def test_a_pairing_that_cannot_work_is_refused_when_the_cards_are_loaded(
    pairing: Pairing | None, changes: dict[str, object], why: str
) -> None:
    with pytest.raises(ValidationError, match=why):
        cards(policy(pairing, **changes), embodiments=(arm(),))


def test_a_robot_whose_rate_nobody_states_is_not_driven() -> None:
    silent = arm(control_rate_hz=None)
    with pytest.raises(ValidationError, match="control_rate_hz"):
        cards(policy(Pairing(outputs=OUTPUTS)), embodiments=(silent,))
    cards(policy(Pairing(outputs=OUTPUTS, control_rate_hz=20)), embodiments=(silent,))


def test_a_robot_type_without_a_model_is_listed() -> None:
    both = CardSet(models=(), embodiments=(arm(),))
    assert both.embodiment("tool_arm") is not None


@pytest.mark.parametrize("name", ["custom", "unknown"])
def test_no_card_takes_a_name_that_means_something_else(name: str) -> None:
    with pytest.raises(ValidationError, match="no robot may be called"):
        arm(robot_type=name)


def test_a_verified_card_has_a_limit_for_every_dimension_and_a_source() -> None:
    free = ActionDim(name="j", unit="rad")
    for changes in ({"actions": (free,), "gripper": None, "space": Space()}, {"source": " "}):
        with pytest.raises(ValidationError, match=r"nothing could be checked|says where"):
            arm(**changes)
    assert not arm(actions=(free,), gripper=None, space=Space(), verified=False).verified


def test_a_worker_refuses_a_robot_type_that_its_deployment_does_not_serve() -> None:
    ways = conversions_of(
        policy(Pairing(outputs=OUTPUTS)), cards(policy(Pairing(outputs=OUTPUTS)), embodiments=(arm(),))
    )
    assert conversion_for("tool_arm", ways) is not None
    assert conversion_for("another_arm", ways) is None


def test_what_a_worker_publishes_is_what_the_arm_would_get() -> None:
    # The scripted policy says 0.5 for everything: open by this pairing, and the test arm opens at 0.
    polarity = Gripper(action_index=2, open_value=0.5, closed_value=0.0)
    outputs = Convention(control=ArmControl.JOINT_DELTA, dims=3, gripper=polarity)
    card = model(batch_sizes=(1, 2, 4), pairings={"test_arm": Pairing(outputs=outputs)})
    robot = embodiment(space=Space(name="plane", control=ArmControl.JOINT_DELTA))
    running = Running(cards(card, embodiments=(robot,)))
    try:
        running.start()
        running.send("11111111-1111-4111-8111-111111111111")
        running.send("22222222-2222-4222-8222-222222222222", robot_type="unheard_of")
        done = {name[0]: completion for name, completion in running.completions(2).items()}
    finally:
        assert running.stop() == 0
    chunk = np.reshape(done["1"].result.chunk.values, (-1, 3))
    assert chunk[0].tolist() == [0.5, 0.5, 0.0]
    assert done["2"].rejection.code == "embodiment_mismatch"


async def test_the_gate_checks_and_names_the_action_space_that_the_deployment_commands() -> None:
    finger = ActionDim(name="grip", unit="1", kind=ActionKind.BINARY, low=0, high=1)
    speeds = [ActionDim(name=f"v{i}", unit="m/s", kind=ActionKind.VELOCITY, max_velocity=0.5) for i in range(2)]
    polarity = Gripper(action_index=2, open_value=0, closed_value=1)
    space = Space(name="speed", control=ArmControl.JOINT_VELOCITY)
    other = ActionSpace(source="t", verified=True, actions=(*speeds, finger), gripper=polarity, space=space)
    card = model(pairings={"test_arm": Pairing(space="speed", control_rate_hz=25)})
    for speed, code in ((0.4, ""), (0.6, "unsafe_action")):
        bench = GateBench(cards=cards(card, embodiments=(embodiment(alternatives=(other,)),)))
        bench.ask(request())
        await bench.step()
        bench.infer(np.full((4, 3), [speed, 0, 1], np.float32))
        await bench.step()
        (outcome,) = bench.outcomes()
        assert outcome.rejection.code == code
        if not code:
            assert list(outcome.chunk.names) == ["v0", "v1", "grip"]
            assert outcome.chunk.control_rate_hz == 25


async def test_a_robot_type_that_is_known_but_driven_by_no_model_is_refused_with_those_that_are() -> None:
    bench = GateBench(cards=cards(embodiments=(embodiment(), arm())))
    bench.ask(request(robot_type="tool_arm", state=[0.0] * 6))
    await bench.step()
    (rejection,) = [outcome.rejection for outcome in await decided(bench)]
    assert (rejection.status, rejection.code) == (422, "embodiment_mismatch")
    assert "it serves: test_arm" in rejection.violations[0].detail


async def decided(bench: GateBench) -> list[Outcome]:
    await bench.step()
    return bench.outcomes()
