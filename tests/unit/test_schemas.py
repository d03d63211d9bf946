"""Messages, topics, headers, ids and cards: the contracts that everybody builds on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor import FieldDescriptor as Field
from hypothesis import given
from hypothesis import strategies as st

from schemas import headers as h
from schemas import ids, topics
from schemas.card_files import CardError, load_cards
from schemas.codes import STATUS, Code, status_of
from schemas.generate import generate
from schemas.headers import Source
from schemas.messages import ActionMatrix, Image, ImageEncoding, InferenceRequest, Options
from schemas.vla.v1 import data_pb2, gate_pb2, inference_pb2, stream_pb2, tenancy_pb2

ROOT = Path(__file__).resolve().parents[2]
FIELD_LOCK = ROOT / "schemas" / "vla" / "v1" / "fields.json"
CARDS = ROOT / "deploy" / "cards"


def current_fields() -> dict[str, dict[str, str]]:
    """Message -> field number -> name and type, for every message of the project."""

    def of(descriptor: Descriptor) -> dict[str, str]:
        return {
            str(field.number): f"{field.name}: {'repeated ' if field.is_repeated else ''}{_type(field)}"
            for field in descriptor.fields
        }

    found: dict[str, dict[str, str]] = {}
    for module in (inference_pb2, gate_pb2, data_pb2, stream_pb2, tenancy_pb2):
        for descriptor in module.DESCRIPTOR.message_types_by_name.values():
            found[descriptor.full_name] = of(descriptor)
            found.update({nested.full_name: of(nested) for nested in descriptor.nested_types})
    return found


def _type(field: Field) -> str:
    names = {
        value: name.removeprefix("TYPE_").lower() for name, value in vars(Field).items() if name.startswith("TYPE_")
    }
    kind = field.message_type or field.enum_type
    return str(kind.full_name) if kind is not None else names[field.type]


def test_generated_code_matches_the_protos(tmp_path: Path) -> None:
    for path in generate(tmp_path):
        committed = ROOT / path.relative_to(tmp_path)
        assert path.read_text() == committed.read_text(), f"run `make proto`: {committed.name} is stale"


def test_no_field_number_changes_its_meaning() -> None:
    """fields.json only grows. To add a field, add its line there; to remove one, keep its line."""
    locked: dict[str, dict[str, str]] = json.loads(FIELD_LOCK.read_text())
    current = current_fields()
    for message, fields in current.items():
        assert message in locked, f"add {message} to {FIELD_LOCK.name}"
        for number, meaning in fields.items():
            assert locked[message].get(number) == meaning, f"{message} field {number} is {meaning}"
    for message in locked:
        assert message in current, f"{message} is gone, its readers are not"


def topology() -> tuple[topics.Topic, ...]:
    return topics.declare(
        fleets=["north"], deployments=["pi0-a"], partitions=6, accepted_partitions=9, reply_partitions=16
    )


def test_topics_of_one_robot_are_co_partitioned() -> None:
    names = [topics.REQUESTS, "vla.requests.north.v1", topics.RESULTS, topics.OUTCOMES, topics.GATE_CHANGELOG]
    counts = {topic.name: topic.partitions for topic in topology()}
    assert {counts[name] for name in names} == {6}


def test_a_pattern_subscription_never_eats_dead_letters() -> None:
    names = [topic.name for topic in topology()]
    assert "vla.accepted.pi0-a.v1.dlq" in names
    assert [name for name in names if re.match(topics.ACCEPTED_PATTERN, name)] == ["vla.accepted.pi0-a.v1"]


def test_every_topic_keeps_the_brokers_time() -> None:
    assert {topic.broker_config()["message.timestamp.type"] for topic in topology()} == {"LogAppendTime"}


def test_every_declared_message_exists() -> None:
    known = {name.rpartition(".")[2] for name in current_fields()}
    assert {topic.message for topic in topology() if topic.message != "as the dead record"} <= known


@pytest.mark.parametrize("name", ["", "UPPER", "a_b", "a.b", "-a", "a" * 64, "a/../b"])
def test_a_name_that_cannot_be_part_of_a_topic_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="topic name"):
        topics.accepted_topic(name)


def test_every_code_has_a_status() -> None:
    assert set(STATUS) == set(Code)
    assert status_of("a code of a later version") == 500


@given(st.text("abcdefghij.-", min_size=1), st.integers(0, 999), st.integers(0, 2**62))
def test_a_source_survives_its_header(topic: str, partition: int, offset: int) -> None:
    source = Source(topic, partition, offset)
    assert Source.parse(str(source)) == source


@given(st.lists(st.tuples(st.text(max_size=8), st.binary(max_size=600))))
def test_decoding_headers_never_raises_and_yields_printable_ascii(raw: list[tuple[str, bytes]]) -> None:
    for value in h.decode(raw).values():
        assert value.isascii()
        assert value.isprintable()
        assert len(value) <= h.MAX_VALUE_BYTES


def test_the_first_of_a_repeated_header_wins() -> None:
    assert h.decode([("a", b"1"), ("a", b"2")]) == {"a": "1"}


@pytest.mark.parametrize(("text", "value"), [("12", 12), ("-3", -3), ("", None), ("1e3", None), ("9" * 20, None)])
def test_integer_headers(text: str, value: int | None) -> None:
    assert h.integer({"x": text}, "x") == value


#: Keys and their murmur2 hashes as org.apache.kafka.common.utils.UtilsTest states them.
@pytest.mark.parametrize(
    ("key", "signed"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_is_that_of_the_java_client(key: bytes, signed: int) -> None:
    assert ids.murmur2(key) == signed & 0xFFFFFFFF


requests = st.builds(
    InferenceRequest,
    request_id=st.uuids().map(str),
    robot_id=st.text("abc", min_size=1),
    robot_type=st.just("tabletop_arm"),
    instruction=st.text(max_size=40),
    images=st.lists(
        st.builds(
            Image,
            camera=st.just("base"),
            encoding=st.sampled_from(ImageEncoding.values()),
            data=st.binary(max_size=64),
        ),
        max_size=2,
    ),
    state=st.lists(st.floats(width=32), max_size=8),
    step=st.integers(0, 2**63),
    ttl_ms=st.integers(-5, 5000),
    captured_at_ms=st.integers(0, 2**50),
    executed=st.builds(ActionMatrix, horizon=st.integers(0, 3), dim=st.integers(0, 3)),
    options=st.builds(Options, seed=st.none() | st.integers(0, 2**64 - 1)),
)


@given(requests)
def test_a_request_survives_the_wire(request: InferenceRequest) -> None:
    again = InferenceRequest.FromString(request.SerializeToString())
    assert again.SerializeToString(deterministic=True) == request.SerializeToString(deterministic=True)


@given(requests, st.uuids(), st.integers(0, 2**40), st.integers(1, 60_000))
def test_the_digest_ignores_id_clock_and_time_to_live_alone(
    request: InferenceRequest, other: object, clock: int, ttl: int
) -> None:
    again = InferenceRequest.FromString(request.SerializeToString())
    again.request_id, again.captured_at_ms, again.ttl_ms = str(other), clock, ttl
    assert ids.content_digest(again) == ids.content_digest(request)
    again.instruction += "x"
    assert ids.content_digest(again) != ids.content_digest(request)


def test_row_ids_differ_by_source_and_never_by_chance_of_joining() -> None:
    one, two = Source("t", 0, 1), Source("t", 0, 2)
    assert ids.row_id("c", "r", "q", one) != ids.row_id("c", "r", "q", two)
    assert ids.row_id("c", "rq", "", one) != ids.row_id("c", "r", "q", one)


def test_the_shipped_cards_fit_together() -> None:
    cards = load_cards(CARDS)
    assert cards.default_model is not None
    assert cards.embodiment("tabletop_arm") is not None


def test_a_card_with_a_typing_error_names_file_and_field(tmp_path: Path) -> None:
    (tmp_path / "embodiments").mkdir()
    (tmp_path / "embodiments" / "arm.yaml").write_text("robot_type: arm\ntitel: Arm\n")
    with pytest.raises(CardError, match=r"arm\.yaml.*titel"):
        load_cards(tmp_path)


def test_a_missing_card_folder_says_which_setting_to_set(tmp_path: Path) -> None:
    with pytest.raises(CardError, match="CARDS_DIR"):
        load_cards(tmp_path / "nowhere")
