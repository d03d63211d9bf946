"""An operator's stop at both agents: nothing that gives a robot actions gets by, and nothing is lost by it."""

from __future__ import annotations

import pytest

from runtime.control import StopList, fleet_target, model_target, robot_target
from schemas import headers as h
from schemas.codes import Code
from schemas.messages import Control, Outcome
from schemas.topics import REPLIES, REQUESTS, RESULTS
from tests.gate_bench import ACCEPTED, GateBench, answered, request

STOP = Control(target="robot:customer/arm-1", stopped=True, who="ana", why="a person is in the cell")


class ListedStops(GateBench):
    """Asks the list that the gate's processes ask."""

    def __init__(self) -> None:
        self.stops = StopList()
        super().__init__()

    def stop_of(self, customer_id: str, robot_id: str, model: str) -> Control | None:
        return self.stops.stop_of(customer_id=customer_id, robot_id=robot_id, model=model)


def code(outcome: Outcome) -> str:
    return outcome.rejection.code or "actions"


async def test_a_request_of_a_stopped_robot_is_refused_before_it_costs_a_device() -> None:
    bench = GateBench()
    bench.stop = STOP
    await answered(bench, request())
    assert bench.broker.records(ACCEPTED) == []
    assert [code(outcome) for outcome in bench.outcomes()] == [Code.STOPPED]
    assert bench.answers()[0].outcome.rejection.status == 423


async def test_a_completion_in_flight_at_the_stop_becomes_a_refusal() -> None:
    bench = GateBench()
    bench.ask(request())
    await bench.step(REQUESTS)
    bench.infer()
    bench.stop = STOP
    await bench.step(RESULTS)
    assert [code(outcome) for outcome in bench.outcomes()] == [Code.STOPPED]
    assert [code(answer.outcome) for answer in bench.answers()] == [Code.STOPPED]
    bench.stop = None
    await bench.redeliver(RESULTS)
    assert len(bench.outcomes()) == 1


async def test_a_retry_of_a_stopped_robot_gets_no_actions_and_the_first_answer_after_the_resume() -> None:
    bench = GateBench()
    asked = request()
    await answered(bench, asked, correlation_id="first")
    bench.stop = STOP
    await answered(bench, asked, correlation_id="while stopped")
    bench.stop = None
    await answered(bench, asked, correlation_id="after")
    first, stopped, after = bench.answers()
    assert (code(stopped.outcome), stopped.outcome.rejection.status) == (Code.STOPPED, 423)
    assert stopped.outcome.row_id == "", "what was withheld is no outcome of the request"
    assert stopped.headers[h.CORRELATION_ID] == "while stopped"
    assert after.outcome == first.outcome == bench.outcomes()[0]
    assert len(bench.outcomes()) == 1


async def test_a_retry_of_a_refused_request_gets_its_refusal_also_while_stopped() -> None:
    bench = GateBench()
    asked = request(robot_type="UNKNOWN")
    await answered(bench, asked)
    bench.stop = STOP
    await answered(bench, asked, correlation_id="again")
    first, again = bench.answers(REPLIES)
    assert again.outcome == first.outcome


@pytest.mark.parametrize(
    "target", ["all", fleet_target("customer"), model_target("test-model"), robot_target("customer", "arm-1")]
)
async def test_a_request_without_a_model_is_stopped_with_the_default_one(target: str) -> None:
    bench = ListedStops()
    asked = [request(), request(), request()]
    for number, one in enumerate(asked):
        one.step = number
    await answered(bench, asked[0])
    bench.ask(asked[1])
    await bench.step(REQUESTS)
    bench.infer()
    bench.stops.update(target.encode(), Control(target=target, stopped=True).SerializeToString(), 0)
    await bench.step(RESULTS)
    await answered(bench, asked[2])
    await answered(bench, asked[0], correlation_id="again")
    assert [code(outcome) for outcome in bench.outcomes()] == ["actions", Code.STOPPED, Code.STOPPED]
    assert [code(answer.outcome) for answer in bench.answers()] == ["actions", *[Code.STOPPED] * 3]
