"""The request gate's rules, each with what a person gets to read."""

from __future__ import annotations

import uuid

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PillowImage

from schemas.cards import CardSet
from schemas.codes import Code
from schemas.messages import ActionMatrix, Claim, Control, Image, ImageEncoding, InferenceRequest, Options
from stream_agents.images import examine
from stream_agents.request_rules import Accepted, Circumstances, Refused, judge, route
from tests import pictures
from tests.cards import cards, embodiment, model

JPEG, PNG, RGB8 = (
    ImageEncoding.IMAGE_ENCODING_JPEG,
    ImageEncoding.IMAGE_ENCODING_PNG,
    ImageEncoding.IMAGE_ENCODING_RGB8,
)
GOOD_JPEG = pictures.jpeg()


def image(data: bytes = GOOD_JPEG, encoding: ImageEncoding.ValueType = JPEG, camera: str = "base") -> Image:
    return Image(camera=camera, encoding=encoding, data=data)


def request(**changes: object) -> InferenceRequest:
    fields: dict[str, object] = {
        "request_id": str(uuid.uuid4()),
        "robot_id": "arm-1",
        "robot_type": "test_arm",
        "instruction": "pick up the red block",
        "images": [image()],
        "state": [0.5, 0.5],
        "ttl_ms": 1000,
    }
    return InferenceRequest(**{**fields, **changes})  # type: ignore[arg-type] # fields are checked by protobuf


def around(
    *,
    card_set: CardSet | None = None,
    live: bool = True,
    stop: Control | None = None,
    now_ms: int = 1000,
    deadline_ms: int = 2000,
) -> Circumstances:
    return Circumstances(
        cards=card_set or cards(),
        has_live_worker=lambda deployment: live,
        stop_of=lambda customer_id, robot_id, model_name: stop,
        now_ms=now_ms,
        deadline_ms=deadline_ms,
        max_ttl_ms=60_000,
    )


def refusal(asked: InferenceRequest, circumstances: Circumstances | None = None) -> Refused:
    verdict = judge(asked, "customer", circumstances or around())
    assert isinstance(verdict, Refused)
    return verdict


def test_a_good_request_is_routed_with_the_sizes_of_its_images() -> None:
    verdict = judge(request(), "customer", around())
    assert isinstance(verdict, Accepted)
    assert verdict.deployment.deployment == "test-model-a"
    assert verdict.sizes == ((224, 224),)


@pytest.mark.parametrize(
    ("changes", "code", "field", "reason"),
    [
        ({"request_id": "7"}, Code.INVALID_REQUEST, "request_id", "not_a_uuid"),
        ({"request_id": "\uff11" * 32}, Code.INVALID_REQUEST, "request_id", "not_a_uuid"),
        ({"robot_id": ""}, Code.INVALID_REQUEST, "robot_id", "malformed"),
        ({"robot_id": "a\r\nb"}, Code.INVALID_REQUEST, "robot_id", "malformed"),
        ({"episode_id": "e" * 129}, Code.INVALID_REQUEST, "episode_id", "malformed"),
        ({"ttl_ms": -1}, Code.INVALID_REQUEST, "options.ttl_ms", "out_of_range"),
        ({"ttl_ms": 60_001}, Code.INVALID_REQUEST, "options.ttl_ms", "out_of_range"),
        ({"instruction": ""}, Code.INVALID_INSTRUCTION, "instruction", "too_short"),
        ({"instruction": "go"}, Code.INVALID_INSTRUCTION, "instruction", "too_short"),
        ({"instruction": "grasp"}, Code.INVALID_INSTRUCTION, "instruction", "too_few_words"),
        ({"instruction": "pick it up " * 1000}, Code.INVALID_INSTRUCTION, "instruction", "too_long"),
        ({"instruction": "pick up\x07 the block"}, Code.INVALID_INSTRUCTION, "instruction", "not_printable"),
        ({"instruction": "lorem ipsum dolor"}, Code.INVALID_INSTRUCTION, "instruction", "filler"),
        ({"instruction": "pick pick pick"}, Code.INVALID_INSTRUCTION, "instruction", "filler"),
        ({"robot_type": "UNKNOWN"}, Code.INVALID_ROBOT_TYPE, "robot_type", "unknown_robot_type"),
        ({"robot_type": "tst_arm"}, Code.INVALID_ROBOT_TYPE, "robot_type", "unsupported_robot_type"),
        ({"model": "gpt"}, Code.UNKNOWN_MODEL, "model", "unknown_model"),
        ({"state": [0.5]}, Code.INVALID_STATE, "state", "wrong_length"),
        ({"state": [0.5, float("nan")]}, Code.INVALID_STATE, "state", "not_finite"),
        ({"state": [0.5, float("inf")]}, Code.INVALID_STATE, "state", "not_finite"),
        ({"executed": ActionMatrix(horizon=1, dim=2, values=[1])}, Code.INVALID_STATE, "executed", "malformed"),
        ({"images": []}, Code.INVALID_IMAGE, "images.base", "missing"),
        ({"images": [image(), image()]}, Code.INVALID_IMAGE, "images.base", "repeated"),
        ({"images": [image(), image(camera="x\n")]}, Code.INVALID_IMAGE, "images.camera", "unknown_camera"),
        ({"images": [image(b"")]}, Code.INVALID_IMAGE, "images.base", "empty"),
        ({"images": [image(b"GIF89a")]}, Code.INVALID_IMAGE, "images.base", "undecodable"),
        ({"images": [image(GOOD_JPEG, PNG)]}, Code.INVALID_IMAGE, "images.base", "undecodable"),
        ({"images": [image(GOOD_JPEG[:-900])]}, Code.INVALID_IMAGE, "images.base", "truncated"),
        ({"images": [image(pictures.jpeg(1, 1))]}, Code.INVALID_IMAGE, "images.base", "too_small"),
        ({"images": [image(pictures.flat(128))]}, Code.INVALID_IMAGE, "images.base", "blank"),
        ({"images": [image(bytes(524_289))]}, Code.TOO_LARGE, "images", "too_large"),
        ({"options": Options(safety_mode=9)}, Code.INVALID_REQUEST, "options.safety_mode", "unknown"),  # type: ignore[arg-type] # no member of the enum
    ],
)
def test_a_faulty_request_is_refused_with_code_field_and_reason(
    changes: dict[str, object], code: Code, field: str, reason: str
) -> None:
    refused = refusal(request(**changes))
    assert refused.code == code
    assert (field, reason) in {(fault.field, fault.reason) for fault in refused.faults}
    assert all(fault.detail for fault in refused.faults)


def test_a_misspelt_robot_type_is_answered_with_near_matches() -> None:
    assert "did you mean test_arm?" in refusal(request(robot_type="Test-Arm")).faults[0].detail


def test_all_faults_are_named_at_once() -> None:
    refused = refusal(request(instruction="go", state=[], images=[]))
    assert [fault.field for fault in refused.faults] == ["instruction", "state", "images.base"]


def test_a_robot_that_the_model_does_not_serve_is_refused() -> None:
    other = model(model="other", deployment="other-a", default=False, embodiments=("test_arm",), traffic=0)
    refused = refusal(request(model="other"), around(card_set=cards(model(), other)))
    assert refused.code == Code.EMBODIMENT_MISMATCH


def test_an_optional_camera_may_stay_away_or_come_once() -> None:
    served = around(card_set=cards(model(optional_cameras=("wrist",))))
    assert isinstance(judge(request(), "customer", served), Accepted)
    assert isinstance(judge(request(images=[image(), image(camera="wrist")]), "customer", served), Accepted)
    refused = refusal(request(images=[image(), image(camera="wrist"), image(camera="wrist")]), served)
    assert [(fault.field, fault.reason) for fault in refused.faults] == [("images.wrist", "repeated")]


def test_no_live_worker_is_refused_at_once_and_says_when_to_come_back() -> None:
    refused = refusal(request(), around(live=False))
    assert refused.code == Code.NO_WORKER
    assert refused.retry_after_s > 0


def test_a_passed_deadline_is_refused() -> None:
    assert refusal(request(), around(now_ms=2001)).code == Code.EXPIRED


def test_a_stopped_robot_is_refused_with_the_operators_reason() -> None:
    refused = refusal(request(), around(stop=Control(target="all", stopped=True, why="fire drill")))
    assert refused.code == Code.STOPPED
    assert "fire drill" in refused.faults[0].detail


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (image(np.zeros((64, 64, 3), np.uint8).tobytes(), RGB8), "too_small"),
        (Image(camera="base", encoding=RGB8, width=64, height=64, data=bytes(10)), "wrong_size"),
        (Image(camera="base", encoding=JPEG, claim=Claim(uri="s3://b/k", sha256=bytes(32))), "claim_unsupported"),
        (Image(camera="base", data=GOOD_JPEG), "unknown_encoding"),
        (image(pictures.encoded(PillowImage.new("L", (20_000, 64), 9), "PNG"), PNG), "too_large"),
        (image(pictures.encoded(PillowImage.new("1", (20_000, 20_000), 1), "PNG"), PNG), "too_large"),
    ],
)
def test_bad_pictures_are_told_apart(picture: Image, reason: str) -> None:
    assert examine(picture).reason == reason


def half(top: int, bottom: int, share: float) -> bytes:
    picture = np.full((100, 100, 3), bottom, np.uint8)
    picture[: round(100 * share)] = top
    return pictures.encoded(PillowImage.fromarray(picture), "PNG")


def test_a_picture_at_one_end_of_the_scale_is_saturated() -> None:
    assert examine(image(half(255, 100, 0.95), PNG)).reason == "saturated"
    assert examine(image(half(0, 100, 0.95), PNG)).reason == "saturated"
    assert examine(image(half(255, 0, 0.5), PNG)).reason == ""


def test_raw_pixels_pass_like_any_picture() -> None:
    pixels = np.asarray(pictures.scene()).tobytes()
    finding = examine(Image(camera="base", encoding=RGB8, width=224, height=224, data=pixels))
    assert finding.reason == ""


@given(
    st.binary(max_size=300), st.sampled_from([JPEG, PNG]), st.sampled_from([b"", GOOD_JPEG[:40], b"\x89PNG\r\n\x1a\n"])
)
def test_no_bytes_make_the_examination_raise(data: bytes, encoding: ImageEncoding.ValueType, start: bytes) -> None:
    assert examine(image(start + data, encoding)).reason


@given(st.lists(st.text("abcdef0123456789", min_size=1, max_size=8), min_size=1, unique=True))
def test_a_robot_stays_on_one_deployment(robots: list[str]) -> None:
    split = cards(model(traffic=0.5), model(deployment="test-model-b", traffic=0.5))
    first = [route("test-model", robot, embodiment(), split) for robot in robots]
    assert first == [route("test-model", robot, embodiment(), split) for robot in robots]
    assert None not in first


def test_traffic_is_split_in_proportion() -> None:
    split = cards(model(traffic=3), model(deployment="test-model-b", traffic=1))
    picked = [route("test-model", f"robot-{number}", embodiment(), split) for number in range(4000)]
    share = sum(card is not None and card.deployment == "test-model-b" for card in picked) / 4000
    assert 0.22 < share < 0.28
