"""Scopes hold on every route, tokens stand for keys and never for more, and what looks like an attack is told."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import jwt
import pytest

from ingest_api.key_watch import BURST, SETTLED_S, KeyWatch
from ingest_api.tokens import Tokens
from schemas.messages import AuditEvent
from schemas.scopes import DEFAULT_SCOPES, TOKEN_SCOPES, Scope
from tests.unit.api_case import Api, body
from tests.unit.api_stand_ins import CUSTOMER, KEY, ManualClock, key_record
from tests.unit.test_api_inference import assert_problem

SECRET = "j" * 32
#: What anybody may ask without a key.
PUBLIC = {
    ("get", path)
    for path in (
        "/", "/livez", "/readyz", "/health", "/metrics", "/metrics/federate", "/v1/models", "/v1/models/{model}",
        "/v1/models/{model}/load", "/v1/models/{model}/stats", "/v1/robots", "/v1/robots/{robot_type}", "/config",
        "/v1/monitoring/gpu", "/v1/monitoring/queue",
    )
}  # fmt: skip


def key_of(number: int) -> str:
    return f"vla_abcdefgh_{number:043d}"


SCOPES = list(Scope)
#: One application for all routes, with a key of each scope alone and one of all but that scope.
API = Api()
for _number, _scope in enumerate(SCOPES):
    _others = tuple(other for other in SCOPES if other != _scope)
    API.table.add(key_record(key_of(_number), key_id=f"only-{_scope}", scopes=(_scope,)))
    API.table.add(key_record(key_of(100 + _number), key_id=f"without-{_scope}", scopes=_others))


def operations() -> Iterator[tuple[str, str, str | None]]:
    """Method, path and declared scope of every operation that takes a key."""
    for path, methods in API.app.openapi()["paths"].items():
        for method, operation in methods.items():
            if "security" in operation:
                scopes = operation["security"][0]["bearer"]
                yield method, path, scopes[0] if scopes else None


OPERATIONS = sorted(operations(), key=str)


async def call(api: Api, method: str, path: str, token: str | None = KEY) -> Any:
    async with api.client(token) as client:
        path = path.replace("{customer_id}", "me")
        return await client.request(method, re.sub(r"\{[a-z_]+\}", "x", path))


def test_every_route_takes_a_key_or_is_known_to_be_public() -> None:
    paths = API.app.openapi()["paths"].items()
    without = {(m, path) for path, methods in paths for m, said in methods.items() if "security" not in said}
    assert without <= PUBLIC


@pytest.mark.parametrize(("method", "path", "scope"), OPERATIONS)
async def test_a_key_without_the_scope_is_forbidden_and_with_it_alone_is_let_in(
    method: str, path: str, scope: str | None
) -> None:
    number = SCOPES.index(Scope(scope)) if scope is not None else 0
    if scope is not None:
        assert_problem(await call(API, method, path, key_of(100 + number)), 403, "forbidden")
    assert (await call(API, method, path, key_of(number))).status_code != 403
    assert (await call(API, method, path, None)).status_code == 401


def test_the_default_key_opens_all_but_what_admins_do() -> None:
    assert {scope for _, _, scope in OPERATIONS if scope is not None} == set(Scope)
    assert set(DEFAULT_SCOPES) == set(Scope) - {Scope.ADMIN}
    assert set(TOKEN_SCOPES) == set(DEFAULT_SCOPES) - {Scope.KEYS}


# --- tokens


async def token_of(api: Api, **asked: Any) -> Any:
    async with api.client() as client:
        return await client.post("/v1/auth/token", json=asked)


async def test_a_token_does_what_its_key_does() -> None:
    api = Api()
    answer = (await token_of(api)).json()
    assert answer["scopes"] == list(TOKEN_SCOPES)
    assert KEY not in answer["token"]
    assert (await api.post(body(), key=answer["token"])).status_code == 200
    assert api.gateway.asked[0].customer_id == CUSTOMER


async def test_a_token_may_only_what_it_was_made_for() -> None:
    api = Api()
    token = (await token_of(api, scopes=["read"])).json()["token"]
    assert_problem(await api.post(body(), key=token), 403, "forbidden")
    assert (await call(api, "get", "/v1/inferences", token)).status_code == 200


async def test_a_token_makes_no_token_and_no_key() -> None:
    api = Api()
    token = (await token_of(api)).json()["token"]
    assert_problem(await call(api, "post", "/v1/auth/token", token), 403, "forbidden")
    assert_problem(await call(api, "post", "/v1/keys", token), 403, "forbidden")
    assert_problem(await token_of(api, scopes=["keys"]), 403, "forbidden")
    assert_problem(await token_of(api, ttl_s=3601), 400, "malformed")


async def test_a_token_ends_with_its_key() -> None:
    api = Api()
    token = (await token_of(api)).json()["token"]
    api.table.add(key_record(is_active=False))
    assert_problem(await api.post(body(), key=token), 401, "unauthenticated")


async def test_a_token_loses_a_scope_with_its_key() -> None:
    api = Api()
    token = (await token_of(api)).json()["token"]
    api.table.add(key_record(scopes=("read",)))
    assert_problem(await api.post(body(), key=token), 403, "forbidden")


async def test_an_installation_without_the_secret_gives_and_takes_none() -> None:
    api = Api(tokens=None)
    assert_problem(await token_of(api), 404, "not_found")
    token, _ = Tokens(SECRET).issue("k-1", CUSTOMER, TOKEN_SCOPES, 60)
    assert_problem(await api.post(body(), key=token), 401, "unauthenticated")


def test_a_token_ends_and_is_not_taken_before_its_time() -> None:
    clock = ManualClock(1_000_000.0)
    tokens = Tokens(SECRET, now=clock)
    token, ends_s = tokens.issue("k", "c", (Scope.READ,), 60)
    assert ends_s == 1_000_060
    assert tokens.read(token) is not None
    clock.now_s = ends_s
    assert tokens.read(token) is None
    clock.now_s = 1_000_000.0 - 120
    assert tokens.read(token) is None


GOOD = {"iss": "vlastream", "aud": "vlastream-api", "sub": "c", "key": "k", "scope": "read"}


def forged(secret: str = SECRET, algorithm: str | None = "HS256", **changes: Any) -> str:
    now_s = int(time.time())
    claims = {**GOOD, "iat": now_s, "nbf": now_s, "exp": now_s + 60, **changes}
    return jwt.encode({k: v for k, v in claims.items() if v is not ...}, secret, algorithm=algorithm)


def test_a_token_of_the_right_form_is_read() -> None:
    assert Tokens(SECRET).read(forged()) is not None


@pytest.mark.parametrize(
    "made",
    [
        lambda: forged(secret="k" * 32),
        lambda: forged(secret="", algorithm="none"),
        lambda: forged(secret="j" * 64, algorithm="HS512"),
        lambda: forged(aud="another-api"),
        lambda: forged(iss="somebody"),
        lambda: forged(exp=...),
        lambda: forged(exp=int(time.time()) + 10 * 365 * 86_400),
        lambda: forged(exp="tomorrow"),
        lambda: forged(iat=int(time.time()) + 3600),
        lambda: forged(key=...),
        lambda: forged(key=7),
        lambda: forged(scope=["read"]),
        lambda: forged() + "x",
        lambda: forged()[:-2],
        lambda: "a.b.c",
        lambda: "",
        lambda: "x" * 5000,
    ],
)
def test_every_other_token_is_refused(made: Callable[[], str]) -> None:
    assert Tokens(SECRET).read(made()) is None, "made now, so that its age is no reason"


def test_scopes_that_no_token_has_are_left_out() -> None:
    claims = Tokens(SECRET).read(forged(scope="read admin keys flying"))
    assert claims is not None
    assert claims.scopes == ("read",)
    with pytest.raises(ValueError, match="never given"):
        Tokens(SECRET).issue("k", "c", (Scope.ADMIN,), 60)


# --- what looks like an attack


class Watched:
    def __init__(self) -> None:
        self.told: list[AuditEvent] = []
        self.clock = ManualClock()
        self.watch = KeyWatch(self.told.append, clock=self.clock)

    def actions(self) -> list[str]:
        return [told.action for told in self.told]


def test_many_unknown_keys_from_one_address_are_told_once() -> None:
    watched = Watched()
    for _ in range(BURST - 1):
        watched.watch.unknown("10.0.0.1")
        watched.watch.unknown("10.0.0.2")
    assert watched.told == []
    for _ in range(100):
        watched.watch.unknown("10.0.0.1")
    assert watched.actions() == ["key.guessing"]
    assert (watched.told[0].origin, watched.told[0].actor) == ("10.0.0.1", "nobody")


def test_slow_mistakes_are_no_attack() -> None:
    watched = Watched()
    for _ in range(BURST * 3):
        watched.watch.unknown("10.0.0.1")
        watched.clock.now_s += 61
    assert watched.told == []


def test_the_use_of_a_dead_key_is_told_and_not_at_every_request() -> None:
    watched = Watched()
    for _ in range(10):
        watched.watch.revoked(key_record(), "10.0.0.1")
        watched.watch.expired(key_record(key_id="k-2"), "10.0.0.1")
    assert watched.actions() == ["key.use_revoked", "key.use_expired"]
    assert watched.told[0].customer_id == CUSTOMER
    watched.clock.now_s += 601
    watched.watch.revoked(key_record(), "10.0.0.1")
    assert watched.actions()[-1] == "key.use_revoked"


def test_a_new_address_is_told_once_a_key_is_at_home_somewhere() -> None:
    watched = Watched()
    for address in ("10.0.0.1", "10.0.0.2", "10.0.0.1"):
        watched.watch.used(key_record(), address)
    assert watched.told == [], "a fresh key has no home yet"
    watched.clock.now_s += SETTLED_S
    watched.watch.used(key_record(), "10.0.0.2")
    watched.watch.used(key_record(), "203.0.113.9")
    watched.watch.used(key_record(), "203.0.113.9")
    assert watched.actions() == ["key.new_address"]
    assert watched.told[0].origin == "203.0.113.9"
