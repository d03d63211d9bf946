"""The embedder: who is embedded, what the cache spares, and that nothing is done before the log has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gpu_consumers.embedder.cache import RedisCache, cache_key
from gpu_consumers.embedder.models import ClipVision, ImageModel, SentenceModel, load_image_model
from gpu_consumers.embedder.records import brightness
from gpu_consumers.embedder.stage import EmbedStage
from runtime.consent import ConsentList
from runtime.kafka import Record
from runtime.lifecycle import Deadline
from runtime.metrics import Metrics
from schemas import headers as h
from schemas.embeddings import IMAGE_EMBEDDING_DIM, INSTRUCTION_EMBEDDING_DIM
from schemas.messages import Consent, Embedding, EmbeddingQuery
from schemas.topics import EMBEDDINGS, QUERIES, REPLIES, dead_letter_topic
from tests import factories as f
from tests.in_memory import InMemoryBroker


class CountingText:
    name = "text"

    def __init__(self) -> None:
        self.seen: list[str] = []

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.seen += texts
        return np.stack([np.full(INSTRUCTION_EMBEDDING_DIM, len(text), np.float32) for text in texts])


class CountingImages:
    name = "images"

    def __init__(self) -> None:
        self.seen = 0

    def embed(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        self.seen += len(images)
        return np.ones((len(images), IMAGE_EMBEDDING_DIM), np.float32)


class DictCache:
    def __init__(self) -> None:
        self.vectors: dict[str, NDArray[np.float32]] = {}

    def get(self, keys: Sequence[str]) -> list[NDArray[np.float32] | None]:
        return [self.vectors.get(key) for key in keys]

    def put(self, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        self.vectors |= vectors


def accepted(tier: str, offset: int = 0) -> Record:
    return f.accepted_record(offset=offset, headers={h.CONSENT_TIER: tier})


class Bench:
    def __init__(self, *, images: ImageModel | None = None, batch_size: int = 8) -> None:
        topics = {EMBEDDINGS: 4, REPLIES: 2, dead_letter_topic(f.accepted_record().topic): 1}
        self.broker = InMemoryBroker({**topics, dead_letter_topic(QUERIES): 1})
        self.publisher = self.broker.publisher()
        self.metrics = Metrics()
        self.text = CountingText()
        self.cache = DictCache()
        self.consents = ConsentList("none", "partial")
        self.failures: list[BaseException] = []
        self.finished: list[int] = []
        self.stage = EmbedStage(
            text_model=self.text,
            image_model=images,
            cache=self.cache,
            consents=self.consents,
            publisher=self.publisher,
            metrics=self.metrics,
            batch_size=batch_size,
            on_failure=self.failures.append,
        )

    def submit(self, *records: Record) -> None:
        for number, record in enumerate(records, start=len(self.finished)):
            self.stage.submit(record, partial(self.finished.append, number))

    def work(self) -> None:
        """Everything that waits, on this thread."""
        while self.stage.work_once():
            pass

    def embeddings(self, topic: str = EMBEDDINGS) -> list[Embedding]:
        return [Embedding.FromString(record.value or b"") for record in self.broker.records(topic)]


@pytest.mark.parametrize(("tier", "embedded"), [("none", 0), ("metadata", 1), ("full", 1), ("platinum", 0)])
def test_only_consented_requests_are_embedded(tier: str, embedded: int) -> None:
    bench = Bench()
    bench.submit(accepted(tier))
    bench.work()
    assert len(bench.embeddings()) == embedded
    assert len(bench.text.seen) == embedded
    assert bench.finished == [0]


def test_an_embedding_lies_in_the_partition_of_its_request_and_names_its_row() -> None:
    bench = Bench(images=CountingImages())
    record = accepted("full")
    bench.submit(record)
    bench.work()
    (found,) = bench.embeddings()
    (written,) = bench.broker.records(EMBEDDINGS)
    source = h.Source.parse(record.headers[h.SOURCE])
    assert written.partition == source.partition
    assert found.row_id == record.headers[h.ROW_ID]
    assert (len(found.instruction), len(found.image)) == (INSTRUCTION_EMBEDDING_DIM, IMAGE_EMBEDDING_DIM)
    assert 0 <= found.brightness <= 1


def test_equal_content_is_computed_once_and_a_hit_computes_nothing() -> None:
    images = CountingImages()
    bench = Bench(images=images)
    bench.submit(*[accepted("full", n) for n in range(3)])
    bench.work()
    bench.submit(accepted("full", 9))
    bench.work()
    assert (len(bench.text.seen), images.seen) == (1, 1)
    assert len(bench.embeddings()) == 4
    count = bench.metrics.registry.get_sample_value
    assert count("vla_embedding_cache_total", {"result": "miss"}) == 2
    assert count("vla_embedding_cache_total", {"result": "hit"}) == 6


def test_nothing_is_done_before_the_log_has_it() -> None:
    bench = Bench()
    bench.publisher.hold()
    bench.submit(accepted("full"))
    bench.work()
    assert bench.finished == []
    bench.publisher.release()
    assert bench.finished == [0]


def test_what_was_erased_while_it_waited_is_not_sent() -> None:
    bench = Bench()
    record = accepted("full")
    bench.submit(record)
    customer = record.headers[h.CUSTOMER_ID]
    erased = Consent(tier="full", erased_before_ms=2**45)
    bench.consents.update(customer.encode(), erased.SerializeToString(), 0)
    bench.work()
    assert bench.embeddings() == []
    assert bench.finished == [0]


def test_poison_becomes_a_dead_letter_and_the_rest_goes_on() -> None:
    bench = Bench()
    good = accepted("full")
    bad = Record(good.topic, 0, 5, b"k", b"\xff\xff", 0, good.raw_headers)
    headerless = Record(good.topic, 0, 6, b"k", good.value, 0, [])
    bench.submit(bad, headerless, good)
    bench.work()
    assert sorted(bench.finished) == [0, 1, 2]
    assert len(bench.broker.records(dead_letter_topic(good.topic))) == 2
    assert len(bench.embeddings()) == 1


def query(text: str, **headers: str | int) -> Record:
    address: dict[str, str | int] = {h.REPLY_TOPIC: REPLIES, h.REPLY_PARTITION: 1, h.CORRELATION_ID: "c-1", **headers}
    return Record(QUERIES, 0, 0, None, EmbeddingQuery(text=text).SerializeToString(), 0, h.encode(address))


def test_a_query_is_answered_at_its_address_before_requests_that_came_earlier() -> None:
    bench = Bench(batch_size=1)
    bench.submit(accepted("full"), query("red things"))
    bench.work()
    (answer,) = bench.broker.records(REPLIES)
    assert (answer.partition, answer.headers[h.CORRELATION_ID]) == (1, "c-1")
    assert bench.text.seen[0] == "red things"
    assert len(bench.embeddings(REPLIES)[0].instruction) == INSTRUCTION_EMBEDDING_DIM


@pytest.mark.parametrize("headers", [{h.REPLY_TOPIC: "vla.requests.v1"}, {h.REPLY_PARTITION: "x"}])
def test_a_query_without_an_address_is_a_dead_letter(headers: dict[str, str | int]) -> None:
    bench = Bench()
    bench.submit(query("red things", **headers))
    assert len(bench.broker.records(dead_letter_topic(QUERIES))) == 1


def test_the_stage_stops_while_it_waits_for_work() -> None:
    bench = Bench()
    bench.stage.start()
    bench.stage.close(Deadline(10))
    assert not bench.stage.alive()


def test_a_cache_that_is_away_is_left_alone_and_costs_the_hits_only() -> None:
    cache = RedisCache.at("redis://127.0.0.1:9/0", 300)
    key = cache_key("c", "m", b"x")
    assert cache.get([key]) == [None]
    cache.put({key: np.zeros(3, np.float32)})
    assert cache.get([key]) == [None]


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_keys_differ_with_content_customer_and_model(first: bytes, second: bytes) -> None:
    assert (cache_key("c", "m", first) == cache_key("c", "m", second)) == (first == second)
    assert len({cache_key("c", "m", first), cache_key("d", "m", first), cache_key("c", "n", first)}) == 3


def test_brightness_goes_from_black_to_white() -> None:
    shades = [np.full((80, 120, 3), level, np.uint8) for level in (0, 128, 255)]
    assert [round(brightness(shade), 2) for shade in shades] == [0.0, 0.5, 1.0]


def test_the_packaged_sentence_model_knows_what_means_the_same() -> None:
    model = SentenceModel("sentence-transformers/all-MiniLM-L6-v2", "cpu")
    near, same, far = model.embed(["pick up the red block", "grasp the red cube", "how is the weather"])
    assert np.linalg.norm(near) == pytest.approx(1, abs=1e-5)
    assert near @ same > 0.5 > near @ far


def test_the_vision_tower_of_the_demo_is_loaded_as_clip_is_and_says_what_it_is() -> None:
    folder = Path(__file__).resolve().parents[2] / "examples" / "tabletop" / "vision_tower"
    model = ClipVision(str(folder), "cpu")
    assert model.name == "vlastream/demo-vision-tower"
    vectors = model.embed([np.zeros((224, 224, 3), np.uint8), np.full((480, 640, 3), 200, np.uint8)])
    assert vectors.shape == (2, IMAGE_EMBEDDING_DIM)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1], abs=1e-3)


def test_without_weights_images_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    assert load_image_model("openai/clip-vit-base-patch32", "cpu") is None
    assert "IMAGE_EMBEDDING_MODEL" in caplog.text
