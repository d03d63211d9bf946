"""What an operator does at a shell is done, and stands in the audit log: in Kafka, and in Postgres."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest

from runtime.control_commands import login_name
from runtime.stack.roles import vlastream
from schemas.ids import customer_id_of_email
from tests.e2e.running_stack import RunningStack

pytestmark = [pytest.mark.stack, pytest.mark.slow]


def outputs(stack: RunningStack, *arguments: str) -> tuple[str, str]:
    done = subprocess.run(vlastream(*arguments), env=stack.environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


def run(stack: RunningStack, *arguments: str) -> str:
    return outputs(stack, *arguments)[0]


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 90) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


@contextmanager
def followed(stack: RunningStack) -> Iterator[list[str]]:
    """Lines of `vlastream audit tail --follow`, as they come; it ends as a person ends it."""
    lines: list[str] = []
    command = vlastream("audit", "tail", "--since", "1s", "--follow")
    with subprocess.Popen(command, env=stack.environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        output = process.stdout
        reader = threading.Thread(target=lambda: lines.extend(output))
        reader.start()
        try:
            yield lines
        finally:
            process.send_signal(signal.SIGINT)
            reader.join(60)
            assert process.wait(timeout=30) == 0


def status(stack: RunningStack, key: str) -> int:
    return httpx.get(f"{stack.api}/v1/usage", headers={"authorization": f"Bearer {key}"}, trust_env=False).status_code


def told(lines: list[str], action: str, about: str) -> str:
    """The line of an action, once it is there. Lines are added by a reader's thread."""

    def found() -> list[str]:
        return [line for line in list(lines) if line.split()[1:2] == [action] and about in line]

    wait_for(lambda: bool(found()), f"{action} is not told")
    return found()[0]


@pytest.mark.timeout(600)
def test_everything_that_an_operator_does_is_told_with_who_what_when_and_where_from(stack: RunningStack) -> None:
    email, me = f"{uuid.uuid4().hex}@example.org", login_name()
    customer, robot = customer_id_of_email(email), f"arm-{uuid.uuid4().hex[:8]}"
    with followed(stack) as lines:
        # Whoever follows hears what comes later; how long that takes to begin is the machine's affair.
        run(stack, "customers", "list")
        first = run(stack, "keys", "create", "--email", email, "--tier", "pro", "--name", "line 3").split()[-1]
        assert status(stack, first) == 200
        assert first[:12] in run(stack, "keys", "list", "--customer", email)
        run(stack, "keys", "change", first[:12], "--rate-limit", "90")
        second = run(stack, "keys", "rotate", first[:12]).split()[-1]
        wait_for(lambda: status(stack, first) == 401, "the key that was rotated is still good")
        assert status(stack, second) == 200
        run(stack, "customers", "set-tier", email, "enterprise")
        run(stack, "customers", "limits", email, "--max-robots", "3")
        shown = run(stack, "customers", "show", email)
        assert "enterprise" in shown
        assert "3  (own)" in shown
        run(stack, "customers", "suspend", email)
        wait_for(lambda: status(stack, second) == 403, "a suspended customer is let in")
        run(stack, "customers", "readmit", email)
        wait_for(lambda: status(stack, second) == 200, "a readmitted customer is not let in")
        run(stack, "stop", "robot", f"{customer}/{robot}", "--reason", "a person is in the cell")
        run(stack, "resume", "robot", f"{customer}/{robot}", "--reason", "the person has left")
        run(stack, "consent", "set", customer, "--tier", "metadata")
        run(stack, "keys", "revoke", second[:12])
        wait_for(lambda: status(stack, second) == 401, "the key that was revoked is still good")
        assert "revoked" in run(stack, "keys", "list", "--customer", customer)
        for number in range(12):
            assert status(stack, f"vla_{number:08d}_{uuid.uuid4().hex}{uuid.uuid4().hex[:11]}") == 401

        done = [
            "customer.create", "key.create", "key.change", "key.rotate", "customer.tier", "customer.limits",
            "customer.suspend", "customer.resume", "stop", "resume", "consent.set", "key.revoke",
        ]  # fmt: skip
        noticed = ["key.use_revoked", "key.guessing"]
        # From the log itself, with who and from where; lines begin with when.
        for action in done:
            about = "key:" if action.startswith("key.") else customer
            line = told(lines, action, about)
            assert f"by {me}" in line
            assert line.startswith("20")
            assert "from cli" in line
        for action in noticed:
            told(lines, action, "from 127.0.0.1")
        secrets = (first, second)
        assert not any(secret in line for line in lines for secret in secrets)

    def written() -> dict[str, tuple[str, str]]:
        query = "SELECT action, actor, origin, at FROM audit_trail WHERE customer_id = %s OR action = 'key.guessing'"
        found = stack.rows(query, customer)
        assert all(at is not None for *_, at in found)
        return {action: (actor, origin) for action, actor, origin, _ in found}

    wait_for(lambda: set(written()) >= {*done, *noticed}, "not everything is in Postgres")
    rows = written()
    assert {rows[action] for action in done} == {(me, "cli")}
    assert {rows[action][1] for action in noticed} == {"127.0.0.1"}


def test_a_trail_in_which_nothing_is_found_says_so_beside_its_output(stack: RunningStack) -> None:
    lines, told = outputs(stack, "audit", "tail", "--customer", f"{uuid.uuid4().hex}@example.org")
    assert not lines
    assert "nothing of customer" in told
