"""Break-in attempts at the gate's topics: what a fleet's own clients may write into a record. The brokers' part is
tests/integration/test_secure_kafka.py."""

from __future__ import annotations

import io
import zlib

import pytest
from PIL import Image as PillowImage

from schemas import headers as h
from schemas.messages import Claim, Completion, Image, ImageEncoding
from schemas.topics import REPLIES, REQUESTS, RESULTS
from tests.gate_bench import ACCEPTED, FLEET_TOPIC, GateBench, answered, request
from tests.unit.break_in_case import ADDRESSES

FORGED = {
    h.CUSTOMER_ID: "customer-2", h.CONSENT_TIER: "full", h.DEADLINE_MS: "9" * 15, h.REQUESTED_AT_MS: "1",
    h.SOURCE: f"{REQUESTS}/1/7", h.ROW_ID: "row-of-another", h.REPLY_TOPIC: "vla.replies.south.v1",
    h.REPLY_PARTITION: "3", h.CORRELATION_ID: "a\r\nb",
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
async def test_a_fleet_that_writes_our_headers_stays_who_it_is_and_where_it_is(name: str) -> None:
    bench = GateBench()
    bench.tiers["customer-2"] = "full"
    await answered(bench, request(), topic=FLEET_TOPIC, **{name: FORGED[name]})
    (record,) = bench.broker.records(ACCEPTED)
    assert record.headers[h.CUSTOMER_ID] == "north"
    assert record.headers[h.CONSENT_TIER] == "none"
    assert record.headers[h.SOURCE] == f"{FLEET_TOPIC}/0/0"
    assert record.headers[h.ROW_ID] != "row-of-another"
    assert int(record.headers[h.DEADLINE_MS]) < int("9" * 15)
    (outcome,) = bench.outcomes()
    assert outcome.request.customer_id == "north"
    assert bench.answers(REPLIES) == []
    (answer,) = bench.broker.records("vla.replies.north.v1")
    assert answer.partition == 0


@pytest.mark.parametrize(
    "topic", ["vla.requests.v1", "vla.results.v1", "vla.replies.south.v1", "vla.control.v1", "../x"]
)
async def test_an_answer_is_sent_to_no_topic_that_is_not_for_answers(topic: str) -> None:
    bench = GateBench()
    before = {name: len(bench.broker.records(name)) for name in (RESULTS,)}
    bench.ask(request(), **{h.REPLY_TOPIC: topic})
    await bench.step(REQUESTS)
    assert bench.answers(REPLIES) == []
    assert {name: len(bench.broker.records(name)) for name in (RESULTS,)} == before
    assert len(bench.broker.records(REQUESTS)) == 1


@pytest.mark.parametrize("partition", ["-1", "4", "99999999999", "x", "1e3", ""])
async def test_an_answer_is_sent_to_no_partition_that_is_not_there(partition: str) -> None:
    bench = GateBench()
    await answered(bench, request(), **{h.REPLY_PARTITION: partition})
    assert len(bench.outcomes()) == 1
    assert bench.answers(REPLIES) == []


async def test_a_fleet_is_not_given_the_answer_to_anothers_request_id() -> None:
    bench = GateBench()
    theirs = request(instruction="pick up the secret block")
    await answered(bench, theirs)
    await answered(bench, request(request_id=theirs.request_id), topic=FLEET_TOPIC)
    for answer in bench.answers("vla.replies.north.v1"):
        assert answer.outcome.request.customer_id == "north"
        assert "secret" not in str(answer.outcome)


async def test_a_completion_of_nobodys_request_moves_no_robot() -> None:
    bench = GateBench()
    bench.put(Completion(row_id="x").SerializeToString(), {h.CUSTOMER_ID: "north"}, RESULTS)
    await bench.step()
    assert bench.outcomes() == []
    assert bench.answers(REPLIES) == []


@pytest.mark.parametrize("uri", ADDRESSES)
async def test_a_claim_check_is_refused_and_never_fetched(uri: str) -> None:
    bench = GateBench()
    claim = Image(camera="base", encoding=ImageEncoding.IMAGE_ENCODING_JPEG, claim=Claim(uri=uri, bytes=1000))
    bench.ask(request(images=[claim]))
    await bench.step()
    (outcome,) = bench.outcomes()
    assert [v.reason for v in outcome.rejection.violations] == ["claim_unsupported"]
    assert bench.broker.records(ACCEPTED) == []


def png_bomb(side: int) -> bytes:
    """A PNG of `side` squared pixels of one colour in a few hundred KiB."""
    header = side.to_bytes(4, "big") * 2 + b"\x01\x00\x00\x00\x00"
    rows = zlib.compressobj(9)
    data = b"".join(rows.compress(bytes(1 + side // 8)) for _ in range(side)) + rows.flush()
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    body = b"".join(
        len(part).to_bytes(4, "big") + kind + part + zlib.crc32(kind + part).to_bytes(4, "big") for kind, part in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def tall() -> bytes:
    buffer = io.BytesIO()
    PillowImage.new("1", (64, 65_000)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("data", [png_bomb(16_000), png_bomb(40_000), tall()], ids=["large", "larger", "tall"])
async def test_a_picture_that_unpacks_to_a_bomb_is_refused_by_its_header(data: bytes) -> None:
    bench = GateBench()
    assert len(data) < 524_288
    bench.ask(request(images=[Image(camera="base", encoding=ImageEncoding.IMAGE_ENCODING_PNG, data=data)]))
    await bench.step()
    (outcome,) = bench.outcomes()
    assert outcome.rejection.code == "invalid_image"
    assert bench.broker.records(ACCEPTED) == []


async def test_an_image_of_a_claimed_size_that_its_bytes_do_not_have_is_refused() -> None:
    bench = GateBench()
    for width, height in ((2**31, 2**31), (2048, 2048), (0, 0)):
        raw = Image(
            camera="base", encoding=ImageEncoding.IMAGE_ENCODING_RGB8, width=width, height=height, data=b"x" * 99
        )
        bench.ask(request(images=[raw]))
    await bench.step()
    assert [outcome.rejection.code for outcome in bench.outcomes()] == ["invalid_image"] * 3
