"""No log of the stack tells a secret: read after the stack has served, refused and restarted."""

from __future__ import annotations

import signal
from urllib.parse import urlsplit

import httpx
import pytest

from runtime.stack.layout import read_json
from tests.e2e.running_stack import SALT, RunningStack, observation

pytestmark = [pytest.mark.stack, pytest.mark.slow]


@pytest.mark.timeout(300)
def test_no_log_of_the_stack_tells_a_secret(stack: RunningStack) -> None:
    found = stack.file
    key = str(found["api_key"])
    made = httpx.post(f"{stack.api}/v1/auth/token", headers=stack.headers, json={"ttl_s": 600}, timeout=30)
    assert made.status_code == 200, made.text
    token = str(made.json()["token"])
    guess = key[:-4] + "0000"
    # Good, bad and broken, by every way that a secret comes in.
    assert stack.post(observation(7)).status_code == 200
    for credential in (token, guess):
        headers = {"authorization": f"Bearer {credential}"}
        httpx.post(f"{stack.api}/v1/inference", content=f'{{"{credential}":', headers=headers, timeout=30)
        httpx.get(f"{stack.api}/v1/usage?key={credential}", headers=headers, timeout=30)
        httpx.get(f"{stack.api}/v1/{credential}", headers=headers, timeout=30)
    for role in ("sink postgres", "etl"):
        # What a role says when it comes up and goes down.
        stack.end(role, signal.SIGTERM)
    folder = stack.layout.folder
    secrets = dict(read_json(stack.layout.data("secrets.json")))
    assert secrets
    secrets |= {"the salt of the lake's ids": SALT, "the API's key": key, "a token": token, "a guessed key": guess}
    secrets |= {"the database's password": urlsplit(found["database"]).password or ""}
    secrets |= {"Redis' password": urlsplit(found["redis"]).password or "", "S3's": found["s3"]["secret_key"]}
    assert all(len(secret) >= 12 for secret in secrets.values()), "too short to be looked for"
    logs = sorted((folder / "logs").iterdir())
    assert len(logs) >= 8
    told = [
        f"{log.name} tells {name}"
        for log in logs
        for name, secret in secrets.items()
        if secret in log.read_text(errors="replace")
    ]
    assert told == []


def test_no_role_was_refused_what_it_needs(stack: RunningStack) -> None:
    # The other tests have had each of them do its work.
    roles = ("api", "gate", "gpu", "sink", "embedder", "etl")
    logs = [log for log in (stack.layout.folder / "logs").iterdir() if log.name.startswith(roles)]
    refused = [
        f"{log.name}: {line[:300]}"
        for log in logs
        for line in log.read_text(errors="replace").splitlines()
        if "permission denied" in line or "AUTHORIZATION_FAILED" in line
    ]
    assert refused == []
