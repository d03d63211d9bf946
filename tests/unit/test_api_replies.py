"""Correlation: whatever comes in whatever order, an answer reaches its own request once, and nobody is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_api.gateway import KafkaGateway, NoReply, Question
from ingest_api.replies import Pending
from runtime.errors import Fatal, Overloaded, Unavailable
from runtime.metrics import Metrics
from runtime.publisher import Delivered, OnDelivery
from schemas import headers as h

_IDS = st.sampled_from(["a", "b", "c", "d"])
_STEPS = st.lists(st.tuples(st.sampled_from(["open", "settle", "fail", "cancel", "turn"]), _IDS), max_size=40)
_CAPACITY = 3


async def _walk(steps: Iterable[tuple[str, str]]) -> None:
    pending: Pending[str] = Pending(_CAPACITY)
    waiting: dict[str, asyncio.Future[str]] = {}
    ended: list[tuple[asyncio.Future[str], object]] = []
    for number, (step, name) in enumerate(steps):
        if step == "open":
            if len(waiting) == _CAPACITY:
                with pytest.raises(Overloaded):
                    pending.open(name)
            elif name in waiting:
                with pytest.raises(ValueError, match="in use"):
                    pending.open(name)
            else:
                waiting[name] = pending.open(name)
        elif step == "turn":
            await asyncio.sleep(0)
        elif step == "cancel":
            if name in waiting:
                future = waiting.pop(name)
                future.cancel()
                await asyncio.sleep(0)
                ended.append((future, asyncio.CancelledError))
        else:
            answer: Any = f"{name}-{number}" if step == "settle" else RuntimeError(f"{name}-{number}")
            taken = (pending.settle if step == "settle" else pending.fail)(name, answer)
            assert taken == (name in waiting)
            if taken:
                ended.append((waiting.pop(name), answer))
        assert len(pending) == len(waiting)
    for future, answer in ended:
        if answer is asyncio.CancelledError:
            assert future.cancelled()
        elif isinstance(answer, RuntimeError):
            assert future.exception() is answer
        else:
            assert future.result() == answer
    assert not any(future.done() for future in waiting.values())


@given(_STEPS)
def test_every_answer_reaches_its_own_request_once(steps: list[tuple[str, str]]) -> None:
    asyncio.run(_walk(steps))


class ScriptedPublisher:
    """Takes records; the test says when and how they are reported."""

    def __init__(self) -> None:
        self.records: list[tuple[str, bytes | None, dict[str, str], int | None]] = []
        self.reports: list[OnDelivery] = []
        self.refuses: Exception | None = None

    def publish(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: h.RawHeaders | None = None,
        partition: int | None = None,
        on_delivery: OnDelivery | None = None,
    ) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.records.append((topic, value, h.decode(headers), partition))
        if on_delivery is not None:
            self.reports.append(on_delivery)

    async def send(self, *args: Any, **options: Any) -> Delivered:
        raise NotImplementedError

    def flush(self, timeout_s: float) -> int:
        return 0


class ReadyGateway(KafkaGateway):
    """One whose way was proven."""

    @property
    def waiting_for(self) -> list[str]:
        return []


QUESTION = Question(value=b"v", robot_id=b"arm-1", request_id="r-1", customer_id="c-1")


def unexpected(error: BaseException) -> None:
    raise AssertionError("the gateway gave up") from error


def ready_gateway(
    capacity: int = 10, on_failure: Callable[[BaseException], None] = unexpected
) -> tuple[ReadyGateway, ScriptedPublisher, Metrics]:
    publisher, metrics = ScriptedPublisher(), Metrics()

    def no_consumer(on_error: object) -> Any:
        raise AssertionError("no consumer is built")

    gateway = ReadyGateway(
        publisher=publisher,
        build_consumer=no_consumer,
        partition=3,
        capacity=capacity,
        metrics=metrics,
        on_failure=on_failure,
    )
    return gateway, publisher, metrics


def waiting(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("vla_requests_waiting")


async def test_a_request_says_where_its_answer_is_to_go() -> None:
    gateway, publisher, metrics = ready_gateway()
    future = gateway.ask(QUESTION, 10)
    ((topic, value, headers, partition),) = publisher.records
    assert (topic, value, partition) == ("vla.requests.v1", b"v", None)
    assert headers[h.REPLY_TOPIC] == "vla.replies.v1"
    assert headers[h.REPLY_PARTITION] == "3"
    assert headers[h.CUSTOMER_ID] == "c-1"
    assert headers[h.REQUEST_ID] == "r-1"
    assert len(headers[h.CORRELATION_ID]) == 32
    assert h.TRACEPARENT not in headers
    assert waiting(metrics) == 1
    future.cancel()
    await asyncio.sleep(0)
    assert waiting(metrics) == 0


async def test_an_id_that_fits_no_header_is_left_to_the_gate() -> None:
    gateway, publisher, _ = ready_gateway()
    for request_id in ("é" * 3, "x" * 5000):
        question = Question(value=b"v", robot_id=b"r", request_id=request_id, customer_id="c")
        gateway.ask(question, 10).cancel()
    assert all(h.REQUEST_ID not in headers for _, _, headers, _ in publisher.records)


@pytest.mark.parametrize("acknowledged", [True, False])
async def test_no_reply_tells_whether_the_log_has_the_request(acknowledged: bool) -> None:
    gateway, publisher, metrics = ready_gateway()
    future = gateway.ask(QUESTION, 0.01)
    if acknowledged:
        publisher.reports[0](Delivered("vla.requests.v1", 0, 0, 0), None)
    with pytest.raises(NoReply) as caught:
        await future
    assert caught.value.acknowledged is acknowledged
    assert waiting(metrics) == 0


async def test_a_record_that_failed_ends_the_wait() -> None:
    gateway, publisher, _ = ready_gateway()
    future = gateway.ask(QUESTION, 10)
    await asyncio.to_thread(publisher.reports[0], None, RuntimeError("gone"))
    with pytest.raises(Unavailable):
        await future


@pytest.mark.parametrize("error", [None, RuntimeError("gone")])
async def test_whoever_counts_the_record_hears_once_what_became_of_it_also_after_the_wait_ended(
    error: Exception | None,
) -> None:
    gateway, publisher, _ = ready_gateway()
    settled = asyncio.Event()
    gateway.ask(QUESTION, 10, settled.set).cancel()
    where = None if error is not None else Delivered("vla.requests.v1", 0, 0, 0)
    await asyncio.to_thread(publisher.reports[0], where, error)
    await settled.wait()


async def test_a_publisher_that_refuses_leaves_nobody_waiting() -> None:
    gateway, publisher, metrics = ready_gateway()
    publisher.refuses = Unavailable("away")
    with pytest.raises(Unavailable):
        gateway.ask(QUESTION, 10)
    await asyncio.sleep(0)
    assert waiting(metrics) == 0


async def test_a_process_that_ends_leaves_nobody_waiting() -> None:
    gateway, _, metrics = ready_gateway()
    futures = [gateway.ask(QUESTION, 10) for _ in range(3)]
    gateway.abandon()
    for future in futures:
        with pytest.raises(Unavailable, match="stopping"):
            await future
    assert waiting(metrics) == 0


async def test_a_producer_that_is_done_for_ends_the_process_and_the_wait() -> None:
    failures: list[BaseException] = []
    gateway, publisher, _ = ready_gateway(on_failure=failures.append)
    future = gateway.ask(QUESTION, 10)
    await asyncio.to_thread(publisher.reports[0], None, Fatal("fenced"))
    with pytest.raises(Unavailable):
        await future
    publisher.refuses = Fatal("fenced")
    with pytest.raises(Fatal):
        gateway.ask(QUESTION, 10)
    assert len(failures) == 2


async def test_too_many_that_wait_are_overload() -> None:
    gateway, _, _ = ready_gateway(capacity=2)
    held = [gateway.ask(QUESTION, 10) for _ in range(2)]
    with pytest.raises(Overloaded):
        gateway.ask(QUESTION, 10)
    held[0].cancel()
    await asyncio.sleep(0)
    gateway.ask(QUESTION, 10).cancel()
    held[1].cancel()
