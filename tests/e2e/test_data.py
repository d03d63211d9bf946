"""What becomes of a customer's data: allowed, found, judged, forbidden, erased; over REST, through every process."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from ingest_api.tenancy_commands import create_key
from runtime.settings import Settings
from sinks.books import read_books
from tests.e2e.running_stack import RunningStack, observation

pytestmark = [pytest.mark.stack, pytest.mark.slow]


class Customer:
    """One of its own for each test, so that nothing of the others is erased."""

    def __init__(self, stack: RunningStack, settings: Settings) -> None:
        self._stack = stack
        key = create_key(settings, f"{uuid.uuid4().hex}@example.org", "pro")
        self._client = httpx.Client(
            base_url=stack.api, headers={"Authorization": f"Bearer {key}"}, timeout=30, trust_env=False
        )

    def get(self, path: str, **query: Any) -> Any:
        answer = self._client.get(path, params=query)
        return answer.json() if answer.status_code == 200 else None

    def send(self, method: str, path: str, body: Any = None) -> Any:
        answer = self._client.request(method, path, json=body)
        assert answer.status_code < 300, answer.text
        return answer.json()

    def infer(self, seed: int, **changes: Any) -> str:
        body = observation(seed, **changes)
        self.send("POST", "/v1/inference", body)
        return str(body["request_id"])

    def close(self) -> None:
        self._client.close()

    def found(self, text: str) -> list[dict[str, Any]]:
        """Instructions that mean about the same; none while no embedder has answered yet."""
        answer = self.get("/v1/search/instructions", q=text)
        return list(answer["matches"]) if answer is not None else []

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        self._stack.wait_for(condition, what)

    def row(self, request_id: str) -> tuple[Any, ...]:
        """tier-dependent columns of the request's row, once it is there."""

        def found() -> list[tuple[Any, ...]]:
            return self._stack.rows(
                "SELECT instruction, instruction_embedding IS NOT NULL FROM inference_log WHERE request_id = %s",
                request_id,
            )

        self.wait(lambda: bool(found()), "the row did not come")
        return found()[0]


@pytest.fixture
def customer(stack: RunningStack, settings: Settings) -> Iterator[Customer]:
    made = Customer(stack, settings)
    yield made
    made.close()


def test_what_is_allowed_is_found_by_meaning_and_by_sight(customer: Customer) -> None:
    assert customer.send("PUT", "/v1/customers/me/consent", {"tier": "full"})["version"] == 1
    first = customer.infer(301, instruction="pick up the red block")
    customer.infer(302, instruction="reach the yellow block")
    customer.wait(lambda: customer.row(first)[1] is True, "the vector did not come")
    customer.wait(lambda: len(customer.found("grasp something red")) == 2, "the instructions are not found")
    assert customer.found("grasp something red")[0]["instruction"] == "pick up the red block"
    customer.wait(lambda: customer.get(f"/v1/search/scenes/{first}") is not None, "the scene is not found")
    scenes = customer.get(f"/v1/search/scenes/{first}")["matches"]
    assert len(scenes) == 1
    assert scenes[0]["image_model"] == "vlastream/demo-vision-tower"


def test_episodes_and_feedback_are_joined_with_the_inference(customer: Customer) -> None:
    customer.send("PUT", "/v1/customers/me/consent", {"tier": "metadata"})
    episode: dict[str, Any] = {"robot_id": "arm-1", "episode_id": "e-1"}
    customer.send("POST", "/v1/episodes", {"event": "start", "task": "reach", **episode})
    asked = customer.infer(303, **episode)
    customer.row(asked)
    customer.send("POST", "/v1/feedback/success", {"request_id": asked, "success": True, "rating": 5})
    customer.send("POST", "/v1/feedback/action-correction", {"request_id": asked, "actions": [[0.0] * 7]})
    customer.send("POST", "/v1/episodes", {"event": "end", "success": True, **episode})
    customer.wait(lambda: len(customer.get("/v1/feedback")["feedback"]) == 2, "the feedback did not come")
    assert customer.get("/v1/feedback/stats")["success_rate"] == 1
    customer.wait(
        lambda: [e["success"] for e in customer.get("/v1/episodes")["episodes"]] == [True], "the episode did not end"
    )
    (ended,) = customer.get("/v1/episodes")["episodes"]
    assert ended["started_at"] < ended["ended_at"]


def test_a_no_holds_for_what_comes_after(customer: Customer, stack: RunningStack) -> None:
    customer.send("PUT", "/v1/customers/me/consent", {"tier": "full"})
    first = customer.infer(304)
    customer.wait(lambda: customer.row(first)[0] is not None, "the first was allowed")
    customer.send("PUT", "/v1/customers/me/consent", {"tier": "none"})

    seeds = iter(range(305, 400))

    def refused() -> bool:
        return bool(customer.row(customer.infer(next(seeds)))[0] is None)

    stack.wait_for(refused, "the instruction is still kept")
    assert [change["tier"] for change in customer.get("/v1/customers/me/consent/history")["changes"]] == [
        "none",
        "full",
    ]


def test_what_is_erased_is_nowhere_and_the_books_still_balance(
    customer: Customer, stack: RunningStack, settings: Settings
) -> None:
    customer.send("PUT", "/v1/customers/me/consent", {"tier": "full"})
    asked = [customer.infer(seed) for seed in range(410, 414)]
    for request_id in asked:
        customer.row(request_id)
    books = read_books(settings, wait_s=120)
    assert books.balanced, books.explain()
    promised = customer.send("DELETE", "/v1/customers/me/data")
    assert {"vla.requests.v1", "vla.outcomes.v1"} <= {topic["topic"] for topic in promised["kafka"]}
    customer.wait(lambda: customer.get("/v1/customers/me/data")["state"] == "done", "the erasure did not end")
    done = customer.get("/v1/customers/me/data")
    assert done["removed"]["postgres"]["inference_log"] == 4
    assert done["removed"]["lake"]["outcomes"] == 4
    assert stack.rows("SELECT 1 FROM inference_log WHERE request_id = ANY(%s)", asked) == []
    books = read_books(settings, wait_s=60)
    assert books.balanced, books.explain()
    later = customer.infer(420)
    assert customer.row(later)[0] is not None
