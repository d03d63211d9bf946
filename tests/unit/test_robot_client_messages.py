"""What robot_client writes and reads besides HTTP: observations, outcomes, Kafka records, holds and retries."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robot_client import HoldRule, Late, Refused, RetryRule
from robot_client.chunk import chunk_from_outcome
from robot_client.client import AsyncRobotClient
from robot_client.errors import AttemptFailed
from robot_client.kafka import producer_config, read_reply, request_headers
from robot_client.observation import RobotIdentity, encode_request
from schemas import headers as h
from schemas.cards import ActionDim, ActionKind, EmbodimentCard, Gripper, StateDim
from schemas.ids import content_digest
from schemas.messages import ImageEncoding, InferenceRequest, Outcome, Rejection, RequestSummary, Violation
from tests.unit.robot_client_case import ManualClock, actions, observation, outcome

IDENTITY = RobotIdentity(robot_id="arm-1", robot_type="tabletop_arm", model="pi0")


def test_an_observation_survives_the_codec() -> None:
    executed = actions(3)
    request = encode_request(observation(executed=executed), IDENTITY, request_id="r-1", ttl_ms=1500)
    read = InferenceRequest.FromString(request.SerializeToString())
    assert (read.request_id, read.robot_id, read.model, read.ttl_ms, read.step) == ("r-1", "arm-1", "pi0", 1500, 4)
    assert read.images[0].encoding == ImageEncoding.IMAGE_ENCODING_JPEG
    np.testing.assert_array_equal(np.array(read.state, np.float32), np.linspace(-1, 1, 8, dtype=np.float32))
    values = np.array(read.executed.values, np.float32).reshape(read.executed.horizon, read.executed.dim)
    np.testing.assert_array_equal(values, executed)


def test_the_robots_clock_and_the_id_do_not_change_the_content() -> None:
    first = encode_request(observation(captured_at_ms=1), IDENTITY, request_id="a", ttl_ms=1500)
    second = encode_request(observation(captured_at_ms=2), IDENTITY, request_id="b", ttl_ms=1500)
    later = encode_request(observation(step=5), IDENTITY, request_id="b", ttl_ms=1500)
    assert content_digest(first) == content_digest(second)
    assert content_digest(first) != content_digest(later)


def test_an_array_is_sent_as_jpeg_with_its_size() -> None:
    pixels = np.zeros((64, 96, 3), np.uint8)
    image = encode_request(observation(images={"base": pixels}), IDENTITY, request_id="r", ttl_ms=1).images[0]
    assert (image.width, image.height) == (96, 64)
    assert image.encoding == ImageEncoding.IMAGE_ENCODING_JPEG
    assert image.data.startswith(b"\xff\xd8")


def test_without_pillow_an_array_is_sent_as_raw_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    pixels = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
    image = encode_request(observation(images={"base": pixels}), IDENTITY, request_id="r", ttl_ms=1).images[0]
    assert image.encoding == ImageEncoding.IMAGE_ENCODING_RGB8
    assert image.data == pixels.tobytes()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": {"base": b"GIF89a"}}, "neither JPEG nor PNG"),
        ({"images": {"base": np.zeros((64, 64), np.uint8)}}, "height, width, 3"),
        ({"images": {"base": np.zeros((64, 64, 3), np.float32)}}, "uint8"),
        ({"state": np.zeros((2, 4))}, "state"),
        ({"executed": np.zeros(7, np.float32)}, "executed"),
    ],
)
def test_what_cannot_be_encoded_is_said_before_anything_is_sent(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        encode_request(observation(**changes), IDENTITY, request_id="r", ttl_ms=1)


def test_an_outcome_becomes_a_chunk_with_stage_timings() -> None:
    read = chunk_from_outcome(outcome(), {})
    np.testing.assert_array_equal(read.actions, actions())
    assert not read.actions.flags.writeable
    assert read.timings_ms == {
        "request_gate": 1.0,
        "queue": 2.0,
        "inference": 12.0,
        "results": 1.0,
        "action_gate": 0.5,
    }
    assert (read.control_rate_hz, read.batch_size, read.safety.mode) == (10.0, 3, "reject")
    assert not read.replayed


def test_a_rejection_on_kafka_is_a_recorded_refusal() -> None:
    rejection = Rejection(
        code="no_live_worker", status=503, violations=[Violation(field="model", reason="no_worker", detail="start it")]
    )
    value = Outcome(request=RequestSummary(request_id="r-1"), rejection=rejection).SerializeToString()
    with pytest.raises(Refused, match="start it") as caught:
        read_reply({}, value, "r-1")
    assert (caught.value.code, caught.value.status, caught.value.recorded) == ("no_live_worker", 503, True)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_outcome_are_a_refusal_not_a_crash(value: bytes) -> None:
    with pytest.raises(Refused):
        read_reply({}, value, "r-1")


def test_replayed_and_expired_are_read_from_the_reply_headers() -> None:
    read = chunk_from_outcome(outcome(), {h.REPLAYED: "true", h.EXPIRED: "true"})
    assert read.replayed
    assert read.expired


class OneAnswer:
    """A transport with one answer for every attempt."""

    def __init__(self, answer: bytes | AttemptFailed, headers: dict[str, str]) -> None:
        self._answer = answer
        self._headers = headers
        self.requests: list[bytes] = []

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def exchange(self, request: InferenceRequest, timeout_s: float) -> object:
        self.requests.append(request.SerializeToString(deterministic=True))
        if isinstance(self._answer, AttemptFailed):
            raise self._answer
        return read_reply(self._headers, self._answer, request.request_id)


async def test_an_expired_outcome_on_kafka_is_late() -> None:
    rejection = Outcome(rejection=Rejection(code="expired", status=504)).SerializeToString()
    replay = outcome().SerializeToString()
    clock = ManualClock()
    for answer, headers in ((rejection, {}), (replay, {h.REPLAYED: "true", h.EXPIRED: "true"})):
        transport = OneAnswer(answer, headers)
        robot = AsyncRobotClient(
            transport,  # type: ignore[arg-type] # typed loosely, so that it can answer wrongly
            robot_id="arm-1",
            robot_type="tabletop_arm",
            clock=clock,
            sleep=clock.sleep,
        )
        with pytest.raises(Late):
            await robot.infer(observation())


async def test_every_attempt_on_kafka_carries_the_same_bytes() -> None:
    clock = ManualClock()
    transport = OneAnswer(AttemptFailed("no reply", timed_out=True), {})
    robot = AsyncRobotClient(
        transport,  # type: ignore[arg-type] # typed loosely, so that it can answer wrongly
        robot_id="arm-1",
        robot_type="tabletop_arm",
        clock=clock,
        sleep=clock.sleep,
    )
    with pytest.raises(Late):
        await robot.infer(observation(), request_id="r-7")
    assert len(transport.requests) > 1
    assert len(set(transport.requests)) == 1


def test_request_headers_name_the_request_and_claim_nothing_that_the_gate_decides() -> None:
    headers = h.decode(request_headers("r-1", "robots/demo/arm-1", now_s=0.0))
    assert headers[h.REQUEST_ID] == headers[h.CORRELATION_ID] == "r-1"
    assert not {h.CUSTOMER_ID, h.CONSENT_TIER, h.DEADLINE_MS, h.REPLY_TOPIC, h.REPLY_PARTITION} & set(headers)


def test_a_frame_does_not_outlive_its_deadline_in_the_producer() -> None:
    config = producer_config(750)
    assert config["delivery.timeout.ms"] == 750
    assert config["partitioner"] == "murmur2_random"
    assert config["enable.idempotence"] is True


def card(*kinds: ActionKind, gripper: int | None = None) -> EmbodimentCard:
    return EmbodimentCard(
        robot_type="arm",
        title="arm",
        source="test",
        verified=True,
        control_rate_hz=10,
        state=(StateDim(name="x", unit="m", low=-1, high=1),),
        actions=tuple(ActionDim(name=f"a{i}", unit="m", kind=kind, low=-1, high=1) for i, kind in enumerate(kinds)),
        gripper=Gripper(action_index=gripper, open_value=-1, closed_value=1) if gripper is not None else None,
    )


def test_hold_stops_deltas_repeats_targets_and_keeps_the_gripper() -> None:
    rule = HoldRule.of(card(ActionKind.DELTA, ActionKind.ABSOLUTE, ActionKind.BINARY, ActionKind.DELTA, gripper=3))
    held = rule.action(np.array([0.4, 0.5, 0.6, 0.7], np.float32))
    assert held is not None
    np.testing.assert_array_equal(held, np.array([0, 0.5, 0.6, 0.7], np.float32))


def test_hold_before_the_first_action_commands_only_what_is_safe_to_command() -> None:
    still = HoldRule.of(card(ActionKind.DELTA, ActionKind.DELTA)).action(None)
    assert still is not None
    np.testing.assert_array_equal(still, np.zeros(2, np.float32))
    assert HoldRule.of(card(ActionKind.DELTA, ActionKind.ABSOLUTE)).action(None) is None


@given(st.lists(st.tuples(st.booleans(), st.floats(-10, 10, width=32)), min_size=1, max_size=14))
def test_holding_again_changes_nothing(dims: list[tuple[bool, float]]) -> None:
    rule = HoldRule(tuple(moves for moves, _ in dims))
    held = rule.action(np.array([value for _, value in dims], np.float32))
    assert held is not None
    again = rule.action(held)
    assert again is not None
    np.testing.assert_array_equal(held, again)


def test_hold_wants_an_action_of_its_own_embodiment() -> None:
    with pytest.raises(ValueError, match="shape"):
        HoldRule((True, False)).action(np.zeros(3, np.float32))


@given(st.floats(0, 60), st.integers(1, 100), st.none() | st.floats(0, 60))
def test_attempts_and_pauses_never_go_beyond_the_deadline(
    left_s: float, attempt: int, retry_after_s: float | None
) -> None:
    rule = RetryRule()
    assert 0 <= rule.attempt_s(left_s) <= left_s
    pause_s = rule.pause_s(attempt, retry_after_s, left_s)
    assert pause_s is None or (0 <= pause_s < left_s and pause_s >= (retry_after_s or 0))


def said_by(code: str) -> str:
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def test_a_robot_needs_neither_torch_nor_the_services() -> None:
    unwanted = "('torch', 'runtime', 'fastapi', 'faust', 'pydantic_settings', 'PIL')"
    modules = "robot_client.kafka, robot_client.rest, robot_client.websocket"
    assert said_by(f"import sys, {modules}; print([m for m in {unwanted} if m in sys.modules])") == "[]"


def test_a_robot_loads_the_library_of_its_own_transport_alone() -> None:
    libraries = "('httpx', 'websockets', 'confluent_kafka')"
    code = f"import sys, robot_client; robot_client.{{}}; print([m for m in {libraries} if m in sys.modules])"
    assert said_by(code.format("ControlLoop")) == "[]"
    assert said_by(code.format("RestTransport")) == "['httpx']"
    assert said_by(code.format("WebSocketTransport")) == "['websockets']"
    assert said_by(code.format("KafkaTransport")) == "['confluent_kafka']"


@pytest.mark.parametrize(
    ("transport", "library"),
    [("RestTransport", "httpx"), ("WebSocketTransport", "websockets"), ("KafkaTransport", "confluent_kafka")],
)
def test_a_library_that_is_not_installed_is_named_with_the_extra_that_brings_it(transport: str, library: str) -> None:
    code = (
        f"import sys; sys.modules[{library!r}] = None\n"
        f"try: from robot_client import {transport}\n"
        "except ImportError as error: print(error)"
    )
    said = said_by(code)
    assert said.startswith(f"{transport} needs {library.replace('_', '-')}")
    assert "extra `client`" in said
