"""Break-in attempts at REST: what belongs to others, forged headers, injection, and bodies that are too much."""

from __future__ import annotations

import io
import json
import logging
import re
import zlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from pythonjsonlogger.json import JsonFormatter

from runtime.logs import configure_logging
from schemas.codes import Code
from schemas.topics import CONSENT, CONTROL, EMBODIMENTS, EPISODES, FEEDBACK
from tests.unit.api_case import body
from tests.unit.api_stand_ins import CUSTOMER, KEY
from tests.unit.break_in_case import (
    ADDRESSES,
    LOOT,
    NOBODYS,
    PAYLOADS,
    TAKEN,
    VICTIM,
    alike,
    send,
    settings_with,
    standing,
    text_of,
    two_customers,
)

#: Method, path with the other's id as {} and body of every route that takes an id in its path or query.
BY_ID: list[tuple[str, str, Any]] = [
    ("GET", "/v1/inferences/{}", None),
    ("GET", "/v1/search/scenes/{}", None),
    ("GET", "/v1/feedback?request_id={}", None),
    ("PATCH", "/v1/keys/{}", {"name": "mine"}),
    ("DELETE", "/v1/keys/{}", None),
    ("POST", "/v1/keys/{}/rotate", {}),
    *(
        ("POST", f"/v1/feedback/{kind}", {"request_id": "{}", **said})
        for kind, said in (
            ("success", {"success": True}),
            ("safety-rating", {"rating": 1}),
            ("action-correction", {"actions": [[0.1, 0.2, 0.3]]}),
            ("failure-report", {"failure_type": "dropped"}),
        )
    ),
    ("POST", "/v1/feedback", {"type": "success", "request_id": "{}", "success": True}),
]
BY_CUSTOMER: list[tuple[str, str, Any]] = [
    ("GET", "/v1/customers/{}", None),
    ("GET", "/v1/customers/{}/stats", None),
    ("GET", "/v1/customers/{}/safety-incidents", None),
    ("PUT", "/v1/customers/{}/tier", {"tier": "enterprise"}),
    ("PUT", "/v1/customers/{}/limits", {"max_robots": 100_000}),
    ("GET", "/v1/customers/{}/consent", None),
    ("PUT", "/v1/customers/{}/consent", {"tier": "full"}),
    ("GET", "/v1/customers/{}/consent/history", None),
    ("GET", "/v1/customers/{}/data", None),
    ("DELETE", "/v1/customers/{}/data", None),
    ("GET", "/v1/usage?customer_id={}", None),
    ("GET", "/v1/audit?customer_id={}", None),
]
#: Every list: what it shows is the caller's, whatever filter is set.
LISTS = [
    "/v1/inferences?robot_id=arm-2", "/v1/inferences?episode_id=e-9", "/v1/feedback", "/v1/feedback/stats",
    "/v1/episodes?robot_id=arm-2", "/v1/analytics/usage", "/v1/analytics/safety", "/v1/analytics/robots",
    "/v1/analytics/instructions", "/v1/search/instructions?q=pick+it+up", "/v1/usage", "/v1/usage?by=day",
    "/v1/audit", "/v1/keys", "/v1/stream/sessions",
]  # fmt: skip
WRITTEN = (CONSENT, CONTROL, EMBODIMENTS, EPISODES, FEEDBACK)


def with_id(content: Any, name: str) -> Any:
    return json.loads(json.dumps(content).replace('"{}"', f'"{name}"')) if content is not None else None


@pytest.mark.parametrize(("method", "path", "content"), BY_ID)
async def test_the_id_of_anothers_thing_is_answered_as_one_that_nobody_has(
    method: str, path: str, content: Any
) -> None:
    api = standing()
    answers = [await send(api, method, path.replace("{}", name), with_id(content, name)) for name in (TAKEN, NOBODYS)]
    alike(*answers)
    assert answers[0].status_code == (200 if "?" in path else 404), answers[0].text
    assert LOOT not in answers[0].text
    assert not any(api.broker.records(topic) for topic in WRITTEN)


@pytest.mark.parametrize(("method", "path", "content"), BY_CUSTOMER)
async def test_another_customer_is_answered_as_one_that_nobody_is(method: str, path: str, content: Any) -> None:
    api = standing()
    answers = [await send(api, method, path.replace("{}", name), content) for name in (VICTIM, "customer-0")]
    alike(*answers)
    assert answers[0].status_code in (403, 404), answers[0].text
    assert LOOT not in answers[0].text
    assert not any(api.broker.records(topic) for topic in WRITTEN)


@pytest.mark.parametrize("path", LISTS)
async def test_a_list_shows_nothing_of_others(path: str) -> None:
    api = standing()
    answer = await send(api, "GET", path)
    assert answer.status_code == 200, answer.text
    assert LOOT not in answer.text
    assert VICTIM not in answer.text


@pytest.mark.parametrize(
    "asked",
    ["robot_type=dog", "min_success_rate=0.9", "since=2026-11-22T00:00:00Z", "until=2026-11-18T00:00:00Z"],
)
async def test_a_filter_of_a_search_tells_nothing_of_others_who_said_the_same(asked: str) -> None:
    api = standing()
    answer = await send(api, "GET", f"/v1/search/instructions?q=pick+it+up&{asked}")
    assert answer.status_code == 200, answer.text
    assert LOOT not in answer.text
    assert api.reader.asked
    for statement in api.reader.asked:
        _, _, conditions = text_of(statement).partition("WHERE")
        conditions, _, _ = conditions.partition("ORDER BY")
        # These sum over all customers who used the same words.
        for figure in ("success_rate", "common_robots", "first_seen", "last_seen"):
            assert figure not in conditions


def test_every_route_that_takes_an_id_is_among_the_attempts() -> None:
    tried = {(m, p.partition("?")[0]) for m, p, _ in (*BY_ID, *BY_CUSTOMER)}
    tried |= {("PUT", "/v1/robots/{}"), ("DELETE", "/v1/robots/{}")}  # of test_break_in_keys, by name
    for path, methods in standing().app.openapi()["paths"].items():
        for method, said in methods.items():
            if "security" in said and "{" in path:
                assert (method.upper(), re.sub(r"\{\w+\}", "{}", path)) in tried


async def test_a_stop_of_anothers_robot_stops_ones_own_name_alone() -> None:
    api = two_customers()
    for robot in ("arm-2", f"../{VICTIM}/arm-2", f"{VICTIM}/arm-2"):
        await send(
            api, "POST", "/v1/control", {"action": "stop", "scope": "robot", "robot_id": robot, "reason": "mine now"}
        )
    (record,) = api.broker.records(CONTROL)
    assert CUSTOMER in str(record.key)
    assert VICTIM not in str(record.key) + str(record.value)


# --- forged headers


FORGED = {
    "customer_id": VICTIM, "x-customer-id": VICTIM, "consent_tier": "full", "deadline_ms": "99999999999999",
    "reply_topic": "vla.replies.south.v1", "reply_partition": "0", "source": "vla.requests.v1/0/0",
    "correlation_id": "theirs", "row_id": TAKEN, "x-forwarded-for": "10.9.8.7", "forwarded": "for=10.9.8.7",
    "x-real-ip": "10.9.8.7", "x-http-method-override": "DELETE", "x-original-url": "/v1/customers",
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), FORGED.items())
async def test_a_header_of_ours_from_outside_means_nothing(name: str, value: str) -> None:
    api = standing()
    answer = await api.post(body(), headers={name: value})
    assert answer.status_code == 200, answer.text
    (question,) = api.gateway.asked
    assert question.customer_id == CUSTOMER
    assert value not in repr((question.customer_id, question.robot_id, question.topic, question.traceparent))


@pytest.mark.parametrize("name", ["customer_id", "consent_tier", "deadline_ms", "reply_topic", "source", "row_id"])
async def test_a_field_of_ours_in_a_body_is_refused(name: str) -> None:
    api = standing()
    assert (await api.post(body(**{name: "x"}))).status_code == 400
    assert api.gateway.asked == []


async def test_a_name_of_somebody_elses_in_host_is_refused() -> None:
    api = two_customers(settings=settings_with(allowed_hosts=("api.example.org",)))
    hosts = ("evil.org", "api.example.org.evil.org", "evil.org:80@api.example.org", "api.example.org evil.org")
    for path in ("/v1/inferences", "/v1/keys", "/openapi.json", "/metrics", "/docs"):
        for host in hosts:
            assert (await send(api, "GET", path, headers={"host": host})).status_code == 400


# --- injection


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What every logger writes, as the product formats it."""
    stream, handler = io.StringIO(), logging.StreamHandler()
    handler.setStream(stream)
    handler.setFormatter(JsonFormatter("{levelname}{name}{message}", style="{"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


def parameters() -> list[tuple[str, str, str | None]]:
    """Method, path and name of every string that a route takes in its path (None) or its query."""
    found: list[tuple[str, str, str | None]] = []
    for path, methods in standing().app.openapi()["paths"].items():
        for method, said in methods.items():
            found += [
                (method, path, None if each["in"] == "path" else each["name"]) for each in said.get("parameters", [])
            ]
    return found


@pytest.mark.parametrize(("method", "path", "name"), parameters())
async def test_no_parameter_becomes_a_statement_a_header_a_line_or_a_label(
    method: str, path: str, name: str | None, lines: io.StringIO
) -> None:
    api = standing()
    template = re.sub(r"\{\w+\}", "{}" if name is None else "me", path)
    asked = [
        (template.format(quote(payload, safe="")), {} if name is None else {name: payload}) for payload in PAYLOADS
    ]
    async with api.client() as client:
        answers = [await client.request(method, where, params=query) for where, query in asked]
    for payload, answer in zip(PAYLOADS, answers, strict=True):
        assert answer.status_code < 500 or answer.json()["code"] == Code.UNAVAILABLE, (payload, answer.text)
        assert "set-cookie" not in answer.headers
        assert LOOT not in answer.text
        assert "root:" not in answer.text
        assert all(payload not in text_of(each) for each in api.reader.asked if len(payload) > 2)
    assert all(json.loads(line) for line in lines.getvalue().splitlines())
    exposition = (await send(api, "GET", "/metrics")).text
    assert not any(payload[:40] in exposition for payload in PAYLOADS if len(payload) > 2 and payload != VICTIM)


@pytest.mark.parametrize("field", ["robot_id", "instruction", "episode_id", "request_id", "model", "robot_type"])
async def test_no_field_of_a_request_reaches_a_label_or_breaks_a_line(field: str, lines: io.StringIO) -> None:
    api = standing()
    for payload in PAYLOADS:
        answer = await api.post(body(**{field: payload}))
        assert answer.status_code in (200, 400, 404, 422), answer.text
    assert all(json.loads(line) for line in lines.getvalue().splitlines())
    exposition = (await send(api, "GET", "/metrics")).text
    assert not any(payload[:40] in exposition for payload in PAYLOADS if len(payload) > 2)


@pytest.mark.parametrize("log_format", ["json", "text"])
@pytest.mark.parametrize("where", ["message", "field"])
def test_a_line_break_in_what_is_logged_makes_no_second_line(
    log_format: Any, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    kept, level = root.handlers[:], root.level
    try:
        configure_logging(level="INFO", log_format=log_format, role="api")
        forged = "a\r\n2026-01-01 CRITICAL api-0 all is well\x1b[2J"
        extra = {"reason": forged} if where == "field" else {}
        logging.getLogger("t").warning("stopped: %s", forged if where == "message" else "x", extra=extra)
    finally:
        for handler in root.handlers[:]:
            root.removeHandler(handler)
        for handler in kept:
            root.addHandler(handler)
        root.setLevel(level)
    written = capsys.readouterr().err
    assert len(written.splitlines()) == 1
    assert "\x1b" not in written


# --- too much


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, identity", "x-gzip", "GZIP"])
@pytest.mark.parametrize("path", ["/v1/inference", "/v1/feedback", "/act", "/v1/control"])
async def test_a_compressed_body_is_refused_unread(path: str, encoding: str) -> None:
    api = standing()
    content = zlib.compress(json.dumps(body()).encode())
    headers = {"content-encoding": encoding, "content-type": "application/json", "authorization": f"Bearer {KEY}"}
    answer = await send(api, "POST", path, content=content, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (415, "malformed")
    assert api.gateway.asked == []


@pytest.mark.parametrize(
    "path", ["/v1/inference", "/v1/control", "/v1/feedback", "/v1/episodes", "/v1/keys", "/v1/auth/token", "/act",
             "/v1/customers/me/consent", "/v1/robots/my_arm"]
)  # fmt: skip
@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_beyond_its_limit_is_refused(path: str, announced: bool) -> None:
    api = standing()
    method = "PUT" if path.endswith(("consent", "my_arm")) else "POST"

    async def endless() -> Any:
        for _ in range(200):
            yield b" " * 65_536

    content: Any = b"{" + b" " * 13_000_000 + b"}" if announced else endless()
    answer = await send(api, method, path, content=content)
    assert answer.status_code == 413, answer.text
    assert api.gateway.asked == []


@pytest.mark.parametrize("data", ADDRESSES)
async def test_an_address_in_place_of_an_image_is_no_image(data: str) -> None:
    api = standing()
    for image in ({"camera": "base", "data": data}, {"camera": "base", "claim": {"uri": data}}, {"uri": data}):
        assert (await api.post(body(images=[image]))).status_code == 400
    assert (await api.post(body(images=..., image=data))).status_code == 400
    assert api.gateway.asked == []


async def test_what_is_nested_without_end_is_refused() -> None:
    api = standing()
    for content in (b"[" * 100_000, b'{"a":' * 50_000, b"{" * 100_000):
        assert (await send(api, "POST", "/v1/inference", content=content)).status_code in (400, 413)
    assert api.gateway.asked == []
