"""Break-in attempts at keys, tokens and scopes, and at the secrets themselves."""

from __future__ import annotations

import logging
import time
from typing import Any

import jwt
import pytest
from pydantic import SecretStr

from ingest_api.key_watch import BURST
from ingest_api.robots import EXAMPLE
from ingest_api.tokens import Tokens
from schemas.scopes import Scope
from schemas.topics import CONSENT, CONTROL, EMBODIMENTS
from tests.unit.api_case import body
from tests.unit.api_stand_ins import CUSTOMER, KEY, key_record
from tests.unit.break_in_case import (
    JWT_SECRET,
    VICTIM,
    VICTIM_KEY,
    alike,
    scoped,
    send,
    settings_with,
    standing,
    two_customers,
    watched,
)

GUESSES = [
    VICTIM_KEY[:-1] + "u", VICTIM_KEY[:13] + "x" * 43, VICTIM_KEY.upper(), "vla_victim78_" + "t" * 42,
    "vla_victim78_" + "t" * 44, "vla_00000000_" + "0" * 43,
]  # fmt: skip


@pytest.mark.parametrize("guess", GUESSES)
async def test_a_guess_near_a_key_is_answered_as_one_far_from_it(guess: str) -> None:
    api = standing()
    near, far = [await send(api, "GET", "/v1/inferences", key=key) for key in (guess, "vla_zzzzzzzz_" + "z" * 43)]
    assert near.status_code == 401
    assert "victim" not in near.text
    if guess.startswith("vla_"):
        alike(near, far)
    assert near.headers["www-authenticate"] == far.headers["www-authenticate"]


async def test_guessing_is_recorded_with_its_address_and_no_key() -> None:
    api = two_customers()
    told = watched(api)
    for number in range(3 * BURST):
        assert (await send(api, "GET", "/v1/inferences", key=f"vla_guess000_{number:043d}")).status_code == 401
    assert [event.action for event in told] == ["key.guessing"]
    assert "vla_" not in str(told)


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Basic dmxhOg==", f"bearer  {KEY}x", f"Bearer {KEY} {VICTIM_KEY}", f"Token {VICTIM_KEY}",
     "Bearer null", "Bearer undefined", "Bearer *", f"Bearer {KEY[:13]}", "Bearer ' OR 1=1--", "Bearer " + "A" * 9000],
)  # fmt: skip
async def test_what_is_no_key_opens_nothing(header: str) -> None:
    api = standing()
    answer = await send(api, "POST", "/v1/inference", body(), key=None, headers={"authorization": header})
    assert answer.status_code == 401
    assert api.gateway.asked == []


@pytest.mark.parametrize("where", ["?key=", "?access_token=", "?authorization=Bearer%20"])
async def test_a_key_in_a_url_opens_nothing(where: str) -> None:
    api = standing()
    assert (await send(api, "GET", f"/v1/inferences{where}{KEY}", key=None)).status_code == 401
    assert (await send(api, "GET", "/v1/keys", key=None, headers={"cookie": f"authorization={KEY}"})).status_code == 401


def forged(secret: str = JWT_SECRET, algorithm: str | None = "HS256", **changes: Any) -> str:
    now_s = int(time.time())
    claims: dict[str, Any] = {
        "iss": "vlastream",
        "aud": "vlastream-api",
        "sub": CUSTOMER,
        "key": "k-1",
        "scope": "read",
    }
    claims |= {"iat": now_s, "nbf": now_s, "exp": now_s + 600, **changes}
    return jwt.encode({k: v for k, v in claims.items() if v is not ...}, secret, algorithm=algorithm)


def forgeries() -> dict[str, str]:
    """Each fails for what its name says; made anew for each test, so that none fails for its age."""
    now_s = int(time.time())
    return {
        "expired": forged(iat=now_s - 900, nbf=now_s - 900, exp=now_s - 300),
        "alg none": forged("", "none"),
        "other algorithm": forged("j" * 64, "HS512"),
        "same secret, other algorithm": forged("j" * 32 + "j" * 32, "HS384"),
        "other secret": forged("k" * 32),
        "other audience": forged(aud="vlastream-admin"),
        "other issuer": forged(iss="evil"),
        "without an end": forged(exp=...),
        "without end in sight": forged(exp=now_s + 10**9),
        "of no key": forged(key=...),
        "of a key that nobody has": forged(key="k-999"),
        "of a key by wildcard": forged(key="%"),
    }


@pytest.mark.parametrize("name", forgeries())
async def test_a_forged_or_expired_token_opens_nothing(name: str) -> None:
    api = standing()
    assert (await send(api, "GET", "/v1/inferences", key=forged())).status_code == 200, "the form itself is right"
    assert (await send(api, "GET", "/v1/inferences", key=forgeries()[name])).status_code == 401


async def test_a_token_with_more_scopes_written_into_it_is_no_token() -> None:
    api = standing()
    head, _, signature = forged().split(".")
    _, claims, _ = forged(scope="read admin keys control").split(".")
    assert (await send(api, "GET", "/v1/customers", key=f"{head}.{claims}.{signature}")).status_code == 401


async def test_the_customer_of_a_token_is_its_keys_whatever_it_says() -> None:
    api = standing()
    token = forged(sub=VICTIM, scope="inference")
    await api.post(body(), key=token)
    assert [question.customer_id for question in api.gateway.asked] == [CUSTOMER]


async def test_a_token_that_was_kept_is_of_no_use_once_its_key_is_revoked() -> None:
    api = two_customers()
    told = watched(api)
    token, _ = Tokens(JWT_SECRET).issue("k-1", CUSTOMER, (Scope.INFERENCE,), 3600)
    assert (await api.post(body(), key=token)).status_code == 200
    for changes in ({"is_active": False}, {"expires_at_s": 1.0}):
        api.table.add(key_record(**changes))
        api.cache.records.clear()
        api.clock.now_s += 60
        assert (await api.post(body(), key=token)).status_code == 401
    assert {event.action for event in told} == {"key.use_revoked", "key.use_expired"}


# --- more than a key may

MODEL_STOP = {"action": "stop", "scope": "model", "model": "test-model", "reason": "mine"}
ESCALATIONS: list[tuple[tuple[Scope, ...], str, str, Any]] = [
    ((Scope.READ,), "POST", "/v1/control", {"action": "stop", "scope": "fleet", "reason": "mine"}),
    ((Scope.READ,), "POST", "/v1/inference", body()),
    ((Scope.READ,), "POST", "/v1/keys", {}),
    ((Scope.READ,), "PUT", "/v1/customers/me/consent", {"tier": "full"}),
    ((Scope.READ,), "DELETE", "/v1/customers/me/data", None),
    ((Scope.READ, Scope.DATA), "PUT", "/v1/customers/me/tier", {"tier": "enterprise"}),
    ((Scope.READ, Scope.DATA), "PUT", "/v1/customers/me/limits", {"requests_per_day": 2**30}),
    ((Scope.KEYS,), "POST", "/v1/keys", {"scopes": ["admin"]}),
    ((Scope.KEYS,), "POST", "/v1/keys", {"scopes": ["keys", "control"]}),
    ((Scope.KEYS, Scope.READ), "POST", "/v1/auth/token", {"scopes": ["keys"]}),
    ((Scope.READ,), "POST", "/v1/auth/token", {"scopes": ["read", "control"]}),
    ((Scope.KEYS, Scope.CONTROL), "POST", "/v1/control", {"action": "stop", "scope": "all", "reason": "mine"}),
    ((Scope.CONTROL,), "POST", "/v1/control", MODEL_STOP),
    ((Scope.KEYS,), "GET", "/v1/customers", None),
    ((Scope.KEYS,), "POST", "/v1/customers", {"email": "a@example.org", "tier": "enterprise"}),
    ((Scope.INFERENCE,), "GET", "/v1/audit", None),
]  # fmt: skip


@pytest.mark.parametrize(("scopes", "method", "path", "content"), ESCALATIONS)
async def test_a_key_does_no_more_than_its_scopes(
    scopes: tuple[Scope, ...], method: str, path: str, content: Any
) -> None:
    api = standing()
    answer = await send(api, method, path, content, key=scoped(api, *scopes))
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), answer.text
    assert not any(api.broker.records(topic) for topic in (CONTROL, CONSENT, EMBODIMENTS))
    assert api.gateway.asked == []


async def test_another_customers_robot_type_is_not_changed_by_its_name() -> None:
    api = two_customers()
    await send(api, "PUT", "/v1/robots/my_arm", EXAMPLE, key=VICTIM_KEY)
    theirs = list(api.broker.records(EMBODIMENTS))
    for record in theirs:
        api.robots.update(record.key or b"", record.value, record.timestamp_ms)
    alike(await send(api, "DELETE", "/v1/robots/my_arm"), await send(api, "DELETE", "/v1/robots/my_arm"))
    assert all(VICTIM.encode() not in (record.key or b"") for record in api.broker.records(EMBODIMENTS)[len(theirs) :])


# --- secrets

SECRETS = ("planted-database", "planted-kafka-password", "planted-redis", "planted-jwt-secret-" + "j" * 32)


ASKED = [
    ("GET", "/openapi.json"), ("GET", "/metrics"), ("GET", "/health"), ("GET", "/config"), ("GET", "/"),
    ("GET", "/v1/keys"), ("GET", "/nothing/" + KEY[:20]), ("POST", "/v1/inference"), ("PUT", "/v1/inference"),
    ("POST", "/v1/auth/token"), ("GET", "/v1/inferences"), ("GET", "/metrics/federate"), ("GET", "/v1/monitoring/gpu"),
]  # fmt: skip


async def test_no_answer_and_no_line_tells_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    database, kafka, redis, secret = SECRETS
    settings = settings_with(
        kafka_security_protocol="SASL_SSL",
        kafka_sasl_mechanism="SCRAM-SHA-512",
        kafka_sasl_username="api",
        kafka_sasl_password=SecretStr(kafka),
        redis_url=SecretStr(f"rediss://:{redis}@127.0.0.1/0"),
        jwt_secret_key=SecretStr(secret),
    ).model_copy(update={"database_url": SecretStr(f"postgresql://u:{database}@127.0.0.1/x")})
    api = two_customers(settings=settings, tokens=Tokens(secret))
    api.reader.away = True
    refused = VICTIM_KEY[:-1] + "q"
    with caplog.at_level(logging.DEBUG):
        answers = [await send(api, method, path, key=key) for method, path in ASKED for key in (KEY, refused)]
    told = caplog.text + repr(settings) + "".join(answer.text + str(answer.headers) for answer in answers)
    for planted in (*SECRETS, KEY, VICTIM_KEY, refused, key_record().key_hash):
        assert planted not in told
    assert "Traceback" not in "".join(answer.text for answer in answers)
